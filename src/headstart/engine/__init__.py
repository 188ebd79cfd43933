"""Fast inference: folds, engines, precision, export. Names are loaded when they are first used."""

from importlib import import_module
from typing import Any

_MODULES = {
    "OptimizedModel": "headstart.engine.model",
    "export": "headstart.engine.exporting",
    "is_optimized": "headstart.engine.model",
    "load": "headstart.engine.model",
    "optimize": "headstart.engine.search",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'headstart.engine' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value
