"""Files ↔ named tensors, for every format the four families were ever published in, without running
code from a file.

One file a format; `raw.py` is what they have in common, `reading.py` and `writing.py` are the two
doors.
"""

from headstart.checkpoint.reading import (
    find_weights,
    read_checkpoint,
    read_index,
    read_tensors,
    unwrap,
)
from headstart.checkpoint.safetensors_file import read_metadata
from headstart.checkpoint.writing import atomic_write, parse_size, write_npz, write_tensors

__all__ = [
    "atomic_write",
    "find_weights",
    "parse_size",
    "read_checkpoint",
    "read_index",
    "read_metadata",
    "read_tensors",
    "unwrap",
    "write_npz",
    "write_tensors",
]
