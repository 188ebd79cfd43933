"""Which images to label next: typical ones of groups without labels, later uncertain ones.

With few labels a head knows too little to say what it does not know, and images that stand for many
others teach most (Hacohen et al. 2022, "Active learning on a budget: opposite strategies suit high
and low budgets"). Later the images between classes do; they are taken from different groups, so
that they do not repeat each other.

Letters: L labeled images, U images without labels, D features, V classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from headstart.metrics.classification import softmax
from headstart.metrics.optional import scikit_learn

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
FEW = (
    20  # labels of a class on average up to which typical images are taken; see benchmarks/plan.py
)
NEIGHBORS = 20
MOST_GROUPS = 500
POOL = 20_000  # images without labels among which the next ones are looked for
UNCERTAIN = 5  # uncertain images that are considered for each that is taken


def unit_features(features: Floats) -> Floats:
    """Features in standard deviations, each image of length 1, (N, D)."""
    deviations = features.std(axis=0)
    x = (features - features.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    return np.asarray(F.normalize(torch.from_numpy(x).float(), dim=1))


def groups_of(x: Floats, count: int, seed: int) -> Ints:
    """Group of each image, (N,), by k-means."""
    different = len(np.unique(x, axis=0))
    k_means = scikit_learn("cluster").KMeans(min(count, different), n_init=1, random_state=seed)
    return np.asarray(k_means.fit_predict(x), dtype=np.int64)


def typical(labeled: Floats, unlabeled: Floats, number: int, seed: int = 0) -> Ints:
    """Images that stand for groups without labels, the largest group first (TypiClust).

    Args:
        labeled: Features of labeled images, (L, D).
        unlabeled: Features of the others, (U, D).
        number: How many are wanted.
        seed: Decides the groups.

    Returns:
        Their indices, (number,), best first.
    """
    U, L = len(unlabeled), len(labeled)
    number = min(number, U)
    x = unit_features(np.concatenate([unlabeled, labeled]))
    group = groups_of(x, min(L + number, MOST_GROUPS), seed)
    count = int(group.max()) + 1
    covered = np.bincount(group[U:], minlength=count)  # labels of each group
    members = {g: by_typicality(x[:U], np.flatnonzero(group[:U] == g)) for g in range(count)}
    chosen: list[int] = []
    while len(chosen) < number:
        left = [g for g in range(count) if members[g]]
        # fewest labels first, then the most images
        best = min(left, key=lambda g: (covered[g], -len(members[g])))
        chosen.append(members[best].pop(0))
        covered[best] += 1
    return np.array(chosen, dtype=np.int64)


def by_typicality(x: Floats, rows: Ints) -> list[int]:
    """Images of a group, those with the nearest neighbors first."""
    if len(rows) < 2:
        return [int(row) for row in rows]
    near = x[rows] @ x[rows].T
    np.fill_diagonal(near, -np.inf)
    count = min(NEIGHBORS, len(rows) - 1)
    closeness = -np.sort(-near, axis=1)[:, :count].mean(axis=1)
    return [int(row) for row in rows[np.argsort(-closeness, kind="stable")]]


def uncertain(unlabeled: Floats, margins: Doubles, number: int, seed: int = 0) -> Ints:
    """Images with small margins, from different groups.

    Args:
        unlabeled: Features, (U, D).
        margins: How far the head is from another answer, (U,).
        number: How many are wanted.
        seed: Decides the groups.

    Returns:
        Their indices, (number,), the smallest margin first.
    """
    number = min(number, len(margins))
    doubtful = np.argsort(margins, kind="stable")[: UNCERTAIN * number]
    group = groups_of(unit_features(unlabeled)[doubtful], number, seed)
    _, first = np.unique(group, return_index=True)  # doubtful is in the order of margins
    others = np.setdiff1d(np.arange(len(doubtful)), first)
    taken = np.sort(np.append(first, others[: number - len(first)]))
    return np.asarray(doubtful[taken], dtype=np.int64)


def margins_of(scores: NDArray[np.floating], single: bool) -> Doubles:
    """How far the head is from another answer, (U,).

    Args:
        scores: (U, V).
        single: Whether each image has one class, or any number of labels.
    """
    if not single:
        return np.asarray(np.abs(scores).min(axis=1), dtype=np.float64)
    best = -np.sort(-softmax(scores), axis=1)
    return np.asarray(best[:, 0] - best[:, 1])
