"""What a run will cost, measured on a few examples before it starts.

And how a recipe is cut to a budget of time.
"""

import contextlib
import dataclasses
import re
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headstart.data.cache import threads
from headstart.data.options import SPLITS
from headstart.errors import ConfigError
from headstart.features.head import REPORT
from headstart.features.unknown import EXAMPLES
from headstart.progress import duration
from headstart.recipe import Recipe
from headstart.tasks.base import HeadTask, Task
from headstart.tasks.image_classification import ImageClassification
from headstart.training.loop import Loop, seed_all
from headstart.training.micro_batch import memory_per_example
from headstart.training.optim import autocast

PATIENCE = 5.0  # seconds that one measurement may take
UNKNOWN_PATIENCE = 300.0  # seconds that features for the p-values of a trained network may take
EVALUATED = 0.75  # examples evaluated for each one trained on, at most; see `default_interval`
# fraction of a budget that is planned with: reading, writing and a busy machine take the rest
RESERVE = 0.85
SMALL = 10_000_000  # weights below which a network's short run takes another recipe
SHORT: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-4,
    "weight_decay": 0.02,
    "schedule": "cosine",
    "batch_size": 64,
}
SIDES = (320, 224, 160, 128)  # resolutions to fall back to
HASHING = 2e-4  # seconds of the report for each image that is compared with the others
LONG = 3600.0  # seconds from which on a run on a CPU is called long


@dataclass(frozen=True)
class Estimate:
    """Times in seconds and memory in bytes of a run.

    Args:
        example: One example forward and backward.
        forward: One example forward only.
        load: One example read and augmented, by all threads together.
        evaluated: Examples that are evaluated during and after training.
        last: Those that are evaluated after it.
        memory: Of the whole process: data, weights, gradients, optimizer, and what a micro-batch
            keeps for the backward pass.
        after: Seconds of p-values and report, after the last evaluation.
    """

    example: float
    forward: float
    load: float
    evaluated: int
    memory: float
    last: int = 0
    after: float = 0.0

    def seconds(self, recipe: Recipe, steps: int | None = None) -> float:
        """Time of so many steps (default all) of a recipe, with its evaluations.

        Reading goes on beside computing.
        """
        per_example = max(self.example, self.load)
        examples = (recipe.steps if steps is None else steps) * recipe.batch_size
        return examples * per_example + self.evaluated * self.forward

    def total(self, recipe: Recipe, steps: int | None = None) -> float:
        """`seconds`, and what follows the last evaluation."""
        return self.seconds(recipe, steps) + self.after

    def text(self, recipe: Recipe, steps: int | None = None) -> str:
        """One line for the user."""
        rate, memory = 1 / max(self.example, self.load, 1e-9), self.memory / 2**30
        return (
            f"about {duration(self.total(recipe, steps))} on this machine ({rate:.0f}"
            f" examples/s), {memory:.1f} GB of memory"
        )


def measure(loop: Loop) -> Estimate:
    """Times a few forward and backward passes and a few examples.

    Weights and later random numbers stay as they are.
    """
    with loop.progress.counting("measuring the time", 1, "runs"):
        return _measured(loop)


def _measured(loop: Loop) -> Estimate:
    task, recipe, device = loop.task, loop.recipe, loop.world.device
    buffers = {name: buffer.clone() for name, buffer in loop.model.named_buffers()}
    size = min(recipe.micro_batch or recipe.batch_size, task.splits["train"])
    began = time.perf_counter()
    examples = [task.example(i, np.random.default_rng(i)) for i in range(min(size, 8))]
    load = (time.perf_counter() - began) / len(examples) / threads(loop.workers)
    seed_all([recipe.seed])

    def timed(count: int, backward: bool) -> float:
        batch = task.collate([examples[i % len(examples)] for i in range(count)])
        synchronize(device)
        start = time.perf_counter()
        with (
            autocast(recipe, device) if backward else contextlib.nullcontext(),
            torch.set_grad_enabled(backward),
        ):
            loss, _ = task.loss(loop.model, task.micro(batch, slice(0, count), device))
        if backward:
            loss.backward()  # type: ignore[no-untyped-call]
        synchronize(device)
        return time.perf_counter() - start

    loop.model.train()
    timed(min(2, size), True)  # the first pass also allocates and compiles
    # so that all go through the same passes
    few = loop.world.broadcast(timed(min(2, size), True) / min(2, size))
    example = min(timed(size, True) for _ in range(2)) / size if few * size < PATIENCE else few
    loop.model.eval()
    count = size if few * size < PATIENCE else min(2, size)
    forward = min(timed(count, False) for _ in range(2)) / count
    loop.optimizer.zero_grad(set_to_none=True)
    for name, buffer in loop.model.named_buffers():
        buffer.copy_(buffers[name])
    rounds = (recipe.steps - 1) // loop.eval_every
    last = sum(task.splits.get(name, 0) for name in SPLITS[1:])
    evaluated = rounds * loop.along + last
    # The passes above held data, weights, gradients and what a micro-batch keeps. Averages of the
    # optimizer, and a copy of everything for a checkpoint, come on top.
    trained = [p for p in loop.model.parameters() if p.requires_grad]
    averages = 1 if recipe.optimizer == "sgd" else 2
    copies = 1 + 2 * averages + (2 if recipe.ema is not None else 0)
    added = float(copies * sum(p.numel() * p.element_size() for p in trained))
    added = added / loop.world.size if loop.world.sharded else added
    if few * size >= PATIENCE:
        added += (size - 2) * memory_per_example(task, loop.model, recipe, device)
    memory = peak_memory(device) + added
    return loop.world.broadcast(
        Estimate(
            example / loop.world.size,
            forward,
            load,
            evaluated,
            memory,
            last,
            REPORT + hashing_seconds(task) + unknown_seconds(task, forward, loop.world.size),
        )
    )


def hashing_seconds(task: Task) -> float:
    """Time in which the report looks for images that are nearly the same."""
    if not isinstance(task, ImageClassification):
        return 0.0
    return HASHING * sum(n - len(task.unopened(split)) for split, n in task.splits.items())


def unknown_seconds(task: Task, forward: float, processes: int) -> float:
    """Time of the features that tell a trained classifier's classes from others.

    Args:
        task: Its examples.
        forward: Seconds of one example.
        processes: That train together.

    Returns:
        0 where they are not computed: other tasks, several processes, or too slow a network.
    """
    if not isinstance(task, HeadTask) or task.name != "image-classification" or processes > 1:
        return 0.0
    seconds = forward * min(2 * EXAMPLES, sum(task.splits.values()))
    return seconds if seconds < UNKNOWN_PATIENCE else 0.0


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has held at most, with what it held on the accelerator."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return float(held + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0))


def synchronize(device: torch.device) -> None:
    """Waits for an accelerator, whose work is only queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse_budget(text: str | float) -> float:
    """Seconds of a budget such as "10m", "1h30m", "90s" or a number of minutes."""
    found = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?",
        str(text).replace(" ", ""),
    )
    if isinstance(text, int | float) or re.fullmatch(r"\d+(\.\d+)?", str(text)):
        seconds = 60 * float(text)
    elif found and any(found.groups()):
        seconds = sum(
            float(part or 0) * unit
            for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)
        )
    else:
        raise ConfigError(f"budget={text!r}; expected a time such as 10m, 1h30m or 90s")
    if seconds <= 0:
        raise ConfigError(f"budget={text!r}; it must be above 0")
    return seconds


def smaller_sides(recipe: Recipe) -> list[int]:
    """Resolutions that a recipe may fall back to.

    Only a convolutional network takes any without a loss of its own.
    """
    return [side for side in SIDES if recipe.name == "hyperrule" and side < (recipe.crop or 0)]


def short(recipe: Recipe, steps: int) -> Recipe:
    """A recipe for so many steps of a small network whose own schedule has no time.

    HyperRule's decays leave half of a short run at rates too small to learn: 10,000 images of
    EuroSAT take `bit-mini` to 46 % with its cut schedule and to 76 % with this one.
    """
    steps = max(1, steps * recipe.batch_size // SHORT["batch_size"])
    values = SHORT | {"warmup_steps": steps // 10, "decay_at": (), "steps": steps}
    micro = min(recipe.micro_batch or SHORT["batch_size"], SHORT["batch_size"])
    return dataclasses.replace(recipe, **values, micro_batch=micro)


def steps_within(recipe: Recipe, estimate: Estimate, seconds: float) -> int:
    """Steps that fit into a time with their evaluations: of fewer steps these are fewer too.

    Args:
        recipe: Its number of steps is the one that was estimated.
        estimate: What its steps take.
        seconds: For everything.
    """
    one = recipe.batch_size * max(estimate.example, estimate.load)
    along = (estimate.evaluated - estimate.last) * estimate.forward
    seconds -= estimate.last * estimate.forward
    if recipe.eval_every is not None:
        return int(seconds / (one + along / recipe.steps))
    # as many evaluations as of all steps, or as there are at most beside each step
    most = EVALUATED * recipe.batch_size * estimate.forward
    return int(max((seconds - along) / one, seconds / (one + most)))


def fit_budget(
    recipe: Recipe, estimate: Estimate, seconds: float, head: bool = True, small: bool = False
) -> tuple[Recipe, list[str]]:
    """The recipe cut to a time, and what was given up for it, in the order in which it hurts least.

    A batch of 128 at a rate of 0.001 in place of 512 at 0.003 gives nearly the same (the BiT
    authors' own advice), then the resolution goes down, then the number of steps; when not even
    half of them are left, only the head is tuned: on fixed features it is better than a network
    that was trained too little. Tasks without such a head (`head` False) keep as many steps as
    there are. A `small` network whose HyperRule loses steps takes AdamW and a cosine (`short`).
    """
    allowed = RESERVE * seconds
    given_up: list[str] = []
    if estimate.seconds(recipe) > allowed and recipe.batch_size > 128 and recipe.optimizer == "sgd":
        recipe = dataclasses.replace(
            recipe,
            batch_size=128,
            micro_batch=min(recipe.micro_batch or 128, 128),
            lr=recipe.lr / 3,
        )
        given_up.append(f"batches of 128 at a rate of {recipe.lr:g}")
    first = recipe.crop
    whole = recipe
    for side in smaller_sides(recipe):
        if recipe.crop and recipe.resize and estimate.seconds(recipe) > allowed:
            smaller = (side / recipe.crop) ** 2
            estimate = dataclasses.replace(
                estimate, example=estimate.example * smaller, forward=estimate.forward * smaller
            )
            recipe = dataclasses.replace(
                recipe, crop=side, resize=round(side * recipe.resize / recipe.crop)
            )
    if recipe.crop != first:
        given_up.append(f"images of {recipe.crop} in place of {first} pixels")
    steps = steps_within(recipe, estimate, allowed)
    if head and 2 * steps < recipe.steps:
        return whole.head_only(), ["every weight but the head's stays as it is (--tune head)"]
    steps = max(1, steps)
    if steps < recipe.steps:
        given_up.append(f"{steps} in place of {recipe.steps} steps")
        if small and recipe.name == "hyperrule" and recipe.optimizer == "sgd":
            recipe = short(recipe, steps)
            given_up.append(f"AdamW at {recipe.lr:g} in {recipe.steps} steps of 64 for them")
        else:
            recipe = recipe.with_steps(steps)
    return recipe, given_up
