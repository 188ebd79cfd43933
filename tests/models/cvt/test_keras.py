"""Runs `keras_suite.py` and `keras_training_suite.py` on each backend of Keras.

One process a backend, one test for each of its checks.
"""

import functools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from conftest import ROOT

pytest.importorskip("keras")
SUITES = sorted(Path(__file__).parent.glob("keras_*suite.py"))
CHECKS = [
    name
    for suite in SUITES
    for name in re.findall(r"^def (test_\w+)", suite.read_text(), re.MULTILINE)
]


@functools.cache
def report(backend: str) -> dict[str, list[str]]:
    """Check → what went wrong in each of its cases ("" where nothing did), from one run of the
    suites.
    """
    pytest.importorskip(backend)
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"headstart-keras-{backend}-{os.getpid()}.xml"
    quiet = {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    quiet |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling takes most of the time
    options = ["-q", "--tb=short", f"--junitxml={file}"]
    command = [sys.executable, "-m", "pytest", *map(str, SUITES), *options]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, timeout=1800
    )
    if not file.exists():
        pytest.fail(
            f"the suite did not run on {backend}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    results: dict[str, list[str]] = {}
    for case in ET.parse(file).getroot().iter("testcase"):
        wrong = [
            each.text or each.get("message", "")
            for kind in ("failure", "error")
            for each in case.iter(kind)
        ]
        name = case.get("name", "")
        results.setdefault(name.partition("[")[0], []).append(
            f"{name}:\n{wrong[0]}" if wrong else ""
        )
    file.unlink()
    return results


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_keras(backend: str, check: str) -> None:
    cases = report(backend).get(check)
    assert cases, f"{check} did not run on {backend}"
    assert not any(cases), "\n\n".join(filter(None, cases))
