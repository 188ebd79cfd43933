"""Export alone.

A network as an ONNX, OpenVINO or torch-export file, with its labels and preprocessing inside,
checked after writing.
"""

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.checkpoint import atomic_write
from headstart.engine.capture import (
    Signature,
    check_dynamic,
    flatten,
    make_example,
    program_of,
    quiet,
    resized,
    signature_of,
)
from headstart.engine.deviation import Deviation, check_deviation, check_tolerance, compare
from headstart.engine.engines import engine
from headstart.engine.engines.base import Job
from headstart.engine.normalized import Normalized
from headstart.errors import ConfigError

Format = Literal["onnx", "openvino", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "torch"}
OPSET = 20
TOLERANCE = 1e-4


def export(
    model: nn.Module,
    path: str | Path,
    *,
    to: Format = "onnx",
    example: Any = None,
    dynamic: Sequence[str] | str | bool | None = None,
    opset: int = OPSET,
    processor: Any = None,
    normalize: bool = False,
    full: bool = False,
    max_error: float | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Deviation:
    """Writes a network as a program that needs no headstart, runs the file, and compares.

    Args:
        model: A network of any family, with any head, in evaluation mode.
        path: File to write; the format's suffix is added where there is none.
        to: "onnx", "openvino" or "torch-export".
        example: Inputs as they will be; default one image or text of the network's size.
        dynamic: Axes that change from call to call: "batch", "size", "length". Default: the batch,
            and the length of texts.
        opset: Of ONNX, 18 or later.
        processor: The image processor or tokenizer; its values are written into the file beside the
            labels.
        normalize: Put the image processor's rescaling and normalization into the program: it then
            takes pixels from 0 to 255.
        full: Put everything around an image classifier into an ONNX or OpenVINO file: it then takes
            `image`, uint8 (H, W, C) of any size, and gives `scores`, `label`, `refused` and
            `pixel_values`. Three test images are inside: see `headstart check`.
        max_error: With `full`, the target error rate of `refused`; default the one of training.
        tolerance: Largest difference from PyTorch, as a fraction of the largest output; default
            0.0001, and with `full` 0.01, since a pixel may be one gray level from the pipeline's.
        overwrite: Replace a file that is there.

    Returns:
        How far the file's outputs are from PyTorch's.

    Raises:
        ConfigError: An unknown format, a file that is there, or a file whose outputs are not the
            network's.
        MissingExtraError: What writes the format is not installed.

    Example:
        >>> import tempfile
        >>> import headstart
        >>> model = headstart.BitForImageClassification.from_pretrained("bit-mini")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     deviation = headstart.export(model, f"{folder}/mini", to="torch-export")
        >>> deviation.largest < 1e-4
        True
    """
    if to not in SUFFIXES:
        raise ConfigError(f"to={to!r}; expected one of {', '.join(SUFFIXES)}")
    path = free_path(Path(path), to, overwrite)
    if tolerance is not None:
        check_tolerance(tolerance)
    engine(ENGINES[to])  # raises where it is not installed
    if full:
        others = {"example": example, "dynamic": dynamic, "normalize": normalize or None}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ConfigError(f"full=True decides {given[0]}= itself; leave {given[0]}= out")
    elif max_error is not None:
        raise ConfigError("max_error is for full=True")
    if any(not each.is_cpu for each in model.parameters()):
        model = copy.deepcopy(model).cpu()  # a file knows no devices
    if full:
        engine("onnxruntime")
        from headstart.engine.full import export_full

        facts = metadata(model, processor)
        with draft_of(path) as draft:
            return export_full(model, draft, to, opset, processor, max_error, facts, tolerance)
    inputs = {name: each.cpu() for name, each in make_example(model, example).items()}
    network = Normalized(model, processor) if normalize else model
    if normalize:
        inputs["pixel_values"] = (
            ((inputs["pixel_values"] - inputs["pixel_values"].min()) * 50).clamp(0, 255).round()
        )
    axes = check_dynamic(dynamic, inputs)
    signature = signature_of(network, inputs, axes)
    facts = metadata(model, processor, normalize)
    with draft_of(path) as draft:
        if to == "onnx":
            from headstart.engine.engines.onnxruntime import write_onnx

            write_onnx(network, draft, signature, inputs, axes, opset, facts)
        elif to == "openvino":
            _write_openvino(network, draft, signature, inputs, axes, facts)
        else:
            _write_torch(network, draft, signature, inputs, axes, facts)
        found = check_file(draft, to, network, signature, inputs, axes)
        check_deviation(found, draft, TOLERANCE if tolerance is None else tolerance)
    return found


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A place for a file and those beside it, which replace what is at `path` where the block ends
    without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".headstart-", dir=path.parent) as folder:
        yield Path(folder) / path.name
        for each in Path(folder).iterdir():
            each.replace(path.with_name(each.name))


def with_suffix(path: Path, to: Format) -> Path:
    """A file's name with the format's suffix.

    Raises:
        ConfigError: It has the suffix of another format.
    """
    suffix = path.suffix.lower()
    if suffix == SUFFIXES[to]:
        return path.with_suffix(suffix)
    other = next((name for name, each in SUFFIXES.items() if each == suffix), None)
    if other is not None:
        raise ConfigError(
            f"{path} is named as a file of {other}, and to={to!r}; give to={other!r}, or a name"
            f" that ends in {SUFFIXES[to]}"
        )
    return path.with_name(path.name + SUFFIXES[to])


def free_path(path: Path, to: Format, overwrite: bool) -> Path:
    """The file to write, with its suffix.

    Raises:
        ConfigError: It is there and is not to be overwritten, or its name does not fit.
    """
    path = with_suffix(path, to)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; expected the name of a file to write")
    for each in (path, path.with_suffix(".bin")) if to == "openvino" else (path,):
        if each.exists() and not overwrite:
            raise ConfigError(f"{each} exists; choose another name, or give overwrite=True")
    return path


def metadata(model: Any, processor: Any = None, normalize: bool = False) -> dict[str, str]:
    """What a reader of the file wants to know, as texts: network, labels, preprocessing."""
    config = model.config
    facts = {
        "headstart.model": type(model).__name__,
        "headstart.model_type": str(config.model_type),
    }
    facts["labels"] = json.dumps(
        [config.id2label[i] for i in sorted(config.id2label)], ensure_ascii=False
    )
    if processor is not None and hasattr(processor, "to_dict"):
        facts["preprocessing"] = json.dumps(processor.to_dict(), sort_keys=True)
        facts["preprocessing.inside"] = "rescale, normalize" if normalize else ""
    return facts


def _write_openvino(
    network: nn.Module,
    path: Path,
    signature: Signature,
    inputs: Mapping[str, Tensor],
    dynamic: tuple[str, ...],
    facts: Mapping[str, str],
) -> None:
    from headstart.engine.engines.openvino import convert, save_graph

    graph = convert(Job(network, signature, inputs, dynamic, "float32", torch.get_num_threads()))
    for key, value in facts.items():
        graph.set_rt_info(value, ["headstart", key.removeprefix("headstart.")])
    save_graph(graph, path)


def _write_torch(
    network: nn.Module,
    path: Path,
    signature: Signature,
    inputs: Mapping[str, Tensor],
    dynamic: Sequence[str],
    facts: Mapping[str, str],
) -> None:
    program = program_of(network, signature, inputs, dynamic)
    names = {"inputs": json.dumps(signature.inputs), "outputs": json.dumps(signature.outputs)}
    buffer = io.BytesIO()  # PyTorch ends the process where it cannot write a file
    with quiet():
        torch.export.save(program, buffer, extra_files=names | dict(facts))
    atomic_write(path, buffer.getvalue())


def check_file(
    path: Path,
    to: Format,
    network: nn.Module,
    signature: Signature,
    inputs: Mapping[str, Tensor],
    dynamic: Sequence[str],
) -> Deviation:
    """Runs a written file on the example and on another batch and length, and compares with
    PyTorch.
    """
    wanted, found = [], []
    for each in (dict(inputs), resized(inputs, dynamic)):
        with torch.no_grad():
            wanted.append(flatten(network(**each)))
        tensors = signature.prepare(each)
        assert tensors is not None
        found.append(
            dict(zip(signature.outputs, run_file(path, to, signature, tensors), strict=True))
        )
    return compare(wanted, found)


def run_file(
    path: Path, to: Format, signature: Signature, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Outputs of a written file."""
    if to == "torch-export":
        try:
            with quiet():
                return list(torch.export.load(path).module()(*tensors))
        except AssertionError as error:  # a guard: maps of one patch are another program
            shapes = [tuple(each.shape) for each in tensors]
            raise ConfigError(
                f"torch.export's program takes no inputs of {shapes} ({error}); give a larger"
                " example or a fixed size"
            ) from error
    if to == "onnx":
        from headstart.engine.engines.onnxruntime import OnnxRunner

        graph, place = path.read_bytes(), torch.device("cpu")
        return OnnxRunner(graph, signature, torch.get_num_threads(), place)(tensors)
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([x.numpy() for x in tensors])
    return [torch.from_numpy(result[name].copy()) for name in signature.outputs]
