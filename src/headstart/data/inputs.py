"""What `predict` and `embed` are given: files, folders, globs, tables of paths, tars, a list."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import decode
from headstart.data.interpret import source_of
from headstart.data.options import DataOptions
from headstart.data.sources.folders import FILE_SUFFIXES, read_source
from headstart.data.sources.raw import (
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    Lazy,
    RawTable,
    Source,
    files_below,
    joined,
    source_key,
)
from headstart.errors import InputError
from headstart.images.decode import load_image

STDIN = "-"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image, and how the user knows it.

    Args:
        name: Its path, or the row of a table or the member of a tar.
        source: Where it is.
    """

    name: str
    source: Source

    @property
    def key(self) -> object:
        """Equal for inputs that are the same file."""
        return source_key(self.source)

    def pixels(self) -> NDArray[np.uint8]:
        """The upright pixels, (H, W, 3) uint8.

        Raises:
            InputError: The image cannot be read; the message names it.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        try:
            return decode(self.source)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The images among the paths, folders searched through, linked ones too.

    What a folder holds under the name of an image is taken even where it cannot be read, such as a
    link to nothing, so that it is reported.

    Raises:
        InputError: No paths, one that does not exist, or a folder without images.
    """
    if not paths:
        raise InputError("which images? Give files or folders")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in map(Path, files_below(path))
                if file.suffix.lower() in IMAGE_SUFFIXES
            )
            if not inside:
                raise InputError(f"the folder {path} holds no images")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"there is no file or folder {path}")
    return files


def image_inputs(paths: Sequence[Path]) -> Sequence[ImageInput]:
    """The images that words of the command line stand for, in order.

    Args:
        paths: Images; folders of them; globs such as `photos/**/*.jpg`; tables (CSV, TSV, JSONL,
            Parquet) with a column of paths, which are relative to the table; tars; or `-`,
            standard input with one path a line, or with NUL after each (`find -print0`).

    Raises:
        InputError: No images, or a path that does not exist.
        DataError: A table or tar that cannot be read.
    """
    if not paths:
        raise InputError(
            "which images? Give files, folders, tables of paths, tars, or - for a list"
        )
    found: list[Sequence[ImageInput]] = []
    for path in paths:
        if str(path) == STDIN:
            text = sys.stdin.read()
            parts = text.split("\0" if "\0" in text else "\n")
            lines = [line for line in parts if line.strip()]
            if not lines:
                raise InputError("standard input (-) is empty; expected one path a line")
            found.append([ImageInput(line, Path(line)) for line in lines])
        elif path.suffix.lower() in FILE_SUFFIXES and path.is_file():
            found.append(_rows(path))
        elif not path.exists() and glob.has_magic(str(path)):
            # absolute patterns too
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207
            matches = sorted(map(Path, names))
            if not matches:
                raise InputError(f"no file matches {path}")
            found.append([ImageInput(str(each), each) for each in image_files(matches)])
        else:
            found.append([ImageInput(str(each), each) for each in image_files([path])])
    return joined(found)


def _rows(path: Path) -> Sequence[ImageInput]:
    """The images of a table or tar, row by row."""
    tables = read_source(path, DataOptions(target="none")).values()
    return joined([table_inputs(table) for parts in tables for table in parts])


def table_inputs(table: RawTable) -> Sequence[ImageInput]:
    """The image of every row of a table.

    Raises:
        DataError: No column of images, or a row without one.
    """
    source = source_of(table, table.column("image", table.image, IMAGE_COLUMNS))

    def make(row: int) -> ImageInput:
        image = source(row)
        return ImageInput(str(image) if isinstance(image, Path) else table.where(row), image)

    return Lazy(make, range(len(table)))
