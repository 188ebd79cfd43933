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
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # a run that ends meanwhile removes the file, and its lock protects nothing more
        if not (take_lock(handle) and _is_open(path, handle)):
            raise ConfigError(
                f"another run writes into {folder}; wait for it, or choose another --out"
            )
        try:
            yield
        finally:
            if _is_open(path, handle):  # and not the lock of a folder that took the place
                path.unlink()
            with contextlib.suppress(OSError):  # it holds a run
                folder.rmdir()
    finally:
        os.close(handle)


def _is_open(path: Path, handle: int) -> bool:
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
