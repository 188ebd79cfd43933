"""How far a classifier's confidence can be believed: its temperature, and below which confidence it
had better say "I don't know".

Whatever is reported of a tenth of the examples was chosen on the other nine; what is kept is chosen
on all.

Letters: N examples, C classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object, value_of
from headstart.errors import ConfigError
from headstart.metrics.classification import Floats, Ints, best_temperature, softmax
from headstart.tasks.base import Evaluation

FILE = "confidence.json"
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MAX_ERROR = 0.05
FEWEST = 20  # examples; fewer say nothing
FOLDS = 10


@dataclass(frozen=True)
class Choice:
    """An error rate that was chosen, and what it costs.

    Args:
        max_error: Share of mistakes that is allowed among the answers.
        threshold: Confidence, after the temperature, below which the model does not answer; above 1
            where no threshold is enough.
        refused: Share of examples without an answer, each by a threshold that was chosen without
            it.
        error: Share of mistakes among the answers, likewise; None where nothing was answered.
    """

    max_error: float
    threshold: float
    refused: float
    error: float | None


@dataclass(frozen=True)
class Confidence:
    """What the confidence of a classifier is worth.

    Args:
        temperature: What its scores are divided by, fitted on all examples.
        examples: N.
        choices: By error rate.
        max_error: The rate that was asked for.
    """

    temperature: float
    examples: int
    choices: list[Choice]
    max_error: float

    def choice(self, max_error: float | None = None) -> Choice:
        """What was found for an error rate; None is the one that was asked for.

        Raises:
            ConfigError: Nothing is known about that rate.
        """
        wanted = self.max_error if max_error is None else max_error
        found = next((each for each in self.choices if abs(each.max_error - wanted) < 1e-9), None)
        if found is None:
            known = ", ".join(f"{each.max_error:g}" for each in self.choices)
            raise ConfigError(
                f"an error rate of {wanted:g} was not looked at; there are {known} (or train with"
                f" --max-error {wanted:g})"
            )
        return found

    def write(self, folder: Path) -> None:
        """Writes `confidence.json`."""
        values = {
            "temperature": self.temperature,
            "examples": self.examples,
            "max_error": self.max_error,
        }
        atomic_write(
            folder / FILE,
            json.dumps(values | {"choices": [vars(each) for each in self.choices]}, indent=2)
            + "\n",
        )

    @classmethod
    def read(cls, folder: str | Path) -> "Confidence":
        """What a result folder says.

        Raises:
            ConfigError: It says nothing, or something unreadable.
        """
        path = Path(folder) / FILE
        if not path.exists():
            text = "it needs the result of a training that was judged on at least"
            raise ConfigError(
                f"{folder} does not say when the model should refuse: {text} {FEWEST} examples"
            )
        values = read_object(path, ConfigError)
        listed = value_of(values, "choices", list[Any], path, ConfigError)
        choices = [as_dataclass(Choice, each, path, ConfigError) for each in listed]
        found = as_dataclass(cls, values, path, ConfigError, choices=choices)
        if not found.temperature > 0:
            raise ConfigError(f"{path}: temperature is {found.temperature}; expected one above 0")
        return found


def cross_fitted(logits: NDArray[np.floating[Any]], labels: Ints) -> tuple[Floats, Ints]:
    """Probabilities (N, C) with a temperature that was fitted without the example's fold, and the
    folds (N,).
    """
    fold = np.random.default_rng(len(labels)).permutation(len(labels)) % FOLDS
    probabilities = softmax(logits)
    for number in np.unique(fold):
        held, others = fold == number, fold != number
        if others.any():
            probabilities[held] = softmax(
                logits[held], best_temperature(logits[others], labels[others])
            )
    return probabilities, fold


def threshold_for(confidence: Floats, right: NDArray[np.bool_], max_error: float) -> float:
    """The lowest confidence (N,) from which on at most this share of answers is wrong; 0 answers
    everything, 2 nothing.

    An error rate of 1 in 20 cannot be seen in fewer than 20 answers.
    """
    order = np.argsort(-confidence, kind="stable")
    error = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    # equal confidences are answered together
    ends = np.append(confidence[order][1:] < confidence[order][:-1], True)
    good = np.flatnonzero(
        (error <= max_error) & ends & (np.arange(1, len(order) + 1) * max_error > 1 - 1e-9)
    )
    if not len(good):
        return 2.0
    return 0.0 if good[-1] == len(order) - 1 else float(confidence[order[good[-1]]])


def confidence_of(
    logits: NDArray[np.floating[Any]], labels: Ints, max_error: float | None = None
) -> Confidence | None:
    """Temperature and thresholds of a classifier from its logits (N, C) and labels (N,).

    None where there are too few examples.
    """
    asked = MAX_ERROR if max_error is None else max_error
    if not 0 < asked < 1:
        raise ConfigError(f"max_error={asked:g}; it must be above 0 and below 1, such as 0.05")
    if len(labels) < FEWEST:
        return None
    crossed, fold = cross_fitted(logits, labels)
    temperature = best_temperature(logits, labels)
    fitted, right = softmax(logits, temperature).max(axis=1), logits.argmax(axis=1) == labels
    sure = crossed.max(axis=1)
    choices = []
    for rate in sorted({*RATES, asked}):
        answered = np.zeros(len(labels), dtype=bool)
        for number in range(FOLDS):
            held, others = fold == number, fold != number
            answered[held] = sure[held] >= threshold_for(sure[others], right[others], rate)
        error = float((~right[answered]).mean()) if answered.any() else None
        choices.append(
            Choice(rate, threshold_for(fitted, right, rate), float(1 - answered.mean()), error)
        )
    return Confidence(temperature, len(labels), choices, asked)


def judged_confidence(evaluation: Evaluation) -> Confidence | None:
    """`confidence_of` an evaluation; None of those that are not about one class for each example."""
    logits, labels = evaluation.details.get("logits"), evaluation.details.get("labels")
    if (
        logits is None
        or labels is None
        or logits.ndim != 2
        or labels.ndim != 1
        or labels.dtype.kind != "i"
    ):
        return None
    return confidence_of(logits, labels, evaluation.max_error)
