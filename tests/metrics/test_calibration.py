"""Temperature and the threshold of "I don't know".

What is reported was chosen on other examples.
"""

import json

import numpy as np
import pytest
import torch

import headstart
from headstart.errors import ConfigError
from headstart.metrics.calibration import calibrate, confidence_of, cross_fit
from headstart.metrics.classification import (
    best_temperature,
    negative_log_likelihood,
    reliability,
    softmax,
)
from headstart.pipelines.base import pipeline
from headstart.pipelines.confidence import UNKNOWN, Confidence
from photo_data import make_class_folders


def scores(count: int, seed: int = 0, heat: float = 3.0):
    """Logits (N, 4) that are `heat` times too large, and labels sampled from the honest
    probabilities.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    return (logits * heat).astype(np.float32), labels


def test_the_temperature_of_the_others_mends_a_fold():
    logits, labels = scores(4000)
    crossed, fold = cross_fit(logits, labels)
    assert np.bincount(fold).tolist() == [400] * 10
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    assert reliability(found.crossed, found.right).error < 0.03
    assert reliability(found.raw, found.right).error > 0.15
    # An example has no part in the temperature that it is evaluated with.
    changed = np.where(fold == 3, 3 - labels, labels)
    again, _ = cross_fit(logits, changed)
    assert np.array_equal(again[fold == 3], crossed[fold == 3]) and not np.allclose(
        again[fold == 4], crossed[fold == 4]
    )


def test_the_folds_share_few_passes_over_the_scores(monkeypatch):
    """A search for each of ten folds would take more than a hundred."""
    logits, labels = scores(500)
    passes, split = [], torch.split
    monkeypatch.setattr(torch, "split", lambda x, size: passes.append(len(x)) or split(x, size))
    temperatures, _ = cross_fit(logits, labels)
    assert len(set(temperatures.tolist())) == 10
    assert set(passes) == {500} and len(passes) <= 12


def test_it_is_not_flattered_by_few_examples():
    """On 20 examples a temperature fitted on themselves looks better than it is on 4,000 others.

    The cross-fitted one does not.
    """
    others, truth = scores(4000, seed=99, heat=1.0)
    flattery = []
    for seed in range(40):
        logits, labels = scores(20, seed, heat=1.0)
        crossed, _ = cross_fit(logits, labels)
        own = negative_log_likelihood(logits, labels, best_temperature(logits, labels))
        flattery.append((own, negative_log_likelihood(logits / crossed[:, None], labels)))
    honest = negative_log_likelihood(others, truth)
    own, crossed = np.mean(flattery, axis=0)
    assert own < honest < crossed


def test_a_temperature_that_does_not_help_is_not_used():
    """Scores that are calibrated already: what is fitted to them only adds noise."""
    used = []
    for seed in range(20):
        logits, labels = scores(60, seed, heat=1.0)
        found = calibrate(logits, labels)
        used.append(found.temperature)
        better = reliability(found.crossed, found.right).error
        assert better <= reliability(found.raw, found.right).error
        assert found.temperature != 1 or (found.crossed == found.raw).all()
    assert 0 < used.count(1.0) < 20


def test_few_examples_and_wrong_rates(tmp_path):
    logits, labels = scores(19)
    assert confidence_of(calibrate(logits, labels)) is None
    assert np.isfinite(cross_fit(*scores(1))[0]).all()
    with pytest.raises(ConfigError, match="max_error=1"):
        confidence_of(calibrate(logits, labels), 1.0)
    with pytest.raises(ConfigError, match="does not say when the model should refuse"):
        Confidence.read(tmp_path)
    (tmp_path / "confidence.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        Confidence.read(tmp_path)


@pytest.mark.slow
def test_a_target_error_needs_one_class_an_example(tiny_model, tmp_path):
    """Regression targets and tasks without classes have nothing to refuse by."""
    make_class_folders(tmp_path / "d", {"bird": 4, "cat": 4})
    paths = sorted((tmp_path / "d").glob("*/*.png"))
    rows = "".join(f"{path},{i / 8}\n" for i, path in enumerate(paths))
    (tmp_path / "numbers.csv").write_text("path,value\n" + rows)
    wanted = {"model": tiny_model, "out": tmp_path / "run", "steps": 1, "max_error": 0.05}
    with pytest.raises(ConfigError, match="one class each.*regression"):
        headstart.train(tmp_path / "numbers.csv", **wanted)
    with pytest.raises(ConfigError, match="masked-image-modeling has no option 'max_error'"):
        headstart.train(tmp_path / "d", task="masked-image-modeling", **wanted)


@pytest.fixture
def unsure(tiny_model, tmp_path):
    """A run on classes that cannot be distinguished."""
    make_class_folders(tmp_path / "d", {"bird": 40, "cat": 40})
    for i, file in enumerate(sorted((tmp_path / "d" / "cat").iterdir())):
        if i % 3 == 0:  # a third of the cats are birds
            file.write_bytes((tmp_path / "d" / "bird" / f"bird_{i}.png").read_bytes())
    values = {
        "steps": 6,
        "batch_size": 8,
        "resize": 24,
        "crop": 20,
        "device": "cpu",
        "val_fraction": 0.4,
        "max_error": 0.03,
    }
    return headstart.train(
        tmp_path / "d", model=tiny_model, out=tmp_path / "run", lr=0.02, **values
    )


def test_a_trained_model_refuses(unsure, tmp_path):
    """The report says so, and the pipeline refuses what is not sure enough."""
    found = unsure
    saved = json.loads((found.folder / "confidence.json").read_text())
    assert saved["max_error"] == 0.03 and saved["examples"] == found.evaluation.examples == 32
    page = (found.folder / "report.html").read_text()
    assert (
        "When it should say" in page
        and "exceeds its target with a probability of at most 10%" in page
        and "are too few for an error rate of 3%: even without an error it takes 76" in page
    )
    saved["choices"] = [{"max_error": 0.03, "threshold": 0.7, "refused": 0.5, "error": 0.0}]
    (found.folder / "confidence.json").write_text(json.dumps(saved | {"temperature": 2.0}))
    files = sorted((tmp_path / "d").rglob("*.png"))[::4]
    plain, careful = (
        pipeline("image-classification", found.folder),
        pipeline("image-classification", found.folder, refuse=True),
    )
    chances = careful.probabilities(files)
    assert torch.equal(chances, plain.probabilities(files)), "one confidence for both"
    (found.folder / "confidence.json").unlink()
    cold = pipeline("image-classification", found.folder)
    assert (chances - (cold.probabilities(files).log() / 2).softmax(1)).abs().max() < 1e-5
    (found.folder / "confidence.json").write_text(json.dumps(saved | {"temperature": 2.0}))
    answers = careful(files)
    assert [answer[0]["label"] == UNKNOWN for answer in answers] == [
        bool(row.max() < 0.7) for row in chances
    ]
    assert not any(answer[0]["label"] == UNKNOWN for answer in plain(files))
    with pytest.raises(ConfigError, match="0.3 was not looked at; there are 0.03"):
        pipeline("image-classification", found.folder, refuse=0.3)
