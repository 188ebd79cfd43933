"""One run at a time in a result folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from headstart.checkpoint.writing import take_lock
from headstart.errors import ConfigError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a result folder, which is made, and removed again where it stays empty.

    Raises:
        ConfigError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take_lock(handle):
            raise ConfigError(
                f"another run writes into {folder}; wait for it, or choose another --out"
            )
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds a run
                folder.rmdir()
    finally:
        os.close(handle)
