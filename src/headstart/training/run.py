"""A whole run: data, recipe, model, training, result folder.

`headstart.train(...)` and `headstart train` are both `train` here.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.auto import AutoConfig, AutoImageProcessor, check_task
from headstart.data.labels import kind_named
from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError, DataError
from headstart.loading import family_of
from headstart.pipelines.base import read_results
from headstart.progress import Progress, Silent
from headstart.recipe import (
    LORA_RATE,
    RECIPES,
    Recipe,
    named_recipe,
    read_recipe_file,
    resolve_recipe,
)
from headstart.registry import locate
from headstart.tasks.base import Evaluation, Task, TunesHead, task_class
from headstart.training.checkpoints import load_checkpoint
from headstart.training.draws import FOLDER, read_spread, run_draws, spread_of
from headstart.training.estimate import (
    LONG,
    RESERVE,
    HeadCost,
    fit_budget,
    measure,
    parse_budget,
    smaller_sides,
)
from headstart.training.loop import Loop, fitting_micro_batch
from headstart.training.result import (
    RESULTS,
    RUN,
    Request,
    Result,
    judged_before,
    summary,
    write_recipe,
    write_result,
)
from headstart.training.world import World, whole


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
    max_error: float | None = None,
    progress: Progress | None = None,
    **recipe_values: Any,
) -> Result:
    """Tunes a pretrained model to a data set and leaves a result folder.

    Args:
        data: A folder of class folders, of splits, or a table; see
            `headstart.data.images.read_images`.
        model: Pretrained model: a folder, a Hub id or an authors' name. Needed unless `resume`.
        out: Result folder; made if it does not exist.
        task: What is learned; a name in `headstart.tasks.base.TASKS`.
        config: YAML file of recipe values.
        recipe: Name of a recipe to take in place of the family's own.
        revision: Branch, tag or commit of the model on the Hub.
        resume: Go on with the run in `out`. Everything else is remembered there.
        dry_run: Say what would be done, and stop.
        shots: Training examples of each class; None takes all.
        draws: Train on so many choices of the `shots`; the result says mean and interval, and holds
            the model of the first.
        val_fraction: Share of the training data held out where the data has no validation split.
        skip_bad: Go on without unreadable examples.
        columns: Columns of a table by role, such as {"image": "file", "label": "species"};
            {"label": "x,y"} are several.
        problem_type: What the labels are: "single_label_classification",
            "multi_label_classification" or "regression"; None looks at them.
        validation: Further data to judge the model on while it is tuned.
        test: Further data to judge the result on.
        task_options: Further options of the task by name, such as {"masks": "masks/"}; its class
            lists them.
        device: "cpu", "cuda", …; None takes the best there is.
        workers: Threads that read and decode.
        budget: Time that everything may take, such as "10m" or a number of minutes; the recipe is
            cut to fit.
        fsdp: Share weights, gradients and optimizer between the processes that torchrun started,
            for a model too large for each.
        tensorboard: Write the numbers of `metrics.jsonl` for TensorBoard too, to `tensorboard/` in
            the result folder.
        max_error: Share of mistakes allowed among answers, for which a classifier's report finds
            when it had better say "I don't know"; None is 0.05.
        progress: Where progress is shown; None is silent.
        **recipe_values: Any value of `headstart.recipe.Recipe`, such as `lr=0.001`, `steps=200`,
            `seed=1`.

    Returns:
        The result, with its evaluations.

    Raises:
        DataError: The data cannot be trained on; the message names file and row.
        ConfigError: A recipe value that is not allowed.
        HubError: The model could not be found or loaded.
        TrainingInterrupted: A signal stopped the run; a checkpoint was written.
    """
    out = Path(out)
    deadline = None if budget is None else time.perf_counter() + parse_budget(budget)
    world = World(device, fsdp)
    progress = (progress or Silent()) if world.leads else Silent()
    if resume:
        request = dataclasses.replace(Request.read(out), data=str(data))  # it may have moved
        if (out / RESULTS).exists():
            progress.say(f"the run in {out} is finished: nothing to do")
            return Result(
                out, Recipe.from_dict(request.recipe), judged_before(out), spread=read_spread(out)
            )
        _same_request(request, model, recipe_values, out)
        job = task_class(request.task).read(
            data, DataOptions(**(request.options | {"workers": workers}))
        )
        resolved = Recipe.from_dict(request.recipe)
    else:
        if model is None:
            raise ConfigError("which model? Give --model NAME; `headstart models` lists them")
        if not dry_run:
            _refuse_used(out)
        if draws > 1 and shots is None:
            raise ConfigError(
                f"draws={draws} are choices of so many examples of each class; say how many with"
                " shots (--shots)"
            )
        if max_error is not None and not 0 < max_error < 1:
            raise ConfigError(
                f"max_error={max_error:g}; it must be above 0 and below 1, such as 0.05"
            )
        options: dict[str, Any] = {
            "seed": recipe_values.get("seed") or (read_recipe_file(config).get("seed") if config else None) or 0,
            "problem_type": None if problem_type is None else kind_named(problem_type),
            "shots": shots, "val_fraction": val_fraction, "skip_bad": skip_bad, "columns": dict(columns or {}), "workers": workers,
            "extra": _extra({"validation": validation, "test": test, "max_error": max_error, **(task_options or {})}),
        }  # fmt: skip
        job = task_class(task).read(data, DataOptions(**options))
        resolved = _resolve(str(model), job, config, recipe, recipe_values, revision)
        request = Request(
            str(data), str(model), job.name, revision, options, resolved.to_dict(), draws
        )
    if resolved.tune == "head" and not isinstance(job, TunesHead):
        raise ConfigError(f"--tune head is not available for {job.name}; use --tune full")
    for line in job.found():
        progress.say(line)
    progress.say(describe(resolved, request.model))
    if resolved.precision == "fp16" and world.device.type == "cpu":
        progress.say(
            "float16 works on a CPU, with scaled gradients; bfloat16 (--precision bf16) needs none"
            " and keeps float32's range"
        )
    if dry_run:
        return Result(None, resolved)
    return _carry_out(
        _Run(job, request, resolved, out, world, progress, workers, deadline, tensorboard), resume
    )


@dataclasses.dataclass
class _Run:
    """A run whose data is read and whose recipe is known."""

    job: Task
    request: Request
    recipe: Recipe
    out: Path
    world: World
    progress: Progress
    workers: int | None
    deadline: float | None
    tensorboard: bool = False
    others: list[Result] = dataclasses.field(default_factory=list)

    def _begin(self) -> None:
        """Makes the result folder and writes down what was asked for, so that the run can be gone
        on with.
        """
        self.world.wait()  # every process has seen that the folder is free
        if self.world.leads:
            self.request = dataclasses.replace(self.request, recipe=self.recipe.to_dict())
            self.request.write(self.out)
            write_recipe(self.out, self.recipe)

    def tune_all(self, resume: bool) -> Result:
        """Trains every weight."""
        loop = self._loop(resume)
        if resume:
            _restore(loop, self.out, loop.identity, self.progress)
        estimate = measure(loop)
        given_up: list[str] = []
        if self.deadline is not None and not resume:
            self.recipe, given_up = self.world.agree(
                fit_budget(
                    self.recipe,
                    estimate,
                    self.deadline - time.perf_counter(),
                    isinstance(self.job, TunesHead),
                )
            )
            if given_up:
                self.progress.say(f"to keep the budget: {', '.join(given_up)}")
                if self.recipe.tune == "head":
                    return self.tune_head(given_up)
                loop = self._loop(resume)
                estimate = measure(loop)
        self.progress.say(estimate.text(self.recipe, self.recipe.steps - loop.step))
        expected = estimate.seconds(self.recipe, self.recipe.steps - loop.step)
        if expected > LONG and self.world.device.type == "cpu" and self.deadline is None:
            self.progress.say(
                "that is long: --tune head computes features once and is much quicker; --budget 30m"
                " cuts the recipe"
            )
        if not resume:
            self._begin()
        began = time.perf_counter()
        # At the deadline the last weights are judged once more against the best so far.
        judging = (
            sum(self.job.splits.get(split, 0) for split in SPLITS[1:])
            + self.job.splits.get("validation", 0)
        ) * estimate.forward
        with self.progress:
            loop.run(None if self.deadline is None else self.deadline - judging)
        if loop.step < self.recipe.steps:
            given_up.append(f"stopped after step {loop.step} of {self.recipe.steps}")
        with loop.averaged():
            network, evaluations = self._plain(loop), {}
            if self.world.leads:
                judged = [split for split in SPLITS[1:] if split in self.job.splits]
                evaluations = {
                    split: self.job.evaluate(network, split, self.world.device) for split in judged
                }
            return self._finish(
                network,
                Result(
                    self.out,
                    self.recipe,
                    evaluations,
                    time.perf_counter() - began,
                    expected,
                    given_up,
                ),
            )

    def _loop(self, resume: bool) -> Loop:
        """Model, data and loop as the recipe says; a new run finds its micro-batch."""
        network = self._network()
        self.job.prepare(self.out / "cache" / str(self.world.rank))
        if not resume:
            size = fitting_micro_batch(
                self.job, network.to(self.world.device), self.recipe, self.world, self.progress.say
            )
            self.recipe = dataclasses.replace(self.recipe, micro_batch=size)
        parts = (self.job, network, self.recipe, self.out, self.world, self.progress)
        identity = {"recipe": self.recipe.to_dict(), "fingerprint": self.job.fingerprint}
        home = self.out.parents[1] if self.out.parent.name == FOLDER else self.out
        go_on = f"headstart train {self.request.data} --out {home} --resume"
        if self.world.size > 1:
            go_on = (
                f"torchrun --nproc-per-node {self.world.size} -m {go_on}"
                + " --fsdp" * self.world.sharded
            )
        go_on += " --tensorboard" * self.tensorboard
        return Loop(
            *parts, workers=self.workers, identity=identity, go_on=go_on, board=self.tensorboard
        )

    def _network(self) -> nn.Module:
        """The network as it is trained.

        A new head and LoRA's matrices are drawn alike in every process.
        """
        torch.manual_seed(self.recipe.seed)
        network = self.job.build(self.request.model, self.recipe, revision=self.request.revision)
        if self.recipe.lora_rank is not None:
            from headstart.training.lora import add_lora

            add_lora(network, self.recipe)
        return network

    def _plain(self, loop: Loop) -> nn.Module:
        """The trained network as it is kept.

        In one piece, with LoRA's matrices added to their weights.
        """
        network = loop.model
        if self.world.sharded:
            state = whole(loop.model.state_dict())
            network = self._network()
            network.load_state_dict(state)
        network.to(self.world.device).eval()
        if self.recipe.lora_rank is not None:
            from headstart.training.lora import merge_lora

            merge_lora(network)
        return network

    def tune_head(self, given_up: list[str] | None = None) -> Result:
        """Fits the last layer on features that are computed once."""
        job, given_up = self.job, given_up or []
        assert isinstance(job, TunesHead)

        def build() -> tuple[nn.Module, HeadCost]:
            network = (
                self.job.build(self.request.model, self.recipe, revision=self.request.revision)
                .to(self.world.device)
                .eval()
            )
            return network, self.world.agree(job.head_cost(network, self.world.device))

        network, cost = build()
        for side in smaller_sides(self.recipe):
            if self.deadline is not None and cost.seconds > RESERVE * (
                self.deadline - time.perf_counter()
            ):
                self.recipe = dataclasses.replace(self.recipe, crop=side)
                network, cost = build()
                self.progress.say(f"to keep the budget: images of {side} pixels")
                given_up.append(f"images of {side} pixels")
        self.progress.say(cost.text())
        if self.deadline is not None and cost.seconds > self.deadline - time.perf_counter():
            self.progress.say(
                "that is more than the budget, and nothing is left to give up; a smaller model"
                " takes less"
            )
        began = time.perf_counter()
        with self.progress:
            evaluations = job.tune_head(network, self.world.device, self.progress)
        self._begin()
        result = Result(
            self.out, self.recipe, evaluations, time.perf_counter() - began, cost.seconds, given_up
        )
        return self._finish(network, result)

    def _finish(self, network: nn.Module, result: Result) -> Result:
        """Writes the result folder."""
        if self.others:
            result.spread = spread_of(result, self.others)
        if self.world.leads:
            write_result(self.job, network, result, self.request, self.world.device)
            for leftover in ("cache", "checkpoints", FOLDER):
                shutil.rmtree(self.out / leftover, ignore_errors=True)
            self.progress.say(summary(self.job, result))
            if result.spread is not None:
                self.progress.say(result.spread.text(self.job.headline))
        self.world.wait()
        return result


def _carry_out(run: _Run, resume: bool) -> Result:
    """A run; where there are several draws of the examples, after those of the others."""
    request, world = run.request, run.world
    seconds = None if run.deadline is None else (run.deadline - time.perf_counter()) / request.draws

    def tune(each: _Run, resume: bool) -> Result:
        each.deadline = None if seconds is None else time.perf_counter() + seconds
        return each.tune_head() if each.recipe.tune == "head" else each.tune_all(resume)

    def draw(request: Request, out: Path, resume: bool) -> Result:
        job = task_class(request.task).read(
            request.data, DataOptions(**(request.options | {"workers": run.workers}))
        )
        return tune(
            dataclasses.replace(
                run, job=job, request=request, recipe=Recipe.from_dict(request.recipe), out=out
            ),
            resume,
        )

    with world.held_together():
        if request.draws > 1:
            if world.leads and not resume:
                request.write(run.out)
            world.wait()
            run.others = run_draws(
                request, run.out, draw, run.progress.say, run.job.headline, world.leads
            )
        return tune(run, resume and (request.draws == 1 or (run.out / "checkpoints").exists()))


def _resolve(
    model: str,
    job: Task,
    config: str | Path | None,
    recipe: str | None,
    values: Mapping[str, Any],
    revision: str | None,
) -> Recipe:
    """The recipe from its four layers; the family's own is a function that the family names."""
    family, _ = family_of(model, revision=revision)
    check_task(family, job.name)
    facts = job.facts()
    asked = recipe or (read_recipe_file(config).get("recipe") if config else None)
    if asked is not None:
        base = named_recipe(asked, facts)
    else:
        facts = dataclasses.replace(
            facts, config=AutoConfig.from_pretrained(model, revision=revision)
        )
        if not family.reads_text:
            from headstart.tasks.image_classification import processor_side

            side = processor_side(AutoImageProcessor.from_pretrained(model, revision=revision))
            facts = dataclasses.replace(facts, model_image_size=side)
        base = locate(family.recipe)(facts) if family.recipe else RECIPES["finetune"](facts)
    resolved = resolve_recipe(base, config, values)
    if resolved.tune == "head" and not values.get("crop"):
        resolved = resolved.head_only()
    return resolved


def _extra(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as `run.json` keeps them.

    Paths that exist in full, so that a run can be gone on with from anywhere.
    """
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


def _same_request(
    request: Request, model: str | Path | None, values: Mapping[str, Any], out: Path
) -> None:
    """A resumed run is the same run: what is said again must agree with what was said first."""
    if model is not None and str(model) != request.model:
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


def _refuse_used(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if (out / RUN).exists():
        if (out / RESULTS).exists():
            raise ConfigError(f"{out} holds a finished run; choose another --out")
        raise ConfigError(
            f"{out} holds an unfinished run; go on with --resume, or choose another --out"
        )
    if out.exists() and any(path.name != "cache" for path in out.iterdir()):
        raise ConfigError(
            f"{out} is not empty; choose another --out, so that nothing there is overwritten"
        )


def _restore(loop: Loop, out: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    checkpoint = load_checkpoint(out / "checkpoints")
    if checkpoint is None:
        progress.say("no checkpoint was written yet: starting from the beginning")
        loop.log.cut(0)
        return
    for damaged in checkpoint.damaged:
        progress.say(f"passed over a damaged checkpoint: {damaged}")
    if checkpoint.state.get("fingerprint") != identity["fingerprint"]:
        raise DataError(
            "the data is not what the run was started with: images, labels or splits changed; start"
            " anew with another --out"
        )
    loop.restore(checkpoint)
    progress.say(f"going on after step {loop.step} of {loop.recipe.steps}")


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
) -> tuple[Task, Evaluation]:
    """Judges a result folder (or any classifier) on labelled data.

    Args:
        model: A result folder, Hub id or authors' name, whose class names the data uses.
        data: As for `train`.
        columns: Columns of a table by role.
        skip_bad: Leave out unreadable examples.
        split: Which split of the data; None takes the test data, else the validation data, else
            everything.
        task_options: As for `train`.
        device: Where to compute.
        workers: Threads that read and decode.
    """
    saved = Path(model) / RESULTS
    task = read_results(model)["task"] if saved.is_file() else "image-classification"
    config, extra = AutoConfig.from_pretrained(model), _extra(task_options or {})
    labels = [name for _, name in sorted(config.id2label.items())]
    kind = config.problem_type or (
        "single_label_classification" if task == "image-classification" else None
    )
    options = DataOptions(
        classes=labels,
        columns=dict(columns or {}),
        skip_bad=skip_bad,
        problem_type=kind,
        workers=workers,
        extra=extra,
    )
    job = task_class(task).read(data, options)
    chosen = split or next(name for name in ("test", "validation", "train") if name in job.splits)
    if chosen not in job.splits:
        raise DataError(f"{data} has no {chosen} data; it has {', '.join(job.splits)}")
    network = job.attach(model).eval()
    # where an optimised model was optimised
    fixed = getattr(network, "fixed_device", None)
    place = World(device or fixed).device
    job.prepare(None, (chosen,))
    return job, job.evaluate(network.to(place), chosen, place)
