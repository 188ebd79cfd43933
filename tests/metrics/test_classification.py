"""Measures against slow definitions and other people's numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.metrics.classification import (
    best_temperature,
    classification_metrics,
    confusion_matrix,
    negative_log_likelihood,
    per_class,
    reliability,
    softmax,
    top_confidence,
    wilson,
)


def scores(seed, examples=200, classes=7, sharpness=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(size=(examples, classes))
    logits[np.arange(examples), labels] += 1.5
    return (sharpness * logits).astype(np.float32), labels


def test_against_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels = scores(0)
    predicted = logits.argmax(1)
    found = classification_metrics(logits, labels)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, softmax(logits)), rel=1e-6)
    assert found["top5_accuracy"] == pytest.approx(
        sklearn.top_k_accuracy_score(labels, logits, k=5)
    )
    assert (
        confusion_matrix(labels, predicted, 7) == sklearn.confusion_matrix(labels, predicted)
    ).all()
    table = per_class(confusion_matrix(labels, predicted, 7))
    precision, recall, f1, count = sklearn.precision_recall_fscore_support(labels, predicted)
    for ours, theirs in zip(
        (table.precision, table.recall, table.f1, table.count),
        (precision, recall, f1, count),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize(
    "right, total, low, high",
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0)],
)
def test_wilson_interval(right, total, low, high):
    """Values of statsmodels' proportion_confint(method="wilson")."""
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share(total, data):
    right = data.draw(st.integers(0, total))
    low, high = wilson(right, total)
    assert 0 <= low <= right / total + 1e-12 and right / total - 1e-12 <= high <= 1


def test_calibration_error_is_the_definition():
    logits, labels = scores(1)
    probabilities = softmax(logits)
    bins = 15
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(200) if b == min(int(probabilities[i].max() * bins), bins - 1)]
        if inside:
            confidence = np.mean([probabilities[i].max() for i in inside])
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / 200 * abs(confidence - accuracy)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    assert reliability(confidence, right, bins).error == pytest.approx(total)
    np.testing.assert_allclose(top_confidence(logits), confidence)


def test_the_best_temperature_undoes_sharpening():
    logits, labels = scores(2, examples=4000, sharpness=1.0)
    plain = best_temperature(logits, labels)
    assert best_temperature(3.0 * logits, labels) == pytest.approx(3 * plain, rel=1e-4)
    right = logits.argmax(1) == labels
    after, before = (top_confidence(3 * logits, t) for t in (3 * plain, 1.0))
    assert reliability(after, right).error < reliability(before, right).error


@pytest.mark.parametrize("sharpness", [0.01, 0.3, 2.0, 40.0])
def test_the_best_temperature_is_where_the_loss_is_least(sharpness):
    """Against a search over a grid, which also ends at 0.05 and 20."""
    logits, labels = scores(3, sharpness=sharpness)
    grid = np.geomspace(0.05, 20, 4001)
    losses = [negative_log_likelihood(logits, labels, t) for t in grid]
    assert best_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
