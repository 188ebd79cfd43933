"""Conformal sets: classes that an example may have, among them the true one as often as promised.

Split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019): a class belongs to the set of an
example where its probability is at least a minimum, which is a quantile of the probabilities of the
true classes of examples that the model was not trained on. The promise needs nothing but that new
examples are like those.

Letters: N examples, V classes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.classification import Floats, Ints, softmax
from headstart.pipelines.confidence import Confidence

COVERAGE = 0.9  # fraction of new examples whose set contains the true class
ENOUGH = 30  # examples of a class from which on it has a minimum of its own
FOLDS = 10


def set_minimums(probabilities: Floats, labels: Ints, coverage: float = COVERAGE) -> Floats:
    """The probability from which on each class belongs to the set.

    Args:
        probabilities: (N, V), of examples that the model was not trained on.
        labels: Their classes, (N,).
        coverage: Promised fraction of new examples whose set contains the true class; also of each
            class by itself that has `ENOUGH` examples.

    Returns:
        (V,), 0 to 1; 0 where there are too few examples for any promise.
    """
    own = probabilities[np.arange(len(labels)), labels]
    few = np.bincount(labels, minlength=probabilities.shape[1]) < ENOUGH
    # classes with few examples share one minimum
    shared = _minimum(own[few[labels]] if few[labels].any() else own, coverage)
    return np.array(
        [
            shared if few[number] else _minimum(own[labels == number], coverage)
            for number in range(probabilities.shape[1])
        ]
    )


def _minimum(values: Floats, coverage: float) -> float:
    """The k-th smallest of n values, k = (n + 1)(1 - coverage) rounded down; 0 where k is 0."""
    rank = int((len(values) + 1) * (1 - coverage) + 1e-9)
    return float(np.sort(values)[rank - 1]) if rank else 0.0


def cross_coverage(
    probabilities: Floats, labels: Ints, coverage: float = COVERAGE
) -> tuple[float, float]:
    """Coverage and mean size of the sets of examples that the minimums were found without.

    Args:
        probabilities: (N, V).
        labels: (N,).
        coverage: What is promised.
    """
    fold = np.random.default_rng(len(labels)).permutation(len(labels)) % FOLDS
    covered, sizes = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    for number in np.unique(fold):
        held, others = fold == number, fold != number
        minimums = set_minimums(probabilities[others], labels[others], coverage)
        inside = probabilities[held] >= minimums
        covered[held] = inside[np.arange(len(inside)), labels[held]]
        sizes[held] = inside.sum(axis=1)
    return float(covered.mean()), float(sizes.mean())


def with_sets(found: Confidence, logits: NDArray[np.floating[Any]], labels: Ints) -> Confidence:
    """The same with the minimums of conformal sets.

    Args:
        found: From the same examples.
        logits: (N, V).
        labels: (N,).
    """
    minimums = set_minimums(softmax(logits, found.temperature), labels)
    return replace(found, coverage=COVERAGE, minimums=minimums.tolist())
