"""transformers' own tests of the four families, run on our classes.

Its packages hold no tests: HEADSTART_TRANSFORMERS_TESTS names a checkout of the release that is
installed (`git clone --depth 1 --branch v4.57.6 https://github.com/huggingface/transformers`).
Tests that fail are those of the table in docs/from-transformers.md, and no others.
"""

import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("parameterized")

from conftest import ROOT  # noqa: E402

CHECKOUT = os.environ.get("HEADSTART_TRANSFORMERS_TESTS", "")
FAMILIES = ("bit", "cvt", "beit", "yoso")
PAGE = (ROOT / "docs" / "from-transformers.md").read_text(encoding="utf-8")
# Rows of the table whose first column is a test, or a pattern of several.
ROWS = re.findall(r"^\| `(test_[^`]+)` \| ([^|]+) \|$", PAGE, re.M)


def test_the_table_gives_reasons():
    assert len(ROWS) > 5
    assert all(len(reason.split()) > 3 for _, reason in ROWS)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="HEADSTART_TRANSFORMERS_TESTS names no checkout")
@pytest.mark.skipif(
    not transformers.__version__.startswith("4.57"), reason="the table is of transformers 4.57"
)
def test_only_the_listed_tests_fail(tmp_path):
    results = tmp_path / "results.json"
    paths = [str(ROOT / "src"), str(Path(__file__).parent)]
    environment = os.environ | {
        "HEADSTART_SUITE_RESULTS": str(results),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # sums in one order, whatever the machine
    }
    folders = [f"tests/models/{family}" for family in FAMILIES]
    options = ["-p", "transformers_shim", "-p", "no:cacheprovider", "-q", "--tb=no"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *folders],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert results.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    outcomes = json.loads(results.read_text())
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert sum(outcome == "passed" for outcome in outcomes.values()) > 150
    listed = {
        name
        for name in failed
        if any(fnmatch.fnmatch(name.split("::")[-1], pattern) for pattern, _ in ROWS)
    }
    assert sorted(failed - listed) == []
    unused = [
        pattern
        for pattern, _ in ROWS
        if not any(fnmatch.fnmatch(name.split("::")[-1], pattern) for name in failed)
    ]
    assert unused == [], "these rows of the table are mended: take them out"
