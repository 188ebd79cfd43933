"""How far a classifier's confidence can be believed: its temperature, and thresholds of confidence.

A temperature is evaluated on the tenth of the examples that it was not fitted on; the one that is
saved is fitted on all. Thresholds carry a promise for new examples, see `selective`.

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
from headstart.metrics.selective import LEVEL, promised_threshold
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


def confidence_of(found: Calibration, max_error: float | None = None) -> Confidence | None:
    """What `confidence.json` holds; None where there are fewer than 20 examples.

    Raises:
        ConfigError: `max_error` is not between 0 and 1.
    """
    target = MAX_ERROR if max_error is None else max_error
    if not 0 < target < 1:
        raise ConfigError(f"max_error={target:g}; it must be above 0 and below 1, such as 0.05")
    if len(found.right) < FEWEST:
        return None
    choices = []
    for rate in sorted({*RATES, target}):
        threshold = promised_threshold(found.fitted, found.right, rate)
        answered = found.fitted >= threshold
        error = float((~found.right[answered]).mean()) if answered.any() else None
        choices.append(Choice(rate, threshold, float(1 - answered.mean()), error))
    return Confidence(found.temperature, len(found.right), choices, target, LEVEL)
