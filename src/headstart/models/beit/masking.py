"""Blockwise masking: which patches of an image BEiT has to fill in (Bao et al. 2022, Algorithm 1).

Letters: h w sides of the grid of patches.
"""

import math

import numpy as np
from numpy.typing import NDArray

from headstart.errors import InputError

MASK_RATIO = 0.4  # of the patches, as in the paper
MIN_BLOCK = 16  # patches
ASPECT = (0.3, 1 / 0.3)  # height over width
ATTEMPTS = 10  # at placing a block, before the mask is left as it is


def blockwise_mask(
    height: int,
    width: int,
    rng: np.random.Generator,
    count: int | None = None,
    *,
    min_block: int = MIN_BLOCK,
    aspect: tuple[float, float] = ASPECT,
) -> NDArray[np.bool_]:
    """A random mask made of rectangular blocks.

    Blocks are added until `count` patches are masked, or until ten attempts in a row found none
    that fits: never more than `count` are masked, and often a few less. A block may lie over
    another. The paper's algorithm goes on until it has passed its 40 %; a bound that is never
    passed is what its authors trained with.

    Args:
        height: Patches from top to bottom.
        width: Patches from left to right.
        rng: Source of the random numbers.
        count: Patches to mask at most; 40 % of them if None.
        min_block: Patches of the smallest block; `count` where that is less.
        aspect: Smallest and largest height of a block divided by its width (before both are
            rounded), uniformly random on a logarithmic scale.

    Returns:
        (h, w), boolean; True is masked.

    Raises:
        InputError: A grid, count or block size that no mask can have.

    Example:
        >>> import numpy as np
        >>> from headstart import blockwise_mask
        >>> mask = blockwise_mask(14, 14, np.random.default_rng(0), count=75)
        >>> mask.shape, 40 < int(mask.sum()) <= 75
        ((14, 14), True)
    """
    count = int(MASK_RATIO * height * width) if count is None else count
    if (
        min(height, width, min_block) < 1
        or not 0 <= count <= height * width
        or not 0 < aspect[0] <= aspect[1]
    ):
        raise InputError(
            f"cannot mask {count} of {height}x{width} patches in blocks of at least {min_block},"
            f" aspect {aspect}"
        )
    mask = np.zeros((height, width), dtype=bool)
    left = count
    while left:
        for _ in range(ATTEMPTS):
            rows, columns = sample_block(height, width, left, min(min_block, count), aspect, rng)
            new = int((~mask[rows, columns]).sum())
            if 0 < new <= left:
                mask[rows, columns] = True
                left -= new
                break
        else:
            break
    return mask


def sample_block(
    height: int,
    width: int,
    left: int,
    least: int,
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[slice, slice]:
    """Rows and columns of a random block; empty where its shape does not fit into the grid."""
    area = rng.uniform(least, max(least, left))
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if not (0 < rows <= height and 0 < columns <= width):
        return slice(0, 0), slice(0, 0)
    top, first = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    return slice(top, top + rows), slice(first, first + columns)
