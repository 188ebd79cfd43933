"""Labelled images: class folders, tables, arrays, tars and Hub data sets become splits of images
and labels.

What is read here is names and labels; pixels are read by `headstart.data.cache`.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.data.examples import Examples
from headstart.data.interpret import ImageData, interpret, labelled_by_split
from headstart.data.labels import REGRESSION, SINGLE
from headstart.data.options import DataOptions
from headstart.data.sources.folders import read_source
from headstart.data.sources.raw import Tables
from headstart.data.splits import split_rows
from headstart.errors import DataError, listed

__all__ = ["ImageData", "combined_fingerprint", "read_images", "read_unlabeled_images"]


def read_images(path: str | Path, options: DataOptions) -> ImageData:
    """A data set of labelled images.

    Args:
        path: A folder of class folders, or of `train` and `val` (and `test`) folders, tables, tars
            or `.npz` files; one such file; several tars as `shard-{0000..0003}.tar`; a data set
            that the `datasets` library saved; or one on the Hub, as `hf:owner/name`.
        options: Columns, split, shots and seed. `options.extra["validation"]` and `["test"]` may
            name further data.

    Returns:
        Classes, examples by split, and notes.

    Raises:
        DataError: No such data, or rows that cannot be used; with file and row.
    """
    with options.progress.counting("reading labels", 1, "data sets"):
        tables = read_source(path, options)
        data = interpret(labelled_by_split(tables, options), options, Path(path))
        data.notes[:0] = notes_of(tables)
        return data if options.classes is not None else _split(data, options)


def read_unlabeled_images(path: str | Path, options: DataOptions) -> ImageData:
    """The images of a data set that `read_images` takes, or anywhere below a folder, without their
    labels; there is one class.
    """
    options = replace(options, target="none")
    with options.progress.counting("reading images", 1, "data sets"):
        tables = read_source(path, options)
        splits = {
            split: Examples(part.images, np.zeros(len(part.images), dtype=np.int64), part.names)
            for split, part in labelled_by_split(tables, options).items()
        }
        data = ImageData(["images"], splits, notes_of(tables))
        return data if options.classes is not None else _split(data, options)


def notes_of(tables: Tables) -> list[str]:
    """What the user should know about the parts of a source."""
    return [note for parts in tables.values() for table in parts for note in table.notes]


def _split(data: ImageData, options: DataOptions) -> ImageData:
    """The same data with validation examples held out where there are none, and the shots taken."""
    whole = data.splits["train"]
    if options.shots is not None and data.kind == REGRESSION:
        raise DataError(
            f"--shots {options.shots} are examples of each class, and these are regression targets;"
            " leave it out"
        )
    complete = "validation" in data.splits or "test" in data.splits
    rows, held_out, notes = split_rows(
        whole.labels, data.kind, options, "images", complete=complete, groups=whole.groups
    )
    train = whole.take(rows) if len(rows) < len(whole) else whole
    splits = data.splits | {"train": train}
    if len(held_out):
        splits["validation"] = whole.take(held_out)
    if options.shots is not None:
        short = _short(train, data, options.shots)
        if short:
            notes.append(
                f"fewer than {options.shots} training images in {listed(short)}: all of them are"
                " taken"
            )
    return replace(data, splits=splits, notes=data.notes + notes)


def _short(train: Examples, data: ImageData, shots: int) -> list[str]:
    """Classes with fewer training examples than `shots`."""
    counts = np.bincount(train.labels) if data.kind == SINGLE else train.labels.sum(0)
    few = np.flatnonzero((counts < shots) & (counts > 0))
    return [data.classes[i] for i in few]


def combined_fingerprint(
    classes: list[str], splits: dict[str, Examples], digests: dict[str, list[str]]
) -> str:
    """Hash of a data set: classes, and split, label and content hash of every example.

    Names and folders do not matter.
    """
    whole = hashlib.sha256(json.dumps(classes).encode())
    for split in sorted(splits):
        for label, digest in sorted(
            zip(splits[split].labels.tolist(), digests[split], strict=True)
        ):
            whole.update(f"{split}:{label}:{digest};".encode())
    return whole.hexdigest()
