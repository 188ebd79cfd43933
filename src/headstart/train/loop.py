"""The training loop: batches ahead of time, micro-batches, updates, evaluation, checkpoints, interruption.

Every step is a function of (weights, optimizer, seed, step): order, augmentation and dropout are drawn from generators seeded with the
step, so that a run that was killed and resumed goes through the same numbers as one that was not.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import ConfigError, TrainingInterrupted
from headstart.train.checkpoints import Checkpoint, save_checkpoint
from headstart.train.data import batch_indices
from headstart.train.image_cache import threads
from headstart.train.optim import Average, freeze, make_optimizer, optimizer_tensors, restore_optimizer
from headstart.train.progress import Progress
from headstart.train.recipes import Recipe
from headstart.train.tasks import Evaluation, Task
from headstart.train.world import World

Batch = dict[str, Tensor]
CHUNK = 16  # examples that one thread makes at a time


class Batches:
    """The batches of a run by step; the next one is made in threads while the current one is used."""

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
        return self.task.augment_batch(batch, np.random.default_rng([self.recipe.seed, step, 0x313]))

    def _request(self, step: int) -> list[Future[list[Batch]]]:
        indices = batch_indices(self.task.splits["train"], self.recipe.batch_size, step, self.recipe.seed)

        def make(positions: range) -> list[Batch]:
            return [self.task.example(int(indices[p]), np.random.default_rng([self.recipe.seed, step, p])) for p in positions]

        first, last = self.rows.start, self.rows.stop
        return [self.pool.submit(make, range(start, min(start + CHUNK, last))) for start in range(first, last, CHUNK)]

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown(cancel_futures=True)


class Stopper:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps; a second signal ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over inside the block (only Python's main thread may)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
        go_on: Command that goes on with an interrupted run.
    """

    def __init__(
        self, task: Task, model: nn.Module, recipe: Recipe, folder: Path, world: World, progress: Progress,
        *, workers: int | None = None, identity: dict[str, Any] | None = None, go_on: str = "",
    ) -> None:  # fmt: skip
        self.task, self.recipe, self.folder, self.world, self.progress = task, recipe, folder, world, progress
        self.model = model.to(world.device)
        freeze(self.model, recipe.freeze)
        self.optimizer = make_optimizer(self.model, recipe)
        self.average = Average(self.model, recipe.ema) if recipe.ema is not None else None
        self.wrapped = world.wrap(self.model)
        self.workers, self.identity, self.go_on = workers, identity or {}, go_on
        self.step = 0
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.eval_every = recipe.eval_every or max(1, -(-recipe.steps // 10))
        self.checkpoint_every = recipe.checkpoint_every or max(1, -(-recipe.steps // 20))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to where a checkpoint was made."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.model, self.optimizer, parts["optimizer"])
        if self.average is not None:
            self.average.tensors = {name: tensor.to(self.world.device) for name, tensor in parts["average"].items()}
        self.step = checkpoint.step
        self.log.cut(self.step)

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        if self.world.leads:
            tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.model, self.optimizer).items()}
            if self.average is not None:
                tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
            self.log.flush()
            save_checkpoint(self.folder / "checkpoints", self.step, tensors, self.identity)
        self.world.wait()

    def run(self, deadline: float | None = None) -> None:
        """Trains to the recipe's end, or until `time.perf_counter()` reaches the deadline.

        Raises:
            TrainingInterrupted: A signal came; a checkpoint was written first.
        """
        rows = slice(0, self.recipe.batch_size) if self.recipe.mixes else self.world.rows(self.recipe.batch_size)
        batches = Batches(self.task, self.recipe, rows, self.workers)
        stopper = Stopper()
        self.progress.start("training", self.recipe.steps, self.step)
        try:
            with stopper.listening():
                while self.step < self.recipe.steps:
                    began = time.perf_counter()
                    values = self.update(batches[self.step])
                    seconds = time.perf_counter() - began
                    self.step += 1
                    self._tell(values, seconds)
                    if deadline is not None and self.world.any(time.perf_counter() > deadline) and self.step < self.recipe.steps:
                        self.progress.say(f"stopped after step {self.step} of {self.recipe.steps} to keep the budget")
                        break
                    if self.world.any(stopper.asked):
                        self.save()
                        where = f"step {self.step} of {self.recipe.steps}"
                        raise TrainingInterrupted(f"stopped after {where}, nothing is lost; to go on: {self.go_on}")
                    if self.step % self.checkpoint_every == 0 and self.step < self.recipe.steps:
                        self.save()
                    if self.step % self.eval_every == 0 and self.step < self.recipe.steps:
                        self._judge()
            self.save()
        finally:
            batches.close()
            self.log.close()

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer with exactly the gradient of the whole batch, whatever the micro-batch.

        Returns:
            The mean loss, the task's measures, and the rate.
        """
        recipe, device = self.recipe, self.world.device
        rate = recipe.lr_at(self.step)
        assert rate is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        seed_all([recipe.seed, self.step, self.world.rank])
        self.wrapped.train()
        self.optimizer.zero_grad(set_to_none=True)
        whole = self.recipe.mixes  # then every process holds the whole batch, to mix it alike
        mine = self.world.rows(recipe.batch_size) if whole else slice(0, len(next(iter(batch.values()))))
        weight = torch.tensor(self.task.weight(batch), device=device, dtype=torch.float64)
        total = float(weight) if whole else float(self.world.total(weight))
        parts = list(cut(mine, recipe.micro_batch or recipe.batch_size))
        sums: dict[str, Tensor] = {}
        for i, rows in enumerate(parts):
            with self.world.hold_gradients(self.wrapped) if i + 1 < len(parts) else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                    loss, measures = self.task.loss(self.wrapped, self.task.micro(batch, rows, device))
                # Processes average their gradients, and a mean of parts is not the sum: hence the number of processes.
                (loss * (self.world.size / total)).backward()  # type: ignore[no-untyped-call]
            for name, value in ({"loss": loss.detach()} | measures).items():
                sums[name] = sums.get(name, torch.zeros((), device=device, dtype=torch.float64)) + value
        values = {name: float(self.world.total(value)) / total for name, value in sums.items()}
        if not np.isfinite(values["loss"]):
            raise ConfigError(f"the loss is {values['loss']} at step {self.step}: training diverged; try a smaller --lr than {recipe.lr:g}")
        if recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        return values | {"lr": rate}

    def evaluate(self, split: str) -> Evaluation:
        """Judges the model as it would be kept: the average of the weights where there is one."""
        self.model.eval()
        with self.averaged():
            return self.task.evaluate(self.model, split, self.world.device)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model holds the average of its weights, where the recipe asks for one."""
        if self.average is not None:
            self.average.swap(self.model)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap(self.model)

    def _judge(self) -> None:
        if self.world.leads and "validation" in self.task.splits:
            evaluation = self.evaluate("validation")
            self.log.write({"step": self.step, "validation": evaluation.metrics})
            self.progress.say(f"step {self.step}: validation {self.task.headline} {evaluation.metrics[self.task.headline]:.1%}")
        self.world.wait()

    def _tell(self, values: dict[str, float], seconds: float) -> None:
        if not self.world.leads:
            return
        speed = self.recipe.batch_size / seconds
        self.log.write({"step": self.step, **values, "seconds": round(seconds, 4)})
        self.progress.update(self.step, {k: v for k, v in values.items() if k != "lr"}, speed)


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, with the step it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def cut(self, step: int) -> None:
        """Drops what was written after a step, and a last line that was cut off: the resumed run writes it again."""
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Adds a line."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """Hands what was written to the system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed run
            lines.append(json.loads(line))
    return lines


def cut(rows: slice, size: int) -> Iterator[slice]:
    """Consecutive parts of at most `size` rows."""
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def seed_all(entropy: list[int]) -> None:
    """Seeds torch's generators on every device from a few whole numbers."""
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def fitting_micro_batch(task: Task, model: nn.Module, recipe: Recipe, world: World, note: Callable[[str], None]) -> int:
    """A micro-batch that fits into memory: measured with one example, at most 32 on a CPU, where more gains nothing."""
    if recipe.micro_batch is not None:
        return min(recipe.micro_batch, recipe.batch_size)
    per_example = memory_per_example(task, model, recipe, world.device)
    free = free_memory(world.device)
    limit = recipe.batch_size if world.device.type == "cuda" else 32
    wanted = min(limit, -(-recipe.batch_size // world.size))
    size = int(max(1, min(wanted, 0.6 * free / per_example)))
    if size < wanted:
        note(f"micro-batches of {size}: {per_example / 2**20:.0f} MB an image, {free / 2**30:.1f} GB free")
    return size


def memory_per_example(task: Task, model: nn.Module, recipe: Recipe, device: torch.device) -> float:
    """Bytes that the backward pass needs of one example: the tensors that the forward pass keeps for it."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch norm counts what it sees
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = task.collate([task.example(0, np.random.default_rng(0))])
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), narrow:
        task.loss(model, task.micro(batch, slice(0, 1), device))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return float(max(1, sum(size for address, size in kept.items() if address not in weights)))


def free_memory(device: torch.device) -> float:
    """Bytes that may still be used on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(4 << 30)  # not Linux: a careful guess
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        available = min(available, float(text) - float(used.read_text(encoding="ascii")))
    return max(available, 0.0)
