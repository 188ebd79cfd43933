"""Flax's `flax_model.msgpack`: nested maps of arrays, each array an extension that holds (shape,
type, bytes), big ones in chunks.

The format: https://github.com/msgpack/msgpack/blob/master/spec.md, and flax.serialization for the
three extensions.
"""

import math
import struct
from pathlib import Path
from typing import Any

from headstart.checkpoint.raw import ITEM_SIZE, Budget, Raw, as_shape, bounded, checked, map_file
from headstart.errors import FileFormatError

MAX_DEPTH = 100
ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
# First byte → struct code of a number, or of the length of a text, bytes, list, map or extension.
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_TEXT = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Span:
    """Bytes in place: where they begin and end."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop


class _Reader:
    """Walks over the bytes from `here` to `stop`; every length is checked before it is used."""

    def __init__(self, path: Path, data: Any, here: int, stop: int, budget: Budget) -> None:
        self.path, self.data, self.here, self.stop = path, data, here, stop
        self.budget = budget

    def span(self, length: int) -> _Span:
        start, self.here = self.here, self.here + length
        if self.here > self.stop:
            raise FileFormatError(
                f"{self.path} is cut off or damaged: byte {start} claims {length} more,"
                f" {self.stop - start} are left"
            )
        return _Span(start, self.here)

    def bytes(self, length: int) -> bytes:
        span = self.span(length)
        return bytes(self.data[span.start : span.stop])

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.bytes(struct.calcsize(code)))[0]

    def value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise FileFormatError(f"{self.path} is nested more than {MAX_DEPTH} deep")
        self.budget.entry()
        first = self.number(">B")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first < 0x90 or first in _MAPS:
            return self._map(first & 0x0F if first < 0x90 else self.number(_MAPS[first]), depth)
        if first < 0xA0 or first in _LISTS:
            return self._list(first & 0x0F if first < 0xA0 else self.number(_LISTS[first]), depth)
        if first < 0xC0 or first in _TEXT:
            return self._text(first & 0x1F if first < 0xC0 else self.number(_TEXT[first]))
        if first in _BYTES:
            return self.span(self.number(_BYTES[first]))
        if first in _EXTENSIONS or 0xD4 <= first <= 0xD8:
            return self._extension(
                self.number(_EXTENSIONS[first]) if first in _EXTENSIONS else 1 << (first - 0xD4),
                depth,
            )
        raise FileFormatError(
            f"{self.path} is not a Flax checkpoint: byte {self.here - 1} is {first:#x}"
        )

    def _text(self, length: int) -> str:
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{self.path} has a damaged name at byte {self.here}") from error

    def _list(self, length: int, depth: int) -> list[Any]:
        self._room(length)
        return [self.value(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        self._room(2 * length)
        values: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str | int) or str(key) in values:
                raise FileFormatError(
                    f"{self.path} has the impossible or repeated name {key!r:.80}"
                )
            values[str(key)] = self.value(depth + 1)
        return values

    def _room(self, length: int) -> None:
        if length > self.stop - self.here:  # every entry takes at least one byte
            raise FileFormatError(
                f"{self.path} is cut off or damaged: {length} entries in {self.stop - self.here}"
                " bytes"
            )

    def _extension(self, length: int, depth: int) -> Any:
        kind = self.number(">b")
        span = self.span(length)
        if kind == COMPLEX:
            return None
        if kind not in (ARRAY, SCALAR):
            raise FileFormatError(
                f"{self.path} has the unknown extension {kind}; Flax writes 1, 2 and 3"
            )
        inside = _Reader(self.path, self.data, span.start, span.stop, self.budget)
        inner = inside.value(depth + 1)
        where = f"{self.path}: the array at byte {span.start}"
        if (
            not isinstance(inner, list)
            or len(inner) != 3
            or not isinstance(inner[2], _Span)
            or not isinstance(inner[1], str)
        ):
            raise FileFormatError(f"{where} is damaged")
        raw = checked(
            Raw(self.data, inner[1], as_shape(inner[0], where), inner[2].start),
            where,
            inner[2].start,
            inner[2].stop,
        )
        return raw if kind == ARRAY else None


def read(path: Path) -> dict[str, Raw]:
    """Every array, by its names joined with `/`.

    Single numbers (such as a step count) are left out.
    """
    data = map_file(path)
    budget = Budget(path, len(data))
    reader = _Reader(path, data, 0, len(data), budget)
    tree = reader.value()
    if reader.here != len(data) or not isinstance(tree, dict | list):
        raise FileFormatError(f"{path} is not a Flax checkpoint, or has bytes after its end")
    raws: dict[str, Raw] = {}
    _flatten(path, tree, "", raws)
    return bounded(path, raws)


def _flatten(path: Path, value: Any, name: str, raws: dict[str, Raw]) -> None:
    if isinstance(value, dict) and CHUNKED in value:
        value = _joined(path, value, name)
    if isinstance(value, Raw):
        if name in raws:
            raise FileFormatError(f"{path} has two arrays named {name}")
        raws[name] = value
        return
    if not isinstance(value, dict | list):
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        _flatten(path, child, f"{name}/{key}" if name else str(key), raws)


def _joined(path: Path, value: dict[str, Any], name: str) -> Raw:
    """An array above 1 GiB, which Flax cuts into flat chunks."""
    where = f"{path}: {name}"
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict):
        raise FileFormatError(f"{where} is a damaged chunked array")
    parts = [chunks.get(str(i)) for i in range(len(chunks))]
    sizes = as_shape([shape.get(str(i)) for i in range(len(shape))], where)
    raws = [part for part in parts if isinstance(part, Raw)]
    if (
        len(raws) != len(parts)
        or len({raw.dtype for raw in raws}) != 1
        or sum(raw.size for raw in raws) != math.prod(sizes)
    ):
        raise FileFormatError(
            f"{where} is a chunked array whose chunks do not make up its shape {sizes}"
        )
    joined = bytearray()
    for raw in raws:
        joined += raw.buffer[raw.offset : raw.offset + raw.size * ITEM_SIZE[raw.dtype]]
    return checked(Raw(joined, raws[0].dtype, sizes), where)
