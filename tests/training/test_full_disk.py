"""A full disk: one clear line, and what is there stays whole."""

import os
import subprocess
import sys

import pytest
from safetensors import safe_open

from headstart.cli import app as cli
from headstart.training.checkpoints import list_checkpoints, load_checkpoint

OPTIONS = (
    "--steps 12 --lr 0.05 --resize 24 --crop 20 --batch-size 8 --set checkpoint_every=3"
    " --device cpu"
)


# Files of at most so many bytes; a larger one is an error of the write, not the end of the process.
LIMITED = """
import resource, runpy, signal, sys
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("headstart", run_name="__main__")
"""


def run(photos, model, out, limit):
    """`headstart train` with files of at most `limit` bytes, as a file system that is full gives
    errors from within a write.
    """
    start = [sys.executable, "-c", LIMITED, str(limit)]
    command = [
        *start,
        "train",
        str(photos),
        "--model",
        str(model),
        "--out",
        str(out),
        *OPTIONS.split(),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    return done.returncode, done.stderr


def resume(photos, out, capsys):
    """What `headstart train --resume` says, with room on the disk.

    In this process, which has torch already.
    """
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(photos), "--out", str(out), "--resume", "--device", "cpu"])
    printed = capsys.readouterr().err
    assert end.value.code == 0, printed
    return printed


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_no_half(photos, tiny_model, tmp_path, capsys):
    """No checkpoint fits; with more room the same folder is gone on with."""
    out = tmp_path / "run"
    code, errors = run(photos, tiny_model, out, limit=24_000)
    assert code == 4 and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("headstart: ") and "cannot write" in last and str(out) in last
    assert (
        not list_checkpoints(out / "checkpoints") and load_checkpoint(out / "checkpoints") is None
    )
    assert not (out / "results.json").exists() and not list(out.rglob("*.tmp"))
    assert "no checkpoint was written yet" in resume(photos, out, capsys)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "classifier.1.weight" in file.keys()  # noqa: SIM118 - not a dict


@pytest.mark.slow
def test_a_disk_that_fills_up_at_the_end_keeps_the_result(photos, tiny_model, tmp_path, capsys):
    """The report does not fit: the model and its results are written, and the run says so.

    With room again, --resume writes the report.
    """
    out = tmp_path / "run"
    code, errors = run(photos, tiny_model, out, limit=60_000)
    assert code == 0 and "Traceback" not in errors, errors
    assert "the report could not be written" in errors and "cannot write report.html" in errors
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "classifier.1.weight" in file.keys()  # noqa: SIM118 - not a dict
    assert (out / "results.json").exists() and not (out / "report.html").exists()
    assert "is finished: its report is written now" in resume(photos, out, capsys)
    assert (out / "report.html").exists()
