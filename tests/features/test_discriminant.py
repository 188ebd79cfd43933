"""Linear discriminant analysis from sufficient statistics: definitions, scikit-learn, updates."""

import numpy as np
import pytest

from headstart.errors import ConfigError
from headstart.features.discriminant import Discriminant, Statistics, shrinkage_of


def blobs(examples, width, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    centers = rng.normal(size=(classes, width))
    mix = rng.normal(size=(width, width))
    return centers[labels] + rng.normal(size=(examples, width)) @ mix + 3, labels


def test_the_statistics_are_their_definitions():
    x, labels = blobs(50, 7, 3)
    found = Statistics.of(x, labels, 3)
    np.testing.assert_allclose(found.means, [x[labels == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(found.deviations, x.std(0))
    residuals = x - found.means[labels]
    np.testing.assert_allclose(found.within(), residuals.T @ residuals / (50 - 3), atol=1e-10)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_the_head_against_scikit_learn(shrinkage):
    """scikit-learn takes the biased covariance, and shrinks each class' own after scaling: equal
    posteriors for features of one variance."""
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    x, labels = blobs(60, 6, 3)
    statistics = Statistics.of(x, labels, 3)
    biased = statistics.within() * (60 - 3) / 60
    covariance = (1 - shrinkage) * biased + shrinkage * np.eye(6) * np.trace(biased) / 6

    class Given:
        def fit(self, x):
            self.covariance_ = covariance
            return self

    theirs = analysis.LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Given())
    theirs.fit(x, labels)
    head = Discriminant.from_statistics(statistics, shrinkage)
    scores = x @ head.weight.T * 60 / (60 - 3)  # the covariance only scales the weights
    ours, reference = scores - scores.mean(1)[:, None], x @ theirs.coef_.T
    reference -= reference.mean(1)[:, None]
    np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-6)


def test_biases_hold_priors_and_means():
    """Scores are log(prior) + log N(x; mean, covariance), up to a constant of x."""
    stats = pytest.importorskip("scipy.stats")
    x, labels = blobs(90, 5, 3)
    labels[:20] = 0  # unequal priors
    statistics = Statistics.of(x, labels, 3)
    head = Discriminant.from_statistics(statistics, 0.0)
    scores = x @ head.weight.T + head.bias
    density = np.stack(
        [
            np.log(statistics.counts[k] / 90)
            + stats.multivariate_normal(statistics.means[k], statistics.within()).logpdf(x)
            for k in range(3)
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        scores - scores[:, :1], density - density[:, :1], rtol=1e-5, atol=1e-6
    )


def test_adding_and_removing_gives_the_joint_fit():
    x, labels = blobs(120, 8, 4)
    rng = np.random.default_rng(5)
    statistics = Statistics.of(x[:30], labels[:30], 4)
    present = set(range(30))
    for _ in range(20):
        rows = rng.choice(120, 6, replace=False).tolist()
        added = [row for row in rows if row not in present]
        removed = [row for row in rows if row in present]
        statistics = statistics + Statistics.of(x[added], labels[added], 4)
        statistics = statistics - Statistics.of(x[removed], labels[removed], 4)
        present = (present | set(added)) - set(removed)
    rows = sorted(present)
    joint = Discriminant.from_statistics(Statistics.of(x[rows], labels[rows], 4))
    found = Discriminant.from_statistics(statistics)
    np.testing.assert_allclose(found.weight, joint.weight, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.bias, joint.bias, rtol=1e-9, atol=1e-9)
    assert found.shrinkage == pytest.approx(joint.shrinkage, rel=1e-9)


def test_transformed_statistics_are_those_of_transformed_features():
    x, labels = blobs(40, 5, 2)
    center, scale = x.mean(0), x.std(0)
    found = Statistics.of(x, labels, 2).transformed(center, scale)
    expected = Statistics.of((x - center) / scale, labels, 2)
    np.testing.assert_allclose(found.moments, expected.moments, atol=1e-9)
    np.testing.assert_allclose(found.sums, expected.sums, atol=1e-9)


def test_weights_count_examples_more_than_once():
    x, labels = blobs(30, 4, 3)
    weights = np.ones(30)
    weights[3] = 3.0
    twice = np.concatenate([np.arange(30), [3, 3]])
    found = Statistics.of(x, labels, 3, weights)
    expected = Statistics.of(x[twice], labels[twice], 3)
    np.testing.assert_allclose(found.moments, expected.moments)
    np.testing.assert_allclose(found.counts, expected.counts)


def test_one_example_of_each_class_is_the_nearest_mean():
    x, _ = blobs(4, 6, 4)
    head = Discriminant.from_statistics(Statistics.of(x, np.arange(4), 4))
    queries, _ = blobs(50, 6, 4, seed=1)
    nearest = np.square(queries[:, None] - x[None]).sum(2).argmin(1)
    assert head.shrinkage == 1.0
    np.testing.assert_array_equal((queries @ head.weight.T + head.bias).argmax(1), nearest)


def test_the_shrinkage_is_near_ledoit_and_wolf_and_falls_with_the_examples():
    covariance = pytest.importorskip("sklearn.covariance")
    found = []
    for examples in (30, 300, 3000):
        x, _ = blobs(examples, 20, 1)
        x = x - x.mean(0)
        found.append(shrinkage_of(x.T @ x / examples, examples))
        assert found[-1] == pytest.approx(covariance.ledoit_wolf_shrinkage(x), rel=0.25)
    assert found[0] > found[1] > found[2] > 0


def test_a_class_without_examples_is_refused():
    x, labels = blobs(10, 3, 2)
    with pytest.raises(ConfigError, match="class number 2 has no examples"):
        Discriminant.from_statistics(Statistics.of(x, labels, 3))
    with pytest.raises(ConfigError, match="shrinkage=2"):
        Discriminant.from_statistics(Statistics.of(x, labels, 2), 2)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_examples_give_the_same_head(shrinkage, weighted):
    """Through a matrix of the examples, or through the covariance of the features."""
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    x = 5 + 3 * rng.normal(size=(12, 40)) + 2 * rng.normal(size=(3, 40))[labels]
    weights = rng.random(12) + 0.5 if weighted else None
    few = Discriminant.from_few(x, labels, 3, shrinkage, weights)
    full = Discriminant.from_statistics(Statistics.of(x, labels, 3, weights), shrinkage)
    others = 5 + 3 * rng.normal(size=(20, 40))
    scores = [others @ head.weight.T + head.bias for head in (few, full)]
    tolerance = 1e-3 if shrinkage == 0 else 1e-9  # an inverse that hardly exists
    assert np.allclose(*scores, rtol=tolerance, atol=tolerance * np.abs(scores[1]).max())


def test_one_of_each_class_gives_the_nearest_mean():
    x = np.eye(3, 9)
    head = Discriminant.from_few(x, np.arange(3), 3, 0.5)
    assert ((x @ head.weight.T + head.bias).argmax(axis=1) == np.arange(3)).all()


def test_a_wider_space_spreads_the_identity():
    """The head in the span of the examples is that of the whole space."""
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(10, 30)), np.arange(10) % 2
    x -= x.mean(axis=0)
    basis = np.linalg.svd(x, full_matrices=False)[2][:9]
    whole = Discriminant.from_few(x, labels, 2, 0.4)
    inside = Discriminant.from_few(x @ basis.T, labels, 2, 0.4, width=30)
    assert np.allclose(x @ whole.weight.T, x @ basis.T @ inside.weight.T)
