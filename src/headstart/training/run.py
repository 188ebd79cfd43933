"""A whole run: request → data → recipe → budget → fit → evaluate → write.

`headstart.train(...)` and `headstart train` are both `train` here, `headstart.evaluate(...)` and
`headstart evaluate` both `evaluate`.
"""

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart.auto import AutoConfig, AutoImageProcessor, check_task
from headstart.data.labels import kind_named
from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError, DataError, HeadstartError, TrainingInterrupted
from headstart.features.choice import Found, Views, read_states, states_of, tune_head
from headstart.features.enough import forecast
from headstart.features.extract import extractor_of
from headstart.features.head import HeadCost, head_cost
from headstart.features.memory import FILE as MEMORY
from headstart.features.memory import memory_of
from headstart.features.portfolio import View
from headstart.features.unknown import reference_of
from headstart.loading import family_of
from headstart.package_data import MADE_FOR_HEADS
from headstart.pipelines.base import read_results
from headstart.progress import Progress, Silent, duration, progress_for_python
from headstart.recipe import (
    LORA_RATE,
    RECIPES,
    Recipe,
    named_recipe,
    read_recipe_file,
    resolve_recipe,
)
from headstart.registry import locate
from headstart.report.write import PAGES, write_pages
from headstart.tasks import Evaluation, HeadTask, Task, task_class
from headstart.tasks.image_classification import processor_side
from headstart.tasks.result import Result
from headstart.tasks.semantic_segmentation import CLASSES
from headstart.training.checkpoints import load_checkpoint
from headstart.training.draws import FOLDER, read_spread, run_draws, spread_of
from headstart.training.estimate import (
    LONG,
    RESERVE,
    SMALL,
    Estimate,
    fit_budget,
    measure,
    parse_budget,
    peak_memory,
    smaller_sides,
)
from headstart.training.lock import LOCK, locked
from headstart.training.loop import (
    DivergedError,
    Loop,
    MetricsLog,
    fitting_micro_batch,
    free_memory,
    read_metrics,
)
from headstart.training.result import (
    RESULTS,
    RUN,
    Request,
    saved_evaluations,
    summary,
    write_recipe,
    write_result,
)
from headstart.training.seen import trained_on
from headstart.training.tuning import (
    HEAD,
    HEAD_PART,
    Start,
    begin_with,
    choose_rate,
    cut_steps,
    examples_of,
    planned,
    rounds_of,
    within,
)
from headstart.training.world import World, whole

# The report lies above training, which works without it: it is reached by name.
QUICK = 64  # examples among which a few are timed before every weight is trained
AUTO_SECONDS = 600.0  # of full training, from which on `tune="auto"` takes the head alone
# recipe values that also have an effect on a head alone; any other asks for full training
SHARED_VALUES = ("seed", "crop", "class_weights", "max_length", "tune")


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
    out, began = Path(out), time.perf_counter()
    deadline = None if budget is None else began + parse_budget(budget)
    world = World(device, fsdp)
    progress = (progress or progress_for_python()) if world.is_main else Silent()
    if resume:
        request = dataclasses.replace(Request.read(out), data=str(data))  # it may have moved
        if (out / RESULTS).exists():
            return _finished(request, out, world, progress)
        _check_same(request, model, recipe_values, out)
        task_found = _read(request, workers)
        resolved, automatic = Recipe.from_dict(request.recipe), request.automatic
        fixed = request.fixed
    else:
        model = model or task_class(task).default_model
        if model is None:
            raise ConfigError("which model? Give --model NAME; `headstart models` lists them")
        if not dry_run:
            _check_free(out, overwrite)
        _check_options(shots, draws, max_error)
        file = read_recipe_file(config) if config else {}
        extra = {"validation": validation, "test": test, "max_error": max_error}
        options: dict[str, Any] = {
            "seed": recipe_values.get("seed") or file.get("seed") or 0,
            "problem_type": None if problem_type is None else kind_named(problem_type),
            "shots": shots,
            "val_fraction": val_fraction,
            "skip_bad": skip_bad,
            "columns": dict(columns or {}),
            "workers": workers,
            "extra": _absolute(extra | dict(task_options or {})),
        }
        name = str(_absolute({"model": model})["model"])
        request = Request(str(data), name, task_class(task).name, revision, options, {}, draws)
        task_found = _read(request, workers)
        free_side = recipe_values.get("crop") is None and file.get("crop") is None
        fixed = _is_fixed(recipe_values, bool(config or recipe or epochs or fsdp))
        tune = recipe_values.get("tune")
        automatic = not fixed if tune is None else tune == "auto"
        values = {k: v for k, v in recipe_values.items() if (k, v) != ("tune", "auto")}
        resolved = _resolve(name, task_found, config, recipe, values, revision, epochs)
        if automatic and isinstance(task_found, HeadTask) and name in MADE_FOR_HEADS:
            resolved = resolved.head_only()
        request = dataclasses.replace(request, recipe=resolved.to_dict(), free_side=free_side)
        request = dataclasses.replace(request, automatic=automatic, fixed=fixed)
    if resolved.tune == "head" and not isinstance(task_found, HeadTask):
        raise ConfigError(f"--tune head is not available for {request.task}; use --tune full")
    for line in task_found.found():
        progress.say(line)
    run = Run(task_found, request, resolved, out, world, progress, began)
    run.workers, run.deadline, run.tensorboard = workers, deadline, tensorboard
    run.automatic = automatic and isinstance(task_found, HeadTask)
    run.fixed = fixed
    both = resolved.tune == "full" and run.may_start_from_head
    first = resolved.head_only() if both else resolved
    progress.say(describe(first, request.model))
    if automatic and resolved.tune == "head":
        progress.say("its features are made for a head alone; --tune full trains every weight")
    if resolved.precision == "fp16" and world.device.type == "cpu":
        progress.say(
            "float16 works on a CPU, with scaled gradients; bfloat16 (--precision bf16) needs none"
            " and keeps float32's range"
        )
    if dry_run:
        return _estimate(run)
    with world.lost_processes(), locked(out) if world.is_main else contextlib.nullcontext():
        if overwrite and not resume and world.is_main:
            _clear(out)
        if resume:
            _remove_drafts(out)
        return _carry_out(run, resume)


@dataclasses.dataclass
class Run:
    """A run whose data is read and whose recipe is known.

    Args:
        task: The data as the task has read it.
        request: What was requested.
        recipe: Resolved; a budget may change it.
        out: Result folder.
        world: This process among the others.
        progress: Shows what happens.
        began: `time.perf_counter()` of the call.
        workers: Threads that read and decode.
        deadline: `time.perf_counter()` at which training has to end; None is never.
        tensorboard: Whether the metrics also go to `tensorboard/`.
        automatic: Whether the head alone is taken where full training takes long.
        fixed: Whether values of full training were given.
        others: Results of the other draws.
    """

    task: Task
    request: Request
    recipe: Recipe
    out: Path
    world: World
    progress: Progress
    began: float
    workers: int | None = None
    deadline: float | None = None
    tensorboard: bool = False
    automatic: bool = False
    fixed: bool = False
    others: list[Result] = dataclasses.field(default_factory=list)

    @property
    def may_start_from_head(self) -> bool:
        """Whether a head is fitted first: something is held out to compare it on."""
        return self.automatic and self.world.size == 1 and bool(self.held_out)

    @property
    def held_out(self) -> list[str]:
        """Splits beside the training data, the one that decides between models first."""
        return [split for split in SPLITS[1:] if split in self.task.splits]

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.perf_counter()


# Request ------------------------------------------------------------------------------------------


def _check_options(shots: int | None, draws: int, max_error: float | None) -> None:
    if draws > 1 and shots is None:
        raise ConfigError(
            f"draws={draws} are choices of so many examples of each class; say how many with"
            " shots (--shots)"
        )
    if max_error is not None and not 0 < max_error < 1:
        raise ConfigError(f"max_error={max_error:g}; it must be above 0 and below 1, such as 0.05")


def _read(request: Request, workers: int | None) -> Task:
    """The data of a request."""
    options = DataOptions(**(request.options | {"workers": workers}))
    return task_class(request.task).read(request.data, options)


def _is_fixed(values: Mapping[str, Any], full: bool) -> bool:
    """Whether any value of full training is given."""
    return full or any(
        value is not None for key, value in values.items() if key not in SHARED_VALUES
    )


def _resolve(
    model: str,
    task: Task,
    config: str | Path | None,
    recipe: str | None,
    values: Mapping[str, Any],
    revision: str | None,
    epochs: float | None,
) -> Recipe:
    """The recipe from its four layers; the family's own is a function that the family names."""
    family, _ = family_of(model, revision=revision)
    check_task(family, task.result_task)
    facts = task.facts()
    asked = recipe or (read_recipe_file(config).get("recipe") if config else None)
    if asked is not None:
        base = named_recipe(asked, facts)
    else:
        facts = dataclasses.replace(
            facts, config=AutoConfig.from_pretrained(model, revision=revision)
        )
        if not family.reads_text:
            side = processor_side(AutoImageProcessor.from_pretrained(model, revision=revision))
            facts = dataclasses.replace(facts, model_image_size=side)
        base = locate(family.recipe)(facts) if family.recipe else RECIPES["finetune"](facts)
    resolved = resolve_recipe(base, config, values)
    if epochs is not None:
        if values.get("steps") is not None:
            raise ConfigError("epochs and steps both say how long to train; give one of them")
        if not 0 < epochs < float("inf"):
            raise ConfigError(f"epochs={epochs}; it must be above 0")
        steps = max(1, round(epochs * facts.examples / resolved.batch_size))
        resolved = resolve_recipe(base, config, dict(values) | {"steps": steps})
    if resolved.tune == "head" and not values.get("crop"):
        resolved = resolved.head_only()
    return resolved


def _absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as `run.json` holds them: existing paths are absolute, to resume from anywhere."""
    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in options.items()
        if value is not None
    }
    return {
        key: (
            str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value
        )
        for key, value in given.items()
    }


def _check_same(
    request: Request, model: str | Path | None, values: Mapping[str, Any], out: Path
) -> None:
    """Refuses options of a resumed run that differ from those it was started with."""
    if model is not None and str(_absolute({"model": model})["model"]) != request.model:
        raise ConfigError(
            f"the run in {out} tunes {request.model}, not {model}; leave --model out, or choose"
            " another --out"
        )
    for key, value in values.items():
        if value is not None and request.recipe.get(key) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise ConfigError(
                f"the run in {out} has {key}={request.recipe.get(key)}, not {value}; leave it out,"
                " or choose another --out"
            )


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuses a result folder that holds something, unless it is a run to overwrite."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if (out / RUN).exists():
        if overwrite:
            return
        if (out / RESULTS).exists():
            raise ConfigError(f"{out} holds a finished run; choose another --out")
        raise ConfigError(
            f"{out} holds an unfinished run; go on with --resume, or choose another --out"
        )
    if out.exists() and any(
        path.name not in ("cache", "student", HEAD, LOCK) for path in out.iterdir()
    ):
        raise ConfigError(
            f"{out} is not empty; choose another --out, so that nothing there is overwritten"
        )


def _clear(out: Path) -> None:
    """Removes a run; only folders that hold one get here."""
    if (out / RUN).exists():
        for path in out.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _finished(request: Request, out: Path, world: World, progress: Progress) -> Result:
    """The result of a run that is finished.

    Its report is made now if the process was killed after the results and before it.
    """
    recipe = Recipe.from_dict(request.recipe)
    result = Result(out, recipe, saved_evaluations(out), spread=read_spread(out))
    whole = all((out / name).is_file() for name in PAGES)
    what = "nothing to do" if whole else "its report is written now"
    progress.say(f"the run in {out} is finished: {what}")
    if not world.is_main:
        return result
    with locked(out):
        _remove_drafts(out)
        if not whole:
            task = _read(request, None)
            network = task.attach(str(out)).eval().to(world.device)
            task.prepare(None, tuple(result.evaluations))
            run = Run(task, request, recipe, out, world, progress, time.perf_counter())
            result.evaluations = {
                split: task.evaluate(network, split, world.device) for split in result.evaluations
            }
            for each in result.evaluations.values():
                each.max_error = request.options["extra"].get("max_error")
            _write_pages(run, result, read_results(out))
        _remove_working_files(out)
    return result


def _remove_working_files(out: Path) -> None:
    """Removes what only a run that goes on needs."""
    for name in ("cache", "checkpoints", FOLDER, HEAD):
        shutil.rmtree(out / name, ignore_errors=True)


def _remove_drafts(out: Path) -> None:
    """Removes what a killed process had not finished writing."""
    for path in out.glob(".*.tmp"):
        path.unlink(missing_ok=True)


# Fit ----------------------------------------------------------------------------------------------


def _carry_out(run: Run, resume: bool) -> Result:
    """A run; where there are several draws of the examples, after those of the others."""
    request, world = run.request, run.world
    seconds = None if run.deadline is None else run.left / request.draws

    def fit(each: Run, resume: bool) -> Result:
        each.deadline = None if seconds is None else time.perf_counter() + seconds
        if each.recipe.tune == "head":
            return fit_head_run(each)
        if each.may_start_from_head or Start.read(each.out) is not None:
            return fit_both_run(each, resume and not each.automatic)
        return fit_full_run(each, resume)

    def draw(request: Request, out: Path, resume: bool) -> Result:
        recipe = Recipe.from_dict(request.recipe)
        task = _read(request, run.workers)
        began = time.perf_counter()
        other = dataclasses.replace(
            run, task=task, request=request, recipe=recipe, out=out, began=began, others=[]
        )
        return fit(other, resume)

    if request.draws > 1:
        if world.is_main and not resume:
            request.write(run.out)
        world.barrier()
        run.others = run_draws(
            request, run.out, draw, run.progress.say, run.task.headline, world.is_main
        )
    return fit(run, resume and (request.draws == 1 or (run.out / "checkpoints").exists()))


def fit_full_run(run: Run, resume: bool) -> Result:
    """Trains every weight."""
    task, world = run.task, run.world
    loop = _loop(run, resume)
    if resume:
        _restore(run, loop)
    estimate = measure(loop)
    given_up: list[str] = []
    full_seconds = estimate.seconds(run.recipe)
    if run.automatic and not resume and run.deadline is None and full_seconds > AUTO_SECONDS:
        _no_full(run, full_seconds)
        run.recipe = run.recipe.head_only()
        return fit_head_run(run)
    if run.deadline is not None and not resume:
        small = run.automatic and sum(p.numel() for p in loop.model.parameters()) < SMALL
        fitted = fit_budget(run.recipe, estimate, run.left, isinstance(task, HeadTask), small)
        run.recipe, given_up = world.broadcast(fitted)
        if given_up:
            run.progress.say(f"to keep the budget: {', '.join(given_up)}")
            if run.recipe.tune == "head":
                return fit_head_run(run, given_up)
            loop = _loop(run, resume)
            estimate = measure(loop)
    left = run.recipe.steps - loop.step
    expected = estimate.seconds(run.recipe, left)
    run.progress.say(estimate.text(run.recipe, left))
    if expected > LONG and world.device.type == "cpu" and run.deadline is None:
        run.progress.say(
            "that is long: --tune head computes features once and is much quicker; --budget 30m"
            " reduces the recipe"
        )
    if not resume:
        _begin(run)
    network, result = _train(run, loop, estimate, given_up)
    return _finish(run, network, result)


def _train(
    run: Run, loop: Loop, estimate: Estimate, given_up: list[str]
) -> tuple[nn.Module, Result]:
    """Runs the loop to its end or to the deadline.

    Returns:
        The network as it is saved, and the result, which is not written yet.
    """
    task, world = run.task, run.world
    expected = estimate.seconds(run.recipe, run.recipe.steps - loop.step)
    # At the deadline the last weights are evaluated once more against the best so far.
    examples = sum(task.splits[split] for split in run.held_out)
    evaluation = (examples + task.splits.get("validation", 0)) * estimate.forward
    with run.progress:
        loop.run(None if run.deadline is None else run.deadline - evaluation)
    if loop.step < run.recipe.steps:
        given_up.append(f"stopped after step {loop.step} of {run.recipe.steps}")
    if loop.average is not None:
        loop.average.swap(loop.model)
    network, evaluations = _merged(run, loop), {}
    start = Start.read(run.out)
    if start is not None and start.mirrored:
        config: Any = network.config
        config.average_mirrored = True
    if world.is_main:
        for split in run.held_out:
            evaluations[split] = task.evaluate(network, split, world.device)
    if world.is_main and "validation" in evaluations:
        loop.log.write({"step": loop.step, "validation": evaluations["validation"].metrics})
        loop.log.close()
    return network, Result(run.out, run.recipe, evaluations, 0.0, expected, given_up)


def _loop(run: Run, resume: bool, prepared: bool = False) -> Loop:
    """Model, data and loop as the recipe says; a new run finds its micro-batch."""
    world, task = run.world, run.task
    network = _network(run)
    if not prepared:
        task.prepare(run.out / "cache" / str(world.rank))
    if not resume:
        size = fitting_micro_batch(
            task, network.to(world.device), run.recipe, world, run.progress.say
        )
        run.recipe = dataclasses.replace(run.recipe, micro_batch=size)
    identity = {"recipe": run.recipe.to_dict(), "fingerprint": task.fingerprint}
    return Loop(
        task,
        network,
        run.recipe,
        run.out,
        world,
        run.progress,
        workers=run.workers,
        identity=identity,
        resume_with=_resume_command(run),
        board=run.tensorboard,
    )


def _resume_command(run: Run) -> str:
    """The command that goes on with an interrupted run."""
    home = run.out.parents[1] if run.out.parent.name == FOLDER else run.out
    command = f"headstart train {run.request.data} --out {home} --resume"
    if run.world.size > 1:
        command = f"torchrun --nproc-per-node {run.world.size} -m {command}"
        command += " --fsdp" * run.world.sharded
    return command + " --tensorboard" * run.tensorboard


def _network(run: Run) -> nn.Module:
    """The network as it is trained; a new head and LoRA's matrices are alike in every process."""
    torch.manual_seed(run.recipe.seed)
    if isinstance(run.task, HeadTask) and Start.read(run.out) is not None:
        return begin_with(run.task, run.out, run.recipe)
    network = run.task.build(run.request.model, run.recipe, revision=run.request.revision)
    if run.recipe.lora_rank is not None:
        from headstart.training.lora import add_lora

        add_lora(network, run.recipe)
    return network


def _merged(run: Run, loop: Loop) -> nn.Module:
    """The trained network as it is saved: in one piece, LoRA's matrices added to their weights."""
    network = loop.model
    if run.world.sharded:
        state = whole(loop.model.state_dict())
        network = _network(run)
        network.load_state_dict(state)
    network.to(run.world.device).eval()
    if run.recipe.lora_rank is not None:
        from headstart.training.lora import merge_lora

        merge_lora(network)
    return network


def _restore(run: Run, loop: Loop) -> None:
    """Goes back to the newest checkpoint.

    Raises:
        DataError: The data has changed since.
    """
    checkpoint = load_checkpoint(run.out / "checkpoints")
    if checkpoint is None:
        run.progress.say("no checkpoint was written yet: starting from the beginning")
        loop.log.cut(0)
        return
    for damaged in checkpoint.damaged:
        run.progress.say(f"passed over a damaged checkpoint: {damaged}")
    if checkpoint.state.get("fingerprint") != run.task.fingerprint:
        raise DataError(
            "the data is not what the run was started with: images, labels or splits changed; start"
            " anew with another --out"
        )
    loop.restore(checkpoint)
    run.progress.say(f"going on after step {loop.step} of {loop.recipe.steps}")


def _head_parts(run: Run) -> tuple[Views, HeadCost]:
    """The network whose head is fitted, reading all its stages, and what that will cost."""
    task, device = run.task, run.world.device
    assert isinstance(task, HeadTask)
    network = task.build(run.request.model, run.recipe, revision=run.request.revision)
    network.to(device).eval()
    usual = task.head(network).in_features
    if states := states_of(network):
        read_states(network, task.head(network), states)
    extractor = extractor_of(task, network, device)
    cost = run.world.broadcast(head_cost(task, extractor, peak_memory(device)))
    return Views(task, extractor, usual, run.progress), cost


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


def fit_head_run(run: Run, given_up: list[str] | None = None) -> Result:
    """Fits the last layer on features that are computed once."""
    fitted = _fit_head(run, given_up or [])
    _begin(run)
    return _finish_head(run, fitted)


def _fit_head(
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
    views, cost = _head_parts(run)
    for side in smaller_sides(run.recipe):
        if cost.seconds > RESERVE * run.left:
            run.recipe = dataclasses.replace(run.recipe, crop=side)
            views, cost = _head_parts(run)
            run.progress.say(f"to keep the budget: images of {side} pixels")
            given_up.append(f"images of {side} pixels")
    sides = task.sides()[: None if run.request.free_side else 1]
    cost = cost.with_search(sides)
    run.progress.say(cost.text())
    free = free_memory(torch.device("cpu"))
    if cost.memory - peak_memory(run.world.device) > free:
        raise ConfigError(
            f"fitting this head needs about {cost.memory / 2**30:.1f} GB of memory, and"
            f" {free / 2**30:.1f} GB are free; train on fewer examples (--shots), take a smaller"
            " model, or --tune full"
        )
    if cost.seconds - cost.search > run.left:
        run.progress.say(
            "that is more than the budget, and nothing is left to give up; a smaller model"
            " takes less"
        )
    limit = min(part * RESERVE * run.left, AUTO_SECONDS)

    def afford(view: View) -> bool:
        """Whether the features of all examples fit into the budget, or into ten minutes."""
        every = [digest for split in task.feature_digests().values() for digest in split]
        return views.seconds(view, every) < min(limit, RESERVE * run.left)

    with run.progress:
        try:
            views.compute(sides[0] if sides else None)
            _begin(run, full)  # from here on a run that is stopped goes on with --resume
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
                f" {_resume_command(run) if (run.out / RUN).exists() else 'the same command'}"
            ) from None
    for note in found.notes:
        run.progress.say(note)
    run.recipe = dataclasses.replace(run.recipe, crop=task.side)
    task.notes += found.notes
    return Fitted(found, views, cost, given_up)


def _finish_head(run: Run, fitted: Fitted) -> Result:
    """Writes the result of a fitted head."""
    found = fitted.found
    cost, given_up = fitted.cost.seconds, fitted.given_up
    result = Result(run.out, run.recipe, found.evaluations, 0.0, cost, given_up)
    result.trials = found.trials
    if run.world.is_main:
        _write_memory(run, fitted, run.out)
    return _write_head(run, fitted.network, result)


def _write_memory(run: Run, fitted: Fitted, folder: Path) -> None:
    """Writes what `update`, `forget` and `plan` need to know of the examples."""
    task, choice = run.task, fitted.found.choice
    if isinstance(task, HeadTask) and task.name == "image-classification":
        store = extractor_of(task, fitted.network, run.world.device).store()
        weights = run.recipe.class_weights
        memory_of(task, choice, fitted.views.usual, weights, store).write(folder)


def _write_head(run: Run, model: nn.Module, result: Result) -> Result:
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
        with run.progress:
            result.forecast = forecast(task, finished, run.recipe.seed, run.progress)
        result.reference = reference_of(task, finished, run.recipe.seed)
    return _finish(run, model, result)


def fit_both_run(run: Run, resume: bool) -> Result:
    """Fits a head, trains every weight from there in the time that is left, and keeps the better
    one on held-out data.
    """
    task, given_up = run.task, list[str]()
    start = Start.read(run.out) if resume else None
    if start is None:
        full = run.recipe
        shutil.rmtree(run.out / HEAD, ignore_errors=True)  # of a run that was killed early
        run.recipe = full.head_only()
        fitted = _fit_head(run, [], 1.0 if run.deadline is None else HEAD_PART, full)
        head = run.recipe
        plan = _plan_full(run, full, fitted)
        start = Start.read(run.out)
        if plan is None:
            run.recipe = head
            _begin(run)
            if start is None:
                return _finish_head(run, fitted)
            return _keep_head(run, start, fitted.cost.seconds, [])
        run.recipe, given_up = plan
    assert start is not None
    loop = _loop(run, resume, prepared=not resume)
    if resume:
        _restore(run, loop)
    estimate = measure(loop)
    left = run.recipe.steps - loop.step
    run.progress.say(describe(run.recipe, "all weights, from the fitted head"))
    run.progress.say(estimate.text(run.recipe, left))
    if not resume:
        _begin(run)
    try:
        network, result = _train(run, loop, estimate, given_up)
        value = result.evaluations[start.split].metrics[task.headline]
        note = start.compared(task.headline, value)
    except DivergedError as error:
        note, value = f"{error}; the fitted head is kept", -math.inf
    run.progress.say(note)
    task.notes.append(note)
    if value > start.value:
        result.trials = start.trials
        return _finish(run, network, result)
    return _keep_head(run, start, estimate.seconds(run.recipe), given_up)


def _plan_full(run: Run, full: Recipe, fitted: Fitted) -> tuple[Recipe, list[str]] | None:
    """How every weight is trained from a fitted head, which is saved for it, and what was given up.

    Args:
        run: Its recipe is that of the head.
        full: The recipe of full training.
        fitted: The head.

    Returns:
        None where there is no time for it.
    """
    task, network = run.task, fitted.network
    assert isinstance(task, HeadTask)
    side, examples = task.side, task.splits["train"]
    recipe = planned(full, side, sum(p.numel() for p in network.parameters()), run.fixed)
    names = task.feature_digests()["train"][:QUICK]
    extractor = extractor_of(task, network, run.world.device)
    seconds = extractor.seconds(names, task.feature_sizes(names)) / len(names)
    seconds *= 3 * (1.0 if side is None or recipe.crop is None else (recipe.crop / side) ** 2)
    whole = seconds * examples_of(recipe)
    if run.deadline is None and whole > 2 * AUTO_SECONDS:
        _no_full(run, whole)
        return None
    if 2 * run.left < seconds * examples and not run.fixed:
        run.progress.say("the budget has no time to train every weight: the fitted head is kept")
        return None
    split = run.held_out[0]
    found = fitted.found
    value = found.evaluations[split].metrics[task.headline]
    mirrored = found.choice.candidates[0].view.mirrored
    start = Start(split, value, mirrored, run.recipe.to_dict(), found.trials)
    start.write(run.out, network, task)
    _write_memory(run, fitted, run.out / HEAD)
    run.recipe = recipe
    loop = _loop(run, False)
    estimate = measure(loop)
    if run.deadline is None:
        whole = estimate.seconds(run.recipe)
        if whole > AUTO_SECONDS:
            _no_full(run, whole)
            return None
        return run.recipe, []
    cut, given_up = within(run.recipe, estimate, run.left, side, run.fixed)
    if (cut.crop, cut.resize) != (run.recipe.crop, run.recipe.resize):
        run.recipe = cut
        loop = _loop(run, False)
        estimate = measure(loop)
    too_few = examples_of(cut) < examples or estimate.seconds(cut) > run.left
    if too_few and not run.fixed:
        run.progress.say("the budget has no time to train every weight: the fitted head is kept")
        return None
    steps = 0 if run.fixed else rounds_of(cut, examples)
    if steps:
        rate, losses = choose_rate(lambda each: _trial_loop(run, each), cut, steps)
        tried = ", ".join(f"{each:g}: {loss:.3f}" for each, loss in losses.items())
        run.progress.say(f"learning rate {rate:g}, of (rate: loss of a short trial) {tried}")
        cut, _ = cut_steps(dataclasses.replace(cut, lr=rate), estimate, run.left)
    return cut, given_up


def _no_full(run: Run, seconds: float) -> None:
    """Says why every weight is not trained where no budget asks for it."""
    run.progress.say(
        f"training every weight would take about {duration(seconds)} here: the head alone"
        " is fitted (--tune full trains every weight)"
    )


def _trial_loop(run: Run, recipe: Recipe) -> Loop:
    """A loop from the start that writes nothing."""
    return Loop(run.task, _network(run), recipe, run.out, run.world, Silent(), workers=run.workers)


def _keep_head(run: Run, start: Start, expected: float, given_up: list[str]) -> Result:
    """Writes the result of the fitted head that full training started from."""
    task, device = run.task, run.world.device
    assert isinstance(task, HeadTask)
    run.recipe = Recipe.from_dict(start.recipe)
    recipe = dataclasses.replace(run.recipe, zero_head=False)
    network = task.build(str(run.out / HEAD), recipe).to(device).eval()
    task.problem.use_units()
    extractor = extractor_of(task, network, device)
    digests = task.feature_digests()
    with run.progress:
        every = [name for names in digests.values() for name in names]
        store = extractor.fill(every, run.progress)
    weight, bias = (each.detach().cpu().numpy() for each in extractor.layer.parameters())
    evaluations = {
        split: task.evaluate_scores(split, store[digests[split]] @ weight.T + bias)
        for split in run.held_out
    }
    if run.world.is_main:
        memory = run.out / HEAD / MEMORY
        if memory.is_file():
            shutil.copy2(memory, run.out / MEMORY)
    result = Result(run.out, run.recipe, evaluations, 0.0, expected, given_up)
    result.trials = start.trials
    return _write_head(run, network, result)


def _begin(run: Run, full: Recipe | None = None) -> None:
    """Makes the result folder and saves the request, so that the run can be resumed.

    Args:
        run: Has the recipe.
        full: The recipe of full training, where it is not decided yet whether it follows.
    """
    run.world.barrier()  # every process has seen that the folder is free
    if run.world.is_main:
        recipe, open_ = (full or run.recipe).to_dict(), full is not None
        run.request = dataclasses.replace(run.request, recipe=recipe, automatic=open_)
        run.request.write(run.out)
        write_recipe(run.out, run.recipe)


# Write --------------------------------------------------------------------------------------------


def _finish(run: Run, network: nn.Module, result: Result) -> Result:
    """Writes the result folder: first the model and its numbers, then the report."""
    if run.others:
        result.spread = spread_of(result, run.others)
    if run.world.is_main:
        if not (run.out / RUN).is_file():
            raise ConfigError(
                f"the result folder {run.out} was removed during the run; nothing was written"
            )
        result.seconds = time.perf_counter() - run.began
        values = write_result(run.task, network, result, run.request, run.world.device)
        _write_pages(run, result, values)
        _remove_working_files(run.out)
        result.seconds = time.perf_counter() - run.began
        run.progress.say(summary(run.task, result))
        if result.spread is not None:
            run.progress.say(result.spread.text(run.task.headline))
        if result.forecast is not None:
            run.progress.say(result.forecast.text())
    run.world.barrier()
    return result


def _write_pages(run: Run, result: Result, values: Mapping[str, Any]) -> None:
    """Writes report and model card; one that fails never loses the run."""
    file = run.out / "metrics.jsonl"
    try:
        write_pages(run.task, result, values, read_metrics(file) if file.exists() else [])
    except (
        HeadstartError,
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        run.progress.say(
            f"the report could not be written ({type(error).__name__}: {error}); the model and"
            f" results.json in {run.out} are complete"
        )


def _estimate(run: Run) -> Result:
    """The result of a dry run: what the run would take."""
    if run.recipe.tune == "head":
        views, cost = _head_parts(run)
        cost = cost.with_search(views.task.sides()[: None if run.request.free_side else 1])
        run.progress.say(cost.text())
        return Result(None, run.recipe, estimated=cost.seconds)
    network = _network(run)
    run.task.prepare(None)
    world = run.world
    size = fitting_micro_batch(run.task, network.to(world.device), run.recipe, world, print_nothing)
    run.recipe = dataclasses.replace(run.recipe, micro_batch=size)
    loop = Loop(run.task, network, run.recipe, run.out, world, Silent(), workers=run.workers)
    estimate = measure(loop)
    run.progress.say(estimate.text(run.recipe))
    seconds = estimate.seconds(run.recipe)
    if run.automatic and seconds > AUTO_SECONDS:
        run.progress.say("the head alone would be fitted, which is much quicker (--tune head)")
    return Result(None, run.recipe, estimated=seconds)


def print_nothing(text: str) -> None:
    """Takes a line of progress that nobody needs."""


def describe(recipe: Recipe, model: str) -> str:
    """One line that says what will be done."""
    if recipe.tune == "head":
        size = f" at {recipe.crop} pixels" if recipe.crop else ""
        return (
            f"fitting a new head on the features of {model}{size}; every other weight stays as"
            " it is"
        )
    sides = " → ".join(str(side) for side in (recipe.resize, recipe.crop) if side)
    sizes = f", {sides} pixels" if sides else ""
    shown = ("mixup", "cutmix", "label_smoothing", "weight_decay")
    extras = "".join(f", {name} {value:g}" for name in shown if (value := getattr(recipe, name)))
    extras += (
        f", LoRA of rank {recipe.lora_rank} (without --lr at {LORA_RATE:g} times the recipe's rate)"
        if recipe.lora_rank
        else ""
    )
    return (
        f"tuning {model} with recipe {recipe.name}: {recipe.steps} steps of {recipe.batch_size}"
        f" examples{sizes}, {recipe.optimizer} at {recipe.lr:g} ({recipe.schedule}){extras},"
        f" {recipe.precision}, seed {recipe.seed}"
    )


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Task, Evaluation]:
    """Evaluates a result folder (or any classifier) on labeled data.

    Of data without a validation or test split of its own, the examples that the model was not
    trained on are taken, where the result folder knows them by their content.

    Args:
        model: A result folder, Hub id or authors' name, whose class names the data uses.
        data: As for `train`.
        columns: Columns of a table by role.
        skip_bad: Leave out unreadable examples.
        split: Which split of the data; None takes the test data, else the validation data, else
            what was held out, else everything.
        task_options: As for `train`.
        device: Where to compute.
        workers: Threads that read and decode.
        progress: Gets lines about what is evaluated; None shows them in notebooks only.

    Returns:
        The task that has read the data, and the evaluation.

    Raises:
        DataError: The data cannot be read, or has no such split.

    Example:
        >>> import headstart
        >>> _, found = headstart.evaluate("runs/photos", "photos/")  # doctest: +SKIP
        >>> found.split, found.metrics["accuracy"]  # doctest: +SKIP
        ('validation', 0.925)
    """
    saved = Path(model) / RESULTS
    task_name = read_results(Path(model))["task"] if saved.is_file() else "image-classification"
    config, extra = AutoConfig.from_pretrained(model), _absolute(task_options or {})
    labels = [name for _, name in sorted(config.id2label.items())]
    classes = Path(model) / CLASSES
    if task_name == "semantic-segmentation" and classes.is_file():
        extra = {"classes": str(classes)} | extra
    kind = config.problem_type
    if kind is None and task_name == "image-classification":
        kind = "single_label_classification"
    options = DataOptions(
        classes=labels,
        columns=dict(columns or {}),
        skip_bad=skip_bad,
        problem_type=kind,
        workers=workers,
        extra=extra,
    )
    task = task_class(task_name).read(data, options)
    chosen = split or next(name for name in ("test", "validation", "train") if name in task.splits)
    if chosen not in task.splits:
        raise DataError(f"{data} has no {chosen} data; it has {', '.join(task.splits)}")
    notes = _held_out(Path(model), task, chosen, split is None)
    for note in notes:
        (progress or progress_for_python()).say(note)
    network = task.attach(model).eval()
    # an optimized model stays where it was optimized
    fixed = getattr(network, "fixed_device", None)
    place = World(device or fixed).device
    task.prepare(None, (chosen,))
    evaluation = task.evaluate(network.to(place), chosen, place)
    evaluation.notes = notes
    return task, evaluation


def _held_out(folder: Path, task: Task, split: str, choose: bool) -> list[str]:
    """Leaves out examples that the model was trained on where the data is not split, and says
    so.
    """
    seen = trained_on(folder, task, split)
    if seen is None or not seen.any():
        return []
    count = int(seen.sum())
    if choose and split == "train" and not seen.all():
        task.keep(split, np.flatnonzero(~seen))
        return [
            f"evaluating the {len(seen) - count} of {len(seen)} examples that the model was not"
            f" trained on (--split {split} evaluates all)"
        ]
    return [
        f"warning: the model was trained on {count} of these {len(seen)} examples, so the result is"
        " too good"
    ]
