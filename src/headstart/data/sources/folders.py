"""Folders of splits, of files and of classes; what kind of source a path is."""

from pathlib import Path

from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources import hub
from headstart.data.sources.arrays import read_npz
from headstart.data.sources.raw import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    RawTable,
    Tables,
    files_below,
    is_hidden,
)
from headstart.data.sources.tables import TABLE_SUFFIXES, read_table
from headstart.data.sources.tars import expand, read_tar
from headstart.errors import DataError

FILE_SUFFIXES = (*TABLE_SUFFIXES, ".arrow", ".npz", ".tar")


def read_source(path: str | Path, options: DataOptions) -> Tables:
    """The rows of a data set by split, as they are written.

    Args:
        path: See `headstart.data.images.read_images`.
        options: What is wanted of it; `options.extra["validation"]` and `["test"]` may name further
            data.

    Raises:
        DataError: No such data set, or one that cannot be read.
    """
    found = _read(Path(path), options)
    for split in ("validation", "test"):
        if options.extra.get(split):
            parts = _read(Path(options.extra[split]), options).values()
            found[split] = [table for tables in parts for table in tables]
    return {split: found[split] for split in SPLITS if split in found}


def holds_files(path: Path) -> bool:
    """Whether a folder holds a data set in files that are not images.

    Tables, arrays, tars, or what the `datasets` library saved.
    """
    return bool(_data_files(path)) or hub.is_saved(path) or any((path / "data").glob("*.parquet"))


def _read(path: Path, options: DataOptions) -> Tables:
    if hub.is_saved(path):
        return hub.read_saved(path, options)
    if path.is_dir():
        return _read_folder(path, options)
    if (name := hub.hub_name(path)) is not None:
        return hub.read_hub(name, options)
    return {"train": _read_files(expand(path), options)}


def _read_files(paths: list[Path], options: DataOptions) -> list[RawTable]:
    """One file, or the parts of one data set."""
    if hub.is_table(paths[0]):
        return [hub.read_files(paths, options)]
    return [_read_file(path, options) for path in paths]


def _read_file(path: Path, options: DataOptions) -> RawTable:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return read_table(path)
    if suffix == ".npz":
        return read_npz(path, options)
    if suffix == ".tar":
        return read_tar(path, options)
    kinds = ", ".join(FILE_SUFFIXES)
    raise DataError(f"{path} is not a data set; expected a folder, or a file that ends in {kinds}")


def _data_files(path: Path) -> list[Path]:
    return sorted(
        child
        for child in path.iterdir()
        if child.suffix.lower() in FILE_SUFFIXES
        and child.is_file()
        and not is_hidden(child.name)
        and child.name != "classes.json"
    )


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not is_hidden(child.name))


def _read_folder(path: Path, options: DataOptions) -> Tables:
    """A folder of splits, of files, or of classes."""
    folders, files = _folders(path), _data_files(path)
    parts: dict[str, list[Path]] = {}
    for child in folders:
        if child.name.lower() in SPLIT_NAMES:
            parts.setdefault(SPLIT_NAMES[child.name.lower()], []).append(child)
    only_splits = sum(map(len, parts.values())) == len(folders)
    if "train" in parts or (parts and options.classes and only_splits):
        return {split: _split(_only(found, split), options) for split, found in parts.items()}
    parts = {}
    for file in files:
        if (split := split_of(file)) is not None:
            parts.setdefault(split, []).append(file)
    if "train" in parts or (parts and options.classes):
        return {
            split: _read_files(_shards(found, split), options) for split, found in parts.items()
        }
    if options.target == "none" and len(loose := _loose_images(path)):
        return {"train": [loose]}
    if files and not folders and (len(files) == 1 or _are_shards(files)):
        return {"train": _read_files(files, options)}
    # a copy of a Hub repository
    if [child.name for child in folders] == ["data"] and any((path / "data").glob("*.parquet")):
        return _read_folder(path / "data", options)
    if options.target != "label":
        raise DataError(
            f"{path} holds no images{' with masks' * (options.target == 'mask')}, and no single"
            " table or tar of them"
        )
    return {"train": [_class_folders(path)]}


def _split(folder: Path, options: DataOptions) -> list[RawTable]:
    """Everything in the folder of a split."""
    return [table for tables in _read_folder(folder, options).values() for table in tables]


def split_of(path: Path) -> str | None:
    """The split that `train.csv`, `train_100shot.npz` and `val-1.parquet` belong to."""
    return SPLIT_NAMES.get(path.name.lower().split(".")[0].split("_")[0].split("-")[0])


def _are_shards(files: list[Path]) -> bool:
    """Whether files are the parts of one data set.

    Tars or Parquet files whose names differ in numbers only.
    """
    names = {"".join("#" if c.isdecimal() else c for c in file.name) for file in files}
    kinds = (".tar", ".parquet", ".arrow")
    return len(files) > 1 and len(names) == 1 and files[0].suffix.lower() in kinds


def _shards(files: list[Path], split: str) -> list[Path]:
    return files if _are_shards(files) else [_only(files, split)]


def _only(paths: list[Path], split: str) -> Path:
    if len(paths) > 1:
        raise DataError(
            f"both {paths[0]} and {paths[1]} look like the {split} data; keep one, or name the file"
            " itself"
        )
    return paths[0]


def _class_folders(path: Path) -> RawTable:
    images: list[str] = []
    labels: list[str] = []
    ignored = 0
    for folder in _folders(path):
        files = files_below(folder)
        found = [file for file in files if _is_image(file)]
        if not found:
            raise DataError(f"the class folder {folder} holds no images; remove it or fill it")
        ignored += len(files) - len(found)
        images += found
        labels += [folder.name] * len(found)
    if not images:
        raise DataError(
            f"{path} holds no class folders with images; expected {path.name}/CLASS/image.jpg,"
            f" {path.name}/train/CLASS/image.jpg or a table"
        )
    table = RawTable(path, {"image": images, "label": labels}, "", images, "image", ("label",))
    if ignored:
        table.notes.append(f"{ignored} files in {path} are not images and are left alone")
    return table


def _loose_images(path: Path) -> RawTable:
    """The images anywhere below a folder."""
    images = [file for file in files_below(path) if _is_image(file)]
    return RawTable(path, {"image": images}, "", images, "image", ())


def _is_image(file: str) -> bool:
    return f".{file.rpartition(chr(46))[2].lower()}" in IMAGE_SUFFIXES
