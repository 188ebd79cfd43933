"""Features that a network has computed, stored on disk between runs.

Every network has a folder of safetensors shards. A shard holds `digests` (N, L) uint8, the hashes
of the examples, and `features` (N, D) float32, which are mapped: only the rows that are asked for
are read. Small shards are merged where there are many. Folders are removed, the least recently used
first, when all of them exceed `limit()`.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.checkpoint.reading import read_tensors
from headstart.checkpoint.safetensors_file import write
from headstart.data.cache import cache_folder
from headstart.errors import ConfigError, HeadstartError

Floats = NDArray[np.float32]
HASHES = "difference-hashes"  # folder of those of images, one bit a feature, beside the networks'
LIMIT = 10  # GB
MANY_SHARDS = 32  # more small ones are merged
SMALL = 64 << 20  # bytes of features in a small shard
TOGETHER = 256 << 20  # bytes of features that are merged at once, and in memory meanwhile
# Digests and features that could not be written, by folder, for later stores of this process.
UNWRITTEN: dict[Path, list[tuple[Sequence[str], Floats]]] = {}

log = logging.getLogger("headstart")


def limit() -> int:
    """Bytes that all features may take: `HEADSTART_CACHE_LIMIT` in GB, else 10 GB.

    Raises:
        ConfigError: The variable is not a number.
    """
    text = os.environ.get("HEADSTART_CACHE_LIMIT", str(LIMIT))
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise ConfigError(f"HEADSTART_CACHE_LIMIT={text!r}; expected a number of GB, such as 10")
    return int(float(text) * 1e9)


class FeatureStore:
    """Features on disk by content hash, for one network with one preprocessing.

    A shard is written whole and never changed, so that runs at the same time and killed runs do no
    harm. What cannot be written is kept in memory until the process ends, with a warning.

    Args:
        key: Names the network and its preprocessing.
        root: Folder of all networks; None is that of the user's cache.
    """

    def __init__(self, key: str, root: Path | None = None) -> None:
        self.folder = (root or features_folder()) / key
        self.parts: list[Floats] = []
        self.rows: dict[str, tuple[int, int]] = {}  # part and row of each digest
        self.shards: dict[Path, int] = {}  # part of each file
        self.stored = True
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read(shard)
        if self.shards:
            self._tidy()
        for digests, features in UNWRITTEN.get(self.folder, []):
            self._index(digests, features)
            self.stored = False

    def _read(self, shard: Path) -> bool:
        """Maps a shard; whether it could be."""
        try:
            tensors = read_tensors(shard, "numpy")
            features = tensors["features"]
            digests = [bytes(row).rstrip(b"\0").decode("ascii") for row in tensors["digests"]]
            if features.ndim != 2 or len(features) != len(digests):
                raise ValueError
        except (HeadstartError, OSError, ValueError, KeyError) as error:  # computed again
            if not shard.exists():  # another process has merged or removed it
                return False
            if isinstance(error, OSError):
                log.warning("%s cannot be read and is left out: %s", shard, error)
                return False
            log.warning("%s is damaged and is left out", shard)
            with contextlib.suppress(OSError):  # a cache that is only read
                shard.unlink(missing_ok=True)
            return False
        self.shards[shard] = self._index(digests, features)
        return True

    def _index(self, digests: Sequence[str], features: Floats) -> int:
        """The number of a new part."""
        number = len(self.parts)
        self.parts.append(features)
        self.rows.update((digest, (number, row)) for row, digest in enumerate(digests))
        return number

    def _tidy(self) -> None:
        """Marks the folder as used now, and merges many shards; the limit may be a new one."""
        try:
            os.utime(self.folder)
            self._merge()
            evict(self.folder.parent, keep=self.folder)
        except OSError:  # a cache that is only read
            self.stored = False

    def _merge(self) -> None:
        """Merges small shards where there are many, the smallest first."""
        sizes = {shard: self.parts[number].nbytes for shard, number in self.shards.items()}
        small = sorted((shard for shard in sizes if sizes[shard] < SMALL), key=sizes.__getitem__)
        if len(small) <= MANY_SHARDS:
            return
        fitting = int(np.searchsorted(np.cumsum([sizes[each] for each in small]), TOGETHER))
        merged = {shard: self.shards[shard] for shard in small[: max(2, fitting)]}
        numbers = set(merged.values())
        digests = [digest for digest, (number, _) in self.rows.items() if number in numbers]
        shard = self._write(digests, self[digests])
        if shard is None or not self._read(shard):
            return
        width = self.parts[0].shape[1]
        for old, number in merged.items():
            if old != shard:
                old.unlink(missing_ok=True)
                del self.shards[old]
            self.parts[number] = np.empty((0, width), dtype=np.float32)  # no longer mapped

    def __contains__(self, digest: str) -> bool:
        return digest in self.rows

    def __getitem__(self, digests: Sequence[str]) -> Floats:
        """(N, D) features in the order asked for."""
        places = np.array([self.rows[digest] for digest in digests], dtype=np.int64).reshape(-1, 2)
        width = self.parts[0].shape[1] if self.parts else 0
        found = np.empty((len(digests), width), dtype=np.float32)
        for number in np.unique(places[:, 0]).tolist():
            here = places[:, 0] == number
            found[here] = self.parts[number][places[here, 1]]
        return found

    def add(self, digests: Sequence[str], features: Floats) -> None:
        """Stores features (N, D), on disk too."""
        shard = self._write(digests, features) if self.stored else None
        if shard is None or not self._read(shard):
            self._index(digests, features)
            UNWRITTEN.setdefault(self.folder, []).append((list(digests), features))
            return
        self._merge()
        evict(self.folder.parent, keep=self.folder)

    def _write(self, digests: Sequence[str], features: Floats) -> Path | None:
        """The shard that was written, or None where it cannot be."""
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        shard = self.folder / f"{name}.safetensors"
        texts = np.array([digest.encode() for digest in digests])  # (N,) of L bytes
        tensors: dict[str, NDArray[Any]] = {
            "digests": texts.view(np.uint8).reshape(len(texts), -1),
            "features": np.ascontiguousarray(features, dtype=np.float32),
        }
        try:
            return atomic_write(shard, lambda file: write(file, tensors, {}))
        except (HeadstartError, OSError) as error:
            if not UNWRITTEN:  # said once a process
                log.warning("features are not stored: %s", error)
            self.stored = False
            return None


def features_folder() -> Path:
    """The folder of the features of all networks."""
    return cache_folder() / "features"


def cached_networks(root: Path | None = None) -> dict[Path, int]:
    """Bytes of the features of each network, the least recently used first.

    Other processes may write, merge and remove files meanwhile: what has gone takes no bytes.
    """
    root = root or features_folder()
    used: dict[Path, float] = {}
    sizes: dict[Path, int] = {}
    for folder in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = list(folder.iterdir())
            used[folder] = folder.stat().st_mtime
            sizes[folder] = sum(_size(file) for file in files)
    return {folder: sizes[folder] for folder in sorted(sizes, key=used.__getitem__)}


def _size(file: Path) -> int:
    """Bytes of a file, 0 if it has gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def evict(root: Path, keep: Path | None = None, bound: int | None = None) -> list[Path]:
    """Removes the least recently used features until the others take at most `bound` bytes.

    Args:
        root: Folder of the features of all networks.
        keep: A folder that is in use.
        bound: Bytes; None is `limit()`.

    Returns:
        The folders that were removed.
    """
    bound = limit() if bound is None else bound
    sizes = cached_networks(root)
    total, removed = sum(sizes.values()), []
    for folder, size in sizes.items():
        if total <= bound:
            break
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
            total -= size
    return removed
