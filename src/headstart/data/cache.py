"""Pixels of a data set: checked before training starts, in parallel, and kept decoded and resized
on disk.

A file is read twice at most: once for its hash and size (`inspect`), once to decode it into the
cache (`decode_all`).
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.examples import Examples, distinct
from headstart.data.sources.raw import Source, source_bytes
from headstart.errors import DataError, InputError, listed
from headstart.images.decode import DAMAGE, damage_text, open_image, orientation, resize
from headstart.images.decode import decode as decode_any

# bytes of decoded images kept on disk; larger data sets are decoded again in every epoch
CACHE_LIMIT = 8 << 30
MEMORY_LIMIT = 256 << 20  # bytes of decoded images kept in memory
T = TypeVar("T")
U = TypeVar("U")


def cache_folder() -> Path:
    """Where features are stored: `HEADSTART_CACHE`, else the user's cache folder."""
    root = (
        os.environ.get("HEADSTART_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"
    )
    return Path(root)


@dataclass(frozen=True)
class Bad:
    """An image that cannot be used, and why."""

    split: str
    index: int
    name: str
    reason: str


def threads(workers: int | None) -> int:
    """Number of threads that read and decode."""
    return workers or min(8, os.cpu_count() or 1)


def parallel(
    function: Callable[[T], U],
    items: Iterable[T],
    workers: int | None,
    *,
    waiting: int = 64,
    start: Callable[[], None] | None = None,
) -> Iterator[U]:
    """`map` over threads, in order, with a bounded number of results waiting.

    Threads work on while the caller uses a result; what is not begun when it stops is dropped.

    Args:
        function: What is called.
        items: Its arguments, one a call.
        workers: Threads; None takes one for each processor, at most 8.
        waiting: Items that are begun or waiting, for each thread.
        start: Called by each thread when it starts.
    """
    count, remaining = threads(workers), iter(items)
    with ThreadPoolExecutor(count, initializer=start) as pool:
        begun = deque(pool.submit(function, each) for each in islice(remaining, waiting * count))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(pool.submit(function, each) for each in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def decode(source: Source) -> NDArray[np.uint8]:
    """The upright pixels of an image, (H, W, 3) uint8.

    Raises:
        InputError: With the reason only; the caller knows the name.
    """
    try:
        data = source if isinstance(source, np.ndarray) else source_bytes(source)
    except OSError as error:
        raise InputError(_why(error)) from None
    try:
        return np.asarray(decode_any(data)[0], dtype=np.uint8)
    except InputError as error:
        # the bytes have no name of their own
        raise InputError(str(error).rpartition(" bytes: ")[2]) from None


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror or str(error)


def square(pixels: NDArray[np.uint8], side: int, resample: int) -> NDArray[np.uint8]:
    """The image stretched to a square, (side, side, 3) uint8."""
    return resize(pixels, (side, side), resample)


def inspect(source: Source) -> tuple[str, int, int] | str:
    """Content hash, height and width from the header, or the reason why there are none."""
    try:
        data = source_bytes(source)
    except OSError as error:
        return _why(error)
    digest = hashlib.sha256(data).hexdigest()
    if isinstance(source, np.ndarray):
        return digest, source.shape[0], source.shape[1]
    try:
        with open_image(data) as image:
            turned = orientation(image) >= 5  # lying on its side
            width, height = image.size
    except DAMAGE as error:
        return damage_text(error)
    return (digest, width, height) if turned else (digest, height, width)


def inspect_all(
    images: Sequence[Source], workers: int | None, seen: Callable[[int], None] = lambda count: None
) -> list[tuple[str, int, int] | str]:
    """`inspect` of every image; a file that many rows name is read once.

    Args:
        images: Where they are.
        workers: Threads.
        seen: Receives how many more rows are done.

    Returns:
        One result a row; rows of one file share theirs.
    """
    first, which = distinct(images)
    rows = np.bincount(which, minlength=len(first)).tolist()
    found: list[tuple[str, int, int] | str] = []
    for result in parallel(lambda i: inspect(images[i]), first.tolist(), workers):
        seen(rows[len(found)])
        found.append(result)
    return [found[i] for i in which.tolist()]


class PixelCache:
    """Images of one split, decoded and resized, as an array; decoded again each time where they
    would not fit.

    A file that many rows name is decoded and stored once.

    Args:
        examples: The images.
        side: Height and width of the result.
        view: Makes a (side, side, 3) uint8 array of a decoded (H, W, 3) one.
        file: Where an array too large for memory goes; None keeps nothing on disk.
    """

    def __init__(
        self,
        examples: Examples,
        side: int,
        view: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
        file: Path | None,
    ) -> None:
        self.examples, self.side, self.view, self.file = examples, side, view, file
        self.pixels: NDArray[np.uint8] | None = None  # (M, side, side, 3), of different files
        self.which = np.arange(len(examples))  # row of `pixels` of each example
        self.stored = np.zeros(0, dtype=bool)  # (M,), whether the image is in `pixels`
        self.notes: list[str] = []  # why images are decoded again in every epoch

    def fill(
        self,
        workers: int | None,
        seen: Callable[[int], None] = lambda count: None,
        *,
        lazily: bool = False,
    ) -> list[tuple[int, str]]:
        """Decodes every file once, and stores it where there is room.

        Args:
            workers: Threads.
            seen: Receives how many more images are done.
            lazily: Decode an image when it is read first, in place of all of them now.

        Returns:
            Index and reason of each image that cannot be decoded; of none where there is no file
            for images that memory has no room for.
        """
        first, self.which = distinct(self.examples.images)
        rows = np.bincount(self.which, minlength=len(first)).tolist()
        array = self.reserve(len(first))
        self.stored = np.full(len(first), not lazily)
        if lazily:
            self.pixels = array
            return []
        if array is None and self.file is None:
            return []  # `stream` decodes them when they are needed, once

        def one(number: int) -> str | None:
            try:
                pixels = decode(self.examples.images[int(first[number])])
                if array is not None:
                    array[number] = self.view(pixels)
            except InputError as error:
                return str(error)
            return None

        failed: dict[int, str] = {}
        for number, reason in enumerate(parallel(one, range(len(first)), workers)):
            seen(rows[number])
            if reason is not None:
                failed[number] = reason
        self.pixels = array
        if not failed:
            return []
        return [(i, failed[at]) for i, at in enumerate(self.which.tolist()) if at in failed]

    def reserve(self, images: int) -> NDArray[np.uint8] | None:
        """An array on disk, or in memory where it is small, or None where it is too large."""
        shape = (images, self.side, self.side, 3)
        size = int(np.prod(shape))
        if size <= MEMORY_LIMIT:
            return np.empty(shape, dtype=np.uint8)
        what = f"the decoded images ({size / 1e9:.1f} GB)"
        if self.file is None:
            return None
        if size > CACHE_LIMIT:
            self.notes.append(
                f"{what} are not stored, they exceed 8 GB: every epoch decodes them again"
            )
            return None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.file.parent).free >= 2 * size:
                return np.lib.format.open_memmap(self.file, mode="w+", dtype=np.uint8, shape=shape)
            reason = "the disk is almost full"
        except OSError as error:
            reason = _why(error)
        self.notes.append(f"{what} are not stored, {reason}: every epoch decodes them again")
        return None

    def keep(self, indices: NDArray[np.int64]) -> None:
        """Leaves out all but these images."""
        self.examples = self.examples.take(indices)
        self.which = self.which[indices]

    def stream(self, workers: int | None) -> Iterator[NDArray[np.uint8] | str]:
        """All images in order, or why they cannot be read; threads read ahead of the caller."""

        def one(index: int) -> NDArray[np.uint8] | str:
            try:
                return self[index]
            except InputError as error:
                return str(error)

        if self.pixels is not None and self.stored.all():
            return map(one, range(len(self.examples)))
        return parallel(one, range(len(self.examples)), workers)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image, (side, side, 3) uint8."""
        if self.pixels is None:
            return self.view(decode(self.examples.images[index]))
        at = self.which[index]
        if not self.stored[at]:
            self.pixels[at] = self.view(decode(self.examples.images[index]))
            self.stored[at] = True
        found: NDArray[np.uint8] = self.pixels[at]
        return found


def random_part(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[slice, slice]:
    """Rows and columns of a random part of an image: a fraction of its area."""
    for _ in range(10):
        size = height * width * rng.uniform(*area)
        ratio = float(np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]))))
        w, h = round((size * ratio) ** 0.5), round((size / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return slice(top, top + h), slice(left, left + w)
    return slice(0, height), slice(0, width)


def check_bad(bad: list[Bad], skip: bool, total: int, *, begun: bool = False) -> None:
    """Stops the run over unreadable images, unless they are to be skipped.

    Args:
        bad: The images.
        skip: Whether they are to be skipped.
        total: Images that were looked at, or are to be.
        begun: Whether training may have begun.
    """
    if bad and not skip:
        further = "; a run that has begun goes on with --resume --skip-bad" if begun else ""
        lines = listed((f"{each.name}: {each.reason}" for each in bad), 20, "\n  ")
        raise DataError(
            f"{len(bad)} of {total} images cannot be read (remove them, or leave them out with"
            f" --skip-bad{further}):\n  {lines}"
        )
