"""Metrics of texts against values worked out by hand."""

import numpy as np
import pytest

from headstart.metrics.regression import pearson, spearman
from headstart.metrics.text import answer_scores, entities, entity_scores, matthews


def test_correlations():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0]) and spearman(
        a, b
    ) == pytest.approx(stats.spearmanr(a, b)[0])
    assert pearson(a, np.ones(50)) == 0.0
    true, predicted = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    tp, tn = ((true == 1) & (predicted == 1)).sum(), ((true == 0) & (predicted == 0)).sum()
    fp, fn = ((true == 0) & (predicted == 1)).sum(), ((true == 1) & (predicted == 0)).sum()
    expected = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert matthews(true, predicted) == pytest.approx(expected)
    assert matthews(true, true) == 1.0 and matthews(true, np.zeros(40, int)) == 0.0


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-a I-a O", {("a", 0, 2)}),
        ("B-a B-a", {("a", 0, 1), ("a", 1, 2)}),
        ("I-a I-a O I-b", {("a", 0, 2), ("b", 3, 4)}),
        ("B-a I-b I-b", {("a", 0, 1), ("b", 1, 3)}),
        ("O O", set()),
        ("B-x-y I-x-y", {("x-y", 0, 2)}),
    ],
)
def test_entities(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_scores():
    true = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    predicted = [["B-a", "I-a", "O", "B-a"], ["O", "B-a"]]
    scores = entity_scores(true, predicted)
    assert (scores[""].precision, scores[""].recall, scores[""].count) == (2 / 3, 2 / 3, 3)
    assert scores["a"].f1 == pytest.approx(4 / 5) and scores["b"].f1 == 0.0


def test_answer_scores():
    assert answer_scores("the  Cat!", ["cat"]) == (1.0, 1.0)
    assert answer_scores("a black cat", ["dog", "black dog"]) == (0.0, 0.5)
    assert (
        answer_scores("", []) == (1.0, 1.0)
        and answer_scores("cat", []) == (0.0, 0.0)
        and answer_scores("", ["cat"]) == (0.0, 0.0)
    )
