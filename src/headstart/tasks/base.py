"""Bases of the tasks: what a row of data is, which head learns it, which metrics evaluate it.

A task is one file in this package with one class, one line in `headstart.tasks.TASKS` and, where
its report shows more than numbers, one function in `headstart.report.sections`. The loop, the
checkpoints, the command line and the report know nothing about any task beyond the methods of
`Task`. A run calls them in this order:

1. `Task.read(path, options)` finds rows and labels. It reads no pixels and no model. Bad rows raise
   `DataError` with file and row.
2. `task.facts()` is what the recipe may depend on; `task.found()` describes the data to the user.
3. `task.build(name, recipe)` gives the model with its new head, and keeps the recipe and the
   model's processor or tokenizer, set to it.
4. `task.prepare(folder)` checks every example (in parallel), caches what is worth caching below
   `folder`, and raises `DataError` that lists the bad ones, or leaves them out when
   `options.skip_bad`.
5. For every step the loop asks for `task.example(item, rng)` of each item of
   `task.batch_items(recipe, step, rows)` (in threads, ahead of time), then
   `task.collate(examples)`, `task.augment_batch(batch, rng)` and `task.weight(batch)` once for the
   whole batch, and for each micro-batch `task.loss(model, task.micro(batch, rows, device))`. The
   gradient is that of `sum of losses / weight`, whatever the micro-batch. All randomness comes from
   the `rng` passed in, which is a function of (seed, step, position): a resumed run repeats it.
6. `task.evaluate(model, split, device)` gives an `Evaluation` with all that a report shows.
7. `task.finish(model)` puts what only training knew into the weights, `task.save(folder)` writes
   processor or tokenizer beside them; `task.card()` is example code for the model card.

A batch is a dict of tensors whose first dimension is the example, so that rows can be cut out of
it; what belongs to the batch as a whole (the proportion of MixUp) is a tensor without dimensions,
and `micro` knows about it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.options import SPLITS, DataOptions, check_roles
from headstart.data.splits import batch_indices
from headstart.errors import ConfigError
from headstart.metrics.calibration import Calibration, calibrate
from headstart.metrics.optional import scipy
from headstart.recipe import Facts, Recipe
from headstart.tasks.problems import Problem

Inputs = dict[str, Tensor]


@dataclass
class Evaluation:
    """Metrics of a model on one split, and what they were computed from.

    Args:
        split: "train", "validation" or "test".
        examples: Number of examples evaluated.
        metrics: Numbers by name; the task's `headline` is among them.
        interval: 95 % confidence interval of the headline.
        details: Arrays that the report needs, for example "logits" and "labels".
        max_error: Target error rate of a classifier that may refuse to answer; None is the usual
            one.
        notes: What the user should know about the examples.
    """

    split: str
    examples: int
    metrics: dict[str, float]
    interval: tuple[float, float] | None = None
    details: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    max_error: float | None = None
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value:.4g}" for name, value in list(self.metrics.items())[:3])
        return f"Evaluation({self.split!r}, {self.examples} examples{shown})"

    @cached_property
    def calibration(self) -> Calibration | None:
        """The cross-fit of the temperature; None unless each example has one class."""
        logits, labels = self.details.get("logits"), self.details.get("labels")
        if logits is None or labels is None or logits.ndim != 2:
            return None
        return calibrate(logits, labels) if labels.ndim == 1 and labels.dtype.kind == "i" else None


class Task(ABC):
    """One kind of training; see the top of this module for the order of calls."""

    name: ClassVar[str]
    unit: ClassVar[str] = "examples"  # what the examples are, in rates
    # `DataOptions.extra` may hold these and "validation" and "test"
    option_names: ClassVar[tuple[str, ...]] = ()
    column_roles: ClassVar[tuple[str, ...]] = ()  # what `DataOptions.columns` may name
    default_model: ClassVar[str | None] = None  # pretrained model where none is given
    # columns of `predictions.csv` after split and name
    prediction_columns: ClassVar[tuple[str, ...]] = ("label", "prediction", "probability")
    streams: ClassVar[bool] = False  # whether training examples are read from front to back
    notes: list[str]  # what the user should know about the data

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        return f"{type(self).__name__}({counts})"

    @property
    def result_task(self) -> str:
        """Task of the network that training leaves, by name."""
        return self.name

    @classmethod
    def check_options(cls, options: DataOptions) -> None:
        """Refuses options of the task, and roles of columns, that it does not have.

        Raises:
            ConfigError: Names one, and those that there are.
        """
        unknown = [name for name in options.extra if name not in {*cls.option_names, *SPLITS[1:]}]
        if unknown:
            known = ", ".join(sorted(cls.option_names)) or "none"
            raise ConfigError(f"{cls.name} has no option {unknown[0]!r}; its options: {known}")
        check_roles(options.columns, cls.column_roles, cls.name)

    @classmethod
    @abstractmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """Finds rows and labels."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that is shown first; higher is better."""

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Number of examples by split: "train", and "validation" and "test" where there are any."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that was read: examples, labels and splits."""

    @abstractmethod
    def facts(self) -> Facts:
        """What the recipe may depend on."""

    @abstractmethod
    def found(self) -> list[str]:
        """Lines that describe the data to the user."""

    @abstractmethod
    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """The pretrained model with a head for this data.

        None in `recipe` may be filled from its processor.
        """

    @abstractmethod
    def attach(self, name: str | Path) -> nn.Module:
        """The model of a result folder with its own head and processor, to evaluate it."""

    @abstractmethod
    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """Checks every example of these splits and fills the caches.

        Without a folder nothing is kept on disk.
        """

    def batch_items(self, recipe: Recipe, step: int, rows: slice) -> list[Any]:
        """The training examples in these rows of the batch of a step, as `example` takes them."""
        count, size = self.splits["train"], recipe.batch_size
        found: list[int] = batch_indices(count, size, step, recipe.seed)[rows].tolist()
        return found

    @abstractmethod
    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One training example, augmented; `index` is an item of `batch_items`, or a number."""

    def positions(self, step: int) -> NDArray[np.int64]:
        """Where the readers of a task that streams go on at a step, (L, 4).

        Integers that `go_to` takes, and 1 in the last column where this process knows them.
        """
        raise NotImplementedError

    def go_to(self, recipe: Recipe, positions: Sequence[Sequence[int]]) -> None:
        """Makes the readers of a task that streams go on at positions (L, 3)."""
        raise NotImplementedError

    def collate(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The batch of these examples. Tasks whose examples differ in length pad here."""
        return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}

    def augment_batch(
        self, batch: dict[str, Tensor], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """What mixes examples of a batch with each other."""
        return batch

    def weight(self, batch: dict[str, Tensor]) -> float:
        """What the sum of the batch's losses is divided by: examples, or tokens with a label."""
        return float(len(next(iter(batch.values()))))

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """The model's inputs for these rows of the batch, on the device."""
        return {key: value[rows].to(device, non_blocking=True) for key, value in batch.items()}

    @abstractmethod
    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of these examples, and sums of further metrics for the log."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """Evaluates the model on a split, without augmentation."""

    def class_figures(self, evaluation: Evaluation) -> dict[str, Any]:
        """Figures of each class and the confusion matrix, as `results.json` holds them; none where
        the examples have no classes.
        """
        return {}

    def prediction_rows(self, evaluation: Evaluation) -> list[tuple[str, ...]]:
        """Name and `prediction_columns` of every example of an evaluation; none where it is not
        known what was predicted.
        """
        return []

    def finish(self, model: nn.Module) -> None:  # noqa: B027 - most tasks have nothing to do
        """Puts what only training knew into the weights; called once, before they are written."""

    def names(self, split: str) -> Sequence[str]:
        """How each example of a split is named to the user; empty where it has no name."""
        return []

    @property
    def looks_at_a_part(self) -> bool:
        """Whether examples were left unopened before training started."""
        return False

    def digests(self, split: str) -> Sequence[str]:
        """Content hash of each example of a split; empty where none is known."""
        return []

    @abstractmethod
    def keep(self, split: str, indices: NDArray[np.int64]) -> None:
        """Leaves out all other examples of a split, in everything that is in its order."""

    @abstractmethod
    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """A task to evaluate a model on some examples of a prepared split; this one keeps all."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the processor or tokenizer."""

    def card(self) -> str:
        """Python lines for the model card, where FOLDER stands for the result folder."""
        return f'from headstart import pipeline\n\npredict = pipeline("{self.name}", "FOLDER")\n'


class HeadTask(Task):
    """A task whose last layer can be fitted by itself, on features that are computed once."""

    problem: Problem

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the outputs: classes, labels or regression targets."""

    @abstractmethod
    def head(self, model: nn.Module) -> nn.Linear:
        """The last layer; layers of the head before it are made to pass on what they get."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What decides the features beside the network, as JSON."""

    @abstractmethod
    def feature_digests(self) -> dict[str, list[str]]:
        """Hash of the content of every example by split, by which its features are found again."""

    def digests_at(self, split: str, rows: Sequence[int]) -> list[str]:
        """Those of some examples of a split; "" of one that cannot be read."""
        digests = self.feature_digests()[split]
        return [digests[row] for row in rows]

    @abstractmethod
    def feature_sizes(self, digests: Sequence[str]) -> list[int]:
        """Relative cost of the features of these examples."""

    @abstractmethod
    def feature_inputs(self, digests: Sequence[str]) -> Iterator[tuple[list[str], Inputs]]:
        """The network's inputs in batches, with the digests that they belong to.

        What cannot be read has no inputs, and is left out by `drop_unread`.
        """

    def drop_unread(self) -> None:  # noqa: B027 - texts can always be read
        """Raises for examples that `feature_inputs` could not read, or leaves them out."""

    def sides(self) -> list[int]:
        """Sides of images in pixels that a head may be fitted at, the usual one first; none for
        texts.
        """
        return []

    @property
    def side(self) -> int | None:
        """Side in pixels of the images that `feature_inputs` gives; None for texts."""
        return None

    def set_side(self, side: int | None) -> None:  # noqa: B027 - texts have none
        """Makes `feature_inputs` give images of this side; None leaves it as it is."""

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Group of each of these training examples, (N,): those that are nearly the same share one.

        Here those of the same content.
        """
        digests = self.feature_digests()["train"]
        _, inverse = np.unique([digests[row] for row in rows], return_inverse=True)
        return np.asarray(inverse)

    @abstractmethod
    def targets(self, split: str) -> NDArray[Any]:
        """Classes (N,), or labels and regression targets (N, V), of a split."""

    @abstractmethod
    def evaluate_scores(self, split: str, scores: NDArray[np.float32]) -> Evaluation:
        """The evaluation of scores (N, V) of a split."""


def joined_groups(
    count: int, pairs: Sequence[tuple[int, int]] | NDArray[np.int64], own: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Group of each example, (N,): examples of a pair, and of one of their own groups, share it."""
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if own is not None:
        _, first, which = np.unique(own, return_index=True, return_inverse=True)
        edges = np.concatenate([edges, np.stack([first[which], np.arange(count)], axis=1)])
    graph = scipy("sparse").coo_matrix(
        (np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count)
    )
    _, group = scipy("sparse.csgraph").connected_components(graph, directed=False)
    return np.asarray(group, dtype=np.int64)


def can_fit_head(task: Task) -> bool:
    """Whether the last layer of a task can be fitted by itself: all its examples are at hand."""
    return isinstance(task, HeadTask) and not task.streams
