"""scikit-learn, scipy and threadpoolctl, imported when they are first needed.

All belong to the extra `train`; scikit-learn takes about a second to import, so that a run which
needs none of it does not load it.
"""

from importlib import import_module
from typing import Any

from headstart.errors import MissingExtraError


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn, such as "metrics"."""
    return _load(f"sklearn.{module}", "scikit-learn")


def scipy(module: str) -> Any:
    """A module of scipy, such as "optimize"."""
    return _load(f"scipy.{module}", "scipy")


def thread_pools() -> Any:
    """threadpoolctl, which scikit-learn limits the threads of libraries with."""
    return _load("threadpoolctl", "threadpoolctl")


def _load(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(package, "train") from None
