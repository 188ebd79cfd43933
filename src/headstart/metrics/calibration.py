"""How far a classifier's confidence can be believed: its temperature, and thresholds of confidence.

Whatever is reported of a tenth of the examples was chosen on the other nine; what is saved is
chosen on all.

Letters: N examples, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ConfigError
from headstart.metrics.classification import (
    Floats,
    Ints,
    best_temperature,
    best_temperatures,
    negative_log_likelihood,
    reliability,
    top_confidence,
)
from headstart.pipelines.confidence import FEWEST, Choice, Confidence

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MAX_ERROR = 0.05
FOLDS = 10


@dataclass(frozen=True)
class Calibration:
    """Confidences (N,) with temperatures that were fitted without the example, and the folds.

    Args:
        temperature: Fitted on all examples; 1 where temperatures do not help on held-out examples.
        raw: Highest probability of each example as the network gives it, (N,).
        fitted: The same after `temperature`.
        crossed: The same after the temperature that was fitted on the other folds.
        right: Whether the class of the highest probability is the label, (N,).
        fold: (N,).
    """

    temperature: float
    raw: Floats
    fitted: Floats
    crossed: Floats
    right: NDArray[np.bool_]
    fold: Ints


def cross_fit(logits: NDArray[np.floating[Any]], labels: Ints) -> tuple[Floats, Ints]:
    """The temperature of each example that was fitted without its fold (N,), and the folds (N,)."""
    fold = np.random.default_rng(len(labels)).permutation(len(labels)) % FOLDS
    temperatures, numbers = np.ones(len(labels)), np.unique(fold)
    if len(numbers) > 1:
        found = best_temperatures(logits, labels, [fold != number for number in numbers])
        for number, temperature in zip(numbers, found, strict=True):
            temperatures[fold == number] = temperature
    return temperatures, fold


def calibrate(logits: NDArray[np.floating[Any]], labels: Ints) -> Calibration:
    """One cross-fit of the temperature, for everything that needs it.

    Temperatures are used only where they lower both the loss and the calibration error of examples
    that they were not fitted on.
    """
    temperatures, fold = cross_fit(logits, labels)
    scaled = logits / temperatures[:, None]
    raw, crossed = top_confidence(logits), top_confidence(scaled)
    right = logits.argmax(axis=1) == labels
    loss = negative_log_likelihood(logits, labels) - negative_log_likelihood(scaled, labels)
    error = reliability(raw, right).error - reliability(crossed, right).error
    if loss <= 0 or error < 0:
        return Calibration(1.0, raw, raw, raw, right, fold)
    temperature = best_temperature(logits, labels)
    return Calibration(temperature, raw, top_confidence(logits, temperature), crossed, right, fold)


def threshold_for(confidence: Floats, right: NDArray[np.bool_], max_error: float) -> float:
    """The lowest confidence (N,) from which on at most this fraction of the answers is wrong.

    An error rate of 1 in 20 cannot be seen in fewer than 20 answers.

    Returns:
        0 where everything may be answered, 2 where nothing may.
    """
    order = np.argsort(-confidence, kind="stable")
    error = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    # equal confidences are answered together
    ends = np.append(confidence[order][1:] < confidence[order][:-1], True)
    seen = np.arange(1, len(order) + 1) * max_error > 1 - 1e-9
    good = np.flatnonzero((error <= max_error) & ends & seen)
    if not len(good):
        return 2.0
    return 0.0 if good[-1] == len(order) - 1 else float(confidence[order[good[-1]]])


def confidence_of(found: Calibration, max_error: float | None = None) -> Confidence | None:
    """What `confidence.json` holds; None where there are fewer than 20 examples.

    Raises:
        ConfigError: `max_error` is not between 0 and 1.
    """
    asked = MAX_ERROR if max_error is None else max_error
    if not 0 < asked < 1:
        raise ConfigError(f"max_error={asked:g}; it must be above 0 and below 1, such as 0.05")
    if len(found.right) < FEWEST:
        return None
    choices = []
    for rate in sorted({*RATES, asked}):
        answered = np.zeros(len(found.right), dtype=bool)
        for number in range(FOLDS):
            held, others = found.fold == number, found.fold != number
            threshold = threshold_for(found.crossed[others], found.right[others], rate)
            answered[held] = found.crossed[held] >= threshold
        error = float((~found.right[answered]).mean()) if answered.any() else None
        threshold = threshold_for(found.fitted, found.right, rate)
        choices.append(Choice(rate, threshold, float(1 - answered.mean()), error))
    return Confidence(found.temperature, len(found.right), choices, asked)
