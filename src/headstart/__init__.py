"""A head start on your own task from four pretrained model families: BiT, CvT, BEiT and YOSO.

Names are loaded when they are first used: importing this module loads neither torch nor keras nor
jax. `__init__.pyi` lists them for editors and type checkers (`make stubs` writes it).
"""

from importlib import import_module
from typing import Any

from headstart._version import __version__ as __version__

# Public name → its module; the classes of the families are in the registry, the outputs in theirs.
_NAMES = {
    "train": "training.run",
    "evaluate": "training.evaluate",
    "distill": "training.distill",
    **dict.fromkeys(("update", "forget"), "training.update"),
    "plan": "training.plan",
    "embed": "features.embed",
    **dict.fromkeys(("BatchPredictor", "BatchEmbedder"), "serving.batches"),
    **dict.fromkeys(("optimize", "export"), "engine"),
    "pipeline": "pipelines.base",
    "errors": "errors",
    "BatchFeature": "images.processor",
    "BatchEncoding": "models.yoso.encoding",
    "PreTrainedConfig": "config",
    "PretrainedConfig": "config",
    "PreTrainedModel": "nn.torch",
    **dict.fromkeys(
        [
            "AutoBackbone",
            "AutoConfig",
            "AutoFeatureExtractor",
            "AutoImageProcessor",
            "AutoModel",
            "AutoModelForImageClassification",
            "AutoModelForMaskedImageModeling",
            "AutoModelForMaskedLM",
            "AutoModelForMultipleChoice",
            "AutoModelForQuestionAnswering",
            "AutoModelForSemanticSegmentation",
            "AutoModelForSequenceClassification",
            "AutoModelForTokenClassification",
            "AutoTokenizer",
        ],
        "auto",
    ),
}


def _public_names() -> dict[str, str]:
    """Every public name → the module that holds it."""
    from headstart.outputs import __all__ as outputs
    from headstart.registry import exports

    names = {name: f"headstart.{module}" for name, module in _NAMES.items()}
    return names | exports() | dict.fromkeys(outputs, "headstart.outputs")


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_public_names())
    module = None if name.startswith("_") else _public_names().get(name)
    if module is None:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    loaded = import_module(module)
    value = loaded if module == f"headstart.{name}" else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_public_names(), "__version__", "__all__"])
