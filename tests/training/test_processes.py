"""Two processes give the numbers of one, and end together."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

OPTIONS = "--steps 4 --lr 0.05 --resize 24 --crop 20 --micro-batch 3 --mixup 0.3 --device cpu"


ALONE = [sys.executable, "-m", "headstart", "train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def in_two(port):
    """The command in two processes."""
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, "-m"]
    return [sys.executable, "-m", *launcher, "headstart", "train"]


def completed(command):
    """What a command that succeeds writes to standard error."""
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def result_of(folder):
    """The losses of a run, and its weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch, precision, shared, near",
    [(11, "fp32", [], 1e-5), (12, "fp16", ["--fsdp"], 2e-3)],
    ids=["whole-fp32", "shared-fp16"],
)
def test_two_processes_give_the_numbers_of_one(
    photos, tiny_model, tmp_path, batch, precision, shared, near
):
    """A batch of 11 is cut into 5 and 6, mixed across the cut.

    Losses and weights agree within float error, and one process writes.
    """
    pytest.importorskip("accelerate")
    start = [str(photos), "--model", str(tiny_model), *OPTIONS.split()]
    start += ["--batch-size", str(batch), "--precision", precision, "--out"]
    for command in (
        [*ALONE, *start, str(tmp_path / "one")],
        [*in_two("29541"), *start, str(tmp_path / "two"), *shared],
    ):
        errors = completed(command)
        assert errors.count("the result is in") == 1
    losses, weights = result_of(tmp_path / "one")
    losses_of_two, weights_of_two = result_of(tmp_path / "two")
    assert losses_of_two == pytest.approx(losses, rel=near) and len(losses) == 4
    for name, tensor in weights.items():
        assert (tensor - weights_of_two[name]).abs().max() <= 10 * near, name


def children(pid: int) -> dict[str, int]:
    """Rank → process of the processes that a launcher started."""
    import psutil

    return {
        child.environ()["RANK"]: child.pid
        for child in psutil.Process(pid).children()
        if "RANK" in child.environ()
    }


@pytest.mark.slow
def test_a_shared_model_survives_the_death_of_a_process(photos, tiny_model, tmp_path):
    """FSDP: the other process ends with one message.

    Resumed, the run has the losses and weights of a single process's run.
    """
    options = (
        "--steps 24 --lr 0.02 --resize 24 --crop 20 --batch-size 12 --micro-batch 4 --device cpu"
        " --lora 2 --set ema=0.9"
    )
    options += (
        " --set clip_grad=1.0 --set checkpoint_every=2 --set eval_every=8 --set drop_path=0"
        " --optimizer adamw"
    )
    start = [str(photos), "--model", str(tiny_model), *options.split(), "--out"]
    shared = in_two("29542")

    completed([*ALONE, *start, str(tmp_path / "one")])
    out = tmp_path / "two"
    process = subprocess.Popen(
        [*shared, *start, str(out), "--fsdp"], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    while not list((out / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(children(process.pid)["1"], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("headstart: ")]
    assert ours == [
        "headstart: another process of this run has ended; go on from the last checkpoint with"
        " --resume"
    ], errors
    resumed = completed([*shared, str(photos), "--out", str(out), "--resume", "--fsdp"])
    assert "going on after step" in resumed and resumed.count("the result is in") == 1
    losses, weights = result_of(tmp_path / "one")
    losses_of_two, weights_of_two = result_of(out)
    assert losses_of_two == pytest.approx(losses, rel=1e-3) and len(losses) == 24
    for name, tensor in weights.items():
        assert (tensor - weights_of_two[name]).abs().max() <= 1e-3, name
