"""`--set NAME=A,B`: one training for each value, on the same subsets, with intervals."""

import json
import statistics

import pytest

from command_line import call
from headstart.errors import ConfigError, FileFormatError
from headstart.tasks.result import Spread
from headstart.training.compare import failed_before, several
from headstart.training.loop import Loop


def test_values_are_compared_in_pairs(photos, tiny_model, tmp_path, capsys):
    out = tmp_path / "rates"
    words = ("train", photos, "--model", tiny_model, "--tune", "full", "--steps", 2)
    words += ("--shots", 2, "--draws", 2, "--crop", 20, "--resize", 20, "--out", out)
    code, text, err = call(capsys, *words, "--set", "lr=0.001,0.5", "--json")
    assert code == 0, err
    line = json.loads(text.splitlines()[-1])
    first, second = line["comparison"]
    assert (first["value"], second["value"]) == (0.001, 0.5)
    values = []
    for row in (first, second):
        folder = out / f"lr={row['value']}"
        metric = json.loads((folder / "results.json").read_text())["draws"]["metrics"]["accuracy"]
        values.append(metric["values"])
        assert row["mean"] == pytest.approx(statistics.fmean(metric["values"]))
        assert row["folder"] == str(folder)
        assert f"lr: {row['value']}" in (folder / "recipe.yaml").read_text()
    gaps = [b - a for a, b in zip(*values, strict=True)]
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(statistics.fmean(gaps))
    best = max((first, second), key=lambda row: row["mean"])
    assert line["folder"] == best["folder"]
    assert json.loads((out / "comparison.json").read_text())["values"] == [first, second]


def test_a_value_that_fails_has_a_row_and_the_comparison_goes_on(
    photos, tiny_model, tmp_path, capsys, monkeypatch
):
    """The first value diverges, the second run is cut off, and --resume trains only that one."""
    out = tmp_path / "rates"
    words = ("train", photos, "--model", tiny_model, "--tune", "full", "--steps", 4, "--json")
    words += ("--shots", 2, "--draws", 2, "--crop", 20, "--resize", 20, "--out", out)
    words += ("--optimizer", "sgd", "--schedule", "cosine")
    trained = []

    def cut(self, batch, update=Loop.update):
        if self.recipe.lr == 0.5 and not trained:
            trained.append("cut")
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", cut)
    values = ("--set", "lr=3e38,0.001,0.5")
    assert call(capsys, *words, *values)[0] == 130
    rows = json.loads((out / "comparison.json").read_text())["values"]
    assert [row["value"] for row in rows] == [3e38, 0.001]
    assert "diverged" in rows[0]["error"] and rows[0]["mean"] is None
    assert rows[1]["error"] is None and rows[1]["difference"] is None
    code, _, err = call(capsys, *words, *values)
    assert code == 2 and "holds a comparison; go on with --resume" in err
    kept = (out / "lr=0.001" / "results.json").read_bytes()
    code, text, err = call(capsys, *words, *values, "--resume")
    assert code == 0, err
    line = json.loads(text.splitlines()[-1])
    again = json.loads((out / "comparison.json").read_text())["values"]
    assert again == line["comparison"] and again[:2] == rows
    assert again[2]["mean"] is not None and again[2]["difference"] is not None
    assert (out / "lr=0.001" / "results.json").read_bytes() == kept
    code, _, err = call(capsys, *words, "--set", "weight_decay=0.1,0.2", "--resume")
    assert code == 2 and "compares values of lr, not of weight_decay" in err


def test_shots_that_take_all_examples_say_so(photos, tiny_model, tmp_path, capsys):
    words = ("train", photos, "--model", tiny_model, "--tune", "head", "--dry-run")
    code, _, err = call(capsys, *words, "--shots", 500, "--draws", 2, "--out", tmp_path / "x")
    assert code == 0 and "several draws have the same ones" in err
    _, _, err = call(capsys, *words, "--shots", 2, "--draws", 2, "--out", tmp_path / "x")
    assert "the same ones" not in err


def test_what_cannot_be_compared_is_refused(capsys, photos, tmp_path):
    assert several({"lr": "0.1", "freeze": "a,b", "steps": 3}, 1) is None
    assert several({"steps": "3,5"}, 2) == ("steps", [3, 5])
    for values, draws, text in (
        ({"lr": "0.1,0.2"}, 1, "--draws 3 --shots 10"),
        ({"lr": "0.1,0.1"}, 2, "twice"),
        ({"lr": "0.1,0.2", "mixup": "0,1"}, 2, "lr and of mixup"),
        ({"lr": "0.1,-3"}, 2, "lr=-3; it must be finite and not negative"),
        ({"lr": "0.1,0.2", "tune": "head"}, 2, "a head is fitted without lr"),
    ):
        with pytest.raises(ConfigError, match=text):
            several(values, draws)
    code, _, err = call(
        capsys, "train", photos, "--out", tmp_path / "x", "--set", "lr=1,2", "--draws", 2,
        "--shots", 2, "--dry-run",
    )  # fmt: skip
    assert code == 2 and "give one value of lr" in err
    words = ("train", photos, "--out", tmp_path / "x", "--lr", 0.1, "--set", "lr=0.2")
    code, _, err = call(capsys, *words)
    assert code == 2 and "--set lr stands beside the option of that name" in err
    assert not (tmp_path / "x").exists()


def test_intervals_of_fractions_are_fractions():
    spread = Spread([0, 1], "test", {"accuracy": [0.5, 0.9], "loss": [0.5, 0.9]})
    assert spread.interval("accuracy") == (0.0, 1.0)
    low, high = spread.interval("loss")
    assert low < 0 and high > 1


def test_an_option_that_a_task_does_not_have_is_refused(capsys, photos, tmp_path):
    words = ("train", photos, "--model", "bit-mini", "--out", tmp_path / "x", "--option", "lane=4")
    code, _, err = call(capsys, *words)
    assert code == 2 and "image-classification has no option 'lane'; its options:" in err


@pytest.mark.parametrize(
    "row", [{"error": "diverged"}, {"value": [1], "folder": "x", "error": "y"}]
)
def test_a_damaged_comparison_is_an_error(tmp_path, row):
    content = {"name": "lr", "metric": None, "values": [row]}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=r"comparison\.json.*'value'"):
        failed_before("lr", tmp_path)
