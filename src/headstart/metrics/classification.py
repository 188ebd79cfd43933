"""Measures of a classifier, from logits and labels as NumPy arrays.

Letters: N examples, C classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities of (N, C) logits."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), which behaves at 0 %, at 100 % and for few
    trials.
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z
        / (1 + z * z / trials)
        * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts (C, C): rows are the true classes, columns the predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )


@dataclass(frozen=True)
class PerClass:
    """Measures of each class, all (C,); a class without examples or predictions has 0."""

    count: Ints
    precision: Floats
    recall: Floats
    f1: Floats


def per_class(confusion: Ints) -> PerClass:
    """Precision, recall and F1 from a confusion matrix."""
    right = np.diag(confusion).astype(np.float64)
    count, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(count, 1)
    f1 = 2 * right / np.maximum(count + predicted, 1)
    return PerClass(count, precision, recall, f1)


def negative_log_likelihood(
    logits: NDArray[np.floating], labels: Ints, temperature: float = 1.0
) -> float:
    """Mean of -log p(label)."""
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max(axis=1)
    log_total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float((log_total - scaled[np.arange(len(labels)), labels]).mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal bins: all (bins,); empty bins hold count 0."""

    count: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017).

        Mean distance of confidence and accuracy, weighted by count.
        """
        return float(
            (self.count * np.abs(self.confidence - self.accuracy)).sum() / max(1, self.count.sum())
        )


def reliability(probabilities: Floats, labels: Ints, bins: int = 15) -> Reliability:
    """Bins of the confidence of the predicted class."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    sums = [
        np.bincount(which, weights=values, minlength=bins)
        for values in (confidence, right.astype(np.float64))
    ]
    return Reliability(count, sums[0] / np.maximum(count, 1), sums[1] / np.maximum(count, 1))


def best_temperature(logits: NDArray[np.floating], labels: Ints) -> float:
    """The temperature with the smallest negative log likelihood, between 0.05 and 20
    (golden-section search over its logarithm).
    """
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if negative_log_likelihood(logits, labels, math.exp(left)) < negative_log_likelihood(
            logits, labels, math.exp(right)
        ):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def classification_metrics(logits: NDArray[np.floating], labels: Ints) -> dict[str, float]:
    """Accuracy, mean F1 over the classes that occur, loss, calibration error, and top-5 accuracy
    where there are more than five classes.
    """
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    table = per_class(confusion_matrix(labels, predicted, classes))
    metrics = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(table.f1[table.count > 0].mean()),
        "loss": negative_log_likelihood(logits, labels),
        "calibration_error": reliability(softmax(logits), labels).error,
    }
    if classes > 5:
        top = np.argpartition(-logits, 5, axis=1)[:, :5]
        metrics["top5_accuracy"] = float((top == labels[:, None]).any(axis=1).mean())
    return metrics
