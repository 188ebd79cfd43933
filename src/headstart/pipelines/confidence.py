"""`confidence.json`: how far the confidence of a trained classifier can be believed.

Training finds the values (`headstart.metrics.calibration`), prediction reads them here.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object, value_of
from headstart.errors import ConfigError

logger = logging.getLogger("headstart")
FILE = "confidence.json"
UNKNOWN = "I don't know"  # the label of a refused answer
FEWEST = 20  # examples below which nothing is measured


@dataclass(frozen=True)
class Choice:
    """A target error rate and what it costs.

    Args:
        max_error: Fraction of the answers that may be wrong on new examples.
        threshold: Confidence, after temperature scaling, below which the model does not answer;
            above 1 where no threshold can be promised to be enough.
        refused: Fraction of the evaluated examples below this threshold.
        error: Fraction of wrong answers among the others; None where nothing was answered.
    """

    max_error: float
    threshold: float
    refused: float
    error: float | None


@dataclass(frozen=True)
class Confidence:
    """Temperature and thresholds of a classifier.

    Args:
        temperature: What its scores are divided by, fitted on all examples; 1 where dividing does
            not help on held-out examples.
        examples: Number of examples that the values were found on.
        choices: By target error rate.
        max_error: The target that was requested.
        level: Probability, over random sets of as many examples, that the answers to new ones keep
            the target error rate; None of a file of earlier versions, which promised nothing.
        coverage: Fraction of new examples whose conformal set contains the true class.
        minimums: Probability from which on each class belongs to the set, (V,).
    """

    temperature: float
    examples: int
    choices: list[Choice]
    max_error: float
    level: float | None = None
    coverage: float | None = None
    minimums: list[float] | None = None

    def choice(self, max_error: float | None = None) -> Choice:
        """The choice for a target error rate; None is the one that was requested.

        Raises:
            ConfigError: That target was not evaluated.
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
            "level": self.level,
            "coverage": self.coverage,
            "minimums": self.minimums,
            "choices": [vars(each) for each in self.choices],
        }
        atomic_write(folder / FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> "Confidence":
        """The values of a result folder.

        Raises:
            ConfigError: The file is missing or not readable.
        """
        path = Path(folder) / FILE
        if not path.exists():
            text = "it needs the result of a training that was evaluated on at least"
            raise ConfigError(
                f"{folder} does not say when the model should refuse: {text} {FEWEST} examples"
            )
        values = read_object(path, ConfigError)
        listed = value_of(values, "choices", list[Any], path, ConfigError)
        choices = [as_dataclass(Choice, each, path, ConfigError) for each in listed]
        found = as_dataclass(cls, values, path, ConfigError, choices=choices)
        if not 0 < found.temperature < float("inf"):
            raise ConfigError(f"{path}: temperature is {found.temperature}; expected one above 0")
        if any(not 0 <= each <= 1 for each in found.minimums or ()):
            raise ConfigError(f"{path}: minimums are probabilities, from 0 to 1")
        return found


def folder_of(model: Any) -> Path | None:
    """The folder of a model that is given by its folder, or was loaded from one."""
    named = isinstance(model, str | Path)
    folder = Path(model if named else getattr(model.config, "name_or_path", "") or "")
    return folder if folder.name else None


def believed(model: Any, refuse: bool | float) -> tuple[float, float]:
    """Temperature of a classifier, and the confidence below which it does not answer.

    Args:
        model: A folder, a name, or a network.
        refuse: Whether to refuse; a number is a target error rate other than the requested one.

    Returns:
        1 and 0 where training has found nothing, and nothing is to be refused.

    Raises:
        ConfigError: Training has not found when to refuse, or the rate is not between 0 and 1.
    """
    if not isinstance(refuse, bool) and not 0 < refuse < 1:
        raise ConfigError(f"max_error={refuse:g}; it must be above 0 and below 1, such as 0.05")
    folder = folder_of(model)
    if refuse is False and (folder is None or not (folder / FILE).is_file()):
        return 1.0, 0.0
    found = Confidence.read(folder or Path())
    if refuse is False:
        return found.temperature, 0.0
    choice = found.choice(None if refuse is True else refuse)
    if choice.threshold > 1:
        possible = [each.max_error for each in found.choices if each.threshold <= 1]
        way_out = f"; for {possible[0]:g} there is one (--max-error)" if possible else ""
        logger.warning(
            "every input is refused: no threshold is known to keep the error rate at %g, from %d"
            " evaluated examples%s",
            choice.max_error,
            found.examples,
            way_out,
        )
    return found.temperature, choice.threshold


def minimums_of(folder: Path | None) -> list[float] | None:
    """Probability from which on each class belongs to the conformal set, (V,); None where training
    has found none.
    """
    if folder is None or not (folder / FILE).is_file():
        return None
    return Confidence.read(folder).minimums
