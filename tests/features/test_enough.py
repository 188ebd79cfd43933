"""Learning curves on features, and what a run says about them."""

import json

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.features import enough
from headstart.features.enough import (
    MOST,
    forecast_of,
    measure,
    predictions,
    spanned,
    stratified,
    subset_sizes,
)
from headstart.progress import Lines
from photo_data import make_class_folders


def blobs(examples, width=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    centers = np.random.default_rng(99).normal(size=(classes, width))
    return (centers[labels] + 2.5 * rng.normal(size=(examples, width))).astype(np.float32), labels


def test_every_beginning_holds_all_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = stratified(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(100)) and set(labels[order[:3]]) == {0, 1, 2}
    for size in (20, 50, 80):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 2


def test_the_curve_is_that_of_heads_fitted_one_at_a_time():
    """The largest subset is everything: its error is that of one head on the held-out examples."""
    features, labels = blobs(90)
    others, truth = blobs(60, seed=1)
    curve, recalls = measure(features, labels, 3, (others, truth))
    assert curve.sizes[-1] == 90 and curve.tested == 150
    assert (np.diff(curve.sizes) > 0).all() and curve.errors[-1] < curve.errors[0]
    x = spanned(np.concatenate([features, others]))
    predicted = predictions(x[:90], labels, x[90:], 12)
    assert curve.errors[-1] == pytest.approx(np.mean(predicted != truth))
    expected = [np.mean(predicted[truth == label] == label) for label in range(3)]
    np.testing.assert_allclose(recalls[-1], expected)


def test_features_of_any_scale_give_the_same_curve():
    features, labels = blobs(60)
    scale = np.geomspace(1e-3, 1e3, 12).astype(np.float32)
    first, second = (measure(each, labels, 3)[0] for each in (features, features * scale + 5))
    np.testing.assert_allclose(first.errors, second.errors, atol=0.02)


def test_a_rotation_into_the_span_changes_nothing():
    """30 examples of 50 features: their span has fewer dimensions, and the same distances."""
    features, labels = blobs(30, width=50)
    x = (features - features.mean(0)) / features.std(0)
    z = spanned(features)
    assert z.shape[1] < 30
    few = slice(0, 20)
    np.testing.assert_array_equal(
        predictions(x[few].astype(np.float64), labels[few], x.astype(np.float64), 50),
        predictions(z[few], labels[few], z, 50),
    )


def test_a_class_without_examples_is_never_predicted():
    features, labels = blobs(60)
    kept = labels != 1
    x = spanned(features)
    assert set(predictions(x[kept], labels[kept], x, 12)) == {0, 2}


@pytest.mark.parametrize("held_out", [True, False])
def test_the_curve_of_many_examples_goes_on_to_all_of_them(monkeypatch, held_out):
    """Its last point is one head on everything but what is tested."""
    monkeypatch.setattr(enough, "MOST", 40)
    monkeypatch.setattr(enough, "ROWS", 64)
    features, labels = blobs(700)
    others = blobs(30, seed=1) if held_out else None
    curve, recalls = measure(features, labels, 3, others)
    expected = [80, 138, 237, 407, 700] if held_out else [80, 136, 230, 389, 660]
    assert curve.sizes[-5:].tolist() == expected
    assert (np.diff(curve.sizes) > 0).all() and len(recalls) == len(curve.sizes)
    order = stratified(labels, np.random.default_rng([0, 0xE0F]))
    tests, train = others or (features[order[-40:]], labels[order[-40:]]), order[: curve.sizes[-1]]
    first = features[order[:80]].astype(np.float64)
    x, z = ((each - first.mean(0)) / first.std(0) for each in (features[train], tests[0]))
    wrong = predictions(x, labels[train], z, 12) != tests[1]
    assert curve.errors[-1] == pytest.approx(wrong.mean())
    np.testing.assert_allclose(
        recalls[-1], [1 - wrong[tests[1] == label].mean() for label in range(3)]
    )
    found = forecast_of(features, labels, "abc", others)
    assert found.laws.examples == curve.sizes[-1] and len(found.gains) == 3


def test_a_class_with_one_example_is_known_from_where_it_comes_first(monkeypatch):
    monkeypatch.setattr(enough, "MOST", 40)
    features, labels = blobs(400)
    labels[7] = 3
    curve, recalls = measure(features, labels, 5, blobs(30, seed=1))
    assert np.isfinite(curve.errors).all() and recalls.shape == (len(curve.sizes), 5)


def test_large_data_is_measured_on_a_part():
    assert subset_sizes(100_000, 10, 500)[-1] == round(0.9 * MOST)
    assert subset_sizes(100, 2, 0)[-1] == 90 and subset_sizes(100, 2, 20)[-1] == 100
    assert subset_sizes(100, 2, 20)[0] >= 4


def test_a_forecast_is_repeatable_and_close():
    """Fitted to 240 examples, compared with the error of 480 on many others."""
    names, held_out = ["a", "b", "c"], blobs(240, seed=5)
    first, again = (forecast_of(*blobs(240), names, held_out) for _ in range(2))
    assert first.text() == again.text()
    more, others = blobs(480, seed=2), blobs(3000, seed=3)
    x = spanned(np.concatenate([more[0], others[0]]))
    right = np.mean(predictions(x[:480], more[1], x[480:], 12) == others[1])
    assert first.doubled.value == pytest.approx(right, abs=0.05)


@pytest.mark.parametrize("each, shown", [(8, False), (15, True)])
def test_a_run_says_whether_its_data_is_enough(each, shown, tiny_model, tmp_path, capsys):
    data = make_class_folders(tmp_path / "data", {"bird": each, "cat": each})
    run = headstart.train(
        data, model=tiny_model, out=tmp_path / "run", tune="head", crop=20, device="cpu",
        progress=Lines(),
    )  # fmt: skip
    values = json.loads((run.folder / "results.json").read_text())
    page = (run.folder / "report.html").read_text()
    assert (values["enough"] is not None) == shown == (run.forecast is not None)
    assert ("Is this enough?" in page) == shown
    assert ("is this enough? " in capsys.readouterr().err) == shown
    if shown:
        assert values["enough"]["forecast"][1]["examples"] == 48
        assert {each["name"] for each in values["enough"]["classes"]} == {"bird", "cat"}


@pytest.mark.parametrize("shots", [1, 3])
def test_series_are_called_optimistic(shots, tiny_model, tmp_path):
    """Copies with one other pixel are nearly the same image."""
    rng = np.random.default_rng(shots)
    for name in ("bird", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for scene in range(24 // shots):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            for shot in range(shots):
                pixels[0, 0] = shot
                file = tmp_path / "data" / name / f"{scene}_{shot}.png"
                Image.fromarray(pixels).save(file)
    run = headstart.train(
        tmp_path / "data", model=tiny_model, out=tmp_path / "run", tune="head", crop=20,
        device="cpu",
    )  # fmt: skip
    values = json.loads((tmp_path / "run" / "results.json").read_text())["enough"]
    page = (tmp_path / "run" / "report.html").read_text()
    series = shots > 1
    assert (values["related"] > 0.9) == series and (values["related"] == 0) != series
    assert ("the forecast is optimistic" in run.forecast.text()) == series
    assert ("the forecast is optimistic" in page) == series
