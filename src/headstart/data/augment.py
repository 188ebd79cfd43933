"""Random changes of training images by kornia: RandAugment, color jitter, random erasing; and
which part of a partner CutMix shows.

Images are (H, W, 3) uint8. All randomness comes from the generator that is passed in.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from headstart.errors import MissingExtraError

Pixels = NDArray[np.uint8]

OPERATIONS = 2  # that RandAugment applies to an image
HIGHEST, KORNIA_HIGHEST = 10.0, 30  # magnitude of a recipe, and kornia's
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)

_made = threading.local()  # kornia's modules remember their last draw, so each thread has its own


class _Drawing(TorchFunctionMode):
    """Inside the block torch draws from this generator, in this thread alone.

    Kornia takes none, and the global one is the network's.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(
            *args, **((kwargs or {}) | ({"generator": self.generator} if func in _DRAWS else {}))
        )


_DRAWS = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.bernoulli),
    *(torch.multinomial, torch.normal),
    *(torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.bernoulli_),
}


def _applied(
    image: Pixels, rng: np.random.Generator, settings: Any, make: Callable[[], Any]
) -> Pixels:
    """The image after one of kornia's augmentations, which is made once for these settings."""
    if settings not in vars(_made):
        try:
            vars(_made)[settings] = make()
        except ImportError:
            raise MissingExtraError("kornia", "train") from None
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    # (1, 3, H, W)
    values = torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None].float() / 255
    with _Drawing(generator), torch.no_grad():
        out = vars(_made)[settings](values)[0]
    changed: Pixels = (out * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()  # (H, W, 3)
    return changed


def rand_augment(image: Pixels, magnitude: float, rng: np.random.Generator) -> Pixels:
    """RandAugment (Cubuk et al. 2020): two operations chosen at random, at this magnitude (0 to 10.

    The usual setting is 9).
    """
    strength = min(max(round(magnitude / HIGHEST * KORNIA_HIGHEST), 1), KORNIA_HIGHEST - 1)

    def make() -> Any:
        from kornia.augmentation.auto import RandAugment

        return RandAugment(OPERATIONS, strength)

    return _applied(image, rng, ("rand augment", strength), make)


def color_jitter(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation times factors between 1 - strength and 1 + strength, in
    random order.
    """

    def make() -> Any:
        from kornia.augmentation import ColorJitter

        return ColorJitter(strength, strength, strength, 0.0, p=1.0)

    return _applied(image, rng, ("jitter", strength), make)


def random_erase(
    image: Pixels,
    chance: float,
    mean: Sequence[float],
    std: Sequence[float],
    rng: np.random.Generator,
) -> Pixels:
    """Normal noise of its own in every pixel of a random rectangle, with this chance (Zhong et al.
    2020).

    BEiT's authors erase so (`--remode pixel` of run_class_finetuning.py); kornia, which draws the
    rectangle, fills it with one gray only.

    Args:
        image: Is not changed.
        chance: That anything is erased.
        mean: Mean color of the data, 0..1.
        std: Its standard deviation.
        rng: Decides everything.
    """
    if rng.random() >= chance:
        return image

    def make() -> Any:
        from kornia.augmentation import RandomErasing

        return RandomErasing(ERASED_AREA, ERASED_ASPECT, value=0.0, p=1.0)

    kept = _applied(np.full_like(image, 255), rng, "erasing", make)  # 0 in the rectangle
    noise = (rng.normal(mean, std, image.shape) * 255).round().clip(0, 255).astype(np.uint8)
    return np.where(kept > 0, image, noise)


def cutmix_box(
    height: int, width: int, fraction: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the part that CutMix takes from the partner (Yun et al. 2019).

    Its center is anywhere, its area 1 - fraction before it is cut off at the border; the fraction
    that remains follows from the box.
    """
    rows, columns = (int(side * (1 - fraction) ** 0.5) for side in (height, width))
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    return (
        max(0, y - rows // 2),
        max(0, x - columns // 2),
        min(height, y + (rows + 1) // 2),
        min(width, x + (columns + 1) // 2),
    )
