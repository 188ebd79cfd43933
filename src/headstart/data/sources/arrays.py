"""Images and labels in one `.npz` file."""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import zips
from headstart.data.options import DataOptions
from headstart.data.sources.raw import RawTable
from headstart.errors import DataError, HeadstartError, listed

# what NumPy and zipfile raise over damaged archives
DAMAGED: tuple[type[Exception], ...] = (
    *(ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, SystemError),
    *(NotImplementedError, AttributeError, tokenize.TokenError, SyntaxError, TypeError),
    *(MemoryError, OverflowError, RecursionError, KeyError, IndexError, RuntimeError),
)


def read_npz(path: Path, options: DataOptions) -> RawTable:
    """The arrays `images` (N, H, W) or (N, H, W, 3) uint8, and `labels` (N,), or (N, V) of zeros
    and ones or of numbers.

    Raises:
        DataError: The file is damaged, or holds other arrays.
    """
    if options.target == "mask":
        raise DataError(
            f"{path}: masks are not read from .npz files; expected folders, a table, a tar or a"
            " data set of the Hub"
        )
    wanted = ("images", "labels") if options.target == "label" else ("images",)
    arrays = _arrays(path, wanted)
    images = arrays["images"]
    shape = images.shape
    if (
        images.dtype != np.uint8
        or len(shape) not in (3, 4)
        or (len(shape) == 4 and shape[3] not in (1, 3))
    ):
        raise DataError(
            f"{path}: images is {images.dtype} {shape}; expected uint8 of shape (N, H, W) or"
            " (N, H, W, 3)"
        )
    if not images.size:
        raise DataError(f"{path}: images is {shape}; expected at least one pixel")
    columns: dict[str, Any] = {"image": images}
    labels: tuple[str, ...] = ()
    if "labels" in wanted:
        given = arrays["labels"]
        if given.shape[:1] != shape[:1] or given.ndim > 2 or given.dtype.kind not in "biufU":
            raise DataError(
                f"{path}: labels is {given.dtype} {given.shape}; expected {shape[0]} integers or"
                " names"
            )
        try:
            rows = given.T.tolist() if given.ndim == 2 else [given.tolist()]
        except (SystemError, ValueError) as error:  # characters that do not exist
            raise DataError(f"{path}: labels cannot be read: {error}") from None
        labels = ("label",) if given.ndim == 1 else tuple(map(str, range(len(rows))))
        columns |= dict(zip(labels, rows, strict=True))
    return RawTable(path, columns, "row", range(shape[0]), "image", labels)


def _arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        zips.entries(path)
        with np.load(path, allow_pickle=False) as file:
            if not set(wanted) <= set(file.files):
                raise DataError(
                    f"{path} has arrays {listed(file.files)}; expected {' and '.join(wanted)}"
                )
            arrays = {name: file[name] for name in wanted}
    except HeadstartError as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    except DAMAGED as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name} is not an array")
    return arrays
