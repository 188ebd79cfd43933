"""Transfer learning: data, recipes, the loop, the report.

The module can be called: `headstart.train(data, model=…, out=…)` is `headstart.train.run.train`, and `headstart train` on the command line.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that is also the function it is named after, so that `headstart.train(...)` and `headstart.train.recipes` both work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from headstart.train.run import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
