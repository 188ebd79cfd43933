"""Images that do not fit: probably mislabelled ones, and outliers, found in the features of a
network.

A label is doubted where a head that has not seen the image finds it less probable than right labels
are. An outlier is far from its nearest neighbors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.head import (
    STRENGTHS,
    Problem,
    folds_of,
    held_out_scores,
    logistic,
    standardized,
)
from headstart.metrics.classification import best_temperature, softmax
from headstart.progress import Progress, Silent

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
FEWEST = 5  # images of a class below which nothing is said about its labels
MISTAKEN = 0.5  # fraction of the doubted labels that may be right
NEIGHBOURS = 5
FAR = 4.0  # robust standard deviations from which on an image is an outlier
FEW = 20  # images below which distances mean nothing
POOL = 10_000  # images that neighbors are looked for among
BLOCK = 1024
# products of examples, features and classes above which the fits of logistic regressions would take
# longer than the features: 40 CPU seconds for 1,000 images of 200 classes, whose features take one
LARGE = 2e7
FOLDS = 5
STRENGTH, ITERATIONS = 0.1, 30  # of the logistic regression on the scores of discriminants
SHRINKAGE = 0.3  # of a discriminant; 0.1 to 0.9 differ little


@dataclass(frozen=True)
class Doubt:
    """A label that is probably wrong.

    Args:
        index: Which example.
        label: Its class.
        likely: The class that the head says.
        label_probability: What the head gives the label.
        likely_probability: What it gives the other class.
    """

    index: int
    label: int
    likely: int
    label_probability: float
    likely_probability: float


def doubtful_labels(
    features: Floats, labels: Ints, classes: int, seed: int = 0, progress: Progress | None = None
) -> tuple[list[Doubt], float]:
    """Examples whose label is doubted, the clearest first; and the fraction of all labels that the
    head agrees with.

    Labels are doubted from the least probable one on, as long as half of those doubted or more
    should be wrong: if all labels were sampled from the head's own calibrated probabilities, as
    many as the sum of all probabilities up to t would have one of at most t. What is seen beyond
    these is wrong (tail-area false discovery rate, Efron 2010).

    The head is logistic regression, or a shrunken discriminant where that would take longer than
    the features.
    """
    scores: NDArray[np.floating[Any]]
    if features.size * classes > LARGE:
        scores = discriminant_scores(features, labels, classes, seed, progress)
    else:
        fits = FOLDS * (1 + len(STRENGTHS))
        with (progress or Silent()).counting("label errors", fits, "fits") as seen:
            scores = held_out_scores(features, labels, classes, seed, FOLDS, seen)
    probabilities = softmax(scores, best_temperature(scores, labels))  # (N, V)
    own = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(own, kind="stable")
    every = np.sort(probabilities, axis=None)
    # (N,) right ones among the first 1, 2, … N
    expected = np.cumsum(every)[np.searchsorted(every, own[order], side="right") - 1]
    doubted = order[
        : np.flatnonzero(expected <= MISTAKEN * np.arange(1, len(labels) + 1)).max(initial=-1) + 1
    ]
    best, counts = probabilities.argmax(axis=1), np.bincount(labels, minlength=classes)
    doubts = [
        Doubt(i, int(labels[i]), int(best[i]), float(own[i]), float(probabilities[i, best[i]]))
        for i in doubted.tolist() if best[i] != labels[i] and counts[labels[i]] >= FEWEST
    ]  # fmt: skip
    return doubts, float((best == labels).mean())


def discriminant_scores(
    features: Floats, labels: Ints, classes: int, seed: int = 0, progress: Progress | None = None
) -> Floats:
    """Scores (N, V) of every example by a shrunken discriminant of the other folds.

    Statistics of the folds are added up, so that all heads take one pass over the features. The
    probabilities of a discriminant are wrong in the tails, where doubts are, so that its scores are
    the features of a logistic regression, fitted to one half of the examples for the other.
    """
    x = standardized(features)[0]
    fold = folds_of(labels, FOLDS, np.random.default_rng([seed, 0x5C03E]))
    scores = np.empty((len(x), classes), dtype=np.float32)
    with (progress or Silent()).counting("label errors", 2 * FOLDS + 2, "passes") as seen:
        parts = []
        for number in range(FOLDS):
            parts.append(Statistics.of(x[fold == number], labels[fold == number], classes))
            seen(1)
        total = sum(parts[1:], parts[0])
        for number, part in enumerate(parts):
            held, rest = fold == number, total - part
            present = rest.counts > 0
            known = Statistics(rest.counts[present], rest.sums[present], rest.moments)
            head = Discriminant.from_statistics(known, SHRINKAGE)
            found = x[held] @ head.weight.T.astype(x.dtype) + head.bias.astype(x.dtype)
            # a class without examples in the other folds gets the least score
            scores[held] = found.min(axis=1, keepdims=True)
            scores[np.ix_(held, present)] = found
            seen(1)
        scores -= scores.mean(axis=1, keepdims=True)
        problem = Problem(standardized(scores)[0], labels, classes)
        half = folds_of(labels, 2, np.random.default_rng([seed, 0x4A1F]))
        for number in range(2):
            others = problem.take(half != number)
            fit = logistic(others, STRENGTH, tolerance=1e-4, iterations=ITERATIONS, exact=False)
            scores[half == number] = problem.x[half == number] @ fit.weight.T + fit.bias
            seen(1)
    return scores


def outliers(features: Floats, progress: Progress | None = None) -> list[tuple[int, float]]:
    """Index and distance of the examples that are far from all others, the farthest first.

    The distance is the mean over the nearest neighbors, by the cosine; its logarithm is measured
    in robust standard deviations (1.4826 median absolute deviations) from the median.
    """
    if len(features) < FEW:
        return []
    distance = np.log(np.maximum(neighbour_distances(features, progress=progress), 1e-6))
    center = np.median(distance)
    spread = 1.4826 * float(np.median(np.abs(distance - center)))
    score = (distance - center) / max(spread, 1e-6)
    return [(int(i), float(score[i])) for i in np.argsort(-score, kind="stable") if score[i] > FAR]


def neighbour_distances(
    features: Floats, seed: int = 0, progress: Progress | None = None
) -> Doubles:
    """Mean cosine distance (N,) of each example to its nearest neighbors.

    In blocks, so that memory stays small; above `POOL` examples among a random subset of them, so
    that the time is linear in N. All distances grow alike then, and outliers stay outliers.
    """
    count = len(features)
    pool = np.arange(count)
    if count > POOL:
        pool = np.sort(np.random.default_rng(seed).permutation(count)[:POOL])
    x = F.normalize(torch.from_numpy(standardized(features)[0]).float(), dim=1)
    others, index = x[pool].T.contiguous(), torch.from_numpy(pool)
    found = []
    place = torch.full((count,), -1)
    place[index] = torch.arange(len(pool))
    with (progress or Silent()).counting("outliers", count) as seen:
        for start in range(0, count, BLOCK):
            near = x[start : start + BLOCK] @ others  # (up to BLOCK, pool)
            own = place[start : start + BLOCK]
            inside = own >= 0
            near[inside, own[inside]] = -2.0  # not itself
            found.append(1 - near.topk(min(NEIGHBOURS, len(pool) - 1), dim=1).values.mean(1))
            seen(len(near))
    return np.asarray(torch.cat(found), dtype=np.float64)
