"""Semantic segmentation.

Data, views, measures, windows, and whole runs that end in a folder to predict with.
"""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from conftest import data_dir
from headstart import BeitConfig, BeitForMaskedImageModeling, BeitImageProcessor
from headstart.cli.app import main as command_line
from headstart.data.mask_augment import largest_fraction, random_colors, random_crop
from headstart.data.masks import IGNORED, ClassList, read_classes
from headstart.data.options import DataOptions
from headstart.errors import DataError
from headstart.metrics.segmentation import (
    bootstrap_interval,
    mean_iou,
    pixel_confusion,
    segmentation_metrics,
)
from headstart.pipelines.base import task_of as task_of_model
from headstart.pipelines.semantic_segmentation import (
    SemanticSegmentationPipeline,
    class_colors,
    class_scores,
    overlay,
    segment,
    starts,
)
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.report.page import learning_curves
from headstart.tasks import task_class
from headstart.training.evaluate import evaluate
from headstart.training.loop import Loop
from headstart.training.run import train

# of the classes of the made-up scenes
COLORS = np.array([(220, 40, 40), (40, 200, 60), (50, 60, 220)], np.uint8)


def scene(seed: int, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Three colors in vertical stripes of random width with noise, and their classes.

    The last row has no class.
    """
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(8, width - 8, 2))
    classes = np.searchsorted(edges, np.arange(width), side="right")[None].repeat(height, 0)
    classes = rng.permutation(3)[classes]
    image = (COLORS[classes] + rng.normal(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)
    classes[-1] = IGNORED
    return image, classes.astype(np.uint8)


def write_scenes(folder: Path, count: int, first: int = 0, mode: str = "L") -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, classes = scene(first + i)
        Image.fromarray(image).save(folder / "images" / f"s{i}.png")
        if mode == "RGB":
            mask = Image.fromarray(
                np.where((classes == IGNORED)[..., None], 0, COLORS[np.minimum(classes, 2)]).astype(
                    np.uint8
                )
            )
        else:
            mask = Image.fromarray(classes)
        mask.save(folder / "masks" / f"s{i}.png")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", 6)
    write_scenes(folder / "val", 5, first=100)
    (folder / "classes.json").write_text(
        json.dumps({"classes": ["red", "green", "blue"], "palette": COLORS.tolist()})
    )
    return folder


@pytest.fixture(scope="session")
def tiny_beit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-beit")
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        vocab_size=16,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        drop_path_rate=0.0,
        auxiliary_channels=16,
    )
    BeitForMaskedImageModeling(config).save_pretrained(folder)
    BeitImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    return folder


def task_of(path: Path, **values):
    return task_class("semantic-segmentation").read(path, DataOptions(**values))


# Data ---------------------------------------------------------------------------------------------


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


def test_other_sources_give_the_same_pairs(tmp_path, scenes, tiny_beit):
    """Tables, WebDataset shards, saved data sets and Parquet files.

    The same pairs as folders, and a whole run on them.
    """
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
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


# Views --------------------------------------------------------------------------------------------


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


# Measures -----------------------------------------------------------------------------------------


def slow_measures(labels, said, classes):
    """The definitions, one pixel at a time."""
    inter, union, true, right = ([0] * classes for _ in range(4))
    for a, b in zip(labels.ravel().tolist(), said.ravel().tolist(), strict=True):
        if a == IGNORED:
            continue
        true[a] += 1
        for c in range(classes):
            inter[c] += a == c and b == c
            union[c] += c in (a, b)
        right[a] += a == b
    ious = [i / u for i, u in zip(inter, union, strict=True) if u]
    accuracies = [r / t for r, t in zip(right, true, strict=True) if t]
    return sum(ious) / len(ious), sum(right) / sum(true), sum(accuracies) / len(accuracies)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_measures_are_the_definitions(seed, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, classes + 1), (5, 9))
    labels[rng.random((5, 9)) < 0.3] = IGNORED
    labels[0, 0] = 0
    said = rng.integers(0, classes, (5, 9))
    metrics = segmentation_metrics(pixel_confusion(labels, said, classes))
    expected = slow_measures(labels, said, classes)
    assert np.allclose(
        [metrics["mean_iou"], metrics["pixel_accuracy"], metrics["mean_accuracy"]],
        expected,
        atol=1e-12,
    )


def test_ignored_pixels_never_count():
    rng = np.random.default_rng(0)
    labels, said = rng.integers(0, 4, (2, 30, 30))
    ignored = rng.random((30, 30)) < 0.4
    labels[ignored] = IGNORED
    other = np.where(ignored, rng.integers(0, 4, (30, 30)), said)
    assert np.array_equal(pixel_confusion(labels, said, 4), pixel_confusion(labels, other, 4))
    assert pixel_confusion(labels, said, 4).sum() == (~ignored).sum()
    nothing = np.full((3, 3), IGNORED)
    assert pixel_confusion(nothing, np.zeros((3, 3), int), 4).sum() == 0 and math.isnan(
        mean_iou(np.zeros((4, 4), np.int64))
    )


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_measures_agree_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(1)
    labels, said = rng.integers(0, 5, (2, 4, 20, 30))
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    # class 5 does not occur
    confusion = sum(pixel_confusion(a, b, 6) for a, b in zip(labels, said, strict=True))
    a, b = torch.from_numpy(said), torch.from_numpy(labels)
    theirs = classification.multiclass_jaccard_index(a, b, num_classes=6, ignore_index=IGNORED)
    ours = segmentation_metrics(confusion)
    assert abs(ours["mean_iou"] - float(theirs)) < 1e-6
    accuracy = classification.multiclass_accuracy(
        a, b, num_classes=6, average="micro", ignore_index=IGNORED
    )
    assert abs(ours["pixel_accuracy"] - float(accuracy)) < 1e-6


def test_interval_holds_the_mean():
    rng = np.random.default_rng(2)
    confusions = np.stack([pixel_confusion(*rng.integers(0, 3, (2, 20, 20)), 3) for _ in range(12)])
    low, high = bootstrap_interval(confusions)
    assert low < mean_iou(confusions.sum(0)) < high and high - low < 0.1
    assert bootstrap_interval(confusions[:4]) is None


# Windows ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_everything(length, window, stride):
    stride = min(stride, window)
    places = starts(length, window, stride)
    covered = np.zeros(length, bool)
    for place in places:
        assert place >= 0 and (place + window <= length or len(places) == 1)
        covered[place : place + window] = True
    assert covered.all() and (length > window or places == [0]) and len(set(places)) == len(places)


class Local(nn.Module):
    """A network whose answer at a pixel depends on that pixel alone, so that windows may not change
    it; it counts what it sees.
    """

    def __init__(self, patch=(1, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        self.config = type("Config", (), {"patch": patch, "num_labels": 4})()
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        return type(
            "Out", (), {"logits": torch.einsum("vc,bchw->bvhw", self.weight, pixel_values)}
        )()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.integers(2, 50), st.integers(2, 60), st.integers(2, 60))
def test_windows_change_nothing_where_context_does_not_matter(height, width, rows, columns):
    pixels = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * width))
    model = Local()
    with torch.no_grad():
        whole, windows = class_scores(model, pixels), class_scores(model, pixels, (rows, columns))
    assert whole.shape == (4, height, width)
    torch.testing.assert_close(windows, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width", [(40, 56), (17, 33), (32, 32), (9, 31)])
def test_one_window_is_the_whole(tiny_beit, height, width):
    from headstart import BeitForSemanticSegmentation

    torch.manual_seed(1)
    model = BeitForSemanticSegmentation.from_pretrained(tiny_beit, num_labels=3)
    pixels = torch.randn(3, height, width)
    with torch.no_grad():
        whole = class_scores(model, pixels)
        assert torch.equal(class_scores(model, pixels, (max(40, height), max(56, width))), whole)
        assert whole.shape == (3, height, width)
        if max(height, width) > 32:
            assert not torch.allclose(class_scores(model, pixels, (32, 32)), whole)


def test_sides_are_filled_up_to_whole_patches():
    model = Local((16, 16))
    with torch.no_grad():
        scores = class_scores(model, torch.ones(3, 70, 99))
    assert model.seen == [(1, 3, 80, 112)] and scores.shape == (4, 70, 99)


def test_overlay_leaves_unlabelled_pixels():
    image, classes = scene(0)
    painted = overlay(image, classes, COLORS, 1.0)
    assert np.array_equal(painted[-1], image[-1]) and np.array_equal(
        painted[:-1], COLORS[classes[:-1]]
    )


def test_made_up_colors_differ():
    config = type("Config", (), {"num_labels": 150})()
    colors = class_colors(config).astype(int)
    assert len({tuple(c) for c in colors.tolist()}) == 150
    near = np.abs(colors[:12, None] - colors[None, :12]).sum(-1) + 1000 * np.eye(12)
    assert near.min() > 60


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_some_images_are_evaluated_as_all_are(scenes, tiny_beit, monkeypatch, memory):
    monkeypatch.setattr("headstart.tasks.semantic_segmentation.MEMORY", memory)
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, resize=32)).eval()
    task.prepare(None)
    rows, device = np.array([1]), torch.device("cpu")
    part = task.subset("validation", rows).evaluate(model, "validation", device)
    every = task.evaluate(model, "validation", device)
    assert part.examples == 1 < every.examples
    assert (part.details["confusions"] == every.details["confusions"][rows]).all()


def test_a_lone_image_can_be_trained_on(scenes, tiny_beit):
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, augment="none")).train()
    task.prepare(None)
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(2)])
    loss, measures = task.loss(model, task.micro(batch, slice(0, 1), torch.device("cpu")))
    assert torch.isfinite(loss) and 0 <= float(measures["pixel_accuracy"]) <= task.weight(batch)


@pytest.mark.parametrize("mean", ["all", "valid"])
def test_loss_is_the_sum_over_labelled_pixels(scenes, tiny_beit, mean):
    """Against cross-entropy written out.

    The micro-batch does not matter (the norms are held still).
    """
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, augment="none")).eval()
    model.config.semantic_loss_mean, model.config.use_auxiliary_head = mean, False
    model.auxiliary_head = None
    task.prepare(None)
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(3)])
    batch["labels"][1, :20] = IGNORED
    inputs = task.micro(batch, slice(0, 3), torch.device("cpu"))
    with torch.no_grad():
        total, _ = task.loss(model, inputs)
        parts = sum(
            task.loss(model, task.micro(batch, rows, torch.device("cpu")))[0]
            for rows in (slice(0, 1), slice(1, 3))
        )
        logits = nn.functional.interpolate(
            model(inputs["pixel_values"]).logits, size=(32, 32), mode="bilinear"
        ).log_softmax(1)
    expected = 0.0
    for b, y, x in np.argwhere(batch["labels"].numpy() != IGNORED):
        expected -= float(logits[b, batch["labels"][b, y, x].long(), y, x])
    assert (
        abs(float(total) - expected) < 1e-4 * expected
        and abs(float(parts) - expected) < 1e-4 * expected
    )
    assert task.weight(batch) == (batch["labels"] != IGNORED).sum()


@pytest.fixture(scope="session")
def result(scenes, tiny_beit, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "stripes"
    return train(
        scenes,
        model=str(tiny_beit),
        out=out,
        task="semantic-segmentation",
        recipe="finetune",
        steps=60,
        batch_size=4,
        lr=3e-3,
        crop=32,
        resize=40,
        augment="flip",
        label_smoothing=0.0,
        eval_every=100,
        checkpoint_every=100,
    )


def test_a_run_learns_and_leaves_a_folder(result, scenes):
    assert result.metrics["mean_iou"] > 0.6  # one color for all: at most 0.2
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "results.json",
        "report.html",
    } <= names
    values = json.loads((result.folder / "results.json").read_text())["evaluations"]["validation"]
    ious = [each["iou"] for each in values["classes"].values() if each["iou"] is not None]
    assert np.mean(ious) == pytest.approx(result.metrics["mean_iou"])
    pixels = [each["pixels"] for each in values["classes"].values()]
    assert [sum(row) for row in values["confusion_matrix"]] == pixels
    rows = (result.folder / "predictions.csv").read_text().splitlines()
    assert rows[0] == "split,name,mean_iou,pixel_accuracy" and len(rows) == 1 + values["examples"]
    page = (result.folder / "report.html").read_text()
    assert (
        "Against one answer for all" in page
        and "always “" in page
        and "<h2>Images</h2>" in page
        and "gallery wide" in page
    )


def test_evaluate_repeats_the_run(result, scenes):
    task, found = evaluate(result.folder, scenes)
    assert (
        found.metrics == pytest.approx(result.metrics, abs=1e-6)
        and task.name == "semantic-segmentation"
    )


def test_pipeline_answers_at_the_images_size(result, tmp_path):
    predict = SemanticSegmentationPipeline(result.folder)
    image, classes = scene(500, 51, 77)
    found = predict(image)
    assert found["mask"].shape == (51, 77) and found["classes"][0]["label"] in (
        "red",
        "green",
        "blue",
    )
    assert abs(sum(each["fraction"] for each in found["classes"]) - 1) < 1e-9
    assert np.array_equal(predict.colors, COLORS)  # those of the data, kept with the model
    said = found["mask"][:-1]
    assert (said == classes[:-1]).mean() > 0.6
    Image.fromarray(image).save(tmp_path / "p.png")
    written = predict.write(tmp_path / "p.png", tmp_path / "out" / "p")
    mask = Image.open(written["mask_file"])
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), found["mask"])
    assert np.array_equal(np.asarray(mask.convert("RGB")), COLORS[found["mask"]])
    with Image.open(written["overlay_file"]) as painted:
        assert painted.size == (77, 51)


def test_modes(result):
    predict = SemanticSegmentationPipeline(result.folder)
    image, _ = scene(501, 40, 120)
    slide, whole = (
        segment(predict.model, predict.image_processor, image, mode) for mode in ("slide", "whole")
    )
    assert slide.shape == whole.shape == (40, 120) and (slide == whole).mean() > 0.5


def run_command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(arguments)
    assert not end.value.code


def test_command_line_round_trip(result, scenes, tmp_path, capsys):
    assert task_of_model(result.folder) == "semantic-segmentation"
    run_command(
        [
            "predict",
            str(result.folder),
            str(scenes / "val" / "images"),
            "--out",
            str(tmp_path / "out"),
            "--json",
        ]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5 and all(Path(file).is_file() for line in lines for file in line["files"])
    assert lines[0]["files"][0].endswith("s0.png") and lines[0]["files"][1].endswith(
        "s0_overlay.jpg"
    )
    run_command(
        [
            "evaluate",
            str(result.folder),
            str(scenes / "val" / "images"),
            str(scenes / "val" / "masks"),
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == pytest.approx(result.metrics, abs=1e-6)
    run_command(["evaluate", str(result.folder), str(scenes), "--option", "mode=whole", "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"]["mean_iou"] > 0.4


def test_images_of_one_name_do_not_overwrite_each_other(result, scenes, tmp_path, capsys):
    folders = [str(scenes / split / "images" / "s0.png") for split in ("train", "val")]
    run_command(["predict", str(result.folder), *folders, "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "s0.png",
        "s0_overlay.jpg",
        "s0_2.png",
        "s0_2_overlay.jpg",
    }


def test_a_broken_run_goes_on_bit_for_bit(scenes, tiny_beit, tmp_path, monkeypatch):
    values = {
        "recipe": "finetune",
        "steps": 8,
        "batch_size": 3,
        "crop": 32,
        "checkpoint_every": 3,
        "eval_every": 100,
        "drop_path": 0.1,
    }
    whole = train(
        scenes, model=str(tiny_beit), out=tmp_path / "whole", task="semantic-segmentation", **values
    )
    update = Loop.update

    def power_cut(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(
            scenes,
            model=str(tiny_beit),
            out=tmp_path / "broken",
            task="semantic-segmentation",
            **values,
        )
    monkeypatch.setattr(Loop, "update", update)
    resumed = train(scenes, out=tmp_path / "broken", resume=True)
    one, two = (
        load_file(folder / "model.safetensors") for folder in (whole.folder, resumed.folder)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert whole.metrics == resumed.metrics


def test_learning_curves_show_a_measure_that_only_validation_has():
    lines = [{"step": i, "loss": 1.0 / i} for i in range(1, 9)]
    plain = learning_curves(lines, "mean_iou")
    both = learning_curves(
        [
            *lines,
            {"step": 4, "validation": {"mean_iou": 0.3}},
            {"step": 8, "validation": {"mean_iou": 0.4}},
        ],
        "mean_iou",
    )
    assert len(plain.figures) == 1 and len(both.figures) == 2
