"""Files in any storage: local paths, and URIs that `pyarrow.fs` or `fsspec` understand.

`s3://`, `gs://`, `hdfs://` and `file://` are read by pyarrow itself, every other scheme (`az://`,
`hf://`, `https://`, `memory://`, …) by the `fsspec` package for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from headstart.errors import DataError, InputError, MissingExtraError


def is_uri(name: str | Path) -> bool:
    """Whether a name is a URI and not a local path."""
    scheme, sign, _ = str(name).partition("://")
    return bool(sign) and scheme.isidentifier()


def open_storage(uri: str) -> tuple[Any, str]:
    """The file system of a URI or local path, and the path inside it.

    Returns:
        A `pyarrow.fs.FileSystem` and the path of the file or folder in it.

    Raises:
        InputError: No such scheme, or its package is not installed.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        fs = import_module("pyarrow.fs")
        arrow = import_module("pyarrow")
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None
    if not is_uri(uri):
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        found, path = fs.FileSystem.from_uri(uri)
        return found, str(path)
    except arrow.ArrowInvalid:  # not a scheme of pyarrow's
        pass
    fsspec = import_module("fsspec")
    try:
        found, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri}: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path)


def read_file(uri: str) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: It cannot be read.
    """
    storage, path = open_storage(uri)
    with storage.open_input_stream(path) as file:
        data: bytes = file.read()
    return data


def file_names(uri: str, *, below: bool = True) -> list[str]:
    """The file of a URI, or the files of a folder, as URIs in the order of their names.

    Args:
        uri: The file or folder; a local path too.
        below: Whether files in folders below it are among them.

    Raises:
        InputError: There is nothing of that name.
    """
    storage, path = open_storage(uri)
    fs = import_module("pyarrow.fs")
    info = storage.get_file_info(path)
    if info.type == fs.FileType.File:
        return [uri]
    if info.type == fs.FileType.NotFound:
        raise InputError(f"there is no file or folder {uri}")
    found = storage.get_file_info(fs.FileSelector(path, recursive=below))
    names = sorted(each.path for each in found if each.type == fs.FileType.File)
    return [join(uri, str(PurePosixPath(name).relative_to(path))) for name in names]


def join(folder: str, name: str) -> str:
    """The name of a file in a folder that is a URI or a local path."""
    return f"{folder.rstrip('/')}/{name}"


@contextmanager
def written_whole(uri: str) -> Iterator[Any]:
    """A binary file to write, which is there under its name only once it is complete.

    Args:
        uri: The file; its folder is made where there is none.
    """
    storage, path = open_storage(uri)
    folder, _, name = path.rpartition("/")
    if folder:
        storage.create_dir(folder, recursive=True)
    draft = f"{folder}/.{name}.{uuid4().hex}.tmp" if folder else f".{name}.{uuid4().hex}.tmp"
    try:
        with storage.open_output_stream(draft) as file:
            yield file
        storage.move(draft, path)
    except BaseException:
        fs = import_module("pyarrow.fs")
        if storage.get_file_info(draft).type != fs.FileType.NotFound:
            storage.delete_file(draft)
        raise


def file_sizes(names: list[str]) -> list[int]:
    """The number of bytes of each file.

    Raises:
        DataError: One of them is not there.
    """
    found: list[int] = []
    for name in names:
        storage, path = open_storage(name)
        info = storage.get_file_info(path)
        if info.size is None:
            raise DataError(f"there is no file {name}")
        found.append(int(info.size))
    return found
