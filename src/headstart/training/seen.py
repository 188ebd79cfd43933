"""Which examples a model was trained on, by the hash of their content."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.tasks.base import Task

FILE = "examples.npz"


def short(digests: Sequence[str]) -> NDArray[np.uint64]:
    """The first 64 bits of hashes, 0 where there is none."""
    return np.array([int(digest[:16] or "0", 16) for digest in digests], dtype=np.uint64)


def write_seen(folder: Path, task: Task) -> None:
    """Writes the hashes of the examples of each split, where the task knows those of all."""
    if task.streams or task.looks_at_a_part:
        return
    write_digests(folder, {split: task.digests(split) for split in task.splits})


def write_digests(folder: Path, digests: Mapping[str, Sequence[str]]) -> None:
    """Writes the hashes of the examples of each split, where there are any."""
    found = {split: short(each) for split, each in digests.items()}
    if not any(len(each) for each in found.values()):
        return

    def write(file: Any) -> None:
        np.savez_compressed(file, allow_pickle=False, **found)

    atomic_write(folder / FILE, write)


def trained_on(folder: Path, task: Task, split: str) -> NDArray[np.bool_] | None:
    """Whether the model of a result folder was trained on each example of a split, (N,).

    None where the folder does not say, or the task has no hashes.
    """
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            train = np.asarray(file["train"], dtype=np.uint64)
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    digests = short(task.digests(split))
    return np.isin(digests, train) & (digests != 0) if len(digests) else None
