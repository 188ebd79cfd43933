"""What a training run made: evaluations, and their spread over draws of the training examples."""

import dataclasses
import math
import statistics
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from headstart.metrics.learning_curve import Forecast
from headstart.metrics.optional import scipy
from headstart.pipelines.unknown import Reference
from headstart.progress import is_fraction, metric_text, metric_title
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation


@dataclasses.dataclass(frozen=True)
class Spread:
    """Results of every draw, the first one first.

    Args:
        seeds: Seed of each draw's training.
        split: What they were evaluated on.
        values: Metric → its value in each draw.
    """

    seeds: list[int]
    split: str
    values: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """Mean of a metric."""
        return statistics.fmean(self.values[name])

    def interval(self, name: str) -> tuple[float, float]:
        """95 % confidence interval of the mean over draws, by Student's t distribution."""
        values = self.values[name]
        half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        low, high = self.mean(name) - half, self.mean(name) + half
        return (max(low, 0.0), min(high, 1.0)) if is_fraction(name) else (low, high)

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        metrics = {
            n: {"mean": self.mean(n), "confidence_interval_95": self.interval(n), "values": v}
            for n, v in self.values.items()
        }
        return {"seeds": self.seeds, "split": self.split, "kept": self.seeds[0], "metrics": metrics}

    def text(self, headline: str) -> str:
        """One line for the terminal."""
        low, high = (metric_text(headline, bound) for bound in self.interval(headline))
        return (
            f"{len(self.seeds)} draws: {self.split} {metric_title(headline)}"
            f" {metric_text(headline, self.mean(headline))} on average (95 % interval {low} to"
            f" {high}); the model kept is that of the first draw, not the one that scored best"
        )


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution."""
    return float(scipy("special").stdtrit(freedom, 0.975))


@dataclass
class Result:
    """What a run made.

    Args:
        folder: The result: model, processor, recipe, metrics and report. None after a dry run.
        recipe: The resolved recipe.
        evaluations: By split.
        seconds: Time from the call to the result, in this process.
        estimated: Time that was expected before training began.
        given_up: What a budget of time cost.
        spread: Results of all draws, where there were several.
        reference: What tells the known classes from others, where a head was fitted.
        forecast: What more training examples should bring, where a head was fitted.
        notes: What an update changed.
        trials: Heads that were compared, where one was fitted on frozen features.
    """

    folder: Path | None
    recipe: Recipe
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float = 0.0
    estimated: float | None = None
    given_up: list[str] = field(default_factory=list)
    spread: Spread | None = None
    forecast: Forecast | None = None
    notes: list[str] = field(default_factory=list)
    reference: Reference | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation that counts: of the test data, else of the validation data."""
        return self.evaluations.get("test") or self.evaluations.get("validation")

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of `evaluation`; empty where no data was held out."""
        return self.evaluation.metrics if self.evaluation else {}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in list(self.metrics.items())[:3])
        return f"Result({str(self.folder)!r}, {shown or 'not evaluated'})"

    def _repr_html_(self) -> str:
        """The metrics of every split as a table, for notebooks."""
        names = list(dict.fromkeys(n for each in self.evaluations.values() for n in each.metrics))
        head = "".join(
            f"<th>{escape(split)} ({each.examples})</th>"
            for split, each in self.evaluations.items()
        )
        rows = "".join(
            f"<tr><th>{escape(metric_title(name))}</th>"
            + "".join(
                f"<td>{metric_text(name, each.metrics[name]) if name in each.metrics else ''}</td>"
                for each in self.evaluations.values()
            )
            + "</tr>"
            for name in names
        )
        table = f"<table><tr><th></th>{head}</tr>{rows}</table>" if names else "not evaluated"
        return f"<div><p><b>{escape(str(self.folder))}</b></p>{table}</div>"
