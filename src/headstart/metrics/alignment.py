"""How alike two networks' vectors of the same examples are."""

import numpy as np
from numpy.typing import NDArray


def linear_cka(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Linear centered kernel alignment (Kornblith et al. 2019): 1 where distances are the same up
    to one scale, 0 where nothing is shared. Rotations change nothing.

    Args:
        x: Vectors of one network, (N, D).
        y: Vectors of another, (N, T), of the same examples.

    Returns:
        From 0 to 1; 0 where all vectors of one network are the same.
    """
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    y = y.astype(np.float64) - y.mean(axis=0, dtype=np.float64)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.square(x.T @ y).sum() / scale) if scale > 0 else 0.0
