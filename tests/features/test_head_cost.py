"""The estimated cost of fitting a head."""

from types import SimpleNamespace

import pytest

from headstart.data.labels import SINGLE
from headstart.features import head
from headstart.features.head import HeadCost, head_cost


def test_larger_and_mirrored_images_are_counted_by_their_pixels():
    cost = HeadCost(features=4.0, fit=1.0, memory=2**30, report=2.0)
    assert cost.seconds == 7 and "larger" not in cost.text()
    assert cost.with_search([]) == cost  # texts
    # all examples are compared: 64 pixels, then 96 and mirror images of 64
    few = cost.with_search([64, 96, 128])
    assert few.search == 4 * 2.25 + 4 and few.seconds == 20
    # at most at 96, at 128, mirrored at 128, and the heads once more
    assert few.more == 4 * (4 + 4) + 1
    assert "about 20s" in few.text() and "13s to try larger and mirrored images" in few.text()
    assert "up to 53s if larger or mirrored images are better" in few.text()
    assert cost.with_search([64]).more == 1  # mirror images are known from trying


def test_views_are_tried_on_a_part_of_many_examples():
    cost = HeadCost(features=100.0, fit=10.0, memory=2**30, part=0.4, tried=0.02)
    many = cost.with_search([64, 96, 128])
    assert many.search == pytest.approx(0.02 * (225 + 100))
    assert many.more == pytest.approx(0.4 * 225 + 400 + 400 - 0.02 * 225 + 10)
    # nothing above the limit is computed of all: neither 128 pixels nor mirror images of 96
    less = cost.with_search([64, 96, 128], limit=300)
    assert less.search == many.search and less.more == pytest.approx(225 - 0.02 * 225 + 10)
    none = cost.with_search([64, 96, 128], limit=99)
    assert none.search == none.more == 0 and "larger" not in none.text()


@pytest.mark.parametrize(
    ("side", "mirrored", "extra"),
    [
        (64, False, 0),
        (64, True, 100 - 2 + 10),
        (96, False, 225 - 4.5 + 10),
        (128, True, 0.4 * 225 + 400 + 400 - 4.5 + 10),
        (None, False, 0),
    ],
)
def test_the_chosen_view_is_expected_in_the_end(side, mirrored, extra):
    cost = HeadCost(features=100.0, fit=10.0, memory=2**30, part=0.4, tried=0.02)
    many = cost.with_search([64, 96, 128])
    found = many.with_view([64, 96, 128], side, mirrored=mirrored)
    assert found.seconds == pytest.approx(many.seconds + extra) and found.more == 0


def test_known_features_leave_the_comparison_and_the_report():
    """The head is compared many times over before it is fitted once."""
    cost = HeadCost(features=0.0, fit=2.0, memory=2**30, report=3.0)
    assert cost.seconds == 5 and "2s for the head, 3s for the report" in cost.text()


def test_the_time_of_a_large_head_is_measured_on_a_part(monkeypatch):
    """80,000 examples of 768 features and 200 classes: all take a second, and 40 are enough."""
    shapes = []
    now = [0.0]

    def fit(problem, strength, progress, iterations, **options):
        now[0] += 100  # what goes before does not count
        shapes.append(problem.x.shape)
        for step in range(iterations):
            progress.update(step + 1, {})
            now[0] += len(problem.x) / 80_000 * (1 if step else 7)
        progress.update(500, {})

    monkeypatch.setattr(head, "logistic", fit)
    monkeypatch.setattr(head.time, "perf_counter", lambda: now[0])
    seconds = head.fitting_seconds(80_000, 768, 200)
    assert shapes == [(2605, 768)]
    assert seconds == pytest.approx(5e11 / (80_000 * 768 * 200) + 1800 * 1302 / 80_000)
    # few examples are compared three times
    assert head.fitting_seconds(200, 768, 2) == pytest.approx((300 + 3 * 1800) / 400)
    assert shapes[1] == (200, 200)


def test_a_head_that_is_fitted_at_once_takes_no_time(monkeypatch):
    def fit(problem, strength, progress, **options):
        progress.update(500, {})

    monkeypatch.setattr(head, "logistic", fit)
    assert head.fitting_seconds(2, 3, 1) == 0


@pytest.mark.parametrize(
    ("train", "features", "classes", "expected"),
    [
        # 8 bytes: features, two copies of the training ones, three arrays of scores, the solver
        (100, 30, 5, 4 * 110 * 30 + 16 * 100 * 30 + 24 * 100 * 5 + 192 * 5 * 30),
        # a closed form: a copy of the training ones, and covariances
        (90_000, 768, 200, 4 * 90_010 * 768 + 4 * 90_000 * 768 + 96 * 768**2),
        # 4 bytes above LARGE
        (90_000, 768, 50, 4 * 90_010 * 768 + 8 * 90_000 * 768 + 12 * 90_000 * 50 + 192 * 38_400),
    ],
)
def test_memory_follows_from_examples_features_and_classes(
    train, features, classes, expected, monkeypatch
):
    monkeypatch.setattr(head, "fitting_seconds", lambda N, D, V: 1.0)
    monkeypatch.setattr(head, "closed_seconds", lambda N, D, V: 1.0)
    digests = {"train": [f"t{i}" for i in range(train)], "validation": [f"v{i}" for i in range(10)]}
    task = SimpleNamespace(
        feature_digests=lambda: digests,
        classes=range(classes),
        feature_sizes=lambda rows: rows,
        problem=SimpleNamespace(kind=SINGLE),
    )
    extractor = SimpleNamespace(
        store=lambda: {"t0": None},
        layer=SimpleNamespace(in_features=features),
        seconds=lambda missing, sizes: len(missing) / 1000,
    )
    cost = head_cost(task, extractor, 1e6)
    assert cost.memory == 1e6 + expected
    assert cost.features == pytest.approx((train + 10 - 1) / 1000)
    total = train + 10
    assert cost.part == min(train, head.CV_EXAMPLES) / total
    tried = max(head.PART, head.OF_CLASS * classes)
    assert cost.tried == min(train, tried) / total  # fewer than half, or all


def test_heads_of_a_closed_form_take_little(monkeypatch):
    """200 classes: the sums of 1,000 examples take a second, and each of 55 inverses another."""
    now = [0.0]

    class Sums:
        @staticmethod
        def of(rows, labels, classes):
            assert rows.shape == (1000, 900) and len(set(labels)) == classes == 200
            now[0] += 1

    class Solved:
        @staticmethod
        def from_statistics(statistics, shrinkage):
            now[0] += 1

    monkeypatch.setattr(head, "Statistics", Sums)
    monkeypatch.setattr(head, "Discriminant", Solved)
    monkeypatch.setattr(head.time, "perf_counter", lambda: now[0])
    assert head.closed_form(1000, 900, 200, SINGLE)
    assert head.closed_seconds(1000, 900, 200) == 55 + 5 + 1
