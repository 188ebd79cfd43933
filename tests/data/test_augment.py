"""RandAugment, color jitter, random erasing and CutMix's box."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.augment import color_jitter, cutmix_box, rand_augment, random_erase
from headstart.data.options import DataOptions
from headstart.recipe import Recipe
from headstart.tasks import task_class
from headstart.training.run import train

IMAGE = np.random.default_rng(0).integers(0, 256, (23, 31, 3)).astype(np.uint8)
SMOOTH = np.linspace(20, 220, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)


def test_a_larger_magnitude_changes_more():
    def change(magnitude):
        changes = [
            np.abs(
                rand_augment(SMOOTH, magnitude, np.random.default_rng(i)).astype(int) - SMOOTH
            ).mean()
            for i in range(80)
        ]
        return float(np.mean(changes))

    assert change(2) < change(9)


CHANGES = [
    (rand_augment, 9),
    (color_jitter, 0.4),
    (lambda image, chance, rng: random_erase(image, chance, [0.5] * 3, [0.5] * 3, rng), 1),
]


@pytest.mark.parametrize("function, strength", CHANGES)
def test_only_the_generator_that_is_passed_in_decides(function, strength):
    """In threads too, where the global generator, which dropout draws from in the meantime, stays
    as it is.
    """
    state = torch.get_rng_state()
    one = [function(IMAGE, strength, np.random.default_rng(i)) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        other = list(
            pool.map(lambda i: function(IMAGE, strength, np.random.default_rng(i)), range(24))
        )
    assert all(
        np.array_equal(a, b) and a.shape == IMAGE.shape and a.dtype == np.uint8
        for a, b in zip(one, other, strict=True)
    )
    assert len({each.tobytes() for each in one}) > 12
    assert torch.equal(torch.get_rng_state(), state)


def test_jitter_stays_within_its_bounds():
    gray = np.full((6, 6, 3), 100, np.uint8)
    values = [color_jitter(gray, 0.4, np.random.default_rng(i)) for i in range(50)]
    assert (
        min(v.min() for v in values) >= 59
        and max(v.max() for v in values) <= 141
        and len({v.tobytes() for v in values}) > 10
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_erasing_touches_one_rectangle(seed):
    before = IMAGE.copy()
    out = random_erase(IMAGE, 1.0, [0.5] * 3, [0.5] * 3, np.random.default_rng(seed))
    assert np.array_equal(IMAGE, before)  # the cached image is not written to
    changed = (out != IMAGE).any(axis=2)
    if changed.any():
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert changed.sum() > 0.9 * area and area <= 0.45 * 23 * 31
    assert random_erase(IMAGE, 0.0, [0.5] * 3, [0.5] * 3, np.random.default_rng(seed)) is IMAGE


def test_what_is_erased_is_noise_of_the_data_s_color():
    """Every pixel and channel by itself, with the data's mean and deviation.

    Where nothing is erased the image stays.
    """
    black, mean, std = np.zeros((64, 80, 3), np.uint8), [0.3, 0.5, 0.6], [0.05, 0.1, 0.15]
    noise = []
    for seed in range(40):
        out = random_erase(black, 1.0, mean, std, np.random.default_rng(seed))
        rows, columns = (np.flatnonzero(out.any(axis=axes)) for axes in ((1, 2), (0, 2)))
        noise.append(out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(-1, 3) / 255)
    pixels = np.concatenate(noise)
    np.testing.assert_allclose(pixels.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(pixels.std(0), std, atol=0.01)
    # channels of their own
    assert np.abs(np.corrcoef(pixels.T)[np.triu_indices(3, 1)]).max() < 0.03
    assert abs(np.corrcoef(pixels[1:, 0], pixels[:-1, 0])[0, 1]) < 0.03  # and pixels


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 10**6))
def test_the_box_lies_inside_and_is_no_larger_than_requested(height, width, fraction, seed):
    top, left, bottom, right = cutmix_box(height, width, fraction, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - fraction) * height * width + 1e-9


def test_cutmix_pastes_the_box_and_shares_the_labels(photos, tiny_model):
    task = task_class("image-classification").read(photos, DataOptions())
    task.build(str(tiny_model), Recipe(crop=20, augment="none", cutmix=1.0))
    task.prepare(None)
    plain = task.collate([task.example(i, np.random.default_rng(i)) for i in range(6)])
    mixed = next(
        b
        for b in (task.augment_batch(plain, np.random.default_rng(s)) for s in range(9))
        if 0.2 < float(b["portion"]) < 0.8
    )
    top, left, bottom, right = mixed["box"].tolist()
    whole, cpu = slice(0, 6), torch.device("cpu")
    own, both = task.micro(plain, whole, cpu), task.micro(mixed, whole, cpu)
    expected = own["pixel_values"].clone()
    expected[..., top:bottom, left:right] = own["pixel_values"][mixed["partner"]][
        ..., top:bottom, left:right
    ]
    assert torch.equal(both["pixel_values"], expected)
    kept = 1 - (bottom - top) * (right - left) / 400
    assert torch.allclose(
        both["targets"],
        kept * own["targets"] + (1 - kept) * own["targets"][mixed["partner"]],
        atol=1e-6,
    )
    parts = [task.micro(mixed, rows, cpu)["pixel_values"] for rows in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.slow
def test_a_strong_recipe_trains(photos, tiny_model, tmp_path):
    values = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "rand_augment": 9.0,
        "erasing": 0.25,
        "label_smoothing": 0.1,
        "ema": 0.9,
    }
    result = train(
        photos,
        model=tiny_model,
        out=tmp_path / "r",
        recipe="finetune",
        crop=20,
        steps=6,
        batch_size=4,
        **values,
    )
    assert result.recipe.cutmix == 1.0 and "accuracy" in result.metrics
