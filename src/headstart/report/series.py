"""Section of the report: evaluated images that come from the same series as training images.

A random split of several shots of one scene puts some of them on each side. The result is then that
of scenes which the model has seen, and new ones may do much worse. Difference hashes of such shots
are closer than those of unrelated images, though farther than those of copies.

Letters: N evaluated images, M training images.
"""

import numpy as np
from numpy.typing import NDArray

from headstart.data.duplicates import FLAT
from headstart.metrics.classification import wilson
from headstart.report.page import Section

Hashes = NDArray[np.uint64]
ALIKE = 8  # bits of 64 that may differ; unrelated photos of flowers, ants or tiles differ in more
QUARTER = (
    4  # of the usual distance: where all images are alike, as X-rays are, fewer bits may differ
)
FEWEST, FRACTION = 3, 0.05  # images, and fraction of the evaluated ones, below which it is chance
MOST = 1 << 28  # pairs of images to compare: about a second
BLOCK = 1 << 22  # pairs compared together


def alike(evaluated: Hashes, trained: Hashes) -> NDArray[np.bool_]:
    """Which evaluated images look much like a training image, (N,).

    Args:
        evaluated: Difference hashes, (N,); `FLAT` is like none.
        trained: (M,).
    """
    found = np.zeros(len(evaluated), dtype=bool)
    known = trained[trained != np.uint64(FLAT)]
    rows = np.flatnonzero(evaluated != np.uint64(FLAT))
    if not len(known) or not len(rows) or len(rows) * len(known) > MOST:
        return found
    some = np.bitwise_count(evaluated[rows[:200], None] ^ known[None, :2000])
    limit = min(ALIKE, round(float(np.median(some)) / QUARTER))
    step = max(1, BLOCK // len(known))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        nearest = np.bitwise_count(evaluated[part, None] ^ known[None]).min(axis=1)
        found[part] = nearest <= limit
    return found


def series_sections(evaluated: Hashes, trained: Hashes, right: NDArray[np.bool_]) -> list[Section]:
    """How much better the model is on images that look like training images; none where few do.

    Args:
        evaluated: Difference hashes, (N,).
        trained: (M,).
        right: Whether the model is right, (N,).
    """
    series = alike(evaluated, trained)
    count = int(series.sum())
    if count < max(FEWEST, FRACTION * len(series)):
        return []
    parts = [f"on these it is right for {_accuracy(right[series])}"]
    if count < len(series):
        parts.append(f"on the others for {_accuracy(right[~series])}")
    text = (
        f"{count} of {len(series)} evaluated images look much like a training image, as shots of"
        f" one scene do: {', '.join(parts)}. Images of new scenes are like the others. Hold out"
        " whole scenes (--validation, --test) to measure that; the confidence interval, the"
        " thresholds and the sets on this page do not know of series."
    )
    return [Section("Shots of the same scenes", text)]


def _accuracy(right: NDArray[np.bool_]) -> str:
    """Accuracy with its 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():.1%} (95 % interval {low:.1%} to {high:.1%})"
