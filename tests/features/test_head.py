"""`--tune head`: the fit against scikit-learn, the store of features, and whole runs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import headstart
from headstart import AutoModelForImageClassification
from headstart.errors import DataError
from headstart.features.extract import model_key
from headstart.features.head import (
    STRENGTHS,
    Problem,
    blas_threads,
    fit_head,
    install,
    logistic,
    one_thread,
    span,
)
from headstart.nn.hooks import inputs_of
from headstart.progress import Lines
from headstart.tasks.image_classification import head_of
from headstart.training.evaluate import evaluate
from photo_data import make_class_folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def blobs(examples, width, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    centres = rng.normal(size=(classes, width))
    return (centres[labels] + 1.5 * rng.normal(size=(examples, width))).astype(np.float32), labels


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with blas_threads().limit(limits=2, user_api="blas"):
        yield
    torch.set_num_threads(before)


def threads_now():
    """Of torch, and of the libraries of numpy and scipy."""
    pools = blas_threads().select(user_api="blas").info()
    return [torch.get_num_threads(), *(each["num_threads"] for each in pools)]


def test_small_problems_take_one_thread_of_every_library(two_threads):
    assert set(threads_now()) == {2}
    with one_thread() as before:
        assert before == 2 and set(threads_now()) == {1}
        with one_thread() as inside:
            assert inside == 1
        assert set(threads_now()) == {1}
    assert set(threads_now()) == {2}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_logistic_regression_against_scikit_learn(classes, strength):
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(60, 7, classes)
    x = x.astype(np.float64)
    found = logistic(Problem(x, labels, classes), strength, tolerance=1e-10)
    weight, bias = found.weight, found.bias
    # Two classes have one row there, the difference of our two, which are its halves: |w|² there is
    # half of it here.
    theirs = linear.LogisticRegression(
        C=strength * (2.0 if classes == 2 else 1.0), tol=1e-10, max_iter=10_000
    ).fit(x, labels)
    found = torch.from_numpy(x @ weight.T + bias).softmax(1).numpy()
    if classes == 2:
        np.testing.assert_allclose(weight[1] - weight[0], theirs.coef_[0], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=2e-4)


def test_few_examples_in_many_dimensions_are_the_same_problem():
    """The weights of 20 examples in 50 dimensions lie in the span of the examples."""
    x, labels = blobs(20, 50, 3)
    x = x.astype(np.float64)
    basis = span(x)
    assert basis.shape == (20, 50)
    np.testing.assert_allclose(basis @ basis.T, np.eye(20), atol=1e-9)
    full = logistic(Problem(x, labels, 3), 1.0, tolerance=1e-10)
    small = logistic(Problem(x @ basis.T, labels, 3), 1.0, tolerance=1e-10)
    np.testing.assert_allclose(small.weight @ basis, full.weight, atol=1e-4)


def test_the_head_works_on_features_as_they_are():
    """Centring and scaling are folded into the layer."""
    x, labels = blobs(90, 12, 3)
    x = 40 * x + 7
    fit = fit_head(x, labels, 3)
    layer = torch.nn.Linear(12, 3)
    install(layer, fit)
    right = (layer(torch.from_numpy(x)).argmax(1).numpy() == labels).mean()
    assert right > 0.8 and fit.folds == 5 and fit.strength == min(fit.losses, key=fit.losses.get)


def test_noise_is_regularised_more_than_signal():
    x, labels = blobs(120, 30, 2)
    noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    assert fit_head(noise, labels, 2).strength < fit_head(x, labels, 2).strength


def test_strengths_that_only_harm_are_not_tried():
    """Cross-validation ends after the loss went up twice."""
    x, labels = blobs(120, 30, 2)
    losses = list(
        fit_head(
            np.random.default_rng(1).normal(size=x.shape).astype(np.float32), labels, 2
        ).losses.values()
    )
    assert len(losses) < len(STRENGTHS) and losses[-3] < losses[-2] < losses[-1]


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 5))
def test_any_small_data_can_be_fitted(classes, each, seed):
    x, labels = blobs(classes * each, 5, classes, seed)
    fit = fit_head(x, labels, classes)
    assert np.isfinite(fit.weight).all() and (fit.folds >= 2) == (each >= 2) == bool(fit.losses)


def test_the_key_knows_weights_and_preprocessing(tiny_model):
    model = AutoModelForImageClassification.from_pretrained(tiny_model)
    key = model_key(model, {"size": 3})
    assert (
        key
        == model_key(AutoModelForImageClassification.from_pretrained(tiny_model), {"size": 3})
        != model_key(model, {"size": 4})
    )
    with torch.no_grad():
        head_of(model).weight.add_(1)
        assert model_key(model, {"size": 3}) == key
        next(model.parameters()).view(-1)[0] += 1e-3
    assert model_key(model, {"size": 3}) != key


def test_head_inputs_give_the_logits(tiny_model):
    model = AutoModelForImageClassification.from_pretrained(tiny_model)
    pixels = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    with inputs_of(head_of(model)) as seen:
        logits = model(pixel_values=pixels).logits
    torch.testing.assert_close(head_of(model)(seen[0]), logits)


def test_a_run_on_features(photos, tiny_model, tmp_path, capsys):
    first = headstart.train(
        photos,
        model=tiny_model,
        out=tmp_path / "a",
        tune="head",
        crop=20,
        device="cpu",
        progress=Lines(),
    )
    assert "known from before" not in capsys.readouterr().err
    assert first.metrics["accuracy"] > 0.8
    _, again = evaluate(first.folder, photos, device="cpu")
    for name, value in again.metrics.items():
        assert value == pytest.approx(first.metrics[name], abs=1e-4), name
    assert "chosen by 4-fold cross-validation" in (first.folder / "report.html").read_text()

    same = {"model": tiny_model, "tune": "head", "device": "cpu", "progress": Lines()}
    second = headstart.train(photos, out=tmp_path / "b", crop=20, shots=3, seed=2, **same)
    assert "features of 21 images are known from before" in capsys.readouterr().err
    assert json.loads((second.folder / "results.json").read_text())["splits"]["train"] == 9
    other = headstart.train(photos, out=tmp_path / "c", crop=24, **same)
    assert "known from before" not in capsys.readouterr().err and other.recipe.crop == 24


def test_only_the_head_changes(photos, tiny_model, tmp_path):
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "a", tune="head", crop=20, device="cpu"
    )
    before, after = (
        AutoModelForImageClassification.from_pretrained(each).state_dict()
        for each in (tiny_model, found.folder)
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }


def test_bad_images_are_listed_here_too(tiny_model, tmp_path):
    folder = make_class_folders(tmp_path / "d", {"bird": 5, "cat": 5})
    data = (folder / "cat" / "cat_0.png").read_bytes()
    for name in ("cat/half.png", "bird/half_too.png"):
        (folder / name).write_bytes(data[: len(data) // 2])
    Image.open(folder / "cat" / "cat_1.png").save(folder / "cat" / "again.png")
    with pytest.raises(DataError, match="2 of 13 images cannot be read") as caught:
        headstart.train(
            folder, model=tiny_model, out=tmp_path / "run", tune="head", crop=20, device="cpu"
        )
    assert "half.png" in str(caught.value) and "half_too.png" in str(caught.value)
    assert not (tmp_path / "run").exists()
    found = headstart.train(
        folder,
        model=tiny_model,
        out=tmp_path / "run",
        tune="head",
        crop=20,
        skip_bad=True,
        device="cpu",
    )
    assert sum(json.loads((found.folder / "results.json").read_text())["splits"].values()) == 11
