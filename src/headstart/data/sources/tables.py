"""Tables in files: CSV, TSV, JSON lines and Parquet, as columns that know their rows."""

import bisect
import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint.documents import parse_json, read_text
from headstart.data.sources.raw import RawTable, pooled
from headstart.data.sources.tars import Streamed
from headstart.data.storage import file_sizes, open_storage
from headstart.errors import DataError, MissingExtraError, listed

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
LARGEST_CELL = (1 << 31) - 1  # characters
DECODED_TOGETHER = 4096  # rows of a Parquet file that is read whole
READ_TOGETHER = 256  # rows of Parquet that are in memory together


def read_table(path: str | Path, *, header: bool = True) -> RawTable:
    """A table, read by the ending of its name.

    CSV follows RFC 4180. TSV is split at tabs only, quotes are text, as in the GLUE files.

    Args:
        path: The file.
        header: Whether the first line of a CSV or TSV file holds the names; else columns are named
            by their number, "1" first.

    Returns:
        The columns, and the line or row that each row is at.

    Raises:
        DataError: The file is not such a table, or has no rows.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    read_csv = partial(_read_csv, header=header)
    readers: dict[str, Callable[[Path], RawTable]] = {
        ".csv": read_csv,
        ".tsv": read_csv,
        ".jsonl": _read_json,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise DataError(
            f"{path} is not a table; expected a file that ends in {', '.join(TABLE_SUFFIXES)}"
        )
    try:
        table = readers[suffix](path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if not len(table):
        raise DataError(f"{path} has no rows")
    return table


def _read_csv(path: Path, header: bool) -> RawTable:
    with path.open("rb") as begin:
        # spreadsheets write "Unicode text" as UTF-16 with a mark of its byte order, and tabs
        wide = begin.read(2) in (b"\xff\xfe", b"\xfe\xff")
    with path.open(encoding="utf-16" if wide else "utf-8-sig", newline="") as file:
        head = file.readline(1 << 20)
        file.seek(0)
        # semicolons are written by spreadsheets where the comma is for decimals
        separator = next((mark for mark in (",;\t" if header else ",;") if mark in head), ",")
        if path.suffix.lower() == ".tsv":
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, delimiter=separator, strict=True)
        limit = csv.field_size_limit(LARGEST_CELL)
        try:
            return _csv_columns(path, reader, header)
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from None
        finally:
            csv.field_size_limit(limit)


def _csv_columns(path: Path, reader: Any, header: bool) -> RawTable:
    names: list[str] | None = next(reader, []) if header else None
    cells: list[list[str]] = [[] for _ in names or ()]
    places: list[int] = []
    for values in reader:
        if not values or (len(values) > 1 and not any(values)):  # spreadsheets end with such rows
            continue
        if names is None:
            names = [str(i) for i in range(1, len(values) + 1)]
            cells = [[] for _ in names]
        if len(values) != len(names):
            raise DataError(
                f"{path} line {reader.line_num}: {len(values)} values for {len(names)} columns"
            )
        for column, value in zip(cells, values, strict=True):
            column.append(value)
        places.append(reader.line_num)
    names = names or []
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name in {listed(names)}")
    columns = {name: pooled(column) for name, column in zip(names, cells, strict=True)}
    return RawTable(path, columns, "line", np.asarray(places, dtype=np.int64))


def _read_json(path: Path) -> RawTable:
    """JSON lines, or one JSON list of objects."""
    text = read_text(path, error=DataError)
    unit = "row" if text.lstrip().startswith("[") else "line"
    columns: dict[str, list[Any]] = {}
    places: list[int] = []
    for place, row in _json_rows(text, path, unit):
        if not isinstance(row, dict):
            raise DataError(
                f'{path} {unit} {place}: expected an object like {{"image": …, "label": …}}, found'
                f" {type(row).__name__}"
            )
        for name in row:
            if name not in columns:
                columns[name] = [None] * len(places)
        for name, cells in columns.items():
            cells.append(row.get(name))
        places.append(place)
    return RawTable(path, {name: pooled(cells) for name, cells in columns.items()}, unit, places)


def _json_rows(text: str, path: Path, unit: str) -> Iterator[tuple[int, Any]]:
    if unit == "row":
        yield from enumerate(parse_json(text, str(path), DataError), start=1)
        return
    start, number = 0, 0
    while start < len(text):  # not splitlines: JSON strings may hold other line separators
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        number += 1
        line = text[start:end]
        if line.strip():
            yield number, parse_json(line, f"{path} line {number}", DataError)
        start = end + 1


def _read_parquet(path: Path) -> RawTable:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            # in parts: a whole column is decoded into buffers that are copied as they grow
            parts = file.iter_batches(DECODED_TOGETHER)
            table = pyarrow.Table.from_batches(parts, file.schema_arrow)
        table.validate(full=True)  # texts are UTF-8, offsets lie within their buffers
        columns = {name: ArrowColumn(table.column(name)) for name in table.column_names}
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from None
    return RawTable(path, columns, "row", range(1, len(table) + 1))


def stream_parquet(shard: str, first: int = 0) -> Iterator[Streamed]:
    """The rows of a Parquet file from front to back, of which a few are in memory.

    Args:
        shard: Path or URI.
        first: Rows that are passed over.

    Raises:
        DataError: It is not such a file.
        OSError: It cannot be read.
    """
    with open_parquet(shard) as file:
        total, size = file.metadata.num_rows, file_sizes([shard])[0]
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        starts = list(accumulate(counts, initial=0))
        groups = [i for i in range(len(counts)) if starts[i + 1] > first]
        at = starts[groups[0]] if groups else total
        for batch in file.iter_batches(READ_TOGETHER, row_groups=groups):
            passed = min(max(0, first - at), len(batch))
            rows = batch.slice(passed).to_pylist()
            for place, row in enumerate(rows, start=at + passed + 1):
                yield Streamed(place, row, size * place // total)
            at += len(batch)


def open_parquet(file: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` of a path or URI.

    Raises:
        DataError: There is no such file, or it is not Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    storage, path = open_storage(file)
    parquet = import_module("pyarrow.parquet")
    try:
        return parquet.ParquetFile(storage.open_input_file(path))
    except FileNotFoundError:
        raise DataError(f"there is no file {file}") from None
    except ValueError as error:  # pyarrow's are
        raise DataError(f"{file} is not a Parquet file: {' '.join(str(error).split())}") from None


class ArrowColumn(Sequence[Any]):
    """The cells of a column that stay in Arrow's memory until they are read.

    Args:
        array: A `pyarrow.ChunkedArray`.
    """

    def __init__(self, array: Any) -> None:
        self.chunks = [chunk for chunk in array.chunks if len(chunk)]
        self.starts = list(accumulate((len(chunk) for chunk in self.chunks), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part = bisect.bisect_right(self.starts, index) - 1
        return self.chunks[part][index - self.starts[part]].as_py()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.chunks:
            for start in range(0, len(chunk), 256):
                yield from chunk.slice(start, 256).to_pylist()
