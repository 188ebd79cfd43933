"""Duplicates, leaks and contradictions in a data set."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import data_dir
from headstart.train.audit import FLAT, NEAR, audit, difference_hash, near_pairs


def picture(seed, width=120, height=90):
    """Smooth blobs, as photos are: a small random picture blown up."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for n, label in enumerate(("bird", "cat")):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                picture(100 * n + i + (50 if split == "val" else 0)).save(tmp_path / split / label / f"{i}.png")
    return tmp_path


def test_a_clean_data_set_has_nothing(folder):
    found = audit(folder)
    assert found.images == 12 and found.pairs == [] and found.unreadable == []


def test_leaks_contradictions_and_unreadable(folder):
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "val" / "cat" / "copy.png")
    picture(2, 60, 45).save(folder / "train" / "cat" / "smaller_bird.jpg", quality=70)
    Image.eval(picture(101), lambda v: min(255, v + 8)).save(folder / "train" / "cat" / "brighter.png")
    (folder / "train" / "cat" / "words.png").write_text("words")
    found = audit(folder)
    assert [(name.rpartition("/")[2]) for name, _ in found.unreadable] == ["words.png"]
    pairs = {(pair.first.rpartition("/")[2], pair.second.rpartition("/")[2]): pair for pair in found.pairs}
    assert set(pairs) == {("1.png", "copy.png"), ("2.png", "smaller_bird.jpg"), ("1.png", "brighter.png")}
    leak = pairs["1.png", "copy.png"]
    assert leak.kind == "exact" and leak.leaks and leak.splits == ("train", "validation") and found.leaks == [leak]
    assert pairs["2.png", "smaller_bird.jpg"].kind == "near" and found.contradictions == [pairs["2.png", "smaller_bird.jpg"]]
    assert found.pairs[0] == leak, "leaks come first"


def test_unrelated_photos_are_not_near():
    """50 training photos of ants and bees: no near pair among them, other than what is really there."""
    found = audit(data_dir("images", "hymenoptera"))
    assert found.images == 74 and found.unreadable == [] and len(found.pairs) <= 1


def test_flat_pictures_are_not_near_each_other():
    assert difference_hash(np.full((20, 30, 3), 7, np.uint8)) == FLAT
    assert near_pairs(np.array([FLAT, FLAT], dtype=np.uint64), ["a", "b"]) == []
    assert near_pairs(np.array([FLAT, FLAT], dtype=np.uint64), ["a", "a"]) == [(0, 1)]


@given(st.lists(st.integers(0, 2**64 - 2), min_size=2, max_size=12), st.data())
def test_near_pairs_are_the_definition(values, data):
    """The search through words finds what comparing everything with everything finds."""
    for _ in range(4):  # plant relatives
        bits = data.draw(st.lists(st.integers(0, 63), max_size=5))
        values.append(values[data.draw(st.integers(0, len(values) - 1))] ^ sum({1 << bit for bit in bits}))
    values = [value for value in values if value != FLAT]
    hashes = np.array(values, dtype=np.uint64)
    expected = []
    for i in range(len(values)):
        near = [j for j in range(i) if (values[i] ^ values[j]).bit_count() <= NEAR]
        if near:
            expected.append((min(near), i))
    # An image that is near an earlier one still counts as an earlier one itself.
    assert near_pairs(hashes, [str(i) for i in range(len(values))]) == sorted(expected)
