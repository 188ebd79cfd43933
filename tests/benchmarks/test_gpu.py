"""benchmarks/gpu.py, small and without a GPU: what a machine with one will run for the first time.

Peers need not be installed: each is then a row that says so.
"""

import importlib.util
import json
import subprocess
import sys
import time

import pytest

from conftest import ROOT

PEERS = ("transformers", "timm", "torchvision", "triton")
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--cpu", "--seconds", "3000", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    ends = [row["section"] for row in rows if row["name"] == "section"]
    assert ends == ["kernels", "attention", "exact", "tiles", "networks", "train"]
    absent = tuple(f"ModuleNotFoundError: No module named '{peer}" for peer in PEERS)
    for row in rows:
        assert row.get("right", True), row
        assert "fault" not in row or row["fault"].startswith(absent), row
    ours = [row for row in rows if row["name"].startswith("headstart") and "ms" in row]
    cases = {row["case"] for row in ours if row["section"] == "networks"}
    assert len(cases) == 3 * 3 * 2  # networks; two batches and a step; eager and compiled
    assert rows[-2]["name"] == "headstart train" and rows[-2]["seconds"] > 0


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_peers", lambda: None)
    return module


def test_a_section_that_fails_or_hangs_is_a_row_and_the_next_goes_on(
    script, tmp_path, monkeypatch, capsys
):
    def fails(bench):
        bench.compare("case", {"base": lambda: None, "broken": lambda: 1 / 0}, "base")
        raise RuntimeError("the section is broken\nwith a second line")

    def hangs(bench):
        time.sleep(60)

    monkeypatch.setattr(script, "SECTIONS", {"kernels": fails, "tiles": hangs, "train": fails})
    out = tmp_path / "gpu.json"
    arguments = ["gpu.py", "--cpu", "--seconds", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--sections", "kernels", "tiles", "train"])
    start = time.monotonic()
    script.main()
    assert time.monotonic() - start < 30
    rows = json.loads(out.read_text())["rows"]
    faults = [row["fault"] for row in rows if "fault" in row]
    broken = ["ZeroDivisionError: division by zero", "RuntimeError: the section is broken"]
    assert faults[:2] == broken and faults[3:] == broken
    assert faults[2].startswith("OutOfTimeError: cut off after")
    assert sum("ms" in row for row in rows) == 2


def test_without_a_gpu_it_says_what_to_do(script, monkeypatch, capsys):
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--cpu" in capsys.readouterr().err
