"""Images with a label for every pixel: folders of images and of masks, tables, tars and Hub data
sets become splits of pairs.

A mask is a PNG (or TIFF, …) of the image's size that holds class numbers, or colors that
`classes.json` lists. 255 never counts.

Letters: H W sides of an image, V classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint.documents import is_kind, read_json
from headstart.data.cache import decode, inspect, parallel
from headstart.data.images import notes_of
from headstart.data.interpret import grouped, labelled_by_split
from headstart.data.labels import SINGLE
from headstart.data.options import DataOptions, refuse_columns
from headstart.data.sources.folders import holds_files, read_source
from headstart.data.sources.raw import (
    IMAGE_SUFFIXES,
    MASK_NAMES,
    SPLIT_NAMES,
    Source,
    files_below,
    source_bytes,
    take,
)
from headstart.data.splits import split_rows
from headstart.errors import DataError, InputError, listed
from headstart.images.decode import DAMAGE, damage_text, decode_labels, open_image

IGNORED = 255  # the label that no loss and no metric counts
MAX_CLASSES = 255
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "jpegimages")
MASK_ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_seg", "_L", "_gt")
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".jp2"})
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})  # their compression changes labels


@dataclass
class Pairs:
    """The images of one split with their masks.

    Args:
        images: Where the pixels are.
        masks: Where those of the masks are.
        names: How each is named to the user.
        groups: See `headstart.data.examples.Examples`.
    """

    images: Sequence[Source]
    masks: Sequence[Source]
    names: Sequence[str]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> "Pairs":
        """These pairs, in this order."""
        names = take(self.names, indices)
        groups = None if self.groups is None else self.groups[indices]
        return Pairs(take(self.images, indices), take(self.masks, indices), names, groups)

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
        colors: (V, 3) uint8 of each class for figures, and for masks that hold colors; None
            makes them up.
        ignored: Mask values that never count, beside 255.
        reduce: Value 0 is "none of the classes", and value n is class n - 1.
    """

    names: list[str] = field(default_factory=list)
    colors: NDArray[np.uint8] | None = None
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
            columns of images.
        options: Split and seed. `options.extra` may hold "masks", "classes" (a file like
            `classes.json`), "validation" and "test".
    """
    path = Path(path)
    masks = options.extra.get("masks")
    if masks or (path.is_dir() and not holds_files(path)):
        refuse_columns(options.columns, path, "images and masks")
    splits, notes = (_in_two(path, Path(masks)), []) if masks else _splits_of(path, options)
    for split in ("validation", "test"):
        if options.extra.get(split):
            found, more = _splits_of(Path(options.extra[split]), options)
            splits[split] = found.get(split) or found["train"]
            notes += more
    beside = (p for p in (path / "classes.json", path.parent / "classes.json") if p.is_file())
    file = options.extra.get("classes") or next(beside, None)
    classes = read_classes(Path(file)) if file else ClassList()
    if options.classes is not None:
        classes.names = list(options.classes)
        return SegmentationData(classes, splits, notes)
    whole = splits["train"]
    complete = "validation" in splits or "test" in splits
    alike = np.zeros(len(whole), dtype=np.int64)
    rows, held_out, more = split_rows(
        alike, SINGLE, options, "images", complete=complete, groups=whole.groups
    )
    splits["train"] = whole.take(rows)
    if len(held_out):
        splits["validation"] = whole.take(held_out)
    return SegmentationData(classes, splits, notes + more)


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
        _colors(values.get("palette"), len(names), path),
        frozenset(ignored),
        bool(values.get("reduce_labels")),
    )


def _colors(values: Any, classes: int, path: Path) -> NDArray[np.uint8] | None:
    if values is None:
        return None
    if not is_kind(values, list[list[int]]) or not all(
        len(color) == 3 and min(color) >= 0 and max(color) <= 255 for color in values
    ):
        values = []
    if len(values) < classes:
        raise DataError(
            f"{path}: palette must hold a color [red, green, blue] of 0 to 255 for each of the"
            f" {classes} classes"
        )
    return np.array(values[:classes], dtype=np.uint8)


# Folders ------------------------------------------------------------------------------------------


def _folders(path: Path) -> dict[str, Path]:
    return {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir()}


def _splits_of(path: Path, options: DataOptions) -> tuple[dict[str, Pairs], list[str]]:
    """Splits of a folder that holds images and masks, or splits that do, and notes.

    Else of what the reader of images reads.
    """
    inside = _folders(path) if path.is_dir() else {}
    images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), None)
    masks = next((inside[name] for name in MASK_NAMES if name in inside), None)
    if images and masks:
        return _in_two(images, masks), []
    if not path.is_dir() or holds_files(path):
        wanted = replace(options, target="mask", extra={})
        tables = read_source(path, wanted)
        parts = labelled_by_split(tables, wanted)
        pairs = {
            split: Pairs(part.images, part.cells[0], part.names) for split, part in parts.items()
        }
        return pairs, notes_of(tables) + grouped(pairs, parts)
    splits: dict[str, Pairs] = {}
    notes: list[str] = []
    for name, folder in inside.items():
        if name not in SPLIT_NAMES:
            continue
        if SPLIT_NAMES[name] in splits:
            raise DataError(
                f"{path} has two folders that look like {SPLIT_NAMES[name]} data; keep one"
            )
        found, more = _splits_of(folder, options)
        splits[SPLIT_NAMES[name]] = found["train"]
        notes += more
    if "train" not in splits:
        raise DataError(
            f"{path} holds no images with masks; expected {path.name}/images and {path.name}/masks,"
            f" {path.name}/train/images and {path.name}/train/masks, or the folder of masks as a"
            " second argument"
        )
    return splits, notes


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


def _named(folder: Path, suffixes: frozenset[str]) -> list[tuple[str, Path]]:
    """The files anywhere below a folder, with their path there without its ending."""
    found = [file for file in map(Path, files_below(folder)) if file.suffix.lower() in suffixes]
    return [(file.relative_to(folder).with_suffix("").as_posix(), file) for file in found]


def _paired(images: Path, masks: Path) -> Pairs:
    """Images and masks of the same name (a mask's may end in `_mask` and the like)."""
    by_name = dict(_named(masks, MASK_SUFFIXES))
    pairs: dict[Path, Path] = {}
    lost: dict[str, Path] = {}
    for name, image in _named(images, IMAGE_SUFFIXES):
        named = (by_name[name + ending] for ending in MASK_ENDINGS if name + ending in by_name)
        mask = next(named, None)
        if mask is None:
            lost[name] = image
        else:
            pairs[image] = mask
    if lost:
        lossy = dict(_named(masks, JPEG_SUFFIXES))
        if any(name + ending in lossy for name in lost for ending in MASK_ENDINGS):
            raise DataError(
                f"the masks in {masks} are JPEG files, whose compression changes class numbers:"
                " save them as PNG"
            )
        names = listed((image.name for image in lost.values()), 5)
        raise DataError(
            f"{len(lost)} of {len(lost) + len(pairs)} images in {images} have no mask of the same"
            f" name in {masks}: {names}"
        )
    if not pairs:
        raise DataError(f"{images} holds no images")
    return Pairs(list(pairs), list(pairs.values()), [str(image) for image in pairs])


# Pixels -------------------------------------------------------------------------------------------


def read_values(source: Source, colors: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """The values of a mask, (H, W); a mask of colors gives the number of each color in the list.

    Raises:
        InputError: With the reason only; the caller knows the name.
    """
    try:
        data = source_bytes(source)
        with open_image(data) as image:
            colored = image.mode in ("RGB", "RGBA")
    except DAMAGE as error:
        raise InputError(damage_text(error)) from None
    if not colored:
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
    if colors is None:
        raise InputError(
            "the mask holds colors; list them as 'palette' in classes.json, one for each class"
        )
    pixels = decode(data).astype(np.int64)  # (H, W, 3)
    packed = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]  # (H, W)
    known = (colors.astype(np.int64) << [16, 8, 0]).sum(1)  # (V,)
    values = np.full(packed.shape, IGNORED, dtype=np.int64)
    for number, color in enumerate(known.tolist()):
        values[packed == color] = number
    # black is "none of them" in most such data sets
    strange = np.setdiff1d(packed, np.append(known, 0))
    if len(strange):
        red, green, blue = (int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise InputError(f"the color ({red}, {green}, {blue}) is not that of a class")
    return values


def scan(
    pairs: Pairs,
    colors: NDArray[np.uint8] | None,
    workers: int | None,
    seen: Callable[[int], None] = lambda count: None,
) -> list[Scan | str]:
    """Reads every mask and every image's header.

    Args:
        pairs: Images and masks.
        colors: Of the classes, (V, 3), where masks have colors.
        workers: Threads.
        seen: Receives how many more pairs are read.

    Returns:
        What was found, or the reason why a pair cannot be used.
    """

    def one(index: int) -> Scan | str:
        image, mask = inspect(pairs.images[index]), inspect(pairs.masks[index])
        if isinstance(image, str):
            return image
        if isinstance(mask, str):
            return f"{pairs.mask_of(index)}: {mask}"
        try:
            values = read_values(pairs.masks[index], colors)
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

    results = []
    for result in parallel(one, range(len(pairs)), workers):
        seen(1)
        results.append(result)
    return results


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
