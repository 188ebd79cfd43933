"""The estimated cost of fitting a head."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from headstart.data.labels import SINGLE
from headstart.features import head
from headstart.features.head import HeadCost, head_cost


def test_larger_and_mirrored_images_are_counted_by_their_pixels():
    cost = HeadCost(features=4.0, fit=1.0, memory=2**30)
    assert cost.seconds == 5 and "larger" not in cost.text()
    # all are compared at 96 and 128 pixels after 64, then twice 128: as they are, and mirrored
    searched = cost.with_search([64, 96, 128])
    assert searched.search == 4 * (2.25 + 4 + 8) and searched.seconds == 62
    assert "4s for features, up to 57s for larger and mirrored images" in searched.text()
    part = replace(cost, part=0.1).with_search([64, 96, 128], limit=16)
    assert part.search == pytest.approx(0.1 * 4 * (2.25 + 4) + 4 * 4)  # nothing above 16 s
    assert cost.with_search([64], limit=3).search == 0
    assert cost.with_search([64]).search == 4  # mirror images alone
    assert cost.with_search([]) == cost  # texts


def test_known_features_leave_the_comparison_and_the_report():
    """The head is compared many times over before it is fitted once."""
    cost = HeadCost(features=0.0, fit=2.0, memory=2**30, report=3.0)
    assert cost.seconds == 5 and "2s for the head, 3s for the report" in cost.text()


def test_the_time_of_a_large_head_is_measured_on_a_part(monkeypatch):
    """80,000 examples of 768 features and 200 classes: all take a second, and 40 are enough."""
    rows = []
    now = [0.0]

    def fit(problem, strength, **options):
        rows.append(problem.x.shape)
        now[0] += len(problem.x) / 80_000

    monkeypatch.setattr(head, "logistic", fit)
    monkeypatch.setattr(head.time, "perf_counter", lambda: now[0])
    seconds = head.fitting_seconds(80_000, 768, 200)
    assert rows == [(5209, 768)] * 3
    assert seconds == pytest.approx(5e11 / (80_000 * 768 * 200) + 2700 * 1302 / 80_000)
    rows.clear()
    head.fitting_seconds(500, 768, 2)
    assert rows == [(500, 500)] * 3


@pytest.mark.parametrize(
    ("train", "features", "classes", "expected"),
    [
        # 8 bytes: features, two copies of the training ones, three arrays of scores, the solver
        (100, 30, 5, 4 * 110 * 30 + 16 * 100 * 30 + 24 * 100 * 5 + 192 * 5 * 30),
        # 4 bytes above LARGE
        (90_000, 768, 200, 4 * 90_010 * 768 + 8 * 90_000 * 768 + 12 * 90_000 * 200 + 192 * 153_600),
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
