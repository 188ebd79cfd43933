"""Tasks: what a row of data is, which head learns it, what is measured and what the report shows.

A task is one file in this folder with one class, and one line in `TASKS`. The loop, the
checkpoints, the command line and the report know nothing about any task beyond the methods of
`Task`. A run calls them in this order:

1. `Task.read(path, options)` finds rows and labels. It reads no pixels and no model. Bad rows raise
   `DataError` with file and row.
2. `task.facts()` tells the recipe what was found; `task.found()` tells the user, in lines.
3. `task.build(name, recipe)` gives the model with its new head, and keeps the recipe and the
   model's processor or tokenizer, set to it.
4. `task.prepare(folder)` checks every example (in parallel), caches what is worth caching below
   `folder`, and raises `DataError` that lists the bad ones, or leaves them out when
   `options.skip_bad`.
5. For every step the loop asks for `task.example(index, rng)` of each index of the batch (in
   threads, ahead of time), then `task.collate(examples)`, `task.augment_batch(batch, rng)` and
   `task.weight(batch)` once for the whole batch, and for each micro-batch `task.loss(model,
   task.micro(batch, rows, device))`. The gradient is that of `sum of losses / weight`, whatever the
   micro-batch. All randomness comes from the `rng` passed in, which is a function of (seed, step,
   position): a resumed run repeats it.
6. `task.evaluate(model, split, device)` gives an `Evaluation`; `task.report(evaluation)` the
   sections of the report that are this task's.
7. `task.finish(model)` puts what only training knew into the weights, `task.save(folder)` writes
   processor or tokenizer beside them; `task.card()` says how the result is used, for the model
   card.

A batch is a dict of tensors whose first dimension is the example, so that rows can be cut out of
it; what belongs to the batch as a whole (MixUp's share) is a tensor without dimensions, and `micro`
knows about it.
"""

import difflib
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from headstart.progress import Progress
    from headstart.recipe import Facts, Recipe
    from headstart.report.page import Section
    from headstart.training.estimate import HeadCost

TASKS: dict[str, str] = {
    "image-classification": "headstart.tasks.image_classification:ImageClassification",
    "text-classification": "headstart.tasks.text_classification:TextClassification",
    "token-classification": "headstart.tasks.token_classification:TokenClassification",
    "question-answering": "headstart.tasks.question_answering:QuestionAnswering",
    "multiple-choice": "headstart.tasks.multiple_choice:MultipleChoice",
    "masked-language-modeling": "headstart.tasks.masked_language_modeling:MaskedLanguageModeling",
    "semantic-segmentation": "headstart.tasks.semantic_segmentation:SemanticSegmentation",
    "masked-image-modeling": "headstart.tasks.masked_image_modeling:MaskedImageModeling",
}


@dataclass
class Evaluation:
    """What a model did on one split.

    Args:
        split: "train", "validation" or "test".
        examples: How many examples were judged.
        metrics: Numbers by name; the task's `headline` is among them.
        interval: 95 % confidence interval of the headline.
        details: Arrays that the report needs, for example "logits" and "labels".
        max_error: Share of mistakes allowed among answers where a classifier may refuse to answer;
            None is the usual one.
    """

    split: str
    examples: int
    metrics: dict[str, float]
    interval: tuple[float, float] | None = None
    details: dict[str, "np.ndarray[Any, Any]"] = field(default_factory=dict)
    max_error: float | None = None


class Task(ABC):
    """One kind of training; see the top of this module for the order of calls."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """Finds rows and labels."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that is shown first, and that more is better of."""

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Number of examples by split: "train", and "validation" and "test" where there are any."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that was read: examples, labels and splits."""

    @abstractmethod
    def facts(self) -> "Facts":
        """What the recipe may depend on."""

    @abstractmethod
    def found(self) -> list[str]:
        """Lines that tell the user what was found."""

    @abstractmethod
    def build(self, name: str, recipe: "Recipe", *, revision: str | None = None) -> "nn.Module":
        """The pretrained model with a head for this data.

        None in `recipe` may be filled from its processor.
        """

    @abstractmethod
    def attach(self, name: str | Path) -> "nn.Module":
        """The model of a result folder with its own head and processor, for judging it on this
        data.
        """

    @abstractmethod
    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """Checks every example of these splits and fills the caches.

        Without a folder nothing is kept on disk.
        """

    @abstractmethod
    def example(self, index: int, rng: "np.random.Generator") -> dict[str, "Tensor"]:
        """One training example, augmented."""

    def collate(self, examples: list[dict[str, "Tensor"]]) -> dict[str, "Tensor"]:
        """The batch of these examples. Tasks whose examples differ in length pad here."""
        import torch

        return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}

    def augment_batch(
        self, batch: dict[str, "Tensor"], rng: "np.random.Generator"
    ) -> dict[str, "Tensor"]:
        """What mixes examples of a batch with each other."""
        return batch

    def weight(self, batch: dict[str, "Tensor"]) -> float:
        """What the sum of the batch's losses is divided by: examples, or tokens with a label."""
        return float(len(next(iter(batch.values()))))

    def micro(
        self, batch: dict[str, "Tensor"], rows: slice, device: "torch.device"
    ) -> dict[str, "Tensor"]:
        """The model's inputs for these rows of the batch, on the device."""
        return {key: value[rows].to(device, non_blocking=True) for key, value in batch.items()}

    @abstractmethod
    def loss(
        self, model: "nn.Module", inputs: dict[str, "Tensor"]
    ) -> tuple["Tensor", dict[str, "Tensor"]]:
        """Sum of the losses of these examples, and sums of further measures (divided by the same
        weight for the log).
        """

    @abstractmethod
    def evaluate(self, model: "nn.Module", split: str, device: "torch.device") -> Evaluation:
        """Judges the model on a split, without augmentation."""

    def finish(self, model: "nn.Module") -> None:  # noqa: B027 - most tasks have nothing to do
        """Puts what only training knew into the weights; called once, before they are written."""

    def report(self, evaluation: Evaluation) -> list["Section"]:
        """Sections of the report that only this task has."""
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the processor or tokenizer."""

    def card(self) -> str:
        """Python lines for the model card that use the result in `folder`."""
        return f'from headstart import pipeline\n\npredict = pipeline("{self.name}", "FOLDER")\n'


class TunesHead(ABC):
    """A task whose head can be fitted by itself, on features that are computed once."""

    @abstractmethod
    def head_cost(self, model: "nn.Module", device: "torch.device") -> "HeadCost":
        """What `tune_head` will cost, measured on a few examples."""

    @abstractmethod
    def tune_head(
        self, model: "nn.Module", device: "torch.device", progress: "Progress"
    ) -> dict[str, Evaluation]:
        """Fits the model's head, and judges it on every split that was held out.

        Called in place of `prepare`, the loop and `evaluate` when the recipe says `tune: head`.
        """


def task_class(name: str) -> type[Task]:
    """The class of the task of that name."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3) or list(TASKS)
        raise ConfigError(f"no task is called {name!r}; did you mean {' or '.join(near)}?")
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(importlib.import_module(module), attribute)
    return found
