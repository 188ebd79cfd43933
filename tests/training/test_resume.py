"""Nothing is lost.

Real processes are killed or interrupted, and the resumed run is bit for bit the run that was not.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import headstart
from headstart.cli import app as cli
from headstart.errors import TrainingInterrupted
from headstart.progress import Lines, Silent

STEPS = 60
OPTIONS = (
    f"--steps {STEPS} --lr 0.05 --resize 24 --crop 20 --batch-size 12 --micro-batch 5 --mixup 0.3 "
    "--set checkpoint_every=3 --set eval_every=10 --set ema=0.9 --set drop_path=0.2 --device cpu"
).split()


def start(photos, model, out, *more):
    command = [sys.executable, "-m", "headstart", "train", str(photos), "--out", str(out), *more]
    if "--resume" not in more:
        command += ["--model", str(model), *OPTIONS]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def losses(out: Path):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def wait_for_checkpoint(out: Path, process, after: int) -> None:
    """Returns when a checkpoint of at least that step is there and the run still goes on."""
    while process.poll() is None:
        if any(
            int(path.name.removeprefix("step-")) >= after
            for path in (out / "checkpoints").glob("step-*")
        ):
            return
        time.sleep(0.002)
    pytest.fail(f"the run ended before step {after}: {process.stderr.read()}")


@pytest.fixture(scope="module")
def unbroken(photos, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    code, errors = finish(start(photos, tiny_model, out))
    assert code == 0, errors
    return out


def same_run(out: Path, other: Path) -> None:
    assert losses(out) == losses(other)
    a, b = (load_file(folder / "model.safetensors") for folder in (out, other))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    results = [json.loads((folder / "results.json").read_text()) for folder in (out, other)]
    assert results[0]["evaluations"] == results[1]["evaluations"]


@pytest.mark.slow
def test_killed_twice_at_random_moments(unbroken, photos, tiny_model, tmp_path):
    out = tmp_path / "run"
    process = start(photos, tiny_model, out)
    for least in (3, 24):
        wait_for_checkpoint(out, process, least)
        time.sleep(random.random() * 0.15)
        process.kill()
        process.communicate()
        process = start(photos, tiny_model, out, "--resume")
    code, errors = finish(process)
    assert code == 0, errors
    assert "going on after step" in errors
    same_run(out, unbroken)


@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(unbroken, photos, tiny_model, tmp_path):
    out = tmp_path / "run"
    process = start(photos, tiny_model, out)
    wait_for_checkpoint(out, process, 3)
    process.send_signal(random.choice([signal.SIGINT, signal.SIGTERM]))
    code, errors = finish(process)
    assert code == 130 and "Traceback" not in errors
    assert f"--out {out} --resume" in errors.splitlines()[-1]
    done = losses(out)[-1]["step"]
    assert f"stopped after step {done} of {STEPS}" in errors
    newest = max((out / "checkpoints").glob("step-*"))
    assert int(newest.name.removeprefix("step-")) == done

    # The newest checkpoint is damaged on the way: the one before it is taken.
    file = newest / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[: -random.randrange(1, 200)])
    code, errors = finish(start(photos, tiny_model, out, "--resume"))
    assert code == 0, errors
    assert f"passed over a damaged checkpoint: {newest.name}" in errors
    same_run(out, unbroken)
    assert not (out / "checkpoints").exists() and not (out / "cache").exists()


def test_resuming_a_finished_run_changes_nothing(unbroken, photos, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in unbroken.iterdir()}
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(photos), "--out", str(unbroken), "--resume"])
    assert end.value.code == 0 and "is finished" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in unbroken.iterdir()}


class Stop(Silent):
    """Stops the run, as Ctrl-C does, when a piece of work begins."""

    def __init__(self, label):
        self.label = label

    def start(self, label, total, done=0, unit="img"):
        if label == self.label:
            raise KeyboardInterrupt


def test_an_interrupted_head_is_fitted_again_from_its_features(
    photos, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    how = {"model": tiny_model, "tune": "head", "device": "cpu"}
    stop = Stop("fitting the head")
    with pytest.raises(TrainingInterrupted, match=r"to go on: headstart train .* --resume"):
        headstart.train(photos, out=tmp_path / "a", progress=stop, **how)
    resumed = headstart.train(photos, out=tmp_path / "a", resume=True, progress=Lines())
    whole = headstart.train(photos, out=tmp_path / "b", **how)
    errors = capsys.readouterr().err
    assert "are known from before" in errors
    assert resumed.recipe == whole.recipe
    assert resumed.trials == whole.trials and resumed.metrics == whole.metrics
