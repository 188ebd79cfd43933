"""Labelled images: class folders, tables, arrays and tars become splits of (image, class).

What is read here is names and labels; pixels are read by `image_cache`.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.train.tables import TABLE_SUFFIXES, Table, read_table
from headstart.train.tasks import DataOptions

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".mpo", ".ppm", ".pgm", ".heic"}
)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "filepath", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "class_name", "name", "species", "y")


@dataclass(frozen=True)
class Slice:
    """A file inside an uncompressed tar."""

    path: Path
    offset: int
    size: int


Source = Path | Slice | bytes | NDArray[np.uint8]


def source_bytes(source: Source) -> bytes:
    """The bytes of a source: of the file, or of the array's pixels."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        return f"{source.shape}".encode() + source.tobytes()
    if isinstance(source, Slice):
        with source.path.open("rb") as file:
            file.seek(source.offset)
            return file.read(source.size)
    return source.read_bytes()


@dataclass
class Examples:
    """The images of one split.

    Args:
        images: Where the pixels are.
        labels: Class of each, (N,) int64.
        names: How each is named to the user: its file, or table and row.
    """

    images: list[Source]
    labels: NDArray[np.int64]
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """These examples, in this order."""
        labels = self.labels[np.asarray(indices, dtype=np.int64)]
        return Examples([self.images[i] for i in indices], labels, [self.names[i] for i in indices])


@dataclass
class ImageData:
    """A labelled image data set: class names, splits by name, and what the user should know about them."""

    classes: list[str]
    splits: dict[str, Examples]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Raw:
    """Examples whose labels are still as they were written."""

    images: list[Source] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, image: Source, label: str, name: str) -> None:
        self.images.append(image)
        self.labels.append(label)
        self.names.append(name)


def read_images(path: str | Path, options: DataOptions) -> ImageData:
    """Reads a data set of labelled images.

    Args:
        path: A folder of class folders, or of `train` and `val` (and `test`) folders, tables, tars or `.npz` files; or one such file.
        options: Columns, split, shots and seed. `options.extra["validation"]` and `["test"]` may name further data.
    """
    path = Path(path)
    notes: list[str] = []
    raw = _read_source(path, options, notes)
    for split in ("validation", "test"):
        if options.extra.get(split):
            raw[split] = _joined(_read_source(Path(options.extra[split]), options, notes))
    data = ImageData(*_index_labels(raw, options, path), notes=notes)
    if options.classes is None:
        _make_splits(data, options)
    return data


def _joined(raw: dict[str, _Raw]) -> _Raw:
    whole = _Raw()
    for part in raw.values():
        whole.images += part.images
        whole.labels += part.labels
        whole.names += part.names
    return whole


# Reading --------------------------------------------------------------------------------------------------------------------------------


def _read_source(path: Path, options: DataOptions, notes: list[str]) -> dict[str, _Raw]:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if path.is_dir():
        return _read_folder(path, options, notes)
    return _read_file(path, options, notes)


def _read_file(path: Path, options: DataOptions, notes: list[str]) -> dict[str, _Raw]:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return _read_image_table(read_table(path), options)
    if suffix == ".npz":
        return {"train": _read_npz(path)}
    if suffix == ".tar":
        return {"train": _read_tar(path, notes)}
    kinds = ", ".join((*TABLE_SUFFIXES, ".tar", ".npz"))
    raise DataError(f"{path} is not a data set; expected a folder, or a file that ends in {kinds}")


def _read_folder(path: Path, options: DataOptions, notes: list[str]) -> dict[str, _Raw]:
    """A folder of splits, or of classes."""
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    split_folders = [child for child in children if child.is_dir() and child.name.lower() in SPLIT_NAMES]
    whole = options.classes and len(split_folders) == sum(child.is_dir() for child in children)  # judging needs no training data
    if any(SPLIT_NAMES[child.name.lower()] == "train" for child in split_folders) or (split_folders and whole):
        return _no_twice({child: {SPLIT_NAMES[child.name.lower()]: _read_class_folders(child, notes)} for child in split_folders})
    readable = (*TABLE_SUFFIXES, ".npz", ".tar")
    split_files = [c for c in children if c.is_file() and c.suffix.lower() in readable and _file_split(c) is not None]
    if any(_file_split(child) == "train" for child in split_files) or (split_files and options.classes):
        return _no_twice({c: {str(_file_split(c)): _joined(_read_file(c, options, notes))} for c in split_files})
    tables = [child for child in children if child.is_file() and child.suffix.lower() in readable and child.name != "classes.json"]
    if not any(child.is_dir() for child in children) and len(tables) == 1:
        return _read_file(tables[0], options, notes)
    return {"train": _read_class_folders(path, notes)}


def _file_split(path: Path) -> str | None:
    """`train.csv`, `train_100shot.npz` and `val-1.parquet` belong to a split; `classes.json` does not."""
    return SPLIT_NAMES.get(path.name.lower().split(".")[0].split("_")[0].split("-")[0])


def _no_twice(parts: dict[Path, dict[str, _Raw]]) -> dict[str, _Raw]:
    found: dict[str, _Raw] = {}
    owner: dict[str, Path] = {}
    for path, part in parts.items():
        for split, raw in part.items():
            if split in found:
                raise DataError(f"both {owner[split]} and {path} look like the {split} data; keep one, or name the file itself")
            found[split], owner[split] = raw, path
    return found


def _read_class_folders(path: Path, notes: list[str]) -> _Raw:
    raw, ignored = _Raw(), 0
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    for folder in folders:
        files = sorted(file for file in folder.rglob("*") if not any(part.startswith(".") for part in file.relative_to(folder).parts))
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        ignored += sum(file.is_file() for file in files) - sum(file.is_file() for file in images)
        if not images:
            raise DataError(f"the class folder {folder} holds no images; remove it or fill it")
        for file in images:
            raw.add(file, folder.name, str(file))
    if not raw.images:
        raise DataError(
            f"{path} holds no class folders with images; expected {path.name}/CLASS/image.jpg, {path.name}/train/CLASS/image.jpg or a table"
        )
    if ignored:
        notes.append(f"{ignored} files in {path} are not images and are left alone")
    return raw


def _read_tar(path: Path, notes: list[str]) -> _Raw:
    """A plain tar of class folders; members are read in place when they are needed."""
    raw, ignored = _Raw(), 0
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a plain (uncompressed) tar: {error}") from None
    for member in members:
        name = PurePosixPath(member.name)
        if name.suffix.lower() not in IMAGE_SUFFIXES or len(name.parts) < 2:
            ignored += 1
            continue
        raw.add(Slice(path, member.offset_data, member.size), name.parts[-2], f"{path}:{member.name}")
    if not raw.images:
        raise DataError(f"{path} holds no images in class folders; expected members like CLASS/image.jpg")
    if ignored:
        notes.append(f"{ignored} members of {path} are not images in class folders and are left alone")
    return raw


def _read_npz(path: Path) -> _Raw:
    """Arrays `images` (N, H, W) or (N, H, W, 3) uint8, and `labels` (N,)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"images", "labels"} <= set(file.files):
                raise DataError(f"{path} has arrays {', '.join(file.files)}; expected images and labels")
            images, labels = file["images"], file["labels"]
    except (ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(f"{path}: images is {images.dtype} {images.shape}; expected uint8 of shape (N, H, W) or (N, H, W, 3)")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise DataError(f"{path}: labels is {labels.dtype} {labels.shape}; expected {images.shape[0]} whole numbers or names")
    names = _class_names(path)
    raw = _Raw()
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        if names is not None and isinstance(label, int):
            if not 0 <= label < len(names):
                raise DataError(f"{path} row {i}: label {label}, but classes.json names {len(names)} classes")
            label = names[label]
        raw.add(image, str(label), f"{path} row {i}")
    return raw


def _class_names(path: Path) -> list[str] | None:
    """Names in a `classes.json` beside the file: a list, {"classes": [...]}, or {"0": name}."""
    file = path.parent / "classes.json"
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    value = value.get("classes", value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=lambda key: int(key) if str(key).isdigit() else 0)]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) < len(value):
        raise DataError(f"{file}: expected a list of different class names")
    return value


def _read_image_table(table: Table, options: DataOptions) -> dict[str, _Raw]:
    image_column = table.column("image", options.columns.get("image"), IMAGE_COLUMNS)
    label_column = table.column("label", options.columns.get("label"), tuple(c for c in LABEL_COLUMNS if c != image_column.strip().lower()))
    split_column = options.columns.get("split") or next((c for c in table.columns if c.strip().lower() == "split"), None)
    if split_column is not None:
        table.column("split", split_column, ())
    names = _class_names(table.path)
    found: dict[str, _Raw] = {}
    for i, row in enumerate(table.rows):
        split = "train"
        if split_column is not None:
            split = SPLIT_NAMES.get(str(row.get(split_column)).strip().lower(), "")
            if not split:
                raise DataError(f"{table.where(i)}: split is {row.get(split_column)!r}; expected train, validation or test")
        image, name = _row_image(row.get(image_column), table, i, image_column)
        found.setdefault(split, _Raw()).add(image, _row_label(row.get(label_column), table, i, label_column, names), name)
    if "train" not in found:
        raise DataError(f"{table.path}: no row has split train")
    return found


def _row_image(value: Any, table: Table, index: int, column: str) -> tuple[Source, str]:  # noqa: ANN401 - what a table holds
    """The picture of a row: a path beside the table, bytes, or the {bytes, path} of Hub data sets."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value, table.where(index)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{table.where(index)}: {column} is {value!r}; expected the path of an image")
    path = table.path.parent / value.strip()
    return path, f"{path} ({table.where(index)})"


def _row_label(value: Any, table: Table, index: int, column: str, names: list[str] | None) -> str:  # noqa: ANN401 - what a table holds
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{table.where(index)}: {column} is {value!r}; expected a class name or number")
    if names is not None and str(value).strip().isdigit() and str(value).strip() not in names:
        if int(value) >= len(names):
            raise DataError(f"{table.where(index)}: {column} is {value}, but classes.json names {len(names)} classes")
        return names[int(value)]
    return str(value).strip()


# Labels and splits ----------------------------------------------------------------------------------------------------------------------


def _index_labels(raw: dict[str, _Raw], options: DataOptions, path: Path) -> tuple[list[str], dict[str, Examples]]:
    seen = {label for split, part in raw.items() if split == "train" or options.classes for label in part.labels}
    classes = options.classes or sorted(seen, key=lambda name: (0, int(name), name) if name.isdigit() else (1, 0, name))
    if len(classes) < 2:
        raise DataError(f"{path} has one class, {classes[0]!r}; telling things apart needs at least two")
    index = {name: i for i, name in enumerate(classes)}
    whose = "the model's classes" if options.classes else "the classes of the training data"
    if options.classes and all(name.isdigit() and int(name) < len(classes) for part in raw.values() for name in part.labels):
        index = {str(i): i for i in range(len(classes))} | index  # numbers of classes whose names the data does not know
    splits = {}
    for split, part in raw.items():
        for label, name in zip(part.labels, part.names, strict=True):
            if label not in index:
                raise DataError(f"{name}: class {label!r} is not among {whose}: {_shortened(classes)}")
        splits[split] = Examples(part.images, np.array([index[label] for label in part.labels], dtype=np.int64), part.names)
    return classes, splits


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _make_splits(data: ImageData, options: DataOptions) -> None:
    """Holds validation data out where there is none, then takes the shots."""
    train = data.splits["train"]
    rng = np.random.default_rng([options.seed, 0x5B117])
    if "validation" not in data.splits and "test" not in data.splits and options.val_fraction > 0:
        held_out = stratified(train.labels, options.val_fraction, rng)
        if held_out.any():
            data.splits["validation"] = train.take(np.flatnonzero(held_out))
            data.splits["train"] = train = train.take(np.flatnonzero(~held_out))
            data.notes.append(f"no validation data: {held_out.sum()} of {len(held_out)} images held out (seed {options.seed})")
        else:
            data.notes.append("too few images to hold any out: the result will not be judged")
    if options.shots is not None:
        chosen = few_shot(train.labels, options.shots, np.random.default_rng([options.seed, 0x540]))
        short = [data.classes[c] for c, n in sorted(Counter(train.labels[chosen].tolist()).items()) if n < options.shots]
        if short:
            data.notes.append(f"fewer than {options.shots} training images in {_shortened(short)}: all of them are taken")
        data.splits["train"] = train.take(chosen)


def stratified(labels: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which examples are held out: this share of every class, at least one of a class with two, none of a class with one."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = 0 if len(members) < 2 else min(len(members) - 1, max(1, round(len(members) * fraction)))
        held_out[rng.permutation(members)[:count]] = True
    return held_out


def few_shot(labels: NDArray[np.int64], shots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `shots` examples of every class (all of a class that has fewer), in their order."""
    if shots < 1:
        raise DataError(f"--shots {shots}: at least one example of each class is needed")
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def batch_indices(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which examples are in the batch of a step: a pure function, so that a resumed run sees the same.

    Epochs are permutations laid end to end. A data set smaller than a batch is drawn from with replacement, as in the paper.
    """
    if examples < batch_size:
        return np.random.default_rng([seed, step, 0xF111]).integers(0, examples, batch_size)
    first = step * batch_size
    epochs = range(first // examples, (first + batch_size - 1) // examples + 1)
    stream = np.concatenate([np.random.default_rng([seed, epoch, 0xE70C]).permutation(examples) for epoch in epochs])
    start = first - epochs[0] * examples
    return stream[start : start + batch_size]


def combined_fingerprint(classes: list[str], splits: dict[str, Examples], digests: dict[str, list[str]]) -> str:
    """Hash of a data set: classes, and split, label and content hash of every example. Names and folders do not matter."""
    whole = hashlib.sha256(json.dumps(classes).encode())
    for split in sorted(splits):
        for label, digest in sorted(zip(splits[split].labels.tolist(), digests[split], strict=True)):
            whole.update(f"{split}:{label}:{digest};".encode())
    return whole.hexdigest()
