"""WebDataset tars, Hub data sets and their local copies, and tables whose labels are several
classes or numbers.
"""

import pytest

from headstart.data.images import read_images
from headstart.data.labels import MULTI, REGRESSION
from headstart.data.options import DataOptions
from headstart.data.sources import hub as hub_data
from headstart.data.sources.tars import expand
from headstart.errors import DataError
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
    requested = []

    def load(name, config=None, **options):
        requested.append((name, config, options))
        return datasets.DatasetDict({"train": make(6), "validation": make(4, 10)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_data, "reach", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    options = DataOptions(val_fraction=0.0, columns={"label": "kind"})
    for name in (
        "hf:some/birds",
        "some/birds",
        "hf:some/birds:small@main",
        "hf://datasets/some/birds",
    ):
        check(read_images(name, options))
    assert [each[:2] for each in requested] == [
        ("some/birds", None),
        ("some/birds", None),
        ("some/birds", "small"),
        ("some/birds", None),
    ]
    assert requested[2][2] == {"revision": "main"} and not any(
        "trust_remote_code" in each[2] for each in requested
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
    with pytest.raises(DataError, match="is not a name of a data set"):
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
