"""Threads are chosen from the limit and the load, before PyTorch loads."""

import os
import subprocess
import sys

import pytest

from headstart import threads


@pytest.mark.parametrize(
    "text, expected",
    [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", None), ("", None)],
)
def test_the_limit_of_a_control_group(text, expected, tmp_path):
    file, older = tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"
    file.write_text(text)
    assert threads.quota(file, older) == expected
    file.unlink()
    assert threads.quota(file, older) is None
    older.write_text("300000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert threads.quota(file, older) == 3.0
    older.write_text("-1")
    assert threads.quota(file, older) is None


@pytest.mark.parametrize(
    "limit, load, expected", [(8, 0, 8), (8, 3, 5), (8, 20, 1), (2, 5, 2), (2, 7, 1)]
)
def test_threads_are_what_limit_and_load_leave(limit, load, expected, monkeypatch):
    monkeypatch.setattr(threads, "allowed", lambda: limit)
    monkeypatch.setattr(threads, "busy", lambda: load)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert threads.choose() == expected


@pytest.mark.slow
def test_the_command_line_chooses_before_pytorch_loads():
    """PyTorch has as many threads as were chosen, and what the environment says wins."""
    code = """
import os
from headstart import threads
threads.choose = lambda: 1
from headstart.cli.app import main
try:
    main(["--version"])
except SystemExit:
    pass
import torch
spin = os.environ.get("GOMP_SPINCOUNT")
print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"], spin)
"""
    plain = {key: value for key, value in os.environ.items() if "OMP_" not in key}
    for extra, expected in (
        ({}, "1 PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "1 ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "1 PASSIVE 7"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=plain | extra,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == expected
