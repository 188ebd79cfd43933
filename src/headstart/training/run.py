"""A whole run: request → data → recipe → budget → fit → evaluate → write.

`headstart.train(...)` and `headstart train` are both `train` here.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.data.labels import kind_named
from headstart.data.options import LOOK
from headstart.errors import ConfigError
from headstart.progress import Progress, Silent, progress_for_python
from headstart.tasks import task_class
from headstart.tasks.result import Result
from headstart.training.draws import carry_out
from headstart.training.estimate import measure, parse_budget
from headstart.training.fit_full import make_network
from headstart.training.fit_head import AUTO_SECONDS, head_parts, view_limit
from headstart.training.lock import locked
from headstart.training.loop import Loop
from headstart.training.micro_batch import fitting_micro_batch
from headstart.training.request import (
    RESULTS,
    RecipeOptions,
    Request,
    Run,
    Workspace,
    absolute,
    announce,
    check_free,
    check_kept,
    check_options,
    check_same,
    check_still,
    clear,
    model_of,
    new_run,
    saved_run,
)
from headstart.training.result import finished, remove_drafts
from headstart.training.world import World


def train(
    data: str | Path,
    *,
    model: str | Path | None = None,
    out: str | Path,
    task: str = "image-classification",
    config: str | Path | None = None,
    recipe: str | None = None,
    revision: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    shots: int | None = None,
    draws: int = 1,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    problem_type: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    stream: bool = False,
    task_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    workers: int | None = None,
    budget: str | float | None = None,
    fsdp: bool = False,
    tensorboard: bool = False,
    epochs: float | None = None,
    overwrite: bool = False,
    max_error: float | None = None,
    progress: Progress | None = None,
    **recipe_values: Any,
) -> Result:
    """Fine-tunes a pretrained model on a data set and writes a result folder.

    Args:
        data: A folder of class folders, of splits, or a table; see
            `headstart.data.images.read_images`.
        model: Pretrained model: a folder, a Hub id or an authors' name. Needed unless `resume`;
            text classification takes "yoso-mini" where it is None.
        out: Result folder; made if it does not exist.
        task: What is learned; a name in `headstart.tasks.TASKS`.
        config: YAML file of recipe values.
        recipe: Name of a recipe to take in place of the family's own.
        revision: Branch, tag or commit of the model on the Hub.
        resume: Go on with the run in `out`, as it was requested.
        dry_run: Report what would be done and how long it would take, and stop.
        shots: Training examples of each class; None takes all.
        draws: Train on so many random subsets of `shots`; the result holds mean and interval, and
            the model of the first.
        val_fraction: Fraction of the training data held out where the data has no validation split.
        skip_bad: Go on without unreadable examples.
        columns: Columns of a table by role, such as {"image": "file", "label": "species"};
            {"label": "x,y"} are several.
        problem_type: What the labels are: "single_label_classification",
            "multi_label_classification" or "regression"; None looks at them.
        validation: Further data to evaluate the model on during training.
        test: Further data to evaluate the result on.
        stream: Read tars or Parquet files from front to back as they are needed (image
            classification): a pattern such as `train-{0000..0099}.tar`, a folder, or a URI.
        task_options: Further options of the task by name, such as {"masks": "masks/"}; its class
            lists them.
        device: "cpu", "cuda", …; None takes the best there is.
        workers: Threads that read and decode.
        budget: Time that everything may take, such as "10m" or a number of minutes; the recipe is
            reduced to fit.
        fsdp: Share weights, gradients and optimizer between the processes that torchrun started,
            for a model too large for each.
        tensorboard: Write the numbers of `metrics.jsonl` for TensorBoard too, to `tensorboard/` in
            the result folder.
        epochs: Passes over the training data, in place of `steps`.
        overwrite: Replace a run that is in `out` already.
        max_error: Target error rate among answers, for which a classifier's report finds the
            confidence below which it should answer "I don't know"; None is 0.05.
        progress: Where progress is shown; None shows it in notebooks and is silent elsewhere.
        **recipe_values: Any value of `headstart.recipe.Recipe`, such as `lr=0.001`, `steps=200`,
            `seed=1`. `tune="auto"`, the default where no value of full training is given, takes
            the head alone where full training would take more than ten minutes.

    Returns:
        The result, with its evaluations.

    Raises:
        DataError: The data cannot be trained on; the message names file and row.
        ConfigError: A recipe value that is not allowed.
        HubError: The model could not be found or loaded.
        TrainingInterrupted: A signal stopped the run; a checkpoint was written.

    Example:
        >>> import headstart
        >>> result = headstart.train("photos/", model="bit-mini", out="run")  # doctest: +SKIP
        >>> result.metrics["accuracy"]  # doctest: +SKIP
        0.93
    """
    began, out = time.perf_counter(), Path(out)
    world = World(device, fsdp)
    progress = (progress or progress_for_python()) if world.is_main else Silent()
    deadline = None if budget is None else began + parse_budget(budget)
    space = Workspace(out, world, progress, began, workers, deadline, tensorboard)
    if resume:
        request = dataclasses.replace(Request.read(out), data=str(data))  # it may have moved
        if (out / RESULTS).exists():
            return finished(request, space)
        check_same(request, model, recipe_values, out)
        if skip_bad:  # a stream finds unreadable images on its way
            options = request.options | {"skip_bad": True}
            request = dataclasses.replace(request, options=options)
        run = saved_run(request, space)
    else:
        name = model_of(model, task)
        if not dry_run:
            check_free(out, overwrite)
            check_kept(
                out, overwrite, [data, name, validation, test, *(task_options or {}).values()]
            )
        check_options(shots, draws, max_error)
        if stream and task_class(task).name != "image-classification":
            raise ConfigError(f"--stream is for image-classification; {task} reads all its data")
        wanted = RecipeOptions(config, recipe, recipe_values, epochs, full=fsdp)
        extra = {"validation": validation, "test": test, "max_error": max_error}
        extra |= {"stream": stream or None}
        if task_class(task).name == "image-classification" and not stream:
            extra["look"] = LOOK
        options = {
            "seed": wanted.get("seed") or 0,
            "problem_type": None if problem_type is None else kind_named(problem_type),
            "shots": shots,
            "val_fraction": val_fraction,
            "skip_bad": skip_bad,
            "columns": dict(columns or {}),
            "workers": workers,
            "extra": absolute(extra | dict(task_options or {})),
        }
        request = Request(str(data), name, task_class(task).name, revision, options, {}, draws)
        run = new_run(request, wanted, space)
    announce(run)
    if dry_run:
        return estimate_run(run)
    with world.lost_processes(), locked(out) if world.is_main else contextlib.nullcontext():
        if world.is_main:
            check_still(out, resume, overwrite)
        if overwrite and not resume and world.is_main:
            clear(out)
        if resume:
            remove_drafts(out)
        return carry_out(run, resume)


def estimate_run(run: Run) -> Result:
    """The result of a dry run: what the run would take."""
    if run.recipe.tune == "head":
        views, cost = head_parts(run)
        sides = views.task.sides()[: None if run.request.free_side else 1]
        cost = cost.with_search(sides, view_limit(run))
        run.progress.report(cost.text())
        return Result(None, run.recipe, estimated=cost.seconds)
    network = make_network(run)
    run.task.prepare(None)
    world = run.world
    size = fitting_micro_batch(run.task, network.to(world.device), run.recipe, world, print_nothing)
    run.recipe = dataclasses.replace(run.recipe, micro_batch=size)
    loop = Loop(run.task, network, run.recipe, run.out, world, run.progress, workers=run.workers)
    estimate = measure(loop)
    run.progress.report(estimate.text(run.recipe))
    seconds = estimate.seconds(run.recipe)
    if run.automatic and seconds > AUTO_SECONDS:
        run.progress.report("the head alone would be fitted, which is much quicker (--tune head)")
    return Result(None, run.recipe, estimated=estimate.total(run.recipe))


def print_nothing(text: str) -> None:
    """Takes a line of progress that nobody needs."""
