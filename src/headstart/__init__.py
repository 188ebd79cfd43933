"""A head start on your own task from four pretrained model families: BiT, CvT, BEiT and YOSO.

Names are loaded when they are first used: importing this module loads neither torch nor keras nor
jax.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_AUTO = (
    "AutoBackbone AutoConfig AutoFeatureExtractor AutoImageProcessor AutoModel"
    " AutoModelForImageClassification AutoModelForMaskedImageModeling AutoModelForMaskedLM"
    " AutoModelForMultipleChoice AutoModelForQuestionAnswering AutoModelForSemanticSegmentation"
    " AutoModelForSequenceClassification AutoModelForTokenClassification AutoTokenizer"
)
_MODULES = dict.fromkeys(_AUTO.split(), "headstart.auto") | {
    "pipeline": "headstart.pipelines.base",
    "train": "headstart.training.run",
    "evaluate": "headstart.training.run",
    "errors": "headstart.errors",
    "optimize": "headstart.engine",
    "export": "headstart.engine",
}


def _where(name: str) -> str | None:
    """The module that holds a public name."""
    if name in _MODULES:
        return _MODULES[name]
    if "Output" in name and name[0] != "_":
        return "headstart.outputs"
    from headstart.registry import exports

    return exports().get(name)


def __getattr__(name: str) -> Any:
    module = None if name.startswith("_") else _where(name)
    if module is None:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    loaded = import_module(module)
    value = (
        loaded
        if module == f"headstart.{name}" and not callable(getattr(loaded, name, None))
        else getattr(loaded, name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from headstart.registry import exports

    return sorted([*_MODULES, *exports(), "__version__"])
