"""The two commands, on a folder as a user has it."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import headstart
from engine_networks import build
from headstart.cli import engine as cli
from headstart.cli.app import main
from headstart.engine import search
from headstart.engine.engines import installed
from headstart.errors import ConfigError, InputError
from headstart.metrics.calibration import Choice, Confidence


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search, "SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path):
    model, _ = build("BitForImageClassification")
    model.save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    headstart.BitImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        ).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def call(*arguments):
    app = typer.Typer()
    app.command()(cli.optimize)
    app.command()(cli.export)
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


def test_optimize_and_predict(folder):
    result = call(
        "optimize",
        folder / "model",
        "--out",
        folder / "fast",
        "--engine",
        "torch",
        "--calibration",
        folder / "photos",
    )
    assert (
        result.exit_code == 0
        and "of 3 answers the same" in result.output
        and "a speed-up of" in result.output
    )
    photo = folder / "photos" / "1.png"
    slow, fast = (
        headstart.pipeline("image-classification", folder / name) for name in ("model", "fast")
    )
    assert isinstance(fast.model, headstart.engine.OptimizedModel)
    for a, b in zip(slow(photo), fast(photo), strict=True):
        assert a["label"] == b["label"] and abs(a["score"] - b["score"]) < 1e-4


def test_optimize_refuses_what_it_cannot_keep(folder):
    with pytest.raises(ConfigError, match="outputs differ by .*, above the tolerance of -1.0e"):
        call(
            "optimize",
            folder / "model",
            "--out",
            folder / "other",
            "--engine",
            "torch",
            "--tolerance=-1",
        )
    assert not (folder / "other").exists()
    with pytest.raises(InputError, match="holds no images"):
        call(
            "optimize",
            folder / "model",
            "--out",
            folder / "other",
            "--calibration",
            folder / "model",
        )


@pytest.mark.parametrize("engine", [name for name in ("torch", "openvino") if installed(name)])
def test_every_command_takes_the_folder(engine, folder, capsys):
    """from_pretrained, pipeline, predict and evaluate give on the optimized folder what they give
    on the network's.
    """
    model, fast = folder / "model", folder / "fast"
    assert call("optimize", model, "--out", fast, "--engine", engine).exit_code == 0
    assert (
        type(headstart.AutoModelForImageClassification.from_pretrained(fast))
        is headstart.engine.OptimizedModel
    )
    photo = folder / "photos" / "1.png"
    a, b = (headstart.pipeline("image-classification", each)(photo) for each in (model, fast))
    assert [each["label"] for each in a] == [each["label"] for each in b]
    for i in range(10):
        label = f"LABEL_{i % 5}"
        (folder / "evaluated" / label).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "evaluated" / label / f"{i}.png")
    printed = []
    for each in (model, fast):
        for arguments in (["evaluate", each, folder / "evaluated"], ["predict", each, photo]):
            with pytest.raises(SystemExit) as stopped:
                main([*map(str, arguments), "--json"])
            assert stopped.value.code == 0
            printed.append(json.loads(capsys.readouterr().out))
    assert printed[0]["examples"] == printed[2]["examples"] == 10
    assert printed[0]["metrics"] == pytest.approx(printed[2]["metrics"], abs=1e-4)
    assert printed[1]["labels"][0]["label"] == printed[3]["labels"][0]["label"]


def test_refusal_and_heat_maps_survive(folder, capsys):
    """An optimized folder keeps confidence.json, and `explain` works on it."""
    model, fast, photo = folder / "model", folder / "fast", folder / "photos" / "1.png"
    known = {"max_error": 0.05, "threshold": 0.99}
    choice = Choice(**{field.name: known.get(field.name, 0.0) for field in fields(Choice)})
    Confidence(temperature=2.0, examples=40, choices=[choice], max_error=0.05).write(model)
    assert call("optimize", model, "--out", fast).exit_code == 0
    printed = []
    for each in (model, fast):
        for arguments in (
            ["predict", each, photo, "--refuse"],
            ["explain", each, photo, "--out", folder / f"seen-{each.name}"],
        ):
            with pytest.raises(SystemExit) as stopped:
                main([*map(str, arguments)])
            assert stopped.value.code == 0
            printed.append(capsys.readouterr().out.replace(f"seen-{each.name}", "seen"))
    assert printed[0] == printed[2] and printed[1] == printed[3]
    assert "I don't know" in printed[0]
    images = [
        np.asarray(Image.open(folder / f"seen-{each}" / "0001_1.png")) for each in ("model", "fast")
    ]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_wrong_options(folder):
    model, out = folder / "model", folder / "other"
    for options, match in (
        (["optimize", model, "--out", model], "--out is the model's own folder"),
        (["optimize", model, "--out", out, "--precision", "int8"], "pass calibration="),
        (
            ["optimize", model, "--out", out, "--goal", "speed"],
            "goal='speed'; expected latency or throughput",
        ),
        (["optimize", model, "--out", out, "--device", "gpu"], "device='gpu'"),
        (["export", model, "--out", out, "--to", "tflite"], "to='tflite'; expected one of onnx"),
        (
            ["export", model, "--out", out, "--to", "torch-export", "--tolerance", "-1"],
            "tolerance=-1.0; expected a number from 0 on",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            call(*options)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device is available here"):
            call("optimize", model, "--out", out, "--device", "cuda")
    assert sorted(each.name for each in folder.iterdir()) == ["model", "photos"]


def test_texts(tmp_path):
    """Of the requested length.

    The pipeline reads the folder with the tokenizer that was copied.
    """
    model, _ = build("YosoForSequenceClassification", vocab_size=300)
    model.save_pretrained(tmp_path / "model")
    headstart.YosoTokenizer.train(["a fine text"], vocab_size=270).save_pretrained(
        tmp_path / "model"
    )
    result = call(
        "optimize",
        tmp_path / "model",
        "--out",
        tmp_path / "fast",
        "--engine",
        "torch",
        "--length",
        "30",
        "--batch",
        "2",
    )
    assert result.exit_code == 0 and "batch 2" in result.output
    assert headstart.engine.load(tmp_path / "fast").signature.shapes == ((None, None), (None, None))
    slow, fast = (
        headstart.pipeline("text-classification", tmp_path / name)("a fine text")
        for name in ("model", "fast")
    )
    assert slow[0]["label"] == fast[0]["label"] and abs(slow[0]["score"] - fast[0]["score"]) < 1e-4
    with pytest.raises(
        InputError, match="a text of 41 tokens is too long for this network, which takes 40"
    ):
        call("optimize", tmp_path / "model", "--out", tmp_path / "other", "--length", "41")


def test_calibration_comes_in_calls_of_a_fixed_shape(folder, tmp_path):
    """3 images fill one call of 4; texts are padded to the one length."""
    options = ("--engine", "torch", "--dynamic", "none", "--calibration")
    fixed = ("--batch", "4", *options, folder / "photos")
    result = call("optimize", folder / "model", "--out", tmp_path / "images", *fixed)
    assert result.exit_code == 0 and "of 4 answers the same" in result.output
    model, _ = build("YosoForSequenceClassification", vocab_size=300)
    model.save_pretrained(tmp_path / "model")
    tokenizer = headstart.YosoTokenizer.train(["a fine text"], vocab_size=270)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("a\n\na fine text\n" + "fine " * 40)
    for dynamic in ("none", "length", "batch"):
        shape = ("--batch", "2", "--length", "20", "--engine", "torch", "--dynamic", dynamic)
        out = tmp_path / dynamic
        result = call(
            "optimize", tmp_path / "model", "--out", out, *shape,
            "--calibration", tmp_path / "texts.txt",
        )  # fmt: skip
        assert result.exit_code == 0 and "answers the same" in result.output


@pytest.mark.parametrize("name, option", [("Yoso", "--size"), ("Bit", "--length")])
def test_a_shape_that_the_inputs_do_not_have(name, option, tmp_path):
    model, _ = build("YosoForMaskedLM" if name == "Yoso" else "BitForImageClassification")
    model.save_pretrained(tmp_path)
    tokenizer = headstart.YosoTokenizer.train(["a"], 258)
    processor = headstart.BitImageProcessor() if name == "Bit" else tokenizer
    processor.save_pretrained(tmp_path)
    for command in ("optimize", "export"):
        with pytest.raises(ConfigError, match=rf"{option[2:]}=30: the model takes .* leave it out"):
            call(command, tmp_path, "--out", tmp_path / "x", option, "30")


@pytest.mark.skipif(not installed("openvino"), reason="needs openvino")
def test_export(folder):
    result = call(
        "export", folder / "model", "--out", folder / "model.xml", "--to", "openvino", "--normalize"
    )
    assert (
        result.exit_code == 0
        and "largest deviation" in result.output
        and (folder / "model.xml").is_file()
    )
