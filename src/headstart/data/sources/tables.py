"""Tables of examples.

CSV, TSV, JSON lines and Parquet, read into plain rows that know where they came from.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.checkpoint.documents import parse_json, read_text
from headstart.errors import DataError, MissingExtraError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass
class Table:
    """Rows of a table.

    Args:
        path: The file.
        columns: Column names, in order.
        rows: One dict a row.
        unit: What `places` names: "line" of a text file, "row" of a binary one, "member" of a tar.
        places: Where each row stands in the file, counted from 1, or its name.
    """

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]]
    unit: str
    places: Sequence[int | str]

    def where(self, index: int) -> str:
        """How an error names a row."""
        return f"{self.path} {self.unit} {self.places[index]}"

    def column(self, role: str, asked: str | None, names: tuple[str, ...]) -> str:
        """The column that plays a role: the one asked for, else the first of the usual names.

        Args:
            role: How the user knows it, for example "image".
            asked: The column the user named.
            names: Usual names, best first.
        """
        if asked is not None:
            if asked not in self.columns:
                raise DataError(
                    f"{self.path} has no column {asked!r}; its columns are"
                    f" {', '.join(self.columns)}"
                )
            return asked
        by_lower = {column.strip().lower(): column for column in reversed(self.columns)}
        for name in names:
            if name in by_lower:
                return by_lower[name]
        raise DataError(
            f"{self.path}: which column holds the {role}? Its columns are"
            f" {', '.join(self.columns)}; choose one with --column {role}=NAME"
        )


def read_table(path: str | Path) -> Table:
    """Reads a table by the ending of its name.

    CSV follows RFC 4180. TSV is split at tabs only, quotes are text, as in the GLUE files.
    """
    path = Path(path)
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} is not a table; expected a file that ends in {', '.join(TABLE_SUFFIXES)}"
        )
    try:
        table = reader(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if not table.rows:
        raise DataError(f"{path} has no rows")
    return table


def _read_csv(path: Path) -> Table:
    tabs = path.suffix.lower() == ".tsv"
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        # of spreadsheets where the comma is for decimals
        separator = ";" if ";" in head and "," not in head else ","
        reader = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if tabs
            else csv.reader(file, delimiter=separator, strict=True)
        )
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns):
                raise DataError(f"{path}: two columns have the same name in {columns}")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(columns):
                    raise DataError(
                        f"{path} line {reader.line_num}: {len(values)} values for {len(columns)}"
                        " columns"
                    )
                rows.append(dict(zip(columns, values, strict=True)))
                places.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from None
    return Table(path, columns, rows, "line", places)


def _read_jsonl(path: Path) -> Table:
    """JSON lines, or one JSON list of objects."""
    text = read_text(path, error=DataError)
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    if text.lstrip().startswith("["):
        items, unit = parse_json(text, str(path), DataError), "row"
        numbered = list(enumerate(items, start=1))
    else:
        unit = "line"
        lines = text.split("\n")  # not splitlines: JSON strings may hold other line separators
        numbered = [
            (i, parse_json(line, f"{path} line {i}", DataError))
            for i, line in enumerate(lines, start=1)
            if line.strip()
        ]
    columns: dict[str, None] = {}
    for place, row in numbered:
        if not isinstance(row, dict):
            raise DataError(
                f'{path} {unit} {place}: expected an object like {{"image": …, "label": …}}, found'
                f" {type(row).__name__}"
            )
        columns |= dict.fromkeys(row)
        rows.append(row)
        places.append(place)
    return Table(path, list(columns), rows, unit, places)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from None
    rows = table.to_pylist()
    return Table(path, list(table.column_names), rows, "row", list(range(1, len(rows) + 1)))
