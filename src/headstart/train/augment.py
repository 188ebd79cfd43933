"""Random changes of training images: RandAugment, colour jitter, random erasing; and which part of a partner CutMix shows.

Images are (H, W, 3) uint8. All randomness comes from the generator that is passed in.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Pixels = NDArray[np.uint8]
Operation = Callable[[Image.Image, float, tuple[int, int, int]], Image.Image]

LAYERS, CHANCE = 2, 0.5  # operations drawn for an image, and the chance that each is applied
SPREAD = 0.5  # standard deviation of the magnitude
HIGHEST = 10.0  # magnitude
GREY = (128, 128, 128)
ERASED_AREA, ERASED_ASPECT, ERASE_ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


def _moved(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Operation:
    """An operation that maps each pixel to the place that the six numbers of an affine map give."""

    def operation(image: Image.Image, level: float, fill: tuple[int, int, int]) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(level, image), Image.Resampling.BICUBIC, fillcolor=fill)

    return operation


def _enhanced(kind: type[ImageEnhance.Color | ImageEnhance.Contrast | ImageEnhance.Brightness | ImageEnhance.Sharpness]) -> Operation:
    """An operation that moves one property up or down by at most nine tenths."""
    return lambda image, level, fill: kind(image).enhance(max(0.1, 1 + 0.9 * level))


def _solarize_add(image: Image.Image, level: float, fill: tuple[int, int, int]) -> Image.Image:
    """Dark pixels grow lighter."""
    values = np.asarray(image).astype(np.int16)
    changed = np.where(values < 128, np.minimum(values + int(110 * abs(level)), 255), values)
    return Image.fromarray(changed.astype(np.uint8))


# The operations of RandAugment (Cubuk et al. 2020). `level` is the magnitude as a share of the highest, with a random sign.
OPERATIONS: dict[str, Operation] = {
    "auto contrast": lambda image, level, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, fill: ImageOps.equalize(image),
    "invert": lambda image, level, fill: ImageOps.invert(image),
    "rotate": lambda image, level, fill: image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill),
    "posterize": lambda image, level, fill: ImageOps.posterize(image, max(1, 4 - int(4 * abs(level)))),
    "solarize": lambda image, level, fill: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "solarize add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear x": _moved(lambda level, image: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear y": _moved(lambda level, image: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate x": _moved(lambda level, image: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate y": _moved(lambda level, image: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}


def rand_augment(image: Pixels, magnitude: float, rng: np.random.Generator, fill: Sequence[float] = GREY) -> Pixels:
    """Two operations drawn at random, each applied or not, at about the magnitude (0 to 10; the usual setting is 9)."""
    picture, colour = Image.fromarray(np.ascontiguousarray(image)), (round(fill[0]), round(fill[1]), round(fill[2]))
    for name in rng.choice(list(OPERATIONS), LAYERS):
        level = float(np.clip(rng.normal(magnitude, SPREAD), 0, HIGHEST)) / HIGHEST * (1 if rng.random() < 0.5 else -1)
        if rng.random() < CHANCE:
            picture = OPERATIONS[str(name)](picture, level, colour)
    return np.asarray(picture)


def color_jitter(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation times factors between 1 - strength and 1 + strength, in random order."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(3):
        picture = kinds[i](picture).enhance(float(rng.uniform(max(0, 1 - strength), 1 + strength)))
    return np.asarray(picture)


def random_erase(image: Pixels, chance: float, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Noise in a random rectangle, with this chance (Zhong et al. 2020).

    Args:
        image: Is not changed.
        chance: That anything is erased.
        mean: Of the noise's colours, 0..1.
        std: Likewise their deviation.
        rng: Decides everything.
    """
    if rng.random() >= chance:
        return image
    height, width, _ = image.shape
    for _ in range(ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*ERASED_AREA)
        ratio = float(np.exp(rng.uniform(*np.log(ERASED_ASPECT))))
        rows, columns = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
            noise = 255 * (np.asarray(mean) + np.asarray(std) * rng.standard_normal((rows, columns, 3)))
            image = image.copy()
            image[top : top + rows, left : left + columns] = noise.round().clip(0, 255)
            break
    return image


def cutmix_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the part that CutMix takes from the partner (Yun et al. 2019).

    Its centre is anywhere, its area 1 - share before it is cut off at the border; the share that is kept follows from the box.
    """
    rows, columns = (int(side * (1 - share) ** 0.5) for side in (height, width))
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    return max(0, y - rows // 2), max(0, x - columns // 2), min(height, y + (rows + 1) // 2), min(width, x + (columns + 1) // 2)
