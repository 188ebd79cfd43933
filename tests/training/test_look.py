"""Runs that open a part of their images before training starts, and the others when needed."""

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import call
from headstart import train
from headstart.data.options import LOOK, MANY, DataOptions
from headstart.errors import ConfigError, DataError
from headstart.progress import Silent
from headstart.tasks.image_classification import ImageClassification
from photo_data import make_class_folders

FULL = {
    "tune": "full",
    "steps": 4,
    "batch_size": 8,
    "crop": 20,
    "resize": 24,
    "mixup": 0,
    "checkpoint_every": 1,
    "device": "cpu",
}


class Lines(Silent):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def report(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Class folders of 24 training and 8 validation images."""
    make_class_folders(tmp_path / "photos" / "train", {"bird": 12, "cat": 12})
    make_class_folders(tmp_path / "photos" / "val", {"bird": 4, "cat": 4}, first_seed=50)
    return tmp_path / "photos"


def opened(task) -> dict[str, int]:
    return {split: count - len(task.unopened(split)) for split, count in task.splits.items()}


def task_of(folder, **extra) -> ImageClassification:
    return ImageClassification.read(folder, DataOptions(extra=extra))


def truncate(file: Path) -> None:
    """Leaves half of a file: it has a header, and cannot be decoded."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_few_images_are_all_opened_and_many_are_sampled(photos):
    assert sum(opened(task_of(photos, look=4)).values()) == 32  # at most MANY times as many
    task = task_of(photos, look=3)
    assert MANY * 3 < 32 and opened(task) == {"train": 2, "validation": 1}
    assert "3 of 32 images were opened" in " ".join(task.found())
    again = task_of(photos, look=3)
    assert [again.unopened(s).tolist() for s in again.splits] == [
        task.unopened(s).tolist() for s in task.splits
    ]
    assert task.looks_at_a_part and again.fingerprint == task.fingerprint


def test_a_task_opens_what_its_hashes_are_asked_of(photos):
    task, whole = task_of(photos, look=3), task_of(photos)
    known = whole.digests("train")
    assert task.digests_at("train", [5, 7]) == [known[5], known[7]]
    assert 2 <= opened(task)["train"] <= 4
    assert list(task.digests("train")) == list(known) and opened(task)["train"] == 24
    assert task.feature_digests() == whole.feature_digests() and not task.looks_at_a_part


def test_where_no_opened_image_can_be_read_all_are_opened(photos):
    task = task_of(photos, look=1)
    first = next(i for i in range(24) if i not in task.unopened("train"))
    Path(task.names("train")[first]).write_bytes(b"words")
    options = DataOptions(extra={"look": 1}, skip_bad=True)
    task = ImageClassification.read(photos, options)
    assert len(task.bad) == 1 and opened(task)["train"] == 1
    assert task.facts().width == task_of(photos).facts().width
    assert opened(task)["train"] == 24


@pytest.mark.parametrize("look", [0, -3, True, "many", 1.5])
def test_a_look_that_is_not_a_number_of_images_is_refused(photos, look):
    with pytest.raises(ConfigError, match=r"--option look=.*number of images above 0"):
        task_of(photos, look=look)


def test_a_stream_has_its_own_look(photos, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="leave look out"):
        train(
            photos / "*.tar",
            model=tiny_model,
            out=tmp_path / "r",
            stream=True,
            task_options={"look": 5},
        )


def test_weights_do_not_depend_on_the_look(photos, tiny_model, tmp_path):
    for name, options in (("part", {"look": 2}), ("whole", {})):
        train(photos, model=tiny_model, out=tmp_path / name, task_options=options, **FULL)
    part, whole = (tmp_path / name for name in ("part", "whole"))
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    results = [json.loads((each / "results.json").read_text()) for each in (part, whole)]
    assert results[0]["evaluations"] == results[1]["evaluations"]
    # the hashes of all examples are known to one of them only
    assert (whole / "examples.npz").exists() and not (part / "examples.npz").exists()
    page = (part / "report.html").read_text()
    assert "3 of 32 images were opened" in page and "Among 3 of 32 images" in page
    # the usual bound is far above so few images
    assert json.loads((whole / "run.json").read_text())["options"]["extra"]["look"] == LOOK


def test_an_unreadable_image_stops_the_run_and_is_replaced_after_that(photos, tiny_model, tmp_path):
    bad = photos / "train" / "cat" / "cat_3.png"
    truncate(bad)
    out, words = tmp_path / "run", {"task_options": {"look": 1}}
    with pytest.raises(DataError, match=r"cat_3\.png: .*truncated.*--resume --skip-bad"):
        train(photos, model=tiny_model, out=out, **words, **FULL | {"steps": 12, "batch_size": 4})
    assert list((out / "checkpoints").iterdir())
    shown = Lines()
    train(photos, out=out, resume=True, skip_bad=True, device="cpu", progress=shown)
    assert sum("cat_3.png" in line and "replaced" in line for line in shown.lines) == 1
    assert any("going on after step" in line for line in shown.lines)
    notes = json.loads((out / "results.json").read_text())["notes"]
    assert any("1 unreadable image replaced by other training images" in note for note in notes)


def test_an_unreadable_image_among_the_validation_data(photos, tiny_model, tmp_path):
    truncate(photos / "val" / "cat" / "cat_2.png")
    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"1 of 8 images .*--resume --skip-bad\):\n.*cat_2\.png"):
        train(photos, model=tiny_model, out=out, task_options={"look": 1}, **FULL)
    result = train(photos, out=out, resume=True, skip_bad=True, device="cpu")
    assert result.evaluation is not None and result.evaluation.examples == 7
    assert result.metrics


def test_a_fitted_head_opens_every_image(photos, tiny_model, tmp_path, capsys):
    words = ("train", photos, "--model", tiny_model, "--out", tmp_path / "r", "--tune", "head")
    code, _, err = call(capsys, *words, "--option", "look=2", "--device", "cpu")
    assert code == 0, err
    assert "3 of 32 images were opened" in err
    with np.load(tmp_path / "r" / "examples.npz") as file:
        assert len(file["train"]) == 24 and len(file["validation"]) == 8
        assert all(file[split].all() for split in file.files)
