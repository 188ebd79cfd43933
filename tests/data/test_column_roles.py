"""Columns that were named and that nothing would read are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from headstart.data.images import read_images
from headstart.data.masks import read_pairs
from headstart.data.options import DataOptions
from headstart.data.text_rows import read_plain, read_questions
from headstart.errors import ConfigError, DataError
from headstart.report.audit import audit
from headstart.tasks import TASKS, task_class
from photo_data import make_class_folders


@pytest.mark.parametrize("name", TASKS)
def test_a_role_that_a_task_does_not_have(name):
    with pytest.raises(ConfigError, match=f"--column foo=x: {name} has no role 'foo'; its roles: "):
        task_class(name).check_options(DataOptions(columns={"foo": "x"}))


def test_a_role_that_an_audit_does_not_have(photos):
    with pytest.raises(ConfigError, match="an audit has no role 'text'"):
        audit(photos, DataOptions(columns={"text": "x"}), None)


@pytest.mark.parametrize("role", ["label", "labels", "score"])
def test_class_folders_have_no_column_of_labels(photos, role):
    with pytest.raises(DataError, match=f"{role}=species: .* holds class folders and no columns"):
        read_images(photos, DataOptions(columns={role: "species"}))


def test_arrays_have_no_column_of_labels(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match="holds labelled arrays and no columns"):
        read_images(tmp_path / "x.npz", DataOptions(columns={"label": "species"}))


def test_a_table_beside_class_folders_may_have_columns(tmp_path):
    folder = make_class_folders(tmp_path / "val", {"bird": 1, "cat": 1})
    rows = [f"val/{name}/{name}_0.png,{name}" for name in ("bird", "cat")]
    (tmp_path / "train.csv").write_text("\n".join(["image,species", *rows]))
    options = DataOptions(columns={"label": "species"}, extra={"validation": str(folder)})
    assert set(read_images(tmp_path / "train.csv", options).splits) == {"train", "validation"}


def test_folders_of_masks_have_no_columns(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="holds images and masks and no columns"):
        read_pairs(tmp_path, DataOptions(columns={"mask": "labels"}))


def test_texts_without_columns(tmp_path):
    plain, squad = tmp_path / "a.txt", tmp_path / "a.json"
    plain.write_text("some words\n")
    squad.write_text(json.dumps({"data": []}))
    with pytest.raises(DataError, match="holds lines of text and no columns"):
        list(read_plain(plain, DataOptions(columns={"text": "review"})))
    with pytest.raises(DataError, match="holds articles of SQuAD and no columns"):
        list(read_questions(squad, DataOptions(columns={"answers": "a"})))
