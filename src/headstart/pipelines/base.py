"""Models as plain functions: images or texts in, labels, masks and spans out.

`pipeline(task, model)` gives an object that is called with one input or many. A task adds its class
with one line in `PIPELINES`.
"""

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart import auto
from headstart.checkpoint.documents import read_object, value_of
from headstart.errors import ConfigError, InputError, listed
from headstart.hub.options import split_hub
from headstart.loading import family_of

PIPELINES: dict[str, str] = {
    "image-classification": (
        "headstart.pipelines.image_classification:ImageClassificationPipeline"
    ),
    "semantic-segmentation": (
        "headstart.pipelines.semantic_segmentation:SemanticSegmentationPipeline"
    ),
    "masked-image-modeling": (
        "headstart.pipelines.masked_image_modeling:MaskedImageModelingPipeline"
    ),
    "image-segmentation": "headstart.pipelines.semantic_segmentation:ImageSegmentationPipeline",
    "image-feature-extraction": "headstart.pipelines.features:ImageFeatureExtractionPipeline",
    "feature-extraction": "headstart.pipelines.features:FeatureExtractionPipeline",
    "text-classification": "headstart.pipelines.texts:TextClassificationPipeline",
    "fill-mask": "headstart.pipelines.texts:FillMaskPipeline",
    "token-classification": "headstart.pipelines.texts:TokenClassificationPipeline",
    "question-answering": "headstart.pipelines.texts:QuestionAnsweringPipeline",
}
CALIBRATION = ("confidence.json", "unknown.safetensors")  # files beside the weights
# Other names of the same pipelines.
ALIASES = {
    "masked-language-modeling": "fill-mask",
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
}


class ShortRepr:
    """A pipeline as one short line: its class, its model, and where it computes."""

    model: Any

    def __repr__(self) -> str:
        config, model = self.model.config, type(self.model).__name__
        where = getattr(config, "name_or_path", "") or model
        return f"{type(self).__name__}({str(where)!r}, {model} on {self.model.device})"


def pipeline(
    task: str,
    model: Any = None,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    feature_extractor: Any = None,
    device: Any = None,
    torch_dtype: Any = None,
    framework: str | None = "pt",
    revision: str | None = None,
    token: str | bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """A function for a task: images or texts in, plain Python values out.

    Args:
        task: A name in `PIPELINES`, such as "image-classification" or "fill-mask".
        model: A folder, a Hub id, an authors' name, or a model object.
        tokenizer: Tokenizer of a text model; default the one beside the model. A name is loaded.
        image_processor: Processor of an image model; default the one beside the model. A name is
            loaded.
        feature_extractor: Older name of `image_processor`.
        device: "cpu", "cuda", a `torch.device`, or a number as in transformers (-1 is the CPU, 0
            the first GPU); default where the model is, or the CPU.
        torch_dtype: Type of the weights, such as torch.bfloat16 or "auto"; default as the model is.
        framework: "pt": pipelines run in PyTorch.
        revision: Branch, tag or commit of the model on the Hub.
        token: Token of the Hub.
        model_kwargs: Further arguments of the model's `from_pretrained`.
        **kwargs: Further arguments of the task's pipeline, such as `top_k`.

    Returns:
        A callable object; its class documents what a call takes and returns.

    Raises:
        ConfigError: No such task, no model, an argument that this pipeline does not have, or a
            checkpoint without the head that the task needs.

    Example:
        >>> from headstart import pipeline
        >>> classify = pipeline("image-classification", "bit-mini", top_k=1)
        >>> import numpy
        >>> len(classify(numpy.zeros((64, 64, 3), dtype="uint8")))
        1
    """
    task = ALIASES.get(task, task)
    if task not in PIPELINES:
        near = difflib.get_close_matches(task, PIPELINES, n=3) or list(PIPELINES)
        raise ConfigError(f"no pipeline for {task!r}; did you mean {' or '.join(near)}?")
    if model is None:
        raise ConfigError(
            f"which model? pipeline({task!r}, model=...) takes a folder, a Hub id, an authors' name"
            " or a model object"
        )
    if framework not in (None, "pt"):
        raise ConfigError(f"framework={framework!r}; pipelines run in PyTorch: framework='pt'")
    if image_processor is not None and feature_extractor is not None:
        raise ConfigError("image_processor and feature_extractor are the same; give one of them")
    loading = {"torch_dtype": torch_dtype, "revision": revision, "token": token}
    given = {
        "tokenizer": tokenizer,
        "image_processor": feature_extractor if image_processor is None else image_processor,
        "device": f"cuda:{device}" if isinstance(device, int) and device >= 0 else device,
        "model_kwargs": {
            **{key: value for key, value in loading.items() if value is not None},
            **(model_kwargs or {}),
        },
    }
    if isinstance(device, int) and device < 0:
        given["device"] = "cpu"
    module, _, name = PIPELINES[task].partition(":")
    cls = getattr(importlib.import_module(module), name)
    takes = _arguments(cls)
    options = {key: value for key, value in given.items() if value not in (None, {})} | kwargs
    for key in options:
        if key not in takes:
            raise ConfigError(
                f"the {task} pipeline has no argument {key!r}; it takes {', '.join(takes)}"
            )
    return cls(model, **options)


def _arguments(cls: type) -> list[str]:
    """Keyword arguments of a pipeline's constructor, those of its base classes included."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return list(names)


RESULTS = "results.json"


def read_results(folder: str | Path) -> dict[str, Any]:
    """What a finished run wrote about itself, checked.

    Args:
        folder: A result folder.

    Returns:
        The values of its results.json: "task", "model", "headline", "finished", "evaluations"
        (split → examples, metrics, interval), "draws", and others that nothing depends on.

    Raises:
        FileFormatError: The file is missing or damaged; the message names file and key.
    """
    path = Path(folder) / RESULTS
    values = read_object(path, nan=True)
    for key in ("task", "model", "headline", "finished"):
        value_of(values, key, str, path)
    for split, each in value_of(values, "evaluations", dict[str, dict[str, Any]], path).items():
        place = f"{path}: evaluations: {split:.40}"
        value_of(each, "examples", int, place)
        metrics = value_of(each, "metrics", dict[str, float], place)
        value_of(metrics, values["headline"], float, place)
        value_of(each, "confidence_interval_95", tuple[float, float] | None, place)
    draws = values.get("draws")
    if draws is not None:
        value_of(draws, "seeds", list[int], f"{path}: draws")
        value_of(draws, "split", str, f"{path}: draws")
        place = f"{path}: draws: metrics"
        for each in value_of(draws, "metrics", dict[str, dict[str, Any]], place).values():
            value_of(each, "values", list[float], place)
    return values


def task_of(model: str | Path) -> str:
    """The task of a checkpoint.

    What a result folder says, else what the class in its config.json is for, else image
    classification.
    """
    if (Path(model) / RESULTS).is_file():
        task: str = read_results(model)["task"]
        return ALIASES.get(task, task)
    family, values = family_of(model)
    named = (values.get("architectures") or [""])[0]
    fits = (ALIASES.get(task, task) for task, name in family.tasks.items() if name == named)
    return next((task for task in fits if task in PIPELINES), "image-classification")


def load_both(
    model: Any,
    network: str,
    processor: Any,
    device: Any,
    tokenizer: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """A pipeline's network, in evaluation mode, and its image processor or tokenizer.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        network: Name of the Auto class that loads the network.
        processor: An image processor or tokenizer, or the name of one; None is the one beside the
            model.
        device: Where to compute; None is where the model is.
        tokenizer: Whether inputs are texts.
        model_kwargs: Arguments of `from_pretrained`.

    Raises:
        ConfigError: A model object without a checkpoint, and no processor; or a checkpoint that
            lacks the task's head.
    """
    named = isinstance(model, str | Path)
    if not named and "torch_dtype" in (model_kwargs or {}):  # a loaded model can still change it
        from headstart.nn.weights import as_dtype

        model = model.to(as_dtype(dict(model_kwargs or {})["torch_dtype"]))
        model_kwargs = {k: v for k, v in (model_kwargs or {}).items() if k != "torch_dtype"}
    if model_kwargs and not named:
        raise ConfigError(
            f"model_kwargs ({', '.join(model_kwargs)}) are for loading a model, and this one is"
            " loaded; set its config instead"
        )
    name = model if named else getattr(getattr(model, "config", None), "name_or_path", "")
    hub, _ = split_hub(model_kwargs or {})
    if processor is None:
        if not name:
            raise ConfigError(
                "this model was not loaded from a checkpoint: pass"
                f" {'tokenizer' if tokenizer else 'image_processor'}= too"
            )
        processor = name
    if isinstance(processor, str | Path):
        cls = auto.AutoTokenizer if tokenizer else auto.AutoImageProcessor
        processor = cls.from_pretrained(processor, **hub)
    if named:
        model = getattr(auto, network).from_pretrained(model, **(model_kwargs or {}))
        refuse_random_weights(model, str(name))
    return model.eval() if device is None else model.to(device).eval(), processor


def refuse_random_weights(model: Any, name: str) -> None:
    """Refuses a network whose head is not in the checkpoint: its answers would be random.

    Raises:
        ConfigError: Some parameters were randomly initialized; the message names them.
    """
    missing = getattr(model, "randomly_initialized", ())
    if missing:
        kind = (getattr(model.config, "architectures", None) or ["a base model"])[0]
        raise ConfigError(
            f"{name} ({kind}) has no trained head for {type(model).__name__}: the checkpoint lacks"
            f" {listed(missing, 4)}. Fine-tune it first (headstart train DATA --model {name}), or"
            " choose a checkpoint that was trained for this task"
        )


def fingerprint(pipe: Any) -> str:
    """Hash of what a pipeline's answers depend on beside its options.

    Weights, configuration, image processor, calibration, and the files of an optimized model.
    """
    from headstart.nn.weights import weights_hash

    model = pipe.model
    whole = weights_hash(model)
    processor = getattr(pipe, "image_processor", None)
    values = {
        "config": {**model.config.to_dict(), "_name_or_path": None},
        "processor": None if processor is None else processor.to_dict(),
    }
    whole.update(json.dumps(values, sort_keys=True, default=str).encode())
    folder = Path(getattr(model.config, "name_or_path", "") or "")
    files = [folder / name for name in CALIBRATION] if folder.name else []
    files += getattr(model, "engine_files", [])  # of an optimized model, which holds no tensors
    for file in files:
        if file.is_file():
            whole.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    digest: str = whole.hexdigest()
    return digest[:32]


def is_one_image(value: Any) -> bool:
    """Whether an argument is one image and not many.

    Paths, bytes, PIL images, and arrays with at most three axes.
    """
    if isinstance(value, str | bytes | Path) or hasattr(value, "convert") or hasattr(value, "read"):
        return True
    return hasattr(value, "shape") and len(value.shape) <= 3


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    if size < 1:
        raise InputError(f"batch_size={size}; it must be at least 1")
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
