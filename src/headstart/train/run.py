"""A whole run: data, recipe, model, training, result folder. `headstart.train(...)` and `headstart train` are both `train` here."""

import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import headstart
from headstart.auto import family_of
from headstart.checkpoint import atomic_write
from headstart.errors import ConfigError, DataError, MissingExtraError
from headstart.train.checkpoints import load_checkpoint
from headstart.train.loop import Loop, fitting_micro_batch, read_metrics
from headstart.train.progress import Progress, Silent, duration
from headstart.train.recipes import RECIPES, Facts, Recipe, named_recipe, read_recipe_file, resolve_recipe
from headstart.train.report import write_card, write_report
from headstart.train.tasks import DataOptions, Evaluation, Task, task_class
from headstart.train.world import World
from headstart.zoo import locate

RUN, RECIPE, RESULTS = "run.json", "recipe.yaml", "results.json"


@dataclass
class Result:
    """What a run made.

    Args:
        folder: The result: model, processor, recipe, metrics and report. None after a dry run.
        recipe: The resolved recipe.
        evaluations: By split.
        seconds: Time that training took, in this process.
    """

    folder: Path | None
    recipe: Recipe
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float = 0.0

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

    def write(self, folder: Path) -> None:
        """Writes `run.json`."""
        atomic_write(folder / RUN, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """The request of the run in a folder."""
        try:
            return cls(**json.loads((folder / RUN).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"{folder} holds no run to go on with; leave --resume out to start one") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot read {folder / RUN}: {error}") from None


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
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    **recipe_values: Any,
) -> Result:
    """Tunes a pretrained model to a data set and leaves a result folder.

    Args:
        data: A folder of class folders, of splits, or a table; see `headstart.train.data.read_images`.
        model: Pretrained model: a folder, a Hub id or an authors' name. Needed unless `resume`.
        out: Result folder; made if it does not exist.
        task: What is learned; a name in `headstart.train.tasks.TASKS`.
        config: YAML file of recipe values.
        recipe: Name of a recipe to take in place of the family's own.
        revision: Branch, tag or commit of the model on the Hub.
        resume: Go on with the run in `out`. Everything else is remembered there.
        dry_run: Say what would be done, and stop.
        shots: Training examples of each class; None takes all.
        val_fraction: Share of the training data held out where the data has no validation split.
        skip_bad: Go on without unreadable examples.
        columns: Columns of a table by role, such as {"image": "file", "label": "species"}.
        validation: Further data to judge the model on while it is tuned.
        test: Further data to judge the result on.
        device: "cpu", "cuda", …; None takes the best there is.
        workers: Threads that read and decode.
        progress: Where progress is shown; None is silent.
        **recipe_values: Any value of `headstart.train.recipes.Recipe`, such as `lr=0.001`, `steps=200`, `seed=1`.

    Returns:
        The result, with its evaluations.

    Raises:
        DataError: The data cannot be trained on; the message names file and row.
        ConfigError: A recipe value that is not allowed.
        HubError: The model could not be found or loaded.
        TrainingInterrupted: A signal stopped the run; a checkpoint was written.
    """
    out = Path(out)
    world = World(device)
    progress = (progress or Silent()) if world.leads else Silent()
    options: dict[str, Any] = {
        "seed": recipe_values.get("seed") or 0, "shots": shots, "val_fraction": val_fraction, "skip_bad": skip_bad,
        "columns": dict(columns or {}), "workers": workers,
        "extra": {k: str(Path(v).resolve()) for k, v in (("validation", validation), ("test", test)) if v},
    }  # fmt: skip
    if resume:
        request = Request.read(out)
        if (out / RESULTS).exists():
            progress.say(f"the run in {out} is finished: nothing to do")
            return Result(out, Recipe.from_dict(request.recipe), _judged_before(out))
        _same_request(request, str(data), model, recipe_values, out)
        options = request.options | {"workers": workers}
    elif model is None:
        raise ConfigError("which model? Give --model NAME; `headstart models` lists them")
    elif not dry_run:
        _refuse_used(out)
    job = task_class(request.task if resume else task).read(data, DataOptions(**options))
    if resume:
        resolved, name, revision = Recipe.from_dict(request.recipe), request.model, request.revision
    else:
        resolved, name = _resolve(str(model), job.facts(), config, recipe, recipe_values, revision), str(model)
    for line in job.found():
        progress.say(line)
    progress.say(describe(resolved, name))
    if dry_run:
        return Result(None, resolved)
    network = job.build(name, resolved, revision=revision)
    out.mkdir(parents=True, exist_ok=True)
    job.prepare(out / "cache")
    if not resume:
        network.to(world.device)
        resolved = dataclasses.replace(resolved, micro_batch=fitting_micro_batch(job, network, resolved, world, progress.say))
        request = Request(str(data), name, job.name, revision, options, resolved.to_dict())
        if world.leads:
            request.write(out)
            _write_recipe(out, resolved)
    identity = {"recipe": resolved.to_dict(), "fingerprint": job.fingerprint}
    go_on = f"headstart train {data} --out {out} --resume"
    loop = Loop(job, network, resolved, out, world, progress, workers=workers, identity=identity, go_on=go_on)
    if resume:
        _restore(loop, out, identity, progress)
    began = time.perf_counter()
    with progress:
        loop.run()
    seconds = time.perf_counter() - began
    return _finish(job, loop, out, request, seconds, progress)


def _resolve(
    model: str, facts: Facts, config: str | Path | None, recipe: str | None, values: Mapping[str, Any], revision: str | None
) -> Recipe:
    """The recipe from its four layers; the family's own is a function that the family names."""
    asked = recipe or (read_recipe_file(config).get("recipe") if config else None)
    if asked is not None:
        base = named_recipe(asked, facts)
    else:
        family, _ = family_of(model, revision=revision)
        base = locate(family.recipe)(facts) if family.recipe else RECIPES["finetune"](facts)
    return resolve_recipe(base, config, values)


def _same_request(request: Request, data: str, model: str | Path | None, values: Mapping[str, Any], out: Path) -> None:
    """A resumed run is the same run: what is said again must agree with what was said first."""
    if model is not None and str(model) != request.model:
        raise ConfigError(f"the run in {out} tunes {request.model}, not {model}; leave --model out, or choose another --out")
    for key, value in values.items():
        if value is not None and request.recipe.get(key) != (list(value) if isinstance(value, tuple) else value):
            raise ConfigError(f"the run in {out} has {key}={request.recipe.get(key)}, not {value}; leave it out, or choose another --out")


def _judged_before(out: Path) -> dict[str, Evaluation]:
    """The evaluations that a finished run wrote down."""
    values = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    found = {}
    for split, each in values["evaluations"].items():
        interval = each["confidence_interval_95"]
        found[split] = Evaluation(split, each["examples"], each["metrics"], tuple(interval) if interval else None)
    return found


def _refuse_used(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if (out / RUN).exists():
        if (out / RESULTS).exists():
            raise ConfigError(f"{out} holds a finished run; choose another --out")
        raise ConfigError(f"{out} holds an unfinished run; go on with --resume, or choose another --out")
    if out.exists() and any(path.name != "cache" for path in out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out, so that nothing there is overwritten")


def _restore(loop: Loop, out: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    checkpoint = load_checkpoint(out / "checkpoints")
    if checkpoint is None:
        progress.say("no checkpoint was written yet: starting from the beginning")
        loop.log.cut(0)
        return
    for damaged in checkpoint.damaged:
        progress.say(f"passed over a damaged checkpoint: {damaged}")
    if checkpoint.state.get("fingerprint") != identity["fingerprint"]:
        raise DataError("the data is not what the run was started with: images, labels or splits changed; start anew with another --out")
    loop.restore(checkpoint)
    progress.say(f"going on after step {loop.step} of {loop.recipe.steps}")


def describe(recipe: Recipe, model: str) -> str:
    """One line that says what will be done."""
    sides = " → ".join(str(side) for side in (recipe.resize, recipe.crop) if side)
    sizes = f", {sides} pixels" if sides else ""
    extras = "".join(f", {name} {value:g}" for name in ("mixup", "label_smoothing", "weight_decay") if (value := getattr(recipe, name)))
    return (
        f"tuning {model} with recipe {recipe.name}: {recipe.steps} steps of {recipe.batch_size} examples{sizes}, "
        f"{recipe.optimizer} at {recipe.lr:g} ({recipe.schedule}){extras}, {recipe.precision}, seed {recipe.seed}"
    )


def _finish(job: Task, loop: Loop, out: Path, request: Request, seconds: float, progress: Progress) -> Result:
    """Judges the model and writes the result folder."""
    result = Result(out, loop.recipe, seconds=seconds)
    if loop.world.leads:
        for split in ("validation", "test"):
            if split in job.splits:
                result.evaluations[split] = loop.evaluate(split)
        with loop.averaged():
            write_result(job, loop.model, result, request, loop.world.device)
        for leftover in ("cache", "checkpoints"):
            shutil.rmtree(out / leftover, ignore_errors=True)
        progress.say(summary(job, result))
    loop.world.wait()
    return result


def write_result(job: Task, model: nn.Module, result: Result, request: Request, device: torch.device) -> None:
    """Writes model, processor, recipe, numbers, report and model card."""
    out = result.folder
    assert out is not None
    model.save_pretrained(out)  # type: ignore[operator]
    job.save(out)
    _write_recipe(out, result.recipe)
    values = {
        "task": job.name,
        "model": request.model,
        "headline": job.headline,
        "evaluations": {
            split: {"examples": each.examples, "metrics": each.metrics, "confidence_interval_95": each.interval}
            for split, each in result.evaluations.items()
        },
        "splits": job.splits,
        "notes": job.found()[1:],
        "seed": result.recipe.seed,
        "data_fingerprint": job.fingerprint,
        "seconds": round(result.seconds, 2),
        "device": device_name(device),
        "versions": versions(),
        "differences": model.config.differences(),  # type: ignore[operator, union-attr]
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics_file = out / "metrics.jsonl"
    metrics = read_metrics(metrics_file) if metrics_file.exists() else []
    write_report(out, job, result.evaluations, values, result.recipe, metrics)
    write_card(out, job, values, result.recipe)
    atomic_write(out / RESULTS, json.dumps(values, indent=2) + "\n")  # last: its presence says that the folder is whole


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "train") from None
    atomic_write(folder / RECIPE, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))


def summary(job: Task, result: Result) -> str:
    """The last line of a run."""
    judged = result.judged
    if judged is None:
        return f"done in {duration(result.seconds)}; not judged, for no data was held out: {result.folder}"
    low_high = f" (95 % interval {judged.interval[0]:.1%} to {judged.interval[1]:.1%})" if judged.interval else ""
    return (
        f"{judged.split} {job.headline} {judged.metrics[job.headline]:.1%}{low_high} on {judged.examples} examples, "
        f"after {duration(result.seconds)}; model and report.html are in {result.folder}"
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import numpy
    import PIL

    return {
        "headstart": headstart.__version__, "torch": str(torch.__version__), "numpy": numpy.__version__, "pillow": PIL.__version__,
        "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """The processor that trained, with its number of threads or the accelerator's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def evaluate(
    model: str | Path, data: str | Path, *, columns: Mapping[str, str] | None = None, skip_bad: bool = False, split: str | None = None,
    device: str | None = None, workers: int | None = None,
) -> tuple[Task, Evaluation]:
    """Judges a result folder (or any classifier) on labelled data.

    Args:
        model: A result folder, Hub id or authors' name, whose class names the data uses.
        data: As for `train`.
        columns: Columns of a table by role.
        skip_bad: Leave out unreadable examples.
        split: Which split of the data; None takes the test data, else the validation data, else everything.
        device: Where to compute.
        workers: Threads that read and decode.
    """
    from headstart.auto import AutoConfig

    saved = Path(model) / RESULTS
    task = json.loads(saved.read_text(encoding="utf-8"))["task"] if saved.is_file() else "image-classification"
    labels = [name for _, name in sorted(AutoConfig.from_pretrained(model).id2label.items())]
    options = DataOptions(classes=labels, columns=dict(columns or {}), skip_bad=skip_bad, workers=workers)
    job = task_class(task).read(data, options)
    chosen = split or next(name for name in ("test", "validation", "train") if name in job.splits)
    if chosen not in job.splits:
        raise DataError(f"{data} has no {chosen} data; it has {', '.join(job.splits)}")
    network = job.attach(model).to(World(device).device).eval()
    job.prepare(None, (chosen,))
    return job, job.evaluate(network, chosen, World(device).device)
