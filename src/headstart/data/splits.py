"""Which examples are held out, which few are taken, and which ones are in the batch of a step."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.labels import MULTI, REGRESSION
from headstart.data.options import DataOptions
from headstart.errors import DataError


def held_out_of(
    labels: NDArray[Any],
    kind: str,
    fraction: float,
    rng: np.random.Generator,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Which examples are held out, (N,): a fraction of every class, or of every range of a number.

    Args:
        labels: (N,) classes, (N, V) zeros and ones, or (N, V) numbers.
        kind: What they are.
        fraction: Fraction to hold out.
        rng: Decides which.
        groups: Group of each example, (N,), whose members are held out together; None has none.
    """
    if kind == REGRESSION:
        ranges = max(1, min(10, int(len(labels) * fraction)))
        ranks = labels[:, 0].argsort(kind="stable").argsort(kind="stable")
        labels = ranks * ranges // len(labels)
    if groups is not None:
        table = labels > 0.5 if kind == MULTI else labels[:, None] == np.unique(labels)
        return stratified_groups(table, groups, fraction, rng)
    if kind == MULTI:
        return stratified_labels(labels > 0.5, fraction, rng)
    return stratified(labels, fraction, rng)


def stratified(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which examples are held out.

    This fraction of every class, at least one of a class with two, none of a class with one.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = (
            0 if len(members) < 2 else min(len(members) - 1, max(1, round(len(members) * fraction)))
        )
        held_out[rng.permutation(members)[:count]] = True
    return held_out


def stratified_labels(
    labels: NDArray[np.bool_], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """The same where an example has any number of labels (N, V): iterative stratification (Sechidis
    et al. 2011).

    The rarest label goes first, and each of its examples to the side that lacks it most. Every
    label that occurs stays in training.
    """
    N, V = labels.shape
    held_out, left = np.zeros(N, dtype=bool), np.ones(N, dtype=bool)
    sides = np.array([1 - fraction, fraction])
    # (2, V + 1): of each label, and of examples
    wanted = np.outer(sides, np.append(labels.sum(0), N))
    while left.any():
        counts = labels[left].sum(0)
        label = int(np.where(counts > 0, counts, N + 1).argmin()) if counts.any() else None
        members = (
            np.flatnonzero(left & labels[:, label]) if label is not None else np.flatnonzero(left)
        )
        for i in rng.permutation(members):
            lack = (wanted[:, label], wanted[:, V]) if label is not None else (wanted[:, V],)
            side = int(max((0, 1), key=lambda s: (*(row[s] for row in lack), -s)))
            held_out[i] = side == 1
            wanted[side, :V] -= labels[i]
            wanted[side, V] -= 1
        left[members] = False
    for label in range(V):
        members = np.flatnonzero(labels[:, label])
        if len(members) and held_out[members].all():
            held_out[members[0]] = False
    return held_out


def stratified_groups(
    labels: NDArray[np.bool_], groups: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which examples with labels (N, V) are held out, whole groups at a time.

    The largest groups go first, each to the held-out side where it brings the counts there closer
    to this fraction of every label. Then each label that is still missing there and occurs in
    several groups gets its smallest one. Every label that occurs stays in training.
    """
    _, which = np.unique(groups, return_inverse=True)
    order = np.argsort(which, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    members = [members[i] for i in rng.permutation(len(members))]
    members.sort(key=len, reverse=True)
    total = labels.sum(axis=0)
    wanted, out = fraction * total, np.zeros(labels.shape[1])
    held_out = np.zeros(len(labels), dtype=bool)

    def hold(rows: NDArray[np.int64], missing: int | None = None) -> None:
        """Holds out a group unless a label would have no training example."""
        counts = labels[rows].sum(axis=0)
        closer = np.abs(out + counts - wanted).sum() < np.abs(out - wanted).sum()
        if missing is not None:
            closer = bool(counts[missing]) and not out[missing]
        if closer and not held_out[rows].any() and (out + counts < total)[counts > 0].all():
            held_out[rows] = True
            out[:] += counts

    for rows in members:
        hold(rows)
    for label in np.flatnonzero((out == 0) & (total > 0)):
        for rows in reversed(members):
            hold(rows, int(label))
    return held_out


def few_shot(labels: NDArray[Any], shots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `shots` examples of every class (all of a class that has fewer), in their order.

    Args:
        labels: (N,) classes; or (N, V) zeros and ones: then each label is in at least so many
            examples, the rarest chosen first.
        shots: Examples of each class.
        rng: Decides which.
    """
    if shots < 1:
        raise DataError(f"--shots {shots}: at least one example of each class is needed")
    if labels.ndim == 1:
        chosen = [
            rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)
        ]
        return np.sort(np.concatenate(chosen))
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.argsort((labels > 0.5).sum(0), kind="stable"):
        has = labels[:, label] > 0.5
        taken[
            rng.permutation(np.flatnonzero(has & ~taken))[
                : max(0, shots - int((has & taken).sum()))
            ]
        ] = True
    return np.flatnonzero(taken)


def split_rows(
    labels: NDArray[Any],
    kind: str,
    options: DataOptions,
    unit: str,
    *,
    complete: bool,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Rows of the training and of the validation data.

    Args:
        labels: What the rows are stratified by, see `held_out_of`.
        kind: What the labels are.
        options: Seed, fraction and shots.
        unit: What a row is called in notes: "images", "rows".
        complete: Whether there is evaluation data already, so that nothing is held out.
        groups: Group of each row, (N,), which are not divided; None has none.

    Returns:
        Training rows, validation rows (empty where nothing is held out), and notes.
    """
    notes = []
    held_out = np.zeros(len(labels), dtype=bool)
    if not complete and options.val_fraction > 0:
        rng = np.random.default_rng([options.seed, 0x5B117])
        held_out = held_out_of(labels, kind, options.val_fraction, rng, groups)
        if held_out.any():
            whole = "" if groups is None else ", no group divided"
            notes.append(
                f"no validation data: {held_out.sum()} of {len(held_out)} {unit} held out (seed"
                f" {options.seed}{whole})"
            )
        elif groups is not None:
            notes.append(
                f"too few groups of {unit} to hold any out: the result will not be evaluated"
            )
        else:
            notes.append(f"too few {unit} to hold any out: the result will not be evaluated")
    train = np.flatnonzero(~held_out)
    if options.shots is not None:
        chosen = few_shot(labels[train], options.shots, options.shot_generator())
        if len(chosen) == len(train):
            notes.append(
                f"no class has more than {options.shots} training {unit}: shots take all"
                f" {len(train)} of them, and several draws have the same ones"
            )
        train = train[chosen]
    return train, np.flatnonzero(held_out), notes


# Batches ------------------------------------------------------------------------------------------


def batch_indices(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which examples are in the batch of a step: a pure function, so that a resumed run sees the
    same.

    Epochs are permutations laid end to end. A data set smaller than a batch is sampled with
    replacement, as in the paper.

    Args:
        examples: Number of examples, N.
        batch_size: B.
        step: Number of the step, from 0.
        seed: Decides the order.

    Returns:
        (B,) indices below N.
    """
    if examples < batch_size:
        return np.random.default_rng([seed, step, 0xF111]).integers(0, examples, batch_size)
    first = step * batch_size
    epochs = range(first // examples, (first + batch_size - 1) // examples + 1)
    start = first - epochs[0] * examples
    stop = start + batch_size
    parts = []
    for number, epoch in enumerate(epochs):
        begin = max(start - number * examples, 0)
        parts.append(permutation(examples, seed, epoch)[begin : stop - number * examples])
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def permutation(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch; kept, since each step reads a part of it."""
    order = np.random.default_rng([seed, epoch, 0xE70C]).permutation(examples)
    order.setflags(write=False)
    return order
