"""The class of every pixel of an image: whole or in sliding windows, and images of the answer.

Letters: B windows, H W sides of what the network sees, V classes.
"""

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headstart.errors import InputError
from headstart.images.decode import decode, shortest_edge_size
from headstart.pipelines.base import ShortRepr, is_one_image, load_both

Mode = Literal["slide", "whole"]
STRIDE = 2 / 3  # of a window, as in the authors' evaluation: 426 of 640
WINDOWS = 4  # that go through the network together
LEAST = 4  # patches a side: what the pyramid of BEiT needs, at most


def input_size(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Sides that an image is resized to, uncropped.

    Its shorter side to the processor's, or both to its height and width.
    """
    size: dict[str, int] = processor.size
    if not processor.do_resize:
        return height, width
    if "shortest_edge" in size:
        return shortest_edge_size(height, width, size["shortest_edge"])
    return size["height"], size["width"]


def window_of(processor: Any) -> tuple[int, int]:
    """Height and width of a sliding window: what the network was trained on."""
    size: dict[str, int] = processor.crop_size
    return size["height"], size["width"]


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover a side; the last one ends with the side.

    One window where it covers all of it.
    """
    if length <= window:
        return [0]
    return [min(start, length - window) for start in range(0, length - window + stride, stride)]


def class_scores(model: nn.Module, pixels: Tensor, window: tuple[int, int] | None = None) -> Tensor:
    """Scores of every pixel, (V, H, W), of one image (3, H, W) as the processor gives it.

    Args:
        model: A segmentation network.
        pixels: On the model's device.
        window: Height and width of the windows, over whose overlaps scores are averaged; None shows
            the network the whole image.
    """
    _, H, W = pixels.shape
    rows, columns = (min(side, most) for side, most in zip(window or (H, W), (H, W), strict=True))
    tops, lefts = (
        starts(side, size, max(1, int(size * STRIDE))) for side, size in ((H, rows), (W, columns))
    )
    positions = [(top, left) for top in tops for left in lefts]
    total: Tensor | None = None
    seen = torch.zeros(H, W, device=pixels.device)
    for first in range(0, len(positions), WINDOWS):
        some = positions[first : first + WINDOWS]
        scores = _scores(
            model,
            torch.stack([pixels[:, top : top + rows, left : left + columns] for top, left in some]),
        )
        for (top, left), each in zip(some, scores, strict=True):  # each (V, rows, columns)
            total = torch.zeros(len(each), H, W, device=pixels.device) if total is None else total
            total[:, top : top + rows, left : left + columns] += each
            seen[top : top + rows, left : left + columns] += 1
    assert total is not None
    return total / seen


def _scores(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, V, H, W).

    Sides that are not a multiple of the patches are padded with the mean color, and cropped again.
    """
    _, _, H, W = pixels.shape
    patch: tuple[int, int] = getattr(model.config, "patch", (1, 1))
    full = tuple(
        max(LEAST, -(-side // size)) * size for side, size in zip((H, W), patch, strict=True)
    )
    padded = F.pad(pixels, (0, full[1] - W, 0, full[0] - H))
    logits: Tensor = model(pixel_values=padded).logits.float()
    return F.interpolate(logits, size=full, mode="bilinear", align_corners=False)[..., :H, :W]


@torch.inference_mode()
def segment(
    model: nn.Module, processor: Any, image: NDArray[np.uint8], mode: Mode = "slide"
) -> NDArray[np.int64]:
    """The class of every pixel, (H, W), of an image (H, W, 3) uint8, at its own size."""
    if mode not in ("slide", "whole"):
        raise InputError(f"mode={mode!r}; expected 'slide' or 'whole'")
    height, width = image.shape[:2]
    size = input_size(processor, height, width)
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    values = processor(
        image, size={"height": size[0], "width": size[1]}, do_center_crop=False, return_tensors="pt"
    )["pixel_values"]
    scores = class_scores(
        model, values[0].to(device, dtype), window_of(processor) if mode == "slide" else None
    )  # (V, H, W)
    scores = F.interpolate(
        scores[None], size=(height, width), mode="bilinear", align_corners=False
    )[0]
    classes: NDArray[np.int64] = scores.argmax(0).cpu().numpy()
    return classes


# Images -----------------------------------------------------------------------------------------


def class_colors(config: Any) -> NDArray[np.uint8]:
    """A color for each class, (V, 3): those the data came with, else different ones made up."""
    known = getattr(config, "palette", None)
    if known is not None and len(known) >= config.num_labels:
        return np.array(known, dtype=np.uint8)[: config.num_labels]
    # Steps of the golden ratio never come close to an earlier hue for long.
    hues = [(0.08 + 0.618034 * i) % 1 for i in range(config.num_labels)]
    colors = [
        colorsys.hsv_to_rgb(hue, 0.75 - 0.3 * (i % 3 == 1), 0.95 - 0.3 * (i % 3 == 2))
        for i, hue in enumerate(hues)
    ]
    made: NDArray[np.uint8] = np.rint(np.array(colors) * 255).astype(np.uint8)
    return made


def overlay(
    image: NDArray[np.uint8],
    classes: NDArray[Any],
    colors: NDArray[np.uint8],
    strength: float = 0.6,
) -> NDArray[np.uint8]:
    """The image (H, W, 3) in the colors of its classes (H, W).

    What has no class (255) stays as it is.
    """
    known = classes < len(colors)
    painted = colors[np.where(known, classes, 0)].astype(np.float32)
    fraction = np.where(known, strength, 0.0)[..., None].astype(np.float32)
    mixed: NDArray[np.uint8] = np.rint(painted * fraction + image * (1 - fraction)).astype(np.uint8)
    return mixed


def mask_image(classes: NDArray[Any], colors: NDArray[np.uint8]) -> Image.Image:
    """Classes (H, W) as a palette image.

    Its values are the class numbers, its colors the classes'. Beyond 256 classes, 16-bit gray.
    """
    if len(colors) > 256:
        return Image.fromarray(classes.astype(np.uint16))
    image = Image.fromarray(classes.astype(np.uint8))
    image.putpalette(colors.tobytes())
    return image


class SemanticSegmentationPipeline(ShortRepr):
    """Gives every pixel of an image a class.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model.
        device: Where to compute.
        mode: "slide" looks through windows of the size the network was trained on, "whole" at the
            image at once.
    """

    task = "semantic-segmentation"

    def __init__(
        self, model: Any, *, image_processor: Any = None, device: Any = None,
        model_kwargs: Mapping[str, Any] | None = None, mode: Mode = "slide",
    ) -> None:  # fmt: skip
        self.model, self.image_processor = load_both(
            model,
            "AutoModelForSemanticSegmentation",
            image_processor,
            device,
            model_kwargs=model_kwargs,
        )
        self.mode = mode
        self.colors = class_colors(self.model.config)

    def __call__(self, images: Any) -> Any:
        """Classes of one image, or a list of them for many.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.

        Returns:
            `{"mask": (H, W) int64 array, "classes": [{"label": str, "fraction": float}, …]}`, the
            classes that occur, largest fraction first.

        Raises:
            InputError: An image that cannot be read; the message names it.
        """
        return next(self.stream([images])) if is_one_image(images) else list(self.stream(images))

    def stream(self, images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """As `__call__` for many images, one at a time."""
        for image in images:
            yield self.result(self.pixels(image))

    @staticmethod
    def pixels(image: Any) -> NDArray[np.uint8]:
        """An image upright, (H, W, 3) uint8."""
        return np.asarray(decode(image)[0], dtype=np.uint8)

    def result(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What `__call__` gives for one decoded image."""
        mask = segment(self.model, self.image_processor, pixels, self.mode)
        fraction = np.bincount(mask.ravel(), minlength=len(self.colors)) / mask.size
        names = self.model.config.id2label
        order = [int(i) for i in np.argsort(-fraction, kind="stable") if fraction[i] > 0]
        return {
            "mask": mask,
            "classes": [{"label": names[i], "fraction": float(fraction[i])} for i in order],
        }

    def write(self, image: Any, stem: Path) -> dict[str, Any]:
        """Writes `STEM.png`, whose values are class numbers, and `STEM_overlay.jpg`, and gives the
        result with their names.
        """
        pixels = self.pixels(image)
        found = self.result(pixels)
        stem.parent.mkdir(parents=True, exist_ok=True)
        mask_file, overlay_file = (
            stem.with_name(f"{stem.name}.png"),
            stem.with_name(f"{stem.name}_overlay.jpg"),
        )
        mask_image(found["mask"], self.colors).save(mask_file)
        Image.fromarray(overlay(pixels, found["mask"], self.colors)).save(overlay_file, quality=90)
        return found | {"mask_file": str(mask_file), "overlay_file": str(overlay_file)}


class ImageSegmentationPipeline(SemanticSegmentationPipeline):
    """Segments images into a list of masks, one for each class that occurs, as transformers
    does.
    """

    task = "image-segmentation"

    def __call__(self, images: Any, subtask: str | None = None) -> Any:
        """Masks of one image, or a list of them for many.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.
            subtask: "semantic" or None; the networks tell classes apart, not single objects.

        Returns:
            For each image a list of `{"score": None, "label": str, "mask": PIL image}`; masks are
            of mode "L" at the image's size, 255 where the class is.

        Raises:
            InputError: An image that cannot be read, or another subtask.
        """
        if subtask not in (None, "semantic"):
            raise InputError(
                f"subtask={subtask!r}; these networks do semantic segmentation: subtask='semantic'"
            )
        return super().__call__(images)

    def result(self, pixels: NDArray[np.uint8]) -> Any:
        """What `__call__` returns for one decoded image."""
        classes = segment(self.model, self.image_processor, pixels, self.mode)  # (H, W)
        return [
            {
                "score": None,
                "label": self.model.config.id2label[int(i)],
                "mask": Image.fromarray(np.where(classes == i, 255, 0).astype(np.uint8), "L"),
            }
            for i in np.unique(classes)
        ]
