"""Random views of an image and its labels: scale, crop, mirror, colors (the recipe of BEiT's
authors, which is that of mmsegmentation).

Letters: H W sides of an image, S side of the crop.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.masks import IGNORED
from headstart.errors import MissingExtraError
from headstart.images.decode import NEAREST, resize, shortest_edge_size

SCALES = (0.5, 2.0)
MOST_OF_ONE_CLASS = 0.75  # of a crop's labelled pixels; ten crops are tried
ATTEMPTS = 10
# each is applied to half of the images
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 36 / 360

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]


def random_crop(
    image: Pixels,
    labels: Pixels,
    rng: np.random.Generator | None,
    *,
    side: int,
    short: int,
    resample: int,
    scales: tuple[float, float] = (1.0, 1.0),
    fill: Sequence[float] = (0, 0, 0),
) -> tuple[Pixels, Pixels]:
    """A square part of an image at a random scale.

    Args:
        image: (H, W, 3).
        labels: (H, W).
        rng: Decides scale and place; None takes the center.
        side: S.
        short: Shorter side of the whole image at scale 1.
        resample: Filter for the image.
        scales: Smallest and largest scale.
        fill: Color at the right and below, where the scaled image is smaller than the crop;
            labels are 255 there.

    Returns:
        Image (S, S, 3) and labels (S, S).
    """
    edge = short if rng is None else max(1, round(short * rng.uniform(*scales)))
    height, width = shortest_edge_size(labels.shape[0], labels.shape[1], edge)
    rows, columns = min(side, height), min(side, width)
    window: Window = ((height - rows) // 2, (width - columns) // 2, rows, columns)
    if rng is not None:
        for _ in range(ATTEMPTS):
            window = (
                int(rng.integers(0, height - rows + 1)),
                int(rng.integers(0, width - columns + 1)),
                rows,
                columns,
            )
            if (
                largest_fraction(resize(labels[..., None], (height, width), NEAREST, window))
                <= MOST_OF_ONE_CLASS
            ):
                break
    out = np.tile(np.array(fill).round().astype(np.uint8), (side, side, 1))
    marks = np.full((side, side), IGNORED, np.uint8)
    out[:rows, :columns] = resize(image, (height, width), resample, window)
    marks[:rows, :columns] = resize(labels[..., None], (height, width), NEAREST, window)[..., 0]
    return out, marks


def largest_fraction(labels: Pixels) -> float:
    """Fraction of the most frequent class among the labelled pixels; 0 where none is."""
    counts = np.bincount(labels.ravel(), minlength=256)[:IGNORED]
    return float(counts.max() / max(1, counts.sum()))


def random_colors(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Random brightness, contrast (before or after the others), saturation and hue; each or none.

    By kornia.
    """
    try:
        from kornia import enhance
    except ImportError:
        raise MissingExtraError("kornia", "train") from None
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    early = rng.random() < 0.5
    shift = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if rng.random() < 0.5 else 0.0
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-HUE, HUE) if rng.random() < 0.5 else 0.0
    # (1, 3, H, W)
    values = torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None].float() / 255
    if shift:
        values = enhance.adjust_brightness(values, shift / 255)
    if early and contrast != 1.0:
        values = enhance.adjust_contrast(values, contrast)
    if saturation != 1.0:
        values = enhance.adjust_saturation(values, saturation)
    if turn:
        values = enhance.adjust_hue(values, 2 * math.pi * turn)
    if not early and contrast != 1.0:
        values = enhance.adjust_contrast(values, contrast)
    # (H, W, 3)
    changed: Pixels = (values[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return changed
