"""Inputs in blocks: parts of a large input that one process reads, computes and writes by itself.

A block is a list of inputs, rows of a Parquet file, or a tar. Local inputs are the same, under the
same names, as those of `image_inputs` and `read_inputs`; files in other storage (`s3://…`) are read
by the process that computes the block.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import decode
from headstart.data.inputs import ImageInput, image_inputs, table_inputs
from headstart.data.sources import hub
from headstart.data.sources.raw import (
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    LARGEST_FILE,
    RawTable,
    is_hidden,
)
from headstart.data.sources.tables import READ_TOGETHER, open_parquet
from headstart.data.storage import file_names, is_uri, join, open_storage, read_file
from headstart.data.text_files import read_inputs, table_texts
from headstart.errors import DataError, InputError

BLOCK_ROWS = 1000  # inputs in a block


@dataclass(frozen=True)
class StoredImage:
    """An image in any storage, read by whoever computes with it.

    Args:
        name: Its URI.
    """

    name: str

    @property
    def key(self) -> object:
        """Equal for inputs that are the same file."""
        return self.name

    def pixels(self) -> NDArray[np.uint8]:
        """The upright pixels, (H, W, 3) uint8.

        Raises:
            InputError: The image cannot be read; the message names it.
        """
        try:
            return decode(read_file(self.name))
        except (OSError, InputError) as error:
            raise InputError(f"{self.name}: {error}") from None


Input = ImageInput | StoredImage | tuple[str, Any]  # the last one is a named text


@dataclass(frozen=True)
class Block:
    """A part of the inputs.

    Args:
        inputs: The inputs themselves; none where they are in `file`.
        file: A Parquet file or a tar, as a path or URI.
        start: First row of the Parquet file.
        stop: Row after the last one; 0 is the whole of a tar.
        task: Task of a text model, which reads texts; "" is images.
    """

    inputs: Sequence[Input] = ()
    file: str = ""
    start: int = 0
    stop: int = 0
    task: str = ""

    def __str__(self) -> str:
        if not self.file:
            return f"{name_of(self.inputs[0])} to {name_of(self.inputs[-1])}"
        return f"{self.file} rows {self.start + 1} to {self.stop}" if self.stop else self.file

    def identity(self) -> list[Any]:
        """What decides the rows of the block, as JSON."""
        names = [name_of(each) for each in self.inputs]
        return [names, self.file, self.start, self.stop, self.task]

    def read(self) -> Iterator[Input]:
        """The inputs, in order.

        Raises:
            DataError: The file cannot be read.
            OSError: The same.
        """
        if not self.file:
            yield from self.inputs
        elif self.stop:
            yield from _parquet_rows(self)
        else:
            yield from _members(self.file)


def name_of(item: Input) -> str:
    """How the user knows an input."""
    return item[0] if isinstance(item, tuple) else item.name


def image_blocks(paths: Sequence[str], rows: int | None = None) -> Iterator[Block]:
    """The images of files, folders, tables and tars, in blocks.

    Args:
        paths: As `image_inputs` takes them, and URIs of images, of folders of images, of Parquet
            files and of tars.
        rows: Inputs in a block, by default 1,000; a tar in other storage is one block.

    Raises:
        InputError: No images, or a path that does not exist.
        DataError: A table or tar that cannot be read.
    """
    rows = rows or BLOCK_ROWS
    if not paths:
        image_inputs([])  # says what is missing
    for kind, names in groupby(paths, _kind):
        if kind == "given":
            yield from _parts(image_inputs([Path(name) for name in names]), rows)
            continue
        for name in names:
            yield from _stored(name, rows) if kind == "stored" else _parquet_blocks(name, rows)


def text_blocks(
    task: str,
    paths: Sequence[str],
    texts: Sequence[str] = (),
    question: str | None = None,
    by_line: bool = False,
    rows: int | None = None,
) -> Iterator[Block]:
    """The texts of files and tables, in blocks; see `read_inputs`, and `image_blocks` for URIs."""
    rows = rows or BLOCK_ROWS
    stored = [name for name in paths if is_uri(name)]
    if len(stored) < len(paths) or texts or not paths:
        local = [Path(name) for name in paths if not is_uri(name)]
        yield from _parts(read_inputs(task, local, list(texts), question, by_line), rows)
    for name in stored:
        for file in file_names(name):
            if not file.lower().endswith(".parquet"):
                raise InputError(f"{file}: of texts in other storage only Parquet is read")
            yield from _parquet_blocks(file, rows, task)


def _parts(inputs: Sequence[Input], rows: int) -> Iterator[Block]:
    for start in range(0, len(inputs), rows):
        yield Block(list(inputs[start : start + rows]))  # not the whole table, where it is sent


def _kind(name: str) -> str:
    """How the images of a path are read: "stored", "parquet", or "given" by `image_inputs`."""
    if is_uri(name):
        return "stored"
    plain = Path(name).suffix.lower() == ".parquet" and not hub.is_table(Path(name))
    return "parquet" if plain and Path(name).is_file() else "given"


def _stored(name: str, rows: int) -> Iterator[Block]:
    """The images of a file or folder in other storage."""
    loose: list[StoredImage] = []
    found = False
    for file in file_names(name):
        suffix = PurePosixPath(file).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            loose.append(StoredImage(file))
        elif suffix == ".parquet":
            found = True
            yield from _parquet_blocks(file, rows)
        elif suffix == ".tar":
            found = True
            yield Block(file=file)
    if not loose and not found:
        raise InputError(f"{name} holds no images, no Parquet files and no tars")
    yield from _parts(loose, rows)


# Parquet ------------------------------------------------------------------------------------------


def _parquet_blocks(file: str, rows: int, task: str = "") -> Iterator[Block]:
    with open_parquet(file) as table:
        total = table.metadata.num_rows
    if not total:
        raise DataError(f"{file} has no rows")
    for start in range(0, total, rows):
        yield Block(file=file, start=start, stop=min(start + rows, total), task=task)


def _parquet_rows(block: Block) -> Iterator[Input]:
    """The rows of a block; of the row groups that hold them only a few rows are in memory."""
    with open_parquet(block.file) as parquet:
        names = parquet.schema_arrow.names
        columns = names
        if not block.task:
            empty = RawTable(Path(block.file), dict.fromkeys(names, ()), "row", ())
            columns = [empty.column("image", None, IMAGE_COLUMNS)]
        groups, at = _row_groups(parquet.metadata, block.start, block.stop)
        read = parquet.iter_batches(READ_TOGETHER, row_groups=groups, columns=columns)
        for batch in read:
            first, last = max(block.start, at), min(block.stop, at + len(batch))
            if first < last:
                part = batch.slice(first - at, last - first)
                cells = {name: part.column(name).to_pylist() for name in columns}
                places = range(first + 1, last + 1)
                yield from _rows(block, RawTable(Path(block.file), cells, "row", places))
            at += len(batch)


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows, and the number of the first row of the first of them."""
    found: list[int] = []
    first = at = 0
    for number in range(metadata.num_row_groups):
        after = at + metadata.row_group(number).num_rows
        if at < stop and after > start:
            first = first if found else at
            found.append(number)
        at = after
    return found, first


def _rows(block: Block, table: RawTable) -> Iterator[Input]:
    """The rows of a table; paths in it are relative to its place."""
    if block.task:
        texts = table_texts(block.task, table)
        for place, (name, text) in zip(table.places, texts, strict=True):
            yield (f"{block.file} row {place}" if is_uri(block.file) else name), text
        return
    if not is_uri(block.file):
        yield from table_inputs(table)
        return
    column = next(iter(table.columns))
    for place, cell in zip(table.places, table.columns[column], strict=True):
        name = f"{block.file} row {place}"
        value = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        if isinstance(value, bytes) and value:
            yield ImageInput(name, value)
        elif isinstance(value, str) and value.strip():
            value = value.strip()
            folder = block.file.rpartition("/")[0]
            yield StoredImage(value if is_uri(value) else join(folder, value))
        else:
            raise DataError(f"{name}: {column} is {value!r:.80}; expected an image or its path")


# Tars ---------------------------------------------------------------------------------------------


def _members(file: str) -> Iterator[ImageInput]:
    """The images of a tar, read from front to back."""
    storage, path = open_storage(file)
    try:
        with (
            storage.open_input_stream(path) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            yield from _images(file, tar)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{file} is not a plain (uncompressed) tar: {error}") from None


def _images(file: str, tar: tarfile.TarFile) -> Iterator[ImageInput]:
    for member in tar:
        name = PurePosixPath(member.name)
        hidden = any(map(is_hidden, name.parts))
        if not member.isfile() or hidden or name.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        data = tar.extractfile(member)
        assert data is not None
        yield ImageInput(f"{file} member {member.name}", data.read(LARGEST_FILE))
