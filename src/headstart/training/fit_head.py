"""A run that fits the last layer on features that are computed once."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from headstart.errors import ConfigError, TrainingInterrupted
from headstart.features.choice import Found, Views, read_states, states_of, tune_head
from headstart.features.enough import forecast
from headstart.features.extract import extractor_of
from headstart.features.head import HeadCost, head_cost
from headstart.features.memory import memory_of
from headstart.features.portfolio import View
from headstart.features.unknown import reference_of
from headstart.recipe import Recipe
from headstart.tasks import HeadTask
from headstart.tasks.result import Result
from headstart.training.estimate import RESERVE, peak_memory, smaller_sides
from headstart.training.log import MetricsLog
from headstart.training.micro_batch import free_memory
from headstart.training.request import RUN, Run
from headstart.training.result import begin, finish, resume_command, stoppable

AUTO_SECONDS = 600.0  # of full training, from which on `tune="auto"` takes the head alone


def fit_head_run(run: Run, given_up: list[str] | None = None) -> Result:
    """Fits the last layer on features that are computed once."""
    return finish_head(run, find_head(run, given_up or []))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted head that is not saved yet.

    Args:
        found: The head, with its evaluations.
        views: Its features.
        cost: What it was expected to take.
        given_up: What a budget of time cost.
    """

    found: Found
    views: Views
    cost: HeadCost
    given_up: list[str]

    @property
    def network(self) -> nn.Module:
        """With the head."""
        return self.views.extractor.model


def find_head(
    run: Run, given_up: list[str], part: float = 1.0, full: Recipe | None = None
) -> Fitted:
    """Finds and fits the head.

    Args:
        run: Its recipe gets the side of the images.
        given_up: What the budget cost so far.
        part: Fraction of the time that is left that the search may take.
        full: The recipe of full training, which may follow.
    """
    task = run.task
    assert isinstance(task, HeadTask)
    views, cost = head_parts(run)
    for side in smaller_sides(run.recipe):
        if cost.seconds > RESERVE * run.left:
            run.recipe = dataclasses.replace(run.recipe, crop=side)
            views, cost = head_parts(run)
            run.progress.report(f"to keep the budget: images of {side} pixels")
            given_up.append(f"images of {side} pixels")
    sides = task.sides()[: None if run.request.free_side else 1]
    limit = view_limit(run, part)
    cost = cost.with_search(sides, limit)
    run.progress.report(cost.text())
    free = free_memory(torch.device("cpu"))
    if cost.memory - peak_memory(run.world.device) > free:
        raise ConfigError(
            f"fitting this head needs about {cost.memory / 2**30:.1f} GB of memory, and"
            f" {free / 2**30:.1f} GB are free; train on fewer examples (--shots), take a smaller"
            " model, or --tune full"
        )
    if cost.seconds - cost.search > run.left:
        run.progress.report(
            "that is more than the budget, and nothing is left to give up; a smaller model"
            " takes less"
        )

    def afford(view: View) -> bool:
        """Whether the features of all examples fit into the budget, or into ten minutes."""
        every = [digest for split in task.feature_digests().values() for digest in split]
        return views.seconds(view, every) < min(limit, RESERVE * run.left)

    with run.progress:
        try:
            views.compute(sides[0] if sides else None)
            begin(run, full)  # from here on a run that is stopped goes on with --resume
            found = tune_head(
                views,
                views.extractor.model,
                run.recipe.seed,
                sides=sides,
                afford=lambda view: run.world.broadcast(afford(view)),
            )
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                "stopped; the features so far are in the cache; to go on:"
                f" {resume_command(run) if (run.out / RUN).exists() else 'the same command'}"
            ) from None
    for note in found.notes:
        run.progress.report(note)
    run.recipe = dataclasses.replace(run.recipe, crop=task.side)
    task.notes += found.notes
    view = found.choice.candidates[0].view
    cost = cost.with_view(sides, view.side, mirrored=view.mirrored)
    return Fitted(found, views, cost, given_up)


def view_limit(run: Run, part: float = 1.0) -> float:
    """Seconds that the features of all examples in one more view may take."""
    return min(part * RESERVE * run.left, AUTO_SECONDS)


def head_parts(run: Run) -> tuple[Views, HeadCost]:
    """The network whose head is fitted, reading all its stages, and what that will cost."""
    task, device = run.task, run.world.device
    assert isinstance(task, HeadTask)
    network = task.build(run.request.model, run.recipe, revision=run.request.revision)
    network.to(device).eval()
    usual = task.head(network).in_features
    if states := states_of(network):
        read_states(network, task.head(network), states)
    extractor = extractor_of(task, network, device)
    with run.progress.counting("measuring the time", 1, "runs"):
        cost = run.world.broadcast(head_cost(task, extractor, peak_memory(device)))
    return Views(task, extractor, usual, run.progress), cost


def finish_head(run: Run, fitted: Fitted) -> Result:
    """Writes the result of a fitted head."""
    found = fitted.found
    cost, given_up = fitted.cost.seconds, fitted.given_up
    result = Result(run.out, run.recipe, found.evaluations, 0.0, cost, given_up)
    result.trials = found.trials
    if run.world.is_main:
        write_memory(run, fitted, run.out)
    return write_head(run, fitted.network, result)


def write_memory(run: Run, fitted: Fitted, folder: Path) -> None:
    """Writes what `update`, `forget` and `plan` need to know of the examples."""
    task, choice = run.task, fitted.found.choice
    if isinstance(task, HeadTask) and task.name == "image-classification":
        extractor = extractor_of(task, fitted.network, run.world.device)
        store = extractor.found(task.feature_digests()["train"], run.progress)
        weights = run.recipe.class_weights
        memory_of(task, choice, fitted.views.usual, weights, store).write(folder)


def write_head(run: Run, model: nn.Module, result: Result) -> Result:
    """Writes the result folder of a network whose head was fitted."""
    task = run.task
    assert isinstance(task, HeadTask)
    file = run.out / "metrics.jsonl"
    if run.world.is_main and "validation" in result.evaluations and not file.exists():
        log = MetricsLog(file, run.out / "tensorboard" if run.tensorboard else None)
        log.write({"step": 0, "validation": result.evaluations["validation"].metrics})
        log.close()
    if run.world.is_main:
        finished = extractor_of(task, model, run.world.device)
        with stoppable(run), run.progress:
            result.forecast = forecast(task, finished, run.recipe.seed, run.progress)
            result.reference = reference_of(task, finished, run.recipe.seed, run.progress)
    return finish(run, model, result)
