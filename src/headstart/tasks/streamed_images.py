"""Image classification from shards that are read from front to back (`--stream`).

The data may fit on no disk: only a look at its first samples and the evaluation data are read
before training starts, and nothing of the training data is stored.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.cache import decode
from headstart.data.examples import Examples
from headstart.data.images import ImageData, notes_of
from headstart.data.interpret import class_names, interpret, labelled_by_split, read_class_names
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources.folders import read_source, split_of
from headstart.data.sources.raw import RawTable
from headstart.data.sources.tars import Streamed, expand_name
from headstart.data.storage import file_names, file_sizes, is_uri
from headstart.data.stream import LANES, WINDOW, Stream, is_parquet, stream_shard
from headstart.errors import ConfigError, DataError, InputError
from headstart.recipe import Facts, Recipe
from headstart.tasks.image import ImageTask
from headstart.tasks.image_classification import ImageClassification

LOOK = 1000  # samples of the first look
LOOKED_INTO = 8  # shards of the first look
SUFFIXES = (".tar", ".parquet")


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Args:
        names: Paths or URIs of tars or Parquet files.
        sizes: Bytes of each.
        examples: About how many samples they hold.
    """

    names: list[str]
    sizes: list[int]
    examples: int


class StreamedClassification(ImageClassification):
    """As `ImageClassification`, of training images that are read as they are needed.

    `examples["train"]` are those of the first look.
    """

    streams: ClassVar[bool] = True

    def __init__(
        self, data: ImageData, options: DataOptions, shards: Shards, labels: DataOptions
    ) -> None:
        super().__init__(data, options)
        self.shards, self.label_options = shards, labels
        self.stream: Stream | None = None

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`: looks at a few samples, and reads the evaluation data."""
        _refuse(options)
        names = shards_of(str(path))
        sizes = file_sizes(names)
        samples, per_byte = first_look(dict(zip(names, sizes, strict=True)))
        looked = sum(map(len, samples.values()))
        shards = Shards(names, sizes, max(looked, round(per_byte * sum(sizes))))
        known = _known_classes(options, names[0])
        labels = replace(options, classes=known, extra={})
        tables = {"train": [table_of(shard, part) for shard, part in samples.items()]}
        evaluated = _evaluation_tables(options)
        data = interpret(labelled_by_split(tables | evaluated, labels), labels, Path(path))
        data.notes[:0] = notes_of(evaluated)
        data.notes += _notes(shards, looked, known is not None, "validation" in evaluated)
        labels = replace(labels, classes=data.classes, problem_type=data.kind)
        return cls(data, options, shards, labels)

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of the shards' names and sizes, and of what was looked at."""
        whole = hashlib.sha256(super().fingerprint.encode())
        names = [name.rpartition("/")[2] for name in self.shards.names]
        whole.update(json.dumps([names, self.shards.sizes]).encode())
        return whole.hexdigest()

    def facts(self) -> Facts:
        """See `Task.facts`."""
        return replace(super().facts(), examples=self.shards.examples)

    def found(self) -> list[str]:
        """See `Task.found`."""
        lines = super().found()
        others = ", ".join(f"{n} {split}" for split, n in self.splits.items() if split != "train")
        lines[0] = (
            f"about {self.shards.examples:,} training images in {len(self.shards.names)} shards"
            f"{f' and {others}' if others else ''}; {self._describe_labels()} in the first look"
        )
        return lines

    # Training -------------------------------------------------------------------------------------

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`: of the training images only those of the first look are checked."""
        looked = [each for each in self.bad if each.split == "train"]
        self.fill_caches(folder, [split for split in splits if split != "train"])
        if "train" in splits:
            self.bad += looked
            self.drop_bad(("train",))
            self.caches["train"] = self.cache("train", None)

    def drop_bad(self, splits: Sequence[str] = SPLITS) -> None:
        """See `ImageTask.drop_bad`; classes need not be in the first look."""
        ImageTask.drop_bad(self, splits)

    def batch_items(self, recipe: Recipe, step: int, rows: slice) -> list[Any]:
        """See `Task.batch_items`."""
        return self._stream_of(recipe).rows(step, rows)

    def _stream_of(self, recipe: Recipe) -> Stream:
        """The stream of a recipe, which decides size and order of the batches."""
        if self.stream is None or (self.stream.bounds[-1], self.stream.seed) != (
            recipe.batch_size,
            recipe.seed,
        ):
            extra = self.options.extra
            self.stream = Stream(
                self.shards.names,
                self.labelled,
                recipe.batch_size,
                recipe.seed,
                lanes=extra.get("lanes", LANES),
                window=extra.get("window", WINDOW),
            )
        return self.stream

    def labelled(self, shard: str, samples: Sequence[Streamed]) -> Examples:
        """Samples of a shard with their labels."""
        table = table_of(shard, samples)
        parts = labelled_by_split({"train": [table]}, self.label_options)
        try:
            return interpret(parts, self.label_options, Path(shard)).splits["train"]
        except DataError as error:
            raise DataError(
                f"{error}; the classes are those of the first look, unless a classes.json beside"
                " the shards lists them all (or --option classes=FILE)"
            ) from None

    def example(self, index: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: of a streamed image, or of one of the first look by its number."""
        if isinstance(index, int):
            return super().example(index, rng)
        examples, at = index
        try:
            pixels = self.caches["train"].view(decode(examples.images[at]))
        except InputError as error:
            return self.replaced(examples.names[at], str(error), rng)
        return self.augmented(pixels, examples.labels[at], rng)

    def positions(self, step: int) -> NDArray[np.int64]:
        """See `Task.positions`."""
        assert self.stream is not None
        return self.stream.positions(step)

    def go_to(self, recipe: Recipe, positions: Sequence[Sequence[int]]) -> None:
        """See `Task.go_to`."""
        self._stream_of(recipe).go_to(positions)


def _refuse(options: DataOptions) -> None:
    """Refuses options that need all training examples at once."""
    if options.shots is not None:
        raise ConfigError("--stream reads all training data; --shots takes a few: leave one out")
    if options.val_fraction not in (0, DataOptions().val_fraction):
        raise ConfigError(
            f"--stream holds nothing out: leave val_fraction={options.val_fraction:g} out, and give"
            " the validation data with --val"
        )
    if options.extra.get("look") is not None:
        raise ConfigError("--stream opens few images beforehand by itself: leave look out")
    for name in ("lanes", "window"):
        value = options.extra.get(name, 1)
        if type(value) is not int or value < 1:
            raise ConfigError(f"--option {name}={value}; expected an integer above 0")


def _known_classes(options: DataOptions, shard: str) -> list[str] | None:
    """All classes, where a file lists them."""
    if options.extra.get("classes"):
        return read_class_names(Path(options.extra["classes"]))
    return None if is_uri(shard) else class_names(Path(shard))


def shards_of(path: str) -> list[str]:
    """The shards of a pattern (`train-{0000..0099}.tar`), of a folder, or one file; URIs too.

    Raises:
        DataError: There are none.
    """
    found = expand_name(path)
    if len(found) == 1:
        try:
            files = file_names(path, below=False)
        except InputError as error:
            raise DataError(str(error)) from None
        shards = [name for name in files if name.lower().endswith(SUFFIXES)]
        found = [name for name in shards if split_of(Path(name)) in (None, "train")]
    if not found or not all(name.lower().endswith(SUFFIXES) for name in found):
        raise DataError(
            f"{path}: --stream reads tars (WebDataset shards) and Parquet files; give"
            " train-{0000..0099}.tar, or a folder of them"
        )
    return found


def first_look(shards: Mapping[str, int]) -> tuple[dict[str, list[Streamed]], float]:
    """The first samples of a few shards, and samples per byte.

    Args:
        shards: Bytes of each shard.

    Raises:
        DataError: There are no samples.
    """
    names, count = list(shards), min(LOOKED_INTO, len(shards))
    chosen, most = [names[len(names) * i // count] for i in range(count)], LOOK // count
    read = {shard: list(islice(stream_shard(shard), most)) for shard in chosen}
    found = {shard: samples for shard, samples in read.items() if samples}
    if not found:
        raise DataError(f"{chosen[0]}: no sample with an image; expected 0.jpg and 0.cls, …")
    size = sum(
        samples[-1].end if len(samples) == most else shards[shard]
        for shard, samples in found.items()
    )
    return found, sum(map(len, found.values())) / size


def table_of(shard: str, samples: Sequence[Streamed]) -> RawTable:
    """Samples of a shard as a table."""
    names = list(dict.fromkeys(name for each in samples for name in each.row))
    columns = {name: [each.row.get(name) for each in samples] for name in names}
    places = [each.name for each in samples]
    if not is_parquet(shard):
        return RawTable(Path(shard), columns, "member", places, "image")
    table = RawTable(Path(shard), columns, "row", places)
    if table.usual_column(("split",)) is not None:
        raise DataError(
            f"{shard} has a column split; --stream takes all its rows as training data: write each"
            " split into files of its own"
        )
    return table


def _evaluation_tables(options: DataOptions) -> dict[str, list[RawTable]]:
    """What `--val` and `--test` name."""
    found = {}
    for split in ("validation", "test"):
        if options.extra.get(split):
            plain = replace(options, extra={})
            parts: Mapping[str, list[RawTable]] = read_source(options.extra[split], plain)
            found[split] = [table for tables in parts.values() for table in tables]
    return found


def _notes(shards: Shards, looked: int, listed: bool, evaluated: bool) -> list[str]:
    found = [
        f"a first look at {looked:,} of about {shards.examples:,} images: their format and size;"
        " the others, and what is truncated, are found as they are read"
    ]
    if not listed:
        found.append("the classes are those of the first look: a classes.json would list them all")
    if not evaluated:
        found.append(
            "no validation data (--val), and nothing of a stream is held out: the result will not"
            " be evaluated"
        )
    if len(shards.names) < LANES:
        found.append(f"{len(shards.names)} shards for {LANES} readers: more shards mix better")
    return found
