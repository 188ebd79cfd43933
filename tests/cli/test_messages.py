"""What commands say, and their exit codes, where a call or a file is wrong."""

import subprocess
import sys

import pytest

from command_line import call
from headstart.data.images import read_images
from headstart.data.options import DataOptions
from headstart.data.sources.raw import numbered
from photo_data import photos, tiny_model  # noqa: F401 - fixtures


@pytest.fixture
def vectors(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    """Vectors of two images and of one that is damaged."""
    first, second, *_ = sorted((photos / "val").rglob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(first.read_bytes()[:100])
    out = tmp_path / "vectors.parquet"
    assert call(capsys, "embed", tiny_model, first, second, bad, "--out", out)[0] == 3
    return out


def test_search_tells_a_wrong_call_from_damaged_data(vectors, tmp_path, capsys):
    image, table = tmp_path / "bad.png", tmp_path / "m.csv"
    table.write_text("path,features\n")
    for query, source, code, text in (
        (image, vectors, 3, "bad.png: "),
        ("2", vectors, 3, "row 2 of"),
        ("3", vectors, 2, "there is no row 3"),
        (tmp_path / "none.png", vectors, 2, "no such file"),
        (image, table, 2, "m.csv is not a file of vectors; expected what `headstart embed` wrote"),
        (image, tmp_path, 2, "is a folder; expected what `headstart embed` wrote"),
    ):
        found, _, err = call(capsys, "search", query, "--in", source)
        assert (found, text in err) == (code, True), (query, source, err)


def test_check_says_what_it_takes(tmp_path, capsys):
    for file, text in (
        (tmp_path / "none.onnx", "there is no file"),
        (tmp_path, "is a folder; expected a file that `headstart export --full` wrote"),
    ):
        code, out, err = call(capsys, "check", file, "--json")
        assert code == 2 and text in err and "export --full" in out, err


def test_models_names_the_nearest(capsys):
    code, _, err = call(capsys, "models", "bitt")
    assert code == 2 and "no published model with 'bitt' in its name; the nearest are bit" in err
    code, _, err = call(capsys, "models", "r50x1", "--family", "beit", "--max-size", 3)
    assert code == 2 and "'r50x1' in its name and of --family beit and of at most 3 MB" in err


def test_verify_offers_no_other_name_for_a_right_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code, out, _ = call(capsys, "verify", "google/bit-50")
    assert code == 3 and "is not in the cache" in out and "mean" not in out


def test_texts_for_a_student_of_images(tiny_model, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "t.txt"
    file.write_text("We went.\n")
    words = ("distill", tiny_model, file, "--student", tiny_model, "--out", tmp_path / "d")
    code, _, err = call(capsys, *words)
    assert code == 2 and "t.txt holds texts" in err and "give a YOSO as --student" in err


@pytest.mark.parametrize("empty", ["", None, float("nan")])
def test_empty_groups_are_none(empty, photos, tmp_path):  # noqa: F811
    """A column without values keeps nothing together, as if it were not there."""
    import pyarrow
    import pyarrow.parquet

    assert len(set(numbered([empty] * 5).tolist())) == 5
    files = sorted((photos / "train").rglob("*.png"))
    cells = {"image": [str(each) for each in files], "label": [f.parent.name for f in files]}
    plain, grouped = tmp_path / "plain.parquet", tmp_path / "grouped.parquet"
    pyarrow.parquet.write_table(pyarrow.table(cells), plain)
    cells["group"] = pyarrow.array([empty] * len(files))
    pyarrow.parquet.write_table(pyarrow.table(cells), grouped)
    first, second = (read_images(each, DataOptions()) for each in (plain, grouped))
    assert {k: len(v) for k, v in first.splits.items()} == {
        k: len(v) for k, v in second.splits.items()
    }
    assert "the column group has no values: no examples are kept together" in second.notes


def test_the_home_of_matplotlib_is_not_our_news():
    """Matplotlib reports a folder that cannot be written on standard error."""
    code = (
        "from headstart.cli.terminal import plain_warnings\n"
        "with plain_warnings():\n"
        "    from headstart.report.page import new_figure\n"
        "    new_figure()\n"
    )
    environment = {"HOME": "/dev/null", "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "matplotlib" not in done.stderr.lower(), done.stderr
