"""Metrics of regression targets.

Letters: N examples, V targets.
"""

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.optional import scikit_learn, scipy

Floats = NDArray[np.float64]


def r_squared(predicted: Floats, true: Floats) -> float:
    """Coefficient of determination of (N, V) values, the mean over the targets.

    A constant target counts 0: nothing of it can be explained.
    """
    scores = scikit_learn("metrics").r2_score(true, predicted, multioutput="raw_values")
    return float(np.where(true.std(0) > 0, scores, 0.0).mean())


def correlation(predicted: Floats, true: Floats) -> float:
    """Pearson's correlation of (N, V) values, the mean over the targets."""
    return float(np.mean([pearson(a, b) for a, b in zip(predicted.T, true.T, strict=True)]))


def pearson(a: Floats, b: Floats) -> float:
    """Linear correlation of (N,) values; 0 where one of the two is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: Floats, b: Floats) -> float:
    """Correlation of the ranks of (N,) values; 0 where one of the two is constant."""
    rank = scipy("stats").rankdata
    return pearson(rank(a), rank(b))
