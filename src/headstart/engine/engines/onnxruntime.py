"""ONNX Runtime as an engine.

The folded network exported to ONNX, in float32 or int8, on a CPU or through CUDA.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from headstart.checkpoint import atomic_write
from headstart.engine.capture import Signature, program_of, quiet, traced_inputs
from headstart.engine.engines.base import Job, saved_file
from headstart.errors import ConfigError, FileFormatError

MODEL = "onnxruntime.onnx"
OPSET, LEAST_OPSET = 20, 18
CALIBRATION = 128  # calls that ranges are measured on, at most: more hardly change them
STATE = vars(ort.capi.onnxruntime_pybind11_state).values()
FAILURES: Any = tuple(
    each for each in STATE if isinstance(each, type) and issubclass(each, Exception)
)


class OnnxRunner:
    """A session over a graph that is cached as bytes.

    Bytes have no folder, so a graph that names files for its weights is refused.
    """

    def __init__(
        self, graph: bytes, signature: Signature, threads: int, device: torch.device
    ) -> None:
        self.graph, self.signature, self.device = graph, signature, device
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # threads that wait in a loop take the processor from those that work
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            self.session = ort.InferenceSession(graph, options, providers=providers)
        except FAILURES as error:
            raise ConfigError(f"ONNX Runtime does not take the graph: {error}") from error

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of inputs; on a GPU by way of the CPU's memory."""
        feed = {
            name: x.detach().cpu().contiguous().numpy()
            for name, x in zip(self.signature.inputs, inputs, strict=True)
        }
        try:
            found = self.session.run(list(self.signature.outputs), feed)
        except (ValueError, *FAILURES) as error:
            raise ConfigError(f"ONNX Runtime failed: {error}") from error
        return [torch.from_numpy(out).to(self.device) for out in found]

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the graph."""
        atomic_write(folder / MODEL, self.graph)
        return {}


def build(job: Job) -> OnnxRunner:
    """Exports, quantizes on request, and opens a session."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        write_onnx(job.model, path, job.signature, job.example, job.dynamic)
        if job.precision == "int8":
            quantize(path, job)
        device = next(iter(job.example.values())).device
        return OnnxRunner(path.read_bytes(), job.signature, job.threads, device)


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> OnnxRunner:
    """Opens a session over a saved graph.

    Raises:
        FileFormatError: The graph is missing or damaged.
    """
    path = saved_file(folder, MODEL)
    device = torch.device(str(facts.get("device", "cpu")))
    try:
        return OnnxRunner(path.read_bytes(), signature, threads, device)
    except ConfigError as error:
        raise FileFormatError(f"{path}: {error}; optimize the model again") from error


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
        ConfigError: An opset that is not known.
    """
    if not LEAST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ConfigError(
            f"opset={opset}; expected {LEAST_OPSET} to {onnx.defs.onnx_opset_version()}"
        )
    exported = program_of(network, signature, inputs, dynamic)
    with quiet():
        program = torch.onnx.export(
            exported,
            traced_inputs(signature, inputs, dynamic),
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
        )
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:
        raise ConfigError(
            f"the exporter cannot write this network in opset {opset}; opset={written} works"
        )
    program.model.metadata_props.update(facts or {})
    program.save(str(path))


def quantize(path: Path, job: Job) -> None:
    """Rewrites an ONNX file with int8 products, through ONNX Runtime."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # a class of an untyped package
        def __init__(self) -> None:
            self.left = iter(job.arrays(CALIBRATION))

        def get_next(self) -> Any:
            return next(self.left, None)

    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
