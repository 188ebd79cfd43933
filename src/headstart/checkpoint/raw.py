"""A tensor inside a file before any framework sees it: where its bytes lie, and how they become
torch or NumPy without a copy.

Every reader of this package returns `dict[str, Raw]`; `to_torch` and `to_numpy` are the only two
ways out.
"""

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.checkpoint.documents import MAX_INTEGER, brief, check_regular
from headstart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of one value. The names are those of torch, and of NumPy with ml_dtypes.
ITEM_SIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4,
    "uint64": 8, "int64": 8, "float64": 8, "complex64": 8,
    "complex128": 16,
}  # fmt: skip
MAX_DIMENSIONS = 32
MAX_ENTRIES = 1_000_000  # tensors, and the containers and values around them
MAX_TENSORS = 100_000  # each of which is looked up in tables of names
MAX_NAME, MAX_NAMES = 1_000, 1 << 26  # characters of one name, and of all names
# Weights hardly shrink, except where they are constant: a file that unpacks, expands or fills to
# more than this is not a checkpoint but an attempt to fill the memory.
MAX_UNPACKED, MAX_RATIO = 1 << 28, 20


class Budget:
    """What one file may ask for: entries, characters of names, and bytes beyond its own.

    Args:
        path: The file.
        size: Its bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.entries, self.characters, self.tensors = path, 0, 0, 0
        self.bytes = max(MAX_UNPACKED, MAX_RATIO * size)

    def entry(self, name: str = "", count: int = 1) -> None:
        """Takes entries, and the characters of a name."""
        self.entries += count
        self.characters += len(name)
        self.tensors += count if name else 0
        if self.tensors > MAX_TENSORS:
            raise FileFormatError(f"{self.path} has more than {MAX_TENSORS:,} names")
        if self.entries > MAX_ENTRIES:
            raise FileFormatError(f"{self.path} has more than {MAX_ENTRIES:,} entries")
        if len(name) > MAX_NAME or self.characters > MAX_NAMES:
            raise FileFormatError(
                f"{self.path} has names of more than {MAX_NAME:,} characters, or {MAX_NAMES:,} in"
                f" all: {name[:60]!r}"
            )

    def memory(self, count: int, what: str) -> None:
        """Takes bytes that are about to be allocated."""
        self.bytes -= count
        if self.bytes < 0:
            raise FileFormatError(
                f"{self.path}: {what} claims {count:,} bytes, more than such a file can hold;"
                " refusing to fill the memory"
            )


@dataclass(frozen=True, slots=True)
class Raw:
    """Where a tensor lies.

    Attributes:
        buffer: Writable memory: a private map of the file, or unpacked bytes.
        dtype: A key of `ITEM_SIZE`.
        shape: Size of every axis.
        offset: First byte in `buffer`.
        strides: Steps in values (not bytes) along every axis; None means row by row without gaps.
    """

    buffer: Any
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Number of stored values from the first to the last that the tensor reaches."""
        if self.size == 0 or self.strides is None:
            return self.size
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file as private memory.

    Pages are read when they are touched, and writing to them never changes the file.
    """
    check_regular(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FileFormatError(f"{path} is empty; download or copy it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def checked(raw: Raw, where: str, start: int = 0, stop: int | None = None) -> Raw:
    """The same tensor, once it is certain that it lies inside bytes `start` to `stop` of its
    buffer.

    Args:
        raw: What the file claims.
        where: File and key, for the message.
        start: First byte that the tensor may use.
        stop: Byte after the last one that it may use; None for the end of the buffer.
    """
    stop = len(raw.buffer) if stop is None else stop
    item = ITEM_SIZE.get(raw.dtype)
    if item is None:
        raise FileFormatError(
            f"{where} has values of type {raw.dtype!r}, which is not one of {', '.join(ITEM_SIZE)}"
        )
    strides = raw.shape if raw.strides is None else raw.strides
    if (
        len(raw.shape) > MAX_DIMENSIONS
        or len(strides) != len(raw.shape)
        or any(not 0 <= n <= MAX_INTEGER for n in (*raw.shape, *strides))
        or math.prod(max(1, n) for n in raw.shape) * item > MAX_INTEGER
    ):
        raise FileFormatError(
            f"{where} claims the impossible shape {raw.shape} with strides {raw.strides}"
        )
    last = raw.offset + raw.extent * item
    if raw.offset < start or last > stop or stop > len(raw.buffer):
        raise FileFormatError(
            f"{where} claims shape {raw.shape} of {raw.dtype}, bytes {raw.offset} to {last}, "
            f"but its data is bytes {start} to {stop}: the file is damaged or cut off"
        )
    return raw


def bounded(path: Path, raws: dict[str, Raw], budget: Budget | None = None) -> dict[str, Raw]:
    """The same tensors, once their number, names and expansion are within the file's budget."""
    budget = Budget(path, path.stat().st_size) if budget is None else budget
    for name, raw in raws.items():
        budget.entry(name)
        if raw.size > raw.extent:  # a stride of 0 repeats stored values
            budget.memory(raw.size * ITEM_SIZE[raw.dtype], f"{name[:60]!r}, which repeats values,")
    return raws


def to_torch(raws: Mapping[str, Raw], device: Any = None) -> "dict[str, Tensor]":
    """Tensors that share the memory of the file (on another device: copies)."""
    import torch

    def tensor(raw: Raw) -> "Tensor":
        dtype: torch.dtype = getattr(torch, raw.dtype)
        if raw.size == 0:
            return torch.empty(raw.shape, dtype=dtype)
        raw = _aligned(raw)
        flat = torch.frombuffer(raw.buffer, dtype=dtype, count=raw.extent, offset=raw.offset)
        return (
            flat.view(raw.shape) if raw.strides is None else flat.as_strided(raw.shape, raw.strides)
        )

    if device is None or torch.device(device).type == "cpu":
        return {name: tensor(raw) for name, raw in raws.items()}
    return {name: tensor(raw).to(device) for name, raw in raws.items()}


def to_numpy(raws: Mapping[str, Raw]) -> "dict[str, np.ndarray[Any, Any]]":
    """Arrays that share the memory of the file. Without ml_dtypes, bfloat16 becomes float32."""
    return {name: _array(raw, name) for name, raw in raws.items()}


def _aligned(raw: Raw) -> Raw:
    """The same values where every one begins at a multiple of its size (.npz and .msgpack put them
    anywhere): copied only if it must be.
    """
    item = ITEM_SIZE[raw.dtype]
    if raw.offset % item == 0:
        return raw
    values = bytearray(memoryview(raw.buffer)[raw.offset : raw.offset + raw.extent * item])
    return Raw(values, raw.dtype, raw.shape, 0, raw.strides)


def _array(raw: Raw, name: str) -> "np.ndarray[Any, Any]":
    raw = _aligned(raw)
    dtype = numpy_dtype(raw.dtype)
    if dtype is None and raw.dtype != "bfloat16":
        raise FileFormatError(
            f"{name} holds {raw.dtype}, which NumPy reads only with ml_dtypes: pip install"
            " ml_dtypes"
        )
    stored = dtype or np.dtype("uint16")
    steps = None if raw.strides is None else tuple(step * stored.itemsize for step in raw.strides)
    # An empty array may begin at the very end of its buffer, which NumPy refuses.
    array: np.ndarray[Any, Any]
    array = (
        np.ndarray(raw.shape, stored, raw.buffer, raw.offset, steps)
        if raw.size
        else np.empty(raw.shape, stored)
    )
    # A bfloat16 is the upper half of a float32.
    return array if dtype else (array.astype(np.uint32) << 16).view(np.float32)


@cache
def numpy_dtype(name: str) -> "np.dtype[Any] | None":
    """NumPy's type of this name, from ml_dtypes where NumPy has none.

    None where ml_dtypes is missing.
    """
    if name != "bfloat16" and not name.startswith("float8"):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def from_array(array: "np.ndarray[Any, Any]", where: str) -> Raw:
    """A tensor of an array in memory, in this machine's byte order."""
    dtype = dtype_of_descr(array.dtype, where)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.require(array, requirements=["C", "W"])
    return Raw(
        array.reshape(-1).view(np.uint8).data if array.size else bytearray(), dtype, array.shape
    )


def dtype_of_descr(dtype: "np.dtype[Any]", where: str) -> str:
    """Our name of a NumPy type. Objects, records and text are refused."""
    # JAX writes bfloat16 to .npz as two bytes of no known type.
    name = "bfloat16" if dtype.str == "|V2" and dtype.names is None else dtype.name
    if name not in ITEM_SIZE:
        raise FileFormatError(f"{where} holds {dtype}, not numbers; such data is never loaded")
    return name


def as_shape(value: Any, where: str) -> tuple[int, ...]:
    """A shape (or strides) read from a file as a tuple of integers of at most 63 bits."""
    if (
        not isinstance(value, list | tuple)
        or len(value) > MAX_DIMENSIONS
        or not all(type(n) is int and abs(n) <= MAX_INTEGER for n in value)
    ):
        raise FileFormatError(
            f"{where} claims an impossible shape, {brief(value)}; expected at most"
            f" {MAX_DIMENSIONS} integers"
        )
    return tuple(value)
