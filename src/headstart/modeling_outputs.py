"""The output classes under the module name that transformers v4 gives them."""

from headstart.outputs import *  # noqa: F403 - exactly the names of `outputs.__all__`
from headstart.outputs import __all__ as __all__
