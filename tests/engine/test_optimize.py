"""Optimised models give the network's outputs, whatever runs them, and survive a folder."""

import contextlib
import ctypes
import json
import platform
import subprocess
import zipfile
from shutil import which

import pytest
import torch

import headstart
from conftest import assert_close
from engine_networks import CASES, build, pixels, tokens
from headstart.engine import load, search
from headstart.engine.capture import check_dynamic, flatten
from headstart.engine.engines import installed
from headstart.errors import ConfigError, FileFormatError, HeadstartError, InputError

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
    assert fast.fell_back is False  # nothing went the slow way


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
        assert each.fell_back is False


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


@pytest.mark.parametrize("pooling", ["first", "mean", "pair"])
def test_texts_of_other_lengths_and_without_a_mask(pooling):
    model, inputs = build("YosoForSequenceClassification", classifier_pooling=pooling)
    for engine in ENGINES:
        fast = headstart.optimize(model, example=inputs, engine=engine)
        for each in (tokens(1, 5), tokens(3, 12), {"input_ids": inputs["input_ids"]}):
            assert_same(fast(**each), run(model, **each))
        assert fast.fell_back is False
        ones = torch.ones_like(inputs["input_ids"])
        assert_same(fast(**inputs, token_type_ids=0 * ones), run(model, **inputs))
        assert fast.fell_back is False


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


def planted(*_, **__):
    pytest.fail("a compiled program of the folder was loaded")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_planted_folder_runs_no_code(engine, tmp_path, monkeypatch):
    """Compiled programs in a folder are never opened, whatever its headstart_optimized.json
    says.
    """
    model, inputs = build("BitForImageClassification")
    headstart.optimize(model, example=inputs, engine=engine).save_pretrained(tmp_path)
    path, proof = tmp_path / "headstart_optimized.json", tmp_path / "proof"
    source = (
        f'#include <fstream>\n__attribute__((constructor)) void run() {{ std::ofstream("{proof}");'
        " }\n"
    )
    library = tmp_path / "planted.so"
    if which("g++"):
        (tmp_path / "planted.cpp").write_text(source)
        command = ["g++", "-shared", "-fPIC", "planted.cpp", "-o", library.name]
        subprocess.run(command, cwd=tmp_path, check=True)
        ctypes.CDLL(str(library))
        assert proof.exists()  # the library does what it is for
        proof.unlink()
    else:
        library.write_bytes(b"\x7fELF planted")
    archive = tmp_path / "engine" / "inductor.pt2"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(library, "inductor/data/aotinductor/model/planted.so")
    for name in ("openvino.blob", "inductor.so"):
        (tmp_path / "engine" / name).write_bytes(library.read_bytes())
    monkeypatch.setattr(torch._inductor, "aoti_load_package", planted)
    monkeypatch.setattr(torch.ops, "load_library", planted)
    if installed("openvino"):
        import openvino as ov

        monkeypatch.setattr(ov.Core, "import_model", planted)
        monkeypatch.setattr(ov.Core, "add_extension", planted)
    values = json.loads(path.read_text())
    made_for = {"torch": torch.__version__, "machine": platform.machine(), "cpu": "AVX512"}
    values["facts"] |= {"blob": {"version": "any"}, "made_for": made_for}
    path.write_text(json.dumps(values))
    assert_same(load(tmp_path)(**inputs), run(model, **inputs))
    path.write_text(json.dumps(values | {"engine": "inductor"}))
    with pytest.raises(FileFormatError, match="inductor in float32, which is not an engine"):
        load(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("engine", [*ENGINES, "onnxruntime"])
def test_damaged_values_are_our_errors(engine, tmp_path):
    """Every value of headstart_optimized.json of another type or size, and damaged engine files."""
    if not installed(engine):
        pytest.skip(f"needs {engine}")
    model, inputs = build("BitForImageClassification")
    headstart.optimize(model, example=inputs, engine=engine, threads=1).save_pretrained(tmp_path)
    path = tmp_path / "headstart_optimized.json"
    good = path.read_text()
    wrong = (None, -1, 10**18, float("inf"), "cuda:99999", [[]], {})
    tried = 0
    document = json.loads(good)
    document["report"]["trials"] = []
    good = json.dumps(document)
    for trail in list(trails(document)):
        for value in wrong:
            values = json.loads(good)
            place = values
            for key in trail[:-1]:
                place = place[key]
            place[trail[-1]] = value
            path.write_text(json.dumps(values))
            tried += 1
            with contextlib.suppress(HeadstartError):
                load(tmp_path)(**inputs)
    assert tried > 200
    path.write_text(good)
    for file in (tmp_path / "engine").iterdir():
        whole = file.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], b"\xff" + whole[1:], b"<net>" * 9):
            file.write_bytes(broken)
            with contextlib.suppress(HeadstartError):
                load(tmp_path)(**inputs)
        file.unlink()
        with pytest.raises(FileFormatError, match=f"has no file {file.name}"):
            load(tmp_path)
        file.write_bytes(whole)


def trails(values, trail=()):
    """Keys that lead to each value of a JSON document."""
    children = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in children:
        yield (*trail, key)
        if isinstance(value, dict | list):
            yield from trails(value, (*trail, key))


def test_a_fixed_batch_with_streams():
    """Streams then serve several callers; the batch is not taken apart."""
    if "openvino" not in ENGINES:
        pytest.skip("needs openvino")
    model, inputs = build("CvtForImageClassification")
    for options in ({}, {"streams": 2}, {"goal": "throughput"}):
        fast = headstart.optimize(
            model, example=inputs, engine="openvino", dynamic=(), threads=2, **options
        )
        assert_same(fast(**inputs), run(model, **inputs))
        assert fast.fell_back is False


def test_inputs_that_want_gradients_go_to_the_network():
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(model, example=inputs, engine=ENGINES[-1])
    slopes = []
    for each in (fast, model):
        pixels = inputs["pixel_values"].clone().requires_grad_()
        (slope,) = torch.autograd.grad(each(pixels).logits.sum(), pixels)
        slopes.append(slope)
    assert_close(slopes[0], slopes[1], 1e-5)


def test_what_is_too_far_off_falls_back_with_a_warning(caplog):
    model, inputs = build("BitForImageClassification")
    fast = headstart.optimize(
        model, example=inputs, engine="torch", precision="bfloat16", tolerance=1e-3
    )
    assert fast.report.chosen.precision == "float32" and fast.report.requested == "bfloat16"
    assert (
        "no engine is close enough in bfloat16" in caplog.text
        and "bfloat16 was requested" in str(fast.report)
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
    old = json.loads(json.dumps(report.to_dict()))  # with the keys of older reports
    old["asked"] = old.pop("requested")
    for trial in (old["chosen"], *old["trials"]):
        trial["int8_share"] = trial.pop("int8_fraction")
    assert type(report).from_dict(old) == report


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
        ({"dynamic": "width"}, "dynamic='width'; the axes of images are batch and size"),
        ({"dynamic": "batch,length"}, "dynamic='length'; the axes of images are batch and size"),
        ({"dynamic": "none,size"}, "dynamic='none'"),
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
    with pytest.raises(InputError, match=r"pixel_values has shape \(0, 3, 8, 8\); expected at"):
        headstart.optimize(model, example=torch.zeros(0, 3, 8, 8))
    with pytest.raises(ConfigError, match="dynamic='size'; the axes of texts are batch and length"):
        check_dynamic("size", {"input_ids": torch.zeros(1, 2)})
    assert check_dynamic("none", inputs) == check_dynamic((), inputs) == ()
    with pytest.raises(ConfigError, match="training mode"):
        headstart.optimize(model.train(), example=inputs)
    with pytest.raises(ConfigError, match="Linear is not a PyTorch network of headstart; load one"):
        headstart.optimize(torch.nn.Linear(2, 2), example=inputs)
