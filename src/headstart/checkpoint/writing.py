"""From named tensors to files, so that a folder never holds half of anything.

Write beside, flush to disk, then rename.
"""

import contextlib
import errno
import importlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from headstart.checkpoint import numpy_npz, safetensors_file
from headstart.checkpoint.reading import SAFETENSORS_INDEX, read_index
from headstart.checkpoint.safetensors_file import byte_size, dtype_name
from headstart.errors import InputError

Content = bytes | str | Callable[[BinaryIO], None]
UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
SINGLE = "model.safetensors"


def atomic_write(path: Path | str, content: Content) -> Path:
    """Writes a file whole or not at all: readers see the old file or the new one, also after a
    power cut.

    Args:
        path: The file; its folder is made if need be.
        content: Bytes, text (written as UTF-8), or a function that writes to a binary file.

    Raises:
        OSError: The disk is full, read-only, …; the old file is unchanged.
    """
    path = Path(path)
    with written_beside([(path, content)]):
        pass
    return path


def take_lock(handle: int) -> bool:
    """Takes the lock of an open file; False where another process holds it.

    The lock is the kernel's, so that it ends with the handle and with the process, however that
    ends.
    """
    if not importlib.util.find_spec("fcntl"):  # Windows has no such locks
        return True
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def written_beside(files: list[tuple[Path, Content]]) -> Iterator[None]:
    """Writes all files under temporary names.

    At the end of the `with` block they take their places. After any failure they are removed.
    """
    made: list[tuple[Path, Path]] = []
    try:
        for path, content in files:
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Hidden, in the same folder (a rename must not cross disks), and with the usual
                # permissions (mkstemp's are private).
                beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
                with _Noting(beside.open("xb", buffering=0)) as file:
                    made.append((beside, path))
                    _write(file, content)
                    file.flush()
                    os.fsync(file.fileno())
        yield
        for beside, path in made:
            with explained(path):
                beside.replace(path)
        for folder in {path.parent for _, path in made}:
            _flush_folder(folder)
    finally:
        for beside, _ in made:
            beside.unlink(missing_ok=True)


class _Noting(io.BufferedWriter):
    """A file that keeps the error of a write, which PyTorch turns into another one."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """See `io.BufferedWriter.write`."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _write(file: _Noting, content: Content) -> None:
    if callable(content):
        try:
            content(file)
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _flush_folder(folder: Path) -> None:
    """Makes the renames themselves survive a power cut.

    File systems that cannot flush a folder are left alone.
    """
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says what could not be written and why, and that what was there before still is."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                why += (
                    f", {shutil.disk_usage(path.parent).free:,} bytes are free; make room or choose"
                    " another folder"
                )
        raise type(error)(
            error.errno,
            f"cannot write {path.name} ({why}); what was there before is unchanged",
            str(path),
        ) from error


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 5000000, "5GB" or "200 MiB"."""
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
        if not match or match[2].upper() not in UNITS:
            raise InputError(
                f"max_shard_size is {size!r}; give a number of bytes or a text such as '5GB' or"
                " '200MiB'"
            )
        count = int(float(match[1]) * UNITS[match[2].upper()])
    if count <= 0:
        raise InputError(f"max_shard_size is {size!r}; it must be positive")
    return count


def write_tensors(
    folder: Path | str,
    tensors: Mapping[str, Any],
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes `model.safetensors`, or shards and their index where it would be larger than
    `max_shard_size`.

    A tensor that occurs under several names is stored once; the other names are notes in the file,
    which `read_tensors` follows. Files of an earlier save are replaced or removed only after
    everything new is on disk.

    Args:
        folder: Made if need be.
        tensors: torch tensors or arrays by name.
        max_shard_size: Bytes, or a text such as "5GB". A larger tensor gets a shard of its own.
        metadata: Notes in each file; `{"format": "pt"}`, which transformers wants, if None.

    Returns:
        The files, the index last.
    """
    folder = Path(folder)
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    kept, aliases = _stored_once(tensors)
    for name, tensor in kept.items():
        if dtype_name(tensor) not in safetensors_file.CODES:
            raise InputError(
                f"{name} has values of type {dtype_name(tensor)}, which safetensors does not have"
            )
    shards = _split(kept, parse_size(max_shard_size))
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    files: list[tuple[Path, Content]] = []
    where: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        here = {alias: target for alias, target in aliases.items() if target in shard}
        where |= dict.fromkeys([*shard, *here], name)
        files.append((folder / name, _writer(shard, metadata | here)))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(byte_size, kept.values()))},
            "weight_map": dict(sorted(where.items())),
        }
        files.append((folder / SAFETENSORS_INDEX, json.dumps(index, indent=2) + "\n"))
    old = _earlier(folder)
    with written_beside(files):
        # Shards of two saves must never be read together: without an index there is a clear error
        # instead, should the power fail just now.
        if len(shards) > 1 and old & set(names):
            (folder / SAFETENSORS_INDEX).unlink(missing_ok=True)
    for name in sorted(old - {path.name for path, _ in files}):
        (folder / name).unlink(missing_ok=True)
    return [path for path, _ in files]


def _writer(shard: Mapping[str, Any], metadata: Mapping[str, str]) -> Callable[[BinaryIO], None]:
    return lambda file: safetensors_file.write(file, shard, metadata)


def _stored_once(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors without repetitions, and other name → kept name."""
    kept: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in tensors.items():
        key = _memory(tensor)
        if key is not None and key in seen:
            aliases[name] = seen[key]
        else:
            kept[name] = tensor
            if key is not None:
                seen[key] = name
    return kept, aliases


def _memory(tensor: Any) -> Any:
    """Equal for two tensors that are the same memory read the same way."""
    if byte_size(tensor) == 0:
        return None
    if hasattr(tensor, "data_ptr"):
        return (
            str(tensor.device),
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
        )
    return (tensor.__array_interface__["data"][0], tensor.shape, tensor.strides, str(tensor.dtype))


def _split(tensors: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
    """Shards of at most `limit` bytes, in the order of the names given."""
    shards: list[dict[str, Any]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = byte_size(tensor)
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def _earlier(folder: Path) -> set[str]:
    """Weight files of an earlier save in the folder.

    Only names that this function's save would give, or that its index lists.
    """
    names = {SINGLE, SAFETENSORS_INDEX}
    if (folder / SAFETENSORS_INDEX).is_file():
        with contextlib.suppress(ValueError):
            names |= set(read_index(folder / SAFETENSORS_INDEX).values())
    if folder.is_dir():
        names |= {
            path.name
            for path in folder.iterdir()
            if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path.name)
        }
    return {name for name in names if (folder / name).is_file()}


def write_npz(path: Path | str, tensors: Mapping[str, Any], compress: bool = False) -> Path:
    """Writes torch tensors or arrays as NumPy's .npz, the format of the BiT authors, atomically."""
    arrays = {name: _as_array(tensor) for name, tensor in tensors.items()}
    return atomic_write(path, lambda file: numpy_npz.write_npz(file, arrays, compress))


def _as_array(tensor: Any) -> Any:
    if not hasattr(tensor, "data_ptr"):
        return tensor
    plain = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds its values exactly.
    return (plain.float() if dtype_name(plain) == "bfloat16" else plain).numpy()
