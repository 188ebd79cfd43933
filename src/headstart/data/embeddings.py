"""Files of embeddings: one row an image or text, its vector, and the model that made them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint.documents import parse_json, value_of
from headstart.data.results import (
    EMBEDDING_SUFFIXES,
    FACTS,
    ROW_GROUP,
    Kind,
    open_numpy,
    pyarrow_parquet,
)
from headstart.errors import FileFormatError, HeadstartError, InputError

Floats = NDArray[np.float32]
IMAGE_COLUMNS: dict[str, Kind] = {"path": "text", "features": "vector", "error": "text"}
TEXT_COLUMNS: dict[str, Kind] = {"text": "text", "content": "text", "features": "vector"}


@dataclass(frozen=True)
class Embeddings:
    """Vectors of images or texts, in the order of the inputs.

    Args:
        names: Path, row of a table or member of a tar of each image; name of each text.
        features: (N, D) float32; NaN where an image cannot be read.
        model: Name of the model that made them.
        key: Hash of its weights, configuration and preprocessing.
        errors: Why there is no vector, or "".
        contents: The texts; empty for images.
    """

    names: list[str]
    features: Floats
    model: str
    key: str
    errors: list[str]
    contents: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def facts(self) -> dict[str, str]:
        """What a file records beside its rows."""
        return {"model": self.model, "key": self.key, "width": str(self.features.shape[1])}


def read_embeddings(path: Path) -> Embeddings:
    """The embeddings of a file, all in memory.

    Args:
        path: What `headstart embed` wrote: Parquet or .npz.

    Raises:
        InputError: There is no such file, or it is not complete.
        FileFormatError: It is not a file of embeddings.
    """
    parts = list(embedding_blocks(path))
    return Embeddings(
        [name for part in parts for name in part.names],
        np.concatenate([part.features for part in parts]),
        parts[0].model,
        parts[0].key,
        [error for part in parts for error in part.errors],
        [text for part in parts for text in part.contents],
    )


@dataclass(frozen=True)
class Facts:
    """What is true of a whole file of embeddings.

    Args:
        rows: Its number of rows.
        model: Name of the model.
        key: Hash of its weights, configuration and preprocessing.
        width: Length of a vector.
        names: Its column of names: "path" of images, "text" of texts.
    """

    rows: int
    model: str
    key: str
    width: int
    names: str


def read_facts(path: Path) -> Facts:
    """The facts of a file, without its rows; raises as `read_embeddings`."""
    _check_file(path)
    if path.suffix.lower() == ".npz":
        with _numpy(path) as file:
            first = _first_column(path, file.files)
            facts = {name: str(file[name]) for name in ("model", "key", "width")}
            return _facts(path, facts, len(file[first]), first)
    with _parquet(path) as file:
        schema = file.schema_arrow
        text = (schema.metadata or {}).get(FACTS, b"{}").decode(errors="replace")
        facts = parse_json(text, str(path))
        first = _first_column(path, [*schema.names, *(facts if isinstance(facts, dict) else [])])
        return _facts(path, facts, file.metadata.num_rows, first)


def _facts(path: Path, facts: object, rows: int, names: str) -> Facts:
    model, key, width = (value_of(facts, each, str, path) for each in ("model", "key", "width"))
    if re.fullmatch("[0-9]{1,6}", width) is None:
        raise FileFormatError(f"{path}: width is {width!r:.40}; expected an integer")
    return Facts(rows, model, key, int(width), names)


def embedding_blocks(path: Path, *, vectors: bool = True) -> Iterator[Embeddings]:
    """As `read_embeddings`, at most `ROW_GROUP` rows at a time; one block at least.

    Args:
        path: What `headstart embed` wrote.
        vectors: False reads names and contents only; `features` is then (N, 0).
    """
    facts = read_facts(path)
    if path.suffix.lower() == ".npz":
        return _numpy_blocks(path, facts, vectors)
    return _parquet_blocks(path, facts, vectors)


def _check_file(path: Path) -> None:
    if not path.is_file():
        gathered = path.with_name(f"{path.name}.jsonl")
        why = f": the run was cut off; continue it with --resume ({gathered})"
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise InputError(
            f"{what}{why if gathered.is_file() else ''}; expected what `headstart embed` wrote"
        )
    if path.suffix.lower() not in EMBEDDING_SUFFIXES:
        raise InputError(
            f"{path} is not a file of vectors; expected what `headstart embed` wrote, a name that"
            f" ends in {' or '.join(EMBEDDING_SUFFIXES)}"
        )


def _numpy_blocks(path: Path, facts: Facts, vectors: bool) -> Iterator[Embeddings]:
    wanted = (facts.names, "error", "content")
    with _numpy(path) as file:
        texts = {name: file[name] for name in wanted if name in file.files}
        features = file["features"] if vectors else np.empty((facts.rows, 0), np.float32)
    shape = (facts.rows, facts.width if vectors else 0)
    if features.dtype != np.float32 or features.shape != shape:
        raise FileFormatError(
            f"{path}: features are {features.dtype} of {features.shape}; expected float32 of"
            f" {shape}"
        )
    for name, column in texts.items():
        if column.dtype.kind != "U" or column.shape != (facts.rows,):
            raise FileFormatError(f"{path}: {name}: expected {facts.rows} texts")
    for start in range(0, max(1, facts.rows), ROW_GROUP):
        rows = slice(start, start + ROW_GROUP)
        columns = {name: [str(value) for value in each[rows]] for name, each in texts.items()}
        yield _block(facts, columns, features[rows])


def _parquet_blocks(path: Path, facts: Facts, vectors: bool) -> Iterator[Embeddings]:
    with _parquet(path) as file:
        schema = file.schema_arrow
        if vectors and str(schema.field("features").type) != "list<element: float>":
            raise FileFormatError(f"{path}: features: expected lists of float32")
        names = [each for each in (facts.names, "error", "content") if each in schema.names]
        batches = file.iter_batches(ROW_GROUP, columns=[*names, *["features"] * vectors])
        for batch in chain(batches, [] if facts.rows else [schema.empty_table()]):
            columns = {
                name: [each or "" for each in batch.column(name).to_pylist()] for name in names
            }
            features = np.empty((len(columns[facts.names]), 0), np.float32)
            if vectors:
                features = _matrix(batch.column("features"), facts.width, path)
            yield _block(facts, columns, features)


def _block(facts: Facts, columns: dict[str, list[str]], features: Floats) -> Embeddings:
    names = columns[facts.names]
    errors = columns.get("error", [""] * len(names))
    return Embeddings(names, features, facts.model, facts.key, errors, columns.get("content", []))


@contextmanager
def _numpy(path: Path) -> Iterator[Any]:
    """An .npz file, whose errors are ours."""
    with open_numpy(path) as file:
        try:
            yield file
        except HeadstartError:
            raise
        except ValueError as error:
            raise FileFormatError(f"{path} cannot be read as .npz: {error}") from None


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """A Parquet file, whose errors are ours."""
    parquet = pyarrow_parquet()
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise FileFormatError(f"{path} cannot be read as Parquet: {error}") from None


def _first_column(path: Path, names: list[str]) -> str:
    """The column of names, "path" or "text"."""
    first = next((name for name in ("path", "text") if name in names), None)
    if first is None or not {"features", "model", "key", "width"} <= set(names):
        raise FileFormatError(
            f"{path} holds {', '.join(names)}; expected what `headstart embed` writes: path or"
            " text, features, and the model's name, key and width"
        )
    return first


def _matrix(features: Any, width: int, path: Path) -> Floats:
    """(N, D) of lists of floats, NaN where there is none."""
    valid = np.asarray(features.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    flat = np.asarray(features.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    if len(flat) != width * int(valid.sum()):
        raise FileFormatError(f"{path}: vectors of different lengths in features")
    found = np.full((len(valid), width), np.nan, dtype=np.float32)
    found[valid] = flat.reshape(-1, width)
    return found
