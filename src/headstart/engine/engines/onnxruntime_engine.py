"""ONNX Runtime as an engine.

The folded network exported to ONNX, in float32 or int8, on a CPU or through CUDA.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from headstart.checkpoint import atomic_write
from headstart.engine.capture import Signature
from headstart.engine.engines import Job
from headstart.errors import ConfigError, FileFormatError

MODEL = "onnxruntime.onnx"
STATE = ort.capi.onnxruntime_pybind11_state
FAILURES = (
    STATE.Fail,
    STATE.InvalidArgument,
    STATE.InvalidGraph,
    STATE.NotImplemented,
    STATE.RuntimeException,
    STATE.EPFail,
)


class OnnxRunner:
    """A session over a graph that is kept as bytes."""

    def __init__(
        self, graph: bytes, signature: Signature, threads: int, device: torch.device
    ) -> None:
        self.graph, self.signature, self.device = graph, signature, device
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        cuda = (
            [("CUDAExecutionProvider", {"device_id": device.index or 0})]
            if device.type == "cuda"
            else []
        )
        try:
            self.session = ort.InferenceSession(
                graph, options, providers=[*cuda, "CPUExecutionProvider"]
            )
        except FAILURES as error:
            raise ConfigError(f"ONNX Runtime does not take the graph: {error}") from error

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of inputs; on a GPU by way of the CPU's memory."""
        feed = {
            name: x.detach().cpu().contiguous().numpy()
            for name, x in zip(self.signature.inputs, inputs, strict=True)
        }
        try:
            return [
                torch.from_numpy(out).to(self.device)
                for out in self.session.run(list(self.signature.outputs), feed)
            ]
        except FAILURES as error:
            raise ConfigError(f"ONNX Runtime failed: {error}") from error

    def save(self, folder: Path) -> dict[str, Any]:
        """The graph."""
        atomic_write(folder / MODEL, self.graph)
        return {}


def build(job: Job) -> OnnxRunner:
    """Exports, quantises if asked to, and opens a session."""
    from headstart.engine.exporting import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        write_onnx(job.model, path, job.signature, job.example, job.dynamic)
        if job.precision == "int8":
            from headstart.engine.quantise import quantise_onnx

            quantise_onnx(path, job)
        return OnnxRunner(
            path.read_bytes(), job.signature, job.threads, next(iter(job.example.values())).device
        )


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> OnnxRunner:
    """A saved graph."""
    if not (folder / MODEL).is_file():
        raise FileFormatError(f"{folder} has no {MODEL}; optimise the model again")
    return OnnxRunner(
        (folder / MODEL).read_bytes(),
        signature,
        threads,
        torch.device(str(facts.get("device", "cpu"))),
    )
