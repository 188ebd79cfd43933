"""Metrics of a classifier, from logits and labels as NumPy arrays.

Letters: N examples, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
GRID = np.linspace(-math.log(20), math.log(20), 33)  # of -log temperature
MATRIX_CLASSES = 200  # above, results.json holds no confusion matrix
PASS_CELLS = 1 << 20  # scores that are exponentiated together, to stay in the cache


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities of (N, C) logits."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927).

    It behaves at 0 %, at 100 % and for few trials.
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    p = successes / trials
    center = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    half = z * spread / (1 + z * z / trials)
    low = max(0.0, center - half) if successes else 0.0
    return low, min(1.0, center + half) if successes < trials else 1.0


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts (C, C): rows are the true classes, columns the predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )


@dataclass(frozen=True)
class PerClass:
    """Metrics of each class, all (C,); a class without examples or predictions has 0."""

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


def figures_of_classes(confusion: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """Figures of each class, and the confusion matrix where the classes are few, as JSON."""
    table = per_class(confusion)
    columns = {"examples": table.count, "precision": table.precision, "recall": table.recall}
    columns["f1"] = table.f1
    found: dict[str, Any] = {}
    if len(classes) <= MATRIX_CLASSES:
        found["confusion_matrix"] = confusion.tolist()
    found["classes"] = {
        name: {key: column[i].item() for key, column in columns.items()}
        for i, name in enumerate(classes)
    }
    return found


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


def reliability(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Bins of the confidence (N,) of the predicted class, and whether it is right (N,)."""
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    total, hits = (np.bincount(which, weights=v, minlength=bins) for v in (confidence, right))
    return Reliability(count, total / np.maximum(count, 1), hits / np.maximum(count, 1))


def top_confidence(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Highest probability (N,) of (N, C) logits."""
    scaled = logits.astype(np.float64) / temperature
    return np.asarray(1 / np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1))


def best_temperature(logits: NDArray[np.floating], labels: Ints) -> float:
    """The temperature with the smallest negative log likelihood, between 0.05 and 20."""
    return best_temperatures(logits, labels, [np.ones(len(labels), dtype=bool)])[0]


def best_temperatures(
    logits: NDArray[np.floating], labels: Ints, groups: Sequence[NDArray[np.bool_]]
) -> list[float]:
    """The temperature with the smallest negative log likelihood of each group of examples.

    With u = -log temperature the derivative of the loss, the mean of E[z] - z[label] under
    softmax(e^u z), times e^u, changes its sign once. It is bisected over a fixed grid, whose passes
    over the scores (about seven) all groups share, and is a cubic between two points of the grid.

    Args:
        logits: (N, C).
        labels: (N,).
        groups: Which examples are in each group, (N,) each.

    Returns:
        A temperature between 0.05 and 20 for each group.
    """
    z = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    z = z - z.max(dim=1, keepdim=True).values  # (N, C), the highest is 0
    own = z.gather(1, torch.from_numpy(labels)[:, None])[:, 0].double().numpy()  # (N,)

    @cache
    def moments(point: int) -> tuple[Floats, Floats]:
        """Mean and variance of z, (N,) each, at a point of the grid."""
        found = []
        for part in torch.split(z, max(1, PASS_CELLS // z.shape[1])):
            p = (part * math.exp(GRID[point])).softmax(dim=1)
            mean = (p * part).sum(dim=1)
            found.append(torch.stack([mean, (p * part.square()).sum(dim=1) - mean.square()]))
        mean, variance = torch.cat(found, dim=1).double().numpy()
        return mean, variance

    def slopes(point: int, group: NDArray[np.bool_]) -> tuple[float, float]:
        """First and second derivative of the loss in u."""
        (mean, variance), a = moments(point), math.exp(GRID[point])
        first = a * float((mean[group] - own[group]).mean())
        return first, first + a * a * float(variance[group].mean())

    found = []
    for group in groups:
        low, high = 0, len(GRID) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if slopes(middle, group)[0] < 0 else (low, middle)
        u = _root(GRID[low], GRID[high], slopes(low, group), slopes(high, group))
        found.append(math.exp(-u))
    return found


def _root(u: float, v: float, at_u: tuple[float, float], at_v: tuple[float, float]) -> float:
    """Where the cubic of these values and slopes at u and v is 0; an end where it has one sign."""
    if at_u[0] >= 0:
        return u
    if at_v[0] <= 0:
        return v
    width, low, high = v - u, 0.0, 1.0
    for _ in range(40):
        t = (low + high) / 2
        rest = 1 - t
        value = rest * rest * ((1 + 2 * t) * at_u[0] + t * width * at_u[1])
        value += t * t * ((1 + 2 * rest) * at_v[0] - rest * width * at_v[1])
        low, high = (t, high) if value < 0 else (low, t)
    return u + low * width


def classification_metrics(logits: NDArray[np.floating], labels: Ints) -> dict[str, float]:
    """Accuracy, mean F1 over the classes that occur, loss and calibration error.

    Top-5 accuracy too, where there are more than five classes.
    """
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    table = per_class(confusion_matrix(labels, predicted, classes))
    metrics = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(table.f1[table.count > 0].mean()),
        "loss": negative_log_likelihood(logits, labels),
        "calibration_error": reliability(top_confidence(logits), predicted == labels).error,
    }
    if classes > 5:
        top = np.argpartition(-logits, 5, axis=1)[:, :5]
        metrics["top5_accuracy"] = float((top == labels[:, None]).any(axis=1).mean())
    return metrics
