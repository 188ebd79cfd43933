"""Photos that will hardly help: blurred, dark, over-exposed, nearly uniform, of an odd size or
shape, or gray among colored ones.

Each kind has an absolute limit, so that a tidy data set has none, and has to be far from the other
images of the same data, so that night shots, X-rays or panoramas are not all reported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.images.decode import BOX, resize

KINDS = (
    "blurred",
    "dark",
    "over-exposed",
    "nearly uniform",
    "odd-sized",
    "odd-shaped",
    "grayscale",
)
SIDE = 256  # pixels of the shorter side that is looked at: networks see no finer detail
SMALLEST = 16  # pixels of a side below which an image has no detail to be blurred

# Limits; docs/commands/audit.md has how many images of real data sets are beyond them.
BLURRED = 0.12  # sharpness; a Gaussian blur of 1 % of the side gives 0.04 to 0.06
DARK = 0.25
LIGHT = 0.85
UNIFORM = 0.02  # contrast: five gray levels of 255
SIZE = 4.0  # factor between the side of an image and the usual one
SHAPE = 2.5  # factor between width / height and the usual one
GRAY = 0.03  # color: JPEG compression leaves up to this
RARE = 0.2  # fraction of gray images up to which they are reported

# Fences beyond the quartiles, in interquartile ranges: "outside" and "far out" of Tukey 1977.
NEAR, FAR = 1.5, 3.0
FEW = 8  # images below which quartiles mean nothing, and the limits count alone


@dataclass(frozen=True)
class Look:
    """What one image is like.

    Args:
        width: Pixels.
        height: Pixels.
        sharpness: Standard deviation of the Laplacian over that of the gray values; 0 of an image
            without detail.
        bright: Brightness that 1 % of the pixels exceed, 0 to 1.
        shade: Brightness that 95 % of the pixels exceed, 0 to 1.
        contrast: Standard deviation of the gray values, 0 to 1.
        color: Difference of the largest and smallest channel that 1 % of the pixels exceed, 0 to 1.
    """

    width: int
    height: int
    sharpness: float
    bright: float
    shade: float
    contrast: float
    color: float


def look(pixels: NDArray[np.uint8]) -> Look:
    """What an image (H, W, 3) is like."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    small = pixels
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = resize(pixels, size, BOX)
    values = small.astype(np.float32) / 255  # (h, w, 3)
    gray = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
    red, green, blue = np.moveaxis(values, 2, 0)
    # many times faster than the maximum along the last axis
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    contrast, sharpness = float(gray.std()), 0.0
    if min(gray.shape) >= SMALLEST and contrast > 0:
        inner = gray[1:-1, 1:-1]
        around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
        sharpness = float((around - 4 * inner).std()) / contrast
    return Look(
        width,
        height,
        sharpness,
        float(np.quantile(gray, 0.99)),
        float(np.quantile(gray, 0.05)),
        contrast,
        float(np.quantile(spread, 0.99)),
    )


@dataclass(frozen=True)
class Bad:
    """An image that will hardly help.

    Args:
        index: Which image.
        kind: One of `KINDS`.
        reason: What was measured.
    """

    index: int
    kind: str
    reason: str


def bad_photos(looks: Sequence[Look]) -> list[Bad]:
    """Images that are bad in a way that the others are not, by kind.

    A dark or over-exposed image is not also said to be nearly uniform, nor a uniform one to be
    blurred or gray.

    Args:
        looks: What each image is like.

    Returns:
        At most one entry of a kind for each image, in the order of `KINDS` and of the images.
    """
    if not looks:
        return []
    dark = _below([each.bright for each in looks], DARK, NEAR)
    light = _below([-each.shade for each in looks], -LIGHT, NEAR)
    contrasts = [math.log(max(each.contrast, 1e-4)) for each in looks]
    uniform = _below(contrasts, math.log(UNIFORM), FAR) & ~dark & ~light
    found = {
        "blurred": _below(
            [math.log(max(each.sharpness, 1e-3)) for each in looks], math.log(BLURRED), NEAR
        )
        & np.array([min(each.width, each.height) >= SMALLEST for each in looks])
        & ~uniform,
        "dark": dark,
        "over-exposed": light,
        "nearly uniform": uniform,
        "odd-sized": _odd([math.log(each.width * each.height) / 2 for each in looks], SIZE),
        "odd-shaped": _odd([math.log(each.width / each.height) for each in looks], SHAPE),
        "grayscale": _gray(looks) & ~uniform,
    }
    sizes = sorted(math.sqrt(each.width * each.height) for each in looks)
    usual = sizes[len(sizes) // 2]
    reasons: dict[str, Callable[[Look], str]] = {
        "blurred": lambda each: f"sharpness {each.sharpness:.2f}",
        "dark": lambda each: f"99% of the pixels are below {each.bright:.0%} brightness",
        "over-exposed": lambda each: f"95% of the pixels are above {each.shade:.0%} brightness",
        "nearly uniform": lambda each: f"contrast {each.contrast:.1%}",
        "odd-sized": lambda each: f"{each.width}x{each.height}, most have about {usual:.0f} a side",
        "odd-shaped": lambda each: f"{each.width}x{each.height}",
        "grayscale": lambda each: "without color, and most others have some",
    }
    return [
        Bad(i, kind, reasons[kind](looks[i]))
        for kind in KINDS
        for i in np.flatnonzero(found[kind]).tolist()
    ]


def _below(values: Sequence[float], limit: float, fence: float) -> NDArray[np.bool_]:
    """Which values (N,) are below the limit and below the lower fence of all (Tukey 1977)."""
    x = np.array(values)
    low, high = np.quantile(x, [0.25, 0.75])
    outside: NDArray[np.bool_] = (x < limit) & ((x < low - fence * (high - low)) | (len(x) < FEW))
    return outside


def _odd(values: Sequence[float], factor: float) -> NDArray[np.bool_]:
    """Which logarithms (N,) are far from the median, by a factor and beyond the outer fences."""
    x = np.array(values)
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    far = (x < low - FAR * (high - low)) | (x > high + FAR * (high - low)) | (len(x) < FEW)
    odd: NDArray[np.bool_] = far & (np.abs(x - middle) > math.log(factor))
    return odd


def _gray(looks: Sequence[Look]) -> NDArray[np.bool_]:
    """Which images have no color, where few have none."""
    gray: NDArray[np.bool_] = np.array([each.color < GRAY for each in looks])
    return gray if gray.mean() <= RARE else np.zeros_like(gray)
