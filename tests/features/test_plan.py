"""Which images to label next, on made-up groups."""

import numpy as np

from headstart.features.plan import by_typicality, margins_of, typical, uncertain, unit_features


def groups(sizes, seed=0):
    rng = np.random.default_rng(seed)
    centers = 8 * np.eye(len(sizes), 10)
    which = np.repeat(np.arange(len(sizes)), sizes)
    return (centers[which] + rng.normal(size=(len(which), 10))).astype(np.float32), which


def test_groups_without_labels_come_first_and_large_ones_before_small_ones():
    x, which = groups([40, 30, 20, 10])
    labeled = x[which == 0][:3]
    chosen = typical(labeled, x[3:], 3)
    counts = np.bincount(which[3:][chosen], minlength=4)
    assert counts[0] == 0 and len(set(chosen)) == 3
    assert which[3:][chosen[0]] == 1


def test_without_labels_every_group_is_covered():
    x, which = groups([25, 25, 25, 25])
    assert set(which[typical(x[:0], x, 4)]) == {0, 1, 2, 3}


def test_more_images_than_there_are_is_all_of_them():
    x, _ = groups([4, 3])
    assert sorted(typical(x[:1], x, 50)) == list(range(7))
    assert sorted(uncertain(x, np.arange(7.0), 50)) == list(range(7))


def test_the_most_typical_image_lies_in_the_middle():
    x, _ = groups([30])
    x = unit_features(x)
    rows = np.arange(30)
    similarity = x @ x.T
    np.fill_diagonal(similarity, np.nan)
    expected = [np.sort(row[~np.isnan(row)])[-20:].mean() for row in similarity]
    assert by_typicality(x, rows) == sorted(rows, key=lambda i: -expected[i])


def test_uncertain_images_are_of_different_groups():
    x, which = groups([30, 30, 30])
    margins = np.where(which == 0, 0.01, 0.02) + 1e-6 * np.arange(90)
    margins[which == 2] = 0.9
    chosen = uncertain(x, margins, 12)
    assert len(set(chosen)) == 12 and chosen[0] == 0
    assert set(which[chosen]) == {0, 1}  # 60 are looked at, those of the third group are certain
    assert (np.diff(margins[chosen]) >= 0).all()


def test_margins_are_those_of_probabilities_or_of_scores():
    scores = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]))
    np.testing.assert_allclose(margins_of(scores, True), [0.2, 0.7])
    np.testing.assert_allclose(margins_of(np.array([[-3.0, 0.5], [2.0, -1.0]]), False), [0.5, 1.0])
