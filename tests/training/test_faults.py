"""Faults of machine and disk: the first ten of the harness; faults.py runs as many as one likes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_fault_changes_the_result():
    """Two of every kind, each at another operation on the run's files."""
    command = [sys.executable, str(Path(__file__).with_name("faults.py")), "--trials", "10"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert all(line.split()[1:] == ["2", "0"] for line in done.stdout.splitlines()[1:])
