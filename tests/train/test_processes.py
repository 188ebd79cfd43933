"""Two processes give the numbers of one."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

OPTIONS = "--steps 4 --lr 0.05 --resize 24 --crop 20 --batch-size 11 --micro-batch 3 --mixup 0.3 --device cpu"


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(photos, tiny_model, tmp_path):
    """The batch of 11 is cut into 5 and 6, mixed across the cut; losses and weights agree within float error, and one process writes."""
    pytest.importorskip("accelerate")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = []
    for launcher in ([], ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29541", "-m"]):
        out = tmp_path / f"run{len(launcher)}"
        command = [sys.executable, "-m", *launcher, "headstart.cli", "train", str(photos), "--model", str(tiny_model), "--out", str(out)]
        done = subprocess.run([*command, *OPTIONS.split()], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("model and report.html are in") == 1
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.append(([line["loss"] for line in lines if "loss" in line], load_file(out / "model.safetensors")))
    (losses, weights), (losses_of_two, weights_of_two) = found
    assert losses_of_two == pytest.approx(losses, rel=1e-5) and len(losses) == 4
    for name, tensor in weights.items():
        assert (tensor - weights_of_two[name]).abs().max() <= 1e-4, name
