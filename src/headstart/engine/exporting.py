"""Export alone.

A network as an ONNX, OpenVINO or torch-export file, with its labels and preprocessing inside,
checked after writing.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.engine.capture import (
    Program,
    Signature,
    check_dynamic,
    dynamic_axes,
    flatten,
    make_example,
    resized,
    signature_of,
)
from headstart.engine.deviation import Deviation, compare
from headstart.engine.engines import Job, installed
from headstart.engine.normalized import Normalized, portable
from headstart.errors import ConfigError, MissingExtraError

Format = Literal["onnx", "openvino", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
OPSET, LEAST_OPSET = 20, 18
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
    tolerance: float = TOLERANCE,
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
        normalize: Put the image processor's rescaling and normalisation into the program: it then
            takes pixels from 0 to 255.
        tolerance: Largest difference from PyTorch, as a share of the largest output.

    Returns:
        How far the file's outputs are from PyTorch's.

    Raises:
        ConfigError: An unknown format, or a file whose outputs are not the network's.
    """
    if to not in SUFFIXES:
        raise ConfigError(f"to={to!r}; expected one of {', '.join(SUFFIXES)}")
    if any(not each.is_cpu for each in model.parameters()):
        model = copy.deepcopy(model).cpu()  # a file knows no devices
    inputs = {name: each.cpu() for name, each in make_example(model, example).items()}
    network = Normalized(model, processor) if normalize else model
    if normalize:
        inputs["pixel_values"] = (
            ((inputs["pixel_values"] - inputs["pixel_values"].min()) * 50).clamp(0, 255).round()
        )
    axes = check_dynamic(dynamic, inputs)
    signature = signature_of(network, inputs, axes)
    path = with_suffix(Path(path), to)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = metadata(model, processor, normalize)
    if to == "onnx":
        write_onnx(network, path, signature, inputs, axes, opset, facts)
    elif to == "openvino":
        _write_openvino(network, path, signature, inputs, axes, facts)
    else:
        _write_torch(network, path, signature, inputs, axes, facts)
    try:
        found = check_file(path, to, network, signature, inputs, axes)
        if not found.largest <= tolerance:
            raise ConfigError(
                f"{path} differs from PyTorch by {found.largest:.1e}, above the tolerance of"
                f" {tolerance:.1e}; it was removed"
            )
    except (ConfigError, RuntimeError):
        for each in (path, path.with_suffix(".bin")) if to == "openvino" else (path,):
            each.unlink()
        raise
    return found


def with_suffix(path: Path, to: Format) -> Path:
    """A file's name with the format's suffix."""
    return path if path.suffix == SUFFIXES[to] else path.with_name(path.name + SUFFIXES[to])


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


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the remarks of exporters and compilers from the user."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch._dynamo", "torch._inductor")
    ]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def dynamic_shapes(
    signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> tuple[Any, ...]:
    """The axes that may change, as `torch.export` wants them."""
    free = (dynamic_axes(name, inputs[name].ndim, dynamic) for name in signature.inputs)
    return (tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free),)


def traced_inputs(
    signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> tuple[Tensor, ...]:
    """The inputs with two in a batch that may change, and larger where sizes may.

    A batch or a map of one would be taken for a constant.
    """
    if "size" in dynamic:
        inputs = resized(inputs, ("size",))
    if "batch" in dynamic and inputs[signature.inputs[0]].shape[0] == 1:
        inputs = resized(inputs, ("batch",))
    return tuple(inputs[name] for name in signature.inputs)


def program_of(
    network: nn.Module, signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Any:
    """The network as a program of `torch.export`."""
    return export_program(portable(network, signature), signature, inputs, dynamic)


def export_program(
    folded: nn.Module, signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Any:
    """A folded network as a program of `torch.export`."""
    program = Program(folded, signature.inputs).eval()
    with quiet():
        return torch.export.export(
            program,
            traced_inputs(signature, inputs, dynamic),
            dynamic_shapes=dynamic_shapes(signature, inputs, dynamic),
        )


def write_onnx(
    network: nn.Module,
    path: Path,
    signature: Signature,
    inputs: Mapping[str, Tensor],
    dynamic: Sequence[str],
    opset: int = OPSET,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes an ONNX file.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ConfigError: An opset that is not known.
    """
    if not installed("onnxruntime"):
        raise MissingExtraError("onnxruntime", "onnx")
    import onnx

    if not LEAST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ConfigError(
            f"opset={opset}; expected {LEAST_OPSET} to {onnx.defs.onnx_opset_version()}"
        )
    exported = program_of(network, signature, inputs, dynamic)
    with quiet():
        program = torch.onnx.export(
            exported, traced_inputs(signature, inputs, dynamic), dynamo=True, opset_version=opset, verbose=False,
            input_names=list(signature.inputs), output_names=list(signature.outputs),
        )  # fmt: skip
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:
        raise ConfigError(
            f"the exporter cannot write this network in opset {opset}; opset={written} works"
        )
    program.model.metadata_props.update(facts or {})
    program.save(str(path))


def _write_openvino(
    network: nn.Module,
    path: Path,
    signature: Signature,
    inputs: Mapping[str, Tensor],
    dynamic: tuple[str, ...],
    facts: Mapping[str, str],
) -> None:
    if not installed("openvino"):
        raise MissingExtraError("openvino", "openvino")
    import openvino as ov

    from headstart.engine.engines.openvino_engine import convert

    graph = convert(Job(network, signature, inputs, dynamic, "float32", torch.get_num_threads()))
    for key, value in facts.items():
        graph.set_rt_info(value, ["headstart", key.removeprefix("headstart.")])
    ov.save_model(graph, str(path), compress_to_fp16=False)


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
    with quiet():
        torch.export.save(program, path, extra_files=names | dict(facts))


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
        from headstart.engine.engines.onnxruntime_engine import OnnxRunner

        return OnnxRunner(
            path.read_bytes(), signature, torch.get_num_threads(), torch.device("cpu")
        )(tensors)
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([x.numpy() for x in tensors])
    return [torch.from_numpy(result[name].copy()) for name in signature.outputs]
