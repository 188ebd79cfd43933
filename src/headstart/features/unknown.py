"""Fits what tells examples of the known classes from others, on features computed once.

The distance of an example is Mahalanobis' to the nearest class (Lee et al. 2018), among the
principal components of the features, whitened by the covariance within the classes, which is
shrunken (Chen et al. 2010). How large distances of known examples are is measured on
examples that the coordinates were found without: folds of the training examples, and held-out ones.

Letters: N examples, D features, R coordinates, V classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.labels import SINGLE
from headstart.features.discriminant import shrinkage_of
from headstart.features.extract import Extractor
from headstart.pipelines.unknown import MOST, Reference
from headstart.progress import Progress
from headstart.tasks.base import HeadTask

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
COORDINATES = 64
EXAMPLES = 4096  # of the training data that are fitted to
FOLDS = 5
FEWEST = 40  # examples with a distance below which no p-value is small enough to mean anything


def fit_reference(
    features: Floats,
    labels: Ints,
    held_out: Floats | None = None,
    seed: int = 0,
    *,
    groups: Callable[[Ints], Ints] | None = None,
    trained: bool = False,
) -> Reference | None:
    """What tells examples of the known classes from others.

    Args:
        features: Of the training examples, (N, D).
        labels: Their classes, (N,).
        held_out: Features of examples of the same classes that were not trained on, (M, D).
        seed: Decides folds, and which examples are taken where there are many.
        groups: Gives the group of each of some training examples, (N,): those that are nearly the
            same, whose distances say nothing of one another.
        trained: Whether the network was trained on the training examples, which pulls them
            together: then only held-out examples tell how large distances are.

    Returns:
        None where there are too few examples.
    """
    rng = np.random.default_rng([seed, 0x0DD])
    rows = rng.permutation(len(features))[:EXAMPLES]
    x, y = np.asarray(features[rows], dtype=np.float32), labels[rows]
    more = 0 if held_out is None else len(held_out)
    if (0 if trained else len(x)) + more < FEWEST or len(x) < 2 * FOLDS:
        return None
    size, distances = len(x), []
    if not trained:
        fold = _folds(y, None if groups is None else groups(rows))
        size -= int(np.bincount(fold).max())  # distances grow with the number of coordinates
        for number in np.unique(fold):
            held, others = fold == number, fold != number
            inside = _fitted(x[others], y[others], size)
            distances.append(inside.distances_of(torch.from_numpy(x[held])))
    found = _fitted(x, y, size)
    if held_out is not None and more:
        some = np.asarray(held_out[: MOST["distances"] - len(x)], dtype=np.float32)
        distances.append(found.distances_of(torch.from_numpy(some)))
    return Reference(found.mean, found.basis, found.centers, torch.cat(distances).sort().values)


def _folds(labels: Ints, groups: Ints | None) -> Ints:
    """Fold of each example, (N,), each with its part of every class; members of a group share one.

    The groups are ignored where a fold would hold more than half of the examples.
    """
    if groups is None:
        groups = np.arange(len(labels))
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    fold = np.empty(len(first), dtype=np.int64)
    fold[np.argsort(labels[first], kind="stable")] = np.arange(len(first)) % FOLDS
    found = np.asarray(fold[which])
    return found if 2 * np.bincount(found).max() <= len(labels) else _folds(labels, None)


def _fitted(x: Floats, labels: Ints, examples: int) -> Reference:
    """Coordinates, at most as many as so many examples allow, and centers of the classes; no
    distances yet.
    """
    mean = x.mean(axis=0)
    centered = x - mean
    size = min(COORDINATES, examples - 1, x.shape[1])
    axes = principal_axes(centered, size)
    inside = centered @ axes.T  # (N, R)
    scale = float(np.sqrt(np.square(inside).mean())) or 1.0
    classes, which = np.unique(labels, return_inverse=True)
    means = np.stack([inside[which == n].mean(axis=0) for n in range(len(classes))])
    residual = np.asarray(inside - means[which], dtype=np.float64) / scale
    within = residual.T @ residual / len(residual)
    shrinkage = shrinkage_of(within, len(residual))
    identity = np.eye(size) * np.trace(within) / size
    within = (1 - shrinkage) * within + shrinkage * identity
    variances, directions = np.linalg.eigh(within)
    whiten = directions / np.sqrt(np.maximum(variances, 1e-6)) / scale  # (R, R)
    mean, basis, centers = (
        torch.from_numpy(np.asarray(each, dtype=np.float32))
        for each in (mean, whiten.T @ axes, means @ whiten)
    )
    return Reference(mean, basis, centers, torch.zeros(0))


def principal_axes(centered: Floats, size: int) -> Floats:
    """Directions of the largest variances, (size, D), of features around 0, (N, D).

    scikit-learn's `randomized_svd` gives nearly the same; it takes a second to import.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.from_numpy(np.ascontiguousarray(centered))
    basis = torch.randn(x.shape[1], min(size + 10, *x.shape), generator=generator)
    for _ in range(4):  # iterations of a randomized range finder (Halko et al. 2011)
        basis, _ = torch.linalg.qr(x.T @ (x @ basis))
    _, _, inner = torch.linalg.svd(x @ basis, full_matrices=False)
    return np.asarray((basis @ inner[:size].T).T)


def has_p_values(task: HeadTask) -> bool:
    """Whether predictions of the task's models have a p-value: of images with one class each."""
    return task.name == "image-classification" and task.problem.kind == SINGLE


def reference_of(
    task: HeadTask, extractor: Extractor, seed: int, progress: Progress
) -> Reference | None:
    """What tells a task's classes from others, from the features that its head was fitted on.

    Returns:
        None where predictions have no p-value, and where there are too few examples.
    """
    if not has_p_values(task):
        return None
    digests = task.feature_digests()
    store = extractor.found([each for names in digests.values() for each in names], progress)
    rows: dict[str, Any] = {split: store[names] for split, names in digests.items() if names}
    held_out = [rows[split] for split in rows if split != "train"]
    labels = task.targets("train")
    return fit_reference(
        rows["train"],
        labels,
        np.concatenate(held_out) if held_out else None,
        seed,
        groups=task.groups,
    )


def trained_reference_of(
    task: HeadTask, extractor: Extractor, seed: int, progress: Progress
) -> Reference | None:
    """What tells a task's classes from others in the features of a network that was trained.

    Returns:
        As `reference_of`; None where fewer than 40 examples are held out.
    """
    if not has_p_values(task):
        return None
    rng = np.random.default_rng([seed, 0x0DE])
    labels, splits = task.targets("train"), [split for split in task.splits if split != "train"]
    places = [(split, row) for split in splits for row in range(task.splits[split])]
    if len(places) < FEWEST:
        return None
    chosen = [places[i] for i in rng.permutation(len(places))[:EXAMPLES]]
    rows = rng.permutation(len(labels))[:EXAMPLES]
    held_out = [
        name
        for split in splits
        for name in task.digests_at(split, [row for each, row in chosen if each == split])
    ]
    names = task.digests_at("train", rows.tolist())
    store = extractor.fill([*names, *held_out], progress)
    read = np.array([name in store for name in names])  # not what turned out to be unreadable
    held_out = [name for name in held_out if name in store]
    if len(held_out) < FEWEST:
        return None
    names = [name for name in names if name in store]
    return fit_reference(store[names], labels[rows[read]], store[held_out], seed, trained=True)
