"""Metrics of segmentation against slow definitions and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.masks import IGNORED
from headstart.metrics.segmentation import (
    bootstrap_interval,
    mean_iou,
    pixel_confusion,
    segmentation_metrics,
)


def slow_measures(labels, predicted, classes):
    """The definitions, one pixel at a time."""
    inter, union, true, right = ([0] * classes for _ in range(4))
    for a, b in zip(labels.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if a == IGNORED:
            continue
        true[a] += 1
        for c in range(classes):
            inter[c] += a == c and b == c
            union[c] += c in (a, b)
        right[a] += a == b
    ious = [i / u for i, u in zip(inter, union, strict=True) if u]
    accuracies = [r / t for r, t in zip(right, true, strict=True) if t]
    return sum(ious) / len(ious), sum(right) / sum(true), sum(accuracies) / len(accuracies)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_measures_are_the_definitions(seed, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, classes + 1), (5, 9))
    labels[rng.random((5, 9)) < 0.3] = IGNORED
    labels[0, 0] = 0
    predicted = rng.integers(0, classes, (5, 9))
    metrics = segmentation_metrics(pixel_confusion(labels, predicted, classes))
    expected = slow_measures(labels, predicted, classes)
    assert np.allclose(
        [metrics["mean_iou"], metrics["pixel_accuracy"], metrics["mean_accuracy"]],
        expected,
        atol=1e-12,
    )


def test_ignored_pixels_never_count():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 30, 30))
    ignored = rng.random((30, 30)) < 0.4
    labels[ignored] = IGNORED
    other = np.where(ignored, rng.integers(0, 4, (30, 30)), predicted)
    assert np.array_equal(pixel_confusion(labels, predicted, 4), pixel_confusion(labels, other, 4))
    assert pixel_confusion(labels, predicted, 4).sum() == (~ignored).sum()
    nothing = np.full((3, 3), IGNORED)
    assert pixel_confusion(nothing, np.zeros((3, 3), int), 4).sum() == 0 and math.isnan(
        mean_iou(np.zeros((4, 4), np.int64))
    )


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_measures_agree_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 5, (2, 4, 20, 30))
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    # class 5 does not occur
    confusion = sum(pixel_confusion(a, b, 6) for a, b in zip(labels, predicted, strict=True))
    a, b = torch.from_numpy(predicted), torch.from_numpy(labels)
    theirs = classification.multiclass_jaccard_index(a, b, num_classes=6, ignore_index=IGNORED)
    ours = segmentation_metrics(confusion)
    assert abs(ours["mean_iou"] - float(theirs)) < 1e-6
    accuracy = classification.multiclass_accuracy(
        a, b, num_classes=6, average="micro", ignore_index=IGNORED
    )
    assert abs(ours["pixel_accuracy"] - float(accuracy)) < 1e-6


def test_interval_holds_the_mean():
    rng = np.random.default_rng(2)
    confusions = np.stack([pixel_confusion(*rng.integers(0, 3, (2, 20, 20)), 3) for _ in range(12)])
    low, high = bootstrap_interval(confusions)
    assert low < mean_iou(confusions.sum(0)) < high and high - low < 0.1
    assert bootstrap_interval(confusions[:4]) is None
