"""What an image processor does, as an ONNX graph: uint8 pixels of any size in, `pixel_values` out.

Resizing is two products with matrices of Pillow's filters, each rounded to 8 bits as Pillow rounds.
The matrices are computed in the graph from the size of the image. Positions are fractions whose
numerators are integers; weights are float64, rounded to Pillow's 22 bits, which float32 holds.

The decorated functions are never called: onnxscript translates them to ONNX.

Shapes: H, W of the image, C its channels; R, S rows and columns of `pixel_values`; N results of an
    axis.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import inliner
from onnxscript import FLOAT, UINT8, optimizer, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

from headstart.errors import ConfigError
from headstart.images.decode import BICUBIC, BILINEAR, BOX, HAMMING, LANCZOS

ours = Opset("headstart", 1)
PI = float(np.pi)
SINGLE, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
STEPS = float(1 << 22)  # Pillow's coefficients for 8-bit pixels have 22 bits


@script(ours, default_opset=op)
def box(x):
    """Pillow's filters (Resample.c): weights of distances that are in widths of the filter."""
    return op.Cast(op.And(x > -0.5, x <= 0.5), to=DOUBLE)


@script(ours, default_opset=op)
def bilinear(x):
    """A triangle."""
    return op.Max(1.0 - op.Abs(x), 0.0)


@script(ours, default_opset=op)
def bicubic(x):
    """Keys' with a = -0.5."""
    far = op.Abs(x)
    inner = (1.5 * far - 2.5) * far * far + 1.0
    outer = ((2.5 - 0.5 * far) * far - 4.0) * far + 2.0
    return op.Where(far < 1.0, inner, op.Where(far < 2.0, outer, 0.0))


@script(ours, default_opset=op)
def sinc(x):
    """The ideal filter."""
    angle = op.Where(x == 0.0, 1e-6, x * PI)
    return op.Sin(angle) / angle


@script(ours, default_opset=op)
def hamming(x):
    """A sinc in Hamming's window."""
    window = 0.46 * op.Cos(x * PI) + 0.54
    return op.Where(op.Abs(x) < 1.0, sinc(x) * window, 0.0)


@script(ours, default_opset=op)
def lanczos(x):
    """A sinc in the middle of another, three times as wide."""
    return op.Where(op.Abs(x) < 3.0, sinc(x) * sinc(x / 3.0), 0.0)


@script(ours, default_opset=op)
def eight_bit(x):
    """Values of pixels again."""
    return op.Floor(op.Clip(x + 0.5, 0.0, 255.0))


FILTERS = {LANCZOS: lanczos, BILINEAR: bilinear, BICUBIC: bicubic, BOX: box, HAMMING: hamming}


def matrix_of(resample: int) -> Any:
    """The function that makes the matrix (N, old) which resizes `old` pixels to entries `start` to
    `start + N` of `new`; rows beyond them are zero.
    """
    weight = FILTERS[resample]

    @script(ours, default_opset=op)
    def matrix(old, new, start, count):
        result = op.Range(0, count, 1) + start  # (N,)
        pixel = op.Range(0, old, 1)  # (old,)
        # from a result's center to a pixel's, in filter widths; a filter shrinks no pixel
        right = op.Unsqueeze((pixel * 2 + 1) * new, [0])
        left = op.Unsqueeze((result * 2 + 1) * old, [1])
        distance = op.Cast(right - left, to=DOUBLE) / op.Cast(op.Max(old, new) * 2, to=DOUBLE)
        raw = weight(distance)  # (N, old)
        rounded = op.Round(raw / op.ReduceSum(raw, [1]) * STEPS) / STEPS
        there = op.And(result >= 0, result < new)
        return op.Where(op.Unsqueeze(there, [1]), op.Cast(rounded, to=SINGLE), 0.0)

    return matrix


def size_of(target: int | tuple[int, int] | None) -> Any:
    """The function that gives height and width after resizing: `target` is a shortest edge, a size,
    or None for the size of the image.
    """
    edge = target if isinstance(target, int) else 0
    rows, columns = target if isinstance(target, tuple) else (0, 0)

    @script(ours, default_opset=op)
    def shortest_edge(height, width):
        shortest = op.Min(height, width)
        return op.Max(height * edge / shortest, edge), op.Max(width * edge / shortest, edge)

    @script(ours, default_opset=op)
    def fixed(height, width):
        return op.Identity(op.Constant(value_int=rows)), op.Identity(op.Constant(value_int=columns))

    @script(ours, default_opset=op)
    def same(height, width):
        return op.Identity(height), op.Identity(width)

    if target is None:
        return same
    return fixed if isinstance(target, tuple) else shortest_edge


def preprocessing_graph(processor: Any) -> onnx.ModelProto:
    """What an image processor does, as ONNX.

    Args:
        processor: The image processor of a network of three channels.

    Returns:
        A graph from `image`, uint8 (H, W, C) of 1 to 4 channels (one is gray, a fourth is dropped),
        to `pixel_values`, float32 (1, 3, R, S).

    Raises:
        ConfigError: The processor's results differ in size from image to image, or it resizes to
            the nearest pixel.
    """
    target, crop = processor.target
    size = crop or target
    if not isinstance(size, tuple):
        raise ConfigError(
            f"the image processor ({type(processor).__name__}) makes pixel_values of another size"
            " for every image, which one file cannot hold; set a crop, or a height and a width"
        )
    if processor.resample not in FILTERS:
        raise ConfigError(
            "the image processor has resample=0, nearest, which Pillow rounds in its own way; use"
            " 2 (bilinear) or 3 (bicubic)"
        )
    scale, shift = (np.broadcast_to(each, (3,)) for each in processor._scale_and_shift())
    rows, columns = size
    sized, matrix = size_of(target), matrix_of(processor.resample)
    scales = onnx.numpy_helper.from_array(scale.reshape(1, 3, 1, 1).copy(), "scale")
    shifts = onnx.numpy_helper.from_array(shift.reshape(1, 3, 1, 1).copy(), "shift")

    @script(ours, default_opset=op)
    def preprocess(image):
        height = op.Gather(op.Shape(image), 0)
        width = op.Gather(op.Shape(image), 1)
        channels = op.Gather(op.Shape(image), 2)
        colors = op.Where(channels >= 3, op.Constant(value_ints=[0, 1, 2]), 0)
        rgb = op.Gather(image, colors, axis=2)
        pixels = op.Cast(op.Transpose(rgb, perm=[2, 0, 1]), to=SINGLE)  # (3, H, W)
        new_height, new_width = sized(height, width)
        top = (new_height + rows) / 2 - rows  # rounded down, also below 0
        left = (new_width + columns) / 2 - columns
        vertical = matrix(height, new_height, top, rows)  # (R, H)
        across = matrix(width, new_width, left, columns)
        horizontal = op.Transpose(across, perm=[1, 0])  # (W, S)
        less = height - new_height
        # the order of Pillow's passes, which shows, since each is rounded
        if op.And(less > 0, less > (width - new_width) * 2):
            resized = eight_bit(op.MatMul(eight_bit(op.MatMul(vertical, pixels)), horizontal))
        else:
            resized = eight_bit(op.MatMul(vertical, eight_bit(op.MatMul(pixels, horizontal))))
        batch = op.Unsqueeze(resized, [0])  # (1, 3, R, S)
        return batch * op.Constant(value=scales) + op.Constant(value=shifts)

    sizes = {"image": UINT8["height", "width", "channels"]}
    return as_graph(preprocess, sizes, {"pixel_values": FLOAT[1, 3, rows, columns]})


def as_graph(
    function: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> onnx.ModelProto:
    """A function of onnxscript as a graph with these names and types of inputs and outputs.

    All other names begin with the function's, so that graphs can be put together.
    """
    model = function.to_model_proto(
        input_types=list(inputs.values()), output_types=list(outputs.values())
    )
    model = optimizer.optimize(inliner.inline_local_functions(model))
    given = [each.name for each in (*model.graph.input, *model.graph.output)]
    names = dict(zip(given, (*inputs, *outputs), strict=True))
    rename(model.graph, names | {"": ""}, f"{function.name}/")
    return model


def rename(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str) -> None:
    """Gives values and nodes other names, in branches too: those listed, or a prefix for the
    rest.
    """
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [names.get(name, prefix + name) for name in node.input]
        node.output[:] = [names.get(name, prefix + name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, names, prefix)
    for each in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        each.name = names.get(each.name, prefix + each.name)
