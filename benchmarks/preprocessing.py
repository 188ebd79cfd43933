"""How fast does a JPEG of 500x375 become `pixel_values`, on one thread, beside transformers' two
processors?

    python benchmarks/preprocessing.py [folder of photos]

Everybody starts from the bytes of the files and ends with a torch tensor of one image.
transformers, and "PIL image in", start with `Image.open`.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from timing import interleaved, report

from headstart.models.beit.image import BeitImageProcessor
from headstart.models.bit.image import BitImageProcessor
from headstart.models.cvt.image import ConvNextImageProcessor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {
    "size": {"height": 480, "width": 480},
    "resample": 2,
    "do_center_crop": False,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
CASES = {
    "BiT 224": ("BitImageProcessor", BitImageProcessor, {}),
    "BiT 480 (authors)": ("BitImageProcessor", BitImageProcessor, SQUARE),
    "BEiT 256, crop 224": ("BeitImageProcessor", BeitImageProcessor, {}),
    "CvT 256, crop 224": (
        "ConvNextImageProcessor",
        ConvNextImageProcessor,
        {"size": {"shortest_edge": 224}, "resample": 3, **IMAGENET},
    ),
}


def photos(folder: str | None) -> list[bytes]:
    """JPEG files of 500x375: of a folder's photos, or of smooth noise."""
    images = []
    if folder:
        paths = [
            p for p in sorted(Path(folder).rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")
        ][:16]
        images = [Image.open(path).convert("RGB").resize((500, 375)) for path in paths]
    rng = np.random.default_rng(0)
    while len(images) < 16:
        octaves = [
            Image.fromarray(rng.integers(0, 256, (n * 3, n * 4, 3), dtype=np.uint8)).resize(
                (500, 375)
            )
            for n in (2, 5, 12, 40, 125)
        ]
        weights = np.array([5, 3, 2, 1, 1]) / 12
        images.append(Image.fromarray(np.tensordot(weights, np.stack(octaves), 1).astype(np.uint8)))
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def torchvision_version() -> str:
    """torchvision's version, or why it cannot be used.

    A wheel built for CUDA lacks its own operators beside a CPU torch. Resizing needs none of them,
    so their names are enough.
    """
    try:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    except (ImportError, RuntimeError) as error:
        return f"not here: {error}"
    globals()["_kept"] = library  # the operator goes when its library does
    return str(torchvision.__version__)


def contenders(
    name: str, ours: type, values: dict[str, Any]
) -> dict[str, Callable[[bytes], torch.Tensor]]:
    """File bytes → (1, 3, H, W), by each."""
    mine = ours(**values)
    peers = {"transformers, PIL": getattr(transformers, name)(**values)}
    if hasattr(transformers, f"{name}Fast") and transformers.utils.is_torchvision_available():
        peers["transformers, torchvision"] = getattr(transformers, f"{name}Fast")(**values)

    def pillow_only(data: bytes) -> torch.Tensor:
        saved, sys.modules["simplejpeg"] = sys.modules.get("simplejpeg"), None  # type: ignore[assignment]
        try:
            return mine(data, return_tensors="pt").pixel_values
        finally:
            if saved is None:
                del sys.modules["simplejpeg"]
            else:
                sys.modules["simplejpeg"] = saved

    runs: dict[str, Callable[[bytes], torch.Tensor]] = {
        each: lambda data, p=p: p(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values
        for each, p in peers.items()
    }
    runs["headstart, PIL image in"] = lambda data: (
        mine(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values
    )
    runs["headstart, Pillow decodes"] = pillow_only
    runs["headstart"] = lambda data: mine(data, return_tensors="pt").pixel_values
    return runs


def main(folder: str | None) -> None:
    torch.set_num_threads(1)
    files = photos(folder)
    try:
        import simplejpeg

        decoder = f"simplejpeg {simplejpeg.__version__}"
    except ImportError:
        decoder = "Pillow"
    print(
        f"torchvision {torchvision_version()}; headstart decodes JPEG with {decoder}; {len(files)}"
        f" photos of about {len(files[0])} bytes"
    )
    rows = {}
    for case, (name, ours, values) in CASES.items():
        runs = contenders(name, ours, values)
        wanted = [runs["transformers, PIL"](data) for data in files]
        for each, run in runs.items():
            std = torch.tensor(ours(**values).image_std).view(3, 1, 1)
            worst = (
                max(
                    float(((run(data) - w) * std).abs().max())
                    for data, w in zip(files, wanted, strict=True)
                )
                * 255
            )
            print(f"{case}: {each} differs from transformers with PIL by {worst:.2f} gray levels")
        rows[case] = interleaved(
            {each: lambda run=run: [run(data) for data in files] for each, run in runs.items()}, 6.0
        )
    report(
        "JPEG of 500x375 to pixel_values, 16 images one by one",
        rows,
        "transformers, PIL",
        "preprocessing",
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
