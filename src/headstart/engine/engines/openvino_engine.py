"""OpenVINO as an engine.

The folded network traced, converted and compiled for this CPU, in float32, bfloat16 or int8.
"""

import io
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from headstart.checkpoint import atomic_write
from headstart.engine.capture import Program, Signature
from headstart.engine.engines import Job
from headstart.engine.exporting import program_of, quiet
from headstart.engine.normalized import portable
from headstart.errors import FileFormatError

MODEL, WEIGHTS, BLOB = "openvino.xml", "openvino.bin", "openvino.blob"
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def convert(job: Job) -> ov.Model:
    """The network as OpenVINO's graph, inputs and outputs under their names."""
    signature = job.signature
    inputs = tuple(job.example[name] for name in signature.inputs)
    if "size" in job.dynamic:
        with quiet():
            graph = ov.convert_model(program_of(job.model, signature, job.example, job.dynamic))
    else:
        model = portable(job.model, signature)
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every size it meets; that sizes were not frozen is checked by calling
            # the result with others.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(
                Program(model, signature.inputs).eval(), inputs, check_trace=False, strict=False
            )  # type: ignore[no-untyped-call]
            graph = ov.convert_model(traced, example_input=inputs)
    for port, name in zip(graph.inputs, signature.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.outputs, signature.outputs, strict=True):
        port.get_tensor().set_names({name})
    shapes = zip(signature.inputs, signature.shapes, strict=True)
    graph.reshape(
        {name: ov.PartialShape([-1 if n is None else n for n in shape]) for name, shape in shapes}
    )
    return graph


class OpenVinoRunner:
    """A compiled graph.

    The shapes of the example have a program of their own, others share one that takes any.
    """

    def __init__(
        self,
        graph: ov.Model | None,
        signature: Signature,
        precision: str,
        threads: int,
        path: Path | None = None,
    ) -> None:
        self.graph, self.path, self.signature, self.precision, self.threads = (
            graph,
            path,
            signature,
            precision,
            threads,
        )
        self.streams, self.device = 1, torch.device("cpu")
        self.hint = HINTS[precision]  # int8 finds out what its rest may be in
        self.int8_share: float | None = None  # of the products; known where it was made
        self.blob: Path | None = None  # the file that the fixed program was read from
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self._compiled: dict[bool, Any] = {}
        self._lock, self._local = threading.Lock(), threading.local()

    @property
    def config(self) -> dict[str, Any]:
        """OpenVINO's settings."""
        hint = "THROUGHPUT" if self.streams > 1 else "LATENCY"
        return {
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": hint,
            "NUM_STREAMS": self.streams,
            "ENABLE_CPU_PINNING": False,
        }

    def source(self) -> ov.Model:
        """The graph, read from its file where it was not needed yet."""
        if self.graph is None:
            self.graph = core().read_model(str(self.path))
        return self.graph

    def compiled(self, fixed: bool) -> Any:
        """The program for the example's shapes, or the general one."""
        with self._lock:
            if fixed not in self._compiled:
                graph = self.source()
                if fixed and graph.is_dynamic():
                    graph = graph.clone()
                    graph.reshape(
                        {
                            name: ov.PartialShape(list(s))
                            for name, s in zip(self.signature.inputs, self.shapes, strict=True)
                        }
                    )
                self._compiled[fixed] = core().compile_model(graph, "CPU", self.config)
            return self._compiled[fixed]

    def request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """What runs these shapes.

        Each thread of the caller has its own, as a request takes one call at a time.
        """
        fixed = shapes == self.shapes
        requests: dict[bool, Any] = self._local.__dict__.setdefault("requests", {})
        if fixed not in requests:
            requests[fixed] = self.compiled(fixed).create_infer_request()
        return requests[fixed]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of inputs; a batch goes image by image where there are several streams."""
        if self.streams > 1 and len(inputs[0]) > 1:
            return self._in_streams(inputs)
        shapes = tuple(tuple(x.shape) for x in inputs)
        found = self.request(shapes).infer(
            [x.detach().contiguous().numpy() for x in inputs], share_inputs=True
        )
        return [torch.from_numpy(np.array(found[i])) for i in range(len(self.signature.outputs))]

    def with_streams(self, streams: int) -> "OpenVinoRunner":
        """The same graph, the images of a batch side by side."""
        other = OpenVinoRunner(
            self.source(), self.signature, self.precision, self.threads, self.path
        )
        other.streams, other.shapes, other.hint = (
            streams,
            tuple((1, *shape[1:]) for shape in self.shapes),
            self.hint,
        )
        return other

    def _in_streams(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        single = tuple((1, *x.shape[1:]) for x in inputs)
        queue = ov.AsyncInferQueue(self.compiled(single == self.shapes), self.streams)
        parts: list[Any] = [None] * len(inputs[0])

        def keep(request: Any, i: int) -> None:
            parts[i] = [np.array(tensor.data) for tensor in request.output_tensors]

        queue.set_callback(keep)
        for i in range(len(inputs[0])):
            queue.start_async([x[i : i + 1].contiguous().numpy() for x in inputs], i)
        queue.wait_all()
        return [torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)]

    def save(self, folder: Path) -> dict[str, Any]:
        """The graph, and the compiled program, which another OpenVINO or CPU cannot use."""
        # files that somebody has loaded stay whole for him
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            ov.save_model(self.source(), str(Path(scratch) / MODEL), compress_to_fp16=False)
            for name in (WEIGHTS, MODEL):
                (Path(scratch) / name).replace(folder / name)
        facts: dict[str, Any] = {
            "streams": self.streams,
            "shapes": [list(s) for s in self.shapes],
            "hint": self.hint,
            "blob": None,
        }
        if self.blob is not None:
            if self.blob.resolve() != (folder / BLOB).resolve():
                shutil.copyfile(self.blob, folder / BLOB)
            facts["blob"] = here()
        elif True in self._compiled:
            stream = io.BytesIO()
            self._compiled[True].export_model(stream)
            atomic_write(folder / BLOB, stream.getvalue())
            facts["blob"] = here()
        return facts


@cache
def core() -> Any:
    """OpenVINO, started once."""
    return ov.Core()


def here() -> dict[str, str]:
    """This OpenVINO and this CPU: a compiled program fits no other."""
    return {
        "version": ov.get_version(),
        "cpu": f"{core().get_property('CPU', 'FULL_DEVICE_NAME')}, {os.cpu_count()}",
    }


def build(job: Job) -> OpenVinoRunner:
    """Converts, quantises if asked to, and compiles for the example's shapes."""
    graph, share, hint = convert(job), None, HINTS[job.precision]
    if job.precision == "int8":
        from headstart.engine.quantise import quantise_openvino

        graph, share, hint = quantise_openvino(graph, job)
    runner = OpenVinoRunner(graph, job.signature, job.precision, job.threads)
    runner.int8_share, runner.hint = share, hint
    runner.shapes = tuple(tuple(job.example[name].shape) for name in job.signature.inputs)
    return runner


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> OpenVinoRunner:
    """A saved graph; the compiled program is taken where it was made by this OpenVINO for this CPU."""
    if not (folder / MODEL).is_file():
        raise FileFormatError(f"{folder} has no {MODEL}; optimise the model again")
    runner = OpenVinoRunner(None, signature, str(facts["precision"]), threads, folder / MODEL)
    runner.streams, runner.hint = int(facts["streams"]), str(facts.get("hint", runner.hint))
    runner.shapes = tuple(tuple(int(n) for n in shape) for shape in facts["shapes"])
    if facts.get("blob") == here() and threads == facts["threads"] and (folder / BLOB).is_file():
        runner.blob = folder / BLOB
        stream = io.BytesIO(runner.blob.read_bytes())
        runner._compiled[True] = core().import_model(stream, "CPU", runner.config)
    return runner
