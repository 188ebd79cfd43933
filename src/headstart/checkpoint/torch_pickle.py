"""PyTorch's checkpoints (.bin, .pth, .pt, .pkl), new (zip) and old, without running code and
without torch's own reader.

torch's weights-only reader refuses pickled modules (OpenAI's dVAE) and training states that hold
any other class; here tensors are read from all of them, from mapped memory, and everything else is
left out.
"""

import io
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint import zips
from headstart.checkpoint.documents import brief
from headstart.checkpoint.pickle_machine import Inert, Machine, Name, as_key
from headstart.checkpoint.raw import (
    ITEM_SIZE,
    Budget,
    Raw,
    as_shape,
    bounded,
    checked,
    from_array,
    map_file,
)
from headstart.errors import FileFormatError

OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_PROTOCOL = 1001
MAX_DEPTH = 200
STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16",
    "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip


class Storage:
    """Numbers outside the pickle that tensors are views of.

    An old file says only after the pickle where they lie.
    """

    def __init__(self, key: str, dtype: str | None, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count
        self.buffer: Any = None
        self.start = self.stop = 0


class View:
    """A tensor: a view of a storage."""

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None
    ) -> None:
        if not isinstance(storage, Storage) or type(offset) is not int:
            raise ValueError("a tensor without a storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype = storage.dtype if dtype is None else dtype.name.removeprefix("torch.")

    def raw(self, where: str) -> Raw:
        """The tensor, once it is certain that it lies inside its storage."""
        storage, dtype = self.storage, str(self.dtype)
        offset = storage.start + self.offset * ITEM_SIZE.get(dtype, 1)
        shape, strides = as_shape(self.shape, where), as_shape(self.strides, where)
        rows = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return checked(
            Raw(storage.buffer, dtype, shape, offset, None if strides == rows else strides),
            where,
            storage.start,
            storage.stop,
        )


class PickledArray:
    """A NumPy array inside a pickle, filled by its state."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[tuple[int, ...], np.dtype[Any], Any, str] | None = None

    def build(self, state: Any) -> None:
        """Takes NumPy's state: version, shape, type, column order, bytes."""
        if type(state) is not tuple or len(state) != 5 or not isinstance(state[2], PickledDtype):
            raise ValueError("an array with a damaged state")
        _, shape, dtype, fortran, data = state
        # Arrays of objects come with a list instead of bytes; they hold no tensor.
        if isinstance(data, str | bytes | bytearray) and not dtype.dtype.hasobject:
            self.state = as_shape(shape, "an array"), dtype.dtype, data, "F" if fortran else "C"

    def array(self, where: str, budget: Budget) -> "np.ndarray[Any, Any] | None":
        """The array, in memory of its own."""
        if self.state is None or self.state[1].name not in ITEM_SIZE:
            return None
        shape, dtype, data, order = self.state
        budget.memory(len(data), where)
        try:
            numbers = bytearray(data.encode("latin1") if isinstance(data, str) else data)
            # "C" or "F", checked above
            return np.ndarray(shape, dtype, numbers, order=order)  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"{where} is a damaged array: {error}") from error


class PickledDtype:
    """A NumPy type inside a pickle: its two-letter code, and the byte order from its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = (
            np.dtype(code)
            if type(code) is str and len(code) <= 4 and code[:1] in "fiubc"
            else np.dtype(object)
        )

    def build(self, state: Any) -> None:
        """Takes the byte order; the rest of the state describes records, which hold no tensor."""
        if type(state) is tuple and len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _parameter(value: Any, *_: Any) -> Any:
    return value


def _from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """A subclass of Tensor: the tensor in it."""
    call = REBUILD.get(function.name) if isinstance(function, Name) else None
    if call is None:
        raise ValueError("a tensor subclass with its own way to be rebuilt")
    return call(*arguments)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> View:
    if metadata:
        raise ValueError("a tensor that is conjugated or negated lazily; save it resolved")
    return View(storage, offset, shape, strides)


def _typed_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> View:
    if metadata or not isinstance(dtype, Name):
        raise ValueError("a tensor of an unknown kind")
    return View(storage, offset, shape, strides, dtype)


def _encode(text: Any, encoding: Any = "utf-8") -> str:
    """The text itself: only the array that it is for, which knows the encoding, copies it."""
    if type(text) is not str or encoding not in ("latin1", "utf-8"):
        raise ValueError("bytes of an unknown encoding")
    return text


def _object(kind: Any, _base: Any = None, _state: Any = None) -> Inert:
    return Inert(kind.name if isinstance(kind, Name) else "?")


def _ignored(name: str) -> Callable[..., Any]:
    return lambda *_: Inert(name)


REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
BUILTINS: dict[str, Callable[..., Any]] = {
    "set": lambda values=(): set(map(as_key, values)),
    "frozenset": lambda values=(): frozenset(map(as_key, values)),
    "bytearray": lambda *_: bytearray(), "complex": lambda *_: 0j, "slice": _ignored("slice"),
}  # fmt: skip
# Values that real checkpoints hold beside the tensors. Containers are made, the others only take
# their place.
BESIDE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): {as_key(key): value for key, value in pairs},
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda *_: {},
    "collections.deque": lambda values=(), *_: list(values),
    "torch.Size": lambda values=(): tuple(values),
    "copy_reg._reconstructor": _object,
    "copyreg._reconstructor": _object,
    "_codecs.encode": _encode,
    **{f"builtins.{kind}": make for kind, make in BUILTINS.items()},
    **{f"__builtin__.{kind}": make for kind, make in BUILTINS.items()},
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray._reconstruct": PickledArray,
    "numpy.core.multiarray.scalar": _ignored("numpy scalar"),
    "numpy._core.multiarray.scalar": _ignored("numpy scalar"),
    "numpy.dtype": PickledDtype,
    **{name: _ignored(name) for name in (
        "torch.device", "datetime.datetime", "datetime.date", "datetime.timedelta",
        "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    )},
}  # fmt: skip
CALLS = REBUILD | BESIDE


def read_zip(path: Path, entries: Mapping[str, Any]) -> dict[str, Raw]:
    """Every tensor of a checkpoint that torch ≥ 1.6 saved.

    A zip with one pickle and one entry a storage.
    """
    data = map_file(path)
    roots = [
        name.removesuffix("data.pkl")
        for name in entries
        if name == "data.pkl" or name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise FileFormatError(
            f"{path} is a zip archive with {len(roots)} torch pickles; expected 1"
        )
    root = roots[0]
    _refuse_big_endian(path, data, entries, root)
    storages: dict[str, Storage] = {}

    def persistent(ident: Any) -> Storage:
        made = _storage(ident)
        info = entries.get(f"{root}data/{made.key}")
        if info is None:
            raise FileFormatError(
                f"{path} refers to storage {brief(made.key)}, which is not in the archive: it is"
                " damaged"
            )
        if made.key not in storages:
            made.buffer, made.start, made.stop = zips.unpack(path, data, info)
            storages[made.key] = made
        return storages[made.key]

    buffer, start, stop = zips.unpack(path, data, entries[f"{root}data.pkl"])
    value = Machine(str(path), CALLS, persistent).load(io.BytesIO(buffer[start:stop]))
    return bounded(path, dict(_tensors(value, path)))


def _refuse_big_endian(path: Path, data: Any, entries: Mapping[str, Any], root: str) -> None:
    if f"{root}byteorder" in entries:
        buffer, start, stop = zips.unpack(path, data, entries[f"{root}byteorder"])
        if bytes(buffer[start:stop]) != b"little":
            raise FileFormatError(
                f"{path} was saved on a big-endian machine; save it as safetensors there"
            )


def read_old(path: Path) -> dict[str, Raw]:
    """Every tensor of a checkpoint that torch < 1.6 saved (pickles, then the storages), or of a
    plain pickle.
    """
    data = map_file(path)
    storages: dict[str, Storage] = {}

    def persistent(ident: Any) -> Any:
        if type(ident) is tuple and len(ident) == 4 and ident[0] == "module":
            return ident[1]
        made = _storage(ident)
        return storages.setdefault(made.key, made)

    value = Machine(str(path), CALLS).load(data)
    if value == OLD_MAGIC:
        plain = Machine(str(path), {})
        if plain.load(data) != OLD_PROTOCOL or not _little_endian(plain.load(data)):
            raise FileFormatError(
                f"{path} is big-endian or of an unknown version of torch's old format; save it as"
                " safetensors there"
            )
        value = Machine(str(path), CALLS, persistent).load(data)
        _place(path, data, plain.load(data), storages)
    return bounded(path, dict(_tensors(value, path)))


def _little_endian(info: Any) -> bool:
    return type(info) is dict and info.get("little_endian") is True


def _place(path: Path, data: mmap.mmap, keys: Any, storages: Mapping[str, Storage]) -> None:
    """Finds the storages after the pickles of an old file.

    Each is its count in eight bytes, then the numbers.
    """
    here = data.tell()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise FileFormatError(f"{path} has a damaged list of storages")
    if set(keys) != set(storages):
        raise FileFormatError(f"{path} lists other storages than its tensors use: it is damaged")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[here : here + 8], "little")
        storage.buffer, storage.start = data, here + 8
        # untyped storages count bytes
        here = storage.stop = storage.start + count * ITEM_SIZE.get(str(storage.dtype), 1)
        if count != storage.count or here > len(data):
            raise FileFormatError(
                f"{path} is cut off or damaged: storage {brief(key)} should have {storage.count}"
                " values"
            )


def _storage(ident: Any) -> Storage:
    """A storage as torch refers to it.

    ("storage", type, key, device, count), in old files with a view (None since torch 0.4).
    """
    if (
        type(ident) is not tuple
        or len(ident) not in (5, 6)
        or ident[0] != "storage"
        or ident[5:] not in ((), (None,))
    ):
        raise ValueError("a reference to something that is not a storage")
    _, kind, key, _, count = ident[:5]
    name = kind.name.removeprefix("torch.") if isinstance(kind, Name) else ""
    dtype = None if name == "storage.UntypedStorage" else STORAGES.get(name.removesuffix("Storage"))
    if (
        type(key) is not str
        or type(count) is not int
        or (dtype is None and name != "storage.UntypedStorage")
    ):
        raise ValueError(f"a storage of unknown type {brief(name)}")
    return Storage(key, dtype, count)


HOLDERS = (View, PickledArray, Inert, dict, list, tuple)  # what is a tensor, or may hold some


def _tensors(value: Any, path: Path) -> Iterator[tuple[str, Raw]]:
    """Names and tensors of nested containers and modules, names joined by dots as `state_dict`
    does.
    """
    names: set[str] = set()
    budget = Budget(path, path.stat().st_size)
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    while todo:
        name, here, depth = todo.pop()
        budget.entry(name)
        if depth > MAX_DEPTH:
            raise FileFormatError(f"{path} is nested more than {MAX_DEPTH} deep")
        raw = _as_raw(here, f"{path}: {name}", budget)
        if raw is not None:
            if name in names:
                raise FileFormatError(f"{path} has two tensors named {name}")
            names.add(name)
            yield name, raw
        else:
            below = _children(here)
            budget.entry(count=len(below))
            children = [(k, child) for k, child in reversed(below) if isinstance(child, HOLDERS)]
            todo.extend(
                (f"{name}.{key}" if name else str(key), child, depth + 1) for key, child in children
            )


def _as_raw(value: Any, where: str, budget: Budget) -> Raw | None:
    if isinstance(value, View):
        return value.raw(where)
    array = value.array(where, budget) if isinstance(value, PickledArray) else None
    return None if array is None else from_array(array, where)


def _children(value: Any) -> list[tuple[Any, Any]]:
    """What may hold tensors below a value.

    A module's parameters, buffers and modules as its `state_dict` names them.
    """
    if isinstance(value, Inert):
        state = value.state if type(value.state) is dict else {}
        if type(state.get("_modules")) is dict and type(state.get("_parameters")) is dict:
            hidden = state.get("_non_persistent_buffers_set")
            hidden = hidden if isinstance(hidden, set | frozenset) else set()
            groups = {name: state.get(name) for name in ("_parameters", "_buffers", "_modules")}
            return [
                (key, child)
                for name, group in groups.items()
                for key, child in (group.items() if type(group) is dict else ())
                if name != "_buffers" or key not in hidden
            ]
        return [*state.items(), *value.items.items(), *enumerate(value.values)]
    if type(value) is dict:
        return list(value.items())
    return list(enumerate(value)) if type(value) in (list, tuple) else []
