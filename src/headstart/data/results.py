"""Tables of results that grow row by row and can be continued: CSV, JSON lines, Parquet."""

import csv
import errno
import io
import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import parse_json, read_object
from headstart.checkpoint.writing import explained, take_lock
from headstart.data.labels import as_number
from headstart.errors import FileFormatError, InputError, MissingExtraError
from headstart.progress import plain

RESULT_SUFFIXES = (".csv", ".jsonl", ".parquet")
EMBEDDING_SUFFIXES = (".parquet", ".npz")
GATHERED = (".parquet", ".npz")  # rows are gathered beside the file, which is written at the end
ROW_GROUP = 10_000  # rows of Parquet that are in memory together
# "scores" are lists of {"label", "score"}; "json" is any other list; "vector" is base64 of float32
Kind = Literal["text", "number", "integer", "flag", "scores", "json", "vector"]
Row = Mapping[str, Any]
BESIDE = ".run.json"  # ending of the file with the facts of a CSV file or of JSON lines
FORMULA = re.compile(r"\s*[=+@-].")  # what a spreadsheet computes where a cell begins with it
FACTS = b"headstart"  # key of the facts of a table in the metadata of Parquet


def is_table(path: Path | None) -> bool:
    """Whether results go to a table, by the suffix of its name."""
    return path is not None and path.suffix.lower() in RESULT_SUFFIXES


class ResultTable:
    """Appends rows to a table, each of them whole on disk before the next is computed.

    Parquet and NumPy files are readable only once they are complete: rows are gathered in
    `NAME.parquet.jsonl` beside the table, which `finish` turns into the file and removes. Facts of
    a CSV file or of JSON lines are in `NAME.csv.run.json` beside it.

    Args:
        path: The table; its suffix is one of `suffixes`.
        columns: Kind by column; the first column names the row.
        resume: Continue a table that is there; else one that is there is refused.
        facts: What is true of all rows: the model, its `key`, and options. A table with other facts
            is not continued; a model of the same key may have moved.
        suffixes: Formats of this kind of table.

    Attributes:
        names: First cells of the rows that were there.

    Raises:
        InputError: A table that is there, without `resume`; or one that cannot be continued, or
            that another process writes.
        MissingExtraError: pyarrow is not installed, and the table is a Parquet file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "results.csv"
        >>> with ResultTable(path, {"path": "text", "probability": "number"}) as table:
        ...     table.write({"path": "a.jpg", "probability": 0.5})
        ...     table.finish()
        >>> path.read_text().split()
        ['path,probability', 'a.jpg,0.5']
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Kind],
        *,
        resume: bool = False,
        facts: Mapping[str, str] | None = None,
        suffixes: Sequence[str] = RESULT_SUFFIXES,
    ) -> None:
        self.path, self.columns, self.facts = path, dict(columns), dict(facts or {})
        self.kind = path.suffix.lower()
        if self.kind not in suffixes:
            raise InputError(f"{path}: expected a name that ends in {', '.join(suffixes)}")
        if self.kind == ".parquet":
            pyarrow_parquet()
        gathers = self.kind in GATHERED
        self.file = path.with_name(f"{path.name}.jsonl") if gathers else path
        for each in {path, self.file}:
            if each.exists() and not resume:
                raise InputError(
                    f"{each} exists; continue it with --resume, or remove it or choose another name"
                )
        self.beside = None if gathers or not facts else path.with_name(f"{path.name}{BESIDE}")
        self.complete = gathers and path.exists()
        self.lost = 0  # rows that are there and have an error
        self.names = list(self._names())
        self.size = self.file.stat().st_size if self.file.exists() else 0  # bytes of these rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.out: BinaryIO | None = None

    def __enter__(self) -> Self:
        if not self.complete:
            # unbuffered: a row is one write, and a killed process loses at most a part of one
            self.out = self.file.open("ab", buffering=0)
            self._hold(self.out)
            if not self.size:
                if self.beside is not None:
                    atomic_write(self.beside, json.dumps(self.facts, indent=2) + "\n")
                if self.kind == ".csv":
                    self.out.write(_csv_line(list(self.columns)))
                if self.facts and self.beside is None:
                    self.out.write(f"{json.dumps(self.facts)}\n".encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.out is not None:
            self.out.close()

    def _hold(self, out: BinaryIO) -> None:
        """Keeps other processes from writing this table until it is closed.

        Raises:
            InputError: One writes it, or has done so since its rows were read.
        """
        status = os.fstat(out.fileno())
        if take_lock(out.fileno()) and self.file.exists():
            there = self.file.stat()
            if there.st_ino == status.st_ino and there.st_size == self.size:
                return
        out.close()
        raise InputError(
            f"another run writes {self.path}; wait for it, or choose another name with --out"
        )

    def write(self, row: Row) -> None:
        """Appends one row, which has a value or None for each column."""
        assert self.out is not None
        if self.kind == ".csv":
            data = _csv_line([_cell(row[name]) for name in self.columns])
        else:
            text = json.dumps({name: row[name] for name in self.columns}, ensure_ascii=False)
            data = f"{text}\n".encode(errors="surrogateescape")
        with explained(self.file):
            if self.out.write(data) != len(data):  # as much as there was room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self) -> None:
        """Ends the table: all rows are written."""
        if self.out is not None and self.kind in GATHERED:
            self.out.close()
            part = self.path.with_name(f"{self.path.name}.part")
            if self.kind == ".parquet":
                self._to_parquet(part)
            else:
                self._to_numpy(part)
            part.replace(self.path)
            self.file.unlink()

    def _names(self) -> Iterator[str]:
        """Names of the rows that are there; the rest of a row that was cut off is removed."""
        if self.complete:
            yield from self._complete_names()
            return
        if not self.file.exists():
            return
        _remove_partial_line(self.file)
        if self.beside is not None and self.file.stat().st_size:
            if not self.beside.is_file():
                raise InputError(
                    f"{self.path} cannot be continued: {self.beside.name}, with the model and the"
                    " options of its rows, is not beside it; give another --out"
                )
            self._check_facts(read_object(self.beside, InputError))
        with self.file.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if self.kind == ".csv":
                yield from self._csv_names(csv.reader(file, strict=True))
                return
            for number, line in enumerate(file, start=1):
                row = parse_json(line, f"{self.file} line {number}", InputError)
                if number == 1 and self.facts and self.beside is None:
                    self._check_facts(row)
                    continue
                self._check(list(row) if isinstance(row, dict) else [])
                self.lost += bool(row.get("error"))
                yield row[next(iter(self.columns))]

    def _complete_names(self) -> list[str]:
        """Names of the rows of a Parquet or NumPy file."""
        first = next(iter(self.columns))
        if self.kind == ".npz":
            with open_numpy(self.path) as arrays:
                self._check([name for name in arrays.files if name not in self.facts])
                self._check_facts({name: str(arrays[name]) for name in self.facts})
                self.lost = sum(map(bool, arrays["error"].tolist())) if "error" in arrays else 0
                return [str(name) for name in arrays[first]]
        file = pyarrow_parquet().ParquetFile(self.path)
        self._check(file.schema_arrow.names)
        if self.facts:
            self._check_facts(json.loads((file.schema_arrow.metadata or {}).get(FACTS, b"{}")))
        if "error" in self.columns:
            self.lost = sum(map(bool, file.read(columns=["error"]).column(0).to_pylist()))
        names: list[str] = file.read(columns=[first]).column(0).to_pylist()
        return names

    def _check_facts(self, found: Any) -> None:
        known = found if isinstance(found, dict) else {}
        what = f"{self.path} cannot be continued: its rows"
        if "key" in self.facts and known.get("key") != self.facts["key"]:
            old, new = known.get("model", "another model"), self.facts["model"]
            other = " with other weights or settings" if old == new else ""
            raise InputError(
                f"{what} are of {old}{other}, and this run's model is {new}; give the same model,"
                " or another --out"
            )
        for name, value in self.facts.items():
            if known.get(name) != value and (name != "model" or "key" not in self.facts):
                raise InputError(
                    f"{what} were made with {name}={known.get(name)}, and this run has"
                    f" {name}={value}; give the same options, or another --out"
                )

    def _csv_names(self, reader: Any) -> Iterator[str]:
        try:
            head = next(reader, None)
            if head is not None:
                self._check(head)
            for row in reader:
                if len(row) != len(self.columns):
                    raise csv.Error(f"{len(row)} values for {len(self.columns)} columns")
                self.lost += bool(dict(zip(self.columns, row, strict=True)).get("error"))
                yield row[0]
        except csv.Error as error:
            raise InputError(f"{self.file} line {reader.line_num}: {error}") from None

    def _check(self, found: Sequence[str]) -> None:
        written = map(csv_cell, self.columns) if self.kind == ".csv" else self.columns
        if list(found) != list(written):
            raise InputError(
                f"{self.file} cannot be continued: its columns are {', '.join(found)}; this model"
                f" gives {', '.join(self.columns)}"
            )

    def _gathered(self) -> Iterator[dict[str, Any]]:
        """The gathered rows."""
        with self.file.open(encoding="utf-8", errors="surrogateescape") as lines:
            if self.facts:  # rows are gathered with their facts
                next(lines)
            for line in lines:
                row: dict[str, Any] = json.loads(line)
                for name, kind in self.columns.items():
                    if row[name] is None:
                        continue
                    if kind == "json":
                        row[name] = _cell(row[name])
                    elif kind == "vector":
                        row[name] = vector_of(row[name])
                yield row

    def _to_parquet(self, part: Path) -> None:
        """Writes the gathered rows as row groups."""
        parquet, schema = pyarrow_parquet(), arrow_schema(self.columns, self.facts)
        rows = self._gathered()
        with parquet.ParquetWriter(part, schema) as writer:
            while group := list(islice(rows, ROW_GROUP)):
                writer.write_table(arrow_table(group, self.columns, self.facts))

    def _to_numpy(self, part: Path) -> None:
        """Writes the gathered rows as one array a column: vectors (N, D), the rest texts (N,)."""
        from numpy.lib.format import write_array, write_array_header_1_0

        texts: dict[str, list[str]] = {
            name: [] for name, kind in self.columns.items() if kind != "vector"
        }
        width = 0
        for row in self._gathered():
            for name, column in texts.items():
                column.append(_cell(row[name]))
            width = max(width, *(len(row[n]) for n in self._vectors() if row[n] is not None), 0)
        count = len(next(iter(texts.values())))
        arrays = {name: np.array(column, dtype=np.str_) for name, column in texts.items()}
        arrays |= {name: np.array(value) for name, value in self.facts.items()}
        missing = np.full(width, np.nan, dtype=np.float32)
        with ZipFile(part, "w") as file:
            for name in [*self.columns, *self.facts]:
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    if name in arrays:
                        write_array(member, arrays[name], allow_pickle=False)
                        continue
                    shape = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
                    write_array_header_1_0(member, shape)
                    for row in self._gathered():
                        vector = missing if row[name] is None else row[name]
                        member.write(vector.tobytes())

    def _vectors(self) -> list[str]:
        return [name for name, kind in self.columns.items() if kind == "vector"]


def remaining(table: ResultTable, names: Sequence[str]) -> int:
    """How many of the inputs have a row already: the first ones.

    Raises:
        InputError: The rows of the table are of other inputs.
    """
    done = len(table.names)
    written = [csv_cell(each) if table.kind == ".csv" else each for each in names[:done]]
    if table.names != written:
        pairs = zip(table.names, [*written, *[""] * done], strict=False)
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


def _cell(value: Any) -> str:
    """A value as a cell of text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _utf8(text: str | None) -> str | None:
    """A text whose bytes that are not UTF-8 are shown as �."""
    return text and text.encode(errors="surrogateescape").decode(errors="replace")


def csv_cell(text: str) -> str:
    """A text as a cell of CSV: without control characters, and never a formula.

    An apostrophe stands before what a spreadsheet would compute, such as `=HYPERLINK(…)`; numbers
    stay as they are.
    """
    text = plain(text, keep_bytes=True)
    if not FORMULA.match(text) or all(as_number(part) is not None for part in text.split("|")):
        return text
    return f"'{text}"


def _csv_line(values: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(csv_cell, values))
    return text.getvalue().encode(errors="surrogateescape")


def vector_text(vector: NDArray[np.float32]) -> str:
    """A vector as a cell of a table that is gathered."""
    return b64encode(vector.astype("<f4").tobytes()).decode()


def vector_of(text: str) -> NDArray[np.float32]:
    """Inverse of `vector_text`."""
    return np.frombuffer(b64decode(text), dtype="<f4").astype(np.float32)


def open_numpy(path: Path) -> Any:
    """The arrays of an .npz file, none of which is compressed or pickled.

    Raises:
        FileFormatError: It is not such a file.
    """
    try:
        with ZipFile(path) as file:
            if any(each.compress_type for each in file.infolist()):
                raise FileFormatError(f"{path}: expected arrays that are not compressed")
        return np.load(path, allow_pickle=False)
    except (BadZipFile, ValueError, EOFError) as error:
        raise FileFormatError(f"{path} cannot be read as .npz: {error}") from None


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None


def arrow_schema(columns: Mapping[str, Kind], facts: Mapping[str, str] | None = None) -> Any:
    """The `pyarrow.Schema` of a table of results.

    Args:
        columns: Kind by column.
        facts: What is true of all rows; see `ResultTable`.
    """
    pyarrow_parquet()
    pyarrow = import_module("pyarrow")
    fields = [(name, _arrow_type(kind, pyarrow)) for name, kind in columns.items()]
    metadata = {FACTS: json.dumps(dict(facts)).encode()} if facts else None
    return pyarrow.schema(fields, metadata)


def arrow_table(
    rows: Sequence[Row], columns: Mapping[str, Kind], facts: Mapping[str, str] | None = None
) -> Any:
    """Rows as a `pyarrow.Table`.

    Args:
        rows: A value or None for each column; vectors are arrays.
        columns: Kind by column.
        facts: What is true of all rows.
    """
    # names of files need not be UTF-8, texts of Parquet must
    texts = [name for name, kind in columns.items() if kind == "text"]
    lists = [name for name, kind in columns.items() if kind == "json"]
    cells = [
        {name: row[name] for name in columns}
        | {name: _utf8(row[name]) for name in texts}
        | {name: None if row[name] is None else _cell(row[name]) for name in lists}
        for row in rows
    ]
    return import_module("pyarrow").Table.from_pylist(cells, arrow_schema(columns, facts))


def _arrow_type(kind: Kind, pyarrow: Any) -> Any:
    scores = pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())])
    types = {
        "text": pyarrow.string(),
        "number": pyarrow.float64(),
        "integer": pyarrow.int64(),
        "flag": pyarrow.bool_(),
        "scores": pyarrow.list_(scores),
        "json": pyarrow.string(),
        "vector": pyarrow.list_(pyarrow.float32()),
    }
    return types[kind]
