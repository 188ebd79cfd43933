"""Pictures with a label for every pixel: folders of images and of masks, tables, tars and Hub data
sets become splits of pairs.

A mask is a PNG (or TIFF, …) of the image's size that holds class numbers, or colours that
`classes.json` lists. 255 never counts.

Letters: H W sides of an image, V classes.
"""

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from headstart.checkpoint.documents import read_json
from headstart.data.cache import decode, inspect, parallel
from headstart.data.images import holds_files, read_raw
from headstart.data.options import DataOptions
from headstart.data.sources.raw import IMAGE_SUFFIXES, MASK_NAMES, SPLIT_NAMES, Source, source_bytes
from headstart.errors import DataError, InputError, listed
from headstart.images.decode import decode_labels

IGNORED = 255  # the label that no loss and no metric counts
MAX_CLASSES = 255
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "jpegimages")
MASK_ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_seg", "_L", "_gt")
# .jpg would change labels
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".jp2"})


@dataclass
class Pairs:
    """The images of one split with their masks, and how each is named to the user."""

    images: list[Source] = field(default_factory=list)
    masks: list[Source] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Any) -> "Pairs":
        """These pairs, in this order."""
        return Pairs(
            *([each[i] for i in indices] for each in (self.images, self.masks, self.names))
        )

    def mask_of(self, index: int) -> str:
        """How a mask is named after its image."""
        mask = self.masks[index]
        return f"its mask {mask.name}" if isinstance(mask, Path) else "its mask"


@dataclass(frozen=True)
class Scan:
    """What reading a pair once tells.

    A hash of both files, the sides, and how many pixels each mask value has.
    """

    digest: str
    height: int
    width: int
    counts: dict[int, int]


@dataclass
class ClassList:
    """What the mask values mean.

    Args:
        names: Of the classes, in the order of their numbers; empty until the masks have been looked
            at.
        colours: (V, 3) uint8 of each class for pictures, and for masks that hold colours; None
            makes them up.
        ignored: Mask values that never count, beside 255.
        reduce: Value 0 is "none of the classes", and value n is class n - 1.
    """

    names: list[str] = field(default_factory=list)
    colours: NDArray[np.uint8] | None = None
    ignored: frozenset[int] = frozenset()
    reduce: bool = False
    foreground: bool = False  # masks of 0 and 255, where 255 is the one class beside the background

    def table(self) -> NDArray[np.int64]:
        """Class of every mask value below 65,536; -1 is a value that must not occur."""
        table = np.full(1 << 16, -1, dtype=np.int64)
        first = 1 if self.reduce else 0
        table[first : first + len(self.names)] = np.arange(len(self.names))
        table[list(self.ignored | {IGNORED} | ({0} if self.reduce else set()))] = IGNORED
        if self.foreground:
            table[255] = 1
        return table


@dataclass
class SegmentationData:
    """A data set for segmentation.

    Classes, pairs by split, and what the user should know about them.
    """

    classes: ClassList
    splits: dict[str, Pairs]
    notes: list[str] = field(default_factory=list)


def read_pairs(path: str | Path, options: DataOptions) -> SegmentationData:
    """Finds images and their masks.

    Args:
        path: A folder with `images` and `masks` folders, each perhaps with `train` and `val`
            inside; a folder with `train` and `val`, each with `images` and `masks` inside; or a
            folder of images, the masks being in `options.extra["masks"]`. Or a table with columns
            of images and masks, tars of `0.jpg` and `0.mask.png`, or a data set of the Hub with two
            columns of pictures.
        options: Split and seed. `options.extra` may hold "masks", "classes" (a file like
            `classes.json`), "validation" and "test".
    """
    path, notes = Path(path), list[str]()
    masks = options.extra.get("masks")
    splits = _in_two(path, Path(masks)) if masks else _splits_of(path, options, notes)
    for split in ("validation", "test"):
        if options.extra.get(split):
            found = _splits_of(Path(options.extra[split]), options, notes)
            splits[split] = found.get(split) or found["train"]
    file = options.extra.get("classes") or next(
        (p for p in (path / "classes.json", path.parent / "classes.json") if p.is_file()), None
    )
    data = SegmentationData(read_classes(Path(file)) if file else ClassList(), splits, notes)
    if options.classes is not None:
        data.classes.names = list(options.classes)
    else:
        _make_splits(data, options)
    return data


def read_classes(path: Path) -> ClassList:
    """Classes of a JSON file.

    A list of names, or an object with "classes", and perhaps "palette", "ignore_index",
    "reduce_labels".
    """
    values = read_json(path, DataError)
    values = {"classes": values} if isinstance(values, list) else values
    names = values.get("classes") if isinstance(values, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=lambda key: (len(key), key))]
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not 2 <= len(names) <= MAX_CLASSES
    ):
        raise DataError(
            f"{path}: expected a list of 2 to {MAX_CLASSES} class names, or an object with one"
            " under 'classes'"
        )
    if len(set(names)) < len(names):
        raise DataError(
            f"{path}: the class {next(n for n in names if names.count(n) > 1)!r} is listed twice"
        )
    ignored = values.get("ignore_index", [])
    ignored = [ignored] if isinstance(ignored, int) else ignored
    if not isinstance(ignored, list) or not all(
        type(each) is int and 0 <= each < 1 << 16 for each in ignored
    ):
        raise DataError(
            f"{path}: ignore_index is {values['ignore_index']!r}; expected a mask value or a list"
            " of them"
        )
    return ClassList(
        names,
        _colours(values.get("palette"), len(names), path),
        frozenset(ignored),
        bool(values.get("reduce_labels")),
    )


def _colours(values: Any, classes: int, path: Path) -> NDArray[np.uint8] | None:  # noqa: ANN401 - what a file holds
    if values is None:
        return None
    array = np.array(
        values
        if isinstance(values, list) and all(isinstance(v, list) and len(v) == 3 for v in values)
        else [[0]]
    )
    if (
        array.dtype.kind != "i"
        or array.shape[1:] != (3,)
        or len(array) < classes
        or array.min() < 0
        or array.max() > 255
    ):
        raise DataError(
            f"{path}: palette must hold a colour [red, green, blue] of 0 to 255 for each of the"
            f" {classes} classes"
        )
    return array[:classes].astype(np.uint8)


# Folders ------------------------------------------------------------------------------------------


def _folders(path: Path) -> dict[str, Path]:
    return {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir()}


def _splits_of(path: Path, options: DataOptions, notes: list[str]) -> dict[str, Pairs]:
    """Splits of a folder that holds images and masks, or splits that do.

    Else of what the reader of images reads.
    """
    inside = _folders(path) if path.is_dir() else {}
    images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), None)
    masks = next((inside[name] for name in MASK_NAMES if name in inside), None)
    if images and masks:
        return _in_two(images, masks)
    if not path.is_dir() or holds_files(path):
        raw, said = read_raw(path, replace(options, target="mask", extra={}))
        notes += said
        return {
            split: Pairs(part.images, [cells[0] for cells in part.labels], part.names)
            for split, part in raw.items()
        }
    splits: dict[str, Pairs] = {}
    for name, folder in inside.items():
        if name in SPLIT_NAMES:
            if SPLIT_NAMES[name] in splits:
                raise DataError(
                    f"{path} has two folders that look like {SPLIT_NAMES[name]} data; keep one"
                )
            splits[SPLIT_NAMES[name]] = _splits_of(folder, options, notes)["train"]
    if "train" not in splits:
        raise DataError(
            f"{path} holds no images with masks; expected {path.name}/images and {path.name}/masks,"
            f" {path.name}/train/images and {path.name}/train/masks, or the folder of masks as a"
            " second argument"
        )
    return splits


def _in_two(images: Path, masks: Path) -> dict[str, Pairs]:
    """Splits of a folder of images and a folder of masks."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
    parts = {
        SPLIT_NAMES[name]: (folder, _folders(masks).get(name))
        for name, folder in _folders(images).items()
        if name in SPLIT_NAMES
    }
    if "train" not in parts:
        return {"train": _paired(images, masks)}
    for split, (folder, other) in parts.items():
        if other is None:
            raise DataError(
                f"{folder} has no folder of the same name in {masks} with the masks of the {split}"
                " data"
            )
    return {
        split: _paired(folder, other)
        for split, (folder, other) in parts.items()
        if other is not None
    }


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".")
    )


def _paired(images: Path, masks: Path) -> Pairs:
    """Images and masks of the same name (a mask's may end in `_mask` and the like)."""
    by_name = {
        p.relative_to(masks).with_suffix("").as_posix(): p for p in _files(masks, MASK_SUFFIXES)
    }
    found, lost = Pairs(), []
    for image in _files(images, IMAGE_SUFFIXES):
        name = image.relative_to(images).with_suffix("").as_posix()
        mask = next(
            (by_name[name + ending] for ending in MASK_ENDINGS if name + ending in by_name), None
        )
        if mask is None:
            lost.append(image.name)
            continue
        found.images.append(image)
        found.masks.append(mask)
        found.names.append(str(image))
    if lost:
        raise DataError(
            f"{len(lost)} of {len(lost) + len(found)} images in {images} have no mask of the same"
            f" name in {masks}: {listed(lost, 5)}"
        )
    if not len(found):
        raise DataError(f"{images} holds no images")
    return found


def _make_splits(data: SegmentationData, options: DataOptions) -> None:
    """Holds validation pairs out where there are none, then takes the shots (here: images)."""
    train = data.splits["train"]
    if "validation" not in data.splits and "test" not in data.splits and options.val_fraction > 0:
        order = np.random.default_rng([options.seed, 0x5B117]).permutation(len(train))
        count = min(len(train) - 1, max(1, round(len(train) * options.val_fraction)))
        if count:
            data.splits["validation"] = train.take(np.sort(order[:count]).tolist())
            data.splits["train"] = train = train.take(np.sort(order[count:]).tolist())
            data.notes.append(
                f"no validation data: {count} of {len(order)} images held out (seed {options.seed})"
            )
        else:
            data.notes.append("too few images to hold any out: the result will not be judged")
    if options.shots is not None:
        chosen = np.random.default_rng([options.seed, 0x540]).permutation(len(train))[
            : options.shots
        ]
        data.splits["train"] = train.take(np.sort(chosen).tolist())


# Pixels -------------------------------------------------------------------------------------------


def read_values(source: Source, colours: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """The values of a mask, (H, W); a mask of colours gives the number of each colour in the list.

    Raises:
        InputError: With the reason only; the caller knows the name.
    """
    try:
        data = source_bytes(source)
        with Image.open(io.BytesIO(data)) as picture:
            coloured = picture.mode in ("RGB", "RGBA")
    except UnidentifiedImageError:
        raise InputError("unknown image format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(" ".join(str(error).split())) from None
    if not coloured:
        try:
            values = decode_labels(data).astype(np.int64)
        except InputError as error:
            # the bytes have no name of their own
            raise InputError(str(error).rpartition(" bytes: ")[2]) from None
        if values.min() < 0 or values.max() >= 1 << 16:
            raise InputError(
                f"mask values go from {values.min()} to {values.max()}; expected class numbers"
            )
        return values
    if colours is None:
        raise InputError(
            "the mask holds colours; list them as 'palette' in classes.json, one for each class"
        )
    pixels = decode(data).astype(np.int64)  # (H, W, 3)
    packed = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]  # (H, W)
    known = (colours.astype(np.int64) << [16, 8, 0]).sum(1)  # (V,)
    values = np.full(packed.shape, IGNORED, dtype=np.int64)
    for number, colour in enumerate(known.tolist()):
        values[packed == colour] = number
    # black is "none of them" in most such data sets
    strange = np.setdiff1d(packed, np.append(known, 0))
    if len(strange):
        red, green, blue = (int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise InputError(f"the colour ({red}, {green}, {blue}) is none of the classes'")
    return values


def scan(pairs: Pairs, colours: NDArray[np.uint8] | None, workers: int | None) -> list[Scan | str]:
    """Reads every mask and every image's header.

    What was found, or the reason why a pair cannot be used.
    """

    def one(index: int) -> Scan | str:
        image, mask = inspect(pairs.images[index]), inspect(pairs.masks[index])
        if isinstance(image, str):
            return image
        if isinstance(mask, str):
            return f"{pairs.mask_of(index)}: {mask}"
        try:
            values = read_values(pairs.masks[index], colours)
        except InputError as error:
            return f"{pairs.mask_of(index)}: {error}"
        if values.shape != image[1:]:
            return (
                f"is {image[2]}x{image[1]} pixels, {pairs.mask_of(index)}"
                f" {values.shape[1]}x{values.shape[0]}"
            )
        found, counts = np.unique(values, return_counts=True)
        return Scan(
            f"{image[0]}:{mask[0]}",
            *image[1:],
            dict(zip(found.tolist(), counts.tolist(), strict=True)),
        )

    return list(parallel(one, range(len(pairs)), workers))


def name_classes(classes: ClassList, seen: set[int]) -> list[str]:
    """Fills in what the user did not say about the classes, from the mask values.

    Gives notes about it.
    """
    if not classes.names:
        values = sorted(seen - classes.ignored - {IGNORED})
        if values == [0] and IGNORED in seen:
            classes.names, classes.foreground = ["background", "foreground"], True
            return ["masks hold 0 and 255 only: 255 is taken as the class 'foreground'"]
        count = (values[-1] if values else 0) + (0 if classes.reduce else 1)
        if not 2 <= count <= MAX_CLASSES:
            raise DataError(
                f"the masks hold the values {values[:10]}; expected 2 to {MAX_CLASSES} classes,"
                " from 0 on; 255 is ignored"
            )
        classes.names = [f"class {i}" for i in range(count)]
        return [f"no classes.json: {count} classes, named by their numbers"]
    classes.foreground = len(classes.names) == 2 and seen == {0, 255} and not classes.reduce
    return []
