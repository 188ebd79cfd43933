"""Optimised models at work.

Several callers at once, streams, threads, and the place where they compute.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import headstart
from conftest import assert_close
from engine_networks import build, pixels
from headstart.engine import load, search
from headstart.engine.capture import signature_of
from headstart.engine.engines import candidates, installed
from headstart.engine.engines import torch as torch_engine
from headstart.errors import ConfigError

ENGINES = [name for name in ("torch", "openvino") if installed(name)]
needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="needs openvino")
needs_onnx = pytest.mark.skipif(
    not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search, "SECONDS", 0.0)


def scores(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("engine", ENGINES)
def test_several_callers_at_once(engine):
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(model, example=inputs, engine=engine, threads=1)
    calls = [pixels(batch=1 + i % 3, seed=i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: fast(**call).logits, calls))
    for call, each in zip(calls, found, strict=True):
        assert_close(each, scores(model, call), 1e-4)


@needs_openvino
def test_throughput_is_measured_with_several_callers():
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(
        model, example=pixels(batch=1), engine="openvino", threads=2, goal="throughput"
    )
    assert fast.report.callers == 2 and "batch 1, 2 callers at once" in str(fast.report)
    assert {trial.streams for trial in fast.report.trials} == {1, 2}
    assert type(fast.report).from_dict(json.loads(json.dumps(fast.report.to_dict()))) == fast.report
    assert_close(fast(**inputs).logits, scores(model, inputs), 1e-4)


@needs_openvino
def test_a_batch_may_be_shared_among_streams(tmp_path):
    model, inputs = build("CvtForImageClassification")
    fast = headstart.optimize(model, example=inputs, engine="openvino", threads=2, streams=2)
    assert fast.report.chosen.streams == 2 and "in 2 streams" in str(fast.report)
    assert (
        fast.runner.config["PERFORMANCE_HINT"] == "THROUGHPUT"
        and fast.runner.config["NUM_STREAMS"] == 2
    )
    fast.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.runner.streams == 2
    for each in (inputs, pixels(batch=5), pixels(batch=1)):
        for each_model in (fast, again):
            assert_close(each_model(**each).logits, scores(model, each), 1e-4)
    single = load(tmp_path, threads=1)
    assert single.runner.config["INFERENCE_NUM_THREADS"] == 1
    assert_close(single(**inputs).logits, scores(model, inputs), 1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_threads_of_pytorch_are_those_requested(count, monkeypatch):
    model, inputs = build("BitForImageClassification")
    before = torch.get_num_threads()
    fast = headstart.optimize(model, example=inputs, engine="torch", threads=count)
    seen, program = [], fast.runner.program
    fast.runner.program = lambda *x: seen.append(torch.get_num_threads()) or program(*x)
    fast(**inputs)
    assert seen == [count] and torch.get_num_threads() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_is_written_over_itself(engine, tmp_path):
    """What is mapped from a file stays whole when the file is replaced."""
    model, inputs = build("BitForImageClassification")
    headstart.optimize(model, example=inputs, engine=engine).save_pretrained(tmp_path)
    again = load(tmp_path)
    again.save_pretrained(tmp_path)
    for each in (again, load(tmp_path)):
        assert_close(each(**inputs).logits, scores(model, inputs), 1e-4)


def test_engines_run_where_the_network_is():
    """Tensors of the meta device have no numbers but a place.

    Whatever moves them to the CPU on the way fails here.
    """
    model, inputs = build("BitForImageClassification")
    signature = signature_of(model, inputs, ("batch",))
    runner = torch_engine.make(model.to("meta"), signature, "bfloat16", 1)
    assert runner.device.type == "meta"
    (out,) = runner(signature.prepare(inputs, runner.device))
    assert out.is_meta and out.shape == (2, 5) and out.dtype == torch.float32
    assert candidates(None, "float32", "cuda") == ["torch"]
    if installed("openvino"):
        with pytest.raises(ConfigError, match="the openvino engine here does not run on cuda"):
            candidates("openvino", "float32", "cuda")
    with pytest.raises(ConfigError, match="no installed engine computes in int8 on cuda"):
        candidates(None, "int8", "cuda")


def test_a_folder_of_another_device_says_so(tmp_path, monkeypatch):
    model, inputs = build("BitForImageClassification")
    headstart.optimize(model, example=inputs, engine="torch").save_pretrained(tmp_path)
    path = tmp_path / "headstart_optimized.json"
    values = json.loads(path.read_text())
    assert values["facts"]["device"] == "cpu"
    values["facts"]["device"] = "cuda:0"
    path.write_text(json.dumps(values))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="optimized for cuda:0, which is not here"):
        load(tmp_path)


@needs_onnx
def test_onnx_runtime_goes_to_cuda_where_it_can(monkeypatch):
    """No GPU is needed: what ONNX Runtime is given is compared."""
    import onnxruntime as ort

    from headstart.engine.engines.onnxruntime import OnnxRunner

    with pytest.raises(ConfigError, match="does not run on cuda.*onnxruntime-gpu"):
        candidates("onnxruntime", "float32", "cuda")
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert candidates(None, "float32", "cuda") == ["torch", "onnxruntime"]
    requested = []
    monkeypatch.setattr(
        ort, "InferenceSession", lambda graph, options, providers: requested.extend(providers)
    )
    OnnxRunner(b"", None, 1, torch.device("cuda:1"))
    assert requested == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu(precision, tmp_path):
    model, inputs = build("CvtForImageClassification")
    expected = scores(model, inputs)
    fast = headstart.optimize(model.cuda(), example=inputs, precision=precision, tolerance=0.2)
    fast.save_pretrained(tmp_path)
    for each in (fast, load(tmp_path)):
        found = each(**{name: x.cuda() for name, x in inputs.items()}).logits
        assert found.is_cuda
        assert_close(found.cpu(), expected, 0.2)
