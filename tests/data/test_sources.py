"""WebDataset tars, Hub data sets and their local copies, and tables whose labels are several
classes or numbers.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.images import read_images
from headstart.data.labels import MULTI, REGRESSION, SINGLE, kind_named, kind_of
from headstart.data.options import DataOptions
from headstart.data.sources import hub as hub_data
from headstart.data.sources.tars import expand
from headstart.data.splits import few_shot, held_out_of, stratified_labels
from headstart.errors import ConfigError, DataError
from source_data import WHOLE, png, truth, write_tar


def shard(first, count=4, labels=("bird", "cat")):
    return [
        member
        for i in range(first, first + count)
        for member in (
            (f"{i:06d}.png", png(labels[i % 2], i)),
            (f"{i:06d}.cls", str(i % 2)),
            (f"{i:06d}.other", "x"),
        )
    ]


# WebDataset ---------------------------------------------------------------------------------------


def test_shards_of_a_web_dataset(tmp_path):
    """One tar, a folder of shards, a list in braces, and folders of shards by split read the same
    samples.
    """
    for n in range(3):
        write_tar(tmp_path / "all" / f"{n:06d}.tar", shard(4 * n))
    expected = [(str(i % 2), png(("bird", "cat")[i % 2], i)) for i in range(12)]
    assert truth(read_images(tmp_path / "all" / "000000.tar", WHOLE)) == expected[:4]
    assert truth(read_images(tmp_path / "all", WHOLE)) == expected
    assert truth(read_images(tmp_path / "all" / "{000000..000001}.tar", WHOLE)) == expected[:8]
    (tmp_path / "all" / "classes.json").write_text('["bird", "cat"]')
    assert read_images(tmp_path / "all", WHOLE).classes == ["bird", "cat"]

    for name in ("train-000000.tar", "train-000001.tar", "val-000000.tar"):
        write_tar(
            tmp_path / "named" / name, shard(4 * ("1.tar" in name) + 8 * name.startswith("val"))
        )
    found = read_images(tmp_path / "named", WHOLE)
    assert truth(found) == expected[:8] and truth(found, "validation") == expected[8:]
    for name in ("train/0.tar", "train/1.tar", "val/0.tar"):
        write_tar(
            tmp_path / "folders" / name, shard(4 * ("1.tar" in name) + 8 * name.startswith("val"))
        )
    found = read_images(tmp_path / "folders", WHOLE)
    assert truth(found) == expected[:8] and truth(found, "validation") == expected[8:]


def test_sidecars(tmp_path):
    members = [
        ("a/1.png", png("bird")), ("a/1.json", '{"tags": ["sea", "sun"], "split": "val"}'),
        ("a/2.png", png("cat")), ("a/2.json", '{"tags": ["sun"]}'), ("a/3.json", '{"tags": []}'),
    ]  # fmt: skip
    data = read_images(write_tar(tmp_path / "j.tar", members), WHOLE)
    assert (
        data.kind == MULTI
        and data.classes == ["sea", "sun"]
        and data.splits["train"].labels.tolist() == [[1, 1], [0, 1]]
    )
    assert any("1 samples" in note for note in data.notes) and any(
        "tags" in note and "problem-type" in note for note in data.notes
    )
    members = [("0.png", png("bird")), ("0.txt", "bird"), ("1.png", png("bird")), ("1.txt", "cat")]
    assert read_images(write_tar(tmp_path / "t.tar", members), WHOLE).classes == ["bird", "cat"]
    members = [
        ("1.png", png("bird")),
        ("1.json", '{"age": 1.5}'),
        ("2.png", png("bird")),
        ("2.json", '{"age": 3}'),
    ]
    data = read_images(write_tar(tmp_path / "r.tar", members), WHOLE)
    assert (
        data.kind == REGRESSION
        and data.classes == ["age"]
        and data.splits["train"].labels.tolist() == [[1.5], [3.0]]
    )


@pytest.mark.parametrize(
    "members, message",
    [
        ([("../1.png", b"x"), ("../1.cls", "0")], r"'../1.cls' leads outside"),
        ([("/etc/1.png", b"x")], "leads outside"),
        ([("a/../../b.png", b"x")], "leads outside"),
        ([("1.png", b"x"), ("1.jpg", b"x"), ("1.cls", "0")], "sample 1 has members cls, jpg, png"),
        ([("1.png", b"x"), ("1.cls", b"\xff\xfe")], "1.cls is not UTF-8"),
        ([("1.png", b"x"), ("1.json", "{")], "1.png: its .json is not JSON"),
        ([("1.png", b"x"), ("1.cls", "0"), ("2.png", b"x")], "2.png: label is None"),
        ([("1.png", b"x"), ("1.cls", "0" * (2 << 20))], "1.cls has 2097152 bytes"),
        ([("1.png", b"x")], "holds no images in class folders"),
    ],
)
def test_bad_shards(members, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_images(write_tar(tmp_path / "bad.tar", members), WHOLE)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"], "nothing is unpacked"


def test_braces(tmp_path):
    from pathlib import Path

    assert [str(path) for path in expand(Path("s/{09..11}-{1..2}.tar"))] == [
        f"s/{a}-{b}.tar" for a in ("09", "10", "11") for b in (1, 2)
    ]
    assert expand(Path("plain.tar")) == [Path("plain.tar")]
    with pytest.raises(DataError, match="counts down"):
        expand(Path("{3..1}.tar"))
    with pytest.raises(DataError, match=r"no file or folder .*0.tar"):
        read_images(tmp_path / "{0..1}.tar", WHOLE)


# The datasets library -----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set with an Image and a ClassLabel column, none of it in the user's own cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "bird"]),
            "note": datasets.Value("string"),
        }
    )

    def make(count, first=0, labeled=True):
        rows = {
            "img": [
                {"bytes": png(("cat", "bird")[i % 2], i), "path": None}
                for i in range(first, first + count)
            ],
            "kind": [i % 2 if labeled else -1 for i in range(count)],
            "note": [f"n{i}" for i in range(count)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    return datasets, make


def check(data, splits=("train", "validation")):
    assert data.classes == ["bird", "cat"] and set(data.splits) == set(splits)
    expected = [(("cat", "bird")[i % 2], png(("cat", "bird")[i % 2], i)) for i in range(6)]
    assert truth(data) == expected


def test_saved_data_sets(hub, tmp_path):
    datasets, make = hub
    options = DataOptions(val_fraction=0.0, columns={"label": "kind"})
    whole = datasets.DatasetDict(
        {
            "train": make(6),
            "dev": make(4, 10),
            "test": make(4, 20, labeled=False),
            "unlabelled": make(2, 30),
        }
    )
    whole.save_to_disk(tmp_path / "saved")
    data = read_images(tmp_path / "saved", options)
    check(data)
    assert any("test" in note and "no labels" in note for note in data.notes) and any(
        "unlabelled" in note for note in data.notes
    )
    make(6).save_to_disk(tmp_path / "one")
    check(read_images(tmp_path / "one", options), ["train"])
    arrow = next((tmp_path / "one").glob("*.arrow"))
    check(read_images(arrow, options), ["train"])


def test_a_copy_of_a_hub_repository(hub, tmp_path):
    """README.md beside data/train-00000-of-00002.parquet, ….

    What `git clone` or `hf download` gives.
    """
    _, make = hub
    options = DataOptions(val_fraction=0.0, columns={"label": "kind"})
    (tmp_path / "copy" / "data").mkdir(parents=True)
    (tmp_path / "copy" / "README.md").write_text("x")
    rows = make(6)
    rows.select(range(4)).to_parquet(tmp_path / "copy" / "data" / "train-00000-of-00002.parquet")
    rows.select(range(4, 6)).to_parquet(tmp_path / "copy" / "data" / "train-00001-of-00002.parquet")
    make(4, 10).to_parquet(tmp_path / "copy" / "data" / "validation-00000-of-00001.parquet")
    check(read_images(tmp_path / "copy", options))
    check(read_images(tmp_path / "copy" / "data", options))


def test_a_data_set_of_the_hub(hub, tmp_path, monkeypatch):
    datasets, make = hub
    asked = []

    def load(name, config=None, **options):
        asked.append((name, config, options))
        return datasets.DatasetDict({"train": make(6), "validation": make(4, 10)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_data, "_ask", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    options = DataOptions(val_fraction=0.0, columns={"label": "kind"})
    for name in (
        "hf:some/birds",
        "some/birds",
        "hf:some/birds:small@main",
        "hf://datasets/some/birds",
    ):
        check(read_images(name, options))
    assert [each[:2] for each in asked] == [
        ("some/birds", None),
        ("some/birds", None),
        ("some/birds", "small"),
        ("some/birds", None),
    ]
    assert asked[2][2] == {"revision": "main"} and not any(
        "trust_remote_code" in each[2] for each in asked
    )
    (tmp_path / "some" / "birds" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match="empty holds no images"):  # a path that exists is a path
        read_images("some/birds", options)


def test_what_is_no_data_set_of_the_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("nowhere", "photos/summer", "some/birds.csv", "/some/birds", "a/b/c"):
        with pytest.raises(DataError, match="there is no file or folder"):
            read_images(name, WHOLE)

    def unreachable(self, *_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        DataError,
        match="no file or folder some/birds, and the Hub cannot be reached .*HF_HUB_OFFLINE=1",
    ):
        read_images("some/birds", WHOLE)

    def absent(self, *_, **__):
        error = huggingface_hub.errors.RepositoryNotFoundError
        # its constructor wants the response of the HTTP library of the day
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", absent)
    with pytest.raises(DataError, match="no data set of that name on the Hub"):
        read_images("some/birds", WHOLE)
    with pytest.raises(DataError, match="is no name of a data set"):
        read_images("hf:some/birds/more", WHOLE)


def test_without_the_library(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"on the Hub: datasets is not installed; .*headstart\[train\]"
    ):
        read_images("some/birds", WHOLE)


def test_texts_of_saved_data_sets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from headstart.tasks.text_classification import TextClassification

    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )

    def rows(labels):
        return datasets.Dataset.from_dict(
            {"text": [f"text {i}\u2028é" for i in range(len(labels))], "label": labels},
            features=features,
        )

    datasets.disable_progress_bars()
    whole = datasets.DatasetDict(
        {"train": rows([0, 1, 1]), "validation": rows([1, 0]), "test": rows([-1, -1])}
    )
    whole.save_to_disk(tmp_path / "saved")
    task = TextClassification.read(tmp_path / "saved", DataOptions())
    assert task.labels == ["bad", "good"] and task.splits == {"train": 3, "validation": 2}
    assert [row.values for row in task.data.splits["train"]][1] == {
        "text": "text 1\u2028é",
        "label": "good",
    }
    assert any("test" in note and "no labels" in note for note in task.data.notes)


# What labels are ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells, several, kind",
    [
        (["a", "b"], False, SINGLE),
        (["1", "2"], False, SINGLE),
        ([1, 2], False, SINGLE),
        (["1", "2.5"], False, REGRESSION),
        ([0.5, 1], False, REGRESSION),
        (["0.5", "x"], False, SINGLE),
        (["a|b", "a"], False, MULTI),
        (["a;b", "b;c"], False, MULTI),
        (["Paris; France", "Rome; Italy"], False, SINGLE),
        (["Paris; France", "Rome; Italy"], True, MULTI),
        (["a", "b"], True, SINGLE),
        ([["a"], []], False, MULTI),
        (['["a"]', "[]"], False, MULTI),
        ([(1, 0), (0, 1)], False, SINGLE),
        ([(1, 1), (0, 1)], False, MULTI),
        ([("0", "true"), ("0", "0")], False, MULTI),
        ([(1.5, 0), (0, 1)], False, REGRESSION),
    ],
)
def test_labels_tell_their_kind(cells, several, kind):
    assert (
        kind_of([cell if isinstance(cell, tuple) else (cell,) for cell in cells], several=several)
        == kind
    )


def test_names_of_kinds():
    assert kind_named("multi-label") == kind_named("multi_label_classification") == MULTI
    assert kind_named("single") == SINGLE and kind_named("regression") == REGRESSION
    for wrong in ("", "label", "class"):
        with pytest.raises(ConfigError, match="problem_type"):
            kind_named(wrong)


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_tables_of_several_labels(tmp_path):
    """Lists, text with separators and columns of 0 and 1 are the same labels."""
    rows = [("1.png", ["sea", "sun"]), ("2.png", []), ("3.png", ["sun"])]
    lists = "".join(json.dumps({"image": name, "labels": labels}) + "\n" for name, labels in rows)
    marked = "image,tags\n" + "".join(f"{name},{' | '.join(labels)}\n" for name, labels in rows)
    hot = "image,id,sea,sun\n" + "".join(
        f"{name},{i},{int('sea' in labels)},{int('sun' in labels)}\n"
        for i, (name, labels) in enumerate(rows)
    )
    for text, name in (
        (lists, "t.jsonl"),
        (marked, "t.csv"),
        (marked.replace(" | ", ";"), "t.csv"),
        (hot, "t.csv"),
    ):
        data = read_images(table(tmp_path, text, name), WHOLE)
        assert data.kind == MULTI and data.classes == ["sea", "sun"], text
        assert (
            data.splits["train"].labels.tolist() == [[1, 1], [0, 0], [0, 1]]
            and data.splits["train"].labels.dtype == np.float32
        )
    asked = DataOptions(val_fraction=0.0, columns={"labels": "sun,sea"})
    assert read_images(table(tmp_path, hot), asked).splits["train"].labels.tolist() == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]
    one = "image,sea,sun\n1.png,1,0\n2.png,0,1\n"
    data = read_images(table(tmp_path, one), WHOLE)
    assert data.kind == SINGLE and data.splits["train"].labels.tolist() == [0, 1]
    model = DataOptions(classes=["sun", "sea"], problem_type=MULTI)
    assert read_images(table(tmp_path, hot), model).splits["train"].labels.tolist() == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]


def test_tables_of_numbers(tmp_path):
    data = read_images(table(tmp_path, "image,age\n1.png,3\n2.png,4.5\n"), WHOLE)
    assert (
        data.kind == REGRESSION
        and data.classes == ["age"]
        and data.splits["train"].labels.tolist() == [[3], [4.5]]
    )
    whole = "image,label\n1.png,3\n2.png,4\n"
    assert read_images(table(tmp_path, whole), WHOLE).kind == SINGLE
    assert (
        read_images(
            table(tmp_path, whole), DataOptions(val_fraction=0.0, problem_type=REGRESSION)
        ).kind
        == REGRESSION
    )
    two = "image,x,y\n1.png,3,1\n2.png,4.5,2\n"
    data = read_images(
        table(tmp_path, two), DataOptions(val_fraction=0.0, columns={"label": "x,y"})
    )
    assert data.classes == ["x", "y"] and data.splits["train"].labels.tolist() == [[3, 1], [4.5, 2]]
    ages = "image,label\n" + "".join(f"{i}.png,{i % 60}\n" for i in range(70))
    assert any(
        "--problem-type regression" in note
        for note in read_images(table(tmp_path, ages), WHOLE).notes
    )


@pytest.mark.parametrize(
    "text, kind, message",
    [
        (
            "image,label\n1.png,3\n2.png,x\n",
            REGRESSION,
            r"t\.csv line 3: label is 'x'; expected a number",
        ),
        ("image,label\n1.png,3\n2.png,inf\n", REGRESSION, r"t\.csv line 3: label is 'inf'"),
        ("image,label\n1.png,3\n2.png,\n", REGRESSION, r"t\.csv line 3: label is ''"),
        ("image,label\n1.png,\n2.png,\n", MULTI, "has no classes"),
        (
            "image,a,b\n1.png,1,0\n2.png,0,0\n",
            SINGLE,
            r"t\.csv line 3: 0 of the columns a, b are 1",
        ),
        (
            "image,u,v\n1.png,3,1.5\n2.png,4.5,2\n",
            None,
            "which column holds the label.*image, u, v",
        ),
    ],
)
def test_wrong_labels(text, kind, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_images(table(tmp_path, text), DataOptions(val_fraction=0.0, problem_type=kind))


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
