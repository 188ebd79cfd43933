"""Keras' HDF5 weights (`tf_model.h5`, BiT's .h5): groups and arrays, nothing else. Needs h5py."""

from pathlib import Path
from typing import Any

from headstart.checkpoint.raw import (
    Budget,
    Raw,
    as_shape,
    bounded,
    checked,
    dtype_of_descr,
    from_array,
    map_file,
)
from headstart.errors import FileFormatError, MissingExtraError


def read(path: Path) -> dict[str, Raw]:
    """Every array by its full path, such as `cvt/cvt/encoder/…/kernel:0`; arrays that lie in one
    piece are mapped.

    Links to other files, arrays stored in other files and virtual arrays are refused.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "keras") from error
    data = map_file(path)
    raws: dict[str, Raw] = {}
    budget = Budget(path, len(data))
    try:
        with h5py.File(path, "r") as file:
            todo = [("", file)]
            seen: set[Any] = set()
            while todo:
                name, group = todo.pop()
                info = h5py.h5o.get_info(group.id)
                if (info.fileno, info.addr) in seen:
                    raise FileFormatError(f"{path}: group {name} contains itself")
                seen.add((info.fileno, info.addr))
                for key in group:
                    budget.entry(f"{name}/{key}")
                    full = f"{name}/{key}" if name else key
                    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                        raise FileFormatError(
                            f"{path}: {full} is a link; weights are never read through links"
                        )
                    child = group[key]
                    if isinstance(child, h5py.Group):
                        todo.append((full, child))
                    elif isinstance(child, h5py.Dataset):
                        raws[full] = _dataset(path, data, child, full, budget)
    except FileFormatError:
        raise
    # What h5py's layers raise for damaged files.
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        MemoryError,
        SystemError,
    ) as error:
        raise FileFormatError(f"{path} is a damaged or cut off HDF5 file: {error}") from error
    return bounded(path, raws)


def _dataset(path: Path, data: Any, dataset: Any, name: str, budget: Budget) -> Raw:
    where = f"{path}: {name}"
    if dataset.external or dataset.is_virtual or dataset.shape is None:
        raise FileFormatError(
            f"{where} keeps its numbers in another file or has none; weights are never read through"
            " links"
        )
    dtype = dtype_of_descr(dataset.dtype, where)
    offset = dataset.id.get_offset()
    if offset is not None and dataset.dtype.isnative:
        return checked(Raw(data, dtype, dataset.shape, offset), where)
    as_shape(dataset.shape, where)
    budget.memory(dataset.nbytes, name)
    return from_array(dataset[()], where)
