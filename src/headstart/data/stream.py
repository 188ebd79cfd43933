"""Shards read from front to back: training data that fits on no disk.

A data set is a list of tars or of Parquet files. Its order is that of the shards in random
permutations, one after the other; lane l of L reads the shards l, l + L, l + 2 L, … of them, and
hands out its samples in shuffled windows. The rows of a batch belong to the lanes in equal parts,
so that processes which take different rows read different shards, and the batches are the same for
any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from headstart.data.examples import Examples
from headstart.data.sources.tables import stream_parquet
from headstart.data.sources.tars import Streamed, stream_tar

LANES = 8
WINDOW = 256  # samples that a lane shuffles
KEPT = 8  # starts of windows that a lane remembers, for a checkpoint of an earlier step
Labeller = Callable[[str, Sequence[Streamed]], Examples]  # of samples of one shard
Position = tuple[int, int, int]  # window, number of the shard in the lane's order, sample in it


def stream_shard(shard: str, first: int = 0) -> Iterator[Streamed]:
    """The samples of a tar or Parquet file from front to back, `first` of them passed over."""
    read = stream_parquet if is_parquet(shard) else stream_tar
    return read(shard, first)


def is_parquet(shard: str) -> bool:
    """Whether a shard is a table, and not a tar."""
    return shard.lower().endswith(".parquet")


class Lane:
    """The samples of one lane, window by window.

    Args:
        shards: All shards, as paths or URIs.
        labeller: Makes examples of samples.
        number: Which lane, from 0.
        lanes: How many there are.
        window: Samples that are shuffled together.
        seed: Decides the order.
    """

    def __init__(
        self,
        shards: Sequence[str],
        labeller: Labeller,
        number: int,
        lanes: int,
        window: int,
        seed: int,
    ) -> None:
        self.shards, self.labeller, self.seed = shards, labeller, seed
        self.number, self.lanes, self.size = number, lanes, window
        self.windows: dict[int, Examples] = {}  # the last two
        self.go_to((0, 0, 0))

    def go_to(self, position: Position) -> None:
        """Makes the lane go on at the start of a window."""
        window, shard, sample = position
        self.next, self.starts = window, {window: (shard, sample)}
        self.reader = self._read(shard, sample)
        self.windows.clear()

    def position(self, sample: int) -> Position:
        """Where the window of the lane's n-th sample starts.

        The window has been read, is the next one, or is one of the last few.
        """
        window = sample // self.size
        shard, first = self.starts[window]
        return window, shard, first

    def __getitem__(self, sample: int) -> tuple[Examples, int]:
        """The lane's n-th sample: examples, and which of them."""
        window, at = divmod(sample, self.size)
        while window not in self.windows:
            self._advance()
        order = np.random.default_rng([self.seed, window, self.number, 0x57E4]).permutation(
            self.size
        )
        return self.windows[window], int(order[at])

    def _advance(self) -> None:
        """Reads the next window."""
        parts: list[Examples] = []
        shard, after = 0, 0
        read = islice(self.reader, self.size)
        held: list[Streamed] = []
        at: tuple[int, str] | None = None
        for number, place, sample in read:
            if at is not None and at[0] != number:
                parts.append(self.labeller(at[1], held))
                held = []
            at = (number, self._shard(number))
            held.append(sample)
            shard, after = number, place + 1
        assert at is not None
        parts.append(self.labeller(at[1], held))
        self.windows[self.next] = joined_examples(parts)
        self.next += 1
        self.starts[self.next] = (shard, after)
        for old in [each for each in self.windows if each < self.next - 2]:
            del self.windows[old]
        for old in [each for each in self.starts if each < self.next - KEPT]:
            del self.starts[old]

    def _shard(self, number: int) -> str:
        """The lane's n-th shard."""
        epoch, at = divmod(self.number + number * self.lanes, len(self.shards))
        order = np.random.default_rng([self.seed, epoch, 0x5AAD]).permutation(len(self.shards))
        return self.shards[int(order[at])]

    def _read(self, number: int, first: int) -> Iterator[tuple[int, int, Streamed]]:
        """Number of the shard, place in it, and sample, without end."""
        while True:
            for place, sample in enumerate(stream_shard(self._shard(number), first), start=first):
                yield number, place, sample
            number, first = number + 1, 0


def joined_examples(parts: Sequence[Examples]) -> Examples:
    """The examples of several parts, one after the other."""
    return Examples(
        [image for part in parts for image in part.images],
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.names],
    )


class Stream:
    """Batches of samples of shards, a function of seed and step.

    Args:
        shards: Paths or URIs of tars.
        labeller: Makes examples of samples of one shard.
        batch_size: Examples in a batch.
        seed: Decides the order.
        lanes: Lanes; at most one for each row of a batch.
        window: Samples that a lane shuffles.
    """

    def __init__(
        self,
        shards: Sequence[str],
        labeller: Labeller,
        batch_size: int,
        seed: int,
        *,
        lanes: int = LANES,
        window: int = WINDOW,
    ) -> None:
        lanes = min(lanes, batch_size)
        self.bounds = [batch_size * lane // lanes for lane in range(lanes + 1)]
        size = max(window, -(-batch_size // lanes))
        self.seed = seed
        self.lanes = [Lane(shards, labeller, i, lanes, size, seed) for i in range(lanes)]
        self.used: set[int] = set()

    def rows(self, step: int, rows: slice) -> list[tuple[Examples, int]]:
        """The samples in these rows of the batch of a step."""
        found = []
        for number, lane in enumerate(self.lanes):
            first, last = self.bounds[number], self.bounds[number + 1]
            wanted = range(max(first, rows.start), min(last, rows.stop))
            if wanted:
                self.used.add(number)
            # a lane that two processes share is read to its end by both
            found += [lane[step * (last - first) + row - first] for row in wanted]
        return found

    def positions(self, step: int) -> NDArray[np.int64]:
        """Where each lane goes on at a step, (L, 4), the last column 1 where it is known.

        Only the lanes that this process reads are.
        """
        found = np.zeros((len(self.lanes), 4), dtype=np.int64)
        for number in self.used:
            width = self.bounds[number + 1] - self.bounds[number]
            found[number] = (*self.lanes[number].position(step * width), 1)
        return found

    def go_to(self, positions: Sequence[Sequence[int]]) -> None:
        """Goes on at positions (L, 3)."""
        for lane, (window, shard, sample) in zip(self.lanes, positions, strict=True):
            lane.go_to((window, shard, sample))
