"""Held-out rows: in proportion, by group, and over the range of numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.images import read_images
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.data.options import DataOptions
from headstart.data.splits import few_shot, held_out_of, stratified_labels
from headstart.errors import DataError
from source_data import table


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=2, max_size=60),
    st.floats(0.1, 0.5),
    st.integers(0, 9),
)
def test_every_label_stays_in_training(rows, fraction, seed):
    labels = np.array([[i in row for i in range(4)] for row in rows])
    out = stratified_labels(labels, fraction, np.random.default_rng(seed))
    assert labels[~out].any(0).tolist() == labels.any(0).tolist()
    assert abs(out.sum() - fraction * len(rows)) <= 5


def test_rare_labels_are_held_out_in_proportion():
    """Two labels of 10 among 400 examples.

    A plain draw of a fifth would often hold out none or many of them.
    """
    rng = np.random.default_rng(0)
    labels = np.zeros((400, 3), dtype=bool)
    labels[:, 0] = rng.random(400) < 0.5
    labels[rng.permutation(400)[:10], 1] = True
    labels[rng.permutation(400)[:10], 2] = True
    for seed in range(5):
        out = held_out_of(labels.astype(np.float32), MULTI, 0.2, np.random.default_rng(seed))
        assert 75 <= out.sum() <= 85 and labels[out, 1].sum() == 2 and labels[out, 2].sum() == 2


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=40), st.integers(1, 5)
)
def test_shots_of_several_labels(rows, shots):
    labels = np.array([[float(i in row) for i in range(4)] for row in rows], dtype=np.float32)
    chosen = few_shot(labels, shots, np.random.default_rng(0))
    assert (labels[chosen].sum(0) >= np.minimum(shots, labels.sum(0))).all() and len(
        chosen
    ) <= 4 * shots


def test_groups_are_held_out_whole():
    """A fifth of every class, as near as whole groups allow."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    groups = labels * 1000 + rng.integers(0, 40, 600)
    for seed in range(5):
        out = held_out_of(labels, SINGLE, 0.2, np.random.default_rng(seed), groups)
        assert not set(groups[out]) & set(groups[~out])
        for label in range(3):
            assert abs(out[labels == label].mean() - 0.2) < 0.03
    several = np.eye(3, dtype=np.float32)[labels]
    out = held_out_of(several, MULTI, 0.2, rng, groups)
    assert not set(groups[out]) & set(groups[~out]) and abs(out.mean() - 0.2) < 0.03
    values = labels[:, None] + rng.random((600, 1)).astype(np.float32)
    out = held_out_of(values, REGRESSION, 0.2, rng, groups)
    assert not set(groups[out]) & set(groups[~out]) and abs(out.mean() - 0.2) < 0.05


def test_groups_that_cannot_be_held_out_stay():
    """Class 0 is one group; class 1 has two, of which the smaller one is held out."""
    labels, groups = np.array([0] * 4 + [1] * 5), np.array([7] * 4 + [8] * 3 + [9] * 2)
    out = held_out_of(labels, SINGLE, 0.2, np.random.default_rng(0), groups)
    assert out.tolist() == [False] * 7 + [True] * 2


@pytest.mark.parametrize("name", ["group", "Group", "patient"])
def test_a_column_of_groups_keeps_images_together(tmp_path, name):
    """Rows without a group are each one by itself."""
    lines = [f"{i}.png,{'cat' if i % 2 else 'dog'},p{i // 4}" for i in range(40)]
    lines += [f"{i}.png,cat," for i in range(40, 44)]
    path = table(tmp_path, f"image,label,{name}\n" + "\n".join(lines))
    columns = {"group": "patient"} if name == "patient" else {}
    data = read_images(path, DataOptions(columns=columns))
    sides = {split: set(part.groups.tolist()) for split, part in data.splits.items()}
    assert not sides["train"] & sides["validation"]
    assert len(sides["train"] | sides["validation"]) == 14 and len(data.splits["validation"]) >= 6
    assert "column group: 44 images in 14 groups, which are kept together" in data.notes
    assert any("no group divided" in note for note in data.notes)
    with pytest.raises(DataError, match="no column 'owner'"):
        read_images(path, DataOptions(columns={"group": "owner"}))


def test_groups_in_both_given_splits_are_named(tmp_path):
    rows = "a.png,cat,1,train\nb.png,dog,2,train\nc.png,cat,1,test\nd.png,dog,3,test\n"
    data = read_images(table(tmp_path, "image,label,group,split\n" + rows), DataOptions())
    assert any("1 groups are both in the training and in the evaluation" in n for n in data.notes)


def test_a_column_of_groups_may_be_the_label(tmp_path):
    path = table(tmp_path, "image,group\n1.png,a\n2.png,b\n")
    data = read_images(path, DataOptions(val_fraction=0.0, columns={"label": "group"}))
    assert data.classes == ["a", "b"] and data.splits["train"].groups is None


def test_numbers_are_held_out_over_their_range():
    values = np.arange(100, dtype=np.float32)[:, None]
    out = held_out_of(values, REGRESSION, 0.2, np.random.default_rng(0))
    assert out.sum() == 20 and all(out[i : i + 10].sum() == 2 for i in range(0, 100, 10))
