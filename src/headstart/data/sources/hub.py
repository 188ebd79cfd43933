"""Data sets of the Hub and their local copies, read by the `datasets` library: ids, folders it
saved, Parquet and Arrow files.

Only data is read: a data set that needs its own script to be read is refused.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.data.cache import cache_folder
from headstart.data.interpret import IMAGE_COLUMNS, read_image_table
from headstart.data.options import DataOptions
from headstart.data.sources.raw import MASK_NAMES, SPLIT_NAMES, Cell, Raw
from headstart.data.sources.tables import Table
from headstart.errors import DataError, MissingExtraError
from headstart.hub.resolve import transport_errors

NAME = re.compile(
    r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


def hub_name(path: Path) -> str | None:
    """The name of a data set on the Hub: `hf:name`, or `owner/name` where there is no such path."""
    text = str(path)
    if text.startswith("hf:"):
        return re.sub(r"^hf:/*(datasets/)?", "", text)
    plain = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?(@[\w./-]+)?", text)
    return (
        text
        if plain
        and not path.exists()
        and not path.parent.exists()
        and not path.suffix[1:].isalpha()
        else None
    )


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def is_table(path: Path) -> bool:
    """Whether a file is one that only the library knows all of.

    Arrow, or Parquet that says what its columns are (names, pictures).
    """
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return path.suffix.lower() == ".arrow" and path.is_file()
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return False  # reading it as any other table says what to install
    try:
        return b"huggingface" in (pyarrow.parquet.read_schema(path).metadata or {})
    except (pyarrow.ArrowInvalid, OSError):
        return False


def library() -> Any:  # noqa: ANN401 - a module
    """The `datasets` library."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "train") from None
    return datasets


def load_hub(name: str) -> dict[str, Any]:
    """The splits of a data set on the Hub, `owner/name`, `owner/name:configuration` or either with
    `@revision`.

    Raises:
        DataError: No such data set, no network, or one that is only readable by running its script.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise DataError(
            f"{name!r} is no name of a data set; expected hf:owner/name,"
            " hf:owner/name:configuration or …@revision"
        )
    try:
        datasets = library()
    except MissingExtraError as error:
        raise DataError(
            f"there is no file or folder {name}; for the data set of that name on the Hub: {error}"
        ) from None
    _ask(name, found["id"], found["revision"])
    expected: tuple[type[Exception], ...] = (ValueError, RuntimeError, *transport_errors())
    try:
        loaded = datasets.load_dataset(found["id"], found["config"], revision=found["revision"])
    except expected as error:
        raise DataError(
            f"the data set {name} of the Hub cannot be read: {' '.join(str(error).split())}"
        ) from None
    return dict(loaded)


def _ask(name: str, repository: str, revision: str | None) -> None:
    """Asks the Hub whether there is such a data set, once.

    The library itself asks again and again for half a minute.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(repository, revision=revision, timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise DataError(
            f"there is no file or folder {name}, and no data set of that name on the Hub that may"
            " be read from here"
        ) from None
    except transport_errors() as error:
        raise DataError(
            f"there is no file or folder {name}, and the Hub cannot be reached ({error}); "
            "a data set that was downloaded before is used with HF_HUB_OFFLINE=1"
        ) from None


def load_saved(path: Path) -> dict[str, Any]:
    """The splits of a folder that `save_to_disk` wrote."""
    datasets = library()
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} was saved by the datasets library and cannot be read:"
            f" {' '.join(str(error).split())}"
        ) from None
    return dict(loaded) if hasattr(loaded, "keys") else {"train": loaded}


def load_files(files: dict[str, list[Path]]) -> dict[str, Any]:
    """The splits that Parquet or Arrow files hold."""
    datasets = library()
    loaded = {}
    for split, paths in files.items():
        try:
            if paths[0].suffix.lower() == ".arrow":
                loaded[split] = datasets.concatenate_datasets(
                    [datasets.Dataset.from_file(str(path)) for path in paths]
                )
            else:
                loaded[split] = datasets.Dataset.from_parquet([str(path) for path in paths])
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            raise DataError(f"{paths[0]} cannot be read: {' '.join(str(error).split())}") from None
    return loaded


def read_hub(name: str, options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    """Labelled images of a data set on the Hub."""
    return _read(load_hub(name), Path(f"hf:{name}"), options, notes)


def read_saved(path: Path, options: DataOptions, notes: list[str]) -> dict[str, Raw]:
    """Labelled images of a folder that `save_to_disk` wrote."""
    return _read(load_saved(path), path, options, notes)


def read_files(
    files: dict[str, list[Path]], options: DataOptions, notes: list[str]
) -> dict[str, Raw]:
    """Labelled images of Parquet or Arrow files."""
    return _read(load_files(files), next(iter(files.values()))[0], options, notes)


def named_splits(loaded: dict[str, Any], name: Path, notes: list[str]) -> dict[str, Any]:
    """Splits under our names; a data set of one split is training data whatever it is called."""
    if len(loaded) == 1:
        return {"train": next(iter(loaded.values()))}
    found: dict[str, Any] = {}
    for split, rows in loaded.items():
        ours = SPLIT_NAMES.get(split.lower())
        if ours is None or ours in found:
            notes.append(f"split {split} of {name} is left alone")
        else:
            found[ours] = rows
    if "train" not in found:
        raise DataError(f"{name} has splits {', '.join(loaded)}; expected train")
    return found


def _read(
    loaded: dict[str, Any], path: Path, options: DataOptions, notes: list[str]
) -> dict[str, Raw]:
    found: dict[str, Raw] = {}
    for split, rows in named_splits(loaded, path, notes).items():
        pictures = [
            name for name, feature in rows.features.items() if type(feature).__name__ == "Image"
        ]
        masked = options.target == "mask"
        column = options.columns.get("image") or min(
            (p for p in pictures if not (masked and is_mask(p))), key=_usual, default=None
        )
        kept = [p for p in pictures if masked or p == column]
        table = plain_table(rows, path, f"{split} row" if len(loaded) > 1 else "row", kept)
        columns = options.columns | ({"image": column} if column else {})
        parts = read_image_table(table, dataclasses.replace(options, columns=columns))
        for own, raw in parts.items():
            if split != "train" and all(label == (None,) for label in raw.labels):
                notes.append(f"split {split} of {path} has no labels and is left alone")
            else:
                found.setdefault(split if len(parts) == 1 else own, raw)
    return found


def as_json_lines(path: Path, notes: list[str]) -> Path | None:
    """A folder with `train.jsonl`, … of a data set of the Hub or one the library saved; None for
    any other path.

    The text tasks read these as any other table.
    """
    if not is_saved(path) and (path.exists() or hub_name(path) is None):
        return None
    loaded = load_saved(path) if is_saved(path) else load_hub(str(hub_name(path)))
    tables = {}
    for split, rows in named_splits(loaded, path, notes).items():
        classes = [
            name
            for name, feature in rows.features.items()
            if type(feature).__name__ == "ClassLabel"
        ]
        table = plain_table(rows, path, "row")
        if split != "train" and any(
            all(row[name] is None for row in table.rows) for name in classes
        ):
            notes.append(f"split {split} of {path} has no labels and is left alone")
        else:
            tables[split] = "".join(
                json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.rows
            )
    name = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:32]
    for split, text in tables.items():
        atomic_write(cache_folder() / "texts" / name / f"{split}.jsonl", text)
    return cache_folder() / "texts" / name


def is_mask(column: str) -> bool:
    """Whether a column of pictures is one of masks by its name."""
    return column.strip().lower() in MASK_NAMES


def _usual(column: str) -> int:
    return (
        IMAGE_COLUMNS.index(column.lower())
        if column.lower() in IMAGE_COLUMNS
        else len(IMAGE_COLUMNS)
    )


def plain_table(rows: Any, path: Path, unit: str, pictures: Sequence[str] = ()) -> Table:  # noqa: ANN401 - a datasets.Dataset
    """The rows of a data set as plain values: numbers of classes become their names, pictures stay
    where they are.

    Args:
        rows: The data set.
        path: How it is named to the user.
        unit: What a row is called there.
        pictures: Columns of pictures, which are read only when they are needed.
    """
    media = ("Image", "Audio", "Video", "Pdf")
    plain = [name for name, feature in rows.features.items() if type(feature).__name__ not in media]
    columns = {
        name: [_named(value, rows.features[name]) for value in rows.with_format(None)[name]]
        for name in plain
    }
    for picture in pictures:
        cells = (
            rows.with_format(None)
            .select_columns([picture])
            .cast_column(picture, library().Image(decode=False))
        )
        columns[picture] = [Cell(cells, i, picture) for i in range(len(rows))]
    made = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if not made:
        raise DataError(f"{path} has no rows")
    return Table(path, list(columns), made, unit, range(1, len(made) + 1))


def _named(value: Any, feature: Any) -> Any:  # noqa: ANN401 - what a data set holds
    """A value with the names of its classes; -1 and nothing stand for a label that is not told."""
    if type(feature).__name__ == "ClassLabel" and isinstance(value, int):
        return feature.names[value] if value >= 0 else None
    inner = getattr(
        feature, "feature", feature[0] if isinstance(feature, list) and feature else None
    )
    if isinstance(value, list) and inner is not None:
        return [_named(each, inner) for each in value]
    return value
