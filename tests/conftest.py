"""What every test may use.

Where the reference numbers and the data sets are, and how they are read.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest_plugins = ["chromium", "photo_data", "scenes"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HEADSTART_SHARED", ROOT.parent / "shared"))


def _needed(path: Path) -> Path:
    """A path of the reference data. Absent data skips a test at home, but fails it in CI."""
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"reference data is missing in CI: {path.name}")
        pytest.skip(
            f"reference data is not here: {path.name}; set HEADSTART_SHARED to the folder that"
            " holds golden/ and data/"
        )
    return path


def golden_dir(*parts: str) -> Path:
    """A folder of reference numbers.

    `tests/golden` holds a choice, `HEADSTART_SHARED/golden` all.
    """
    own, full = ROOT / "tests" / "golden" / Path(*parts), SHARED / "golden" / Path(*parts)
    # Our choice holds whole cases; a folder above them is complete only in the full set.
    return (
        own
        if own.exists() and (own.is_file() or (own / "meta.json").exists() or not full.exists())
        else _needed(full)
    )


def data_dir(*parts: str) -> Path:
    """A file or folder of the real data sets."""
    return _needed(SHARED / "data" / Path(*parts))


def golden_cases(*parts: str) -> list[str]:
    """Names of the case folders below a folder of reference numbers (empty where the data is
    absent).
    """
    names: set[str] = set()
    for root in (ROOT / "tests" / "golden", SHARED / "golden"):
        folder = root / Path(*parts)
        if folder.is_dir():
            names.update(p.name for p in folder.iterdir() if p.is_dir())
    return sorted(names)


def read_json(path: Path) -> dict:
    """A JSON file as a dict."""
    return json.loads(path.read_text(encoding="utf-8"))


def assert_close(ours: object, theirs: object, tolerance: float = 1e-5, what: str = "") -> None:
    """Fails unless max |a - b| <= tolerance * max(1, max |b|), with equal shapes."""
    a, b = (
        np.asarray(x.detach().cpu().float() if hasattr(x, "detach") else x, dtype=np.float64)
        for x in (ours, theirs)
    )
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    if a.size:
        assert np.isfinite(a).all(), f"{what}: not finite"
        limit = tolerance * max(1.0, float(np.abs(b).max()))
        worst = float(np.abs(a - b).max())
        assert worst <= limit, f"{what}: differs by {worst:.3g}, allowed {limit:.3g}"
