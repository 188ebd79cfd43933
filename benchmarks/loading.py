"""How fast do the weights of a 100 MB model become tensors in memory, beside each format's own
library? And how fast are they saved?

Reading is timed until every number has been touched once: mapping a file alone costs next to
nothing and would flatter us. Our saving also waits until the bytes are on the disk, so that a power
cut cannot leave half a file; the libraries do not.

    python benchmarks/loading.py [format …]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timing import interleaved, report

from headstart.checkpoint import read_checkpoint, read_tensors, write_npz, write_tensors


def weights() -> dict[str, torch.Tensor]:
    """Tensors as many and as large as those of a BiT-50: 25 million values under 160 names."""
    return {
        f"bit.encoder.stages.{i // 40}.layers.{i % 40}.conv.weight": torch.randn(160, 1000)
        for i in range(160)
    }


def touched(read: Callable[[], dict[str, Any]]) -> Callable[[], float]:
    """Reads and adds up everything."""
    return lambda: float(sum(value.sum() for value in read().values()))


def npz(path: Path) -> dict[str, Any]:
    """NumPy's own reader, every array taken out of the archive."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def hdf5(path: Path) -> dict[str, Any]:
    """h5py's own reader."""
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def flax(path: Path) -> dict[str, Any]:
    """flax.serialization without flax: the msgpack library and NumPy do its work."""
    import msgpack

    def array(_: int, data: bytes) -> Any:
        shape, dtype, values = msgpack.unpackb(data)
        return np.frombuffer(values, dtype).reshape(shape)

    return dict(msgpack.unpackb(path.read_bytes(), ext_hook=array))


def packed(arrays: dict[str, Any]) -> bytes:
    """A Flax checkpoint."""
    import msgpack

    ext = {
        name: msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
        for name, value in arrays.items()
    }
    return bytes(msgpack.packb(ext))


def contenders(folder: Path) -> dict[str, dict[str, Callable[[], Any]]]:
    """Case → reader; the files are written here."""
    tensors = weights()
    arrays = {name: value.numpy() for name, value in tensors.items()}
    single, shards = folder / "single", folder / "shards"
    write_tensors(single, tensors)
    write_tensors(shards, tensors, max_shard_size="20MB")
    torch.save(tensors, folder / "new.bin")
    torch.save(tensors, folder / "old.bin", _use_new_zipfile_serialization=False)
    np.savez(folder / "a.npz", **arrays)
    (folder / "a.msgpack").write_bytes(packed(arrays))
    with h5py.File(folder / "a.h5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
    files = sorted(shards.glob("*.safetensors"))
    cases: dict[str, dict[str, Callable[[], Any]]] = {
        "safetensors": {
            "headstart": lambda: read_checkpoint(single),
            "safetensors": lambda: load_file(single / "model.safetensors"),
        },
        "shards": {
            "headstart": lambda: read_checkpoint(shards),
            "safetensors": lambda: {
                name: value for path in files for name, value in load_file(path).items()
            },
        },
        "bin": {
            "headstart": lambda: read_tensors(folder / "new.bin"),
            "torch.load": lambda: torch.load(folder / "new.bin", weights_only=True),
            "torch.load mapped": lambda: torch.load(
                folder / "new.bin", weights_only=True, mmap=True
            ),
        },
        "old bin": {
            "headstart": lambda: read_tensors(folder / "old.bin"),
            "torch.load": lambda: torch.load(folder / "old.bin", weights_only=True),
        },
        "npz": {
            "headstart": lambda: read_tensors(folder / "a.npz", "numpy"),
            "numpy.load": lambda: npz(folder / "a.npz"),
        },
        "h5": {
            "headstart": lambda: read_tensors(folder / "a.h5", "numpy"),
            "h5py": lambda: hdf5(folder / "a.h5"),
        },
        "msgpack": {
            "headstart": lambda: read_tensors(folder / "a.msgpack", "numpy"),
            "msgpack": lambda: flax(folder / "a.msgpack"),
        },
    }
    for case, readers in cases.items():
        for name, read in readers.items():
            same = read()
            assert same.keys() == tensors.keys() and all(
                np.array_equal(same[key], arrays[key]) for key in arrays
            ), (case, name)
    return {
        case: {name: touched(read) for name, read in readers.items()}
        for case, readers in cases.items()
    } | {
        "save safetensors": {
            "headstart": lambda: write_tensors(folder / "out", tensors),
            "safetensors": lambda: save_file(tensors, folder / "out.safetensors"),
        },
        "save npz": {
            "headstart": lambda: write_npz(folder / "out.npz", arrays),
            "numpy.savez": lambda: np.savez(folder / "out2.npz", **arrays),
        },
    }


def main() -> None:
    """Measures every case, or those named on the command line, and writes results/loading.json."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # reading is the work of one thread
    with tempfile.TemporaryDirectory() as folder:
        cases = contenders(Path(folder))
        wanted = sys.argv[1:] or list(cases)
        rows = {case: interleaved(cases[case], 3.0) for case in wanted}
    report("a 102 MB checkpoint to tensors, every number touched", rows, "headstart", "loading")


if __name__ == "__main__":
    main()
