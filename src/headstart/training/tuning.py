"""Full training after a fitted head: where it starts, its optimizer, learning rate and length.

The recipes of the families were made for large networks and long schedules. A small network, or a
run that a budget cuts, takes AdamW with a cosine over the steps that the time allows. Which of
three learning rates is found by successive halving: all three train on the same batches, the worst
is left out, the others go on. Examples that a batch sees for the first time are held out from what
was learned before, so that the loss of the latest steps compares the rates without other data.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object
from headstart.errors import ConfigError
from headstart.progress import metric_text, metric_title
from headstart.recipe import Recipe
from headstart.tasks import HeadTask
from headstart.training.estimate import RESERVE, SMALL, Estimate, fit_budget, short, steps_within
from headstart.training.loop import Batches, DivergedError, Loop

HEAD, STATE = "head", "head.json"
LARGE_RATE = 1e-4  # of AdamW for the others than small networks
RATES = (1 / 3, 1.0, 10 / 3)  # times the usual rate
ROUND = 0.04  # fraction of the steps that a round of the comparison of rates takes
FEWEST_STEPS = 8  # of a round below which its losses say nothing
HEAD_PART = 0.3  # fraction of a budget that the search for a head may take


@dataclass(frozen=True)
class Start:
    """The fitted head that full training starts from, saved in `head/` of the result folder.

    Args:
        split: What was held out.
        value: The headline metric on it.
        mirrored: Whether the head reads the average of an image and its mirror image.
        recipe: Of the head.
        trials: Heads that were compared.
    """

    split: str
    value: float
    mirrored: bool
    recipe: dict[str, Any]
    trials: list[dict[str, Any]]

    def write(self, folder: Path, model: nn.Module, task: HeadTask) -> None:
        """Writes network, processor or tokenizer, and this, which is there last."""
        saved: Any = model
        saved.save_pretrained(folder / HEAD)
        task.save(folder / HEAD)
        atomic_write(folder / HEAD / STATE, json.dumps(dataclasses.asdict(self)) + "\n")

    def compared(self, headline: str, value: float) -> str:
        """What came out of full training beside the head."""
        name = metric_title(headline)
        kept = "kept" if value > self.value else "the head alone is kept"
        return (
            f"every weight trained from the fitted head: {self.split} {name}"
            f" {metric_text(headline, value)}, of the head alone"
            f" {metric_text(headline, self.value)}; {kept}"
        )

    @classmethod
    def read(cls, folder: Path) -> "Start | None":
        """The start of a run in a folder; None where there is none."""
        path = folder / HEAD / STATE
        if not path.is_file():
            return None
        return as_dataclass(cls, read_object(path, ConfigError), path, ConfigError)


def begin_with(task: HeadTask, folder: Path, recipe: Recipe) -> nn.Module:
    """The network with the fitted head, for training: it sees each image once."""
    network = task.build(str(folder / HEAD), dataclasses.replace(recipe, zero_head=False))
    task.problem.standardize(task.head(network))
    config: Any = network.config
    if config.pools:
        config.average_mirrored = False
    return network


def examples_of(recipe: Recipe) -> int:
    """Training examples that all steps take."""
    return recipe.steps * recipe.batch_size


def planned(recipe: Recipe, side: int | None, parameters: int, fixed: bool) -> Recipe:
    """The recipe of full training that starts from a head, before its length is known.

    Args:
        recipe: The family's.
        side: Side of the images that the head was fitted at; None for texts.
        parameters: Weights of the network.
        fixed: Whether values of the recipe were given.
    """
    if fixed or recipe.name != "hyperrule" or parameters >= SMALL:
        return recipe
    return at_side(short(recipe, recipe.steps), side)


def at_side(recipe: Recipe, side: int | None) -> Recipe:
    """The recipe with images of this side, and the border around it in proportion."""
    if side is None or recipe.crop is None:
        return recipe
    resize = recipe.resize and round(recipe.resize * side / recipe.crop)
    return dataclasses.replace(recipe, crop=side, resize=resize)


def within(
    recipe: Recipe, estimate: Estimate, seconds: float, side: int | None, fixed: bool
) -> tuple[Recipe, list[str]]:
    """The recipe cut to a time, and what was given up for it.

    HyperRule keeps at least half of its steps, or makes way for AdamW at the head's side.

    Args:
        recipe: As `planned`.
        estimate: What its steps take.
        seconds: Time for everything.
        side: Side of the images that the head was fitted at; None for texts.
        fixed: Whether values of the recipe were given.
    """
    if recipe.name != "hyperrule" or recipe.optimizer != "sgd":
        return cut_steps(recipe, estimate, seconds)
    cut, given_up = fit_budget(recipe, estimate, seconds, head=False)
    if fixed or 2 * cut.steps >= recipe.steps:
        return cut, given_up
    pixels = 1.0 if side is None or recipe.crop is None else (side / recipe.crop) ** 2
    estimate = dataclasses.replace(
        estimate, example=pixels * estimate.example, forward=pixels * estimate.forward
    )
    brief = at_side(dataclasses.replace(short(recipe, recipe.steps), lr=LARGE_RATE), side)
    cut, given_up = cut_steps(brief, estimate, seconds)
    return cut, [f"AdamW at {cut.lr:g} in place of HyperRule", *given_up]


def cut_steps(recipe: Recipe, estimate: Estimate, seconds: float) -> tuple[Recipe, list[str]]:
    """The recipe with as many steps as fit into a time, and what was given up for it."""
    steps = steps_within(recipe, estimate, RESERVE * seconds)
    if steps >= recipe.steps:
        return recipe, []
    return recipe.with_steps(max(1, steps)), [f"{max(1, steps)} in place of {recipe.steps} steps"]


def rounds_of(recipe: Recipe, examples: int) -> int:
    """Steps of each round in which learning rates are compared; 0 where there is no time.

    Two rounds see the training data at most twice.
    """
    steps = int(min(ROUND * recipe.steps, examples / recipe.batch_size))
    return steps if recipe.optimizer == "adamw" and steps >= FEWEST_STEPS else 0


def choose_rate(
    loop_of: Callable[[Recipe], Loop], recipe: Recipe, steps: int
) -> tuple[float, dict[float, float]]:
    """The learning rate of the least loss, by successive halving.

    Args:
        loop_of: Gives the loop of a recipe, from the start.
        recipe: Has the usual rate.
        steps: Of each of two rounds.

    Returns:
        The rate, and the loss of each rate in its last round.
    """
    brief = recipe.with_steps(2 * steps)
    rates = [float(f"{recipe.lr * factor:.1g}") for factor in RATES]
    loops = {rate: loop_of(dataclasses.replace(brief, lr=rate)) for rate in rates}
    first = next(iter(loops.values()))
    batches = Batches(first.task, brief, first.world.rows(brief.batch_size), first.workers)
    found: dict[float, float] = {}
    try:
        for number in range(2):
            losses: dict[float, list[float]] = {rate: [] for rate in loops}
            for step in range(number * steps, (number + 1) * steps):
                batch = batches[step]
                for rate, loop in loops.items():
                    losses[rate].append(step_loss(loop, batch))
                    loop.step += 1
            found |= {rate: float(np.mean(each[-(steps // 2) :])) for rate, each in losses.items()}
            loops.pop(max(loops, key=found.__getitem__))
    finally:
        batches.close()
    return min(loops, key=found.__getitem__), found


def step_loss(loop: Loop, batch: Mapping[str, Any]) -> float:
    """Loss of a step; infinite from a step on in which training diverged."""
    try:
        return loop.update(dict(batch))["loss"]
    except DivergedError:
        return float("inf")
