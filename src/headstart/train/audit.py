"""`headstart audit`: what is wrong with a data set of labelled images before anybody trains on it.

Exact duplicates have the same bytes. Near duplicates have almost the same difference hash: 64 comparisons of neighbouring pixels of a
picture shrunk to 9 x 8 grey values, which scaling, mild compression and small changes of brightness leave alone.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.errors import InputError
from headstart.images import BOX, resize
from headstart.train.data import ImageData, read_images
from headstart.train.image_cache import decode, inspect, parallel
from headstart.train.sources import Source
from headstart.train.tasks import DataOptions

NEAR = 3  # bits of 64 that may differ: unrelated photos differ in about 32
SMALLEST = 0.02  # standard deviation of grey values below which a picture is flat, and its hash says nothing
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
        """Whether one is trained on and the other judged: the result would flatter."""
        return self.splits[0] != self.splits[1]

    @property
    def contradicts(self) -> bool:
        """Whether the same picture has two classes."""
        return self.labels[0] != self.labels[1]


@dataclass
class Audit:
    """What was found.

    Args:
        images: How many images there are.
        unreadable: Name and reason of each that cannot be read.
        pairs: Duplicates.
    """

    images: int
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    @property
    def leaks(self) -> list[Pair]:
        """Duplicates across splits."""
        return [pair for pair in self.pairs if pair.leaks]

    @property
    def contradictions(self) -> list[Pair]:
        """Duplicates with different classes."""
        return [pair for pair in self.pairs if pair.contradicts]


def audit(data: str | Path | ImageData, options: DataOptions | None = None) -> Audit:
    """Looks for unreadable images, duplicates, leaks between splits and contradicting labels.

    Args:
        data: A data set as `headstart.train` takes it, or one that was read.
        options: How to read it; by default without holding anything out.
    """
    options = options or DataOptions(val_fraction=0.0)
    read = data if isinstance(data, ImageData) else read_images(data, options)
    every = [(split, i) for split, examples in read.splits.items() for i in range(len(examples))]
    found = Audit(len(every))
    results = list(parallel(_look, [read.splits[split].images[i] for split, i in every], options.workers))
    good = [n for n, result in enumerate(results) if not isinstance(result, str)]
    found.unreadable = [(read.splits[every[n][0]].names[every[n][1]], r) for n, r in enumerate(results) if isinstance(r, str)]
    digests = [results[n][0] for n in good]
    hashes = np.array([results[n][1] for n in good], dtype=np.uint64)
    for a, b in near_pairs(hashes, digests):
        at = [every[good[each]] for each in (a, b)]
        names = [read.splits[split].names[i] for split, i in at]
        labels = [read.classes[int(read.splits[split].labels[i])] for split, i in at]
        kind = "exact" if digests[a] == digests[b] else "near"
        found.pairs.append(Pair(names[0], names[1], kind, (at[0][0], at[1][0]), (labels[0], labels[1])))
    found.pairs.sort(key=lambda pair: (not pair.leaks, not pair.contradicts, pair.kind, pair.first))
    return found


def _look(source: Source) -> tuple[str, int] | str:
    """Content hash and difference hash of an image, or why it cannot be read."""
    seen = inspect(source)
    if isinstance(seen, str):
        return seen
    try:
        return seen[0], difference_hash(decode(source))
    except InputError as error:
        return str(error)


def difference_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits: whether each of 8 x 8 cells of the shrunk grey picture is brighter than its right neighbour. Flat pictures give `FLAT`."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # (H, W), ITU-R BT.601
    small = resize(grey[..., None], (8, 9), BOX)[..., 0]  # (8, 9)
    if small.std() < SMALLEST * 255:
        return FLAT
    bits = (small[:, :-1] > small[:, 1:]).ravel()  # (64,)
    return int(np.packbits(bits).view(">u8")[0])


def near_pairs(hashes: NDArray[np.uint64], digests: list[str]) -> list[tuple[int, int]]:
    """Pairs of exact duplicates, and of hashes that differ in at most `NEAR` bits; each later image is paired once, with its first.

    Two hashes that differ in at most 3 bits agree in at least one of their four 16-bit words, so only such hashes are compared.
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
