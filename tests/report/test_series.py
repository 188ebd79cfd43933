"""Evaluated images of the same series as training images are named, unrelated ones are not."""

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.data.duplicates import FLAT
from headstart.report.series import alike, series_sections


def flipped(hashes, bits, rng):
    """The hashes with so many of their bits changed."""
    changed = hashes.copy()
    for i in range(len(changed)):
        for bit in rng.permutation(64)[:bits]:
            changed[i] ^= np.uint64(1) << np.uint64(bit)
    return changed


@pytest.fixture
def hashes():
    rng = np.random.default_rng(0)
    return rng.integers(0, 1 << 63, 300, dtype=np.uint64), rng


def test_shots_of_one_scene_are_alike_and_others_are_not(hashes):
    values, rng = hashes
    trained, others = values[:200], values[200:]
    evaluated = np.concatenate([flipped(trained[:30], 8, rng), others])
    assert alike(evaluated, trained).tolist() == [True] * 30 + [False] * 100
    assert not alike(flipped(trained[:30], 12, rng), trained).any()


def test_flat_images_and_missing_ones_are_like_none(hashes):
    flat = np.full(5, FLAT, dtype=np.uint64)
    assert not alike(flat, flat).any() and not alike(hashes[0], flat).any()
    assert not alike(flat[:0], hashes[0]).any()


def test_where_all_images_are_alike_fewer_bits_may_differ(hashes):
    """X-rays of chests: 16 bits apart on average, so 5 bits are not a sign of a series."""
    _, rng = hashes
    trained = flipped(np.zeros(100, dtype=np.uint64), 8, rng)
    assert not alike(flipped(trained[:20], 5, rng), trained).any()
    assert alike(flipped(trained[:20], 2, rng), trained).all()


def test_the_section_compares_both_kinds(hashes):
    values, rng = hashes
    evaluated = np.concatenate([flipped(values[:20], 4, rng), values[200:280]])
    right = np.array([True] * 19 + [False] + [True] * 40 + [False] * 40)
    (section,) = series_sections(evaluated, values[:200], right)
    assert section.text.startswith("20 of 100 evaluated images look much like a training image")
    assert "right for 95.0%" in section.text and "the others for 50.0%" in section.text
    assert series_sections(values[200:], values[:200], np.ones(100, dtype=bool)) == []
    few = np.concatenate([values[:4], values[200:296]])
    assert series_sections(few, values[:200], right) == []


def test_a_fitted_head_names_them_with_cached_features_too(tiny_model, tmp_path, monkeypatch):
    """Each scene has two shots, one on each side; the second run computes no features."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(4)
    for n in range(16):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        scene = np.asarray(small.resize((72, 72), Image.Resampling.BICUBIC), dtype=np.int64)
        for split in ("train", "val"):
            folder = tmp_path / "d" / split / ("bird", "cat")[n % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shot = (scene + rng.integers(-12, 12, scene.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(shot).save(folder / f"{n}.png")
    for name in ("first", "second"):
        run = headstart.train(
            tmp_path / "d", model=tiny_model, out=tmp_path / name, tune="head", device="cpu"
        )
        page = (run.folder / "report.html").read_text()
        assert "16 of 16 evaluated images look much like a training image" in page
