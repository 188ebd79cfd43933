"""A short run of the fuzzer over every format, and every file that once ended otherwise than it
should: each loads, or ends in one clear error of headstart's.
"""

import os
from pathlib import Path

import pytest

from conftest import SHARED
from fuzz.formats import FORMATS, fill
from fuzz.run import fuzz
from fuzz.seeds import make_seeds
from fuzz.worker import Watch, outcome

CORPUS = Path(__file__).with_name("corpus")
CASES = SHARED / "cases" / "files"
# Folders of the collected cases whose format has another name here, and files that lie elsewhere.
NAMES = {"config": "config_bit", "pth": "pth_zip"}
NEEDED = {"config": ("model_type",)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_seeds(tmp_path_factory.mktemp("fuzz") / "base")


def format_of(path: Path) -> str:
    """The format that a collected file is of."""
    name = path.parent.name
    if name == "handmade":
        endings = {
            ".npz": "npz",
            ".pth": "pth_zip",
            ".msgpack": "msgpack",
            ".h5": "h5",
            ".npy": "npy",
        }
        endings |= {".safetensors": "safetensors", ".png": "png", ".yaml": "recipe", ".tar": "tar"}
        return endings.get(path.suffix, "config_info" if path.suffix == ".json" else "csv")
    if name == "config":
        text = path.read_bytes()
        kinds = (kind for kind in ("beit", "cvt", "yoso") if b'"' + kind.encode() + b'"' in text)
        return f"config_{next(kinds, 'bit')}"
    if name == "resume_state":
        return "ckpt_state"
    if name == "tok_config" and "special" in path.name:
        return "tok_special"
    return name


# Compiled networks: folders have held none since one ran code (tests/engine/test_optimize.py).
GONE = ("opt_blob", "opt_pt2")
FOUND = sorted(
    path for root in (CORPUS, CASES) for path in root.glob("*/*") if path.parent.name not in GONE
)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed(path, base, tmp_path, monkeypatch):
    name = format_of(path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    form = FORMATS[name]
    folder = fill(tmp_path, base, form, path.read_bytes())
    if path.suffix in (".tsv", ".json", ".csv") and form.file != path.name and not form.beside:
        (folder / form.file).rename(folder / f"t{path.suffix}") if name.endswith("sv") else None
    found = outcome(form, folder, Watch())
    assert found["kind"] in ("loaded", "clean"), found


def test_a_short_run_finds_nothing(base):
    table = fuzz(float(os.environ.get("FUZZ_MINUTES", "1")), list(FORMATS), 0, 20, 2, base)
    print(table)
    assert table.wrong == 0, str(table)
