"""Reading labelled images: every kind of source, splits, shots, and faults of a data set."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import data_dir
from headstart.data.cache import decode, inspect
from headstart.data.images import read_images
from headstart.data.options import DataOptions
from headstart.data.sources.raw import source_bytes
from headstart.data.splits import batch_indices, few_shot, stratified
from headstart.errors import DataError, InputError
from photo_data import CLASSES, make_class_folders, make_photo


def pixels(source):
    return (
        source
        if isinstance(source, np.ndarray)
        else np.asarray(Image.open(io.BytesIO(source_bytes(source))).convert("RGB"))
    )


def named(data, split="train"):
    """(class name, first pixel) of every example: what must survive any way of storing them."""
    part = data.splits[split]
    return sorted(
        (data.classes[label], tuple(pixels(image)[0, 0].tolist()))
        for image, label in zip(part.images, part.labels, strict=True)
    )


def test_folders_of_splits(photos):
    data = read_images(photos, DataOptions())
    assert data.classes == ["bird", "cat", "dog"]
    assert {split: len(part) for split, part in data.splits.items()} == {
        "train": 15,
        "validation": 12,
    }
    assert np.bincount(data.splits["train"].labels).tolist() == [6, 5, 4]


def test_every_source_reads_the_same(photos, tmp_path):
    """Folders, CSV, TSV, JSON lines, Parquet with bytes, npz and tar of the same images give the
    same examples.
    """
    import pyarrow
    import pyarrow.parquet

    files = sorted((photos / "train").rglob("*.png"))
    rows = [{"file": str(file), "species": file.parent.name} for file in files]
    (tmp_path / "t.csv").write_text(
        "file,species\n" + "".join(f"{row['file']},{row['species']}\n" for row in rows)
    )
    (tmp_path / "t.tsv").write_text(
        "file\tspecies\n" + "".join(f"{row['file']}\t{row['species']}\n" for row in rows)
    )
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    table = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [file.parent.name for file in files],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(
        tmp_path / "t.npz", images=images, labels=np.array([file.parent.name for file in files])
    )
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for file in files:
            tar.add(file, f"{file.parent.name}/{file.name}")

    options = DataOptions(val_fraction=0.0)
    expected = named(read_images(photos, options))
    semicolons = (tmp_path / "t.csv").read_text().replace(",", ";")
    # as spreadsheets of half of Europe write it
    (tmp_path / "s.csv").write_text(semicolons, encoding="utf-8-sig")
    for name in ("t.csv", "s.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "t.npz", "t.tar"):
        assert named(read_images(tmp_path / name, options)) == expected, name


def test_columns_by_role(tmp_path):
    make_class_folders(tmp_path, {"bird": 2, "cat": 2})
    lines = "".join(
        f"{label},x,{label}/{label}_{i}.png\n" for label in ("bird", "cat") for i in range(2)
    )
    (tmp_path / "t.csv").write_text("wing,note,where\n" + lines)
    with pytest.raises(
        DataError, match="which column holds the image.*wing, note, where.*--column image=NAME"
    ):
        read_images(tmp_path / "t.csv", DataOptions())
    with pytest.raises(DataError, match="no column 'here'"):
        read_images(tmp_path / "t.csv", DataOptions(columns={"image": "here"}))
    data = read_images(
        tmp_path / "t.csv",
        DataOptions(columns={"image": "where", "label": "wing"}, val_fraction=0.0),
    )
    assert len(data.splits["train"]) == 4


def test_a_split_column(photos, tmp_path):
    files = sorted(photos.rglob("*.png"))
    lines = "".join(f"{file},{file.parent.name},{file.parent.parent.name}\n" for file in files)
    (tmp_path / "t.csv").write_text("image,label,split\n" + lines)
    data = read_images(tmp_path / "t.csv", DataOptions())
    assert named(data, "validation") == named(read_images(photos, DataOptions()), "validation")
    (tmp_path / "t.csv").write_text("image,label,split\n" + lines + f"{files[0]},bird,maybe\n")
    with pytest.raises(DataError, match="line 29: split is 'maybe'"):
        read_images(tmp_path / "t.csv", DataOptions())


def test_classes_json_names_numbers(tmp_path):
    np.savez(
        tmp_path / "train.npz", images=np.zeros((4, 5, 6), np.uint8), labels=np.array([0, 1, 1, 0])
    )
    (tmp_path / "classes.json").write_text('{"classes": ["normal", "ill"]}')
    data = read_images(tmp_path, DataOptions(val_fraction=0.0))
    assert [data.classes[label] for label in data.splits["train"].labels] == [
        "normal",
        "ill",
        "ill",
        "normal",
    ]
    np.savez(
        tmp_path / "train.npz", images=np.zeros((4, 5, 6), np.uint8), labels=np.array([0, 1, 2, 0])
    )
    with pytest.raises(DataError, match=r"train\.npz row 2: label is 2, but classes.json names 2"):
        read_images(tmp_path, DataOptions())


def test_numbers_as_labels_are_in_numeric_order(tmp_path):
    np.savez(tmp_path / "t.npz", images=np.zeros((12, 3, 4, 3), np.uint8), labels=np.arange(12))
    assert read_images(tmp_path / "t.npz", DataOptions()).classes == [str(i) for i in range(12)]


def test_real_data_sets():
    """The kinds of folders that people have."""
    data = read_images(data_dir("images", "hymenoptera"), DataOptions())
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 50, "validation": 24}
    data = read_images(data_dir("images", "pneumoniamnist"), DataOptions())
    assert data.classes == ["normal", "pneumonia"] and len(data.splits["validation"]) == 100
    data = read_images(data_dir("images", "flowers102"), DataOptions())
    assert len(data.classes) == 20 and {k: len(v) for k, v in data.splits.items()} == {
        "train": 160,
        "validation": 80,
    }
    assert pixels(data.splits["train"].images[0]).ndim == 3
    data = read_images(
        data_dir("images", "imagenet_samples", "labels.csv"),
        DataOptions(val_fraction=0.0, columns={"label": "name"}),
    )
    assert len(data.classes) == 30


def test_held_out_images_are_stratified_and_seeded(tmp_path):
    folder = make_class_folders(tmp_path / "d", {"bird": 10, "cat": 5, "dog": 1})
    first, again, other = (read_images(folder, DataOptions(seed=seed)) for seed in (3, 3, 4))
    assert np.bincount(first.splits["validation"].labels, minlength=3).tolist() == [2, 1, 0]
    held_out = [list(each.splits["validation"].names) for each in (first, again, other)]
    assert held_out[0] == held_out[1] != held_out[2]
    assert not set(first.splits["train"].names) & set(first.splits["validation"].names)
    assert len(first.splits["train"]) + len(first.splits["validation"]) == 16


def test_shots(photos):
    data = read_images(photos, DataOptions(shots=5))
    assert np.bincount(data.splits["train"].labels).tolist() == [5, 5, 4]
    assert any("fewer than 5 training images in dog" in note for note in data.notes)
    assert len(data.splits["validation"]) == 12
    chosen = [
        tuple(read_images(photos, DataOptions(shots=2, seed=seed)).splits["train"].names)
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.05, 0.9), st.integers(0, 99)
)
def test_stratified_leaves_every_class_in_training(labels, fraction, seed):
    labels = np.array(labels)
    out = stratified(labels, fraction, np.random.default_rng(seed))
    for label in np.unique(labels):
        members = out[labels == label]
        assert not members.all()
        assert members.any() == (len(members) > 1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_few_shot_takes_so_many_of_each(labels, shots, seed):
    labels = np.array(labels)
    chosen = few_shot(labels, shots, np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == len(chosen)
    for label in np.unique(labels):
        assert (labels[chosen] == label).sum() == min(shots, (labels == label).sum())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))
def test_batches_go_through_the_data_evenly(examples, batch_size, seed):
    """Epochs see every example once; batches above the data are sampled with replacement."""
    steps = 12
    stream = np.concatenate(
        [batch_indices(examples, batch_size, step, seed) for step in range(steps)]
    )
    assert len(stream) == steps * batch_size and stream.min() >= 0 and stream.max() < examples
    if batch_size <= examples:
        for epoch in range(len(stream) // examples):
            assert sorted(stream[epoch * examples : (epoch + 1) * examples].tolist()) == list(
                range(examples)
            )


@pytest.mark.parametrize(
    ("data", "reason"), [(b"words", "unknown image format"), (b"", "the file is empty")]
)
def test_why_an_image_cannot_be_read(data, reason):
    assert inspect(data) == reason
    with pytest.raises(InputError, match=reason):
        decode(data)


def wrong_csv(text, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,label\n", r"t\.csv has no rows"),
        ("", r"t\.csv has no rows"),
        ("image,label\na.png,x\nb.png,\n", r"t\.csv line 3: label is ''"),
        ("image,label\na.png,x\n,y\n", r"t\.csv line 3: image is ''"),
        ("image,label\na.png,x\nb.png\n", r"t\.csv line 3: 1 values for 2 columns"),
        ("image,label\na.png,x\nb.png,x\n", r"t\.csv has one class, 'x'"),
        ('image,label\na.png,"x\n', r"t\.csv line 2"),
        ("image,image\na,b\n", "two columns have the same name"),
    ],
)
def test_wrong_tables_name_file_and_row(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_images(wrong_csv(text, tmp_path), DataOptions())


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "label": "x"}\n{"image": \n')
    with pytest.raises(DataError, match=r"t\.jsonl line 2 is not JSON"):
        read_images(tmp_path / "t.jsonl", DataOptions())
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "label": "x"}\n[1]\n')
    with pytest.raises(DataError, match=r"t\.jsonl line 2: expected an object"):
        read_images(tmp_path / "t.jsonl", DataOptions())
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a.png", "label": 1.5}\n{"image": "b.png", "label": "x"}\n'
    )
    with pytest.raises(DataError, match=r"line 1: label is 1.5"):
        read_images(tmp_path / "t.jsonl", DataOptions())
    for name in ("t.parquet", "t.npz", "t.tar"):
        (tmp_path / name).write_bytes(b"not one")
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_images(tmp_path / name, DataOptions())
    (tmp_path / "t.csv").write_bytes(b"image,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_images(tmp_path / "t.csv", DataOptions())
    (tmp_path / "t.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"t\.zip is not a data set"):
        read_images(tmp_path / "t.zip", DataOptions())
    np.savez(tmp_path / "p.npz", images=np.array([object()], dtype=object), labels=np.array([1]))
    with pytest.raises(DataError, match=r"p\.npz is not a readable"):
        read_images(tmp_path / "p.npz", DataOptions())
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 3, 3), np.float32), labels=np.array([0, 1]))
    with pytest.raises(DataError, match=r"f\.npz: images is float32"):
        read_images(tmp_path / "f.npz", DataOptions())


def test_wrong_folders_are_named(tmp_path, photos):
    with pytest.raises(DataError, match="there is no file or folder"):
        read_images(tmp_path / "nowhere", DataOptions())
    with pytest.raises(DataError, match="holds no class folders"):
        read_images(tmp_path, DataOptions())
    make_class_folders(tmp_path / "one", {"bird": 3})
    with pytest.raises(DataError, match="one class, 'bird'"):
        read_images(tmp_path / "one", DataOptions())
    (tmp_path / "one" / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read_images(tmp_path / "one", DataOptions())
    make_class_folders(tmp_path / "s" / "train", {"bird": 2, "cat": 2})
    make_class_folders(tmp_path / "s" / "val", {"dog": 1})
    with pytest.raises(
        DataError,
        match=r"dog_0\.png: class 'dog' is not among the classes of the training data: bird, cat",
    ):
        read_images(tmp_path / "s", DataOptions())


def test_files_that_are_no_images_are_left_alone(tmp_path):
    make_class_folders(tmp_path / "d", {"bird": 2, "cat": 2})
    (tmp_path / "d" / "bird" / "notes.txt").write_text("x")
    (tmp_path / "d" / "bird" / ".hidden.png").write_text("x")
    (tmp_path / "d" / ".git").mkdir()
    data = read_images(tmp_path / "d", DataOptions(val_fraction=0.0))
    assert len(data.splits["train"]) == 4 and any("1 files" in note for note in data.notes)


def test_classes_of_a_model_decide_when_it_is_evaluated(tmp_path):
    folder = make_class_folders(tmp_path / "d", {"cat": 3, "bird": 1})
    data = read_images(folder, DataOptions(classes=["dog", "cat", "bird"]))
    assert list(data.splits) == ["train"] and sorted(data.splits["train"].labels.tolist()) == [
        1,
        1,
        1,
        2,
    ]
    with pytest.raises(DataError, match="class 'bird' is not among the model's classes"):
        read_images(folder, DataOptions(classes=["dog", "cat"]))


def test_photo_colors_are_what_the_other_tests_think():
    assert make_photo(CLASSES["bird"], 0).reshape(-1, 3).mean(0).argmax() == 0
