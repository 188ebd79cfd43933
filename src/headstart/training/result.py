"""The result folder of a run: begun, finished, and everything that is written there."""

import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart._version import __version__
from headstart.checkpoint import atomic_write
from headstart.errors import ConfigError, HeadstartError, MissingExtraError, TrainingInterrupted
from headstart.metrics.calibration import confidence_of
from headstart.metrics.conformal import with_sets
from headstart.pipelines.base import read_results
from headstart.progress import duration, metric_text, metric_title
from headstart.recipe import Recipe
from headstart.report.write import PAGES, write_pages
from headstart.tasks.base import Evaluation, Task
from headstart.tasks.result import Result, Spread
from headstart.training.lock import locked
from headstart.training.log import read_metrics
from headstart.training.predictions import figures_of, write_predictions
from headstart.training.request import RESULTS, RUN, Request, Run, Workspace, saved_run
from headstart.training.seen import write_seen
from headstart.training.tuning import HEAD

RECIPE = "recipe.yaml"
DRAWS = "draws"  # of the other draws, in the result folder
Seen = Callable[[int], None]
PARTS = 7  # of a result folder: model, examples, confidence, predictions, numbers, card, report


@contextmanager
def stoppable(run: Run) -> Iterator[None]:
    """Says of a run that is stopped inside the block how to go on.

    Raises:
        TrainingInterrupted: It was stopped.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"stopped before the result was complete; to go on: {resume_command(run)}"
        ) from None


def unseen(count: int) -> None:
    """Takes how many parts are written, where nobody is shown it."""


def begin(run: Run, full: Recipe | None = None) -> None:
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


def resume_command(run: Run) -> str:
    """The command that goes on with an interrupted run."""
    home = run.out.parents[1] if run.out.parent.name == DRAWS else run.out
    command = f"headstart train {run.request.data} --out {home} --resume"
    if run.world.size > 1:
        command = f"torchrun --nproc-per-node {run.world.size} -m {command}"
        command += " --fsdp" * run.world.sharded
    return command + " --tensorboard" * run.tensorboard


def finish(run: Run, network: nn.Module, result: Result) -> Result:
    """Writes the result folder: first the model and its numbers, then the report."""
    if run.others:
        result.spread = spread_of(result, run.others)
    if run.world.is_main:
        if not (run.out / RUN).is_file():
            raise ConfigError(
                f"the result folder {run.out} was removed during the run; nothing was written"
            )
        result.seconds = time.perf_counter() - run.began
        with (
            stoppable(run),
            run.progress.counting("writing results and report", PARTS, "parts") as seen,
        ):
            values = write_result(run.task, network, result, run.request, run.world.device, seen)
            write_report(run, result, values, seen)
        remove_working_files(run.out)
        result.seconds = time.perf_counter() - run.began
        run.progress.report(summary(run.task, result))
        if result.spread is not None:
            run.progress.report(result.spread.text(run.task.headline))
        if result.forecast is not None:
            run.progress.report(result.forecast.text())
    run.world.barrier()
    return result


def write_result(
    task: Task,
    model: nn.Module,
    result: Result,
    request: Request,
    device: torch.device,
    seen: Seen = unseen,
) -> dict[str, Any]:
    """Writes model, processor, recipe, predictions and numbers.

    `seen` receives how many more of the `PARTS` are written.

    Returns:
        What `results.json` holds; it is written last, and its presence means that the result is
        complete.
    """
    out, evaluation = result.folder, result.evaluation
    assert out is not None
    task.finish(model)
    saved: Any = model
    saved.save_pretrained(out)
    task.save(out)
    write_recipe(out, result.recipe)
    # a head that was kept has not the recipe of the training that it was compared with
    dataclasses.replace(request, recipe=result.recipe.to_dict()).write(out)
    seen(1)
    write_seen(out, task)
    seen(1)
    if evaluation is not None:
        evaluation.max_error = request.options["extra"].get("max_error")
        write_confidence(out, evaluation)
    if result.reference is not None:
        result.reference.write(out)
    seen(1)
    write_predictions(out, task, result.evaluations)
    seen(1)
    values = {
        "task": task.result_task,
        "model": request.model,
        "data": Path(request.data).name,
        "headline": task.headline,
        "evaluations": {s: figures_of(task, each) for s, each in result.evaluations.items()},
        "draws": result.spread and result.spread.to_dict(),
        "enough": result.forecast and result.forecast.to_dict(),
        "heads": result.trials,
        "splits": task.splits,
        "notes": task.found()[1:] + [f"to keep the budget: {each}" for each in result.given_up],
        "seed": result.recipe.seed,
        "data_fingerprint": task.fingerprint,
        "seconds": round(result.seconds, 2),
        "estimated_seconds": result.estimated and round(result.estimated, 2),
        "device": device_name(device),
        "versions": versions(),
        "differences": saved.config.differences(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic_write(out / RESULTS, json.dumps(values, indent=2) + "\n")
    seen(1)
    return values


def write_confidence(folder: Path, evaluation: Evaluation) -> None:
    """Writes `confidence.json` of a classifier that was evaluated on enough examples."""
    calibration = evaluation.calibration
    if calibration and (found := confidence_of(calibration, evaluation.max_error)):
        details = evaluation.details
        with_sets(found, details["logits"], details["labels"]).write(folder)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml`, which `--config` reads again."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "train") from None
    text = yaml.safe_dump(recipe.relevant(), sort_keys=False, allow_unicode=True)
    atomic_write(folder / RECIPE, text)


def summary(task: Task, result: Result) -> str:
    """The last line of a run."""
    evaluation, time = result.evaluation, duration(result.seconds)
    if evaluation is None:
        return f"done in {time}; not evaluated, for no data was held out: {result.folder}"
    bounds = [metric_text(task.headline, bound) for bound in evaluation.interval or ()]
    low_high = f" (95 % interval {' to '.join(bounds)})" if bounds else ""
    expected = f" (expected {duration(result.estimated)})" if result.estimated else ""
    value = metric_text(task.headline, evaluation.metrics[task.headline])
    return (
        f"{evaluation.split} {metric_title(task.headline)} {value}{low_high} on"
        f" {evaluation.examples} examples, after {time}{expected}; the result is in"
        f" {result.folder}"
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import numpy
    import PIL

    return {
        "headstart": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def device_name(device: torch.device) -> str:
    """The processor that trained, with its number of threads, or the accelerator's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{platform.machine()} {device.type}, {threads}"


def write_report(run: Run, result: Result, values: Mapping[str, Any], seen: Seen = unseen) -> None:
    """Writes report and model card; one that fails never loses the run.

    `seen` receives how many more of the `PARTS` are written.
    """
    file = run.out / "metrics.jsonl"
    try:
        metrics = read_metrics(file) if file.exists() else []
        write_pages(run.task, result, values, metrics, seen)
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
        run.progress.report(
            f"the report could not be written ({type(error).__name__}: {error}); the model and"
            f" results.json in {run.out} are complete"
        )


def remove_working_files(out: Path) -> None:
    """Removes what only a run that goes on needs."""
    for name in ("cache", "checkpoints", DRAWS, HEAD):
        shutil.rmtree(out / name, ignore_errors=True)


def remove_drafts(out: Path) -> None:
    """Removes what a killed process had not finished writing."""
    for path in out.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def finished(request: Request, space: Workspace) -> Result:
    """The result of a run that is finished.

    Its report is made now if the process was killed after the results and before it.
    """
    out, world = space.out, space.world
    recipe = Recipe.from_dict(request.recipe)
    result = Result(out, recipe, saved_evaluations(out), spread=read_spread(out))
    whole = all((out / name).is_file() for name in PAGES)
    what = "nothing to do" if whole else "its report is written now"
    space.progress.report(f"the run in {out} is finished: {what}")
    if not world.is_main:
        return result
    with locked(out):
        remove_drafts(out)
        if not whole:
            run = saved_run(request, dataclasses.replace(space, workers=None))
            network = run.task.attach(str(out)).eval().to(world.device)
            run.task.prepare(None, tuple(result.evaluations))
            result.evaluations = {
                split: run.task.evaluate(network, split, world.device)
                for split in result.evaluations
            }
            for each in result.evaluations.values():
                each.max_error = request.options["extra"].get("max_error")
            write_report(run, result, read_results(out))
        remove_working_files(out)
    return result


def saved_evaluations(out: Path) -> dict[str, Evaluation]:
    """The evaluations that a finished run saved.

    Raises:
        FileFormatError: `results.json` is damaged.
    """
    found = {}
    for split, each in read_results(out)["evaluations"].items():
        interval = each["confidence_interval_95"]
        bounds = tuple(interval) if interval else None
        found[split] = Evaluation(split, each["examples"], each["metrics"], bounds)
    return found


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
