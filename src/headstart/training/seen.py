"""Which examples a model was trained on, by the hash of their content, and by their looks."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.data.duplicates import FLAT, near_pairs
from headstart.report.sections import DECODED, hashes_of
from headstart.tasks.base import Task
from headstart.tasks.image_classification import ImageClassification

FILE = "examples.npz"
LOOKS = "train_looks"  # difference hashes of the training images, beside the splits


def short(digests: Sequence[str]) -> NDArray[np.uint64]:
    """The first 64 bits of hashes, 0 where there is none."""
    return np.array([int(digest[:16] or "0", 16) for digest in digests], dtype=np.uint64)


def write_seen(folder: Path, task: Task) -> None:
    """Writes the hashes of the examples of each split, where the task knows those of all."""
    if task.streams or task.looks_at_a_part:
        return
    # of the pixels that are at hand: decoding large photos again would take minutes
    looks = hashes_of(task)["train"] if isinstance(task, ImageClassification) else None
    write_digests(folder, {split: task.digests(split) for split in task.splits}, looks)


def write_digests(
    folder: Path, digests: Mapping[str, Sequence[str]], looks: NDArray[np.uint64] | None = None
) -> None:
    """Writes the hashes of the examples of each split, where there are any, and the difference
    hashes of training images.
    """
    found = {split: short(each) for split, each in digests.items()}
    if not any(len(each) for each in found.values()):
        return

    more = {} if looks is None else {LOOKS: looks}

    def write(file: Any) -> None:
        np.savez_compressed(file, allow_pickle=False, **found | more)

    atomic_write(folder / FILE, write)


def changed_looks(
    folder: Path, task: ImageClassification, digests: Sequence[str]
) -> NDArray[np.uint64] | None:
    """Difference hashes (N,) of the training images of a run whose examples change.

    Those that the run knows are kept, new ones are read where they are not too many; `FLAT` stands
    for the others. None where the run knows none.

    Args:
        folder: The result folder before the change.
        task: The images that were added or removed.
        digests: Content hashes of the training images from now on, N of them.
    """
    train, looks = _read(folder, "train"), _read(folder, LOOKS)
    if train is None or looks is None or len(train) != len(looks):
        return None
    known = dict(zip(train.tolist(), looks.tolist(), strict=True))
    keys, own = short(digests).tolist(), short(task.digests("train"))
    rows = np.flatnonzero(np.isin(own, list(set(keys) - set(known))))
    if len(rows) <= DECODED:
        found = task.difference_hashes("train", rows)
        known |= dict(zip(own[rows].tolist(), found.tolist(), strict=True))
    return np.array([known.get(key, FLAT) for key in keys], dtype=np.uint64)


def trained_on(folder: Path, task: Task, split: str) -> NDArray[np.bool_] | None:
    """Whether the model of a result folder was trained on each example of a split, (N,).

    None where the folder does not say, or the task has no hashes.
    """
    train = _read(folder, "train")
    if train is None:
        return None
    digests = short(task.digests(split))
    return np.isin(digests, train) & (digests != 0) if len(digests) else None


def looks_trained_on(folder: Path, task: Task, split: str) -> NDArray[np.bool_] | None:
    """Whether each image of a split looks the same as one that the model was trained on, (N,): a
    copy that was scaled or saved again.

    None where the folder does not say, there are too many images to look at, or the training images
    look the same among themselves half as often: digits, or shots of one scene.
    """
    train = _read(folder, LOOKS)
    own = None if train is None else _looks(task, split)
    if train is None or own is None:
        return None
    hashes = np.concatenate([train, own])
    pairs = near_pairs(hashes, list(map(str, range(len(hashes)))))
    found = np.zeros(len(hashes), dtype=bool)
    found[[i for j, i in pairs if j < len(train)]] = True
    among, copies = found[: len(train)], found[len(train) :]
    return copies if copies.mean() > 2 * among.mean() else None


def _looks(task: Task, split: str) -> NDArray[np.uint64] | None:
    """Difference hashes (N,) of a split; None of what is not images of classes, or too many."""
    count = task.splits[split]
    if not isinstance(task, ImageClassification) or count > DECODED:
        return None
    return task.difference_hashes(split, np.arange(count))


def _read(folder: Path, key: str) -> NDArray[np.uint64] | None:
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            return np.asarray(file[key], dtype=np.uint64)
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None
