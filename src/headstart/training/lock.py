"""One run at a time in a result folder."""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from headstart.errors import ConfigError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a result folder, which is made, and removed again where it stays empty.

    The lock is the kernel's, so that it ends with the process, however that ends.

    Raises:
        ConfigError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            if importlib.util.find_spec("fcntl"):  # Windows has no such locks
                fcntl = importlib.import_module("fcntl")
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run writes into {folder}; wait for it, or choose another --out"
            ) from None
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds a run
                folder.rmdir()
    finally:
        os.close(handle)
