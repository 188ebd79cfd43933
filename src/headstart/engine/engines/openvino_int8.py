"""int8: ranges measured on the user's own inputs, products in 8 bits, the layers that hurt most
left in higher precision.

Only what multiplies by weights is quantized, at its input and its weights: sums, norms and
attention scores gain little from it and lose much. Where too many answers change, each layer's own
noise is measured, and layers are left out in the order of noise for each operation.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from headstart.engine.deviation import AGREEMENT, compare, enough
from headstart.engine.engines.base import Job, spread
from headstart.errors import ConfigError, MissingExtraError

CALIBRATION = 128  # calls that ranges are measured on, at most: more hardly change them
RANKING = 32  # images or texts that each layer's noise is measured on
SCORED = 512  # calls that answers are counted on
# in how many steps all layers are left out where those that the noise names are not enough
STEPS = 10
PRODUCTS = ("Convolution", "MatMul")


def quantize(graph: Any, job: Job) -> tuple[Any, float, str]:
    """OpenVINO's graph with int8 products, through NNCF.

    Returns:
        The graph, the fraction of its products that is in int8, and OpenVINO's name for the
        precision of the rest.

    Raises:
        MissingExtraError: NNCF is not installed.
        ConfigError: No layer can be in int8.
    """
    try:
        import nncf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("nncf", "openvino") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    found = Quantizer(graph, job)
    return found.best(), found.fraction, found.rest


class Quantizer:
    """Quantizes a graph but for some layers, and finds out which.

    Args:
        graph: In float32.
        job: Its calibration calls are those of the user.
    """

    def __init__(self, graph: Any, job: Job) -> None:
        self.graph, self.job = graph, job
        self.calls = job.arrays(SCORED)
        self.left_out: list[str] = []  # by `best`
        self.rest = "f32"  # what is not int8 is computed in: OpenVINO's name
        self.costs = product_costs(
            graph, [job.example[name].shape for name in job.signature.inputs]
        )

    def quantize(self, left_out: Collection[str]) -> Any:
        """The graph in int8 but for the layers of these names."""
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        plain = [
            op.get_friendly_name()
            for op in self.graph.get_ops()
            if op.get_type_name() not in ("Constant", "Parameter", "Result")
        ]
        ignored = [name for name in plain if name not in self.costs or name in left_out]
        calls = spread(self.calls, CALIBRATION)
        # NNCF's model type for transformers smooths ranges between matrices, which made CvT's
        # outputs seven times as far off.
        with redirect_stdout(StringIO()):  # its own progress bars
            return nncf.quantize(
                self.graph.clone(),
                nncf.Dataset(calls),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calls),
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                    # gains nothing here, and goes wrong where a convolution has several readers
                    disable_bias_correction=True,
                ),
            )

    def best(self) -> Any:
        """The graph in int8, the rest in bfloat16, or else in float32, or else with as few products
        in float32 as keep the answers.
        """
        whole, wanted = self.quantize(()), self.outputs(self.graph, self.calls)
        has_bfloat16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if has_bfloat16 and keeps(wanted, self.outputs(whole, self.calls, "bf16")):
            self.rest = "bf16"
            return whole
        noisy = self.outputs(whole, self.calls)
        if keeps(wanted, noisy):
            return whole
        noise = self.noise()
        ranked = sorted(noise, key=lambda name: -noise[name] / self.costs[name])
        count = 0
        for count in range(len(ranked)):
            # Noise of different layers adds up in squares.
            fraction = math.sqrt(
                sum(noise[name] for name in ranked[count:]) / max(sum(noise.values()), 1e-30)
            )
            if keeps(wanted, scaled(wanted, noisy, fraction)):
                break
        for left_out in range(count, len(ranked), max(1, len(ranked) // STEPS)):
            graph = self.quantize(ranked[:left_out])
            if keeps(wanted, self.outputs(graph, self.calls)):
                self.left_out = ranked[:left_out]
                return graph
        raise ConfigError("no layer can be in int8: too many answers change")

    @property
    def fraction(self) -> float:
        """Fraction of the multiplications by weights that is in int8."""
        return 1 - sum(self.costs[name] for name in self.left_out) / max(
            1, sum(self.costs.values())
        )

    def noise(self) -> dict[str, float]:
        """Mean square that the outputs are off by where one layer alone is quantized, for each
        layer.
        """
        batch = len(next(iter(self.calls[0].values())))
        calls, found = spread(self.calls, max(1, RANKING // batch)), {}
        wanted = self.outputs(self.graph, calls)
        for name in self.costs:
            outputs = self.outputs(with_noise(self.graph, name), calls)
            found[name] = sum(
                float((a[key] - b[key]).square().mean())
                for a, b in zip(wanted, outputs, strict=True)
                for key in a
            )
        return found

    def outputs(
        self, graph: Any, calls: Sequence[Mapping[str, Any]], rest: str = "f32"
    ) -> list[dict[str, Tensor]]:
        """What a graph gives for each call, by name."""
        compiled = ov.compile_model(
            graph,
            "CPU",
            {"INFERENCE_PRECISION_HINT": rest, "INFERENCE_NUM_THREADS": self.job.threads},
        )
        names, found = self.job.signature.outputs, []
        for call in calls:
            result = compiled(list(call.values()))
            found.append({name: torch.from_numpy(result[i].copy()) for i, name in enumerate(names)})
        return found


def product_costs(graph: Any, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Multiplications of each product of an input of these shapes with constants: name → count."""
    fixed, found = graph.clone(), {}
    fixed.reshape(
        {
            port: ov.PartialShape(list(shape))
            for port, shape in zip(fixed.inputs, shapes, strict=True)
        }
    )
    for op in fixed.get_ordered_ops():
        if op.get_type_name() in PRODUCTS and is_constant(op.input_value(1)):
            shape = list(op.get_output_shape(0))
            is_map = op.get_type_name() == "Convolution"
            positions = shape[:1] + shape[2:] if is_map else shape[:-1]
            weights = math.prod(op.input_value(1).get_shape())
            found[op.get_friendly_name()] = weights * math.prod(positions)
    return found


def is_constant(value: Any) -> bool:
    """Whether a value depends on no input."""
    op = value.get_node()
    inputs = op.input_values()
    return bool(
        op.get_type_name() == "Constant" or (inputs and all(is_constant(each) for each in inputs))
    )


def with_noise(graph: Any, name: str) -> Any:
    """The graph with the noise that one layer would have in int8.

    Its input and weights rounded to 256 levels, by each call's range.
    """
    from openvino import opset13 as ops

    clone = graph.clone()
    op = next(each for each in clone.get_ops() if each.get_friendly_name() == name)
    rows = [1, 2, 3]  # axes of the weights of one output
    if op.get_type_name() == "MatMul":
        rows = [-1] if op.get_attributes()["transpose_b"] else [-2]
    for i, axes in (
        (0, list(range(op.input_value(0).get_partial_shape().rank.get_length()))),
        (1, rows),
    ):
        x = op.input_value(i)
        low, high = (
            reduce(x, ops.constant(axes), keep_dims=True)
            for reduce in (ops.reduce_min, ops.reduce_max)
        )
        step = ops.add(ops.divide(ops.subtract(high, low), np.float32(255)), np.float32(1e-12))
        level = ops.round(ops.divide(ops.subtract(x, low), step), "half_to_even")
        op.input(i).replace_source_output(ops.add(ops.multiply(level, step), low).output(0))
    return clone


Outputs = list[dict[str, Tensor]]


def scaled(wanted: Outputs, found: Outputs, fraction: float) -> Outputs:
    """Outputs with a fraction of their errors."""
    return [
        {key: a[key] + fraction * (b[key] - a[key]) for key in a}
        for a, b in zip(wanted, found, strict=True)
    ]


def keeps(wanted: Outputs, found: Outputs) -> bool:
    """Whether enough answers stay, or, where there are none, the outputs themselves."""
    off = compare(wanted, found)
    return enough(off, AGREEMENT) if off.agreement is not None else 1 - off.mean >= AGREEMENT
