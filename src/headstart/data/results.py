"""Tables of results that grow row by row and can be continued: CSV, JSON lines, Parquet."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from headstart.checkpoint.documents import parse_json
from headstart.errors import InputError, MissingExtraError

RESULT_SUFFIXES = (".csv", ".jsonl", ".parquet")
ROW_GROUP = 10_000  # rows of Parquet that are in memory together
# "scores" are lists of {"label", "score"}; "json" is any other list
Kind = Literal["text", "number", "integer", "flag", "scores", "json"]
Row = Mapping[str, Any]


def is_table(path: Path | None) -> bool:
    """Whether results go to a table, by the suffix of its name."""
    return path is not None and path.suffix.lower() in RESULT_SUFFIXES


class ResultTable:
    """Appends rows to a table, each of them whole on disk before the next is computed.

    Parquet files are readable only once they are complete: rows are gathered in
    `NAME.parquet.jsonl` beside the table, which `finish` turns into row groups and removes.

    Args:
        path: The table; its suffix is one of `RESULT_SUFFIXES`.
        columns: Kind by column; the first column names the row.
        resume: Continue a table that is there; else one that is there is refused.

    Attributes:
        names: First cells of the rows that were there.

    Raises:
        InputError: A table that is there, without `resume`; or one that cannot be continued.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "results.csv"
        >>> with ResultTable(path, {"path": "text", "probability": "number"}) as table:
        ...     table.write({"path": "a.jpg", "probability": 0.5})
        ...     table.finish()
        >>> path.read_text().split()
        ['path,probability', 'a.jpg,0.5']
    """

    def __init__(self, path: Path, columns: Mapping[str, Kind], *, resume: bool = False) -> None:
        self.path, self.columns = path, dict(columns)
        self.kind = path.suffix.lower()
        if self.kind not in RESULT_SUFFIXES:
            raise InputError(f"{path}: expected a name that ends in {', '.join(RESULT_SUFFIXES)}")
        if self.kind == ".parquet":
            _pyarrow()
        self.file = path.with_name(f"{path.name}.jsonl") if self.kind == ".parquet" else path
        for each in {path, self.file}:
            if each.exists() and not resume:
                raise InputError(
                    f"{each} exists; continue it with --resume, or remove it or choose another name"
                )
        self.complete = self.kind == ".parquet" and path.exists()
        self.names = list(self._names())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.out: BinaryIO | None = None

    def __enter__(self) -> Self:
        if not self.complete:
            # unbuffered: a row is one write, and a killed process loses at most a part of one
            self.out = self.file.open("ab", buffering=0)
            if self.kind == ".csv" and not self.file.stat().st_size:
                self.out.write(_csv_line(list(self.columns)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.out is not None:
            self.out.close()

    def write(self, row: Row) -> None:
        """Appends one row, which has a value or None for each column."""
        assert self.out is not None
        if self.kind == ".csv":
            self.out.write(_csv_line([_cell(row[name]) for name in self.columns]))
            return
        text = json.dumps({name: row[name] for name in self.columns}, ensure_ascii=False)
        self.out.write(f"{text}\n".encode(errors="surrogateescape"))

    def finish(self) -> None:
        """Ends the table: all rows are written."""
        if self.out is not None and self.kind == ".parquet":
            self.out.close()
            self._to_parquet()

    def _names(self) -> Iterator[str]:
        """Names of the rows that are there; the rest of a row that was cut off is removed."""
        if self.complete:
            table = _pyarrow().parquet.read_table(self.path)
            self._check(table.column_names)
            yield from table.column(0).to_pylist()
            return
        if not self.file.exists():
            return
        _remove_partial_line(self.file)
        with self.file.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if self.kind == ".csv":
                yield from self._csv_names(csv.reader(file, strict=True))
                return
            for number, line in enumerate(file, start=1):
                row = parse_json(line, f"{self.file} line {number}", InputError)
                self._check(list(row) if isinstance(row, dict) else [])
                yield row[next(iter(self.columns))]

    def _csv_names(self, reader: Any) -> Iterator[str]:  # noqa: ANN401 - a csv.reader
        try:
            head = next(reader, None)
            if head is not None:
                self._check(head)
            for row in reader:
                if len(row) != len(self.columns):
                    raise csv.Error(f"{len(row)} values for {len(self.columns)} columns")
                yield row[0]
        except csv.Error as error:
            raise InputError(f"{self.file} line {reader.line_num}: {error}") from None

    def _check(self, found: Sequence[str]) -> None:
        if list(found) != list(self.columns):
            raise InputError(
                f"{self.file} cannot be continued: its columns are {', '.join(found)}; this model"
                f" gives {', '.join(self.columns)}"
            )

    def _to_parquet(self) -> None:
        """Writes the gathered rows as row groups, and then removes them."""
        pyarrow = _pyarrow()
        schema = pyarrow.schema(
            [(name, _arrow_type(kind, pyarrow)) for name, kind in self.columns.items()]
        )
        part = self.path.with_name(f"{self.path.name}.part")
        with (
            self.file.open(encoding="utf-8", errors="surrogateescape") as lines,
            pyarrow.parquet.ParquetWriter(part, schema) as writer,
        ):
            rows: list[dict[str, Any]] = []
            for line in lines:
                row = json.loads(line)
                for name, kind in self.columns.items():
                    if kind == "json" and row[name] is not None:
                        row[name] = _cell(row[name])
                rows.append(row)
                if len(rows) == ROW_GROUP:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        part.replace(self.path)
        self.file.unlink()


def remaining(table: ResultTable, names: Sequence[str]) -> int:
    """How many of the inputs have a row already: the first ones.

    Raises:
        InputError: The rows of the table are of other inputs.
    """
    done = len(table.names)
    if table.names != list(names[:done]):
        pairs = zip(table.names, [*names, *[""] * done], strict=False)
        first = next(i for i, (old, new) in enumerate(pairs) if old != new)
        raise InputError(
            f"{table.path} cannot be continued: its row {first + 1} is of {table.names[first]}, the"
            f" input there is {names[first] if first < len(names) else 'missing'}; give the same"
            " inputs, or another --out"
        )
    return done


def _remove_partial_line(file: Path) -> None:
    """Cuts what follows the last line break."""
    with file.open("r+b") as data:
        end = data.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            data.seek(start)
            position = data.read(end - start).rfind(b"\n")
            if position >= 0:
                end = start + position + 1
                break
            end = start
        data.truncate(end)


def _cell(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A value as a cell of text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv_line(values: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode(errors="surrogateescape")


def _pyarrow() -> Any:  # noqa: ANN401 - a module
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None
    return pyarrow


def _arrow_type(kind: Kind, pyarrow: Any) -> Any:  # noqa: ANN401 - of a library without types
    scores = pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())])
    types = {
        "text": pyarrow.string(),
        "number": pyarrow.float64(),
        "integer": pyarrow.int64(),
        "flag": pyarrow.bool_(),
        "scores": pyarrow.list_(scores),
        "json": pyarrow.string(),
    }
    return types[kind]
