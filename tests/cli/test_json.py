"""`--json` of every command, exit codes by cause, and the text for agents."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import torch
import typer

import headstart
from command_line import call
from conftest import ROOT
from headstart import errors
from headstart.cli import app as cli
from headstart.cli.output import KEYS, SCHEMA


def lines_of(out):
    return [json.loads(line) for line in out.splitlines()]


def commands():
    app = cli.application()
    found = {each.callback.__name__: each.callback for each in app.registered_commands}
    groups = [(group.name, group.typer_instance) for group in app.registered_groups]
    return found | {
        f"{name} {each.callback.__name__}": each.callback
        for name, group in groups
        for each in group.registered_commands
    }


def check(command, out):
    """Lines have what the documentation promises, and nothing else."""
    lines = lines_of(out)
    keys = KEYS[command]
    for line in lines:
        assert (line.pop("schema"), line.pop("command")) == (SCHEMA, command)
        assert {key for key in keys if not key.startswith("[")} <= set(line), command
        assert set(line) <= {key.strip("[]") for key in keys}, command
    return lines


def test_every_command_takes_json():
    assert set(KEYS) <= set(commands())
    for name, function in commands().items():
        assert "as_json" in inspect.signature(function).parameters, name


@pytest.mark.parametrize(
    "command, words",
    [
        ("models", ("R50x1",)),
        ("info", ("bit-mini",)),
        ("cache info", ()),
        ("cache clear", ("--yes",)),
        ("skill", ()),
    ],
)
def test_lines_of_commands_without_data(command, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    code, out, _ = call(capsys, *command.split(), *words, "--json")
    assert code == 0 and check(command, out)


def test_lines_of_commands_on_images(photos, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    run, image = tmp_path / "run", next((photos / "val").rglob("*.png"))
    cases = {
        "audit": (photos, "--quick"),
        "train": (photos, "--model", tiny_model, "--out", run, "--tune", "head", "--crop", 20),
        "evaluate": (run, photos),
        "info": (run,),
        "predict": (run, photos / "val"),
        "explain": (run, image, "--out", tmp_path / "heat"),
        "embed": (run, photos / "val", "--out", tmp_path / "f.npz"),
        "search": (image, "--in", tmp_path / "f.npz"),
        "convert": (run, tmp_path / "w.safetensors"),
    }
    found = {}
    for command, words in cases.items():
        code, out, err = call(capsys, command, *words, "--json")
        assert code in (0, 3 if command == "audit" else 0), err
        found[command] = check(command, out)
    assert found["train"][0]["folder"] == str(run)
    assert found["train"][0]["evaluations"]["validation"]["examples"] == 12
    assert found["evaluate"][0]["examples"] == 12 and len(found["predict"]) == 12
    assert found["explain"][0]["images"][0]["image"] == str(image)
    assert found["search"][0]["name"] == str(image)
    code, out, _ = call(capsys, "search", "--duplicates", "--in", tmp_path / "f.npz",
                        "--threshold", 0.9, "--json")  # fmt: skip
    assert code == 0 and check("search", out)[0]["group"] == 1


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    "error, code, name",
    [
        (errors.ConfigError("size is 3; expected 4"), 2, "config"),
        (errors.InputError("no image"), 2, "input"),
        (errors.NotFoundError("no model"), 2, "not-found"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "path"),
        (errors.DataError("row 3"), 3, "data"),
        (errors.FileFormatError("damaged"), 3, "file-format"),
        (errors.WeightsError("missing"), 3, "weights"),
        (errors.OfflineError("not cached"), 4, "offline"),
        (errors.DownloadError("cut off"), 4, "download"),
        (errors.AuthError("token"), 4, "auth"),
        (errors.MissingExtraError("kornia", "train"), 4, "missing-extra"),
        (OSError(28, "No space left on device"), 4, "system"),
        (MemoryError("8 GB"), 4, "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "memory"),
        (errors.TrainingInterrupted("stopped"), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_exit_code_tells_the_cause(error, code, name, monkeypatch, capsys):
    monkeypatch.setattr("headstart.auto.AutoConfig.from_pretrained", failing(error))
    found, out, err = call(capsys, "info", "bit-mini", "--json")
    (line,) = lines_of(out)
    assert found == code and line["command"] == "info" and line["schema"] == SCHEMA
    assert line["error"]["code"] == name
    assert line["error"]["what"] and line["error"]["fix"]
    assert "Traceback" not in err
    if name == "config":
        assert line["error"] == {"code": "config", "what": "size is 3", "fix": "expected 4"}
    found, out, err = call(capsys, "info", "bit-mini")
    assert found == code and not out and "error" not in out


def test_a_fault_of_headstart_is_1_and_a_line():
    program = (
        "from headstart.cli import app\n"
        "from headstart.auto import AutoConfig\n"
        "AutoConfig.from_pretrained = classmethod(lambda *a: {}['x'])\n"
        "app.main()\n"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program, "info", "bit-mini", "--json"],
        capture_output=True, text=True, check=False, env=path,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr
    (line,) = lines_of(done.stdout)
    assert line["error"]["code"] == "bug" and "KeyError" in line["error"]["what"]


def test_a_wrong_command_line_is_2(capsys):
    code, out, _ = call(capsys, "predict", "--json", "--nope")
    (line,) = lines_of(out)
    assert code == 2 and line["error"]["code"] == "usage" and line["command"] == "predict"


def test_every_error_has_a_code_a_cause_and_advice():
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    found = [each for each in found if issubclass(each, errors.HeadstartError)]
    codes = {each.code for each in found}
    assert len(codes) == len(found) >= 14
    for each in found:
        assert each.exit_code in (2, 3, 4, 130), each
        error = each("what was wrong; what to do")
        assert error.fix
    assert errors.DataError("a; b; c").what == "a" and errors.DataError("a; b; c").fix == "b; c"


def test_the_text_for_agents_is_short_and_true(capsys):
    code, out, _ = call(capsys, "skill")
    assert code == 0
    # every word and every sign is a token, and a long word about one for four letters
    tokens = sum(-(-len(word) // 4) for word in re.findall(r"\w+|[^\w\s]", out))
    assert tokens < 1500
    assert out.startswith("---\nname: headstart\ndescription: ")
    for name in re.findall(r"`headstart ([a-z]+)", out):
        assert name in commands(), name
    group = typer.main.get_command(cli.application())
    every = [each for command in group.commands.values() for each in command.params]
    options = {option for each in every for option in each.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", out)) - {"--help"} <= options
    for name in re.findall(r"from headstart import (.*)", out)[0].split(", "):
        assert hasattr(headstart, name)
