"""Tables of labelled images: which column is the picture, which ones the labels, which one the
split.

Rows come from CSV, JSON lines and Parquet, from the members of WebDataset tars, and from the
`datasets` library.
"""

from pathlib import Path
from typing import Any

from headstart.checkpoint.documents import read_json
from headstart.data.labels import SINGLE, as_flag, as_number
from headstart.data.options import DataOptions
from headstart.data.sources.raw import MASK_NAMES, SPLIT_NAMES, Cell, Raw, Slice, Source
from headstart.data.sources.tables import Table
from headstart.errors import DataError

IMAGE_COLUMNS = (
    "image",
    "path",
    "file",
    "filename",
    "file_name",
    "image_path",
    "filepath",
    "img",
    "picture",
    "photo",
)
SEVERAL_COLUMNS = ("labels", "tags", "classes", "categories")  # names that promise several classes
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "class_name",
    "name",
    "species",
    "y",
)
SCORE_COLUMNS = ("score", "similarity", "rating")
ID_COLUMNS = ("id", "index", "key", "__key__", "__url__")


def read_image_table(table: Table, options: DataOptions) -> dict[str, Raw]:
    """The examples of a table by split; without a split column all are training data."""
    image = table.column("image", options.columns.get("image"), IMAGE_COLUMNS)
    split_column = options.columns.get("split") or next(
        (c for c in table.columns if c.strip().lower() == "split"), None
    )
    if split_column is not None:
        table.column("split", split_column, ())
    columns = label_columns(table, options, {image, split_column})
    names = class_names(table.path)
    found: dict[str, Raw] = {}
    for i, row in enumerate(table.rows):
        split = "train"
        if split_column is not None:
            split = SPLIT_NAMES.get(str(row.get(split_column)).strip().lower(), "")
            if not split:
                raise DataError(
                    f"{table.where(i)}: split is {row.get(split_column)!r}; expected train,"
                    " validation or test"
                )
        picture, name = row_image(row.get(image), table, i, image)
        part = found.setdefault(split, Raw(columns=columns, class_names=names))
        cells = tuple(row.get(column) for column in columns)
        if options.target == "mask":
            cells = (row_image(cells[0], table, i, columns[0])[0],)
        part.add(picture, cells, name, table.where(i))
    if "train" not in found and options.classes is None:
        raise DataError(f"{table.path}: no row has split train")
    return found


def label_columns(table: Table, options: DataOptions, others: set[str | None]) -> tuple[str, ...]:
    """The column of the label, or the columns where there is one for each class or number; the
    column of the mask.

    Those that were asked for; those that a model names; one with a usual name; several columns of 0
    and 1; the only column of numbers with a point.
    """
    if options.target != "label":
        return (
            (table.column("mask", options.columns.get("mask"), MASK_NAMES),)
            if options.target == "mask"
            else ()
        )
    asked = next(
        (options.columns[role] for role in ("label", "labels", "score") if role in options.columns),
        None,
    )
    if asked is not None and asked not in table.columns and "," in asked:
        return tuple(table.column("label", name.strip(), ()) for name in asked.split(","))
    if asked is not None:
        return (table.column("label", asked, ()),)
    if (
        options.classes
        and options.problem_type not in (None, SINGLE)
        and set(options.classes) <= set(table.columns)
    ):
        return tuple(options.classes)
    usual = [
        c
        for c in (*LABEL_COLUMNS, *SEVERAL_COLUMNS, *SCORE_COLUMNS)
        if c not in {each.strip().lower() for each in others if each}
    ]
    if any(column.strip().lower() in usual for column in table.columns):
        return (table.column("label", None, tuple(usual)),)
    rest = [c for c in table.columns if c not in others and c.strip().lower() not in ID_COLUMNS]
    flags = [c for c in rest if all(as_flag(row.get(c)) is not None for row in table.rows)]
    if len(flags) > 1:
        return tuple(flags)
    numbers = {c: [as_number(row.get(c)) for row in table.rows] for c in rest}
    points = [
        c
        for c, found in numbers.items()
        if None not in found and any(n is not None and not n.is_integer() for n in found)
    ]
    if len(points) == 1:
        return (points[0],)
    return (table.column("label", None, tuple(usual)),)  # none: says which columns there are


def row_image(value: Any, table: Table, index: int, column: str) -> tuple[Source, str]:  # noqa: ANN401 - what a table holds
    """The picture of a row.

    A path beside the table, bytes, the {bytes, path} of Hub data sets, or where one is.
    """
    if isinstance(value, (Slice, Cell)):
        return value, table.where(index)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value, table.where(index)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{table.where(index)}: {column} is {value!r}; expected the path of an image"
        )
    path = table.path.parent / value.strip()
    return path, f"{path} ({table.where(index)})"


def class_names(path: Path) -> list[str] | None:
    """Names in a `classes.json` beside the file: a list, {"classes": [...]}, or {"0": name}."""
    file = path.parent / "classes.json"
    if not file.is_file():
        return None
    value = read_json(file, DataError)
    value = value.get("classes", value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        value = [
            value[key]
            for key in sorted(value, key=lambda key: int(key) if str(key).isdigit() else 0)
        ]
    if (
        not isinstance(value, list)
        or not all(isinstance(name, str) for name in value)
        or len(set(value)) < len(value)
    ):
        raise DataError(f"{file}: expected a list of different class names")
    return value


def promises_several(raw: Raw) -> bool:
    """Whether the column of the labels promises several classes by its name."""
    return raw.columns[0].strip().lower() in SEVERAL_COLUMNS
