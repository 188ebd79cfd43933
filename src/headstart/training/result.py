"""The result folder of a run.

What was asked for, what came out, and everything that is written there.
"""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart._version import __version__
from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object
from headstart.errors import ConfigError, MissingExtraError
from headstart.metrics.calibration import judged_confidence
from headstart.pipelines.base import read_results
from headstart.progress import duration, metric_text
from headstart.recipe import Recipe
from headstart.report.page import write_card, write_report
from headstart.tasks.base import Evaluation, Task
from headstart.training.loop import read_metrics

if TYPE_CHECKING:
    from headstart.training.draws import Spread

RUN, RECIPE, RESULTS = "run.json", "recipe.yaml", "results.json"


@dataclass
class Result:
    """What a run made.

    Args:
        folder: The result: model, processor, recipe, metrics and report. None after a dry run.
        recipe: The resolved recipe.
        evaluations: By split.
        seconds: Time that training took, in this process.
        estimated: Time that was expected before it began.
        given_up: What a budget of time cost.
        spread: Results of all draws, where there were several.
    """

    folder: Path | None
    recipe: Recipe
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float = 0.0
    estimated: float | None = None
    given_up: list[str] = field(default_factory=list)
    spread: "Spread | None" = None

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation that counts: of the test data, else of the validation data."""
        return self.evaluations.get("test") or self.evaluations.get("validation")

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of `judged`; empty where no data was held out."""
        return self.judged.metrics if self.judged else {}


@dataclass(frozen=True)
class Request:
    """What was asked for, as it is kept in `run.json` for `--resume`."""

    data: str
    model: str
    task: str
    revision: str | None
    options: dict[str, Any]
    recipe: dict[str, Any]
    draws: int = 1

    def write(self, folder: Path) -> None:
        """Writes `run.json`."""
        atomic_write(folder / RUN, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """The request of the run in a folder."""
        path = folder / RUN
        if not path.exists():
            raise ConfigError(
                f"{folder} holds no run to go on with; leave --resume out to start one"
            )
        return as_dataclass(cls, read_object(path, ConfigError), path, ConfigError)


def judged_before(out: Path) -> dict[str, Evaluation]:
    """The evaluations that a finished run wrote down."""
    found = {}
    for split, each in read_results(out)["evaluations"].items():
        interval = each["confidence_interval_95"]
        found[split] = Evaluation(
            split, each["examples"], each["metrics"], tuple(interval) if interval else None
        )
    return found


def write_result(
    job: Task, model: nn.Module, result: Result, request: Request, device: torch.device
) -> None:
    """Writes model, processor, recipe, numbers, report and model card."""
    out = result.folder
    assert out is not None
    job.finish(model)
    model.save_pretrained(out)  # type: ignore[operator]
    job.save(out)
    write_recipe(out, result.recipe)
    if result.judged is not None:
        result.judged.max_error = request.options["extra"].get("max_error")
        if found := judged_confidence(result.judged):
            found.write(out)
    values = {
        "task": job.name,
        "model": request.model,
        "headline": job.headline,
        "evaluations": {
            split: {
                "examples": each.examples,
                "metrics": each.metrics,
                "confidence_interval_95": each.interval,
            }
            for split, each in result.evaluations.items()
        },
        "draws": result.spread and result.spread.to_dict(),
        "splits": job.splits,
        "notes": job.found()[1:] + [f"to keep the budget: {each}" for each in result.given_up],
        "seed": result.recipe.seed,
        "data_fingerprint": job.fingerprint,
        "seconds": round(result.seconds, 2),
        "estimated_seconds": result.estimated and round(result.estimated, 2),
        "device": device_name(device),
        "versions": versions(),
        "differences": model.config.differences(),  # type: ignore[operator, union-attr]
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics_file = out / "metrics.jsonl"
    metrics = read_metrics(metrics_file) if metrics_file.exists() else []
    draws = None if result.spread is None else result.spread.section(job.headline)
    write_report(out, job, result.evaluations, values, result.recipe, metrics, draws)
    write_card(out, job, values, result.recipe)
    # last: its presence says that the folder is whole
    atomic_write(out / RESULTS, json.dumps(values, indent=2) + "\n")


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml`, which `--config` reads again."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "train") from None
    atomic_write(
        folder / RECIPE, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    )


def summary(job: Task, result: Result) -> str:
    """The last line of a run."""
    judged = result.judged
    if judged is None:
        return (
            f"done in {duration(result.seconds)}; not judged, for no data was held out:"
            f" {result.folder}"
        )
    bounds = [metric_text(job.headline, bound) for bound in judged.interval or ()]
    low_high = f" (95 % interval {' to '.join(bounds)})" if bounds else ""
    expected = f" (expected {duration(result.estimated)})" if result.estimated else ""
    return (
        f"{judged.split} {job.headline.replace('_', ' ')}"
        f" {metric_text(job.headline, judged.metrics[job.headline])}{low_high} on {judged.examples}"
        f" examples, after {duration(result.seconds)}{expected}; model and report.html are in"
        f" {result.folder}"
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import numpy
    import PIL

    return {
        "headstart": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__, "pillow": PIL.__version__,
        "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """The processor that trained, with its number of threads or the accelerator's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{platform.machine()} {device.type}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
