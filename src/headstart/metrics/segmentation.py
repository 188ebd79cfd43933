"""Metrics of a segmentation, from confusion matrices of pixels.

Letters: N images, V classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.masks import IGNORED
from headstart.metrics.bootstrap import Interval, bootstrap
from headstart.metrics.classification import confusion_matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pixel_confusion(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> Ints:
    """Counts (V, V) of one image's pixels: rows are the true classes, columns the predicted ones.

    Ignored pixels are in no cell.
    """
    counted = labels != IGNORED
    return confusion_matrix(
        labels[counted].astype(np.int64), predicted[counted].astype(np.int64), classes
    )


@dataclass(frozen=True)
class ClassScores:
    """Metrics of each class, all (V,); NaN where a class has no pixel to measure it on.

    Args:
        pixels: True pixels.
        iou: Intersection over union of the true and the predicted pixels.
        accuracy: Fraction of the pixels of the class that were found.
        precision: Fraction of the pixels predicted as the class that are.
    """

    pixels: Ints
    iou: Floats
    accuracy: Floats
    precision: Floats


def class_scores(confusion: Ints) -> ClassScores:
    """Metrics of each class from a confusion matrix (V, V), or of many, (…, V, V)."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    union = true + predicted - right
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClassScores(true, right / union, right / true, right / predicted)


def mean_iou(confusion: Ints) -> float:
    """Mean IoU over the classes that occur in the labels or predictions; NaN where none does.

    Source: Everingham et al. 2010.
    """
    iou = class_scores(confusion).iou
    return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")


def segmentation_metrics(confusion: Ints) -> dict[str, float]:
    """Mean IoU, fraction of right pixels, and mean accuracy over the classes that have pixels."""
    scores = class_scores(confusion)
    counted = scores.pixels > 0
    return {
        "mean_iou": mean_iou(confusion),
        "pixel_accuracy": float(np.trace(confusion) / max(1, confusion.sum())),
        "mean_accuracy": float(scores.accuracy[counted].mean()) if counted.any() else float("nan"),
    }


def bootstrap_interval(confusions: Ints) -> Interval | None:
    """95 % interval of the mean IoU over images, from their confusion matrices (N, V, V)."""
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)  # (N, V)
    union = (confusions.sum(1) + confusions.sum(2)).astype(np.float64) - right

    def score(rows: NDArray[np.int64]) -> float:
        hits, either = right[rows].sum(0), union[rows].sum(0)
        return float((hits[either > 0] / either[either > 0]).mean()) if either.any() else 0.0

    return bootstrap(score, len(confusions))


def constant_answer(confusion: Ints, answer: int) -> Ints:
    """The confusion matrix of always answering one class on the same pixels."""
    constant = np.zeros_like(confusion)
    constant[:, answer] = confusion.sum(1)
    return constant
