"""A whole image classifier in one file: preprocessing, network, probabilities, when to refuse.

The file takes uint8 pixels of any size and needs no code around it but a decoder. It holds three
images with PyTorch's answers, so that any runtime can be checked against them.

Letters: V classes, D features.
"""

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset18 as op

from headstart.engine.capture import signature_of
from headstart.engine.deviation import Deviation, check_deviation, compare
from headstart.engine.engines.onnxruntime import write_onnx
from headstart.engine.full_file import TOLERANCE, VERSION, Array, Example, FullFile
from headstart.engine.preprocessing import as_graph, ours, preprocessing_graph
from headstart.errors import ConfigError
from headstart.images.decode import resize
from headstart.pipelines.confidence import FILE as CONFIDENCE
from headstart.pipelines.confidence import folder_of
from headstart.pipelines.image_classification import ImageClassificationPipeline
from headstart.pipelines.unknown import LEVEL
from headstart.registry import families

SHAPES = ((97, 160, 3), (200, 61, 3), (40, 48, 1))  # of the images in a file: wide, tall, gray
SHOWN = 5  # scores of an answer that a file holds


def export_full(
    model: Any,
    path: Path,
    to: str,
    opset: int,
    processor: Any,
    max_error: float | None,
    facts: Mapping[str, str],
    tolerance: float | None = None,
) -> Deviation:
    """Writes an image classifier with everything around it, and checks its three images.

    Args:
        model: A network for image classification.
        path: File to write, with its suffix.
        to: "onnx" or "openvino".
        opset: Of ONNX.
        processor: The network's image processor.
        max_error: Target error rate of the refusal; None is the one that was trained for, if any.
        facts: Metadata.
        tolerance: Largest difference of a score, as a fraction of the largest; None is 0.01.

    Returns:
        How far the scores of the file are from PyTorch's.

    Raises:
        ConfigError: Another task or format, a processor whose results differ in size, or a file
            that answers otherwise than PyTorch.
    """
    if to not in ("onnx", "openvino"):
        raise ConfigError(f"full=True writes onnx or openvino, not {to}")
    pipe = pipeline_of(model, processor, max_error)
    graph = full_graph(pipe, opset)
    examples = [example_of(pipe, image) for image in example_images()]
    facts = {
        **facts,
        "preprocessing.inside": "resize, crop, rescale, normalize",
        "headstart.full": VERSION,
        "kind": pipe.kind or "single_label_classification",
        "temperature": repr(pipe.temperature),
        "threshold": repr(pipe.threshold),
        "refuses": str(pipe.refuses),
        "minimums": json.dumps(pipe.minimums),
        "tests": json.dumps([asdict(each) for each in examples]),
    }
    write_full(graph, path, to, facts)
    file = FullFile(path)
    found = [{"logits": torch.from_numpy(file(image)["scores"])} for image in example_images()]
    wanted = [{"logits": pipe.probabilities([image])} for image in example_images()]
    wrong = [each for each in file.check() if not each.right]
    if wrong:
        shape = "x".join(map(str, wrong[0].shape))
        raise ConfigError(
            f"{path.name} answers {wrong[0].found} for its test image of {shape}, and PyTorch"
            f" {wrong[0].expected}, scores differ by {wrong[0].difference:.1e}; it was not kept"
        )
    deviation = compare(wanted, found)
    check_deviation(deviation, path, TOLERANCE if tolerance is None else tolerance)
    return deviation


def pipeline_of(model: Any, processor: Any, max_error: float | None) -> ImageClassificationPipeline:
    """The pipeline that a file is to answer as.

    Raises:
        ConfigError: Not an image classifier of three channels, or no image processor.
    """
    tasks = families()[model.config.model_type].tasks
    if tasks.get("image-classification") != type(model).__name__:
        raise ConfigError(
            f"full=True is for image classification, and this is a {type(model).__name__}; leave it"
            " out"
        )
    if processor is None:
        raise ConfigError("full=True needs processor=, the image processor of the network")
    if model.config.num_channels != 3:
        raise ConfigError(f"full=True is for 3 channels, not {model.config.num_channels}")
    folder = folder_of(model)
    known = folder is not None and (folder / CONFIDENCE).is_file()
    refuse: bool | float = known if max_error is None else max_error
    return ImageClassificationPipeline(model, image_processor=processor, refuse=refuse)


def full_graph(pipe: ImageClassificationPipeline, opset: int) -> onnx.ModelProto:
    """Preprocessing, network and answers as one ONNX graph."""
    before = preprocessing_graph(pipe.image_processor)
    shape = [each.dim_value for each in before.graph.output[0].type.tensor_type.shape.dim]
    pixels = {"pixel_values": torch.rand(shape, generator=torch.Generator().manual_seed(0))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(pipe.model, path, signature_of(pipe.model, pixels, ()), pixels, (), opset)
        network = onnx.load(str(path))
    parts = [before, network, score_graph(pipe)]
    if pipe.kind != "regression":
        parts.append(answer_graph(pipe))
    if pipe.reference is not None:
        parts.append(unknown_graph(pipe, features_of(network)))
    return joined(parts, network)


def score_graph(pipe: ImageClassificationPipeline) -> onnx.ModelProto:
    """From `logits` to `scores`: probabilities, or values of regression targets."""
    temperature = float(pipe.temperature)

    @script(ours, default_opset=op)
    def softmax(logits):
        return op.Softmax(logits / temperature, axis=1)

    @script(ours, default_opset=op)
    def sigmoid(logits):
        return op.Sigmoid(logits)

    @script(ours, default_opset=op)
    def identity(logits):
        return op.Identity(logits)

    functions = {"regression": identity, "multi_label_classification": sigmoid}
    shape = FLOAT[1, pipe.model.config.num_labels]
    return as_graph(functions.get(pipe.kind, softmax), {"logits": shape}, {"scores": shape})


def answer_graph(pipe: ImageClassificationPipeline) -> onnx.ModelProto:
    """From `scores` to `label`, the best class, and `unsure`: whether its score is too low."""
    threshold = float(pipe.threshold)

    @script(ours, default_opset=op)
    def answer(scores):
        label = op.ArgMax(scores, axis=1, keepdims=0)
        refused = op.ReduceMax(scores, [1], keepdims=0) < threshold
        return label, refused

    scores = FLOAT[1, pipe.model.config.num_labels]
    last = "refused" if pipe.reference is None else "unsure"
    return as_graph(answer, {"scores": scores}, {"label": INT64[1], last: BOOL[1]})


def unknown_graph(pipe: ImageClassificationPipeline, features: str) -> onnx.ModelProto:
    """From features to `p_value` of the known classes, and `refused`, where that is too low."""
    reference = pipe.reference
    assert reference is not None
    mean, basis, centers, distances = (
        onnx.numpy_helper.from_array(each.numpy(), name)
        for name, each in (
            ("mean", reference.mean[None]),
            ("basis", reference.basis.T.contiguous()),
            ("centers", reference.centers),
            ("distances", reference.distances),
        )
    )
    count, level = float(len(reference.distances) + 1), LEVEL if pipe.refuses else 0.0

    @script(ours, default_opset=op)
    def compare_features(features, unsure):
        centered = features - op.Constant(value=mean)
        offsets = op.MatMul(centered, op.Constant(value=basis)) - op.Constant(value=centers)
        distance = op.ReduceMin(op.ReduceL2(offsets, [1], keepdims=0), [0], keepdims=1)
        nearer = op.Cast(op.Constant(value=distances) < distance, to=1)
        p_value = (count - op.ReduceSum(nearer, [0], keepdims=1)) / count
        refused = op.Or(unsure, p_value < level)
        return p_value, refused

    inputs = {features: FLOAT[1, len(reference.mean)], "unsure": BOOL[1]}
    return as_graph(compare_features, inputs, {"p_value": FLOAT[1], "refused": BOOL[1]})


def features_of(network: onnx.ModelProto) -> str:
    """Name of what the last layer reads.

    Raises:
        ConfigError: The network does not end in a linear layer.
    """
    makers = {name: node for node in network.graph.node for name in node.output}
    node = makers["logits"]
    while node.op_type in ("Add", "Identity"):
        node = next(makers[name] for name in node.input if name in makers)
    if node.op_type not in ("Gemm", "MatMul"):
        raise ConfigError(f"the network ends in {node.op_type}; full=True needs a linear layer")
    return str(node.input[0])


def joined(parts: Sequence[onnx.ModelProto], network: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of parts that name what they hand on alike."""
    outputs = ("scores", "label", "refused", "p_value", "pixel_values")
    found = {each.name: each for part in parts for each in part.graph.output}
    graph = onnx.helper.make_graph(
        [node for part in parts for node in part.graph.node],
        "headstart",
        parts[0].graph.input,
        [found[name] for name in outputs if name in found],
        [each for part in parts for each in part.graph.initializer],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=network.opset_import,
        ir_version=network.ir_version,
        producer_name="headstart",
    )


def write_full(graph: onnx.ModelProto, path: Path, to: str, facts: Mapping[str, str]) -> None:
    """Writes the graph with its metadata."""
    if to == "onnx":
        onnx.helper.set_model_props(graph, dict(facts))
        onnx.save(graph, str(path))
        return
    import openvino as ov

    from headstart.engine.engines.openvino import save_graph

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, f"{folder}/full.onnx")
        program = ov.convert_model(f"{folder}/full.onnx")
    for key, value in facts.items():
        program.set_rt_info(value, ["headstart", key.removeprefix("headstart.")])
    save_graph(program, path)


# Images and answers -------------------------------------------------------------------------------


def example_images() -> list[Array]:
    """Three images of soft shapes with some noise, of sizes that preprocessing has to change."""
    generator = np.random.default_rng(0)
    found = []
    for height, width, channels in SHAPES:
        coarse = generator.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        soft = resize(coarse, (height, width)).astype(np.int64)
        noise = generator.integers(-20, 21, soft.shape)
        found.append(np.clip(soft + noise, 0, 255).astype(np.uint8))
    return found


def example_of(pipe: ImageClassificationPipeline, image: Array) -> Example:
    """An image with the answer of PyTorch."""
    rows, p_values = pipe.compared([pipe.pixel_values(image)])
    order = rows[0].argsort(descending=True)
    if pipe.kind != "regression":
        order = order[:SHOWN]
    return Example(
        list(image.shape),
        base64.b64encode(image.tobytes()).decode(),
        order.tolist(),
        rows[0][order].tolist(),
        pipe.kind != "regression" and pipe.is_refused(rows[0], p_values[0]),
    )
