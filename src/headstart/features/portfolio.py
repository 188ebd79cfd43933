"""The head of a frozen network, chosen by cross-validation among sizes, stages and kinds of head.

Every candidate ends in one linear layer. Candidates are compared on the same folds, example by
example: a candidate takes the place of a simpler one only where its mean gain exceeds the standard
error of that gain.

Letters: N examples, D features, V outputs, R repetitions of the cross-validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.cache import parallel
from headstart.data.labels import REGRESSION, SINGLE
from headstart.features.discriminant import FEW, Discriminant, Statistics
from headstart.features.head import (
    CV_EXAMPLES,
    FEWEST_ITERATIONS,
    FITTING,
    ITERATIONS,
    LARGE,
    STRENGTHS,
    Fit,
    Problem,
    Solution,
    closed_form,
    compact,
    compared_examples,
    folds_of,
    log_loss,
    logistic,
    losses_of,
    one_thread,
    ridge,
    squares,
    standardized,
    stratified,
    tried_examples,
)
from headstart.metrics.optional import scipy
from headstart.progress import Progress, Silent

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

DISCRIMINANT = "discriminant"
FOLDS = 5
REPEATED = 300  # examples below which the folds are sampled several times
REPEATS = 3
BEST = 3  # candidates that are averaged
PERFECT = 0.01  # held-out loss below which nothing is left to gain
COMPARING = 2e10  # products that the iterations of a logistic head may take in the comparison
# more than the estimate of the least squared error: what counts here is the inverse
SHRINKAGES = (0.1, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98)
START_SHRINKAGE = 0.5
# where the search for a setting begins: more regularization than is usually best takes few
# iterations, and is where the next ones go on
FIRST = {"logistic": 0.01}
SMALL = 1e6  # products up to which threads wait for each other longer than they compute
WIDEST = 2048  # features from which a discriminant is fitted in the span of fewer examples


@dataclass(frozen=True)
class View:
    """How the features of the examples were computed.

    Args:
        side: Side of the images in pixels; None where there are none, or of their own sizes.
        mirrored: Whether features are averaged with those of the mirror image.
    """

    side: int | None = None
    mirrored: bool = False

    @property
    def name(self) -> str:
        """What the user reads."""
        parts = [f"{self.side} pixels"] if self.side else []
        return ", ".join(parts + ["mirror images"] * self.mirrored)


@dataclass(frozen=True)
class Candidate:
    """A head that may be chosen.

    Args:
        view: How the features are computed.
        stages: "last" takes the last stage's vector alone, "all" those of earlier ones too.
        head: "logistic", "discriminant" or "ridge".
    """

    view: View
    stages: str
    head: str

    @property
    def name(self) -> str:
        """What the user reads."""
        kinds = {"logistic": "logistic regression", DISCRIMINANT: "shrunken discriminant"}
        parts = [kinds.get(self.head, "ridge regression")]
        parts.append("last stage" if self.stages == "last" else "all stages")
        return ", ".join([*parts, self.view.name] if self.view.name else parts)


@dataclass(frozen=True)
class Trial:
    """A candidate after cross-validation.

    Args:
        candidates: One, or those whose scores are averaged.
        settings: Regularization (C) or shrinkage of each.
        scales: What the scores of each are multiplied by before they are added.
        losses: Held-out loss of each example, (N,).
        scores: Held-out scores of each candidate, (R, N, V) each.
        gain: Mean gain in held-out loss over the plain head.
        error: Standard error of that gain.
    """

    candidates: tuple[Candidate, ...]
    settings: tuple[float, ...]
    scales: tuple[float, ...]
    losses: Doubles = field(repr=False)
    scores: tuple[NDArray[Any], ...] = field(repr=False)
    gain: float = 0.0
    error: float = 0.0

    @property
    def name(self) -> str:
        """What the user reads."""
        return " + ".join(each.name for each in self.candidates)

    @property
    def setting_text(self) -> str:
        """The settings as the user reads them."""
        names = {DISCRIMINANT: "shrinkage"}
        pairs = zip(self.candidates, self.settings, strict=True)
        return ", ".join(f"{names.get(each.head, 'C')} = {value:g}" for each, value in pairs)

    @property
    def loss(self) -> float:
        """Mean held-out loss."""
        return float(self.losses.mean())

    def row(self, labels: NDArray[Any]) -> dict[str, Any]:
        """What the report shows: name, settings, held-out loss, gain, its error, and accuracy."""
        values = {
            "name": self.name,
            "settings": list(self.settings),
            "loss": self.loss,
            "gain": self.gain,
            "error": self.error,
        }
        if labels.ndim == 1:
            mixed = sum(w * s for w, s in zip(self.scales, self.scores, strict=True))
            values["accuracy"] = float((np.asarray(mixed).argmax(axis=2) == labels).mean())
        return values


class Comparison:
    """Cross-validation of candidates on the same folds.

    Heads for so many classes that logistic ones would take longer than the features are shrunken
    discriminants only.

    Args:
        labels: Classes (N,), or labels and regression targets (N, V).
        classes: V.
        kind: What the labels are.
        weights: Weight of each label, (N,) or (N, V); None weighs all the same.
        groups: Gives the group of each of the compared rows, (N,), whose members stay in one fold;
            None has none.
        seed: Decides the folds.
        widest: Largest number of features of a candidate.
    """

    def __init__(
        self,
        labels: NDArray[Any],
        classes: int,
        kind: str = SINGLE,
        *,
        weights: Doubles | None = None,
        groups: Callable[[Ints], Ints] | None = None,
        seed: int = 0,
        widest: int = 1,
    ) -> None:
        rng = np.random.default_rng([seed, 0x9047])
        most = compared_examples(len(labels), widest, classes, kind)
        self.heads = heads_of(kind, closed=closed_form(len(labels), widest, classes, kind))
        self.rows = np.arange(len(labels))
        if len(labels) > most:
            order = stratified(labels, rng) if kind == SINGLE else rng.permutation(len(labels))
            self.rows = np.sort(order[:most])
        self.labels: NDArray[Any]
        self.labels = labels[self.rows] if kind == SINGLE else labels[self.rows].astype(np.float64)
        self.classes, self.kind = classes, kind
        self.weights = None if weights is None else weights[self.rows]
        self.groups = None if groups is None else groups(self.rows)
        repeats = REPEATS if len(self.rows) < REPEATED else 1
        self.folds = self.divide(repeats, rng)
        if not self.folds and self.groups is not None:
            self.groups = None  # a class is a single group: its examples count as different
            self.folds = self.divide(repeats, rng)
        self.trials: list[Trial] = []

    def part(self) -> tuple[Ints, "Comparison"] | None:
        """Some of the compared examples, by their place among them, and a comparison on these.

        None where not even half would be saved, or a class would have too few.
        """
        count = tried_examples(len(self.rows), self.classes)
        if count == len(self.rows):
            return None
        rng = np.random.default_rng([len(self.rows), 0x9A47])
        single = self.kind == SINGLE
        order = stratified(self.labels, rng) if single else rng.permutation(len(self.rows))
        places = np.sort(order[:count])
        groups, weights = self.groups, self.weights
        found = Comparison(
            self.labels[places],
            self.classes,
            self.kind,
            weights=None if weights is None else weights[places],
            groups=None if groups is None else lambda rows: groups[places][rows],
        )
        return (places, found) if found.possible else None

    def divide(self, repeats: int, rng: np.random.Generator) -> list[Ints]:
        """Folds of each repetition; none where there are too few examples."""
        found = [grouped_folds(self.labels, self.groups, rng) for _ in range(repeats)]
        return [fold for fold in found if fold is not None]

    @property
    def possible(self) -> bool:
        """Whether there are enough examples of each class to compare anything."""
        return bool(self.folds)

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.folds[0].max()) + 1 if self.folds else 0

    @property
    def plain(self) -> Trial:
        """The trial that all others are compared with: the first."""
        return self.trials[0]

    def problem(self, x: NDArray[Any]) -> Problem:
        """The compared examples, with these standardized features."""
        return Problem(x, self.labels, self.classes, self.weights)

    def loss(self, scores: NDArray[Any]) -> Doubles:
        """Loss of each example, (N,), of scores (N, V)."""
        if self.kind == REGRESSION:
            spread = self.labels.std(axis=0)
            errors = (scores - self.labels) / np.where(spread > 0, spread, 1)
            return np.asarray(np.square(errors).mean(axis=1))
        weights = None if self.weights is None else torch.from_numpy(self.weights)
        found = losses_of(
            torch.from_numpy(np.asarray(scores, dtype=np.float64)),
            torch.from_numpy(self.labels),
            weights,
        )
        return np.asarray(found.reshape(len(scores), -1).sum(dim=1).numpy())

    def try_candidate(
        self,
        candidate: Candidate,
        features: Floats,
        near: float | None = None,
        *,
        settled: bool = False,
        seen: Callable[[int], None] = lambda count: None,
    ) -> Trial:
        """Cross-validates a candidate, and adds it to the trials.

        Args:
            candidate: What is tried.
            features: Of the compared examples, (N, D).
            near: Setting to start from; None takes the head's usual one.
            settled: Whether no other setting is tried.
            seen: Receives how many more fits are done.
        """
        with one_thread() as workers:  # each of the folds has its own
            x, _, _ = scaled(features, candidate.stages)
            x, _ = narrowed(x, candidate.head)
            scores, setting = climb(
                (near,) if settled and near else settings_of(candidate.head),
                near or FIRST.get(candidate.head),
                partial(self.held_out, candidate.head, x, seen=seen, workers=workers),
                lambda found: float(np.mean([self.loss(each) for each in found])),
            )
            scales: tuple[float, ...] = (1.0,)
            if candidate.head == "discriminant":  # its probabilities are extreme: scale the scores
                scales, losses = self.mixed((scores,))
            else:
                losses = np.mean([self.loss(each) for each in scores], axis=0)
        return self.add(Trial((candidate,), (setting,), scales, losses, (scores,)))

    def add(self, trial: Trial) -> Trial:
        """Compares a trial with the plain one, and keeps it."""
        gain, error = (0.0, 0.0) if not self.trials else self.gain(trial, self.plain)
        trial = replace(trial, gain=gain, error=error)
        self.trials.append(trial)
        return trial

    def gain(self, trial: Trial, other: Trial) -> tuple[float, float]:
        """Mean gain of a trial over another, and its standard error.

        Examples of one group count as one observation.
        """
        gains = other.losses - trial.losses
        total, count = gains, np.ones(len(gains))
        if self.groups is not None:
            _, inverse = np.unique(self.groups, return_inverse=True)
            total = np.asarray(np.bincount(inverse, gains))
            count = np.asarray(np.bincount(inverse), dtype=np.float64)
        mean = float(total.sum() / count.sum())
        residuals = total - mean * count
        error = np.sqrt(np.square(residuals).sum() * len(total) / max(1, len(total) - 1))
        return mean, float(error / count.sum())

    def better(self, trial: Trial, other: Trial) -> bool:
        """Whether the gain of a trial over another exceeds its standard error."""
        gain, error = self.gain(trial, other)
        return gain > error

    def fits(self, head: str, settled: bool = False) -> int:
        """Most fits that `try_candidate` may take."""
        return len(self.folds) * self.count * (1 if settled else len(settings_of(head)))

    def held_out(
        self,
        head: str,
        x: NDArray[Any],
        setting: float,
        starts: list[Any],
        *,
        seen: Callable[[int], None] = lambda count: None,
        workers: int = 1,
    ) -> Doubles:
        """Scores (R, N, V) of each example by heads that were fitted to the other folds.

        Args:
            head: Kind of head.
            x: Standardized features (N, D).
            setting: Its regularization or shrinkage.
            starts: What each fold goes on from with another setting; empty at first.
            seen: Receives how many more fits are done.
            workers: Fits at a time.
        """
        scores = np.zeros((len(self.folds), len(x), self.classes))
        problem = self.problem(x)
        tasks = [(r, number) for r in range(len(self.folds)) for number in range(self.count)]
        few = FEW * len(x) < x.shape[1]
        if not starts and head == DISCRIMINANT and not few:
            starts += self.statistics(x, workers)
        starts += [None] * (len(tasks) - len(starts))

        def one(at: int) -> None:
            r, number = tasks[at]
            held = self.folds[r] == number
            if head == DISCRIMINANT and few:
                found = discriminant_of_few(problem.take(~held), setting)
            elif head == DISCRIMINANT:
                found = discriminant(starts[at], setting)
            else:
                found = fit_linear(
                    head, problem.take(~held), setting, starts[at], 1e-4, COMPARING, exact=False
                )
                starts[at] = found
            scores[r, held] = x[held] @ found.weight.T + found.bias
            seen(1)

        several = partial(parallel, workers=workers) if x.size * self.classes > SMALL else map
        list(several(one, range(len(tasks))))
        return scores

    def statistics(self, x: NDArray[Any], workers: int) -> list[Statistics]:
        """Statistics of the examples that are not in a fold, of each repetition's folds in turn."""

        def held_out(fold: NDArray[np.bool_]) -> Statistics:
            weights = None if self.weights is None else self.weights[fold]
            return Statistics.of(x[fold], self.labels[fold], self.classes, weights)

        found = []
        for folds in self.folds:
            members = [folds == number for number in range(self.count)]
            parts = list(parallel(held_out, members, workers))
            total = reduce(add, parts)
            found += [total - part for part in parts]
        return found

    def mixed(self, scores: Sequence[NDArray[Any]]) -> tuple[tuple[float, ...], Doubles]:
        """Factors of added scores that minimize the loss, and the loss of each example.

        Factors that an example's loss is computed with are fitted to the other half of the folds.
        """
        stack = np.stack(scores)  # (K, R, N, V)
        half = np.stack(self.folds) % 2  # (R, N)
        losses = np.zeros(len(self.labels))
        for side in (0, 1):
            factors = self.factors(stack, half != side)
            mixture = np.einsum("k,krnv->rnv", factors, stack)
            for r in range(len(mixture)):
                chosen = half[r] == side
                losses[chosen] += self.loss(mixture[r])[chosen] / len(mixture)
        factors = self.factors(stack, np.ones_like(half, dtype=bool))
        return tuple(factors.tolist()), losses

    def factors(self, stack: NDArray[Any], chosen: NDArray[np.bool_]) -> Doubles:
        """Factors (K,), not negative, of scores (K, R, N, V) with the least loss of some rows."""
        if not chosen.any():
            return np.full(len(stack), 1 / len(stack))

        def mean_loss(factors: Doubles) -> float:
            mixture = np.einsum("k,krnv->rnv", factors, stack)
            losses = np.stack([self.loss(each) for each in mixture])
            return float(losses[chosen].mean())

        start = np.full(len(stack), 0.5 / len(stack))
        found = scipy("optimize").minimize(
            mean_loss, start, method="L-BFGS-B", bounds=[(0, 10)] * len(stack)
        )
        return np.asarray(found.x)

    def average_best(self, view: View) -> Trial | None:
        """The average of the best heads on one view, where there are several."""
        single = [t for t in self.trials if len(t.candidates) == 1]
        same = [t for t in single if t.candidates[0].view == view]
        best = sorted(same, key=lambda trial: trial.loss)[:BEST]
        if len(best) < 2:
            return None
        scores = tuple(each.scores[0] for each in best)
        scales, losses = self.mixed(scores)
        candidates = tuple(each.candidates[0] for each in best)
        settings = tuple(each.settings[0] for each in best)
        return self.add(Trial(candidates, settings, scales, losses, scores))


def grouped_folds(
    labels: NDArray[Any], groups: Ints | None, rng: np.random.Generator
) -> Ints | None:
    """Fold of each example, (N,); members of a group share one.

    None where the examples of a class would all be in one fold.
    """
    first = inverse = np.arange(len(labels))
    if groups is not None:
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    fewest = len(first)
    if labels.ndim == 1:
        counts = np.bincount(labels[first], minlength=int(labels.max()) + 1)
        fewest = int(counts.min())
    folds = min(FOLDS, fewest)
    if folds < 2:
        return None
    fold: Ints = folds_of(labels[first], folds, rng)[inverse]
    if labels.ndim == 1:
        table = np.zeros((int(labels.max()) + 1, folds), dtype=bool)
        table[labels, fold] = True
        if (table.sum(axis=1) < 2).any():
            return None
    return fold


def scaled(features: Floats, stages: str) -> tuple[NDArray[Any], Doubles, Doubles]:
    """Standardized features (N, D), and the mean (D,) and scale (D,) that make them so.

    Features of several stages are standardized one by one, those of the last stage alone together.
    """
    if stages == "last":
        x, mean, scale = standardized(features)
        return x, mean.astype(np.float64), np.full(features.shape[1], scale)
    mean = features.mean(axis=0, dtype=np.float64)
    deviations = np.asarray(np.sqrt(squares(features, mean)))
    # a feature that hardly varies is left small
    scale = np.maximum(deviations, 1e-2 * (deviations.mean() or 1.0))
    if features.size > LARGE / 10:  # as where the last stage is standardized
        x = features - mean.astype(np.float32)
        x /= scale.astype(np.float32)
        return x, mean, scale
    return (features - mean) / scale, mean, scale


def narrowed(x: NDArray[Any], head: str) -> tuple[NDArray[Any], Doubles | None]:
    """Features in the span of fewer examples, and its basis, where that saves time."""
    if head == DISCRIMINANT and x.shape[1] <= WIDEST:
        return x, None
    return compact(x)


def settings_of(head: str) -> tuple[float, ...]:
    """Shrinkages of a discriminant, or strengths of the other heads, in order."""
    return SHRINKAGES if head == DISCRIMINANT else STRENGTHS


def climb(
    settings: Sequence[float],
    near: float | None,
    held_out: Callable[[float, list[Any]], Doubles],
    loss: Callable[[Doubles], float],
) -> tuple[Doubles, float]:
    """Scores and the setting of the least loss, found from the middle (or `near`) outwards."""
    middle = len(settings) // 2
    if near is not None:
        middle = int(np.abs(np.log(np.asarray(settings) / near)).argmin())
    starts: list[Any] = []
    best_scores = held_out(settings[middle], starts)
    best, least = middle, loss(best_scores)
    for step in (1, -1):
        at = middle + step
        while 0 <= at < len(settings):
            scores = held_out(settings[at], starts)
            found = loss(scores)
            if found >= least:
                break
            best_scores, best, least = scores, at, found
            at += step
        if best != middle:
            break
    return best_scores, settings[best]


def discriminant(statistics: Statistics, shrinkage: float) -> Solution:
    """A discriminant as a solution."""
    found = Discriminant.from_statistics(statistics, shrinkage)
    return Solution(found.weight, found.bias)


def discriminant_of_few(problem: Problem, shrinkage: float) -> Solution:
    """A discriminant of fewer examples than features as a solution."""
    found = Discriminant.from_few(
        problem.x, problem.labels, problem.classes, shrinkage, problem.weights
    )
    return Solution(found.weight, found.bias)


def fit_linear(
    head: str,
    problem: Problem,
    setting: float,
    start: Solution | None = None,
    tolerance: float = 1e-7,
    work: float = FITTING,
    progress: Progress | None = None,
    *,
    exact: bool = True,
) -> Solution:
    """A head of one kind, with at most so many products in its iterations."""
    if head == DISCRIMINANT:
        with (progress or Silent()).counting(
            "fitting the head", len(problem.x), "examples"
        ) as seen:
            statistics = Statistics.of(
                problem.x, problem.labels, problem.classes, problem.weights, seen
            )
        return discriminant(statistics, setting)
    if head == "ridge":
        return ridge(problem, setting)
    iterations = iterations_of(problem, work)
    if iterations < ITERATIONS and start is None and problem.labels.ndim == 1:
        start = close_start(problem)
    if progress is not None:
        progress.start("fitting the head", iterations, unit="iterations")
    return logistic(
        problem, setting, start, tolerance, iterations=iterations, progress=progress, exact=exact
    )


def iterations_of(problem: Problem, work: float = FITTING) -> int:
    """Iterations of a logistic head with at most so many products, and at least 20."""
    size = len(problem.x) * problem.x.shape[1] * problem.classes
    return int(min(ITERATIONS, max(FEWEST_ITERATIONS, work / size)))


def close_start(problem: Problem) -> Solution:
    """A discriminant whose scores are scaled to probabilities, where a logistic head may begin.

    From there few iterations are enough for many examples and classes.
    """
    statistics = Statistics.of(problem.x, problem.labels, problem.classes, problem.weights)
    found = discriminant(statistics, START_SHRINKAGE)
    few = problem.take(np.arange(0, len(problem.x), max(1, len(problem.x) // CV_EXAMPLES)))

    def scaled_by(factor: float) -> Solution:
        return Solution(factor * found.weight, factor * found.bias)

    factors = (1.0, 0.5, 0.25, 0.1)
    return min(map(scaled_by, factors), key=lambda each: log_loss(few, each))


def fit_trial(
    trial: Trial,
    features: Callable[[Candidate], Floats],
    labels: NDArray[Any],
    classes: int,
    weights: Doubles | None,
    progress: Progress | None = None,
) -> Fit:
    """The chosen heads, fitted to all examples and folded into one linear layer.

    Args:
        trial: What was chosen.
        features: Of all examples, (N, D), as a candidate reads them; those of the last stage are
            the last columns of those of all.
        labels: Of all examples.
        classes: V.
        weights: Of all examples.
        progress: Shows the iterations of each head.

    Returns:
        The layer on the widest features that a candidate reads.
    """
    reads = {each.stages: features(each) for each in trial.candidates}
    width = max(each.shape[1] for each in reads.values())
    weight, bias = np.zeros((classes, width)), np.zeros(classes)
    converged = True
    for candidate, setting, factor in zip(
        trial.candidates, trial.settings, trial.scales, strict=True
    ):
        x, mean, scale = scaled(reads[candidate.stages], candidate.stages)
        x, basis = narrowed(x, candidate.head)
        problem = Problem(x, labels, classes, weights)
        found = fit_linear(candidate.head, problem, setting, progress=progress)
        inner = found.weight if basis is None else found.weight @ basis
        inner = inner / scale  # W ((f - mean) / scale) + b
        weight[:, width - inner.shape[1] :] += factor * inner
        bias += factor * (found.bias - inner @ mean)
        converged = converged and found.converged
    head = weight.astype(np.float32), bias.astype(np.float32)
    return Fit(*head, trial.settings[0], {}, FOLDS, converged)


def heads_of(kind: str, *, closed: bool = False) -> tuple[str, ...]:
    """Kinds of head for labels of a kind, the plain one first; for classes those of a closed form
    alone where this is wanted.
    """
    if kind == REGRESSION:
        return ("ridge",)
    if kind != SINGLE:
        return ("logistic",)
    return (DISCRIMINANT,) if closed else ("logistic", DISCRIMINANT)
