"""`--shots N --draws K`: the same training on K random subsets of the examples.

The spread of the results says how much they depend on the choice.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from headstart.pipelines.base import read_results
from headstart.progress import metric_text
from headstart.recipe import Recipe
from headstart.tasks.result import Result, Spread
from headstart.training.result import RECIPE, RESULTS, RUN, Request, saved_evaluations

FOLDER = "draws"


def request_of(request: Request, draw: int) -> Request:
    """The request of another draw: other training examples, another seed, the same held out."""
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
    is_main: bool,
) -> list[Result]:
    """Runs every draw but the first, below `out`; those that are finished from before are read.

    Args:
        request: Of the first draw.
        out: Result folder of all.
        run: Runs a request into a folder; the last argument is whether to resume.
        say: Gets a line about every draw.
        headline: The metric in that line.
        is_main: Whether this process writes.
    """
    results = []
    for draw in range(1, request.draws):
        folder = out / FOLDER / str(draw + 1)
        if (folder / RESULTS).exists():
            result = Result(folder, Recipe.from_dict(request.recipe), saved_evaluations(folder))
        else:
            result = run(request_of(request, draw), folder, (folder / RUN).exists())
        if is_main:
            _forget_weights(folder)
        value = (
            f" {headline.replace('_', ' ')} {metric_text(headline, result.metrics[headline])}"
            if result.evaluation
            else ""
        )
        say(f"draw {draw + 1} of {request.draws}:{value}")
        results.append(result)
    return results


def _forget_weights(folder: Path) -> None:
    """Keeps request, recipe and results of a draw; its weights are removed."""
    for path in folder.iterdir():
        if path.name not in (RUN, RECIPE, RESULTS):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def spread_of(first: Result, others: list[Result]) -> Spread | None:
    """All draws together; None where nothing was evaluated."""
    found = [each.evaluation for each in (first, *others)]
    evaluations = [each for each in found if each is not None]
    if len(evaluations) < len(found):
        return None
    metrics = [each.metrics for each in evaluations]
    names = [name for name in metrics[0] if all(name in each for each in metrics)]
    values = {name: [each[name] for each in metrics] for name in names}
    seeds = [first.recipe.seed + draw for draw in range(len(found))]
    return Spread(seeds, evaluations[0].split, values)


def read_spread(out: Path) -> Spread | None:
    """The draws of a finished run."""
    found = read_results(out).get("draws")
    return found and Spread(
        found["seeds"],
        found["split"],
        {name: each["values"] for name, each in found["metrics"].items()},
    )
