"""What was requested of a run: its options, its data, its recipe."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from headstart.auto import AutoConfig, AutoImageProcessor, check_task
from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object
from headstart.data.labels import SINGLE
from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError, listed
from headstart.loading import family_of
from headstart.package_data import MADE_FOR_HEADS
from headstart.progress import Progress
from headstart.recipe import (
    LORA_RATE,
    RECIPES,
    Recipe,
    named_recipe,
    read_recipe_file,
    resolve_recipe,
)
from headstart.registry import locate
from headstart.tasks import Task, can_fit_head, task_class
from headstart.tasks.base import HeadTask
from headstart.tasks.image_classification import processor_side
from headstart.tasks.result import Result
from headstart.training.lock import LOCK
from headstart.training.tuning import HEAD
from headstart.training.world import World

# files of a result folder: what was requested, and what came out
RUN, RESULTS = "run.json", "results.json"
# recipe values that also have an effect on a head alone; any other asks for full training
SHARED_VALUES = ("seed", "crop", "class_weights", "max_length", "tune")
# what a call may give with `tune="head"`; `lora_rank` has an error of its own
WITH_HEADS = (*SHARED_VALUES, "lora_rank")
OF_CLASSES = ("mixup", "cutmix", "class_weights")
WITHOUT_CLASSES = ("semantic-segmentation", "masked-image-modeling")
OF_IMAGES = ("resize", "crop", "mixup", "cutmix", "augment")


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


@dataclass
class Workspace:
    """Where a run works, and for how long.

    Args:
        out: Result folder.
        world: This process among the others.
        progress: Shows what happens.
        began: `time.perf_counter()` of the call.
        workers: Threads that read and decode.
        deadline: `time.perf_counter()` at which training has to end; None is never.
        tensorboard: Whether the metrics also go to `tensorboard/`.
    """

    out: Path
    world: World
    progress: Progress
    began: float
    workers: int | None = None
    deadline: float | None = None
    tensorboard: bool = False

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.perf_counter()


@dataclass(kw_only=True)
class Run(Workspace):
    """A run whose data is read and whose recipe is known.

    Args:
        task: The data as the task has read it.
        request: What was requested.
        recipe: Resolved; a budget may change it.
        automatic: Whether the head alone is taken where full training takes long.
        others: Results of the other draws.
    """

    task: Task
    request: Request
    recipe: Recipe
    automatic: bool = False
    others: list[Result] = field(default_factory=list)

    @property
    def fixed(self) -> bool:
        """Whether values of full training were given."""
        return self.request.fixed

    @property
    def may_start_from_head(self) -> bool:
        """Whether a head is fitted first: something is held out to compare it on."""
        return self.automatic and self.world.size == 1 and bool(self.held_out)

    @property
    def held_out(self) -> list[str]:
        """Splits beside the training data, the one that decides between models first."""
        return [split for split in SPLITS[1:] if split in self.task.splits]


def check_options(shots: int | None, draws: int, max_error: float | None) -> None:
    """Refuses numbers that make no sense.

    Raises:
        ConfigError: Several draws of all examples, or an error rate outside of 0 and 1.
    """
    if draws > 1 and shots is None:
        raise ConfigError(
            f"draws={draws} are choices of so many examples of each class; say how many with shots="
        )
    if max_error is not None and not 0 < max_error < 1:
        raise ConfigError(f"max_error={max_error:g}; it must be above 0 and below 1, such as 0.05")


def check_same(
    request: Request, model: str | Path | None, values: Mapping[str, Any], out: Path
) -> None:
    """Refuses options of a resumed run that differ from those it was started with."""
    if model is not None and str(absolute({"model": model})["model"]) != request.model:
        raise ConfigError(
            f"the run in {out} tunes {request.model}, not {model}; leave --model out, or choose"
            " another --out"
        )
    for key, value in values.items():
        if (key, value) == ("tune", "auto"):  # what it decided is in the recipe
            continue
        if value is not None and request.recipe.get(key) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise ConfigError(
                f"the run in {out} has {key}={request.recipe.get(key)}, not {value}; leave it out,"
                " or choose another --out"
            )


def check_free(out: Path, overwrite: bool) -> None:
    """Refuses a result folder that holds something, unless it is a run to overwrite, and one that
    cannot be made.
    """
    above = next(each for each in (out, *out.absolute().parents) if os.path.lexists(each))
    if not above.is_dir():
        what = "is a link to nothing" if above.is_symlink() else "is a file"
        raise ConfigError(f"--out {out}: {above} {what}; give a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: {above} may not be written to; choose another folder")
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


def check_kept(out: Path, overwrite: bool, inputs: Iterable[Any]) -> None:
    """Refuses to overwrite a folder that holds what the run reads.

    Args:
        out: Result folder.
        overwrite: Whether a run in it is removed.
        inputs: Paths and names that the run is given.

    Raises:
        ConfigError: One of them, or the current folder, lies in `out`.
    """
    if not (overwrite and (out / RUN).exists()):
        return
    home = out.resolve()
    if Path.cwd().is_relative_to(home):
        raise ConfigError(
            f"--overwrite would remove the current folder, {home}; choose another --out"
        )
    paths = [Path(each) for each in inputs if isinstance(each, str | Path)]
    for path in paths:
        if path.resolve().is_relative_to(home):
            raise ConfigError(
                f"--overwrite would remove {path}, which this run reads; choose another --out"
            )


def check_still(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuses what another process did to the result folder while the data was read.

    Raises:
        ConfigError: A run was begun or finished there.
    """
    if not resume:
        check_free(out, overwrite)
    elif (out / RESULTS).exists():
        raise ConfigError(
            f"the run in {out} was finished by another process; nothing is left to do"
        )


def clear(out: Path) -> None:
    """Removes a run; only folders that hold one get here."""
    if (out / RUN).exists():
        for path in out.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
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


def read_data(request: Request, workers: int | None, progress: Progress) -> Task:
    """The data of a request.

    Raises:
        ConfigError: An option that the task does not have, or that its labels cannot honor.
    """
    options = DataOptions(**(request.options | {"workers": workers, "progress": progress}))
    kind = task_class(request.task)
    if kind.name in WITHOUT_CLASSES and options.problem_type is not None:
        raise ConfigError(
            f"problem_type={options.problem_type!r} is for labels of whole examples, not for"
            f" {kind.name}; leave it out"
        )
    kind.check_options(options)
    task = kind.read(request.data, options)
    if isinstance(task, HeadTask) and task.problem.kind != SINGLE and "max_error" in options.extra:
        raise ConfigError(
            f"max_error is for examples of one class each; the labels of {request.data} are"
            f" {task.problem.kind}"
        )
    return task


@dataclass(frozen=True)
class RecipeOptions:
    """What a call gives of its recipe.

    Args:
        config: YAML file of recipe values.
        name: Recipe in place of the family's own.
        values: Recipe values by name; None is not given.
        epochs: Passes over the training data, in place of `steps`.
        full: Whether another option asks for full training.
    """

    config: str | Path | None
    name: str | None
    values: Mapping[str, Any]
    epochs: float | None
    full: bool

    @cached_property
    def file(self) -> Mapping[str, Any]:
        """The values of `config`."""
        return read_recipe_file(self.config) if self.config else {}

    def get(self, key: str) -> Any:
        """A value from the call, else from the file; None is not given."""
        value = self.values.get(key)
        return self.file.get(key) if value is None else value

    @property
    def is_fixed(self) -> bool:
        """Whether any value of full training is given."""
        given = [key for key, value in self.values.items() if value is not None]
        full = self.full or self.config or self.name or self.epochs
        return bool(full) or any(key not in SHARED_VALUES for key in given)

    @property
    def is_automatic(self) -> bool:
        """Whether `tune` is "auto": given so, or nothing asks for full training."""
        tune = self.values.get("tune")
        return not self.is_fixed if tune is None else bool(tune == "auto")

    def check_used(self, task: str, reads_text: bool, fits_head: bool) -> None:
        """Refuses values of the call that would have no effect.

        Args:
            task: Name of the task.
            reads_text: Whether the model reads texts.
            fits_head: Whether the task has a head to fit; another refuses `tune="head"` itself.

        Raises:
            ConfigError: Values of full training for a fitted head, or of images for texts.
        """
        given = [key for key, value in self.values.items() if value is not None]
        given += ["epochs"] * (self.epochs is not None)
        if self.get("tune") == "head" and fits_head:
            self._check_used_by_head(given)
        unused = [key for key in given if key in OF_CLASSES and self.values[key] not in (0, "none")]
        if unused and task in WITHOUT_CLASSES:
            names = ", ".join(f"{key}=" for key in unused)
            raise ConfigError(
                f"{names} is for classes of whole examples, not for {task}; leave it out"
            )
        unused = [key for key in given if key in OF_IMAGES]
        if unused and reads_text:
            names = ", ".join(f"{key}=" for key in unused)
            raise ConfigError(f"the model reads texts, and {names} is for images; leave it out")

    def _check_used_by_head(self, given: Sequence[str]) -> None:
        why = "tune='head' fits the last layer without training steps, and has no use for"
        way_out = "leave it out, or give tune='full'"
        if self.name is not None:
            raise ConfigError(f"{why} recipe={self.name!r}; {way_out}")
        unused = [key for key in given if key not in WITH_HEADS]
        if unused:
            raise ConfigError(f"{why} {', '.join(f'{key}=' for key in unused)}; {way_out}")
        of_file = [key for key in self.file if key not in (*WITH_HEADS, "name", "recipe")]
        if of_file:
            raise ConfigError(f"{self.config}: {why} {listed(of_file)}; {way_out}")

    def resolve(self, model: str, task: Task, revision: str | None) -> Recipe:
        """The recipe from its four layers; the family's own is a function that it names.

        Args:
            model: Pretrained model.
            task: The data as the task has read it.
            revision: Of the model.

        Raises:
            ConfigError: Unknown names or values, or a model of another task.
        """
        family, _ = family_of(model, revision=revision)
        check_task(family, task.result_task)
        self.check_used(task.name, family.reads_text, can_fit_head(task))
        facts, name = task.facts(), self.name or self.file.get("recipe")
        if name is not None:
            base = named_recipe(name, facts)
        else:
            config = AutoConfig.from_pretrained(model, revision=revision)
            facts = dataclasses.replace(facts, config=config)
            if not family.reads_text:
                side = processor_side(AutoImageProcessor.from_pretrained(model, revision=revision))
                facts = dataclasses.replace(facts, model_image_size=side)
            base = locate(family.recipe)(facts) if family.recipe else RECIPES["finetune"](facts)
        values = {k: v for k, v in self.values.items() if (k, v) != ("tune", "auto")}
        resolved = resolve_recipe(base, self.config, values)
        if self.epochs is not None:
            steps = self.steps(self.epochs, facts.examples, resolved.batch_size)
            resolved = resolve_recipe(base, self.config, values | {"steps": steps})
        if resolved.tune == "head" and not values.get("crop"):
            resolved = resolved.head_only()
        return resolved

    def steps(self, epochs: float, examples: int, batch_size: int) -> int:
        """Steps of so many passes over the examples.

        Raises:
            ConfigError: `steps` is given as well, or `epochs` is not above 0.
        """
        if self.values.get("steps") is not None:
            raise ConfigError("epochs and steps both say how long to train; give one of them")
        if not 0 < epochs < float("inf"):
            raise ConfigError(f"epochs={epochs}; it must be above 0")
        return max(1, round(epochs * examples / batch_size))


def model_of(model: str | Path | None, task: str) -> str:
    """The model of a new run: the one given, else the task's default.

    Raises:
        ConfigError: None is given and the task has no default.
    """
    model = model or task_class(task).default_model
    if model is None:
        raise ConfigError("which model? Give --model NAME; `headstart models` lists them")
    return str(absolute({"model": model})["model"])


def new_run(request: Request, options: RecipeOptions, space: Workspace) -> Run:
    """The run of a request without a recipe: its data is read, and its recipe resolved."""
    task = read_data(request, space.workers, space.progress)
    recipe = options.resolve(request.model, task, request.revision)
    automatic = options.is_automatic
    if automatic and can_fit_head(task) and request.model in MADE_FOR_HEADS:
        recipe = recipe.head_only()
    request = dataclasses.replace(
        request,
        recipe=recipe.to_dict(),
        free_side=options.get("crop") is None,
        automatic=automatic,
        fixed=options.is_fixed,
    )
    return run_of(request, task, space)


def saved_run(request: Request, space: Workspace) -> Run:
    """The run of a request with its recipe: its data is read."""
    return run_of(request, read_data(request, space.workers, space.progress), space)


def run_of(request: Request, task: Task, space: Workspace) -> Run:
    """The run of a request with its recipe, whose data is read."""
    recipe, automatic = Recipe.from_dict(request.recipe), request.automatic
    head = automatic and can_fit_head(task)
    return Run(**vars(space), task=task, request=request, recipe=recipe, automatic=head)


def announce(run: Run) -> None:
    """Shows what was found and what will be done.

    Raises:
        ConfigError: A head alone is wanted, and the task has none.
    """
    recipe, report = run.recipe, run.progress.report
    if recipe.tune == "head" and not can_fit_head(run.task):
        what = f"{run.request.task}{' with --stream' * run.task.streams}"
        raise ConfigError(f"--tune head is not available for {what}; use --tune full")
    for line in run.task.found():
        report(line)
    both = recipe.tune == "full" and run.may_start_from_head
    report(describe(recipe.head_only() if both else recipe, run.request.model))
    if run.automatic and recipe.tune == "head":
        report("its features are made for a head alone; --tune full trains every weight")
    if recipe.precision == "fp16" and run.world.device.type == "cpu":
        report(
            "float16 works on a CPU, with scaled gradients; bfloat16 (--precision bf16) needs none"
            " and keeps float32's range"
        )


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
