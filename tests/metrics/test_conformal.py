"""Conformal sets: the rank of the minimum, and coverage on fresh examples, of classes too."""

import numpy as np
import pytest

from headstart.metrics.calibration import calibrate, confidence_of
from headstart.metrics.classification import softmax
from headstart.metrics.conformal import COVERAGE, ENOUGH, cross_coverage, set_minimums, with_sets
from headstart.pipelines.confidence import Confidence


def scores(rng, count, priors=(0.4, 0.4, 0.15, 0.05)):
    """Logits (N, 4) of a model that is too sure of its first class, and labels."""
    labels = rng.choice(4, count, p=priors)
    logits = rng.normal(0, 1.5, (count, 4))
    logits[np.arange(count), labels] += 1.5
    logits[:, 0] += 1
    return logits.astype(np.float32), labels


def test_the_minimum_is_a_low_rank_of_the_true_classes_probabilities():
    own = np.arange(1, 20) / 100  # 19 examples: the second lowest, (19 + 1) / 10
    probabilities = np.stack([own, 1 - own], axis=1)
    labels = np.zeros(19, dtype=np.int64)
    assert set_minimums(probabilities, labels)[0] == pytest.approx(0.02)
    # eight examples promise nothing of 90 %: every class belongs to the set
    assert set_minimums(probabilities[:8], labels[:8]).tolist() == [0, 0]


def test_coverage_on_fresh_examples_of_every_class_with_enough():
    rng = np.random.default_rng(0)
    covered = []
    fresh, truth = scores(rng, 20_000)
    chances = softmax(fresh)
    for _ in range(200):
        logits, labels = scores(rng, 400)
        minimums = set_minimums(softmax(logits), labels)
        inside = chances[np.arange(len(truth)), truth] >= minimums[truth]
        covered.append([inside.mean(), inside[truth == 0].mean(), inside[truth == 2].mean()])
    mean = np.mean(covered, axis=0)
    assert abs(mean[0] - COVERAGE) < 0.01
    # one minimum for all would cover the class it is too sure of by 98 %
    assert np.abs(mean[1:] - COVERAGE).max() < 0.02


def test_a_class_with_few_examples_shares_its_minimum():
    logits, labels = scores(np.random.default_rng(1), 150, (0.5, 0.4, 0.06, 0.04))
    counts = np.bincount(labels)
    assert counts[:2].min() >= ENOUGH > counts[2:].max()
    minimums = set_minimums(softmax(logits), labels)
    assert minimums[2] == minimums[3] and len(set(minimums)) == 3


def test_the_reported_coverage_is_of_held_out_examples():
    logits, labels = scores(np.random.default_rng(2), 1000)
    covered, size = cross_coverage(softmax(logits), labels)
    assert covered == pytest.approx(COVERAGE, abs=0.02) and 1 < size < 3


def test_minimums_are_saved_after_the_temperature(tmp_path):
    logits, labels = scores(np.random.default_rng(3), 300)
    found = with_sets(confidence_of(calibrate(logits * 3, labels)), logits * 3, labels)
    found.write(tmp_path)
    read = Confidence.read(tmp_path)
    assert read == found and read.coverage == COVERAGE and len(read.minimums) == 4
    expected = set_minimums(softmax(logits * 3, found.temperature), labels)
    assert read.minimums == pytest.approx(expected.tolist())
