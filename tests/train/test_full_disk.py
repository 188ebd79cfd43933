"""A full disk and a folder that cannot be written: one clear line, and what is there stays whole."""

import os
import subprocess
import sys

import pytest
from safetensors import safe_open

from headstart.train.checkpoints import list_checkpoints, load_checkpoint

OPTIONS = "--steps 12 --lr 0.05 --resize 24 --crop 20 --batch-size 8 --set checkpoint_every=3 --device cpu"


# Files of at most so many bytes; a larger one is an error of the write, not the end of the process.
LIMITED = """
import resource, runpy, signal, sys
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("headstart", run_name="__main__")
"""


def run(photos, model, out, *more, limit=None):
    """`headstart train` with files of at most `limit` bytes, as a file system that is full gives errors from within a write."""
    start = [sys.executable, "-m", "headstart"] if limit is None else [sys.executable, "-c", LIMITED, str(limit)]
    command = [*start, "train", str(photos), "--model", str(model), "--out", str(out), *OPTIONS.split(), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=90)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_no_half(photos, tiny_model, tmp_path):
    """No checkpoint fits; with more room the same folder is gone on with."""
    out = tmp_path / "run"
    code, errors = run(photos, tiny_model, out, limit=24_000)
    assert code == 2 and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("headstart: ") and "cannot write" in last and str(out) in last
    assert not list_checkpoints(out / "checkpoints") and load_checkpoint(out / "checkpoints") is None
    assert not (out / "results.json").exists() and not list(out.rglob("*.tmp"))
    command = [sys.executable, "-m", "headstart", "train", str(photos), "--out", str(out), "--resume", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "no checkpoint was written yet" in done.stderr, done.stderr
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "classifier.1.weight" in file.keys()  # noqa: SIM118 - not a dict


@pytest.mark.slow
def test_a_disk_that_fills_up_at_the_end_keeps_the_checkpoint(photos, tiny_model, tmp_path):
    """The report does not fit: the weights and the last checkpoint are whole, and --resume writes the rest without training again."""
    out = tmp_path / "run"
    code, errors = run(photos, tiny_model, out, limit=60_000)
    assert code == 2 and "Traceback" not in errors and "cannot write report.html" in errors.splitlines()[-1], errors
    assert load_checkpoint(out / "checkpoints").step == 12 and not (out / "results.json").exists()
    command = [sys.executable, "-m", "headstart", "train", str(photos), "--out", str(out), "--resume", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "going on after step 12 of 12" in done.stderr and (out / "results.json").exists(), done.stderr


@pytest.mark.slow
def test_an_output_that_cannot_be_written(photos, tiny_model, tmp_path):
    """A path below a file, and a file system that takes no files from anybody."""
    (tmp_path / "file").write_text("x")
    code, errors = run(photos, tiny_model, tmp_path / "file" / "run")
    assert code == 2 and "Traceback" not in errors and str(tmp_path / "file") in errors.splitlines()[-1]
    code, errors = run(photos, tiny_model, "/proc/headstart-run")
    assert code == 2 and "Traceback" not in errors and "/proc/headstart-run" in errors.splitlines()[-1], errors
