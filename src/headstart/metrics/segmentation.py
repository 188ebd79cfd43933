"""Measures of a segmentation, from confusion matrices of pixels.

Letters: N images, V classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.masks import IGNORED
from headstart.metrics.classification import confusion_matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pixel_confusion(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> Ints:
    """Counts (V, V) of one picture's pixels: rows are the true classes, columns the predicted ones.

    Ignored pixels are in no cell.
    """
    counted = labels != IGNORED
    return confusion_matrix(
        labels[counted].astype(np.int64), predicted[counted].astype(np.int64), classes
    )


@dataclass(frozen=True)
class ClassScores:
    """Measures of each class, all (V,); NaN where a class has no pixel to measure it on.

    Args:
        pixels: True pixels.
        iou: Pixels that are and were called the class, divided by those that are or were.
        accuracy: Share of the class's pixels that were found.
        precision: Share of the pixels called the class that are.
    """

    pixels: Ints
    iou: Floats
    accuracy: Floats
    precision: Floats


def class_scores(confusion: Ints) -> ClassScores:
    """Measures of each class from a confusion matrix (V, V), or of many, (…, V, V)."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, said = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClassScores(true, right / (true + said - right), right / true, right / said)


def mean_iou(confusion: Ints) -> float:
    """Mean IoU over the classes that occur, in the labels or among the answers (Everingham et al.

    2010); NaN where nothing does.
    """
    iou = class_scores(confusion).iou
    return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")


def segmentation_metrics(confusion: Ints) -> dict[str, float]:
    """Mean IoU, share of right pixels, and mean accuracy over the classes that have pixels."""
    scores = class_scores(confusion)
    counted = scores.pixels > 0
    return {
        "mean_iou": mean_iou(confusion),
        "pixel_accuracy": float(np.trace(confusion) / max(1, confusion.sum())),
        "mean_accuracy": float(scores.accuracy[counted].mean()) if counted.any() else float("nan"),
    }


def bootstrap_interval(confusions: Ints, draws: int = 1000) -> tuple[float, float] | None:
    """95 % interval of the mean IoU over sets of pictures drawn anew from these (N, V, V).

    None for fewer than five.
    """
    count = len(confusions)
    if count < 5:
        return None
    rng = np.random.default_rng(0)
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)  # (N, V)
    union = (confusions.sum(1) + confusions.sum(2)).astype(np.float64) - right
    # (draws, N): how often each picture is drawn
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nanmean((times @ right) / (times @ union), axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def constant_answer(confusion: Ints, answer: int) -> Ints:
    """The confusion matrix of always answering one class on the same pixels."""
    constant = np.zeros_like(confusion)
    constant[:, answer] = confusion.sum(1)
    return constant
