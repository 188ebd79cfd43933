"""Data sets of the Hub and their local copies, read by the `datasets` library: ids, folders it
saved, Parquet and Arrow files.

Only data is read: a data set that needs its own script to be read is refused.
"""

import difflib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headstart.data.options import DataOptions
from headstart.data.sources.raw import (
    IMAGE_COLUMNS,
    MASK_NAMES,
    SPLIT_NAMES,
    Cell,
    Lazy,
    RawTable,
    Tables,
    pooled,
)
from headstart.errors import DataError, MissingExtraError
from headstart.hub.resolve import transport_errors

MEDIA = ("Image", "Audio", "Video", "Pdf")
NAME = re.compile(
    r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


def hub_name(path: Path) -> str | None:
    """The name of a data set on the Hub: `hf:name`, or `owner/name` where there is no such path.

    Raises:
        DataError: `owner/name` is almost the name of a folder: it is mistyped, and not looked up.
    """
    text = str(path)
    if text.startswith("hf:"):
        return re.sub(r"^hf:/*(datasets/)?", "", text)
    plain = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?(@[\w./-]+)?", text)
    if not plain or path.exists() or path.parent.exists() or path.suffix[1:].isalpha():
        return None
    folders = [each.name for each in Path().iterdir() if each.is_dir()]
    near = difflib.get_close_matches(path.parts[0], folders, n=1, cutoff=0.7)
    if near:
        raise DataError(
            f"there is no file or folder {path}; did you mean a path below {near[0]}? A data set of"
            f" the Hub is named hf:{text}"
        )
    return text


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def is_table(path: Path) -> bool:
    """Whether a file is one that only the library knows all of.

    Arrow, or Parquet that describes its columns (names, images).
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
    except (pyarrow.ArrowException, OSError, ValueError):
        return False  # reading it as any other table says what is wrong


def library() -> Any:
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
            f"{name!r} is not a name of a data set; expected hf:owner/name,"
            " hf:owner/name:configuration or …@revision"
        )
    try:
        datasets = library()
    except MissingExtraError as error:
        raise DataError(
            f"there is no file or folder {name}; for the data set of that name on the Hub: {error}"
        ) from None
    reach(name, found["id"], found["revision"])
    expected: tuple[type[Exception], ...] = (ValueError, RuntimeError, *transport_errors())
    try:
        loaded = datasets.load_dataset(found["id"], found["config"], revision=found["revision"])
    except expected as error:
        raise DataError(
            f"the data set {name} of the Hub cannot be read: {' '.join(str(error).split())}"
        ) from None
    return dict(loaded)


def reach(name: str, repository: str, revision: str | None) -> None:
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


def _load_files(paths: list[Path]) -> Any:
    datasets = library()
    expected = (OSError, ValueError, datasets.exceptions.DatasetGenerationError)
    try:
        if paths[0].suffix.lower() == ".arrow":
            return datasets.concatenate_datasets(
                [datasets.Dataset.from_file(str(path)) for path in paths]
            )
        return datasets.Dataset.from_parquet([str(path) for path in paths])
    except expected as error:
        raise DataError(f"{paths[0]} cannot be read: {' '.join(str(error).split())}") from None


def read_hub(name: str, options: DataOptions) -> Tables:
    """The splits of a data set on the Hub."""
    return _tables(load_hub(name), Path(f"hf:{name}"), options)


def read_saved(path: Path, options: DataOptions) -> Tables:
    """The splits of a folder that `save_to_disk` wrote."""
    return _tables(load_saved(path), path, options)


def read_files(paths: list[Path], options: DataOptions) -> RawTable:
    """The rows of Parquet or Arrow files, the parts of one split."""
    return _tables({"train": _load_files(paths)}, paths[0], options)["train"][0]


def _tables(loaded: dict[str, Any], path: Path, options: DataOptions) -> Tables:
    """Splits under our names; a data set of one split is training data whatever it is called."""
    if len(loaded) == 1:
        return {"train": [_table(next(iter(loaded.values())), path, "row", options)]}
    found: Tables = {}
    notes = []
    for split, rows in loaded.items():
        ours = SPLIT_NAMES.get(split.lower())
        if ours is None or ours in found:
            notes.append(f"split {split} of {path} is left alone")
        else:
            found[ours] = [_table(rows, path, f"{split} row", options)]
    if "train" not in found:
        raise DataError(f"{path} has splits {', '.join(loaded)}; expected train")
    found["train"][0].notes += notes
    return found


def is_mask(column: str) -> bool:
    """Whether a column of images is one of masks by its name."""
    return column.strip().lower() in MASK_NAMES


def _usual(column: str) -> int:
    return (
        IMAGE_COLUMNS.index(column.lower())
        if column.lower() in IMAGE_COLUMNS
        else len(IMAGE_COLUMNS)
    )


def _table(rows: Any, path: Path, unit: str, options: DataOptions) -> RawTable:
    """The rows of a data set as plain values: numbers of classes become their names, images stay
    where they are.
    """
    if not len(rows):
        raise DataError(f"{path} has no rows")
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    columns: dict[str, Sequence[Any]] = {
        name: pooled([_named(value, rows.features[name]) for value in rows.with_format(None)[name]])
        for name, kind in kinds.items()
        if kind not in MEDIA
    }
    masked = options.target == "mask"
    images = [name for name, kind in kinds.items() if kind == "Image"]
    image = options.columns.get("image") or min(
        (name for name in images if not (masked and is_mask(name))), key=_usual, default=None
    )
    for name in images:
        if masked or name == image:
            cells = rows.with_format(None).select_columns([name])
            cells = cells.cast_column(name, library().Image(decode=False))
            columns[name] = Lazy(partial(Cell, cells, column=name), range(len(rows)))
    return RawTable(path, columns, unit, range(1, len(rows) + 1), image)


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of its classes; -1 and nothing stand for a label that is missing."""
    if type(feature).__name__ == "ClassLabel" and isinstance(value, int):
        return feature.names[value] if value >= 0 else None
    inner = getattr(
        feature, "feature", feature[0] if isinstance(feature, list) and feature else None
    )
    if isinstance(value, list) and inner is not None:
        return [_named(each, inner) for each in value]
    return value
