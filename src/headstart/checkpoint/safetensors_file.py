"""safetensors: eight bytes of length, a JSON header, then the numbers.
https://github.com/huggingface/safetensors#format.

Read and written here rather than through the library so that torch and NumPy share one way, a file
is mapped for both, and writing is atomic.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headstart.checkpoint.documents import check_kind, decode_text, parse_json
from headstart.checkpoint.raw import ITEM_SIZE, Raw, as_shape, bounded, checked, map_file
from headstart.errors import FileFormatError

MAX_HEADER = 100_000_000
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}


def read_header(path: Path, data: Any) -> tuple[dict[str, Any], int]:
    """The header as a dict, and the byte where the numbers begin."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER or 8 + length > len(data):
        raise FileFormatError(
            f"{path} is cut off: its header claims {length} bytes, the whole file has {len(data)};"
            " fetch it again"
        )
    where = f"{path} (damaged safetensors header)"
    header = parse_json(decode_text(bytes(data[8 : 8 + length]), where), where)
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} has a safetensors header that is not a table of tensors")
    return header, 8 + length


def read_metadata(path: Path | str) -> dict[str, str]:
    """The notes of a safetensors file, such as `{"format": "pt"}`."""
    header, _ = read_header(Path(path), map_file(Path(path)))
    return _notes(header, path)


def _notes(header: Mapping[str, Any], path: Path | str) -> dict[str, str]:
    notes: dict[str, str] = header.get("__metadata__") or {}
    check_kind(notes, dict[str, str], f"{path}: '__metadata__'")
    return notes


def read(path: Path) -> dict[str, Raw]:
    """Every tensor of the file, and the other names of shared ones, given in its metadata."""
    data = map_file(path)
    header, start = read_header(path, data)
    notes = _notes(header, path)
    header.pop("__metadata__", None)
    raws: dict[str, Raw] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        where = f"{path}: {name}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise FileFormatError(f"{where} has a damaged entry in the header")
        offsets = as_shape(entry["data_offsets"], where)
        dtype = DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise FileFormatError(
                f"{where} has values of type {entry['dtype']!r:.40}; known are {', '.join(DTYPES)}"
            )
        if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
            raise FileFormatError(f"{where} has impossible offsets {offsets}")
        begin, end = start + offsets[0], start + offsets[1]
        raw = checked(Raw(data, dtype, as_shape(entry["shape"], where), begin), where, begin, end)
        spans.append((begin, end, name))
        raws[name] = raw
    _check_spans(path, spans, start, len(data), raws)
    aliases = {
        name: raws[stored] for name, stored in notes.items() if stored in raws and name not in raws
    }
    return bounded(path, raws | aliases)


def _check_spans(
    path: Path, spans: list[tuple[int, int, str]], start: int, stop: int, raws: Mapping[str, Raw]
) -> None:
    """Every byte belongs to exactly one tensor, as the format demands."""
    here = start
    for begin, end, name in sorted(spans):
        raw = raws[name]
        if begin != here or raw.size * ITEM_SIZE[raw.dtype] != end - begin:
            raise FileFormatError(
                f"{path}: {name} does not begin where the tensor before it ends, or has another"
                " size than its shape says"
            )
        here = end
    if here != stop:
        raise FileFormatError(
            f"{path} has {stop} bytes where its header describes {here}: it is cut off or damaged;"
            " download it again"
        )


def write(file: BinaryIO, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes torch tensors or arrays, one at a time, without a second copy of the model."""
    # The largest values first, so that each begins at a multiple of its size.
    order = sorted(tensors, key=lambda name: (-item_size(tensors[name]), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    here = 0
    for name in order:
        tensor = tensors[name]
        size = byte_size(tensor)
        header[name] = {
            "dtype": CODES[dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [here, here + size],
        }
        here += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes(tensors[name]))


def dtype_name(tensor: Any) -> str:
    """Our name for the type of a torch tensor's or an array's values."""
    return str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")


def item_size(tensor: Any) -> int:
    """Bytes of one value of a torch tensor or an array."""
    return int(tensor.dtype.itemsize)


def byte_size(tensor: Any) -> int:
    """Bytes of all values, without gaps."""
    size = 1
    for n in tensor.shape:
        size *= int(n)
    return size * item_size(tensor)


def _bytes(tensor: Any) -> Any:
    if isinstance(tensor, np.ndarray):
        native = (
            tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
            if tensor.dtype.byteorder == ">"
            else tensor
        )
        return np.ascontiguousarray(native).reshape(-1).view(np.uint8).data if tensor.size else b""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if tensor.numel() else b""
