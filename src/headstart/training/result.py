"""The result folder of a run: what was requested, what came out, and everything written there."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart._version import __version__
from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object
from headstart.errors import ConfigError, MissingExtraError
from headstart.metrics.calibration import confidence_of
from headstart.metrics.conformal import with_sets
from headstart.pipelines.base import read_results
from headstart.progress import duration, metric_text
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation, Task
from headstart.tasks.result import Result
from headstart.training.predictions import figures_of, write_predictions
from headstart.training.seen import write_seen

RUN, RECIPE, RESULTS = "run.json", "recipe.yaml", "results.json"


@dataclass(frozen=True)
class Request:
    """What was requested, as `run.json` holds it for `--resume`.

    `free_side` is whether a fitted head may take images of another side than the recipe's.
    `automatic` is whether a head is fitted first and it is not decided yet whether every weight is
    trained, `fixed` whether values of full training were given.
    """

    data: str
    model: str
    task: str
    revision: str | None
    options: dict[str, Any]
    recipe: dict[str, Any]
    draws: int = 1
    free_side: bool = False
    automatic: bool = False
    fixed: bool = False

    def write(self, folder: Path) -> None:
        """Writes `run.json`."""
        atomic_write(folder / RUN, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """The request of the run in a folder.

        Raises:
            ConfigError: There is none, or it is damaged.
        """
        path = folder / RUN
        if not path.exists():
            raise ConfigError(
                f"{folder} holds no run to go on with; leave --resume out to start one"
            )
        return as_dataclass(cls, read_object(path, ConfigError), path, ConfigError)


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


def write_result(
    task: Task, model: nn.Module, result: Result, request: Request, device: torch.device
) -> dict[str, Any]:
    """Writes model, processor, recipe, predictions and numbers.

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
    write_seen(out, task)
    if evaluation is not None:
        evaluation.max_error = request.options["extra"].get("max_error")
        calibration = evaluation.calibration
        if calibration and (found := confidence_of(calibration, evaluation.max_error)):
            details = evaluation.details
            with_sets(found, details["logits"], details["labels"]).write(out)
    if result.reference is not None:
        result.reference.write(out)
    write_predictions(out, task, result.evaluations)
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
    return values


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
        f"{evaluation.split} {task.headline.replace('_', ' ')} {value}{low_high} on"
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
