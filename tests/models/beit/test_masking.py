"""Blockwise masking obeys the paper's limits on any grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.errors import InputError
from headstart.models.beit import masking
from headstart.models.beit.masking import blockwise_mask

GRIDS = {
    "height": st.integers(1, 40),
    "width": st.integers(1, 40),
    "seed": st.integers(0, 2**32 - 1),
    "fraction": st.floats(0, 1),
}


@settings(max_examples=300, deadline=None)
@given(**GRIDS)
def test_never_more_than_requested(height, width, seed, fraction):
    count = int(fraction * height * width)
    mask = blockwise_mask(height, width, np.random.default_rng(seed), count)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert mask.sum() <= count


@settings(max_examples=200, deadline=None)
@given(**GRIDS)
def test_every_block_obeys_the_papers_limits(height, width, seed, fraction):
    """Size at least 16 and at most what is left, aspect 0.3 to 1/0.3, inside the grid.

    The mask is exactly the union of the blocks.
    """
    count = int(fraction * height * width)
    blocks = []
    original = masking.sample_block

    def watched(h, w, left, least, aspect, rng):
        rows, columns = original(h, w, left, least, aspect, rng)
        blocks.append((rows, columns, left))
        return rows, columns

    masking.sample_block = watched
    try:
        mask = blockwise_mask(height, width, np.random.default_rng(seed), count)
    finally:
        masking.sample_block = original
    union = np.zeros((height, width), dtype=bool)
    least = min(16, count)
    for rows, columns, left in blocks:
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if not h:
            continue
        assert 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
        # Sides are rounded: some area and ratio within the limits must round to them.
        assert (h + 0.5) * (w + 0.5) >= least and (h - 0.5) * (w - 0.5) <= max(least, left)
        assert (h + 0.5) / (w - 0.5) >= 0.3 and (h - 0.5) / (w + 0.5) <= 1 / 0.3
        inside = np.zeros_like(union)
        inside[rows, columns] = True
        if 0 < (inside & ~union).sum() <= count - union.sum():
            union |= inside
    assert np.array_equal(mask, union)


def test_the_published_setting():
    """75 of 196 patches.

    Close to it on average, and any patch may be masked, the middle more often than the border.
    """
    rng = np.random.default_rng(0)
    masks = np.stack([blockwise_mask(14, 14, rng, 75) for _ in range(1000)])
    counts = masks.sum(axis=(1, 2))
    assert counts.max() <= 75 and counts.mean() > 70 and counts.min() > 40
    fraction = masks.mean(axis=0)
    assert fraction.min() > 0.01 and fraction[5:9, 5:9].mean() > fraction[0].mean()
    assert (
        abs(fraction[:, :7].mean() - fraction[:, 7:].mean()) < 0.03
        and abs(fraction[:7].mean() - fraction[7:].mean()) < 0.03
    )  # no side is preferred


def test_blocks_are_blocks():
    """Most masked patches have a masked neighbour above or to the left, unlike in a random scatter
    of 40 %.
    """
    rng = np.random.default_rng(1)
    mask = np.stack([blockwise_mask(14, 14, rng) for _ in range(100)])
    both = (mask[:, 1:] & mask[:, :-1]).sum() / mask[:, 1:].sum()
    assert both > 0.7


def test_default_is_two_fifths():
    rng = np.random.default_rng(2)
    counts = [blockwise_mask(14, 14, rng).sum() for _ in range(200)]
    assert max(counts) <= math.floor(0.4 * 196) and np.mean(counts) > 70


@pytest.mark.parametrize(
    "height, width, count", [(8, 8, None), (4, 6, None), (2, 2, 1), (14, 14, 196)]
)
def test_small_grids_and_full_masks_are_not_empty(height, width, count):
    rng = np.random.default_rng(3)
    assert all(blockwise_mask(height, width, rng, count).any() for _ in range(200))


def test_the_same_seed_gives_the_same_mask():
    one, two = (blockwise_mask(9, 13, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, blockwise_mask(9, 13, np.random.default_rng(6)))


@pytest.mark.parametrize("arguments", [(0, 5, 0), (5, 5, 26), (5, 5, -1)])
def test_impossible_requests(arguments):
    height, width, count = arguments
    with pytest.raises(InputError, match=f"{count} of {height}x{width}"):
        blockwise_mask(height, width, np.random.default_rng(0), count)
