"""Metrics of several labels for each example.

Letters: N examples, V labels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.optional import scikit_learn

Bools = NDArray[np.bool_]


def average_precision(scores: NDArray[Any], true: Bools) -> NDArray[np.float64]:
    """Area under precision over recall of each label, (V,); examples of equal score count together.

    The values of scikit-learn's `average_precision_score`, which takes 20 times as long: too long
    for the resamples of a confidence interval.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = (np.take_along_axis(values, order, axis=0) for values in (scores, true))
    hits = hits.cumsum(0)
    last = np.append(ranked[1:] != ranked[:-1], np.ones((1, scores.shape[1]), bool), axis=0)
    precision, recall = (
        hits / np.arange(1, len(scores) + 1)[:, None],
        hits / np.maximum(1, hits[-1]),
    )
    areas = np.zeros(scores.shape[1])
    for label in range(scores.shape[1]):
        ends = last[:, label]
        areas[label] = np.diff(recall[ends, label], prepend=0.0) @ precision[ends, label]
    return areas


def mean_average_precision(scores: NDArray[Any], true: Bools) -> float:
    """Mean of `average_precision` over the labels that occur; from 0 to 1."""
    occur = true.any(0)
    return float(average_precision(scores, true)[occur].mean()) if occur.any() else 0.0


def micro_f1(predicted: Bools, true: Bools) -> float:
    """F1 over all answers together."""
    return float(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))


def per_label(logits: NDArray[Any], true: Bools) -> dict[str, NDArray[Any]]:
    """Metrics of each label at a probability of one half, each (V,).

    Returns:
        "examples", "recall", "precision", "f1" and "average_precision"; a label without examples
        or predictions has 0.
    """
    precision, recall, f1, examples = scikit_learn("metrics").precision_recall_fscore_support(
        true, logits > 0, average=None, zero_division=0
    )
    values = {"examples": examples, "recall": recall, "precision": precision, "f1": f1}
    return values | {"average_precision": average_precision(logits, true)}
