"""Learning curves: the laws behind made-up measurements are found again, with honest intervals."""

import json

import numpy as np
import pytest

from headstart.metrics.learning_curve import (
    Forecast,
    LearningCurve,
    class_gains,
    fit_power_laws,
    rounded,
)

SIZES = np.array([50, 75, 110, 160, 240, 350, 500])


def curve_of(law, tested=10_000, deviation=0.001, rng=None):
    errors = np.array([law(n) for n in SIZES])
    if rng is not None:
        errors = errors + deviation * rng.standard_normal(len(SIZES))
    return LearningCurve(SIZES, errors, np.full(len(SIZES), deviation), tested)


def law(floor, amplitude, slope):
    return lambda n: floor + amplitude * (n / 500) ** -slope


@pytest.mark.parametrize("floor, amplitude, slope", [(0.0, 0.2, 0.3), (0.1, 0.1, 0.5)])
def test_a_power_law_is_found_again(floor, amplitude, slope):
    true = law(floor, amplitude, slope)
    found = fit_power_laws(curve_of(true))
    for examples in (500, 1000, 2000):
        estimate = found.accuracy(examples)
        assert estimate.low <= 1 - true(examples) <= estimate.high
        assert estimate.value == pytest.approx(1 - true(examples), abs=0.01)
    needed = found.examples_for(1 - true(1000))
    assert needed.low <= 1000 <= needed.high and needed.value == pytest.approx(1000, rel=0.3)


def test_what_lies_further_ahead_is_less_certain():
    found = fit_power_laws(curve_of(law(0.05, 0.15, 0.4)))
    widths = [(e := found.accuracy(n)).high - e.low for n in (500, 1000, 4000)]
    assert widths[0] < widths[1] < widths[2]


def test_few_tested_examples_make_the_level_uncertain():
    widths = []
    for tested in (50, 5000):
        estimate = fit_power_laws(curve_of(law(0.05, 0.15, 0.4), tested)).accuracy(500)
        widths.append(estimate.high - estimate.low)
    # 2 * 1.28 standard deviations of a proportion of 0.2 in 50
    assert widths[0] == pytest.approx(2 * 1.28 * np.sqrt(0.2 * 0.8 / 50), rel=0.2)
    assert widths[1] < widths[0] / 4


def test_a_curve_that_bends_is_followed_after_the_break():
    """As n^-0.15 up to 160 examples, then as n^-0.6: one law for all points expects less."""

    def bent(n):
        return 0.3 * (160 / 500) ** -0.6 * (n / 160) ** (-0.15 if n < 160 else -0.6)

    estimate = fit_power_laws(curve_of(bent)).accuracy(1000)
    assert estimate.low <= 1 - bent(1000) <= estimate.high
    assert estimate.value == pytest.approx(1 - bent(1000), abs=0.03)


def test_intervals_cover_what_they_promise():
    rng, covered = np.random.default_rng(0), []
    for trial in range(120):
        last = rng.uniform(0.05, 0.5)
        floor = rng.uniform(0, 0.9) * last
        true = law(floor, last - floor, np.clip(rng.normal(0.4, 0.2), 0.05, 1.2))
        found = fit_power_laws(curve_of(true, deviation=0.01, rng=rng), seed=trial)
        estimate = found.accuracy(1000)
        covered.append(estimate.low <= 1 - true(1000) <= estimate.high)
    assert 0.7 < np.mean(covered) < 0.97


def test_a_target_above_the_floor_is_out_of_reach():
    found = fit_power_laws(curve_of(law(0.2, 0.05, 0.8)))
    assert found.examples_for(0.95).value == np.inf
    forecast = Forecast(curve_of(law(0.2, 0.05, 0.8)), found, 500, [])
    assert "80% needs" in forecast.text() and "more than 50,000" in forecast.text()
    assert forecast.caution == ""
    values = json.loads(json.dumps(forecast.to_dict(), allow_nan=False))
    assert values["targets"][-1]["examples"] is None
    assert [each["examples"] for each in values["forecast"]] == [500, 1000, 2000]


def test_the_class_whose_recall_rises_gains_most():
    curve = curve_of(law(0.1, 0.2, 0.4))
    rising = 0.5 + 0.1 * np.log2(SIZES / 500)
    recalls = np.stack([np.full(len(SIZES), 0.6), rising, np.full(len(SIZES), 0.98)], axis=1)
    laws = fit_power_laws(curve)
    gains = class_gains(["flat", "rising", "good"], np.array([200, 200, 100]), curve, recalls, laws)
    assert [each.name for each in gains] == ["rising", "flat", "good"]
    assert 0.04 < gains[0].gain < 0.12 and gains[0].recall == pytest.approx(0.5, abs=0.02)
    assert all(each.gain + each.recall <= 1 for each in gains)


def test_no_class_is_named_where_one_was_not_tested():
    curve = curve_of(law(0.1, 0.2, 0.4))
    recalls = np.full((len(SIZES), 2), np.nan)
    assert class_gains(["a", "b"], np.array([5, 5]), curve, recalls, fit_power_laws(curve)) == []


@pytest.mark.parametrize(
    "number, text", [(7, "7"), (1234.5, "1,200"), (np.inf, "more than 50,000")]
)
def test_numbers_of_examples_are_rounded(number, text):
    assert rounded(number, 50_000) == text
