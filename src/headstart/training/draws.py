"""`--shots N --draws K`.

The same training on K choices of the examples, and how much the result depends on the choice.
"""

import dataclasses
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.errors import MissingExtraError
from headstart.pipelines.base import read_results
from headstart.progress import metric_text
from headstart.report.page import BLUE, Section, Table, figure_source, new_figure, plain_axes
from headstart.training.result import RECIPE, RESULTS, RUN, Request, Result, judged_before

FOLDER = "draws"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Results of every draw, the first one first.

    Args:
        seeds: Seed of each draw's training.
        split: What they were judged on.
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
        return self.mean(name) - half, self.mean(name) + half

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` keeps it."""
        metrics = {
            n: {"mean": self.mean(n), "confidence_interval_95": self.interval(n), "values": v}
            for n, v in self.values.items()
        }
        return {"seeds": self.seeds, "split": self.split, "kept": self.seeds[0], "metrics": metrics}

    def text(self, headline: str) -> str:
        """One line for the terminal."""
        low, high = (metric_text(headline, bound) for bound in self.interval(headline))
        return (
            f"{len(self.seeds)} draws: {self.split} {headline.replace('_', ' ')}"
            f" {metric_text(headline, self.mean(headline))} on average (95 % interval {low} to"
            f" {high}); the model kept is that of the first draw, not the one that scored best"
        )

    def section(self, headline: str) -> Section:
        """The part of the report that shows all draws."""
        figure = new_figure(5.0, 1.6)
        axes = figure.subplots()
        axes.scatter(self.values[headline], [0] * len(self.seeds), color=BLUE, alpha=0.7)
        axes.errorbar(
            [self.mean(headline)],
            [0.5],
            xerr=self.mean(headline) - self.interval(headline)[0],
            fmt="o",
            color=BLUE,
            capsize=4,
        )
        axes.set(yticks=[0, 0.5], ylim=(-0.4, 0.9), xlabel=headline.replace("_", " "))
        axes.set_yticklabels(["each draw", "mean"])
        plain_axes(axes)
        rows = []
        for name, values in self.values.items():
            bounds = " to ".join(metric_text(name, bound) for bound in self.interval(name))
            each = ", ".join(metric_text(name, value) for value in values)
            rows.append([name.replace("_", " "), metric_text(name, self.mean(name)), bounds, each])
        text = (
            f"The same training on {len(self.seeds)} choices of the training examples, all judged"
            f" on the same {self.split} examples. The interval (Student's t) is of the mean over"
            " such choices. The model in this folder, and all that this page shows below, are of"
            " the first draw; none was chosen by its score."
        )
        return Section(
            "Other draws",
            text,
            [figure_source(figure)],
            Table(("measure", "mean", "95 % interval", "draws"), rows),
        )


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise MissingExtraError("scipy", "train") from None
    return float(stdtrit(freedom, 0.975))


def request_of(request: Request, draw: int) -> Request:
    """What is asked for in another draw.

    Other examples in training, another seed, the same examples held out.
    """
    recipe = request.recipe | {"seed": request.recipe["seed"] + draw}
    return dataclasses.replace(
        request, options=request.options | {"draw": draw}, recipe=recipe, draws=1
    )


def run_draws(
    request: Request,
    out: Path,
    run: Callable[[Request, Path, bool], Result],
    say: Callable[[str], None],
    headline: str,
    leads: bool,
) -> list[Result]:
    """Runs every draw but the first, below `out`; those that are finished from before are read.

    Args:
        request: Of the first draw.
        out: Result folder of all.
        run: Runs a request into a folder; told whether to go on with what is there.
        say: Told about every draw.
        headline: The metric to say.
        leads: Whether this process writes.
    """
    results = []
    for draw in range(1, request.draws):
        folder = out / FOLDER / str(draw + 1)
        if (folder / RESULTS).exists():
            result = Result(folder, run_recipe(request), judged_before(folder))
        else:
            result = run(request_of(request, draw), folder, (folder / RUN).exists())
        if leads:
            _forget_weights(folder)
        value = (
            f" {headline.replace('_', ' ')} {metric_text(headline, result.metrics[headline])}"
            if result.judged
            else ""
        )
        say(f"draw {draw + 1} of {request.draws}:{value}")
        results.append(result)
    return results


def run_recipe(request: Request) -> Any:  # noqa: ANN401 - a Recipe
    """The recipe of a request."""
    from headstart.recipe import Recipe

    return Recipe.from_dict(request.recipe)


def _forget_weights(folder: Path) -> None:
    """Leaves of a draw only what it was and what came out: its weights are not kept."""
    for path in folder.iterdir():
        if path.name not in (RUN, RECIPE, RESULTS):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def spread_of(first: Result, others: list[Result]) -> Spread | None:
    """All draws together; None where nothing was judged."""
    judged = [each.judged for each in (first, *others)]
    if any(each is None for each in judged):
        return None
    seed = first.recipe.seed
    metrics = [each.metrics for each in judged if each is not None]
    values = {
        name: [each[name] for each in metrics]
        for name in metrics[0]
        if all(name in each for each in metrics)
    }
    return Spread(
        [seed + draw for draw in range(len(metrics))], judged[0].split if judged[0] else "", values
    )


def read_spread(out: Path) -> Spread | None:
    """The draws of a finished run."""
    found = read_results(out).get("draws")
    return found and Spread(
        found["seeds"],
        found["split"],
        {name: each["values"] for name, each in found["metrics"].items()},
    )
