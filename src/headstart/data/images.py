"""Labelled images: class folders, tables, arrays, tars and Hub data sets become splits of images
and what they are labelled.

What is read here is names and labels; pixels are read by `image_cache`.
"""

import hashlib
import json
import zipfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.interpret import class_names, promises_several, read_image_table
from headstart.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    WORDS,
    class_in,
    class_key,
    classes_in,
    few_shot,
    held_out_of,
    kind_of,
    numbers_in,
)
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources import hub as hub_data
from headstart.data.sources.raw import IMAGE_SUFFIXES, SPLIT_NAMES, Examples, Raw
from headstart.data.sources.tables import TABLE_SUFFIXES, read_table
from headstart.data.sources.tars import expand, read_tar
from headstart.errors import DataError, listed

FILE_SUFFIXES = (*TABLE_SUFFIXES, ".arrow", ".npz", ".tar")
MANY = 20  # whole numbers of more values than this may be meant as numbers


@dataclass
class ImageData:
    """A labelled image data set.

    Args:
        classes: Names of the classes; of the numbers, where `kind` is regression.
        splits: Examples by split.
        notes: What the user should know about them.
        kind: What the labels are, as `problem_type` of a configuration says it.
    """

    classes: list[str]
    splits: dict[str, Examples]
    notes: list[str] = field(default_factory=list)
    kind: str = SINGLE


def read_images(path: str | Path, options: DataOptions) -> ImageData:
    """Reads a data set of labelled images.

    Args:
        path: A folder of class folders, or of `train` and `val` (and `test`) folders, tables, tars
            or `.npz` files; one such file; several tars as `shard-{0000..0003}.tar`; a data set
            that the `datasets` library saved; or one on the Hub, as `hf:owner/name`.
        options: Columns, split, shots and seed. `options.extra["validation"]` and `["test"]` may
            name further data.
    """
    raw, notes = read_raw(path, options)
    data = _interpret(raw, options, Path(path), notes)
    if options.classes is None:
        _make_splits(data, options)
    return data


def read_pictures(path: str | Path, options: DataOptions) -> ImageData:
    """The pictures of a data set that `read_images` takes, or anywhere below a folder, without
    their labels; there is one class.
    """
    raw, notes = read_raw(path, replace(options, target="none"))
    splits = {
        split: Examples(part.images, np.zeros(len(part.images), dtype=np.int64), part.names)
        for split, part in raw.items()
    }
    data = ImageData(["pictures"], splits, notes)
    if options.classes is None:
        _make_splits(data, options)
    return data


def read_raw(path: str | Path, options: DataOptions) -> tuple[dict[str, Raw], list[str]]:
    """Examples by split as they are written, and what the user should know about them.

    See `read_images`.
    """
    notes: list[str] = []
    raw = _read_source(Path(path), options, notes)
    for split in ("validation", "test"):
        if options.extra.get(split):
            raw[split] = _joined(_read_source(Path(options.extra[split]), options, notes))
    return {split: raw[split] for split in SPLITS if split in raw}, notes


def _joined(parts: dict[str, Raw]) -> Raw:
    whole = Raw()
    for part in parts.values():
        whole.extend(part)
    return whole


# Reading ------------------------------------------------------------------------------------------


def _read_source(path: Path, options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    if hub_data.is_saved(path):
        return hub_data.read_saved(path, options, notes)
    if path.is_dir():
        return _read_folder(path, options, notes)
    if (name := hub_data.hub_name(path)) is not None:
        return hub_data.read_hub(name, options, notes)
    return _read_files(expand(path), options, notes)


def _read_files(paths: list[Path], options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    """One file, or the parts of one data set."""
    if hub_data.is_table(paths[0]):
        return hub_data.read_files({"train": paths}, options, notes)
    found: dict[str, Raw] = {}
    for path in paths:
        for split, raw in _read_file(path, options, notes).items():
            found.setdefault(split, Raw()).extend(raw)
    return found


def _read_file(path: Path, options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return read_image_table(read_table(path), options)
    if suffix == ".npz":
        return {"train": _read_npz(path, options)}
    if suffix == ".tar":
        return {"train": read_tar(path, options, notes)}
    kinds = ", ".join(FILE_SUFFIXES)
    raise DataError(f"{path} is not a data set; expected a folder, or a file that ends in {kinds}")


def holds_files(path: Path) -> bool:
    """Whether a folder holds a data set in files that are no pictures.

    Tables, arrays, tars, or what the `datasets` library saved.
    """
    named = any(
        child.suffix.lower() in FILE_SUFFIXES and child.name != "classes.json"
        for child in path.iterdir()
    )
    return named or hub_data.is_saved(path) or any((path / "data").glob("*.parquet"))


def _read_folder(path: Path, options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    """A folder of splits, of files, or of classes."""
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    folders = [child for child in children if child.is_dir()]
    files = [
        c
        for c in children
        if c.is_file() and c.suffix.lower() in FILE_SUFFIXES and c.name != "classes.json"
    ]
    parts: dict[str, list[Path]] = {}
    split_folders = [child for child in folders if child.name.lower() in SPLIT_NAMES]
    whole = options.classes and len(split_folders) == len(folders)  # judging needs no training data
    if any(SPLIT_NAMES[child.name.lower()] == "train" for child in split_folders) or (
        split_folders and whole
    ):
        for child in split_folders:
            parts.setdefault(SPLIT_NAMES[child.name.lower()], []).append(child)
        return {
            split: _joined(_read_folder(_only(found, split), options, notes))
            for split, found in parts.items()
        }
    for file in files:
        if (split := _file_split(file)) is not None:
            parts.setdefault(split, []).append(file)
    if "train" in parts or (parts and options.classes):
        return {
            split: _joined(_read_files(_shards(found, split), options, notes))
            for split, found in parts.items()
        }
    if options.target == "none" and (loose := _read_loose(path)).images:
        return {"train": loose}
    if files and not folders and (len(files) == 1 or _are_shards(files)):
        return _read_files(files, options, notes)
    # a copy of a Hub repository
    if [child.name for child in folders] == ["data"] and any((path / "data").glob("*.parquet")):
        return _read_folder(path / "data", options, notes)
    if options.target != "label":
        raise DataError(
            f"{path} holds no images{' with masks' * (options.target == 'mask')}, and no single"
            " table or tar of them"
        )
    return {"train": _read_class_folders(path, notes)}


def _file_split(path: Path) -> str | None:
    """`train.csv`, `train_100shot.npz` and `val-1.parquet` belong to a split.

    `classes.json` does not.
    """
    return SPLIT_NAMES.get(path.name.lower().split(".")[0].split("_")[0].split("-")[0])


def _are_shards(files: list[Path]) -> bool:
    """Whether files are the parts of one data set.

    Tars or Parquet files whose names differ in numbers only.
    """
    names = {"".join("#" if c.isdigit() else c for c in file.name) for file in files}
    return (
        len(files) > 1
        and len(names) == 1
        and files[0].suffix.lower() in (".tar", ".parquet", ".arrow")
    )


def _shards(files: list[Path], split: str) -> list[Path]:
    return files if _are_shards(files) else [_only(files, split)]


def _only(paths: list[Path], split: str) -> Path:
    if len(paths) > 1:
        raise DataError(
            f"both {paths[0]} and {paths[1]} look like the {split} data; keep one, or name the file"
            " itself"
        )
    return paths[0]


def _read_class_folders(path: Path, notes: list[str]) -> Raw:
    raw, ignored = Raw(), 0
    folders = sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    for folder in folders:
        files = sorted(
            file
            for file in folder.rglob("*")
            if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        )
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        ignored += sum(file.is_file() for file in files) - sum(file.is_file() for file in images)
        if not images:
            raise DataError(f"the class folder {folder} holds no images; remove it or fill it")
        for file in images:
            raw.add(file, folder.name, str(file))
    if not raw.images:
        raise DataError(
            f"{path} holds no class folders with images; expected {path.name}/CLASS/image.jpg,"
            f" {path.name}/train/CLASS/image.jpg or a table"
        )
    if ignored:
        notes.append(f"{ignored} files in {path} are not images and are left alone")
    return raw


def _read_loose(path: Path) -> Raw:
    """The pictures anywhere below a folder."""
    raw = Raw(columns=())
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden:
            raw.add(file, (), str(file))
    return raw


def _read_npz(path: Path, options: DataOptions) -> Raw:
    """Arrays `images` (N, H, W) or (N, H, W, 3) uint8, and `labels` (N,), or (N, V) of zeros and
    ones or of numbers.
    """
    if options.target == "mask":
        raise DataError(
            f"{path}: masks are not read from .npz files; expected folders, a table, a tar or a"
            " data set of the Hub"
        )
    wanted = ["images", "labels"] if options.target == "label" else ["images"]
    try:
        with np.load(path, allow_pickle=False) as file:
            if not set(wanted) <= set(file.files):
                raise DataError(
                    f"{path} has arrays {', '.join(file.files)}; expected {' and '.join(wanted)}"
                )
            images = file["images"]
            labels: NDArray[Any] = (
                file["labels"] if len(wanted) > 1 else np.zeros(len(images), dtype=np.int64)
            )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3))
    ):
        raise DataError(
            f"{path}: images is {images.dtype} {images.shape}; expected uint8 of shape (N, H, W) or"
            " (N, H, W, 3)"
        )
    if labels.shape[:1] != images.shape[:1] or labels.ndim > 2 or labels.dtype.kind not in "biufU":
        raise DataError(
            f"{path}: labels is {labels.dtype} {labels.shape}; expected {images.shape[0]} whole"
            " numbers or names"
        )
    names = class_names(path)
    raw = Raw(class_names=names)
    if labels.ndim == 2:
        raw.columns = tuple(
            names if names and len(names) == labels.shape[1] else map(str, range(labels.shape[1]))
        )
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        raw.add(image, tuple(label) if isinstance(label, list) else label, f"{path} row {i}")
    return raw


# Labels and splits --------------------------------------------------------------------------------


def _interpret(
    raw: dict[str, Raw], options: DataOptions, path: Path, notes: list[str]
) -> ImageData:
    """Labels as numbers, after finding out what they are."""
    first = raw.get("train") or next(iter(raw.values()))
    cells = [label for part in raw.values() for label in part.labels]
    widths = {len(label) for label in cells}
    if len(widths) > 1:
        raise DataError(
            f"{path}: one part has {min(widths)} label columns, another {max(widths)}; name them"
            " with --column label=A,B"
        )
    found = (
        MULTI if "labels" in options.columns else kind_of(cells, several=promises_several(first))
    )
    kind = options.problem_type or found
    what = f"column{'s' if len(first.columns) > 1 else ''} {_shortened(list(first.columns))}"
    if (
        options.problem_type is None
        and options.classes is None
        and (kind != SINGLE or len(first.columns) > 1)
    ):
        notes.append(f"{what}: {WORDS[kind]} ({kind}; --problem-type chooses otherwise)")
    values = {str(label[0]) for label in cells}
    if (
        kind == SINGLE
        and options.classes is None
        and len(values) > max(MANY, len(cells) / 3)
        and all(v.strip().isdigit() for v in values)
    ):
        notes.append(
            f"{what} has {len(values)} whole numbers, each taken as a class; --problem-type"
            " regression takes them as numbers"
        )
    if kind == REGRESSION:
        classes, splits = _numbers(raw, options, first)
    else:
        classes, splits = _indexed(raw, options, path, kind)
        for split, part in splits.items():
            there = set(
                (part.labels if kind == SINGLE else np.flatnonzero(part.labels.any(0))).tolist()
            )
            absent = [name for i, name in enumerate(classes) if i not in there]
            if split != "train" and absent and options.classes is None:
                notes.append(f"no {split} image is {_shortened(absent)}")
    return ImageData(classes, splits, notes, kind)


def _numbers(
    raw: dict[str, Raw], options: DataOptions, first: Raw
) -> tuple[list[str], dict[str, Examples]]:
    names = options.classes or list(first.columns)
    if len(names) != len(first.columns):
        raise DataError(
            f"the model gives {len(names)} numbers, {_shortened(names)}; the data has"
            f" {_shortened(list(first.columns))}"
        )
    splits = {}
    for split, part in raw.items():
        rows = [
            numbers_in(label, part.columns, place)
            for label, place in zip(part.labels, part.places, strict=True)
        ]
        splits[split] = Examples(
            part.images, np.array(rows, dtype=np.float32).reshape(len(rows), len(names)), part.names
        )
    return names, splits


def _indexed(
    raw: dict[str, Raw], options: DataOptions, path: Path, kind: str
) -> tuple[list[str], dict[str, Examples]]:
    """Class names, and the labels of every split as numbers of classes, or as rows of zeros and
    ones.
    """
    parsed: dict[str, list[list[str]]] = {}
    for split, part in raw.items():
        rows = zip(part.labels, part.places, strict=True)
        if kind == MULTI:
            parsed[split] = [
                classes_in(cells, part.columns, place, part.class_names) for cells, place in rows
            ]
        else:
            parsed[split] = [
                [class_in(cells, part.columns, place, part.class_names)] for cells, place in rows
            ]
    seen = {
        label
        for split, rows in parsed.items()
        if split == "train" or options.classes
        for row in rows
        for label in row
    }
    columns = next(iter(raw.values())).columns
    classes = options.classes or (
        list(columns) if len(columns) > 1 else sorted(seen, key=class_key)
    )
    if len(classes) < 2:
        only = f"one class, {classes[0]!r}" if classes else "no classes"
        raise DataError(f"{path} has {only}; telling things apart needs at least two")
    index = {name: i for i, name in enumerate(classes)}
    whose = "the model's classes" if options.classes else "the classes of the training data"
    if options.classes and all(
        name.isdigit() and int(name) < len(classes)
        for rows in parsed.values()
        for row in rows
        for name in row
    ):
        # numbers of classes whose names the data does not know
        index = {str(i): i for i in range(len(classes))} | index
    splits = {}
    for split, part in raw.items():
        for row, name in zip(parsed[split], part.names, strict=True):
            for label in row:
                if label not in index:
                    raise DataError(
                        f"{name}: class {label!r} is not among {whose}: {_shortened(classes)}"
                    )
        if kind == MULTI:
            labels = np.zeros((len(part.names), len(classes)), dtype=np.float32)
            for i, row in enumerate(parsed[split]):
                labels[i, [index[label] for label in row]] = 1
        else:
            labels = np.array([index[row[0]] for row in parsed[split]], dtype=np.int64)
        splits[split] = Examples(part.images, labels, part.names)
    return classes, splits


def _shortened(names: list[str]) -> str:
    return listed(names)


def _make_splits(data: ImageData, options: DataOptions) -> None:
    """Holds validation data out where there is none, then takes the shots."""
    train = data.splits["train"]
    if "validation" not in data.splits and "test" not in data.splits and options.val_fraction > 0:
        held_out = held_out_of(
            train.labels,
            data.kind,
            options.val_fraction,
            np.random.default_rng([options.seed, 0x5B117]),
        )
        if held_out.any():
            data.splits["validation"] = train.take(np.flatnonzero(held_out))
            data.splits["train"] = train = train.take(np.flatnonzero(~held_out))
            data.notes.append(
                f"no validation data: {held_out.sum()} of {len(held_out)} images held out (seed"
                f" {options.seed})"
            )
        else:
            data.notes.append("too few images to hold any out: the result will not be judged")
    if options.shots is not None:
        if data.kind == REGRESSION:
            raise DataError(
                f"--shots {options.shots} are examples of each class, and these are numbers; leave"
                " it out"
            )
        chosen = few_shot(train.labels, options.shots, options.shot_generator())
        counts = (
            Counter(train.labels[chosen].tolist())
            if data.kind == SINGLE
            else dict(enumerate(train.labels[chosen].sum(0)))
        )
        short = [data.classes[c] for c, n in sorted(counts.items()) if n < options.shots]
        if short:
            data.notes.append(
                f"fewer than {options.shots} training images in {_shortened(short)}: all of them"
                " are taken"
            )
        data.splits["train"] = train.take(chosen)


def batch_indices(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which examples are in the batch of a step: a pure function, so that a resumed run sees the
    same.

    Epochs are permutations laid end to end. A data set smaller than a batch is drawn from with
    replacement, as in the paper.
    """
    if examples < batch_size:
        return np.random.default_rng([seed, step, 0xF111]).integers(0, examples, batch_size)
    first = step * batch_size
    epochs = range(first // examples, (first + batch_size - 1) // examples + 1)
    stream = np.concatenate(
        [np.random.default_rng([seed, epoch, 0xE70C]).permutation(examples) for epoch in epochs]
    )
    start = first - epochs[0] * examples
    return stream[start : start + batch_size]


def combined_fingerprint(
    classes: list[str], splits: dict[str, Examples], digests: dict[str, list[str]]
) -> str:
    """Hash of a data set: classes, and split, label and content hash of every example.

    Names and folders do not matter.
    """
    whole = hashlib.sha256(json.dumps(classes).encode())
    for split in sorted(splits):
        for label, digest in sorted(
            zip(splits[split].labels.tolist(), digests[split], strict=True)
        ):
            whole.update(f"{split}:{label}:{digest};".encode())
    return whole.hexdigest()
