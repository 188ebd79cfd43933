"""What teaches in a distillation: a checkpoint, an optimized folder, a file, or a function.

Letters: B images, S side of what the teacher sees, V classes, D features.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.auto import AutoImageProcessor, AutoModelForImageClassification
from headstart.checkpoint.documents import parse_json
from headstart.errors import ConfigError, InputError, MissingExtraError
from headstart.features.extract import model_key
from headstart.nn.hooks import inputs_of
from headstart.tasks.image_classification import head_of, processor_side

FILES = {".onnx": "onnxruntime", ".xml": "openvino"}
Answer = tuple[Tensor, Tensor | None]


@dataclass
class Teacher:
    """A network that answers for images.

    Args:
        call: Normalized images (B, 3, S, S) → logits (B, V) and, if it has them, features (B, D).
        key: Identifies the teacher: another key is another teacher.
        classes: The V names in the order of the logits; None if they are not known.
        size: S; None takes any size.
        mean: Mean of each channel of images in 0..1; None if it is not known.
        std: Standard deviation likewise.
    """

    call: Callable[[Tensor], Answer]
    key: str
    classes: list[str] | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Answer:
        """Logits (B, V) and features (B, D) or None, float32, of images (B, 3, S, S) in 0..1."""
        assert self.mean is not None
        assert self.std is not None
        mean, std = (
            torch.tensor(v, device=views.device)[:, None, None] for v in (self.mean, self.std)
        )
        logits, features = self.call((views - mean) / std)
        if logits.ndim != 2 or len(logits) != len(views):
            raise InputError(
                f"the teacher gives {tuple(logits.shape)} for {len(views)} images; expected one row"
                " of logits for each"
            )
        return (
            logits.to(views.device).float(),
            None if features is None else features.to(views.device).float(),
        )


def resized(views: Tensor, side: int) -> Tensor:
    """Images (B, 3, S, S) as (B, 3, side, side)."""
    if views.shape[-1] == side:
        return views
    return F.interpolate(views, (side, side), mode="bilinear", antialias=True)


def read_teacher(teacher: str | Path | Callable[[Tensor], Any]) -> Teacher:
    """The teacher of that name.

    Args:
        teacher: Result folder, optimized folder, Hub id or authors' name of an image classifier; an
            ONNX (`.onnx`) or OpenVINO (`.xml`) file; or a function of normalized images that gives
            logits, (logits, features), or an object with `logits`.

    Raises:
        ConfigError: Not an image classifier.
        MissingExtraError: The file's engine is not installed.
    """
    if callable(teacher):
        return _of_function(teacher)
    path = Path(teacher)
    if path.suffix == ".onnx":
        return _of_onnx(path)
    if path.suffix == ".xml":
        return _of_openvino(path)
    return _of_checkpoint(str(teacher))


def _of_function(function: Callable[[Tensor], Any]) -> Teacher:
    """A Python function; a module is set to evaluation."""
    if isinstance(function, nn.Module):
        function.eval()

    def call(pixel_values: Tensor) -> Answer:
        if isinstance(function, nn.Module):
            function.to(pixel_values.device)
        out = function(pixel_values)
        if hasattr(out, "logits"):
            return out.logits, None
        return out if isinstance(out, tuple) else (out, None)

    name = getattr(function, "__qualname__", type(function).__qualname__)
    return Teacher(call, f"function {name}")


def _of_checkpoint(name: str) -> Teacher:
    """A classifier of any family, in PyTorch or optimized."""
    model = AutoModelForImageClassification.from_pretrained(name).eval()
    processor = AutoImageProcessor.from_pretrained(name)
    optimized = hasattr(model, "original")  # an engine runs it, which gives no features
    key = model_key(model.original if optimized else model, processor.to_dict())

    def call(pixel_values: Tensor) -> Answer:
        if optimized:
            return model(pixel_values=pixel_values.to(model.device)).logits, None
        model.to(pixel_values.device)
        with inputs_of(head_of(model)) as seen:
            logits = model(pixel_values=pixel_values).logits
        return logits, seen[0]

    names = [model.config.id2label[i] for i in sorted(model.config.id2label)]
    scale = processor.rescale_factor * 255 if processor.do_rescale else 255.0
    normalizes = processor.do_normalize
    mean = processor.image_mean if normalizes else (0.0,) * 3
    std = processor.image_std if normalizes else (1.0,) * 3
    return Teacher(
        call,
        key,
        names,
        processor_side(processor),
        tuple(m / scale for m in mean),
        tuple(s / scale for s in std),
    )


def _of_onnx(path: Path) -> Teacher:
    """An ONNX file, with the labels and preprocessing that `headstart export` writes into it."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx") from None
    data = _bytes_of(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _failures(ort.capi.onnxruntime_pybind11_state) as error:
        raise ConfigError(f"{path} is not an ONNX file that ONNX Runtime reads: {error}") from None
    inputs = session.get_inputs()
    outputs = [each.name for each in session.get_outputs()]
    _check_inputs(path, [each.shape for each in inputs])
    chosen = "logits" if "logits" in outputs else outputs[0]

    def call(pixel_values: Tensor) -> Answer:
        values = pixel_values.float().cpu().contiguous().numpy()
        (logits,) = session.run([chosen], {inputs[0].name: values})
        return torch.from_numpy(logits), None

    facts = session.get_modelmeta().custom_metadata_map
    return _of_file(path, call, data, facts, inputs[0].shape[-1])


def _failures(module: Any) -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime, which have no common base."""
    values = vars(module).values()
    return tuple(v for v in values if isinstance(v, type) and issubclass(v, Exception))


def _of_openvino(path: Path) -> Teacher:
    """An OpenVINO file, with the labels and preprocessing that `headstart export` writes into
    it.
    """
    try:
        import openvino as ov
    except ImportError:
        raise MissingExtraError("openvino", "openvino") from None
    data = _bytes_of(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ConfigError(f"{path} needs its weights in {weights}; copy both files")
    core = ov.Core()
    try:
        graph = core.read_model(str(path))
    except RuntimeError as error:
        raise ConfigError(f"{path} is not a file that OpenVINO reads: {error}") from None
    shape = graph.inputs[0].get_partial_shape() if len(graph.inputs) == 1 else None
    if shape is not None and not shape.rank.is_dynamic:
        dimensions = [None if each.is_dynamic else each.get_length() for each in shape]
    else:
        dimensions = []
    _check_inputs(path, [dimensions] * len(graph.inputs))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(graph, "CPU", settings)
    names = [name for port in graph.outputs for name in port.get_names()]
    chosen = names.index("logits") if "logits" in names else 0

    def call(pixel_values: Tensor) -> Answer:
        result = compiled([pixel_values.float().cpu().contiguous().numpy()])
        return torch.from_numpy(result[compiled.outputs[chosen]].copy()), None

    facts = {}
    for name in ("labels", "preprocessing", "preprocessing.inside"):
        if graph.has_rt_info(["headstart", name]):
            facts[name] = graph.get_rt_info(["headstart", name]).value
    return _of_file(path, call, data + weights.read_bytes(), facts, dimensions[-1])


def _of_file(
    path: Path, call: Callable[[Tensor], Answer], data: bytes, facts: dict[str, Any], side: Any
) -> Teacher:
    """A file's teacher with what its metadata says."""
    found = {
        name: parse_json(facts[name], f"{path}: its metadata {name!r}", ConfigError)
        for name in ("labels", "preprocessing")
        if facts.get(name)
    }
    classes, values = found.get("labels"), found.get("preprocessing")
    mean, std, size = None, None, side if isinstance(side, int) else None
    if facts.get("preprocessing.inside"):  # the program takes 0..255
        mean, std = (0.0,) * 3, (1 / 255,) * 3
    elif values is not None and values.get("do_normalize", True):
        scale = float(values.get("rescale_factor", 1 / 255)) * 255
        mean = tuple(each / scale for each in values["image_mean"])
        std = tuple(each / scale for each in values["image_std"])
    if values is not None and size is None:
        sides = values["crop_size"] if values.get("do_center_crop") else values["size"]
        size = min(sides.values())
    return Teacher(call, hashlib.sha256(data).hexdigest(), classes, size, mean, std)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the teacher {path}: {error.strerror}") from None


def _check_inputs(path: Path, shapes: list[Any]) -> None:
    """Refuses a program that does not take one batch of color images."""
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (3, None):
        raise ConfigError(
            f"{path} takes inputs of {shapes}; a teacher takes one, images of (batch, 3, height,"
            " width)"
        )
