"""Models that come with the package, each a checkpoint folder like any other."""

from pathlib import Path

EMBEDDED = ("bit-mini", "yoso-mini")


def embedded_folder(name: str) -> Path:
    """The folder of one of them."""
    return Path(__file__).parent / name
