"""A linear head fitted to convergence on fixed features.

The head is logistic regression (L-BFGS), one for all classes or one for each label, or ridge
regression; how strongly it is regularized is chosen by cross-validation.

Letters: N examples, D features, V outputs.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import takewhile
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.cache import parallel
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.errors import ConfigError
from headstart.features.discriminant import FEW, ROWS, Discriminant, Statistics
from headstart.features.extract import Extractor
from headstart.metrics.optional import scikit_learn, scipy, thread_pools
from headstart.progress import Progress, Silent, duration
from headstart.tasks.base import HeadTask


@dataclass(frozen=True)
class HeadCost:
    """What fitting a head will cost.

    Args:
        features: Seconds for the features that are not known from before.
        fit: Seconds for the head itself, and for the comparison of heads.
        memory: Bytes.
        search: Seconds for trying larger and mirrored images.
        more: Seconds that these add at most where they are better.
        report: Seconds for the report.
        part: Fraction of the examples of all splits that heads are compared on.
        tried: Fraction of these examples that larger and mirrored images are tried on first.
    """

    features: float
    fit: float
    memory: float
    search: float = 0.0
    more: float = 0.0
    report: float = 0.0
    part: float = 1.0
    tried: float = 1.0

    @property
    def seconds(self) -> float:
        """Of everything, if images of the usual view turn out best."""
        return self.features + self.search + self.fit + self.report

    def with_search(self, sides: Sequence[int], limit: float = math.inf) -> Self:
        """The same with the time for larger and for mirrored images.

        Args:
            sides: Sides of the images to try, the usual one first; none for texts.
            limit: Seconds above which the features of all examples in a view are not computed.
        """
        if not sides:
            return self
        times = self.times(sides)
        larger = list(takewhile(lambda each: each <= limit, times[1:]))
        first = [each for each in (*larger[:1], times[0]) if each <= limit]
        more = [
            self.extra(sides, side, mirrored=mirrored)
            for side, each in zip(sides, [times[0], *larger], strict=False)
            for mirrored in (False, True)
            if each * (1 + (mirrored and side > sides[0]) * (1 - self.part)) <= limit
        ]
        return replace(self, search=self.tried * sum(first), more=max(more, default=0.0))

    def with_view(self, sides: Sequence[int], side: int | None, *, mirrored: bool) -> Self:
        """The same once it is known which view is best."""
        extra = 0.0 if side is None else self.extra(sides, side, mirrored=mirrored)
        return replace(self, search=self.search + extra, more=0.0)

    def times(self, sides: Sequence[int]) -> list[float]:
        """Seconds for the features of all examples by side: they grow with the pixels."""
        return [self.features * (side / sides[0]) ** 2 for side in sides]

    def extra(self, sides: Sequence[int], side: int, *, mirrored: bool) -> float:
        """Seconds that a better view adds: heads are compared on each size up to it, and again on
        it, before the features of all examples are computed.
        """
        at = sides.index(side)
        if not at and not mirrored:
            return 0.0
        times = self.times(sides)
        rest = (1 - self.part) * times[at] if at else 0.0
        known = self.tried * times[1 if at else 0]  # from trying
        compared = self.part * sum(times[1 : at + 1])
        return compared + rest + mirrored * times[at] - known + self.fit

    def text(self) -> str:
        """One line for the user."""
        trying = f"{duration(self.search)} to try larger and mirrored images, "
        parts = (
            f"{duration(self.features)} for features, {trying if self.search else ''}"
            f"{duration(self.fit)} for the head, {duration(self.report)} for the report"
        )
        most = f"up to {duration(self.seconds + self.more)} if larger or mirrored images are better"
        return (
            f"about {duration(self.seconds)} on this machine ({parts}),"
            f"{f' {most},' if self.more else ''} {self.memory / 2**30:.1f} GB of memory"
        )


Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

# inverse regularization, on features of mean square 1
STRENGTHS = tuple(10.0**power for power in range(-3, 4))
CV_EXAMPLES = 4000  # more hardly change the regularization that is chosen
# products of examples, features and classes in one evaluation of the loss up to which logistic
# heads are compared: half a CPU minute
COMPARED = 5e7
# the same where heads of a closed form do not take their place: on 1,700 of 4,500 images of 20
# classes a stronger regularization was chosen than on 4,000, which cost 0.5 (± 0.2) points
MOST_COMPARED = 2e8
FEWEST_COMPARED = 500  # examples, if there are so many, where there is no head of a closed form
OF_CLASS = 4  # examples of each class that are compared at least
PART = 200  # examples on which another view has to gain before all are computed in it
# examples of each class on which logistic heads have to be compared where not all are; with as
# many or fewer, shrunken discriminants of all stages are as accurate or better
ENOUGH = 20
ITERATIONS = 500
# products of examples, features and outputs that the iterations of the last fit may take, where
# these are not fewer than so many
FITTING, FEWEST_ITERATIONS = 5e11, 20
# of the solver, one after another, that a fit takes as long as: 50 to 550 on photos and satellite
# images
FIT_ITERATIONS = 300
# in the comparison of heads by cross-validation, which is repeated for few examples: 1,000 to 2,600
COMPARED_ITERATIONS = 1800
TIMED_ITERATIONS = 5
REPORT = 2.0  # seconds that figures, page and learning curve take, whatever the size of the data
# discriminants that are fitted in the comparison of heads, and passes over the compared examples
CLOSED_FITS, CLOSED_PASSES = 55, 5
# matrices (D, D) of float64 in memory together: with 2,240 features of 20,000 and 50,000 examples
# of 200 classes the peak was within 2 % of what follows from them
COVARIANCES = 12
# p (1 - p) of a class, on average over the examples of a fitted head
CURVATURE = 0.03
# products in one evaluation from which on all threads work, in float32: smaller ones lose more by
# waiting for each other than they gain
LARGE = 2e8


@contextmanager
def one_thread() -> Iterator[int]:
    """Inside the block torch, numpy and scipy compute with one thread for each caller.

    Yields:
        How many threads there were: independent pieces of work that may run at a time.
    """
    before = torch.get_num_threads()
    if before == 1:  # also inside another such block
        yield 1
        return
    torch.set_num_threads(1)
    try:
        with blas_threads().limit(limits=1, user_api="blas"):
            yield before
    finally:
        torch.set_num_threads(before)


@cache
def blas_threads() -> Any:
    """Sets the threads of numpy's and scipy's linear algebra; to find both takes milliseconds."""
    scipy("linalg")  # has a library of its own, which has to be loaded before it is looked for
    return thread_pools().ThreadpoolController()


@dataclass(frozen=True)
class Fit:
    """A fitted head.

    Args:
        weight: (V, D).
        bias: (V,).
        strength: The inverse regularization that was chosen.
        losses: Cross-validated loss by strength; empty where the data is too small for it.
        folds: Number of folds.
        converged: Whether the solver ended before its last iteration.
    """

    weight: Floats
    bias: Floats
    strength: float
    losses: dict[float, float]
    folds: int
    converged: bool = True

    def notes(self) -> list[str]:
        """What the user should know about the fit."""
        how = f"chosen by {self.folds}-fold cross-validation"
        if not self.losses:
            how = "not chosen: a class has a single example"
        lines = [f"regularization C = {self.strength:g}, {how}"]
        if not self.converged:
            lines.append(f"the head did not converge in {ITERATIONS} iterations")
        return lines


@dataclass(frozen=True)
class Problem:
    """Examples to fit a head to.

    Args:
        x: Standardized features (N, D).
        labels: Classes (N,), or labels and regression targets (N, V).
        classes: V.
        weights: Weight of each label, (N,) or (N, V); None weighs all the same.
    """

    x: NDArray[Any]
    labels: NDArray[Any]
    classes: int
    weights: Doubles | None = None

    def take(self, rows: NDArray[Any]) -> "Problem":
        """The same problem on some examples."""
        weights = None if self.weights is None else self.weights[rows]
        return Problem(self.x[rows], self.labels[rows], self.classes, weights)


@dataclass(frozen=True)
class Solution:
    """Weights (V, D) and biases (V,) of a head, and whether the solver converged."""

    weight: Doubles
    bias: Doubles
    converged: bool = True


Solver = Callable[[Problem, float, Solution | None, float], Solution]
Loss = Callable[[Problem, Solution], float]


def fit_head(
    features: Floats,
    labels: NDArray[Any],
    classes: int,
    seed: int = 0,
    *,
    kind: str = SINGLE,
    weights: NDArray[np.float64] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """A linear head whose regularization is chosen by cross-validation.

    Args:
        features: (N, D).
        labels: (N,) classes, each at least once: multinomial logistic regression. (N, V) zeros and
            ones: logistic regression of each label. (N, V) numbers: ridge regression.
        classes: V.
        seed: Decides the folds.
        kind: Which of the three.
        weights: Weight of each label, (N,) for classes and (N, V) for several labels; None weighs
            all the same.
        progress: Shows the iterations of the solver.
    """
    x, mean, scale = standardized(features)
    labels = labels if kind == SINGLE else labels.astype(np.float64)
    x, basis = compact(x)
    problem = Problem(x, labels, classes, weights)
    strength, losses, folds = choose_strength(problem, kind, seed)
    solve = ridge if kind == REGRESSION else partial(logistic, progress=progress)
    found = solve(problem, strength)
    weight = found.weight if basis is None else found.weight @ basis  # (V, D)
    # The scaling goes into the layer: W ((f - mean) / scale) + b.
    weight = weight / scale
    bias = found.bias - weight @ mean
    head = weight.astype(np.float32), bias.astype(np.float32)
    return Fit(*head, strength, losses, folds, found.converged)


def standardized(features: Floats) -> tuple[NDArray[Any], Floats, float]:
    """Features (N, D) around 0 and of mean square 1, and the mean (D,) and scale that make them so.

    In float64, and in float32 from a size on where a head is fitted in float32 too.
    """
    mean = features.mean(axis=0)
    centered = features - mean
    scale = float(np.sqrt(squares(centered, np.zeros_like(mean)).mean())) or 1.0
    centered /= scale
    dtype = np.float32 if features.size > LARGE / 10 else np.float64
    return np.asarray(centered, dtype=dtype), mean, scale


def squares(features: Floats, center: NDArray[Any]) -> Doubles:
    """Mean squares (D,) of features (N, D) around a center, in float64 by parts of the examples."""
    total = np.zeros(features.shape[1])
    for start in range(0, len(features), ROWS):
        total += np.square(features[start : start + ROWS] - center, dtype=np.float64).sum(axis=0)
    return total / len(features)


def compact(x: NDArray[Any]) -> tuple[NDArray[Any], Doubles | None]:
    """The features (N, R) in the span of the examples, and its basis (R, D) or None.

    With fewer examples than features the weights lie in that span: the same problem in as many
    dimensions as there are examples.
    """
    if len(x) >= x.shape[1]:
        return x, None
    basis = span(np.asarray(x, dtype=np.float64))
    return x @ basis.T, basis


def span(x: Doubles) -> Doubles:
    """An orthonormal basis (R, D) of the rows of x (N, D), R at most N.

    Of rows that are all 0 it is one row of zeros, for which a head can be fitted as for any other.
    """
    rows = torch.from_numpy(x)
    with one_thread():
        squares, vectors = torch.linalg.eigh(rows @ rows.T)  # (N,), (N, N)
        largest = float(squares[-1]) or 1.0
        used = squares > 1e-12 * largest
        used[-1] = True
        return np.asarray(
            (vectors[:, used] / squares[used].clamp(min=1e-12 * largest).sqrt()).T @ rows
        )


def held_out_scores(
    features: Floats,
    labels: Ints,
    classes: int,
    seed: int = 0,
    folds: int = 5,
    seen: Callable[[int], None] = lambda count: None,
) -> Doubles:
    """Scores (N, V) of every example by a head that was fitted to the other folds.

    `seen` receives how many more fits are done, of at most `folds + 5 * len(STRENGTHS)`.
    """
    x, _ = compact(standardized(features)[0])
    problem = Problem(x, labels, classes)
    strength, _, _ = choose_strength(problem, SINGLE, seed, seen)
    fold = folds_of(labels, folds, np.random.default_rng([seed, 0x5C03E]))
    scores = np.zeros((len(x), classes))
    for number in range(folds):
        train, held = fold != number, fold == number
        found = logistic(problem.take(train), strength, tolerance=1e-5)
        scores[held] = x[held] @ found.weight.T + found.bias
        seen(1)
    return scores


def folds_of(labels: NDArray[Any], folds: int, rng: np.random.Generator) -> Ints:
    """Fold of each example, (N,); every fold holds its part of every class.

    scikit-learn's `StratifiedKFold` refuses classes with fewer examples than folds.
    """
    fold = np.empty(len(labels), dtype=np.int64)
    groups = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == label))
        fold[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return fold


def stratified(labels: Ints, rng: np.random.Generator) -> Ints:
    """A random order of examples in which every beginning holds all classes in proportion.

    The first example of every class comes before the second one of any.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank = rng.permutation(len(members))
        place[members] = np.where(rank == 0, -1.0, (rank + rng.random()) / len(members))
    return np.argsort(place + 1e-9 * rng.random(len(labels)), kind="stable")


def choose_strength(
    problem: Problem, kind: str, seed: int, seen: Callable[[int], None] = lambda count: None
) -> tuple[float, dict[float, float], int]:
    """The inverse regularization of the smallest cross-validated loss, the losses, and the
    folds.
    """
    fewest = len(problem.x)
    if kind == SINGLE:
        fewest = int(np.bincount(problem.labels, minlength=problem.classes).min())
    folds = min(5, fewest)
    if folds < 2:
        return 1.0, {}, folds
    solve, loss = (ridge, squared_error) if kind == REGRESSION else (logistic, log_loss)
    losses = cross_validate(problem, folds, seed, solve, loss, seen)
    return min(losses, key=lambda each: (losses[each], each)), losses, folds


def cross_validate(
    problem: Problem, folds: int, seed: int, solve: Solver, loss: Loss, seen: Callable[[int], None]
) -> dict[float, float]:
    """Mean loss on held-out folds by strength; `seen` receives how many more fits are done."""
    rng = np.random.default_rng([seed, 0xF01D])
    if len(problem.x) > CV_EXAMPLES:
        problem = problem.take(rng.permutation(len(problem.x))[:CV_EXAMPLES])
    fold = folds_of(problem.labels, folds, rng)
    # each strength goes on from the one before
    starts: list[Solution | None] = [None] * folds
    losses: dict[float, float] = {}

    def held_out(number: int, strength: float) -> float:
        train, held = problem.take(fold != number), problem.take(fold == number)
        found = solve(train, strength, starts[number], 1e-5)
        starts[number] = found
        seen(1)
        return loss(held, found)

    with one_thread() as workers:  # each of the folds has its own
        for strength in STRENGTHS:
            parts = parallel(partial(held_out, strength=strength), range(folds), workers)
            losses[strength] = sum(parts) / len(problem.x)
            last = list(losses.values())[-3:]
            if len(last) == 3 and last[0] < last[1] < last[2]:
                break  # less regularization only harms from here on
    return losses


def losses_of(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """-log p of the class (N,), or of the presence or absence of each label (N, V)."""
    if labels.ndim == 1:
        losses = F.cross_entropy(logits, labels, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses if weights is None else losses * weights


def log_loss(problem: Problem, found: Solution) -> float:
    """Sum of -log p(label)."""
    scores = torch.from_numpy(problem.x @ found.weight.T + found.bias)
    weights = None if problem.weights is None else torch.from_numpy(problem.weights)
    return float(losses_of(scores, torch.from_numpy(problem.labels), weights).sum())


def squared_error(problem: Problem, found: Solution) -> float:
    """Sum of the squared errors, each target in its standard deviations so that all count alike."""
    spread = problem.labels.std(axis=0)
    errors = problem.x @ found.weight.T + found.bias - problem.labels
    return float(np.square(errors / np.where(spread > 0, spread, 1)).sum())


def ridge(
    problem: Problem, strength: float, start: Solution | None = None, tolerance: float = 0.0
) -> Solution:
    """The head that minimizes `|x W' + b - labels|² + |W|² / strength`.

    Biases are not penalized.
    """
    model = scikit_learn("linear_model").Ridge(alpha=1 / strength, solver="cholesky")
    with one_thread():
        model.fit(problem.x, problem.labels)
    return Solution(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))


def mean_loss_of(
    problem: Problem, strength: float, pace: Doubles, dtype: torch.dtype, device: torch.device
) -> Callable[[Doubles], tuple[float, Doubles]]:
    """The function that `logistic` minimizes: of parameters (V * (D + 1),), each divided by its
    unit of `pace` (see `paces`), with its gradient.
    """
    (N, D), V = problem.x.shape, problem.classes
    x = torch.as_tensor(problem.x, dtype=dtype, device=device)
    labels = torch.as_tensor(problem.labels, device=device)
    single = labels.ndim == 1
    labels = labels[:, None] if single else labels.to(dtype)
    minus_ones = torch.full((N, 1), -1.0, dtype=dtype, device=device)
    weights = problem.weights
    counts = None if weights is None else torch.as_tensor(weights, dtype=dtype, device=device)
    if counts is not None and single:
        counts = counts[:, None]

    def mean_loss(flat: Doubles) -> tuple[float, Doubles]:
        """The mean loss and its gradient, both (V * (D + 1),); biases are the last column."""
        parameters = pace * flat.reshape(V, D + 1)
        values = torch.as_tensor(parameters, dtype=dtype, device=device)
        weight, bias = values[:, :-1], values[:, -1]
        logits = (x @ weight.T).add_(bias)  # (N, V)
        if single:
            slopes = logits.log_softmax(dim=1)
            losses = -slopes.gather(1, labels)  # (N, 1)
            slopes.exp_().scatter_add_(1, labels, minus_ones)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            slopes = logits.sigmoid() - labels
        if counts is not None:
            losses *= counts
            slopes *= counts
        gradient = np.empty((V, D + 1))
        gradient[:, :-1] = (slopes.T @ x).numpy(force=True)
        gradient[:, :-1] += parameters[:, :-1] / strength
        gradient[:, -1] = slopes.sum(dim=0).numpy(force=True)
        gradient *= pace / N
        penalty = np.square(parameters[:, :-1]).sum() / (2 * strength)
        return float(losses.sum(dtype=torch.float64) + penalty) / N, gradient.ravel()

    return mean_loss


def logistic(
    problem: Problem,
    strength: float,
    start: Solution | None = None,
    tolerance: float = 1e-7,
    *,
    progress: Progress | None = None,
    iterations: int = ITERATIONS,
    exact: bool = True,
) -> Solution:
    """Logistic regression with an L2 penalty of 1 / strength on the weights.

    Minimizes `sum of cross-entropies + |W|² / (2 strength)` by L-BFGS, as scikit-learn does; with
    labels (N, V) each label is a problem of its own. Large problems are evaluated in float32 by all
    threads, or on the accelerator where there is one; others in float32 too unless `exact`.
    """
    N, D = problem.x.shape
    V = problem.classes
    large = N * D * V > LARGE
    device = torch.device("cuda" if large and torch.cuda.is_available() else "cpu")
    dtype = torch.float64 if exact and not large else torch.float32
    progress = progress or Silent()
    pace = paces(problem, strength)
    first = np.zeros((V, D + 1))
    if start is not None:
        first = np.concatenate([start.weight, start.bias[:, None]], axis=1)
    done = [0]

    def show(flat: Doubles) -> None:
        done[0] += 1
        progress.update(done[0], {})

    with threads_for(large), torch.inference_mode():
        result = scipy("optimize").minimize(
            mean_loss_of(problem, strength, pace, dtype, device),
            (first / pace).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=show,
            options={
                "maxiter": iterations,
                "maxfun": 10 * iterations,
                "maxcor": 20,
                "gtol": tolerance,
                "ftol": tolerance / 100 if dtype == torch.float64 else max(1e-9, tolerance / 100),
            },
        )
    progress.update(iterations, {})  # the solver seldom takes all
    found = pace * result.x.reshape(V, D + 1)
    return Solution(found[:, :-1], found[:, -1], result.nit < iterations)


def paces(problem: Problem, strength: float) -> Doubles:
    """Units (D + 1,) of each feature's weights and of the biases in which the loss is about as
    curved along all of them.

    In the span of fewer examples (`compact`) features are principal axes with very different
    variances, and the solver needs a third of the iterations.
    """
    squares = np.einsum("nd,nd->d", problem.x, problem.x)
    curvature = CURVATURE * np.append(squares, len(problem.x))
    curvature[:-1] += 1 / strength
    return np.asarray(np.sqrt(len(problem.x) / curvature))


@contextmanager
def threads_for(large: bool) -> Iterator[None]:
    """One thread inside the block, unless the problem is large."""
    if large:
        yield
        return
    with one_thread():
        yield


class Clock(Silent):
    """Notes when each step is done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """See `Progress.update`."""
        self.times.append(time.perf_counter())


def fitting_seconds(examples: int, width: int, classes: int) -> float:
    """About how long logistic heads take to compare and to fit.

    How many iterations of the solver it needs depends on the data, by a factor of 2. The time of
    one is measured on random numbers, and on a part of them where there are many.
    """
    part_compared = compared_examples(examples, width, classes, MULTI) / examples
    width, classes = min(width, examples), max(2, classes)
    size = examples * width * classes
    part = min(examples, math.ceil(2 * LARGE / (width * classes)))
    rows = np.random.default_rng(0).standard_normal((part, width), dtype=np.float32)
    problem, clock = Problem(rows, np.arange(part) % classes, classes), Clock()
    logistic(problem, 1.0, tolerance=0.0, progress=clock, iterations=TIMED_ITERATIONS, exact=False)
    # the last time is that of the end; a solver that stops at once takes no time
    iteration = min(np.diff(clock.times[:-1]), default=0.0)
    repeats = 3 if examples < 300 else 1
    compared = COMPARED_ITERATIONS * repeats * part_compared
    fitted = min(FIT_ITERATIONS, max(FEWEST_ITERATIONS, FITTING / size))
    return float((fitted + compared) * iteration * examples / part)


def comparable(width: int, classes: int, work: float) -> int:
    """Examples on which logistic heads can be compared with so many products an evaluation.

    Fewer examples than features are a problem of as many dimensions (`compact`).
    """
    each = work / classes
    return int(min(CV_EXAMPLES, max(each / width, min(width, each**0.5))))


def closed_form(examples: int, width: int, classes: int, kind: str) -> bool:
    """Whether heads are compared and fitted in closed form, as shrunken discriminants.

    Logistic ones would take many times as long as the features.
    """
    most = comparable(width, classes, COMPARED)
    return kind == SINGLE and most < min(examples, ENOUGH * classes)


def compared_examples(examples: int, width: int, classes: int, kind: str) -> int:
    """Examples on which heads are compared by cross-validation."""
    if closed_form(examples, width, classes, kind):
        return min(examples, max(CV_EXAMPLES, OF_CLASS * classes))
    fewest = max(FEWEST_COMPARED, OF_CLASS * classes)
    return min(examples, CV_EXAMPLES, max(fewest, comparable(width, classes, MOST_COMPARED)))


def tried_examples(compared: int, classes: int) -> int:
    """Examples on which another view has to gain before heads are compared on it.

    As many as are compared where not even half would be saved.
    """
    count = max(PART, OF_CLASS * classes)
    return count if 2 * count <= compared else compared


def closed_seconds(examples: int, width: int, classes: int) -> float:
    """About how long heads of a closed form take to compare and to fit, measured on zeros."""
    compared = compared_examples(examples, width, classes, SINGLE)
    rows = np.zeros((min(compared, ROWS), width), dtype=np.float32)
    labels = np.arange(len(rows)) % classes
    began = time.perf_counter()
    statistics = Statistics.of(rows, labels, classes)
    added = time.perf_counter()
    if FEW * len(rows) < width:
        Discriminant.from_few(rows, labels, classes, 0.5)
    else:
        Discriminant.from_statistics(statistics, 0.5)
    solved = time.perf_counter() - added
    passes = CLOSED_PASSES * compared + examples
    return CLOSED_FITS * solved + (added - began) * passes / len(rows)


def install(layer: nn.Linear, fit: Fit) -> None:
    """Writes a fitted head into the network."""
    if tuple(layer.weight.shape) != fit.weight.shape:
        raise ConfigError(
            f"the head is {tuple(layer.weight.shape)}, the fitted one {fit.weight.shape}"
        )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fit.weight))
        layer.bias.copy_(torch.from_numpy(fit.bias))


def fitting_memory(examples: int, width: int, classes: int, closed: bool) -> float:
    """Bytes that heads take to compare and to fit, beside the features themselves.

    Args:
        examples: Training examples.
        width: Features of each.
        classes: Outputs.
        closed: Whether heads have a closed form.
    """
    if closed:  # a copy of the features, and covariances of folds with their factors
        return 4 * examples * width + COVARIANCES * 8 * width**2
    size = 4 if examples * width * classes > LARGE else 8
    # the standardized copy and what goes into the solver; scores and their slopes; its memory
    standardized, scores = 2 * size * examples * width, 3 * size * examples * classes
    return standardized + scores + 24 * classes * width * 8


def head_cost(task: HeadTask, extractor: Extractor, base_memory: float) -> HeadCost:
    """Time and memory of fitting a head, from a few features and evaluations of the loss."""
    digests = task.feature_digests()
    store = extractor.store()
    everything = dict.fromkeys(d for each in digests.values() for d in each if d)
    missing = [digest for digest in everything if digest not in store]
    N, D = len(digests["train"]), int(extractor.layer.in_features)
    V = len(task.classes)
    total = sum(map(len, digests.values()))
    closed = closed_form(N, D, V, task.problem.kind)
    memory = base_memory + 4 * total * D + fitting_memory(N, D, V, closed)
    seconds = extractor.seconds(missing, task.feature_sizes(missing))
    fit = closed_seconds(N, D, V) if closed else fitting_seconds(N, D, V)
    compared = compared_examples(N, D, V, task.problem.kind)
    part, tried = compared / total, tried_examples(compared, V) / total
    return HeadCost(seconds, fit, memory, report=REPORT, part=part, tried=tried)
