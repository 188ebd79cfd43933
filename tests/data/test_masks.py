"""Images and their masks: layouts, sources, class values, and random crops."""

import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import data_dir
from headstart.data.mask_augment import largest_fraction, random_colors, random_crop
from headstart.data.masks import IGNORED, ClassList, read_classes
from headstart.errors import DataError
from headstart.progress import Silent
from headstart.training.evaluate import evaluate
from headstart.training.run import train
from scenes import COLORS, scene, task_of, write_scenes


def test_splits_classes_and_facts(scenes):
    task = task_of(scenes)
    assert task.splits == {"train": 6, "validation": 5}
    assert task.classes.names == ["red", "green", "blue"]
    facts = task.facts()
    assert (facts.examples, facts.classes, facts.height, facts.width) == (6, 3, 40, 56)
    # one row of forty
    assert any("2.5% of the training pixels have no class" in line for line in task.found())


def test_masks_are_not_read_in_silence(scenes):
    class Jobs(Silent):
        labels: list = []

        def start(self, label, total, done=0, unit="img"):
            self.labels.append((label, total))

    task = task_of(scenes, progress=Jobs())
    assert Jobs.labels == [("reading pairs", 1), ("reading masks", sum(task.splits.values()))]


def test_other_layouts_give_the_same_pairs(tmp_path):
    write_scenes(tmp_path / "a", 4)
    two = task_of(
        tmp_path / "a" / "images", extra={"masks": str(tmp_path / "a" / "masks")}, val_fraction=0.25
    )
    one = task_of(tmp_path / "a", val_fraction=0.25)
    assert (
        one.splits == two.splits == {"train": 3, "validation": 1}
        and one.fingerprint == two.fingerprint
    )
    assert one.classes.names == ["class 0", "class 1", "class 2"]
    for split in ("training", "val"):  # ADE20k's layout
        for kind in ("images", "annotations"):
            (tmp_path / "b" / kind / split).mkdir(parents=True)
        image, classes = scene(3)
        Image.fromarray(image).save(tmp_path / "b" / "images" / split / "x.jpg")
        Image.fromarray(classes).save(tmp_path / "b" / "annotations" / split / "x_mask.png")
    assert task_of(tmp_path / "b").splits == {"train": 1, "validation": 1}


def write_other_sources(scenes, tmp_path, datasets):
    """The pairs as tables, WebDataset shards, a saved data set and Parquet files."""
    saved = {}
    (tmp_path / "tables").mkdir()
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        pairs = [
            (scenes / split / "images" / p.name, p)
            for p in sorted((scenes / split / "masks").iterdir())
        ]
        (tmp_path / "tables" / f"{split}.csv").write_text(
            "".join(["image,mask\n", *(f"{image},{mask}\n" for image, mask in pairs)])
        )
        with tarfile.open(tmp_path / "tars" / f"{split}-0.tar", "w") as tar:
            for image, mask in pairs:
                tar.add(image, image.name)
                tar.add(mask, f"{mask.stem}.seg.png")
        rows = {
            "image": [str(image) for image, _ in pairs],
            "annotation": [str(mask) for _, mask in pairs],
        }
        images = datasets.Features({"annotation": datasets.Image(), "image": datasets.Image()})
        saved[split] = datasets.Dataset.from_dict(rows).cast(images)
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    for split, rows in saved.items():
        (tmp_path / "repository" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "repository" / "data" / f"{split}-00000-of-00001.parquet")


def test_other_sources_give_the_same_pairs(tmp_path, scenes, tiny_beit):
    """Tables, WebDataset shards, saved data sets and Parquet files.

    The same pairs as folders, and a whole run on them.
    """
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_other_sources(scenes, tmp_path, datasets)
    expected = task_of(scenes, extra={"classes": str(scenes / "classes.json")})
    for name in ("tables", "tars", "saved", "repository"):
        found = task_of(tmp_path / name, extra={"classes": str(scenes / "classes.json")})
        assert found.fingerprint == expected.fingerprint, name
    values = {"steps": 2, "batch_size": 2, "crop": 32, "eval_every": 2, "device": "cpu"}
    result = train(
        tmp_path / "tars",
        model=tiny_beit,
        task="semantic-segmentation",
        out=tmp_path / "run",
        **values,
    )
    assert "s0.png" in (result.folder / "report.html").read_text()
    _, again = evaluate(result.folder, tmp_path / "saved", device="cpu")
    assert again.metrics == pytest.approx(result.metrics)


def test_other_sources_that_hold_no_pairs(tmp_path, scenes):
    image, mask = (scenes / "train" / name / "s0.png" for name in ("images", "masks"))
    (tmp_path / "t.csv").write_text(f"image,label\n{image},\n")
    (tmp_path / "u.csv").write_text(f"image,other\n{image},{mask}\n")
    (tmp_path / "v.csv").write_text(f"image,other\n{image},{image}\n{image},{mask}\n")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1])
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(image, "red/s0.png")
    for name, message in (
        ("t.csv", r"t\.csv line 2: label is ''; expected the path of an image"),
        (
            "u.csv",
            (
                "which column holds the mask\\? Its columns are image, other; choose one with"
                " --column mask=NAME"
            ),
        ),
        (
            "a.npz",
            (
                r"masks are not read from \.npz files; expected folders, a table, a tar or a data"
                r" set of the Hub"
            ),
        ),
        ("plain.tar", r"holds no images with masks; expected members like 0\.jpg and 0\.mask\.png"),
        ("nothing", "there is no file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            task_of(tmp_path / name)
    named = task_of(tmp_path / "v.csv", columns={"mask": "other"})
    assert [each.reason for each in named.bad] == [
        "its mask s0.png: the mask holds colors; list them as 'palette' in classes.json, one for"
        " each class"
    ]


def test_masks_of_colors(tmp_path, scenes):
    write_scenes(tmp_path / "train", 6, mode="RGB")
    write_scenes(tmp_path / "val", 5, first=100, mode="RGB")
    (tmp_path / "classes.json").write_text((scenes / "classes.json").read_text())
    numbers, colors = task_of(scenes), task_of(tmp_path)
    for i in range(6):
        assert np.array_equal(numbers.read_pair("train", i)[1], colors.read_pair("train", i)[1])


def test_meaning_of_mask_values():
    plain = ClassList(["a", "b"], ignored=frozenset({7})).table()
    assert (
        plain[[0, 1, 7, 255]].tolist() == [0, 1, IGNORED, IGNORED]
        and (plain[[2, 254, 256]] == -1).all()
    )
    reduced = ClassList(["a", "b"], reduce=True).table()
    assert reduced[[0, 1, 2, 255]].tolist() == [IGNORED, 0, 1, IGNORED] and reduced[3] == -1


def test_black_and_white_masks_are_two_classes(tmp_path):
    write_scenes(tmp_path, 4)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(
            path
        )
    task = task_of(tmp_path)
    assert task.classes.names == ["background", "foreground"]
    assert set(
        np.unique(np.concatenate([task.read_pair("train", i)[1].ravel() for i in range(3)]))
    ) == {0, 1}
    assert any("255 is taken as the class 'foreground'" in line for line in task.found())


def test_real_data_is_understood():
    camvid = task_of(data_dir("segmentation", "camvid"))
    assert camvid.splits == {"train": 40, "validation": 20} and len(camvid.classes.names) == 11
    labels = camvid.read_pair("train", 0)[1]
    assert set(np.unique(labels)) <= {*range(11), IGNORED} and labels.shape == (360, 480)
    ade = task_of(
        data_dir("segmentation", "ade20k_samples"),
        extra={"reduce_labels": True},
        classes=[f"c{i}" for i in range(150)],
    )
    raw = np.asarray(Image.open(ade.examples["train"].masks[0])).astype(int)
    assert np.array_equal(ade.read_pair("train", 0)[1], np.where(raw == 0, IGNORED, raw - 1))


def test_bad_data_is_named(tmp_path, scenes):
    with pytest.raises(DataError, match="no file or folder"):
        task_of(tmp_path / "absent")
    with pytest.raises(DataError, match="the folder of masks as a second argument"):
        task_of(write_scenes(tmp_path / "a", 1) / "images")
    (tmp_path / "a" / "masks" / "s0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images .* have no mask.*s0\.png"):
        task_of(tmp_path / "a")
    b = write_scenes(tmp_path / "b", 4)
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(b / "masks" / "s1.png")
    (b / "images" / "s2.png").write_bytes(b"no image")
    task = task_of(b, val_fraction=0)
    with pytest.raises(
        DataError, match=r"(?s)2 of 4 .*s1\.png: is 56x40 pixels, its mask s1\.png 7x9.*s2\.png: "
    ):
        task.prepare(None)
    lenient = task_of(b, val_fraction=0, skip_bad=True)
    lenient.prepare(None)
    assert lenient.splits == {"train": 2} and any(
        "2 unusable pairs left out" in line for line in lenient.found()
    )
    c = write_scenes(tmp_path / "c", 3)
    (c / "classes.json").write_text('["red", "green"]')
    with pytest.raises(
        DataError, match=r"mask s\d\.png has the values 2; expected classes 0 to 1, or 255"
    ):
        task_of(c).prepare(None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ('["one"]', "2 to 255 class names"),
        ('["a", "a"]', "'a' is listed twice"),
        ('{"classes": ["a", "b"], "palette": [[0, 0, 0]]}', "a color"),
        ('{"classes": ["a", "b"], "ignore_index": "x"}', "ignore_index is 'x'"),
    ],
)
def test_bad_class_files(tmp_path, text, message):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.json")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(5, 70),
    st.integers(5, 70),
    st.integers(4, 48),
    st.integers(4, 60),
    st.integers(0, 999),
)
def test_a_crop_keeps_image_and_labels_together(height, width, side, short, seed):
    rng = np.random.default_rng(seed)
    labels = (
        rng.integers(0, 3, (height // 5 + 1, width // 5 + 1))
        .repeat(5, 0)
        .repeat(5, 1)[:height, :width]
        .astype(np.uint8)
    )
    image = COLORS[labels]
    out, marks = random_crop(
        image,
        labels,
        rng,
        side=side,
        short=max(short, side),
        resample=0,
        scales=(0.5, 2.0),
        fill=(1.4, 2, 3),
    )
    assert out.shape == (side, side, 3) and marks.shape == (side, side)
    inside = marks != IGNORED
    assert np.array_equal(out[inside], COLORS[marks[inside]]) and (out[~inside] == (1, 2, 3)).all()
    assert inside[0, 0]


def test_a_crop_avoids_a_single_class():
    labels = np.zeros((60, 60), np.uint8)
    labels[:, 45:] = 1
    rng = np.random.default_rng(0)
    shares = [
        largest_fraction(random_crop(COLORS[labels], labels, rng, side=20, short=60, resample=0)[1])
        for _ in range(60)
    ]
    assert np.mean(np.array(shares) <= 0.75) > 0.85  # by chance 20 %
    assert largest_fraction(np.full((3, 3), IGNORED, np.uint8)) == 0


def test_no_randomness_takes_the_middle():
    image, labels = scene(0)
    out, marks = random_crop(image, labels, None, side=40, short=40, resample=2)
    assert np.array_equal(out, image[:, 8:48]) and np.array_equal(marks, labels[:, 8:48])


def test_colors_change_within_bounds():
    image, _ = scene(0)
    changed = [random_colors(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in changed)
    same = sum(np.array_equal(each, image) for each in changed)
    assert 0 < same < 12  # each of four changes is left out half of the time
    gray = np.full((4, 4, 3), 100, np.uint8)
    for seed in range(40):
        out = random_colors(gray, np.random.default_rng(seed)).astype(int)
        # gray has no hue: (100 ± 32) * 0.5 to 1.5
        assert np.ptp(out, axis=2).max() <= 1 and out.min() >= 33 and out.max() <= 199
