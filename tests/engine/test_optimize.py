"""Optimised models give the network's outputs, whatever runs them, and survive a folder."""

import json

import pytest
import torch

import headstart
from conftest import assert_close
from engine_networks import CASES, build, pixels, tokens
from headstart.engine import load, search
from headstart.engine.capture import flatten
from headstart.engine.engines import installed
from headstart.errors import ConfigError, FileFormatError, InputError

ENGINES = [name for name in ("torch", "openvino") if installed(name)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Timing takes no time here."""

    monkeypatch.setattr(search, "SECONDS", 0.0)


def assert_same(ours, theirs, tolerance=1e-4):
    ours, theirs = flatten(ours), flatten(theirs)
    assert list(ours) == list(theirs)
    for name in ours:
        assert_close(ours[name], theirs[name], tolerance, name)


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_every_network_on_every_engine(name, engine):
    model, inputs = build(name)
    fast = headstart.optimize(model, example=inputs, engine=engine, threads=1)
    assert fast.report.chosen.engine == engine and fast.report.chosen.deviation.largest < 1e-4
    more = {key: torch.cat([value, value[:1]]) for key, value in inputs.items()}
    for each in (inputs, more):
        expected = run(model, **each)
        found = fast(**each)
        assert type(found) is type(expected)
        assert_same(found, expected)
    assert isinstance(fast(**inputs, return_dict=False), tuple)
    assert fast._told is False  # nothing went the slow way


@pytest.mark.slow
@pytest.mark.skipif(not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("Classification")])
def test_every_family_on_onnx_runtime(name, tmp_path):
    model, inputs = build(name)
    fast = headstart.optimize(model, example=inputs, engine="onnxruntime", threads=1)
    assert (
        fast.report.chosen.engine == "onnxruntime" and fast.report.chosen.deviation.largest < 1e-4
    )
    fast.save_pretrained(tmp_path)
    more = {key: torch.cat([value, value[:1]]) for key, value in inputs.items()}
    for each in (fast, load(tmp_path)):
        assert_same(each(**more), run(model, **more))
        assert each._told is False


def test_calls_that_the_engine_cannot_serve_go_to_the_network():
    model, inputs = build("BeitForImageClassification")
    fast = headstart.optimize(model, example=inputs, engine=ENGINES[-1])
    labels = torch.tensor([0, 2])
    for call in ({"labels": labels}, {"output_hidden_states": True}, {"output_attentions": True}):
        assert_same(fast(**inputs, **call), run(model, **inputs, **call))
    assert_same(fast(**pixels(48)), run(model, **pixels(48)))
    assert_same(fast(inputs["pixel_values"]), run(model, **inputs))


def test_the_configuration_may_ask_for_hidden_states():
    model, inputs = build("CvtForImageClassification", output_hidden_states=True)
    fast = headstart.optimize(model, example=inputs, engine="torch")
    assert_same(fast(**inputs), run(model, **inputs))
    assert len(fast(**inputs).hidden_states) == 3


def test_texts_of_other_lengths_and_without_a_mask():
    model, inputs = build("YosoForSequenceClassification")
    for engine in ENGINES:
        fast = headstart.optimize(model, example=inputs, engine=engine)
        for each in (tokens(1, 5), tokens(3, 12), {"input_ids": inputs["input_ids"]}):
            assert_same(fast(**each), run(model, **each))
        assert fast._told is False
        ones = torch.ones_like(inputs["input_ids"])
        assert_same(fast(**inputs, token_type_ids=0 * ones), run(model, **inputs))
        assert fast._told is False


@pytest.mark.parametrize("engine", ENGINES)
def test_saved_and_loaded(engine, tmp_path):
    model, inputs = build("BitForImageClassification", id2label={i: f"class {i}" for i in range(5)})
    fast = headstart.optimize(model, example=inputs, engine=engine)
    fast.save_pretrained(tmp_path)
    for again in (load(tmp_path), headstart.BitForImageClassification.from_pretrained(tmp_path),
                  headstart.AutoModelForImageClassification.from_pretrained(tmp_path)):  # fmt: skip
        assert isinstance(again, headstart.engine.OptimizedModel)
        assert engine == "torch" or again._network == [None]  # the weights in PyTorch were not read
        assert again.config == model.config and again.config.id2label[3] == "class 3"
        assert_same(again(**inputs), run(model, **inputs))
        assert str(again.report) == str(fast.report)
    assert_same(
        again(**inputs, labels=torch.tensor([0, 2])),
        run(model, **inputs, labels=torch.tensor([0, 2])),
    )
    plain = headstart.BitForImageClassification.from_pretrained(tmp_path, optimized=False)
    assert type(plain) is headstart.BitForImageClassification
    assert_same(run(plain, **inputs), run(model, **inputs), 0.0)
    assert (
        type(headstart.BitForImageClassification.from_pretrained(tmp_path, num_labels=2))
        is headstart.BitForImageClassification
    )
    assert type(headstart.BitModel) is type(headstart.BitModel)
    again.save_pretrained(tmp_path / "second")
    assert_same(load(tmp_path / "second")(**inputs), run(model, **inputs))


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="has no headstart_optimized.json"):
        load(tmp_path)
    path = tmp_path / "headstart_optimized.json"
    path.write_text("{")
    with pytest.raises(FileFormatError, match="not JSON"):
        load(tmp_path)
    path.write_text('{"version": 99, "report": {}}')
    with pytest.raises(FileFormatError, match="another version"):
        load(tmp_path)
    model, inputs = build("BitForImageClassification")
    headstart.optimize(model, example=inputs, engine="torch").save_pretrained(tmp_path)
    values = json.loads(path.read_text())
    for key, value in (
        ("signature", {}),
        ("facts", {"precision": "float7"}),
        ("engine", "../evil"),
    ):
        path.write_text(json.dumps(values | {key: value}))
        with pytest.raises((FileFormatError, ConfigError)):
            load(tmp_path)


def test_what_is_too_far_off_falls_back_and_says_so(caplog):
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(
        model, example=inputs, engine="torch", precision="bfloat16", tolerance=1e-3
    )
    assert fast.report.chosen.precision == "float32" and fast.report.asked == "bfloat16"
    assert (
        "no engine is close enough in bfloat16" in caplog.text
        and "bfloat16 was asked for" in str(fast.report)
    )
    assert_same(fast(**inputs), run(model, **inputs))
    with pytest.raises(ConfigError, match="not even in float32"):
        headstart.optimize(model, example=inputs, engine="torch", tolerance=-1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16(engine):
    model, inputs = build("CvtForImageClassification")
    fast = headstart.optimize(
        model, example=inputs, engine=engine, precision="bfloat16", tolerance=0.2
    )
    assert fast.report.chosen.precision == "bfloat16"
    assert fast(**inputs).logits.dtype == torch.float32
    assert 0 < fast.report.chosen.deviation.largest < 0.2
    assert_same(fast(**inputs), run(model, **inputs), 0.2)


def test_reports_say_what_was_measured():
    model, inputs = build("BitForImageClassification")
    report = headstart.optimize(model, example=inputs, threads=1).report
    assert {trial.engine for trial in report.trials} >= set(ENGINES)
    assert (
        report.batch == 2
        and report.threads == 1
        and report.original_ms > 0
        and report.chosen.ms > 0
    )
    assert report.chosen.deviation.agreement == 1.0
    text = str(report)
    assert "before: " in text and "a second" in text and "answers the same" in text and "MB" in text
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_an_optimised_model_is_not_trained_or_moved():
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(model, example=inputs, engine="torch")
    assert fast.eval() is fast and fast.to("cpu") is fast and not list(fast.parameters())
    with pytest.raises(ConfigError, match="model.original"):
        fast.train()
    with pytest.raises(ConfigError, match="not cuda"):
        fast.to("cuda")
    with pytest.raises(InputError, match="unexpected keyword argument 'wrong'"):
        fast(wrong=1)
    assert "torch, float32" in repr(fast)


def test_wrong_arguments():
    model, inputs = build("BitForImageClassification")
    for wrong, match in (
        ({"engine": "tensorrt"}, "engine='tensorrt'"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"engine": "torch", "precision": "int8"}, "the torch engine has no int8"),
        ({"precision": "int8"}, "pass calibration="),
        ({"dynamic": "width"}, "dynamic='width'"),
        ({"threads": 0}, "threads=0"),
        ({"threads": 2, "streams": 3}, "streams=3; expected 1 to 2"),
        (
            {"engine": "torch", "threads": 2, "streams": 2},
            "no engine that could be taken has streams",
        ),
        ({"goal": "speed"}, "goal='speed'; expected latency or throughput"),
    ):
        with pytest.raises(ConfigError, match=match):
            headstart.optimize(model, example=inputs, **wrong)
    with pytest.raises(InputError, match="takes tensors named pixel_values"):
        headstart.optimize(model, example={"input_ids": torch.zeros(1, 2)})
    with pytest.raises(ConfigError, match="training mode"):
        headstart.optimize(model.train(), example=inputs)
    with pytest.raises(ConfigError, match="Linear is no PyTorch network of headstart; load one"):
        headstart.optimize(torch.nn.Linear(2, 2), example=inputs)
