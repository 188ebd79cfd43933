"""int8 on a network that was really trained: nearly all answers stay."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import headstart
from conftest import data_dir
from engine_networks import build, pixels, tokens
from headstart.engine import search
from headstart.engine.capture import signature_of
from headstart.engine.deviation import compare
from headstart.engine.engines import installed
from headstart.engine.engines.base import Job
from headstart.errors import HeadstartError
from headstart.features.head import fit_head

needs_openvino = pytest.mark.skipif(
    not installed("openvino") or not find_spec("nncf"), reason="needs openvino and nncf"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search, "SECONDS", 0.0)


def photos(model, name):
    """Calls of 8 photos of CIFAR-100 each."""
    process = headstart.AutoImageProcessor.from_pretrained(model)
    with np.load(data_dir("images", "cifar100", f"{name}.npz")) as file:
        pixels = process(list(file["images"]), return_tensors="pt")["pixel_values"]
    return [{"pixel_values": part} for part in pixels.split(8)]


def trained(name):
    """A network that tells CIFAR-100's 20 coarse classes apart: bit-mini gets a head from 488
    photos that calibration does not use.
    """
    auto = headstart.AutoModelForImageClassification
    if name != "bit-mini":
        return auto.from_pretrained(name)
    with np.load(data_dir("images", "cifar100", "train_10shot.npz")) as file:
        labels = file["coarse_labels"][512:].astype(int)
    model = auto.from_pretrained(name, num_labels=20, ignore_mismatched_sizes=True).eval()
    with torch.inference_mode():
        pooled = [model.bit(**call).pooler_output for call in photos(name, "train_10shot")[64:]]
    head = fit_head(torch.cat(pooled).flatten(1).numpy(), labels, 20, 0)
    with torch.no_grad():
        model.classifier[-1].weight.copy_(torch.from_numpy(head.weight))
        model.classifier[-1].bias.copy_(torch.from_numpy(head.bias))
    return model


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bit-mini", str(Path(__file__).parent / "trained-cvt")])
def test_a_trained_network_keeps_99_percent_of_its_answers(name, tmp_path):
    """On 1,000 photos that neither training nor calibration saw, but for two standard deviations of
    such a count: the layers are chosen on the answers to 512 others.
    """
    model = trained(name)
    calibration, unseen = photos(name, "train_10shot")[:64], photos(name, "val")
    fast = headstart.optimize(
        model, example=calibration[0], engine="openvino", precision="int8", calibration=calibration
    )
    assert fast.report.chosen.precision == "int8" and fast.report.chosen.int8_fraction > 0.3, str(
        fast.report
    )
    with torch.no_grad():
        wanted, found = (
            [{"logits": each(**call).logits} for call in unseen] for each in (model, fast)
        )
    deviation = compare(wanted, found)
    chance = 2 * (0.99 * 0.01 / 1000) ** 0.5
    assert deviation.answers == 1000 and 0 < deviation.mean < 0.01, deviation
    assert deviation.agreement >= 0.99 - chance, deviation
    fast.save_pretrained(tmp_path)
    again = headstart.engine.load(tmp_path)
    assert torch.equal(again(**unseen[0]).logits, fast(**unseen[0]).logits)


@needs_openvino
@pytest.mark.slow
def test_layers_that_hurt_are_put_back():
    from headstart.engine.engines.openvino import convert
    from headstart.engine.engines.openvino_int8 import Quantizer

    model, inputs = build("BitForImageClassification")
    with torch.no_grad():
        model.bit.encoder.stages[1].layers[0].norm2.weight[:3] *= (
            1e4  # a range that eight bits cannot hold
        )
    calls = [pixels(seed=seed) for seed in range(12)]
    job = Job(model, signature_of(model, inputs, ("batch",)), inputs, ("batch",), "int8", 1, calls)
    quantizer = Quantizer(convert(job), job)
    wanted = [{"logits": model(**each).logits.detach()} for each in calls]
    whole, best = (
        compare(wanted, quantizer.outputs(graph, quantizer.calls))
        for graph in (quantizer.quantize(()), quantizer.best())
    )
    assert 0 < quantizer.fraction < 1
    assert best.agreement > whole.agreement and best.mean < whole.mean


@needs_openvino
def test_what_is_not_int8_may_be_bfloat16(monkeypatch, tmp_path):
    import openvino as ov

    from headstart.engine.engines import openvino_int8

    for module in (search, openvino_int8):
        monkeypatch.setattr(module, "AGREEMENT", 0.5)  # of random weights
    model, inputs = build("BeitForImageClassification", num_hidden_layers=1)
    fast = headstart.optimize(
        model, example=inputs, engine="openvino", precision="int8", calibration=[pixels(seed=1)]
    )
    able = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert fast.runner.config["INFERENCE_PRECISION_HINT"] == ("bf16" if able else "f32")
    fast.save_pretrained(tmp_path)
    again = headstart.engine.load(tmp_path)
    assert again.runner.config == fast.runner.config and torch.equal(
        again(**inputs).logits, fast(**inputs).logits
    )


@pytest.mark.skipif(not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime")
def test_onnx_runtime_has_int8(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "AGREEMENT", 0.5)  # of random weights
    model, inputs = build("BeitForImageClassification", num_hidden_layers=1)
    calls = [pixels(seed=seed) for seed in range(8)]
    fast = headstart.optimize(
        model, example=inputs, engine="onnxruntime", precision="int8", calibration=calls
    )
    assert (fast.report.chosen.engine, fast.report.chosen.precision) == ("onnxruntime", "int8"), (
        str(fast.report)
    )
    fast.save_pretrained(tmp_path)
    again = headstart.engine.load(tmp_path)
    off = compare(
        [{"logits": model(**each).logits.detach()} for each in calls],
        [{"logits": again(**each).logits} for each in calls],
    )
    assert 0 < off.mean < 0.02


def test_texts_need_the_inputs_of_the_example():
    model, inputs = build("YosoForSequenceClassification")
    with pytest.raises(HeadstartError, match="other inputs than the example"):
        headstart.optimize(
            model,
            example=inputs,
            precision="int8",
            calibration=[{"input_ids": tokens()["input_ids"]}],
        )


def test_deviations_are_counted_right():
    a = [
        {"logits": torch.tensor([[1.0, 4.0], [0.0, -2.0]])},
        {"logits": torch.tensor([[0.0, 1.0]])},
    ]
    b = [
        {"logits": torch.tensor([[1.0, 3.0], [-1.0, -0.5]])},
        {"logits": torch.tensor([[0.0, 1.0]])},
    ]
    found = compare(a, b)
    assert (found.largest, found.agreement, found.answers) == (
        1.5 / 4,
        2 / 3,
        3,
    ) and found.mean == pytest.approx(3.5 / 6 / 4)
    assert compare(a, [b[0], {"logits": torch.tensor([[float("nan"), 1.0]])}]).largest == float(
        "inf"
    )
    maps = [{"logits": torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])}]  # two classes, a map of 1 x 2
    assert compare(maps, maps).answers == 2
    assert (
        compare(
            [{"last_hidden_state": torch.ones(1, 2, 3)}],
            [{"last_hidden_state": torch.ones(1, 2, 3)}],
        ).agreement
        is None
    )


@pytest.mark.parametrize(("real", "agreement", "answers"), [(3, 1.0, 6), (0, 0.0, 5)])
def test_answers_are_counted_on_real_inputs_alone(real, agreement, answers):
    """The example, which may be noise, counts only where there is nothing else."""
    model, inputs = build("BitForImageClassification")
    samples = [pixels(seed=1 + seed) for seed in range(real)]
    made = search.Search(model, inputs, samples, ("batch",), 1, "int8")
    first = inputs["pixel_values"][0]

    def runner(tensors):
        with torch.inference_mode():
            logits = model(*tensors).logits
        return [-logits] if torch.equal(tensors[0][0], first) else [logits]

    found = made.deviation(runner)
    assert (found.agreement, found.answers) == (agreement, answers)
    assert found.largest > 0.1  # of every input
