"""The choice of a head: folds, gains, folding into one layer; and whole runs with it."""

import json
import shutil

import numpy as np
import pytest
import torch

import headstart
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.data.options import DataOptions
from headstart.features import head
from headstart.features.choice import Views, most_trials, search
from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.extract import Extractor, extractor_of
from headstart.features.head import HeadCost, Problem, log_loss, logistic
from headstart.features.portfolio import (
    Candidate,
    Comparison,
    View,
    climb,
    close_start,
    fit_linear,
    fit_trial,
    grouped_folds,
    iterations_of,
    scaled,
)
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks.base import joined_groups
from headstart.tasks.image_classification import ImageClassification
from headstart.training import fit_head

LAST, USUAL = 6, View(32)


def blobs(examples, classes, seed=0, noise=1.5):
    """Features whose last columns say little and whose first ones say more."""
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    early = rng.normal(size=(classes, 10))[labels] + noise * rng.normal(size=(examples, 10))
    late = 0.3 * rng.normal(size=(classes, LAST))[labels] + rng.normal(size=(examples, LAST))
    return np.concatenate([40 * early + 5, late], axis=1).astype(np.float32), labels


def candidate(stages="last", head="logistic", view=USUAL):
    return Candidate(view, stages, head)


def reads(features, stages):
    return features[:, -LAST:] if stages == "last" else features


def compared(features, labels, *candidates, **options):
    comparison = Comparison(labels, int(labels.max()) + 1, **options)
    for each in candidates:
        comparison.try_candidate(each, reads(features, each.stages)[comparison.rows])
    return comparison


def test_members_of_a_group_share_a_fold():
    labels = np.repeat([0, 1, 2], 12)
    groups = np.arange(36) // 3
    fold = grouped_folds(labels, groups, np.random.default_rng(0))
    assert all(len(set(fold[groups == each])) == 1 for each in range(12))
    assert set(fold) == {0, 1, 2, 3}  # four groups of each class
    for each in range(3):
        assert set(fold[labels == each]) == {0, 1, 2, 3}


def test_pairs_and_groups_of_the_data_join():
    """A pair of near duplicates joins the groups of its two images."""
    own = np.array([5, 5, 6, 6, 7, 8])
    assert joined_groups(6, [(1, 2)], own).tolist() == [0, 0, 0, 0, 1, 2]
    assert joined_groups(4, [(0, 3)], None).tolist() == [0, 1, 2, 0]
    assert joined_groups(2, [], None).tolist() == [0, 1]


def test_a_class_within_one_group_is_not_compared():
    labels = np.repeat([0, 1], 6)
    groups = np.array([0, 1, 2, 3, 4, 5, *[6] * 6])
    assert grouped_folds(labels, groups, np.random.default_rng(0)) is None
    alone = Comparison(labels, 2, groups=lambda rows: groups[rows])
    assert alone.groups is None and alone.count == 5  # all count as different then
    assert not Comparison(np.arange(4), 4).possible


def test_many_classes_are_compared_in_proportion():
    """A plain random subset would leave classes with a single example, and compare nothing."""
    labels = np.random.default_rng(0).permutation(np.arange(6000) % 1000)
    comparison = Comparison(labels, 1000, widest=5000)
    counts = np.bincount(comparison.labels, minlength=1000)
    assert comparison.possible
    assert (counts.min(), counts.max()) == (4, 4)
    assert len(comparison.rows) == 4000


@pytest.mark.parametrize(
    "examples, classes, rows, closed",
    [
        (1000, 20, 1000, False),  # all of them, or enough of each class
        (100_000, 20, 4000, False),
        (1000, 200, 1000, True),
        (100_000, 200, 4000, True),
        (300, 100, 300, False),  # few examples are few dimensions
    ],
)
def test_many_classes_take_closed_forms(examples, classes, rows, closed):
    """Logistic heads of 1,000 images and 200 classes took 100 CPU seconds, their features two."""
    comparison = Comparison(np.arange(examples) % classes, classes, widest=2240)
    assert comparison.heads == (("discriminant",) if closed else ("logistic", "discriminant"))
    assert len(comparison.rows) == rows
    several = Comparison(np.eye(classes)[np.arange(examples) % classes], classes, MULTI)
    assert several.heads == ("logistic",)


class Jobs(Silent):
    """Notes the pieces of work, and the steps that each of them showed."""

    def __init__(self):
        self.jobs = []

    def start(self, label, total, done=0, unit="img"):
        self.jobs.append((label, total, unit, []))

    def update(self, done, values, rate=None):
        self.jobs[-1][3].append(done)


def test_each_averaged_head_shows_its_own_iterations():
    features, labels = blobs(300, 3)
    trial = compared(features, labels, candidate(), candidate("all")).average_best(USUAL)
    jobs = Jobs()
    fit_trial(trial, lambda each: reads(features, each.stages), labels, 3, None, jobs)
    assert [label for label, *_ in jobs.jobs] == ["fitting the head"] * 2
    # the solver ends early, and the bar does not stay where it was
    assert all(done[-2] < 400 and done[-1] == total == 500 for _, total, _, done in jobs.jobs)


def test_the_sums_of_a_discriminant_are_shown():
    features, labels = blobs(300, 3)
    jobs = Jobs()
    fit_linear("discriminant", Problem(features, labels, 3), 0.5, progress=jobs)
    assert [job[:3] for job in jobs.jobs] == [("fitting the head", 300, "examples")]


def test_a_candidate_shows_its_fits():
    features, labels = blobs(90, 3)
    comparison = compared(features, labels, candidate())
    once, several = [], []
    comparison.try_candidate(candidate(), features, 1.0, settled=True, seen=once.append)
    comparison.try_candidate(candidate(), features, seen=several.append)
    assert len(once) == comparison.fits("logistic", settled=True) == 15  # 3 times 5 folds
    assert len(once) < len(several) <= comparison.fits("logistic") == 7 * 15


def test_near_duplicates_flatter_unless_they_are_grouped():
    """Noise that is repeated looks learnable; with groups it does not."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(30, 16)).astype(np.float32), 4, axis=0)
    labels, groups = np.repeat(np.arange(30) % 2, 4), np.repeat(np.arange(30), 4)
    alone = compared(features, labels, candidate("all"))
    together = compared(features, labels, candidate("all"), groups=lambda rows: groups[rows])
    assert alone.plain.loss < 0.4 < 0.6 < together.plain.loss


def test_gains_and_errors_are_those_of_pairs():
    features, labels = blobs(90, 3)
    comparison = compared(features, labels, candidate(), candidate("all"))
    plain, other = comparison.trials
    gains = plain.losses - other.losses
    assert other.gain == pytest.approx(gains.mean()) and other.gain > other.error
    assert other.error == pytest.approx(gains.std(ddof=1) / np.sqrt(len(gains)))
    assert comparison.better(other, plain) and not comparison.better(plain, other)


def test_the_plain_head_stays_where_nothing_gains():
    """Of features in which the other stages are noise."""
    rng = np.random.default_rng(1)
    features, labels = blobs(120, 3)
    features[:, -LAST:] = features[:, 4:10]
    features[:, :-LAST] = rng.normal(size=(120, 10))
    comparison = compared(features, labels, candidate(), candidate("all"))
    assert not comparison.better(comparison.trials[1], comparison.plain)


@pytest.mark.parametrize("head", ["logistic", "discriminant"])
@pytest.mark.parametrize("stages", ["last", "all"])
def test_the_layer_is_the_head_on_standardized_features(head, stages):
    features, labels = blobs(60, 3)
    trial = compared(features, labels, candidate(stages, head)).plain
    fit = fit_trial(trial, lambda each: reads(features, each.stages), labels, 3, None)
    x, _, _ = scaled(reads(features, stages), stages)
    if head == "logistic":
        inner = logistic(Problem(x, labels, 3), trial.settings[0])
    else:
        inner = Discriminant.from_statistics(Statistics.of(x, labels, 3), trial.settings[0])
    expected = trial.scales[0] * (x @ inner.weight.T + inner.bias)
    found = reads(features, stages) @ fit.weight.T + fit.bias
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_an_average_folds_into_one_layer():
    features, labels = blobs(90, 3)
    candidates = [candidate(s, h) for s in ("last", "all") for h in ("logistic", "discriminant")]
    comparison = compared(features, labels, *candidates)
    average = comparison.average_best(USUAL)
    assert len(average.candidates) == 3
    fit = fit_trial(average, lambda each: reads(features, each.stages), labels, 3, None)
    total = np.zeros((90, 3))
    for single, factor in zip(average.candidates, average.scales, strict=True):
        trial = next(t for t in comparison.trials if t.candidates == (single,))
        layer = fit_trial(trial, lambda each: reads(features, each.stages), labels, 3, None)
        x = reads(features, single.stages)
        total += factor * (x @ layer.weight.T + layer.bias) / trial.scales[0]
    np.testing.assert_allclose(features @ fit.weight.T + fit.bias, total, rtol=1e-3, atol=1e-3)


def test_a_discriminant_in_cross_validation_is_fitted_to_the_other_folds():
    features, labels = blobs(45, 3)
    comparison = Comparison(labels, 3)
    x, _, _ = scaled(features, "all")
    found = comparison.held_out("discriminant", x, 0.5, [])
    fold = comparison.folds[1]
    head = Discriminant.from_statistics(Statistics.of(x[fold != 2], labels[fold != 2], 3), 0.5)
    expected = x[fold == 2] @ head.weight.T + head.bias
    np.testing.assert_allclose(found[1][fold == 2], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["logistic", "discriminant"])
def test_folds_side_by_side_give_the_bits_of_one_after_another(kind):
    """Of many features and of fewer examples than features, one setting after another."""
    for examples, width in ((60, 16), (40, 500)):
        features, labels = np.random.default_rng(0).normal(size=(examples, width)), np.arange(3)
        comparison = Comparison(np.resize(labels, examples), 3)
        starts = [], []
        for setting in (0.1, 0.5):
            one = comparison.held_out(kind, features, setting, starts[0])
            three = comparison.held_out(kind, features, setting, starts[1], workers=3)
            assert np.array_equal(one, three)


def test_scores_of_a_discriminant_are_scaled_to_probabilities():
    features, labels = blobs(60, 3, noise=4.0)
    trial = compared(features, labels, candidate("all", "discriminant")).plain
    comparison = Comparison(labels, 3)
    raw = np.mean([comparison.loss(each) for each in trial.scores[0]])
    assert trial.scales[0] < 1 and trial.loss < raw


@pytest.mark.parametrize(
    "kind, labels",
    [
        (SINGLE, np.arange(16) % 2),
        (MULTI, (np.arange(48).reshape(16, 3) % 5 > 2).astype(np.float64)),
        (REGRESSION, np.arange(32.0).reshape(16, 2)),
    ],
)
def test_examples_that_are_all_the_same_get_a_head(kind, labels):
    features = np.full((16, 30), 0.5, dtype=np.float32)  # fewer examples than features
    comparison = Comparison(labels, 2 if kind == SINGLE else labels.shape[1], kind)
    for name in comparison.heads:
        for stages in ("last", "all"):
            trial = comparison.try_candidate(Candidate(View(), stages, name), features)
            fit = fit_trial(trial, lambda _: features, labels, comparison.classes, None)
            scores = features @ fit.weight.T + fit.bias
            assert np.isfinite(scores).all()
            if kind == REGRESSION:
                np.testing.assert_allclose(scores[0], labels.mean(axis=0), rtol=1e-6)


def test_several_labels_and_numbers():
    features, labels = blobs(80, 3)
    several = np.eye(3)[labels]
    comparison = Comparison(several, 3, MULTI)
    trial = comparison.try_candidate(candidate("all"), features)
    fit = fit_trial(trial, lambda each: features, several, 3, None)
    assert ((features @ fit.weight.T + fit.bias > 0) == (several > 0.5)).mean() > 0.9
    numbers = features[:, :2] * 3 - 1
    comparison = Comparison(numbers, 2, REGRESSION)
    trial = comparison.try_candidate(candidate("all", "ridge"), features)
    fit = fit_trial(trial, lambda each: features, numbers, 2, None)
    np.testing.assert_allclose(features @ fit.weight.T + fit.bias, numbers, rtol=0.05, atol=2)
    assert trial.loss < 0.01


def test_few_iterations_from_a_discriminant_come_close():
    """What large problems get: the loss after 20 iterations is near that of convergence."""
    features, labels = blobs(300, 5, noise=1.0)
    problem = Problem(scaled(features, "all")[0], labels, 5)
    exact = log_loss(problem, logistic(problem, 1.0, tolerance=1e-9))
    started = fit_linear("logistic", problem, 1.0, work=0)
    cold = logistic(problem, 1.0, iterations=20)
    assert not started.converged and iterations_of(problem, 0) == 20
    assert log_loss(problem, started) < 1.1 * exact
    assert log_loss(problem, close_start(problem)) < 0.5 * 300 * np.log(5)
    assert log_loss(problem, started) <= 1.02 * log_loss(problem, cold)


def test_many_features_stay_in_single_precision(monkeypatch):
    features, _ = blobs(30, 3)
    exact, mean, scale = scaled(features, "all")
    monkeypatch.setattr("headstart.features.portfolio.LARGE", 100)
    single, _, _ = scaled(features, "all")
    assert exact.dtype == np.float64 and single.dtype == np.float32
    np.testing.assert_allclose(single, exact, atol=1e-4)


def test_a_seed_repeats_the_comparison():
    features, labels = blobs(60, 3)
    first, again, other = (
        compared(features, labels, candidate("all", "discriminant"), seed=seed).plain.losses
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_settings_are_climbed_to_the_least_loss():
    tried = []

    def held_out(setting, starts):
        tried.append(setting)
        return np.array([setting])

    found, setting = climb((1, 2, 3, 4, 5, 6, 7), None, held_out, lambda scores: abs(scores[0] - 2))
    assert setting == 2 and found[0] == 2 and tried == [4, 5, 3, 2, 1]
    tried.clear()
    assert climb((1, 10, 100), 9, held_out, lambda scores: -scores[0])[1] == 100
    assert tried == [10, 100]


class Pages:
    """Features of examples by view."""

    def __init__(self, features):
        self.by_view, self.usual, self.wide, self.progress = features, LAST, True, Silent()
        self.asked = {}  # most examples of each view

    def features(self, view, digests):
        self.asked[view] = max(len(digests), self.asked.get(view, 0))
        return self.by_view[view][digests]

    def of(self, candidate, features):
        return reads(features, candidate.stages)


def sharper(features, factor):
    """Features with less noise: what larger images may give."""
    rng = np.random.default_rng(7)
    noise = rng.normal(size=features.shape).astype(np.float32)
    return features + factor * noise * features.std(axis=0)


def choose(features, labels, sides, afford=lambda view: True):
    comparison, pages = Comparison(labels, int(labels.max()) + 1), Pages(features)
    tried, digests = [], list(range(len(labels)))
    choice, notes = search(pages, comparison, digests, sides, afford, tried.append)
    assert 0 < sum(tried) <= most_trials(comparison, sides)
    return choice, comparison, notes, pages.asked


def test_larger_images_are_taken_while_they_gain():
    best, labels = blobs(150, 3, noise=0.5)
    views = {
        View(32): sharper(best, 3.0),
        View(48): sharper(best, 1.5),
        View(64): sharper(best, 1.5),
        View(96): best,  # never reached: 64 pixels gain nothing over 48
        View(48, True): sharper(best, 1.5),
    }
    choice, comparison, *_ = choose(views, labels, [32, 48, 64, 96])
    tried = {each.view for trial in comparison.trials for each in trial.candidates}
    assert choice.candidates[0].view == View(48) and View(96) not in tried
    assert choice.gain > choice.error


def test_mirror_images_are_taken_where_they_gain():
    best, labels = blobs(150, 3, noise=0.5)
    views = {View(32): sharper(best, 2.0), View(32, True): best}
    choice, *_ = choose(views, labels, [32])
    assert choice.candidates[0].view == View(32, True)


def test_a_view_without_promise_is_computed_for_a_part_of_the_examples(monkeypatch):
    part, fit = [], Comparison.try_candidate

    def fitted(self, candidate, features, *args, **options):
        if len(features) == 200:
            part.append(candidate.view)
        return fit(self, candidate, features, *args, **options)

    monkeypatch.setattr(Comparison, "try_candidate", fitted)
    best, labels = blobs(600, 3, noise=2.5)
    views = {View(32): best, View(48): sharper(best, 1.0), View(32, True): best}
    choice, comparison, notes, asked = choose(views, labels, [32, 48, 64])
    assert part == [View(32), View(48), View(32, True)]  # the usual view once
    assert asked == {View(32): 600, View(48): 200, View(32, True): 200}
    assert {each.view for trial in comparison.trials for each in trial.candidates} == {View(32)}
    assert choice.candidates[0].view == View(32)
    assert notes[0].startswith("48 pixels: tried on 200 examples alone, where the held-out loss is")
    assert "higher (standard error" in notes[0]


def test_a_view_that_gains_on_a_part_is_compared_on_all():
    best, labels = blobs(600, 3, noise=1.0)
    views = {View(32): sharper(best, 3.0), View(48): best, View(48, True): best}
    choice, comparison, notes, asked = choose(views, labels, [32, 48])
    assert asked == {View(32): 600, View(48): 600, View(48, True): 200}
    assert choice.candidates[0].view == View(48) and len(choice.losses) == 600
    assert len(notes) == 1 and notes[0].startswith("48 pixels, mirror images: tried on 200")


def test_a_part_has_all_classes_and_whole_groups_in_a_fold():
    rng = np.random.default_rng(3)
    labels, groups = np.repeat(np.arange(3), [500, 60, 40]), np.arange(600) // 4
    whole = Comparison(labels, 3, groups=lambda rows: groups[rows], weights=rng.random(600))
    places, part = whole.part()
    assert len(places) == 200 and np.bincount(part.labels).tolist() == [167, 20, 13]
    np.testing.assert_array_equal(part.labels, labels[places])
    np.testing.assert_array_equal(part.groups, groups[places])
    np.testing.assert_array_equal(part.weights, whole.weights[places])
    for fold in part.folds:
        assert all(len(set(fold[part.groups == group])) == 1 for group in set(part.groups))
    numbers = Comparison(rng.normal(size=(500, 2)), 2, REGRESSION)
    assert [len(each) for each in (numbers.part()[0], numbers.part()[1].labels)] == [200, 200]


def test_few_examples_have_no_part():
    assert Comparison(np.arange(399) % 3, 3).part() is None
    assert Comparison(np.arange(400) % 100, 100).part() is None


def test_time_for_a_view_grows_with_pixels(tmp_path, monkeypatch, tiny_model, photos):
    """Nothing is measured again, and real features count more than the first measurement."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    task = ImageClassification.read(photos, DataOptions())
    model = task.build(tiny_model, Recipe(tune="head", crop=20)).eval()
    extractor = extractor_of(task, model, torch.device("cpu"))
    views = Views(task, extractor, task.head(model).in_features)
    names = [name for split in task.feature_digests().values() for name in split]
    measured = views.seconds(View(28), names)
    assert measured == pytest.approx(views.paces[28] * len(names)) and measured > 0
    monkeypatch.setattr(Extractor, "seconds", None)
    assert views.seconds(View(56), names) == pytest.approx(4 * measured)
    monkeypatch.setattr("headstart.features.choice.MEASURED", len(names) + 1)
    views.fill(20, True, names[:1])
    assert list(views.paces) == [28]  # too few to tell
    monkeypatch.setattr("headstart.features.choice.MEASURED", len(names))
    views.compute(20)
    assert views.seconds(View(20), names) == 0
    assert list(views.paces) == [28, 20]
    views.paces = {20: 0.5}
    assert views.seconds(View(40), names) == pytest.approx(4 * 0.5 * len(names))
    assert views.seconds(View(40, True), names) == pytest.approx(8 * 0.5 * len(names))
    assert views.seconds(View(20, True), names) == pytest.approx(0.5 * (len(names) - 1))


def test_what_there_is_no_time_for_is_not_tried():
    best, labels = blobs(150, 3)
    views = {View(32): sharper(best, 2.0)}
    choice, _, notes, _ = choose(views, labels, [32, 48], lambda view: False)
    assert choice.candidates[0].view == View(32)
    assert notes == [
        "not tried for lack of time: 48 pixels",
        "not tried for lack of time: 32 pixels, mirror images",
    ]


def test_a_perfect_plain_head_ends_the_search():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = 20 * np.eye(16, dtype=np.float32)[labels + 10]
    features += 0.01 * rng.normal(size=features.shape).astype(np.float32)
    choice, comparison, notes, _ = choose({View(32): features}, labels, [32, 48])
    assert len(comparison.trials) == 1 and choice is comparison.plain
    assert notes == ["nothing is left to gain: no other head was tried"]


def test_a_run_survives_the_removal_of_its_features(tmp_path, monkeypatch, tiny_model, photos):
    """Other runs evict the least recently used features; `headstart cache clear` does too."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    whole = headstart.train(photos, model=tiny_model, out=tmp_path / "a", tune="head", device="cpu")
    before = whole.forecast and whole.forecast.to_dict()
    removed = []

    def evicting(function):
        def call(*arguments, **options):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            removed.append(function.__name__)
            return function(*arguments, **options)

        return call

    for name in ("tune_head", "forecast", "reference_of", "memory_of"):
        place = f"headstart.training.fit_head.{name}"
        monkeypatch.setattr(place, evicting(getattr(fit_head, name)))
    monkeypatch.setattr(fit_head, "write_memory", evicting(fit_head.write_memory))
    found = headstart.train(photos, model=tiny_model, out=tmp_path / "b", tune="head", device="cpu")
    assert sorted(removed) == [
        "forecast", "memory_of", "reference_of", "tune_head", "write_memory",
    ]  # fmt: skip
    assert found.metrics == pytest.approx(whole.metrics)
    assert (found.forecast and found.forecast.to_dict()) == before
    assert (found.folder / "unknown.safetensors").exists() == (
        whole.folder / "unknown.safetensors"
    ).exists()


def test_a_run_with_larger_and_mirror_images(tmp_path, monkeypatch, tiny_model, photos):
    """The saved folder answers as the search evaluated it, whatever was chosen."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ImageClassification, "sides", lambda self: [20, 28])
    monkeypatch.setattr("headstart.features.choice.PERFECT", 0.0)
    monkeypatch.setattr(Comparison, "better", lambda self, trial, other: trial is not other)
    expected, count = [], HeadCost.with_view

    def with_view(self, *view, **options):
        expected.append((self.seconds, self.more, *view, options["mirrored"]))
        return count(self, *view, **options)

    monkeypatch.setattr(HeadCost, "with_view", with_view)
    options = {"model": tiny_model, "tune": "head", "device": "cpu"}
    found = headstart.train(photos, out=tmp_path / "a", **options)
    ((usual, more, *view),) = expected
    assert view == [[20, 28], 28, True]
    assert usual < found.estimated == pytest.approx(usual + more)
    model = headstart.AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert model.config.pooled_hidden_states and model.config.average_mirrored
    assert found.recipe.crop == 28
    _, again = headstart.evaluate(tmp_path / "a", photos, device="cpu")
    for name, value in again.metrics.items():
        assert value == pytest.approx(found.metrics[name], abs=1e-4), name
    optimized = headstart.optimize(model.eval(), engine="torch")
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            optimized(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4
        )
    rows = json.loads((tmp_path / "a" / "results.json").read_text())["heads"]
    assert sum(row["chosen"] for row in rows) == 1 and len(rows) >= 6
    assert "Heads that were compared" in (tmp_path / "a" / "report.html").read_text()
    monkeypatch.undo()


def test_a_search_among_many_classes_fits_no_logistic_head(monkeypatch):
    monkeypatch.setattr(head, "COMPARED", 100.0)
    best, labels = blobs(120, 4)
    views = {View(32): best, View(32, True): best}
    _, comparison, *_ = choose(views, labels, [32])
    tried = [each for trial in comparison.trials for each in trial.candidates]
    assert {each.head for each in tried} == {"discriminant"}
    assert {each.stages for each in tried} == {"last", "all"}


def test_a_given_size_is_kept(tmp_path, monkeypatch, tiny_model, photos):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("headstart.features.choice.PERFECT", 0.0)
    options = {"model": tiny_model, "tune": "head", "device": "cpu", "crop": 20}
    found = headstart.train(photos, out=tmp_path / "a", **options)
    rows = json.loads((tmp_path / "a" / "results.json").read_text())["heads"]
    assert found.recipe.crop == 20 and all("20 pixels" in row["name"] for row in rows)
