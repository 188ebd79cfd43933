"""Tensors and files that the tests of the checkpoint readers share."""

import struct
from pathlib import Path

import h5py
import numpy as np
import torch

from headstart.checkpoint import write_npz, write_tensors

TB = 1 << 40


def some_tensors() -> dict[str, torch.Tensor]:
    """Every shape of trouble: bfloat16, numbers, nothing, bits, columns first, gaps."""
    g = torch.Generator().manual_seed(0)
    return {
        "plain": torch.randn(3, 4, generator=g),
        "half.brain": torch.randn(5, generator=g).bfloat16(),
        "number": torch.tensor(3),
        "nothing": torch.empty(0, 3),
        "bits": torch.tensor([True, False, True]),
        "columns": torch.randn(4, 6, generator=g).t(),
        "gaps": torch.randn(6, 8, generator=g)[::2, 1:7:3],
        "bytes": torch.arange(7, dtype=torch.uint8),
        "double": torch.randn(2, generator=g).double(),
    }


def assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert tuple(ours[name].shape) == tuple(value.shape), name
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
        else:
            np.testing.assert_array_equal(ours[name], value)


def as_arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }


def packed(value: object) -> bytes:
    """msgpack as flax.serialization writes it, as plainly as possible."""
    if isinstance(value, dict):
        return (
            b"\xdf"
            + struct.pack(">I", len(value))
            + b"".join(packed(each) for pair in value.items() for each in pair)
        )
    if isinstance(value, list | tuple):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, np.ndarray):
        inner = packed([list(value.shape), value.dtype.name, value.tobytes()])
        return b"\xc9" + struct.pack(">I", len(inner)) + b"\x01" + inner
    raise TypeError(value)


def every_format(folder: Path) -> list[Path]:
    """A small file of each format."""
    tensors = {name: value for name, value in some_tensors().items() if name != "half.brain"}
    arrays = as_arrays(tensors)
    torch.save({"x": tensors, "m": torch.nn.Linear(3, 2)}, folder / "new.pt")
    torch.save(
        {"x": tensors, "m": torch.nn.Linear(3, 2)},
        folder / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    write_npz(folder / "stored.npz", arrays)
    write_npz(folder / "packed.npz", arrays, compress=True)
    np.save(folder / "one.npy", arrays["columns"])
    (folder / "flax.msgpack").write_bytes(packed(arrays))
    with h5py.File(folder / "a.h5", "w") as file:
        for name, value in arrays.items():
            file[f"group/{name}"] = value
        file.create_dataset("packed", data=np.arange(50.0), compression="gzip")
    write_tensors(folder, tensors)
    return sorted(folder.iterdir())


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced
