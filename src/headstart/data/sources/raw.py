"""What every source of data gives: tables of cells that know where they came from.

An image is a cell like any other: a path, a part of a tar, bytes, an array.
"""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".mpo",
        ".ppm",
        ".pgm",
        ".heic",
    ]
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# folders, columns and members of tars
MASK_NAMES = (
    *("mask", "masks", "annotation", "annotations", "label", "labels"),
    *("segmentation", "segmentations", "segmentationclass", "seg"),
)
# usual names of the column that holds the image, best first
IMAGE_COLUMNS = (
    *("image", "path", "file", "filename", "file_name", "image_path", "filepath", "img"),
    *("picture", "photo"),
)
# folders that network drives, archivers and systems write beside the user's own
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin"),
        *("system volume information", "lost+found"),
    }
)
LARGEST_FILE = 1 << 30  # bytes of one image


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's data."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def files_below(folder: Path) -> list[str]:
    """Paths of the files anywhere below a folder, in the order of their names.

    Linked folders are followed, each folder once; hidden ones and those of systems are left out.

    Raises:
        OSError: A folder cannot be read.
    """

    def failed(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        shown = (name for name in files if not is_hidden(name))
        found += [os.path.join(place, name) for name in shown]  # noqa: PTH118 - Paths are slow
    return sorted(found, key=lambda path: path.split(os.sep))  # noqa: PTH206 - as above


@dataclass(frozen=True)
class Slice:
    """A file inside an uncompressed tar."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Cell:
    """An image in a memory-mapped table: `rows[index][column]` is {"bytes": …, "path": …}."""

    rows: Any
    index: int
    column: str


Source = Path | Slice | Cell | bytes | NDArray[np.uint8]


def source_bytes(source: Source) -> bytes:
    """The bytes of a source: of the file, or of the array's pixels.

    Raises:
        OSError: The file cannot be read, is not a regular file, or has more than 1 GiB.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        return f"{source.shape}".encode() + source.tobytes()
    if isinstance(source, Slice):
        with source.path.open("rb") as file:
            file.seek(source.offset)
            return file.read(min(source.size, LARGEST_FILE))
    if isinstance(source, Cell):
        value = source.rows[source.index][source.column]
        data: bytes | None = value["bytes"]
        return data if data is not None else _file_bytes(Path(value["path"]))
    return _file_bytes(source)


def _file_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError:
        path = _other_form(path)
        status = path.stat()
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"the file has {status.st_size:,} bytes; at most {LARGEST_FILE:,} are read")
    return path.read_bytes()


def _other_form(path: Path) -> Path:
    """The same name with accents written in the other Unicode form, where there is such a file."""
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((each for each in forms if each.exists()), path)


def source_key(source: Source) -> object:
    """Equal for sources that are the same file; arrays and bytes are each a source of their own."""
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, Cell):
        return id(source.rows), source.index, source.column
    return source if isinstance(source, Slice) else object()


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are read.

    A million paths or names take 8 bytes each.

    Args:
        make: The item of a row.
        rows: Rows of the items, in order.
    """

    def __init__(self, make: Callable[[int], T], rows: Sequence[int] | NDArray[np.int64]) -> None:
        self.make, self.rows = make, np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Lazy[T]":
        if isinstance(index, slice):
            return Lazy(self.make, self.rows[index])
        return self.make(int(self.rows[index]))


def take(items: Sequence[T], indices: Sequence[int] | NDArray[np.int64]) -> Sequence[T]:
    """These items, in this order."""
    if isinstance(items, Lazy):
        return Lazy(items.make, items.rows[np.asarray(indices, dtype=np.int64)])
    return [items[i] for i in indices]


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """The items of several sequences, one after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([len(part) for part in parts])

    def make(index: int) -> T:
        part = int(np.searchsorted(ends, index, side="right"))
        return parts[part][index - int(ends[part]) + len(parts[part])]

    return Lazy(make, np.arange(ends[-1]))


@dataclass
class RawTable:
    """The rows of one file, folder or archive, as they are written.

    Args:
        path: The file or folder.
        columns: Cells by column, all of one length.
        unit: What `places` are: "line" of a text file, "row" of a binary one, "member" of a tar;
            "" where the place is a file by itself.
        places: Where each row is: a number, or a name.
        image: Column of the image where the source knows it; else it is found by its name.
        labels: Columns of the label where the source knows them; else they are found by name.
        class_names: Names that numbers stand for.
        notes: What the user should know about it.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    unit: str
    places: Sequence[int | str] | NDArray[np.int64]
    image: str | None = None
    labels: tuple[str, ...] | None = None
    class_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict a row."""
        names = tuple(self.columns)
        return (
            dict(zip(names, row, strict=True)) for row in zip(*self.columns.values(), strict=True)
        )

    def where(self, index: int) -> str:
        """How an error names a row."""
        place = self.places[index]
        return f"{self.path} {self.unit} {place}" if self.unit else str(place)

    def column(self, role: str, requested: str | None, names: Sequence[str]) -> str:
        """The column that plays a role: the one requested, else the first of the usual names.

        Args:
            role: How the user knows it, for example "image".
            requested: The column the user named.
            names: Usual names, best first.

        Raises:
            DataError: No such column.
        """
        listed = ", ".join(self.columns)
        if requested is not None:
            if requested not in self.columns:
                raise DataError(
                    f"{self.path} has no column {requested!r}; its columns are {listed}"
                )
            return requested
        found = self.usual_column(names)
        if found is None:
            raise DataError(
                f"{self.path}: which column holds the {role}? Its columns are {listed}; choose one"
                f" with --column {role}=NAME"
            )
        return found

    def usual_column(self, names: Sequence[str]) -> str | None:
        """The first column of these names, letter case aside."""
        by_lower = {column.strip().lower(): column for column in reversed(list(self.columns))}
        return next((by_lower[name] for name in names if name in by_lower), None)


def group_column(table: RawTable, requested: str | None) -> str | None:
    """The column whose equal cells belong together: the one requested, else "group"."""
    return table.column("group", requested, ()) if requested else table.usual_column(("group",))


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: None, "" or NaN, as pandas writes a cell without a value."""
    return cell is None or cell == "" or cell != cell


def numbered(cells: Sequence[Any]) -> NDArray[np.int64]:
    """A number for each cell, (N,), the same for equal texts; empty cells get one of their own."""
    numbers: dict[object, int] = {}
    found = np.empty(len(cells), dtype=np.int64)
    for i, cell in enumerate(cells):
        found[i] = numbers.setdefault((i,) if is_empty(cell) else str(cell), len(numbers))
    return found


Tables = dict[str, list[RawTable]]  # by split, in parts


def pooled(cells: Sequence[Any], limit: int = 1 << 16) -> list[Any]:
    """The same cells, where equal texts are one object until there are too many different ones."""
    pool: dict[str, str] = {}
    found = []
    for cell in cells:
        if type(cell) is str and len(pool) < limit:
            cell = pool.setdefault(cell, cell)
        elif type(cell) is str:
            cell = pool.get(cell, cell)
        found.append(cell)
    return found
