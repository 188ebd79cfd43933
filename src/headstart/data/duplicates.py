"""Images that occur more than once in a data set.

Exact duplicates have the same bytes. Near duplicates have almost the same difference hash: 64
comparisons of neighboring pixels of an image shrunk to 9 x 8 gray values, which scaling, mild
compression and small changes of brightness leave alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.images import ImageData
from headstart.data.labels import MULTI, SINGLE
from headstart.images.decode import BOX, resize

NEAR = 3  # bits of 64 that may differ: unrelated photos differ in about 32
# standard deviation of gray values below which an image is flat and its hash is meaningless
SMALLEST = 0.02
FEWEST_PIXELS = 16  # of a side: smaller images, as of digits, have the same hash too often
FLAT = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class Pair:
    """Two images that are the same or nearly so.

    Args:
        first: How the first is named to the user.
        second: The second.
        kind: "exact" or "near".
        splits: Splits of the two.
        labels: Classes of the two.
    """

    first: str
    second: str
    kind: str
    splits: tuple[str, str]
    labels: tuple[str, str]

    @property
    def leaks(self) -> bool:
        """Whether one is trained on and the other evaluated: the metric would be too high."""
        return self.splits[0] != self.splits[1]

    @property
    def contradicts(self) -> bool:
        """Whether the same image has two classes."""
        return self.labels[0] != self.labels[1]


def pairs_in(
    read: ImageData,
    every: Sequence[tuple[str, int]],
    digests: list[str],
    hashes: NDArray[np.uint64],
) -> list[Pair]:
    """Duplicates among images, leaks first.

    Args:
        read: The data.
        every: Split and number of each image.
        digests: Content hash of each.
        hashes: Difference hash of each; `FLAT` is meaningless.
    """
    pairs = []
    for a, b in near_pairs(hashes, digests):
        names = [read.splits[split].names[i] for split, i in (every[a], every[b])]
        labels = [label_of(read, split, i) for split, i in (every[a], every[b])]
        kind = "exact" if digests[a] == digests[b] else "near"
        pairs.append(
            Pair(names[0], names[1], kind, (every[a][0], every[b][0]), (labels[0], labels[1]))
        )
    return sorted(
        pairs, key=lambda pair: (not pair.leaks, not pair.contradicts, pair.kind, pair.first)
    )


def label_of(read: ImageData, split: str, index: int) -> str:
    """The label of an image as the user knows it."""
    label = read.splits[split].labels[index]
    if read.kind == SINGLE:
        return read.classes[int(label)]
    if read.kind == MULTI:
        return ", ".join(read.classes[i] for i in np.flatnonzero(label).tolist())
    return ", ".join(f"{value:g}" for value in label)


def difference_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits.

    Whether each of 8 x 8 cells of the shrunk gray image is brighter than its right neighbor.
    Flat images give `FLAT`.
    """
    if min(pixels.shape[:2]) < FEWEST_PIXELS:
        return FLAT
    # (H, W), ITU-R BT.601
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    small = resize(gray[..., None], (8, 9), BOX)[..., 0]  # (8, 9)
    if small.std() < SMALLEST * 255:
        return FLAT
    bits = (small[:, :-1] > small[:, 1:]).ravel()  # (64,)
    return int(np.packbits(bits).view(">u8")[0])


def near_pairs(hashes: NDArray[np.uint64], digests: list[str]) -> list[tuple[int, int]]:
    """Pairs of exact duplicates, and of hashes that differ in at most `NEAR` bits; each later image
    is paired once, with its first.

    Two hashes that differ in at most 3 bits agree in at least one of their four 16-bit words, so
    only such hashes are compared.
    """
    first: dict[str, int] = {}
    partner: dict[int, int] = {}
    for i, digest in enumerate(digests):
        if digest in first:
            partner[i] = first[digest]
        first.setdefault(digest, i)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, value in enumerate(hashes.tolist()):
        if i in partner or value == FLAT:
            continue
        words = [(word, value >> (16 * word) & 0xFFFF) for word in range(4)]
        candidates = {j for word in words for j in buckets[word]}
        near = [j for j in candidates if (value ^ int(hashes[j])).bit_count() <= NEAR]
        if near:
            partner[i] = min(near)
        for word in words:
            buckets[word].append(i)
    return sorted((j, i) for i, j in partner.items())
