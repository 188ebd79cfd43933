"""What the text tasks share: rows, tokenizer, batches of texts that are padded to the longest.

Letters: B texts, L tokens, V classes, N examples.
"""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoTokenizer
from headstart.data.cache import Bad
from headstart.data.labels import class_key
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources.raw import RawTable
from headstart.data.text_rows import Row
from headstart.data.texts import TextData, hold_out, read_texts
from headstart.errors import ConfigError, DataError, listed
from headstart.pipelines.base import ALIASES, PIPELINES
from headstart.recipe import Facts, Recipe
from headstart.tasks.base import Task

T = TypeVar("T")
BATCH = 32  # texts evaluated together
TOKENIZED_TOGETHER = 256  # texts
IGNORE = -100  # label that is left out of a loss


def reading(options: DataOptions) -> AbstractContextManager[object]:
    """Shows that texts are read and interpreted, which takes a second for every 100,000."""
    return options.progress.counting("reading texts", 1, "data sets")


class TextTask(Task):
    """Base of the text tasks: a task says how rows are read, become tensors, and are evaluated."""

    unit: ClassVar[str] = "texts"
    auto: ClassVar[Any]  # the automatic class of the network

    def __init__(self, data: TextData, options: DataOptions) -> None:
        self.data, self.options = data, options
        self.tokenizer: Any = None
        self.recipe = Recipe()
        self.max_length = 512
        self.encoded: dict[str, list[dict[str, Any]]] = {}
        self.tokenized: Callable[[int], None] = lambda count: None  # shows what `parts` has done

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        with reading(options):
            data = read_texts(path, options, cls.rows)
            labels = cls.strata(data)
            if options.classes is None:
                hold_out(data, options, labels)
            return cls(data, options)

    @staticmethod
    @abstractmethod
    def rows(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
        """Reads one file."""

    @classmethod
    def strata(cls, data: TextData) -> list[int] | None:
        """Class of each training row, where rows have one.

        Held-out rows are then of every class.
        """
        return None

    @property
    def splits(self) -> dict[str, int]:
        """See `Task.splits`."""
        return {split: len(rows) for split, rows in self.data.splits.items()}

    def names(self, split: str) -> Sequence[str]:
        """See `Task.names`."""
        return [row.name for row in self.data.splits[split]]

    def digests(self, split: str) -> Sequence[str]:
        """See `Task.digests`: of what was read."""
        return [
            hashlib.sha256(repr(sorted(row.values.items())).encode()).hexdigest()
            for row in self.data.splits[split]
        ]

    def keep(self, split: str, indices: NDArray[np.int64]) -> None:
        """See `Task.keep`."""
        rows = self.data.splits[split]
        self.data.splits[split] = [rows[i] for i in indices]
        self.encoded.pop(split, None)

    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """See `Task.subset`."""
        part, rows, examples = copy.copy(self), self.data.splits[split], self.encoded[split]
        if len(rows) == len(examples):  # blocks of running text are not those of its rows
            rows = [rows[i] for i in indices]
        part.data = replace(self.data, splits=self.data.splits | {split: rows})
        part.encoded = self.encoded | {split: [examples[i] for i in indices]}
        return part

    @property
    def notes(self) -> list[str]:
        """See `Task.notes`."""
        return self.data.notes

    @notes.setter
    def notes(self, notes: list[str]) -> None:
        self.data.notes = notes

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        return self.data.fingerprint()

    def facts(self) -> Facts:
        """See `Task.facts`."""
        return Facts(examples=len(self.data.splits["train"]), classes=len(self.labels))

    @property
    def labels(self) -> list[str]:
        """Names of the classes, none where the task has no classes."""
        return []

    def found(self) -> list[str]:
        """See `Task.found`."""
        parts = ", ".join(f"{len(rows)} {split}" for split, rows in self.data.splits.items())
        return [f"{sum(self.splits.values())} {self.what()} ({parts})", *self.data.notes]

    def what(self) -> str:
        """What the examples are."""
        return "texts"

    # Model ----------------------------------------------------------------------------------------

    def overrides(self) -> dict[str, Any]:
        """Values of the network's configuration that the data decides."""
        return {"id2label": dict(enumerate(self.labels))} if self.labels else {}

    def overrides_of(self, config: Any) -> dict[str, Any]:
        """Values that the data and the pretrained network's configuration decide together."""
        return {}

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        config = AutoConfig.from_pretrained(name, revision=revision)
        self._take_tokenizer(AutoTokenizer.from_pretrained(name, revision=revision), config, recipe)
        torch.manual_seed(recipe.seed)  # the new head is randomly initialized
        values = self.overrides() | self.overrides_of(config)
        model = self.new_model(name, revision, values)
        if recipe.zero_head and self.labels:
            last = last_linear(model, len(self.labels))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        return model

    def new_model(self, name: str, revision: str | None, values: dict[str, Any]) -> nn.Module:
        """The pretrained network with these values of its configuration."""
        model: nn.Module = self.auto.from_pretrained(name, revision=revision, **values)
        return model

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`."""
        self._take_tokenizer(
            AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name), Recipe()
        )
        model: nn.Module = self.auto.from_pretrained(name)
        return model

    def _take_tokenizer(self, tokenizer: Any, config: Any, recipe: Recipe) -> None:
        if len(tokenizer) > config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens and the network {config.vocab_size};"
                " they do not belong together"
            )
        self.tokenizer = tokenizer
        self.max_length = min(
            recipe.max_length or tokenizer.model_max_length, config.max_position_embeddings
        )
        self.recipe = replace(recipe, max_length=self.max_length)
        tokenizer.model_max_length = self.max_length

    def save(self, folder: Path) -> None:
        """See `Task.save`."""
        self.tokenizer.save_pretrained(folder)

    # Examples -------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, split: str) -> list[dict[str, Any]]:
        """The examples of a split as lists of numbers: `input_ids`, and what the loss needs."""

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`: texts are small, so their tokens stay in memory."""
        present = [split for split in splits if split in self.data.splits]
        total = sum(self.splits[split] for split in present)
        with self.options.progress.counting("tokenizing", total, self.unit) as self.tokenized:
            for split in present:
                self.encoded[split] = self.encode(split)
                cut = sum(bool(each.pop("cut", False)) for each in self.encoded[split])
                note = (
                    f"{cut} {split} texts are longer than {self.max_length} tokens and are cut"
                    " (max_length)"
                )
                if cut and note not in self.data.notes:
                    self.data.notes.append(note)

    def parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Rows that are tokenized together; shows how many are done.

        What the tokenizer knows beside the numbers of tokens takes many times their memory.
        """
        for start in range(0, len(rows), TOKENIZED_TOGETHER):
            part = rows[start : start + TOKENIZED_TOGETHER]
            yield part
            self.tokenized(len(part))

    def tokens(self, texts: list[Any], pairs: list[str] | None = None, **options: Any) -> Any:
        """The tokenizer's call on many texts, whole ones."""
        return self.tokenizer(texts, pairs, return_attention_mask=False, **options)

    def token_ids(
        self, texts: list[str], pairs: list[str] | None = None
    ) -> tuple[list[list[int]], list[bool]]:
        """At most `max_length` tokens of each text, and whether it has more.

        Only texts that are too long are tokenized again, to be cut as the tokenizer does.
        """
        ids: list[list[int]] = self.tokens(texts, pairs)["input_ids"]
        cut = [len(each) > self.max_length for each in ids]
        if long := [i for i, longer in enumerate(cut) if longer]:
            firsts = [texts[i] for i in long]
            seconds = None if pairs is None else [pairs[i] for i in long]
            how = {"truncation": "longest_first", "max_length": self.max_length}
            for i, each in zip(long, self.tokens(firsts, seconds, **how)["input_ids"], strict=True):
                ids[i] = each
        return ids, cut

    def tensors(self, example: dict[str, Any]) -> dict[str, Tensor]:
        """An encoded example as tensors."""
        return {key: torch.tensor(value) for key, value in example.items()}

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`."""
        return self.tensors(self.encoded["train"][index])

    @property
    def fills(self) -> dict[str, int]:
        """What holds a value for each token, and what is padded with."""
        return {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORE}

    def collate(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `Task.collate`.

        Texts are filled with padding, their mask with 0, labels of tokens with -100.
        """
        fills = self.fills
        longest = max(each["input_ids"].shape[-1] for each in examples)
        batch: dict[str, Tensor] = {}
        for key in ("attention_mask", *examples[0]):
            rows = [
                each[key] if key in each else torch.ones_like(each["input_ids"])
                for each in examples
            ]
            if key in fills:
                rows = [
                    nn.functional.pad(row, (0, longest - row.shape[-1]), value=fills[key])
                    for row in rows
                ]
            batch[key] = torch.stack(rows)  # (B, …, L)
        return batch

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: columns that are padding in all of these rows are cut off."""
        part = {key: value[rows] for key, value in batch.items()}
        longest = int(part["attention_mask"].sum(-1).max())
        return {
            k: (v[..., :longest] if k in self.fills else v).to(device, non_blocking=True)
            for k, v in part.items()
        }

    def batches(
        self, split: str, device: torch.device, some: Collection[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Examples of a split (None: all), alike in length together.

        Their numbers and the network's inputs.
        """
        examples = self.encoded[split]
        chosen = range(len(examples)) if some is None else some
        order = longest_first(chosen, lambda i: len(self.longest_of(examples[i])))
        with self.options.progress.counting("evaluating", len(order), self.unit) as seen:
            for start in range(0, len(order), BATCH):
                numbers = order[start : start + BATCH]
                batch = self.collate([self.tensors(examples[i]) for i in numbers])
                yield numbers, self.micro(batch, slice(None), device)
                seen(len(numbers))

    @staticmethod
    def longest_of(example: dict[str, Any]) -> list[int]:
        """The tokens of an example."""
        ids: list[int] = example["input_ids"]
        return ids

    @torch.inference_mode()
    def scores(
        self, model: nn.Module, split: str, device: torch.device, get: Callable[[Any], Tensor]
    ) -> list[NDArray[np.float32]]:
        """What the network predicts for each example, in the order of the split."""
        found: dict[int, NDArray[np.float32]] = {}
        for some, inputs in self.batches(split, device):
            out = (
                get(model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]))
                .float()
                .cpu()
                .numpy()
            )
            if not np.isfinite(out).all():
                raise ConfigError(
                    "the model's scores are not finite numbers: training diverged; try a smaller"
                    " --lr"
                )
            found |= dict(zip(some, out, strict=True))
        return [found[i] for i in range(len(found))]

    def card(self) -> str:
        """See `Task.card`."""
        if self.name in {**PIPELINES, **ALIASES}:
            call = 'predict("A text.")' if self.name in PIPELINES else 'predict("A <mask> text.")'
            return (
                f'from headstart import pipeline\n\npredict = pipeline("{self.name}",'
                f' "FOLDER")\nprint({call})\n'
            )
        network = self.auto.__name__
        return (
            f"from headstart import AutoTokenizer, {network}\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
            f'model = {network}.from_pretrained("FOLDER")\n'
            'out = model(**tokenizer("A text.", return_tensors="pt"))\n'
        )


def longest_first(items: Iterable[T], length: Callable[[T], int]) -> list[T]:
    """Texts in the order in which they become batches, alike in length together.

    The memory of a batch then serves the next one: batches that grow take twice as much.
    """
    return sorted(items, key=length, reverse=True)


def last_linear(model: nn.Module, size: int) -> nn.Linear:
    """The last linear layer that gives so many values: the head."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == size
    ][-1]


def class_names(values: list[str], options: DataOptions, what: str = "class") -> list[str]:
    """The classes of the training data in order: numbers by value, names by letter.

    Or those of an existing model.
    """
    names = options.classes or sorted(set(values), key=class_key)
    if len(names) < 2:
        raise DataError(
            f"the data has one {what}, {names[0]!r}; telling things apart needs at least two"
        )
    return names


def class_index(numbers: Mapping[str, int], label: str, where: str) -> int:
    """The number of a class.

    Raises:
        DataError: A class that the training data, or the model, does not have.
    """
    if label in numbers:
        return numbers[label]
    raise DataError(f"{where}: class {label!r} is not among {listed(numbers)}")
