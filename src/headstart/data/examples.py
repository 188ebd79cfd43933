"""The labelled images of one split."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.sources.raw import Source, source_key, take


@dataclass
class Examples:
    """The images of one split.

    Args:
        images: Where the pixels are.
        labels: Class of each, (N,) int64; with several labels an image 0 or 1 for each class, (N,
            V) float32; regression targets, (N, V) float32.
        names: How each is named to the user: its file, or table and row.
        groups: Number of the group of each, (N,), whose members belong on one side of a split;
            None has none.
    """

    images: Sequence[Source]
    labels: NDArray[Any]
    names: Sequence[str]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """These examples, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        groups = None if self.groups is None else self.groups[rows]
        return Examples(
            take(self.images, indices), self.labels[rows], take(self.names, indices), groups
        )


def distinct(images: Sequence[Source]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each different image, (M,), and which of them each row shows, (N,)."""
    return numbered(map(source_key, images))


def numbered(keys: Iterable[object]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first position of each different key, (M,), and which of them each one is, (N,)."""
    number: dict[object, int] = {}
    first: list[int] = []
    which = array("q")
    for i, key in enumerate(keys):
        at = number.setdefault(key, len(first))
        if at == len(first):
            first.append(i)
        which.append(at)
    return np.asarray(first, dtype=np.int64), np.asarray(which, dtype=np.int64)
