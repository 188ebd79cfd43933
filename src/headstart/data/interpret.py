"""Raw tables become labelled images: which column is the image, which ones the labels, which one
the split; what the labels are, and which class is which number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint.documents import read_json
from headstart.data.examples import Examples
from headstart.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    WORDS,
    as_flag,
    class_in,
    class_key,
    class_name,
    classes_in,
    is_number,
    kind_of,
    look_alikes,
    numbers_in,
)
from headstart.data.options import SPLITS, DataOptions, refuse_columns
from headstart.data.sources.raw import (
    IMAGE_COLUMNS,
    MASK_NAMES,
    SPLIT_NAMES,
    Cell,
    Lazy,
    RawTable,
    Slice,
    Source,
    Tables,
    group_column,
    is_empty,
    joined,
    numbered,
    take,
)
from headstart.errors import DataError, listed

SEVERAL_COLUMNS = ("labels", "tags", "classes", "categories")  # names that promise several classes
LABEL_COLUMNS = (
    *("label", "labels", "class", "category", "target", "class_name", "name", "species", "y"),
)
LABEL_ROLES = ("label", "labels", "score")  # of which a table may have one
SCORE_COLUMNS = ("score", "similarity", "rating")
ID_COLUMNS = ("id", "index", "key", "__key__", "__url__")
MANY = 20  # integers of more values than this may be meant as regression targets


@dataclass
class ImageData:
    """A labelled image data set.

    Args:
        classes: Names of the classes; of the targets, where `kind` is regression.
        splits: Examples by split.
        notes: What the user should know about them.
        kind: What the labels are, as `problem_type` of a configuration names it.
    """

    classes: list[str]
    splits: dict[str, Examples]
    notes: list[str] = field(default_factory=list)
    kind: str = SINGLE


@dataclass
class Labelled:
    """Images whose labels are still as they were written.

    Args:
        images: Where the pixels are.
        cells: Cells of the labels, one sequence for each of `columns`.
        names: How each image is named to the user.
        places: Where each label is.
        columns: Names of the columns of the labels.
        class_names: Names that numbers stand for.
        groups: Cells of the column of groups; None has none.
    """

    images: Sequence[Source]
    cells: list[Sequence[Any]]
    names: Sequence[str]
    places: Sequence[str]
    columns: tuple[str, ...]
    class_names: list[str] | None
    groups: Sequence[Any] | None = None


# Columns ------------------------------------------------------------------------------------------


def labelled_by_split(tables: Tables, options: DataOptions) -> dict[str, Labelled]:
    """The images and label cells of every split.

    Args:
        tables: What the source holds, by split; a column "split" decides for its table.
        options: Columns by role, and what an image comes with.

    Raises:
        DataError: No such columns, or a row without an image.
    """
    found: dict[str, list[Labelled]] = {}
    every = [table for parts in tables.values() for table in parts]
    known = next((table for table in every if table.labels), None)
    if options.target == "label" and known and all(table.labels for table in every):
        labels = {role: options.columns[role] for role in LABEL_ROLES if role in options.columns}
        refuse_columns(labels, known.path, "labelled arrays" if known.unit else "class folders")
    for split, parts in tables.items():
        for table in parts:
            image = table.column(
                "image", options.columns.get("image") or table.image, IMAGE_COLUMNS
            )
            rows = _rows_by_split(table, options, split)
            group = group_column(table, options.columns.get("group"))
            others = {image, _split_column(table, options), group}
            columns = _label_columns(table, options, others)
            group = None if group in columns else group
            for own, indices in rows.items():
                part = _part(table, image, columns, indices, options)
                part.groups = None if group is None else take(table.columns[group], indices)
                found.setdefault(own, []).append(part)
    return {split: _together(found[split]) for split in SPLITS if split in found}


def _split_column(table: RawTable, options: DataOptions) -> str | None:
    requested = options.columns.get("split")
    return table.column("split", requested, ()) if requested else table.usual_column(("split",))


def _rows_by_split(
    table: RawTable, options: DataOptions, split: str
) -> dict[str, NDArray[np.int64] | range]:
    column = _split_column(table, options)
    if column is None:
        return {split: range(len(table))}
    found: dict[str, list[int]] = {}
    for i, word in enumerate(table.columns[column]):
        own = SPLIT_NAMES.get(str(word).strip().lower())
        if own is None:
            raise DataError(
                f"{table.where(i)}: split is {word!r}; expected train, validation or test"
            )
        found.setdefault(own, []).append(i)
    if split != "train":  # a file of validation data is that whatever its column holds
        return {split: range(len(table))}
    if "train" not in found and options.classes is None:
        raise DataError(f"{table.path}: no row has split train")
    return {own: np.asarray(rows, dtype=np.int64) for own, rows in found.items()}


def _part(
    table: RawTable,
    image: str,
    columns: tuple[str, ...],
    rows: NDArray[np.int64] | range,
    options: DataOptions,
) -> Labelled:
    sources = source_of(table, image)
    cells: list[Sequence[Any]] = [table.columns[column] for column in columns]
    if options.target == "mask":
        cells = [Lazy(source_of(table, columns[0]), range(len(table)))]
    names = class_names(table.path) if table.unit else None
    titles = columns
    if table.labels and len(columns) > 1 and names and len(names) == len(columns):
        titles = tuple(names)

    def name(index: int) -> str:
        source = sources(index)
        where = table.where(index)
        return f"{source} ({where})" if isinstance(source, Path) and table.unit else where

    if len(rows) < len(table):
        cells = [take(column, rows) for column in cells]
    return Labelled(
        Lazy(sources, rows), cells, Lazy(name, rows), Lazy(table.where, rows), titles, names
    )


def _together(parts: list[Labelled]) -> Labelled:
    """The parts of one split; the first one names the columns."""
    first = parts[0]
    widths = {len(part.cells) for part in parts}
    if len(widths) > 1:
        raise DataError(_WIDTHS.format(parts[0].places[0], min(widths), max(widths)))
    groups = [part.groups for part in parts if part.groups is not None]
    return Labelled(
        joined([part.images for part in parts]),
        [joined(cells) for cells in zip(*(part.cells for part in parts), strict=True)],
        joined([part.names for part in parts]),
        joined([part.places for part in parts]),
        first.columns,
        first.class_names,
        joined(groups) if len(groups) == len(parts) else None,
    )


_WIDTHS = "{}: one part has {} label columns, another {}; name them with --column label=A,B"


def source_of(table: RawTable, column: str) -> Callable[[int], Source]:
    """The image of a row: a path beside the table, bytes, the {bytes, path} of Hub data sets, or
    where one is.

    Raises:
        DataError: A row holds none; all rows are looked at now.
    """
    cells = table.columns[column]
    base = table.path.parent if table.unit else Path()

    def source(index: int) -> Source:
        value = cells[index]
        if isinstance(value, Slice | Cell | np.ndarray):
            return value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if isinstance(value, str) and value.strip():
            return base / value.strip()
        raise DataError(
            f"{table.where(index)}: {column} is {value!r:.80}; expected the path of an image"
        )

    if not isinstance(cells, Lazy | np.ndarray):
        for i, cell in enumerate(cells):
            if not (isinstance(cell, str) and cell.strip()):
                source(i)
    return source


def _label_columns(
    table: RawTable, options: DataOptions, others: set[str | None]
) -> tuple[str, ...]:
    """The column of the label, or the columns where there is one for each class or target; the
    column of the mask.

    Those that were requested; those that the source or a model names; one with a usual name;
    several columns of 0 and 1; the only column of numbers with a point.
    """
    if options.target == "none":
        return ()
    if options.target == "mask":
        return (table.column("mask", options.columns.get("mask"), MASK_NAMES),)
    if table.labels is not None:
        return table.labels
    roles = (role for role in LABEL_ROLES if role in options.columns)
    requested = next((options.columns[role] for role in roles), None)
    if requested is not None and requested not in table.columns and "," in requested:
        return tuple(table.column("label", name.strip(), ()) for name in requested.split(","))
    if requested is not None:
        return (table.column("label", requested, ()),)
    several = options.classes and options.problem_type not in (None, SINGLE)
    if several and options.classes and set(options.classes) <= set(table.columns):
        return tuple(options.classes)
    taken = {each.strip().lower() for each in others if each}
    usual = [*LABEL_COLUMNS, *SEVERAL_COLUMNS, *SCORE_COLUMNS]
    found = table.usual_column([name for name in usual if name not in taken])
    if found is not None:
        return (found,)
    rest = [c for c in table.columns if c not in others and c.strip().lower() not in ID_COLUMNS]
    flags = tuple(c for c in rest if all(as_flag(each) is not None for each in table.columns[c]))
    if len(flags) > 1:
        return flags
    points = tuple(c for c in rest if kind_of([(each,) for each in table.columns[c]]) == REGRESSION)
    if len(points) == 1:
        return points
    return (table.column("label", None, (*usual, "txt")),)  # none: lists the columns there are


def class_names(path: Path) -> list[str] | None:
    """Names in a `classes.json` beside the file: a list, {"classes": [...]}, or {"0": name}."""
    file = path.parent / "classes.json"
    return read_class_names(file) if file.is_file() else None


def read_class_names(file: Path) -> list[str]:
    """Names in a JSON file: a list, {"classes": [...]}, or {"0": name}.

    Raises:
        DataError: It holds no names.
    """
    value = read_json(file, DataError)
    value = value.get("classes", value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        order = sorted(value, key=lambda key: int(key) if is_number(key) else 0)
        value = [value[key] for key in order]
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not texts or len(set(map(class_name, value))) < len(value):
        raise DataError(f"{file}: expected a list of different class names")
    return [class_name(name) for name in value]


# Labels -------------------------------------------------------------------------------------------


def interpret(parts: dict[str, Labelled], options: DataOptions, path: Path) -> ImageData:
    """The labels as numbers, after finding out what they are.

    Args:
        parts: Images and label cells by split.
        options: The kind of labels and the classes, where they are given.
        path: How the data set is named to the user.

    Raises:
        DataError: Labels of no kind, or of several.
    """
    notes: list[str] = []
    for split in [each for each in parts if each != "train" and "train" in parts]:
        if parts[split].cells and all(cell is None for each in parts[split].cells for cell in each):
            notes.append(f"split {split} of {path} has no labels and is left alone")
            del parts[split]
    first = next(iter(parts.values()))
    widths = {len(part.cells) for part in parts.values()}
    if len(widths) > 1:
        raise DataError(_WIDTHS.format(path, min(widths), max(widths)))
    rows = _distinct(parts)
    several = "labels" in options.columns or first.columns[0].strip().lower() in SEVERAL_COLUMNS
    found = MULTI if "labels" in options.columns else kind_of(rows, several=several)
    kind = options.problem_type or found
    notes += _kind_notes(kind, rows, first, options, sum(len(p.images) for p in parts.values()))
    if kind == REGRESSION:
        classes, splits = _targets(parts, options)
    else:
        classes, splits = _indexed(parts, options, path, kind)
        if options.classes is None:
            notes += [*look_alikes(classes), *_absent(classes, splits, kind)]
    notes += grouped(splits, parts)
    return ImageData(classes, splits, notes, kind)


def _distinct(parts: dict[str, Labelled]) -> list[tuple[Any, ...]]:
    """The different rows of label cells; all of them where they cannot be compared."""
    rows = [row for part in parts.values() for row in zip(*part.cells, strict=True)]
    try:
        return list(dict.fromkeys(rows))
    except TypeError:
        return rows


def _kind_notes(
    kind: str, rows: list[tuple[Any, ...]], first: Labelled, options: DataOptions, count: int
) -> list[str]:
    if options.classes is not None:
        return []
    notes = []
    what = f"column{'s' if len(first.columns) > 1 else ''} {listed(first.columns)}"
    if options.problem_type is None and (kind != SINGLE or len(first.columns) > 1):
        notes.append(f"{what}: {WORDS[kind]} ({kind}; --problem-type chooses otherwise)")
    values = {str(row[0]).strip() for row in rows}
    if kind == SINGLE and len(values) > max(MANY, count / 3) and all(map(is_number, values)):
        notes.append(
            f"{what} has {len(values)} integers, each taken as a class; --problem-type regression"
            " takes them as numbers"
        )
    return notes


class Grouped(Protocol):
    """Examples of a split, whose groups may be known."""

    groups: NDArray[np.int64] | None

    def __len__(self) -> int: ...


def grouped(splits: Mapping[str, Grouped], parts: Mapping[str, Labelled]) -> list[str]:
    """Notes about the groups of the examples, which are numbered in place."""
    cells = {split: parts[split].groups or [None] * len(part) for split, part in splits.items()}
    if not any(parts[split].groups for split in splits):
        return []
    every = [cell for each in cells.values() for cell in each]
    if all(map(is_empty, every)):
        return ["the column group has no values: no examples are kept together"]
    numbers = numbered(every)
    ends = np.cumsum([len(each) for each in cells.values()])
    groups = dict(zip(splits, np.split(numbers, ends[:-1]), strict=True))
    for split, rows in groups.items():
        splits[split].groups = rows
    return group_notes(groups, "images")


def group_notes(groups: Mapping[str, NDArray[np.int64]], unit: str) -> list[str]:
    """What the user should know about groups by split."""
    given = {split: set(each.tolist()) for split, each in groups.items()}
    count, total = len(set().union(*given.values())), sum(map(len, groups.values()))
    notes = [f"column group: {total} {unit} in {count} groups, which are kept together"]
    others = set().union(*(each for split, each in given.items() if split != "train"))
    if shared := len(given.get("train", set()) & others):
        notes.append(
            f"{shared} groups are both in the training and in the evaluation data: the result"
            " flatters"
        )
    return notes


def _absent(classes: list[str], splits: dict[str, Examples], kind: str) -> list[str]:
    notes = []
    for split, part in splits.items():
        present = part.labels if kind == SINGLE else np.flatnonzero(part.labels.any(0))
        absent = np.setdiff1d(np.arange(len(classes)), present)
        if split != "train" and len(absent):
            notes.append(f"no {split} image is {listed(classes[i] for i in absent)}")
    return notes


def _targets(
    parts: dict[str, Labelled], options: DataOptions
) -> tuple[list[str], dict[str, Examples]]:
    columns = next(iter(parts.values())).columns
    names = options.classes or list(columns)
    if len(names) != len(columns):
        raise DataError(
            f"the model predicts {len(names)} numbers, {listed(names)}; the data has"
            f" {listed(columns)}"
        )
    splits = {}
    for split, part in parts.items():
        values = np.empty((len(part.images), len(names)), dtype=np.float32)
        for i, cells in enumerate(zip(*part.cells, strict=True)):
            values[i] = _with_place(numbers_in, cells, part, i)
        splits[split] = Examples(part.images, values, part.names)
    return names, splits


def _with_place(
    parse: Callable[..., Any], cells: tuple[Any, ...], part: Labelled, index: int, *names: Any
) -> Any:
    """A parsed label; the place of its row is made only when it is wrong."""
    try:
        return parse(cells, part.columns, "", *names)
    except DataError:
        return parse(cells, part.columns, part.places[index], *names)


def _indexed(
    parts: dict[str, Labelled], options: DataOptions, path: Path, kind: str
) -> tuple[list[str], dict[str, Examples]]:
    """Class names, and the labels of every split as numbers of classes, or as rows of zeros and
    ones.
    """
    parsed = {split: _parsed(part, kind) for split, part in parts.items()}
    seen = {
        label
        for split, rows in parsed.items()
        if split == "train" or options.classes
        for row in set(rows)
        for label in row
    }
    columns = next(iter(parts.values())).columns
    classes = options.classes or (
        list(columns) if len(columns) > 1 else sorted(seen, key=class_key)
    )
    if len(classes) < options.fewest_classes:
        only = f"one class, {classes[0]!r}" if classes else "no classes"
        raise DataError(f"{path} has {only}; telling things apart needs at least two")
    index = {class_name(name): i for i, name in enumerate(classes)}
    if options.classes and all(is_number(name) and int(name) < len(classes) for name in seen):
        # numbers of classes whose names the data does not know
        index = {str(i): i for i in range(len(classes))} | index
    splits = {}
    for split, part in parts.items():
        for i, row in enumerate(parsed[split]):
            for label in row:
                if label not in index:
                    whose = "the model's classes" if options.classes else _TRAINING
                    raise DataError(
                        f"{part.names[i]}: class {label!r} is not among {whose}: {listed(classes)}"
                    )
        labels = _label_array(parsed[split], index, len(classes), kind)
        splits[split] = Examples(part.images, labels, part.names)
    return classes, splits


_TRAINING = "the classes of the training data"


def _parsed(part: Labelled, kind: str) -> list[tuple[str, ...]]:
    """The classes of every example; equal labels are one object."""
    known: dict[Any, tuple[str, ...]] = {}
    found = []
    for i, cells in enumerate(zip(*part.cells, strict=True)):
        texts = all(type(cell) is str for cell in cells)
        row = known.get(cells) if texts else None
        if row is None:
            parse = classes_in if kind == MULTI else class_in
            labels = _with_place(parse, cells, part, i, part.class_names)
            row = tuple(labels) if kind == MULTI else (labels,)
            if texts:
                known[cells] = row
        found.append(row)
    return found


def _label_array(
    rows: list[tuple[str, ...]], index: dict[str, int], classes: int, kind: str
) -> NDArray[Any]:
    if kind == SINGLE:
        return np.fromiter((index[row[0]] for row in rows), np.int64, len(rows))
    labels = np.zeros((len(rows), classes), dtype=np.float32)
    for i, row in enumerate(rows):
        labels[i, [index[label] for label in row]] = 1
    return labels
