"""The training loop: batches ahead of time, micro-batches, updates, evaluation, checkpoints,
interruption.

Every step is a function of (weights, optimizer, seed, step): order, augmentation and dropout are
sampled from generators seeded with the step, so that a run that was killed and resumed goes through
the same numbers as one that was not.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.data.cache import threads
from headstart.errors import ConfigError, TrainingInterrupted
from headstart.progress import Progress, metric_text, metric_title
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation, Task
from headstart.training.checkpoints import Checkpoint, save_checkpoint
from headstart.training.log import MetricsLog
from headstart.training.optim import (
    Average,
    autocast,
    freeze,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from headstart.training.world import World, load_weights, placed, whole

Batch = dict[str, Tensor]
CHUNK = 16  # examples that one thread makes at a time
ALONG = 1000  # validation examples that every evaluation along the way has at least


class DivergedError(ConfigError):
    """The loss is not a finite number."""


class Batches:
    """The batches of a run by step.

    The next one is made in threads while the current one is used.
    """

    def __init__(self, task: Task, recipe: Recipe, rows: slice, workers: int | None) -> None:
        self.task, self.recipe, self.rows = task, recipe, rows
        self.pool = ThreadPoolExecutor(threads(workers), thread_name_prefix="headstart-data")
        self.waiting: dict[int, list[Future[list[Batch]]]] = {}

    def __getitem__(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        futures = self.waiting.pop(step, None) or self._request(step)
        if step + 1 < self.recipe.steps:
            self.waiting[step + 1] = self._request(step + 1)
        batch = self.task.collate([example for future in futures for example in future.result()])
        if step >= self.recipe.mix_fraction * self.recipe.steps:
            return batch
        return self.task.augment_batch(
            batch, np.random.default_rng([self.recipe.seed, step, 0x313])
        )

    def _request(self, step: int) -> list[Future[list[Batch]]]:
        first, last = self.rows.start, self.rows.stop
        items = self.task.batch_items(self.recipe, step, self.rows)

        def make(positions: range) -> list[Batch]:
            return [
                self.task.example(
                    items[p - first], np.random.default_rng([self.recipe.seed, step, p])
                )
                for p in positions
            ]

        return [
            self.pool.submit(make, range(start, min(start + CHUNK, last)))
            for start in range(first, last, CHUNK)
        ]

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown(cancel_futures=True)


class Stopper:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps.

    A second signal ends at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over inside the block (only Python's main thread may)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Loop:
    """One run of training.

    Args:
        task: Gives batches, loss and evaluation.
        model: Is trained in place.
        recipe: Resolved; `micro_batch` is set.
        folder: Result folder: `metrics.jsonl` and `checkpoints/` go there.
        world: This process among the others.
        progress: Shows what happens.
        workers: Threads that make batches.
        identity: What a checkpoint must agree with to be resumed, as JSON knows it.
        resume_with: Command that goes on with an interrupted run.
        board: Whether the numbers also go to `tensorboard/` in the folder.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        recipe: Recipe,
        folder: Path,
        world: World,
        progress: Progress,
        *,
        workers: int | None = None,
        identity: dict[str, Any] | None = None,
        resume_with: str = "",
        board: bool = False,
    ) -> None:
        self.task, self.recipe, self.folder, self.world, self.progress = (
            task,
            recipe,
            folder,
            world,
            progress,
        )
        self.model = model.to(world.device)
        freeze(self.model, recipe.freeze, recipe.unfreeze)
        if recipe.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()  # type: ignore[operator]
        world.shard(self.model)
        self.optimizer = make_optimizer(self.model, recipe)
        self.average = Average(self.model, recipe.ema) if recipe.ema is not None else None
        self.wrapped = world.wrap(self.model)
        self.workers, self.identity, self.resume_with = workers, identity or {}, resume_with
        # Small gradients would vanish in float16's range; a scaled loss keeps them in it.
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")
        self.step = 0
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.log = MetricsLog(
            folder / "metrics.jsonl", folder / "tensorboard" if board and world.is_main else None
        )
        self.eval_every = recipe.eval_every or default_interval(recipe, task.splits)
        self.along = evaluated_along(recipe, task.splits, self.eval_every)
        self.checkpoint_every = recipe.checkpoint_every or max(1, -(-recipe.steps // 20))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to where a checkpoint was made."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        load_weights(self.model, parts["model"])
        restore_optimizer(self.model, self.optimizer, parts["optimizer"])
        if self.average is not None:
            self.average.tensors = {
                name: placed(parts["average"][name], tensor)
                for name, tensor in self.average.tensors.items()
            }
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step = checkpoint.step
        if self.task.streams:
            self.task.go_to(self.recipe, checkpoint.state["positions"])
        if self.world.is_main:  # two processes that rewrite one file lose lines of it
            self.log.cut(self.step)

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {
            f"optimizer/{name}": tensor
            for name, tensor in optimizer_tensors(self.model, self.optimizer).items()
        }
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors = whole(tensors)  # every process takes part where each holds a piece
        positions = {"positions": self._positions()} if self.task.streams else {}
        if self.world.is_main:
            self.log.flush()
            scaler = {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
            state = self.identity | scaler | positions
            save_checkpoint(self.folder / "checkpoints", self.step, tensors, state)
        self.world.barrier()

    def _positions(self) -> list[list[int]]:
        """Where the readers of all processes go on, (L, 3)."""
        own = torch.from_numpy(self.task.positions(self.step)).to(self.world.device)
        summed = self.world.total(own)
        # several processes may have read one of them, each to the same place
        found: list[list[int]] = (summed[:, :3] // summed[:, 3:].clamp(min=1)).tolist()
        return found

    def run(self, deadline: float | None = None) -> None:
        """Trains to the recipe's end, or until `time.perf_counter()` reaches the deadline; then the
        best weights so far are kept.

        Raises:
            TrainingInterrupted: A signal came; a checkpoint was written first.
        """
        rows = (
            slice(0, self.recipe.batch_size)
            if self.recipe.mixes
            else self.world.rows(self.recipe.batch_size)
        )
        batches = Batches(self.task, self.recipe, rows, self.workers)
        stopper = Stopper()
        self.progress.start("training", self.recipe.steps, self.step, self.task.unit)
        try:
            with stopper.listening():
                self._validate_if_due()  # a checkpoint is of the moment before
                while self.step < self.recipe.steps:
                    began = time.perf_counter()
                    values = self.update(batches[self.step])
                    seconds = time.perf_counter() - began
                    self.step += 1
                    self._log_step(values, seconds)
                    if (
                        deadline is not None
                        and self.world.any(time.perf_counter() > deadline)
                        and self.step < self.recipe.steps
                    ):
                        self.progress.report(
                            f"stopped after step {self.step} of {self.recipe.steps} to keep the"
                            " budget"
                        )
                        break
                    if self.world.any(stopper.requested):
                        self.save()
                        where = f"step {self.step} of {self.recipe.steps}"
                        raise TrainingInterrupted(
                            f"stopped after {where}, nothing is lost; to go on: {self.resume_with}"
                        )
                    if self.step % self.checkpoint_every == 0 and self.step < self.recipe.steps:
                        self.save()
                    self._validate_if_due(keep=deadline is not None)
            self.save()
            if self.best is not None and self.step < self.recipe.steps:
                self._validate(keep=True)
                self._return_to_best()
        finally:
            batches.close()
            self.log.close()

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer with exactly the gradient of the whole batch, whatever the
        micro-batch.

        Returns:
            The mean loss, the task's measures, and the learning rate.
        """
        recipe, device = self.recipe, self.world.device
        rate = recipe.lr_at(self.step)
        assert rate is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        seed_all([recipe.seed, self.step, self.world.rank])
        self.wrapped.train()
        self.optimizer.zero_grad(set_to_none=True)
        mixed = self.recipe.mixes  # then every process holds the whole batch, to mix it alike
        mine = (
            self.world.rows(recipe.batch_size)
            if mixed
            else slice(0, len(next(iter(batch.values()))))
        )
        weight = torch.tensor(self.task.weight(batch), device=device, dtype=torch.float64)
        total = float(weight) if mixed else float(self.world.total(weight))
        parts = list(cut(mine, recipe.micro_batch or recipe.batch_size))
        sums: dict[str, Tensor] = {}
        for i, rows in enumerate(parts):
            with (
                self.world.hold_gradients(self.wrapped)
                if i + 1 < len(parts)
                else contextlib.nullcontext()
            ):
                with autocast(recipe, device):
                    loss, measures = self.task.loss(
                        self.wrapped, self.task.micro(batch, rows, device)
                    )
                # Processes average their gradients, and a mean of parts is not the sum: hence the
                # number of processes.
                self.scaler.scale(loss * (self.world.size / total)).backward()  # type: ignore[no-untyped-call]
            for name, value in ({"loss": loss.detach()} | measures).items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=device, dtype=torch.float64)) + value
                )
        values = {name: float(self.world.total(value)) / total for name, value in sums.items()}
        if not np.isfinite(values["loss"]):
            raise DivergedError(
                f"the loss is {values['loss']} at step {self.step}: training diverged; try a"
                f" smaller --lr than {recipe.lr:g}"
            )
        if recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        # leaves out a step whose gradients overflowed, and scales less from then on
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, self.step)
        return values | {"lr": rate}

    @cached_property
    def evaluated(self) -> Task:
        """The task with the held-out examples that are evaluated along the way."""
        count = self.task.splits["validation"]
        if self.along == count:
            return self.task
        self.progress.report(
            f"during training {self.along} of {count} validation examples are evaluated, always"
            " the same random ones; the result is of all"
        )
        rng = np.random.default_rng([self.recipe.seed, 0xA10])
        return self.task.subset("validation", np.sort(rng.permutation(count)[: self.along]))

    def evaluate(self) -> Evaluation:
        """Evaluates the model as it would be kept, along the way.

        The average of the weights where there is one.
        """
        self.model.eval()
        with self.averaged():
            return self.evaluated.evaluate(self.model, "validation", self.world.device)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model holds the average of its weights, where the recipe asks for
        one.
        """
        if self.average is not None:
            self.average.swap(self.model)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap(self.model)

    def _validate_if_due(self, keep: bool = False) -> None:
        """Evaluates the model after every so many steps; the end has its own evaluation."""
        if 0 < self.step < self.recipe.steps and self.step % self.eval_every == 0:
            self._validate(keep)

    def _validate(self, keep: bool = False) -> None:
        """Evaluates the model on the validation data, and remembers its weights where no others
        were better.
        """
        if "validation" in self.task.splits and (self.world.is_main or self.world.sharded):
            evaluation = self.evaluate()
            if self.world.is_main:
                part = {"examples": self.along} if self.evaluated is not self.task else {}
                self.log.write({"step": self.step, "validation": evaluation.metrics} | part)
                headline, value = self.task.headline, evaluation.metrics[self.task.headline]
                self.progress.report(
                    f"step {self.step}: validation {metric_title(headline)}"
                    f" {metric_text(headline, value)}"
                )
            score = evaluation.metrics[self.task.headline]
            if keep and (self.best is None or score >= self.best[0]):
                with self.averaged():
                    self.best = (
                        score,
                        self.step,
                        {
                            name: value.detach().clone()
                            for name, value in self.model.state_dict().items()
                        },
                    )
        self.world.barrier()

    def _return_to_best(self) -> None:
        """Takes the weights that were best on the validation data for the result."""
        assert self.best is not None
        _, step, weights = self.best
        self.model.load_state_dict(weights)
        self.average = None  # the weights kept are averages already
        if step < self.step:
            self.progress.report(
                f"kept the weights of step {step}, the best on the validation data"
            )

    def _log_step(self, values: dict[str, float], seconds: float) -> None:
        if not self.world.is_main:
            return
        speed = self.recipe.batch_size / seconds
        self.log.write({"step": self.step, **values, "seconds": round(seconds, 4)})
        self.progress.update(self.step, {k: v for k, v in values.items() if k != "lr"}, speed)


def default_interval(recipe: Recipe, splits: Mapping[str, int]) -> int:
    """Steps between evaluations: a tenth of all, or more where evaluations would dominate.

    A forward pass costs about a third of a training step's, so that evaluations take at most about
    a fifth of the time.
    """
    examples = min(ALONG, splits.get("validation", 0))
    return max(1, -(-recipe.steps // 10), -(-4 * examples // (3 * recipe.batch_size)))


def evaluated_along(recipe: Recipe, splits: Mapping[str, int], every: int) -> int:
    """Validation examples of one evaluation along the way: all, or as many as take about a fifth of
    the time, and at least `ALONG`.
    """
    return min(splits.get("validation", 0), max(ALONG, 3 * recipe.batch_size * every // 4))


def cut(rows: slice, size: int) -> Iterator[slice]:
    """Consecutive parts of at most `size` rows."""
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def seed_all(entropy: list[int]) -> None:
    """Seeds torch's generators on every device from a few integers."""
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
