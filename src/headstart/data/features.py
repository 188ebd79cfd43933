"""Features that a network has computed, kept on disk between runs."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.data.cache import cache_folder

Floats = NDArray[np.float32]


class FeatureStore:
    """Features on disk by content hash, for one network with one preprocessing.

    Each part is a file that is written whole and never changed, so that runs at the same time and
    killed runs do no harm.
    """

    def __init__(self, key: str, root: Path | None = None) -> None:
        self.folder = (root or cache_folder() / "features") / key
        self.rows: dict[str, Floats] = {}
        for part in sorted(self.folder.glob("*.npz")):
            try:
                with part.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                    self.rows.update(zip(file["digests"].tolist(), file["features"], strict=True))
            except (
                OSError,
                ValueError,
                KeyError,
                zipfile.BadZipFile,
            ):  # a damaged part is computed again
                part.unlink(missing_ok=True)

    def __contains__(self, digest: str) -> bool:
        return digest in self.rows

    def __getitem__(self, digests: list[str]) -> Floats:
        """(N, D) features in the order asked for."""
        return np.stack([self.rows[digest] for digest in digests])

    def add(self, digests: list[str], features: Floats) -> None:
        """Keeps features (N, D), on disk too."""
        self.rows.update(zip(digests, features, strict=True))
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]

        def write(file: Any) -> None:  # noqa: ANN401 - a binary file
            np.savez(file, digests=np.array(digests), features=features)

        atomic_write(self.folder / f"{name}.npz", write)
