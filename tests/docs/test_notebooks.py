"""The notebooks run, each in a process and an empty folder of its own, and print what they hold."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NEEDED = {"flax-training": "flax", "keras-transfer": "tensorflow"}
QUIET = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling takes most of the time
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    pytest.importorskip(NEEDED.get(path.stem, "torch"))
    command = [sys.executable, ROOT / "docs" / "notebooks.py", "--check", path]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_notebooks_hold_their_outputs_and_are_in_the_navigation():
    assert {"own-photos", "custom-loop", "segmentation", "masked-images", "text-tasks"} <= {
        path.stem for path in NOTEBOOKS
    }
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
        assert any(cell.get("outputs") for cell in cells), f"{path.name} has no outputs"
        assert f"notebooks/{path.name}" in listed
