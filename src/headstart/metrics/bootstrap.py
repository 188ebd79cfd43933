"""Confidence intervals by resampling (Efron 1979)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
RESAMPLES = 200
FEWEST = 5  # examples below which an interval means nothing


def bootstrap(score: Callable[[NDArray[np.int64]], float], examples: int) -> Interval | None:
    """95 % interval of a score over samples of the examples with replacement.

    Args:
        score: Gives the score of the examples of these indices (N,).
        examples: N.

    Returns:
        Lower and upper bound, or None for fewer than five examples.
    """
    if examples < FEWEST:
        return None
    rng = np.random.default_rng(0xB007)
    scores = [score(rng.integers(0, examples, examples)) for _ in range(RESAMPLES)]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
