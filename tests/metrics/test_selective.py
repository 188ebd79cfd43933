"""Thresholds whose error rate holds on new examples: the bound, the order of tests, the promise."""

import re

import numpy as np
import pytest

from headstart.metrics.calibration import calibrate, confidence_of
from headstart.metrics.classification import softmax
from headstart.metrics.selective import NEVER, fewest_answers, promised_threshold, upper_bound
from headstart.report.refusals import refusal_sections


def scores(rng: np.random.Generator, count: int):
    """Logits (N, 4) of a model that is right for 77 %, and labels from its honest probabilities."""
    logits = rng.normal(0, 3.0, (count, 4))
    chances = softmax(logits).cumsum(axis=1)
    labels = (chances > rng.random((count, 1))).argmax(axis=1)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("count", [25, 200])
def test_no_confidence_above_all_is_written(count):
    """A threshold that nothing reaches is 2."""
    logits, labels = scores(np.random.default_rng(4), count)
    (section,) = refusal_sections(calibrate(logits, labels), None)
    cells = [cell for row in section.table.rows for cell in row]
    percentages = re.findall(r"(\d+(?:\.\d+)?)%", " ".join([section.text, *cells]))
    assert percentages and max(map(float, percentages)) <= 100
    assert any("needs" in cell or cell == "none" for cell in cells)


@pytest.mark.parametrize("errors, answers, level", [(0, 45, 0.9), (3, 40, 0.95), (9, 11, 0.9)])
def test_the_bound_is_the_rate_at_which_so_few_errors_are_improbable(errors, answers, level):
    from scipy.stats import binom

    bound = upper_bound(errors, answers, level)
    assert binom.cdf(errors, answers, bound) == pytest.approx(1 - level)


def test_the_bound_of_nothing_but_errors_is_one():
    assert upper_bound(4, 4) == 1.0 and upper_bound(0, 0) == 1.0


def test_fewest_answers():
    assert fewest_answers(0.05, 0.9) == 45  # 0.95^45 = 0.0994
    assert upper_bound(0, 45, 0.9) <= 0.05 < upper_bound(0, 44, 0.9)
    assert fewest_answers(0.1, 0.9) == 22


def test_nothing_is_promised_on_too_few_examples():
    sure = np.linspace(0.9, 1.0, 44)
    assert promised_threshold(sure, np.ones(44, dtype=bool), 0.05) == NEVER
    sure = np.linspace(0.9, 1.0, 45)
    assert promised_threshold(sure, np.ones(45, dtype=bool), 0.05) == 0.0


def test_equal_confidences_are_answered_together():
    sure = np.array([0.9] * 60 + [0.5] * 60)
    right = np.array([True] * 60 + [False] * 60)
    assert promised_threshold(sure, right, 0.05) == 0.9
    right[:4] = False
    assert promised_threshold(sure, right, 0.05) == NEVER


def test_errors_below_the_threshold_do_not_move_it():
    """The lowest confidences are all wrong: what is above them is answered all the same."""
    sure = np.linspace(1, 0, 1000)
    right = sure > 0.4
    threshold = promised_threshold(sure, right, 0.05)
    answered = sure >= threshold
    assert 0.36 < threshold < 0.45 and (~right[answered]).mean() <= 0.05


@pytest.mark.parametrize("count", [60, 300])
def test_the_promise_is_broken_in_at_most_a_tenth_of_fresh_draws(count):
    """Halves: thresholds from one, error rates on another. Without a bound 74 % exceeded them."""
    rng = np.random.default_rng(7)
    fresh, truth = scores(rng, 20_000)
    trials, broken = 60, dict.fromkeys((0.05, 0.1, 0.2), 0)
    answered_ever = 0
    for _ in range(trials):
        found = confidence_of(calibrate(*scores(rng, count)))
        assert found is not None and found.level == 0.9
        sure = softmax(fresh, found.temperature).max(axis=1)
        for rate in broken:
            answered = sure >= found.choice(rate).threshold
            answered_ever += bool(answered.any())
            if answered.any():
                broken[rate] += (fresh.argmax(axis=1) != truth)[answered].mean() > rate
    assert answered_ever > trials / 4, "a promise that is never made is kept by accident"
    assert max(broken.values()) <= 0.1 * trials


def test_a_row_states_what_its_threshold_does():
    """The refused fraction and the error rate of a choice are those of its own threshold."""
    found = calibrate(*scores(np.random.default_rng(3), 2000))
    confidence = confidence_of(found, 0.15)
    assert confidence is not None and confidence.max_error == 0.15
    rates = [each.max_error for each in confidence.choices]
    assert rates == [0.01, 0.02, 0.05, 0.1, 0.15, 0.2]
    refused = [each.refused for each in confidence.choices]
    assert refused == sorted(refused, reverse=True) and refused[0] == 1.0
    for each in confidence.choices:
        answered = found.fitted >= each.threshold
        assert each.refused == pytest.approx(1 - answered.mean())
        if each.error is None:
            assert each.threshold == NEVER and not answered.any()
        else:
            assert each.error == pytest.approx((~found.right[answered]).mean())
            assert each.error < each.max_error
