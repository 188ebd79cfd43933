"""From files to named tensors.

The format is recognized by what is in the file, never by its ending.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from headstart.checkpoint import (
    flax_msgpack,
    keras_h5,
    numpy_npz,
    safetensors_file,
    torch_pickle,
    zips,
)
from headstart.checkpoint.documents import check_regular, read_object, value_of
from headstart.checkpoint.raw import MAX_TENSORS, Raw, to_numpy, to_torch
from headstart.errors import FileFormatError, HeadstartError, NotFoundError, listed

SAFETENSORS_INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
# What a folder may hold, in the order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    SAFETENSORS_INDEX,
    "pytorch_model.bin",
    TORCH_INDEX,
    "tf_model.h5",
    "flax_model.msgpack",
)
MAX_INDEX_BYTES, MAX_SHARDS = 100_000_000, 4096
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Parts of a training checkpoint beside the model.
TRAINING_STATE = (
    "optim", "optimizer", "optimizer_state_dict", "opt", "scaler", "loss_scaler", "amp",
    "scheduler", "lr_scheduler",
    "scheduler_state_dict", "rng_state", "cuda_rng_state", "model_ema", "ema", "state_dict_ema",
    "meta", "args", "epoch", "step",
)  # fmt: skip

Framework = Literal["torch", "numpy"]


def _zip(path: Path) -> dict[str, Raw]:
    entries = zips.entries(path)
    if any(name == "constants.pkl" or name.endswith("/constants.pkl") for name in entries):
        raise FileFormatError(
            f"{path} is a TorchScript program, not a file of tensors; save the state_dict of the"
            " model in it"
        )
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in entries):
        return torch_pickle.read_zip(path, entries)
    if "model.weights.h5" in entries:
        raise FileFormatError(
            f"{path} is a whole Keras model; load it with keras, or save its weights alone"
        )
    return numpy_npz.read_npz(path)


def _reader(path: Path) -> Callable[[Path], dict[str, Raw]]:
    """The reader for a file, from its first bytes."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise FileFormatError(f"{path} is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise FileFormatError(
            f"{path} is only a pointer of Git LFS; fetch the file itself with: git lfs pull"
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras_h5.read
    if head.startswith(b"\x93NUMPY"):
        return numpy_npz.read_npy
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return safetensors_file.read
    if head.lstrip()[:1] == b"<":
        raise FileFormatError(f"{path} is a web page, not a checkpoint; the download went wrong")
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return torch_pickle.read_old
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return flax_msgpack.read
    raise FileFormatError(
        f"{path} is of no known format: it begins with {head[:8]!r}. "
        "Known are safetensors, torch checkpoints, .npz, .npy, HDF5 and Flax msgpack"
    )


def _read_raw(path: Path) -> dict[str, Raw]:
    if path.is_dir():
        raise NotFoundError(
            f"{path} is a folder; give a file, or read the folder with read_checkpoint"
        )
    try:
        return _reader(path)(path)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, HeadstartError):
            raise
        raise FileFormatError(f"cannot read {path}: {error}") from error


def _out(raws: Mapping[str, Raw], framework: Framework, device: Any) -> dict[str, Any]:
    if framework not in ("torch", "numpy"):
        raise ValueError(f"framework is {framework!r}; it can be 'torch' or 'numpy'")
    return to_torch(raws, device) if framework == "torch" else to_numpy(raws)


def read_tensors(
    path: Path | str, framework: Framework = "torch", device: Any = None
) -> dict[str, Any]:
    """Every tensor of one file, by the name it has there.

    Tensors share the mapped memory of the file where the format allows it; changing them never
    changes the file. No code of the file is run. Nested containers of torch checkpoints are joined
    with `.`, groups of HDF5 and Flax files with `/`.

    Args:
        path: A file of safetensors, torch (new, old, pickled modules), NumPy (.npz, .npy), Keras
            HDF5 or Flax msgpack.
        framework: "torch" for tensors, "numpy" for arrays (read without torch).
        device: Where torch tensors go.

    Raises:
        NotFoundError: There is no such file.
        FileFormatError: The file is damaged, unsafe or of an unknown format; says which file and
            key.
    """
    return _out(_read_raw(Path(path)), framework, device)


def read_checkpoint(
    source: Path | str | Sequence[Path | str], framework: Framework = "torch", device: Any = None
) -> dict[str, Any]:
    """Every tensor of a model: a file, the index of a sharded model, a list of shards, or a folder
    that holds one of them.

    Args:
        source: The file, folder, or list of files.
        framework: "torch" or "numpy".
        device: Where torch tensors go.

    Raises:
        NotFoundError: There is no such file, or no weights in the folder.
        FileFormatError: As `read_tensors`; also for shards that are missing, lie outside the
            folder, or do not fit the index.
    """
    if not isinstance(source, str | Path):
        return _out(_joined(Path(path) for path in source), framework, device)
    path = Path(source)
    if path.is_dir():
        path = find_weights(path)
    raws = _sharded(path) if path.name.endswith(".index.json") else _read_raw(path)
    return _out(raws, framework, device)


def find_weights(folder: Path | str, names: Iterable[str] = WEIGHT_FILES) -> Path:
    """The weight file (or index of shards) of a folder: the first of `names` that is there."""
    folder = Path(folder)
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(f"{folder} holds no weights; looked for {', '.join(names)}")


def read_index(path: Path | str) -> dict[str, str]:
    """Tensor name → file name, from the index of a sharded model.

    Files outside the index's folder are refused.
    """
    path = Path(path)
    index = read_object(path, limit=MAX_INDEX_BYTES)
    files: dict[str, str] = value_of(index, "weight_map", dict[str, str], path)
    if not files:
        raise FileFormatError(f"{path} lists no tensors under 'weight_map'")
    shards = set(files.values())
    if len(shards) > MAX_SHARDS or len(files) > MAX_TENSORS:
        raise FileFormatError(
            f"{path} lists {len(files):,} tensors in {len(shards):,} files; expected at most"
            f" {MAX_TENSORS:,} in {MAX_SHARDS:,}"
        )
    for name in shards:
        _refuse_outside(path, name)
    return files


def _refuse_outside(index: Path, name: str) -> None:
    parts = PurePosixPath(name)
    if (
        not name.isprintable()
        or len(name) > 255
        or parts.is_absolute()
        or ".." in parts.parts
        or "\\" in name
        or ":" in name
        or not parts.parts
    ):
        raise FileFormatError(
            f"{index} refers to {name!r}, which is not in its folder; that is refused"
        )
    folder = index.parent.resolve()
    target = (folder / name).resolve()
    # In the Hub's cache, a file of snapshots/<revision>/ is a link into blobs/.
    blobs = next(
        (up.parent / "blobs" for up in (folder, *folder.parents) if up.name == "snapshots"), folder
    )
    if not target.is_relative_to(folder) and not target.is_relative_to(blobs):
        raise FileFormatError(
            f"{index} refers to {name!r}, a link out of its folder to {target}; that is refused"
        )


def _sharded(path: Path) -> dict[str, Raw]:
    files = read_index(path)
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise FileFormatError(
            f"{path.parent} is incomplete: of {len(shards)} shards {listed(missing)} missing;"
            " fetch the model again"
        )
    raws = _joined(path.parent / name for name in shards)
    lost, extra = sorted(files.keys() - raws.keys()), sorted(raws.keys() - files.keys())
    if lost or extra:
        raise FileFormatError(
            f"{path} does not fit its shards; not in them: {listed(lost)}; not in the"
            f" index: {listed(extra)}"
        )
    return raws


def _joined(paths: Iterable[Path]) -> dict[str, Raw]:
    raws: dict[str, Raw] = {}
    for path in paths:
        for name, raw in _read_raw(path).items():
            if name in raws:
                raise FileFormatError(f"{path} holds {name}, which another shard holds as well")
            raws[name] = raw
    return raws


def unwrap(tensors: Mapping[str, Any], wrappers: Sequence[str] = WRAPPERS) -> dict[str, Any]:
    """The model's own tensors out of a training checkpoint.

    A first part of the name that all tensors share and that is one of `wrappers` is taken off,
    again and again; the optimizer's and other training state beside a wrapper is left out. Tensors
    without a wrapper come back as they are.
    """
    tensors = dict(tensors)
    while True:
        heads = {name.partition(".")[0] for name in tensors}
        found = [head for head in wrappers if head in heads and head not in tensors]
        if len(found) != 1 or heads - {found[0], *TRAINING_STATE}:
            return tensors
        prefix = f"{found[0]}."
        tensors = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
