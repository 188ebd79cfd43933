"""`headstart.plan` and `headstart plan` on small runs."""

import json
import shutil

import pytest

import headstart
from command_line import call
from headstart.errors import ConfigError, DataError
from headstart.training import plan as module
from photo_data import make_class_folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tiny_model, tmp_path):
    data = make_class_folders(tmp_path / "data", {"bird": 6, "cat": 6})
    return headstart.train(
        data, model=tiny_model, out=tmp_path / "run", tune="head", crop=20, device="cpu"
    ).folder


def test_images_of_a_group_without_labels_are_planned_first(run, tmp_path):
    """Dogs are not a class yet, so that the run has no label near them."""
    new = make_class_folders(tmp_path / "new", {"bird": 3, "dog": 6}, first_seed=300)
    shutil.copy(tmp_path / "data" / "cat" / "cat_0.png", new / "known.png")
    shutil.copy(new / "dog" / "dog_0.png", new / "again.png")
    (new / "broken.png").write_text("no image")
    found = headstart.plan(run, new, number=1, device="cpu")
    assert [each.reason for each in found] == ["typical"]
    assert "dog" in found[0].image.name or found[0].image.name == "again.png"
    every = headstart.plan(run, [new / "bird", new / "dog"], number=50, device="cpu")
    assert len({each.image for each in every}) == 9  # no known ones


def test_with_many_labels_uncertain_images_are_planned(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEW", 2)
    new = make_class_folders(tmp_path / "new", {"bird": 3, "dog": 3}, first_seed=300)
    found = headstart.plan(run, new, number=4, device="cpu")
    assert [each.reason for each in found] == ["uncertain"] * 4
    assert found == headstart.plan(run, new, number=4, device="cpu")


def test_the_command_prints_writes_and_copies(run, tmp_path, capsys):
    new = make_class_folders(tmp_path / "new", {"dog": 4}, first_seed=300)
    listed, copied = tmp_path / "list.txt", tmp_path / "copied"
    words = ("plan", run, new, "--number", "3", "--device", "cpu")
    code, out, err = call(capsys, *words, "--out", listed, "--copy", copied)
    assert code == 0 and "3 typical images to label" in err
    assert out == listed.read_text() and len(out.splitlines()) == 3
    names = sorted(file.name for file in copied.iterdir())
    assert names == [f"{i + 1}-{line.split('/')[-1]}" for i, line in enumerate(out.splitlines())]
    code, _, err = call(capsys, *words, "--copy", copied)
    assert code == 2 and "not an empty folder" in err
    code, out, _ = call(capsys, *words, "--json")
    assert code == 0 and len(json.loads(out)["images"]) == 3


def test_what_cannot_be_planned_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="knows every one"):
        headstart.plan(run, tmp_path / "data", device="cpu")
    with pytest.raises(ConfigError, match="number=0"):
        headstart.plan(run, tmp_path / "data", number=0)
