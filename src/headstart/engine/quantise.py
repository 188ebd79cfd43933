"""int8: ranges measured on the user's own inputs, weights and activations in 8 bits, what hurts left as it is."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.engine.deviation import compare
from headstart.engine.engines import Job
from headstart.errors import MissingExtraError

CALIBRATION = 128  # calls that ranges are measured on, at most: more hardly change them
HIGHEST_DROP = 0.005  # of the answers, where layers that hurt are put back
ROUNDS = 10  # groups of layers that are put back at most, each of which costs an evaluation on all samples


def _arrays(job: Job, sample: Mapping[str, Tensor]) -> dict[str, Any]:
    tensors = job.signature.prepare(sample) or []
    return {name: x.contiguous().numpy() for name, x in zip(job.signature.inputs, tensors, strict=True)}


def _samples(job: Job) -> list[Mapping[str, Tensor]]:
    """At most `CALIBRATION` of the calls, spread over all of them."""
    return list(job.calibration)[:: max(1, len(job.calibration) // CALIBRATION)][:CALIBRATION]


def is_transformer(model: Any) -> bool:
    """Whether a network is made of attention blocks."""
    return any("Attention" in type(module).__name__ for module in model.modules())


def quantise_openvino(graph: Any, job: Job) -> Any:
    """OpenVINO's graph with int8 products, through NNCF.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "openvino") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()):  # NNCF's own progress bars
        return _quantise(nncf, graph, job)


def _quantise(nncf: Any, graph: Any, job: Job) -> Any:
    samples = _samples(job)
    options: dict[str, Any] = {"subset_size": len(samples), "model_type": nncf.ModelType.TRANSFORMER if is_transformer(job.model) else None}
    if not job.mixed:
        data = nncf.Dataset(samples, lambda sample: _arrays(job, sample))
        return nncf.quantize(graph, data, preset=nncf.QuantizationPreset.MIXED, **options)
    # Layers are put back, those that hurt most first, until the answers are those of float32.
    numbered = list(enumerate(_arrays(job, sample) for sample in samples))
    score = Score(graph, [arrays for _, arrays in numbered], job.signature.outputs)
    return nncf.quantize_with_accuracy_control(
        graph, nncf.Dataset(numbered, lambda item: item[1]), nncf.Dataset(numbered, lambda item: item[1]), score,
        max_drop=HIGHEST_DROP, drop_type=nncf.DropType.ABSOLUTE, preset=nncf.QuantizationPreset.MIXED, **options,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(max_num_iterations=ROUNDS, ranking_subset_size=16),
    )  # fmt: skip


class Score:
    """How much of the float32 graph's answers a graph gives: 1 is all."""

    def __init__(self, graph: Any, samples: list[dict[str, Any]], names: Sequence[str]) -> None:
        import openvino as ov

        compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.names = names
        self.wanted = [self.outputs(compiled, arrays) for arrays in samples]

    def outputs(self, compiled: Any, arrays: dict[str, Any]) -> dict[str, Tensor]:
        """A graph's outputs by name."""
        found = compiled(list(arrays.values()))
        return {name: torch.from_numpy(found[i].copy()) for i, name in enumerate(self.names)}

    def __call__(self, compiled: Any, items: Iterable[tuple[int, dict[str, Any]]]) -> tuple[float, list[float]]:
        """The mean score, and that of each sample."""
        scores = []
        for number, arrays in items:
            off = compare([self.wanted[number]], [self.outputs(compiled, arrays)])
            scores.append(1 - off.mean if off.agreement is None else off.agreement)
        return sum(scores) / len(scores), scores


def quantise_onnx(path: Path, job: Job) -> None:
    """Rewrites an ONNX file with int8 products, through ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(_samples(job))

        def get_next(self) -> Any:
            sample = next(self.left, None)
            return None if sample is None else _arrays(job, sample)

    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip
