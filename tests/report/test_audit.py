"""Duplicates, leaks and contradictions in a data set."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import data_dir
from headstart.cli.app import main
from headstart.data.duplicates import FLAT, NEAR, difference_hash, near_pairs
from headstart.progress import Silent
from headstart.report import suspects
from headstart.report.audit import announced, audit
from headstart.report.suspects import doubtful_labels, neighbour_distances, outliers
from photo_data import make_class_folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(seed, width=120, height=90):
    """Smooth blobs, as photos are: a small random image blown up."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for n, label in enumerate(("bird", "cat")):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                image(100 * n + i + (50 if split == "val" else 0)).save(
                    tmp_path / split / label / f"{i}.png"
                )
    return tmp_path


def test_a_clean_data_set_has_nothing(folder):
    found = audit(folder)
    assert found.images == 12 and found.pairs == [] and found.unreadable == []


def test_leaks_contradictions_and_unreadable(folder):
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "val" / "cat" / "copy.png")
    image(2, 60, 45).save(folder / "train" / "cat" / "smaller_bird.jpg", quality=70)
    Image.eval(image(101), lambda v: min(255, v + 8)).save(
        folder / "train" / "cat" / "brighter.png"
    )
    (folder / "train" / "cat" / "words.png").write_text("words")
    found = audit(folder)
    assert [(name.rpartition("/")[2]) for name, _ in found.unreadable] == ["words.png"]
    pairs = {
        (pair.first.rpartition("/")[2], pair.second.rpartition("/")[2]): pair
        for pair in found.pairs
    }
    assert set(pairs) == {
        ("1.png", "copy.png"),
        ("2.png", "smaller_bird.jpg"),
        ("1.png", "brighter.png"),
    }
    leak = pairs["1.png", "copy.png"]
    assert (
        leak.kind == "exact"
        and leak.leaks
        and leak.splits == ("train", "validation")
        and found.leaks == [leak]
    )
    assert pairs["2.png", "smaller_bird.jpg"].kind == "near" and found.contradictions == [
        pairs["2.png", "smaller_bird.jpg"]
    ]
    assert found.pairs[0] == leak, "leaks come first"


def test_unrelated_photos_are_not_near():
    """50 training photos of ants and bees.

    No near pair among them, other than what is really there.
    """
    found = audit(data_dir("images", "hymenoptera"), model=None)
    assert found.images == 74 and found.unreadable == [] and len(found.pairs) <= 1


def test_flat_images_are_not_near_each_other():
    assert difference_hash(np.full((20, 30, 3), 7, np.uint8)) == FLAT
    assert near_pairs(np.array([FLAT, FLAT], dtype=np.uint64), ["a", "b"]) == []
    assert near_pairs(np.array([FLAT, FLAT], dtype=np.uint64), ["a", "a"]) == [(0, 1)]


@given(st.lists(st.integers(0, 2**64 - 2), min_size=2, max_size=12), st.data())
def test_near_pairs_are_the_definition(values, data):
    """The search through words finds what comparing everything with everything finds."""
    for _ in range(4):  # plant relatives
        bits = data.draw(st.lists(st.integers(0, 63), max_size=5))
        values.append(
            values[data.draw(st.integers(0, len(values) - 1))] ^ sum({1 << bit for bit in bits})
        )
    values = [value for value in values if value != FLAT]
    hashes = np.array(values, dtype=np.uint64)
    expected = []
    for i in range(len(values)):
        near = [j for j in range(i) if (values[i] ^ values[j]).bit_count() <= NEAR]
        if near:
            expected.append((min(near), i))
    # An image that is near an earlier one still counts as an earlier one itself.
    assert near_pairs(hashes, [str(i) for i in range(len(values))]) == sorted(expected)


# Wrong labels and outliers ------------------------------------------------------------------------


def blobs(seed=0, classes=4, each=40, width=12):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = 2.5 * rng.normal(size=(classes, width))
    return (centres[labels] + rng.normal(size=(len(labels), width))).astype(np.float32), labels, rng


def test_flipped_labels_are_doubted():
    features, labels, rng = blobs()
    assert doubtful_labels(features, labels, 4) == ([], 1.0)
    flipped = rng.permutation(len(labels))[:12]
    wrong = labels.copy()
    wrong[flipped] = (wrong[flipped] + rng.integers(1, 4, 12)) % 4
    found, agreement = doubtful_labels(features, wrong, 4)
    right = [doubt for doubt in found if doubt.index in flipped]
    assert len(right) >= 7 and right == found
    assert all(
        doubt.likely == labels[doubt.index] and doubt.label == wrong[doubt.index] for doubt in right
    )
    assert all(doubt.label_probability < doubt.likely_probability for doubt in found)
    assert agreement == pytest.approx(148 / 160, abs=0.02)


class Steps(Silent):
    """Keeps what is shown."""

    def __init__(self):
        self.labels, self.steps, self.totals = [], [], []

    def start(self, label, total, done=0, unit="img"):
        self.labels.append(label)
        self.totals.append(total)

    def update(self, done, values, rate=None):
        self.steps.append(done)


@pytest.mark.parametrize("large", [0, 1e9])
def test_the_search_for_wrong_labels_shows_its_progress(monkeypatch, large):
    monkeypatch.setattr(suspects, "LARGE", large)
    monkeypatch.setattr("headstart.progress.SHORT", -1.0)
    features, labels, _ = blobs(classes=3)
    progress = Steps()
    doubtful_labels(features, labels, 3, progress=progress)
    assert progress.labels == ["label errors"]
    assert len(progress.steps) >= 12 and progress.steps[-1] <= progress.totals[0]


@pytest.mark.parametrize("seed", range(4))
def test_hard_images_are_no_wrong_labels(seed):
    """Classes that overlap: the head disagrees with a third of the labels, all of them right."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 100)
    found, agreement = doubtful_labels(
        (0.9 * np.eye(3)[labels] + rng.normal(size=(300, 3))).astype(np.float32), labels, 3
    )
    assert 0.4 < agreement < 0.7 and len(found) <= 2


@pytest.mark.parametrize("seed", range(2))
def test_discriminants_take_the_place_of_fits_where_there_is_much(seed, monkeypatch):
    monkeypatch.setattr(suspects, "LARGE", 0)
    monkeypatch.delattr(suspects, "held_out_scores")
    features, labels, rng = blobs(seed, classes=6, each=60)
    flipped = rng.permutation(len(labels))[:12]
    wrong = labels.copy()
    wrong[flipped] = (wrong[flipped] + rng.integers(1, 6, 12)) % 6
    found, agreement = doubtful_labels(features, wrong, 6)
    right = [doubt for doubt in found if doubt.index in flipped]
    assert len(right) >= 7 and len(found) <= 2 * len(right)
    assert agreement == pytest.approx(348 / 360, abs=0.02)
    wrong[:2] = 6  # a class of its own, of which a fold may hold every example
    assert not any(doubt.label == 6 for doubt in doubtful_labels(features, wrong, 7)[0])


def test_hard_images_are_no_wrong_labels_of_discriminants(monkeypatch):
    monkeypatch.setattr(suspects, "LARGE", 0)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 400)
    features = (0.9 * np.eye(3)[labels] + rng.normal(size=(1200, 3))).astype(np.float32)
    found, agreement = doubtful_labels(features, labels, 3)
    assert 0.4 < agreement < 0.7 and len(found) <= 4


def test_rare_classes_are_not_doubted():
    features, labels, _ = blobs(classes=2)
    labels = labels.copy()
    labels[:2] = 2  # two images of a class of their own, which look like another class
    assert not any(doubt.label == 2 for doubt in doubtful_labels(features, labels, 3)[0])


def test_outliers_are_far():
    features, _, rng = blobs()
    assert outliers(features) == []
    features = np.concatenate([features, 9 * rng.normal(size=(2, 12)).astype(np.float32)])
    features[7] = -4 * features[7]
    assert {index for index, _ in outliers(features)} <= {7, 160, 161} and outliers(features)
    assert outliers(features[:10]) == []


def test_neighbours_are_the_definition():
    # more than one block
    features = np.random.default_rng(0).normal(size=(1100, 3)).astype(np.float32)
    x = features - features.mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in (0, 500, 1030, 1099):
        near = np.sort(1 - np.delete(x, i, axis=0) @ x[i])[:5].mean()
        assert neighbour_distances(features)[i] == pytest.approx(near, abs=1e-6)


def test_an_audit_finds_wrong_labels_and_shows_them(tmp_path, capsys):
    folder = tmp_path / "d"
    for n, label in enumerate(("bird", "cat", "dog")):
        # other noise in each, or they are near duplicates
        make_class_folders(folder, {label: 14}, first_seed=100 * n)
    (folder / "bird" / "bird_3.png").rename(folder / "cat" / "moved.png")
    (folder / "dog" / "dog_5.png").rename(folder / "bird" / "moved_too.png")
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(folder), "--json", "--html", str(tmp_path / "audit.html")])
    assert stop.value.code == 0, "guesses do not change the exit code"
    found = json.loads(capsys.readouterr().out)
    doubted = {
        (each["name"].rpartition("/")[2], each["label"], each["likely"])
        for each in found["mislabelled"]
    }
    assert (
        doubted == {("moved.png", "cat", "bird"), ("moved_too.png", "bird", "dog")}
        and found["outliers"] == []
    )
    page = (tmp_path / "audit.html").read_text()
    assert found["agreement"] == pytest.approx(40 / 42)
    assert (
        "Probably mislabelled (2)" in page
        and "agrees with 95% of all labels" in page
        and "moved.png" in page
        and page.count("data:image/jpeg") == 2
    )
    assert "http" not in page and "Recipe" not in page
    assert audit(folder, model=None).mislabelled == []
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(folder), "--quick"])
    assert "42 images: 0 unreadable" in capsys.readouterr().err


def test_bad_photos_are_named_counted_and_shown(folder, tmp_path, capsys):
    """In the lines, the JSON and the page, with their class; they do not fail the command."""
    dark = Image.eval(image(7), lambda value: value // 12)
    dark.save(folder / "train" / "bird" / "night.png")
    image(8, 900, 90).save(folder / "train" / "cat" / "strip.png")
    page = tmp_path / "audit.html"
    with pytest.raises(SystemExit, match="0"):
        main(["audit", str(folder), "--quick", "--json", "--html", str(page)])
    found = json.loads(capsys.readouterr().out)["bad_photos"]
    assert [(each["name"].rpartition("/")[2], each["label"], each["kind"]) for each in found] == [
        ("night.png", "bird", "dark"),
        ("strip.png", "cat", "odd-shaped"),
    ]
    text = page.read_text()
    assert "Dark (1)" in text and "Odd-shaped (1)" in text and "900x90" in text
    assert "2 bad photos (1 dark, 1 odd-shaped)" in text


def test_a_short_time_is_a_few_seconds():
    assert [announced(seconds) for seconds in (0.0, 4.9, 5.1, 80)] == [
        "a few seconds",
        "a few seconds",
        "about 5s",
        "about 1m 20s",
    ]
