"""int8: ranges measured on the user's own inputs, weights and activations in 8 bits, what hurts left as it is."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.engine.engines import Job
from headstart.errors import MissingExtraError

CALIBRATION = 128  # calls that ranges are measured on, at most: more hardly change them


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
    data = nncf.Dataset(_samples(job), lambda sample: _arrays(job, sample))
    # "mixed" keeps activations of both signs at full range, and smooths outliers less harshly, at some cost in speed.
    preset = nncf.QuantizationPreset.MIXED if job.mixed else nncf.QuantizationPreset.PERFORMANCE
    kind = nncf.ModelType.TRANSFORMER if is_transformer(job.model) else None
    return nncf.quantize(
        graph, data, preset=preset, model_type=kind, subset_size=len(_samples(job)), fast_bias_correction=not job.mixed
    )


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
