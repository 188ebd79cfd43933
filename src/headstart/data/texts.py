"""Data sets of texts: tables, CoNLL, SQuAD and plain text files become splits of rows that know
where they came from.

What a row holds is its task's affair: a task gives the function that reads one file, see
`headstart.data.text_rows`; this module finds files and makes splits.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import Bad
from headstart.data.interpret import group_notes
from headstart.data.labels import SINGLE
from headstart.data.options import DataOptions
from headstart.data.sources import hub
from headstart.data.sources.raw import SPLIT_NAMES, RawTable, is_empty, numbered
from headstart.data.sources.tables import TABLE_SUFFIXES
from headstart.data.splits import split_rows
from headstart.data.text_rows import Reader, Row
from headstart.errors import ConfigError, DataError, listed

TEXT_SUFFIXES = (*TABLE_SUFFIXES, ".conll", ".conllu", ".iob", ".txt")


@dataclass
class TextData:
    """Rows by split, what cannot be used, and what the user should know."""

    splits: dict[str, list[Row]]
    bad: list[Bad] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Number of the group of each row, (N,), by split; rows of none have one of their own."""
        every = numbered([row.group for rows in self.splits.values() for row in rows])
        ends = np.cumsum([len(rows) for rows in self.splits.values()])
        return dict(zip(self.splits, np.split(every, ends[:-1]), strict=True))

    def fingerprint(self) -> str:
        """Hash of every row and its split; the order of rows does not matter."""
        whole = hashlib.sha256()
        for split in sorted(self.splits):
            for text in sorted(
                json.dumps(row.values, sort_keys=True, ensure_ascii=False)
                for row in self.splits[split]
            ):
                whole.update(f"{split}:{text};".encode())
        return whole.hexdigest()


def read_texts(
    path: str | Path, options: DataOptions, reader: Reader, suffixes: Sequence[str] = TEXT_SUFFIXES
) -> TextData:
    """Reads a data set of texts.

    Args:
        path: A file, or a folder whose files are named after their splits: train.csv,
            squad_dev.json, …; or a data set of the Hub, as `hf:owner/name`, or one that the
            `datasets` library saved.
        options: Columns, split, shots and seed. `options.extra["validation"]` and `["test"]` may
            name further files.
        reader: Reads one file.
        suffixes: Endings of files in a folder that are data.

    Raises:
        DataError: No data, or rows that cannot be used (unless `options.skip_bad`).
    """
    notes: list[str] = []
    found: dict[str, list[Row | Bad]] = {}
    for split, source in _sources(Path(path), suffixes).items():
        rows = list(reader(source, options))
        if split != "train" and isinstance(source, RawTable):
            notes += source.notes
            if all(isinstance(row, Bad) for row in rows):
                notes.append(f"split {split} of {path} has no labels and is left alone")
                continue
        for row in rows:
            own = row.values.pop("split", None) if isinstance(row, Row) else None
            place = split if own is None else _split_of(str(own), row.name)
            found.setdefault(place, []).append(row)
    for split in ("validation", "test"):
        if options.extra.get(split):
            sources = _sources(Path(options.extra[split]), suffixes).values()
            found[split] = [row for source in sources for row in reader(source, options)]
    usable = {s: [row for row in rows if isinstance(row, Row)] for s, rows in found.items()}
    bad = [row for rows in found.values() for row in rows if isinstance(row, Bad)]
    data = TextData(usable, bad, notes)
    total = sum(map(len, found.values()))
    if data.bad and not options.skip_bad:
        lines = listed((f"{each.name}: {each.reason}" for each in data.bad), 20, "\n  ")
        raise DataError(
            f"{len(data.bad)} of {total} rows cannot be used (mend them, or leave them out with"
            f" --skip-bad):\n  {lines}"
        )
    if data.bad:
        data.notes.append(f"{len(data.bad)} unusable rows left out")
    if not data.splits.get("train"):
        raise DataError(f"{path} has no usable training rows")
    return data


def _sources(path: Path, suffixes: Sequence[str]) -> dict[str, Path | RawTable]:
    """The file of each split, or its table where the `datasets` library reads it."""
    name = None if hub.is_saved(path) or path.exists() else hub.hub_name(path)
    if hub.is_saved(path) or name is not None:
        options = DataOptions(target="none")
        tables = hub.read_hub(name, options) if name else hub.read_saved(path, options)
        return {split: parts[0] for split, parts in tables.items()}
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if not path.is_dir():
        return {"train": path}
    return dict(_files_by_split(path, suffixes))


def _files_by_split(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        words = re.split(r"[._-]", file.name.lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if not file.is_file() or file.suffix.lower() not in suffixes or split is None:
            continue
        if split in found:
            raise DataError(
                f"both {found[split]} and {file} look like the {split} data; keep one, or name the"
                " file itself"
            )
        found[split] = file
    if "train" not in found:
        raise DataError(
            f"{path} holds no training data; expected a file such as train.csv, train.jsonl or"
            " train.txt"
        )
    return found


def _split_of(word: str, name: str) -> str:
    if word.strip().lower() not in SPLIT_NAMES:
        raise DataError(f"{name}: split is {word!r}; expected train, validation or test")
    return SPLIT_NAMES[word.strip().lower()]


def hold_out(data: TextData, options: DataOptions, labels: Sequence[int] | None = None) -> None:
    """Holds validation data out where there is none, then takes the shots.

    Args:
        data: Changed in place.
        options: Seed, fraction and shots.
        labels: Class of each training row, where rows have one: then every class is held out in
            proportion.
    """
    rows = data.splits["train"]
    if options.shots is not None and labels is None:
        raise ConfigError(
            f"shots={options.shots} are examples of each class, and these rows have no classes;"
            " leave it out"
        )
    classes = np.asarray(labels if labels is not None else np.zeros(len(rows)), dtype=np.int64)
    complete = "validation" in data.splits or "test" in data.splits
    groups = None
    if any(not is_empty(row.group) for each in data.splits.values() for row in each):
        number = data.groups()
        data.notes += group_notes(number, "rows")
        groups = number["train"]
    train, held_out, notes = split_rows(
        classes, SINGLE, options, "rows", complete=complete, groups=groups
    )
    data.notes += notes
    if len(held_out):
        data.splits["validation"] = [rows[i] for i in held_out]
    data.splits["train"] = [rows[i] for i in train]
