"""NumPy's .npz and .npy (the BiT authors' format), never with pickled objects.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import tokenize
import zipfile
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headstart.checkpoint import zips
from headstart.checkpoint.raw import (
    Raw,
    as_shape,
    bounded,
    checked,
    dtype_of_descr,
    from_array,
    map_file,
    numpy_dtype,
)
from headstart.errors import FileFormatError

MAX_HEADER = 10_000


def read_npz(path: Path) -> dict[str, Raw]:
    """Every array of the archive, by its name without `.npy`.

    Stored entries are mapped, deflated ones unpacked.
    """
    data = map_file(path)
    raws = {}
    for entry, info in zips.entries(path).items():
        if not entry.endswith(".npy"):
            raise FileFormatError(f"{path} holds {entry!r}, which is not an array")
        buffer, start, stop = zips.unpack(path, data, info)
        raws[entry.removesuffix(".npy")] = _array(
            buffer, start, stop, f"{path}: {entry.removesuffix('.npy')}"
        )
    return bounded(path, raws)


def read_npy(path: Path) -> dict[str, Raw]:
    """The one array of a .npy file, under the file's name without ending."""
    data = map_file(path)
    return {path.stem: _array(data, 0, len(data), str(path))}


def _header(
    buffer: Any, start: int, stop: int, where: str
) -> "tuple[tuple[int, ...], bool, np.dtype[Any], int]":
    """Shape, column order, type, and the byte where the values begin."""
    head = io.BytesIO(bytes(buffer[start : min(stop, start + MAX_HEADER + 16)]))
    try:
        version = np.lib.format.read_magic(head)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = read(head, max_header_size=MAX_HEADER)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        raise FileFormatError(f"{where} has a damaged NumPy header: {error}") from error
    if dtype.hasobject:
        raise FileFormatError(
            f"{where} holds pickled Python objects, which are never loaded; save plain numbers"
        )
    return as_shape(shape, where), fortran, dtype, start + head.tell()


def _array(buffer: Any, start: int, stop: int, where: str) -> Raw:
    shape, fortran, dtype, begin = _header(buffer, start, stop, where)
    strides = (
        tuple(int(n) for n in accumulate((1, *shape[:-1]), mul)) if fortran and shape else None
    )
    raw = Raw(buffer, dtype_of_descr(dtype, where), shape, begin, strides)
    raw = checked(raw, where, start, stop)
    if dtype.isnative:
        return raw
    steps = None if strides is None else tuple(step * dtype.itemsize for step in strides)
    return from_array(np.ndarray(shape, dtype, buffer, raw.offset, steps), where)


def write_npz(file: BinaryIO, arrays: Mapping[str, "np.ndarray[Any, Any]"], compress: bool) -> None:
    """Writes arrays as `numpy.savez` does.

    Bfloat16, which NumPy cannot name, is written as two bytes a value, as JAX does.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method, allowZip64=True) as archive:
        for name, array in arrays.items():
            plain = array.view("V2") if array.dtype == numpy_dtype("bfloat16") else array
            dtype_of_descr(plain.dtype, name)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(plain), allow_pickle=False)
