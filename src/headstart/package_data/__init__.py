"""Models that come with the package, each a checkpoint folder like any other."""

from pathlib import Path

EMBEDDED = ("bit-mini", "yoso-mini")
# Full training at a recipe's rate loses to a head on their features: on 600 rows of SST-2
# yoso-mini gave 55 % against 75 %.
MADE_FOR_HEADS = ("yoso-mini",)


def embedded_folder(name: str) -> Path:
    """The folder of one of them."""
    return Path(__file__).parent / name
