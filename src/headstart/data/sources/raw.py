"""Where pictures are: files, parts of tars, cells of tables, bytes, arrays.

And the examples of a split made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {
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
    }
)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

MASK_NAMES = (
    "mask",
    "masks",
    "annotation",
    "annotations",
    "label",
    "labels",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "seg",
)  # folders, columns and members of tars


@dataclass(frozen=True)
class Slice:
    """A file inside an uncompressed tar."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture in a memory-mapped table: `rows[index][column]` is {"bytes": …, "path": …}."""

    rows: Any
    index: int
    column: str


Source = Path | Slice | Cell | bytes | NDArray[np.uint8]


def source_bytes(source: Source) -> bytes:
    """The bytes of a source: of the file, or of the array's pixels."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        return f"{source.shape}".encode() + source.tobytes()
    if isinstance(source, Slice):
        with source.path.open("rb") as file:
            file.seek(source.offset)
            return file.read(source.size)
    if isinstance(source, Cell):
        value = source.rows[source.index][source.column]
        data: bytes = (
            value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        )
        return data
    return source.read_bytes()


@dataclass
class Examples:
    """The images of one split.

    Args:
        images: Where the pixels are.
        labels: Class of each, (N,) int64; with several labels an image 0 or 1 for each class, (N,
            V) float32; numbers, (N, V) float32.
        names: How each is named to the user: its file, or table and row.
    """

    images: list[Source]
    labels: NDArray[Any]
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """These examples, in this order."""
        labels = self.labels[np.asarray(indices, dtype=np.int64)]
        return Examples([self.images[i] for i in indices], labels, [self.names[i] for i in indices])


@dataclass
class Raw:
    """Examples whose labels are still as they were written.

    Args:
        images: Where the pixels are.
        labels: What was written for each: the cells of the label columns.
        names: How each is named to the user.
        places: Where each label stands.
        columns: What the cells of a label are called; one name where there is one cell.
        class_names: Names that numbers stand for.
    """

    images: list[Source] = field(default_factory=list)
    labels: list[tuple[Any, ...]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ("label",)
    class_names: list[str] | None = None

    def add(self, image: Source, label: Any, name: str, place: str | None = None) -> None:  # noqa: ANN401 - a cell, or a tuple of cells
        """Adds an example."""
        self.images.append(image)
        self.labels.append(label if isinstance(label, tuple) else (label,))
        self.names.append(name)
        self.places.append(name if place is None else place)

    def extend(self, other: "Raw") -> None:
        """Adds the examples of another part of the same data."""
        if not self.images:
            self.columns, self.class_names = other.columns, other.class_names
        self.images += other.images
        self.labels += other.labels
        self.names += other.names
        self.places += other.places
