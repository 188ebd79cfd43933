"""Pictures without labels: every image below a folder, of an array file or of a tar."""

from pathlib import Path

import numpy as np

from headstart.errors import DataError
from headstart.train.data import read_images
from headstart.train.sources import IMAGE_SUFFIXES, SPLIT_NAMES, Examples, Source
from headstart.train.tasks import DataOptions


def read_pictures(path: str | Path, options: DataOptions) -> tuple[dict[str, Examples], list[str]]:
    """Pictures by split, and what the user should know about them.

    Args:
        path: A folder with pictures anywhere below it, perhaps under `train` and `val`; or a table, `.npz` or `.tar`, or a folder of these,
            as `read_images` takes them, without its labels.
        options: Split and seed. `options.extra["validation"]` and `["test"]` may name further folders.
    """
    path, notes = Path(path), list[str]()
    if path.is_file() or (path.is_dir() and next(path.glob("*.npz"), next(path.glob("*.tar"), None)) is not None):
        data = read_images(path, options)
        return data.splits, data.notes
    splits = _folder(path)
    for split in ("validation", "test"):
        if options.extra.get(split):
            found = _folder(Path(options.extra[split]))
            splits[split] = found.get(split) or found["train"]
    train = splits["train"]
    if len(splits) == 1 and options.val_fraction > 0 and options.classes is None:
        order = np.random.default_rng([options.seed, 0x5B117]).permutation(len(train))
        count = min(len(train) - 1, max(1, round(len(train) * options.val_fraction)))
        if count:
            splits["validation"], splits["train"] = train.take(np.sort(order[:count])), train.take(np.sort(order[count:]))
            notes.append(f"no validation data: {count} of {len(order)} images held out (seed {options.seed})")
    return splits, notes


def _folder(path: Path) -> dict[str, Examples]:
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}")
    inside = {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir() and child.name.lower() in SPLIT_NAMES}
    if "train" in (SPLIT_NAMES[name] for name in inside):
        return {SPLIT_NAMES[name]: _pictures(folder) for name, folder in inside.items()}
    return {"train": _pictures(path)}


def _pictures(path: Path) -> Examples:
    files: list[Source] = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and p.name[0] != "."]
    if not files:
        raise DataError(f"{path} holds no images")
    return Examples(files, np.zeros(len(files), dtype=np.int64), [str(p) for p in files])
