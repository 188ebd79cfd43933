"""`--shots N --draws K`: the same training on K random subsets of the examples.

The spread of the results says how much they depend on the choice.
"""

import dataclasses
import shutil
import time
from pathlib import Path

from headstart.progress import metric_text, metric_title
from headstart.recipe import Recipe
from headstart.tasks.result import Result
from headstart.training.fit_both import fit_both_run
from headstart.training.fit_full import fit_full_run
from headstart.training.fit_head import fit_head_run
from headstart.training.request import RESULTS, RUN, Request, Run, read_data
from headstart.training.result import DRAWS, RECIPE, saved_evaluations
from headstart.training.tuning import Start


def carry_out(run: Run, resume: bool) -> Result:
    """The result of a run, with the spread over its draws where it has several."""
    request = run.request
    seconds = None if run.deadline is None else run.left / request.draws
    if request.draws > 1:
        if run.world.is_main and not resume:
            request.write(run.out)
        run.world.barrier()
        run.others = [other_draw(run, draw, seconds) for draw in range(1, request.draws)]
    return fit(run, resume and (request.draws == 1 or (run.out / "checkpoints").exists()), seconds)


def fit(run: Run, resume: bool, seconds: float | None) -> Result:
    """The result of one draw, in at most so many seconds."""
    run.deadline = None if seconds is None else time.perf_counter() + seconds
    if run.recipe.tune == "head":
        return fit_head_run(run)
    if run.may_start_from_head or Start.read(run.out) is not None:
        return fit_both_run(run, resume and not run.automatic)
    return fit_full_run(run, resume)


def other_draw(run: Run, draw: int, seconds: float | None) -> Result:
    """The result of another draw, trained below the run's folder or read from there."""
    folder, headline = run.out / DRAWS / str(draw + 1), run.task.headline
    if (folder / RESULTS).exists():
        recipe = Recipe.from_dict(run.request.recipe)
        result = Result(folder, recipe, saved_evaluations(folder))
    else:
        request = request_of(run.request, draw)
        recipe, began = Recipe.from_dict(request.recipe), time.perf_counter()
        task = read_data(request, run.workers, run.progress)
        other = dataclasses.replace(
            run, task=task, request=request, recipe=recipe, out=folder, began=began, others=[]
        )
        result = fit(other, (folder / RUN).exists(), seconds)
    if run.world.is_main:
        _forget_weights(folder)
    value = (
        f" {metric_title(headline)} {metric_text(headline, result.metrics[headline])}"
        if result.evaluation
        else ""
    )
    run.progress.report(f"draw {draw + 1} of {run.request.draws}:{value}")
    return result


def request_of(request: Request, draw: int) -> Request:
    """The request of another draw: other training examples, another seed, the same held out."""
    recipe = request.recipe | {"seed": request.recipe["seed"] + draw}
    return dataclasses.replace(
        request, options=request.options | {"draw": draw}, recipe=recipe, draws=1
    )


def _forget_weights(folder: Path) -> None:
    """Keeps request, recipe and results of a draw; its weights are removed."""
    for path in folder.iterdir():
        if path.name not in (RUN, RECIPE, RESULTS):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
