"""OpenVINO as an engine.

The folded network traced, converted and compiled for this CPU, in float32, bfloat16 or int8. A
saved folder holds the graph alone: it is compiled again when it is loaded, since a compiled program
in a folder would be code from whoever wrote the folder.
"""

import errno
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from headstart.checkpoint.writing import explained
from headstart.engine.capture import Program, Signature, program_of, quiet
from headstart.engine.engines.base import Job, saved_file
from headstart.engine.normalized import portable
from headstart.errors import ConfigError, FileFormatError

MODEL, WEIGHTS = "openvino.xml", "openvino.bin"
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
MAX_STREAMS = 1024  # in a saved folder


def convert(job: Job) -> ov.Model:
    """The network as OpenVINO's graph, inputs and outputs under their names."""
    signature = job.signature
    inputs = tuple(job.example[name] for name in signature.inputs)
    if "size" in job.dynamic:
        with quiet():
            graph = ov.convert_model(program_of(job.model, signature, job.example, job.dynamic))
    else:
        program = Program(portable(job.model, signature.size), signature.inputs).eval()
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every size it meets; that sizes were not frozen is checked by calling
            # the result with others.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(program, inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
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

    Args:
        graph: OpenVINO's graph.
        signature: Its inputs and outputs.
        shapes: Shapes of the example's inputs.
        hint: OpenVINO's name of the precision ("f32", "bf16") of what is not int8.
        threads: Threads of a call, or of all streams together.
        streams: How many calls run side by side, each on some of the threads.
        int8_fraction: Fraction of the products that is in int8, where the graph was just made.
    """

    def __init__(
        self,
        graph: ov.Model,
        signature: Signature,
        shapes: tuple[tuple[int, ...], ...],
        hint: str,
        threads: int,
        streams: int = 1,
        int8_fraction: float | None = None,
    ) -> None:
        self.graph, self.signature, self.shapes = graph, signature, shapes
        self.hint, self.threads, self.streams = hint, threads, streams
        self.int8_fraction = int8_fraction
        self.device = torch.device("cpu")
        self._compiled: dict[bool, Any] = {}
        self._lock, self._local = threading.Lock(), threading.local()

    @property
    def config(self) -> dict[str, Any]:
        """OpenVINO's settings."""
        return {
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "THROUGHPUT" if self.streams > 1 else "LATENCY",
            "NUM_STREAMS": self.streams,
            "ENABLE_CPU_PINNING": False,
        }

    @property
    def splits(self) -> bool:
        """Whether the rows of a batch run side by side: several streams and a batch of any size."""
        return self.streams > 1 and self.signature.shapes[0][0] is None

    def compiled(self, fixed: bool) -> Any:
        """The program for the example's shapes, or the general one."""
        with self._lock:
            if fixed not in self._compiled:
                graph = self.graph
                if fixed and graph.is_dynamic():
                    graph = graph.clone()
                    pairs = zip(self.signature.inputs, self.fixed_shapes, strict=True)
                    graph.reshape({name: ov.PartialShape(list(shape)) for name, shape in pairs})
                with engine_errors():
                    self._compiled[fixed] = core().compile_model(graph, "CPU", self.config)
            return self._compiled[fixed]

    @property
    def fixed_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes that have a program of their own: the example's, of one row where rows split."""
        if self.splits:
            return tuple((1, *shape[1:]) for shape in self.shapes)
        return self.shapes

    def request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """What runs these shapes.

        Each thread of the caller has its own, as a request takes one call at a time.
        """
        fixed = shapes == self.fixed_shapes
        requests: dict[bool, Any] = self._local.__dict__.setdefault("requests", {})
        if fixed not in requests:
            requests[fixed] = self.compiled(fixed).create_infer_request()
        return requests[fixed]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of inputs; a batch goes row by row where rows run side by side."""
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        with engine_errors():
            if self.splits and len(arrays[0]) > 1:
                return self._side_by_side(arrays)
            request = self.request(tuple(x.shape for x in arrays))
            found = request.infer(arrays, share_inputs=True)
        return [torch.from_numpy(np.array(found[i])) for i in range(len(self.signature.outputs))]

    def with_streams(self, streams: int) -> "OpenVinoRunner":
        """The same graph with several streams."""
        return OpenVinoRunner(
            self.graph,
            self.signature,
            self.shapes,
            self.hint,
            self.threads,
            streams,
            self.int8_fraction,
        )

    def _side_by_side(self, arrays: Sequence[Any]) -> list[Tensor]:
        single = tuple((1, *x.shape[1:]) for x in arrays)
        queue = ov.AsyncInferQueue(self.compiled(single == self.fixed_shapes), self.streams)
        parts: list[Any] = [None] * len(arrays[0])

        def keep(request: Any, i: int) -> None:
            parts[i] = [np.array(tensor.data) for tensor in request.output_tensors]

        queue.set_callback(keep)
        for i in range(len(parts)):
            queue.start_async([x[i : i + 1] for x in arrays], i)
        queue.wait_all()
        return [torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)]

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the graph."""
        # files that somebody has loaded stay whole for him
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            save_graph(self.graph, Path(scratch) / MODEL)
            for name in (WEIGHTS, MODEL):
                (Path(scratch) / name).replace(folder / name)
        return {
            "streams": self.streams,
            "shapes": [list(shape) for shape in self.shapes],
            "hint": self.hint,
        }


def save_graph(graph: Any, path: Path) -> None:
    """Writes a graph as .xml and .bin, in its own precision.

    Raises:
        OSError: The disk is full, or the like: OpenVINO knows no more than that.
    """
    with explained(path):
        try:
            ov.save_model(graph, str(path), compress_to_fp16=False)
        except RuntimeError as error:
            full = shutil.disk_usage(path.parent).free < 1 << 20
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error


@cache
def core() -> Any:
    """OpenVINO, started once."""
    return ov.Core()


@contextmanager
def engine_errors() -> Iterator[None]:
    """Raises what OpenVINO raises as our own error."""
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:
        line = str(error).strip().splitlines()[-1]
        raise ConfigError(f"OpenVINO failed: {line}") from error


def build(job: Job) -> OpenVinoRunner:
    """Converts, quantizes on request, and compiles for the example's shapes."""
    graph, share, hint = convert(job), None, HINTS[job.precision]
    if job.precision == "int8":
        from headstart.engine.engines.openvino_int8 import quantize

        graph, share, hint = quantize(graph, job)
    shapes = tuple(tuple(job.example[name].shape) for name in job.signature.inputs)
    return OpenVinoRunner(graph, job.signature, shapes, hint, job.threads, int8_fraction=share)


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> OpenVinoRunner:
    """Reads a saved graph, which is compiled when it is first called.

    Raises:
        FileFormatError: The graph is missing, damaged, or of other inputs and outputs.
    """
    path, weights = saved_file(folder, MODEL), saved_file(folder, WEIGHTS)
    precision, streams = str(facts["precision"]), int(facts["streams"])
    hint, shapes = facts.get("hint", HINTS[precision]), facts["shapes"]
    shapes = tuple(tuple(int(n) for n in shape) for shape in shapes)
    fits = len(shapes) == len(signature.inputs) and all(
        len(want) == len(shape)
        and all(wanted in (None, n) for wanted, n in zip(want, shape, strict=True))
        for want, shape in zip(signature.shapes, shapes, strict=True)
    )
    if hint not in HINTS.values() or not fits or not 1 <= streams <= MAX_STREAMS:
        raise FileFormatError(f"{folder}: streams, shapes or hint are damaged")
    try:
        graph = core().read_model(str(path), str(weights))
        pairs = ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs))
        named = all(
            len(ports) == len(names)
            and all(name in port.get_names() for port, name in zip(ports, names, strict=True))
            for ports, names in pairs
        )
    except (RuntimeError, UnicodeDecodeError) as error:
        line = str(error).strip().splitlines()[-1]
        raise FileFormatError(
            f"{path} cannot be read ({line}); optimize the model again"
        ) from error
    if not named:
        raise FileFormatError(
            f"{path} has other inputs or outputs than {', '.join(signature.inputs)} and"
            f" {', '.join(signature.outputs)}; optimize the model again"
        )
    return OpenVinoRunner(graph, signature, shapes, hint, threads, streams)
