"""`--tune head`: features once, kept on disk, and a linear head fitted to convergence.

The backbone is run once over every image; a later run with other labels, splits or settings finds
the features again by the hash of the image's content and of the network and its preprocessing. The
head is logistic regression (L-BFGS), one for all classes or one for each label, or ridge regression
of numbers; how strongly it is regularised is chosen by cross-validation.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.cache import parallel
from headstart.data.labels import REGRESSION, SINGLE
from headstart.errors import ConfigError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Solver = Callable[..., tuple[Doubles, Doubles]]
Judge = Callable[..., float]
# inverse regularisation, on features of mean square 1
STRENGTHS = tuple(10.0**power for power in range(-3, 4))
CV_EXAMPLES = 4000  # more tell nothing new about the regularisation
# of the loss, one after another, that a fit takes as long as: 250 to 1,000 on photos and satellite
# pictures
EVALUATIONS = 700


def model_key(model: nn.Module, processor: dict[str, Any]) -> str:
    """Hash of everything that decides a feature.

    The weights below the head, the configuration, the preprocessing.
    """
    whole = hashlib.sha256()
    heads: tuple[str, ...] = getattr(model, "heads", ())
    for name, tensor in sorted(model.state_dict().items()):
        if not any(name.startswith(head + ".") for head in heads):
            whole.update(name.encode())
            whole.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("id2label", "label2id", "_name_or_path")
    }  # type: ignore[operator, union-attr]
    whole.update(json.dumps([config, processor], sort_keys=True, default=str).encode())
    return whole.hexdigest()[:32]


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch computes with one thread.

    Thousands of small products lose more by waiting for each other than they gain.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block, what goes into a layer is kept in a list instead of being used there."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].detach())
    )
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class Fit:
    """A fitted head.

    Args:
        weight: (V, D).
        bias: (V,).
        strength: The inverse regularisation that was chosen.
        losses: Cross-validated loss by strength; empty where the data is too small for it.
        folds: Number of folds.
    """

    weight: Floats
    bias: Floats
    strength: float
    losses: dict[float, float]
    folds: int


def fit_head(
    features: Floats,
    labels: NDArray[Any],
    classes: int,
    seed: int = 0,
    *,
    kind: str = SINGLE,
    weights: NDArray[np.float64] | None = None,
) -> Fit:
    """A linear head whose regularisation is chosen by cross-validation.

    Args:
        features: (N, D).
        labels: (N,) classes, each at least once: multinomial logistic regression. (N, V) zeros and
            ones: logistic regression of each label. (N, V) numbers: ridge regression.
        classes: V.
        seed: Decides the folds.
        kind: Which of the three.
        weights: What each label counts, (N,) for classes and (N, V) for several labels; None counts
            all the same.
    """
    solve, judge = (ridge, squared_error) if kind == REGRESSION else (logistic, log_loss)
    x, mean, scale = standardised(features)
    labels = labels if kind == SINGLE else labels.astype(np.float64)
    # With fewer examples than features the weights lie in the span of the examples: the same
    # problem, in as many dimensions as examples.
    basis = span(x) if len(x) < x.shape[1] else None  # (up to N, D)
    x = x if basis is None else x @ basis.T
    fewest = int(np.bincount(labels, minlength=classes).min()) if kind == SINGLE else len(x)
    folds = min(5, fewest)
    losses = cross_validate(x, labels, folds, seed, weights, solve, judge) if folds >= 2 else {}
    strength = min(losses, key=lambda each: (losses[each], each)) if losses else 1.0
    weight, bias = solve(x, labels, strength, weights=weights)
    weight = weight if basis is None else weight @ basis  # (V, D)
    # The scaling goes into the layer: W ((f - mean) / scale) + b.
    weight = weight / scale
    bias = bias - weight @ mean
    return Fit(weight.astype(np.float32), bias.astype(np.float32), strength, losses, folds)


def standardised(features: Floats) -> tuple[Doubles, Floats, float]:
    """Features (N, D) around 0 and of mean square 1, and the mean (D,) and scale that made them so."""
    mean = features.mean(axis=0)
    scale = float(np.sqrt(np.square(features - mean).mean())) or 1.0
    return np.asarray((features - mean) / scale, dtype=np.float64), mean, scale


def held_out_scores(
    features: Floats, labels: Ints, classes: int, seed: int = 0, folds: int = 5
) -> Doubles:
    """Scores (N, V) of every example by a head that was fitted to the other folds, regularised as
    `fit_head` would.
    """
    strength = fit_head(features, labels, classes, seed).strength
    x, _, _ = standardised(features)
    x = x @ span(x).T if len(x) < x.shape[1] else x
    fold = folds_of(labels, folds, np.random.default_rng([seed, 0x5C03E]))
    scores = np.zeros((len(x), classes))
    for number in range(folds):
        train, held = fold != number, fold == number
        # also for a class that this fold holds all of
        start = (np.zeros((classes, x.shape[1])), np.zeros(classes))
        weight, bias = logistic(x[train], labels[train], strength, start, 1e-5)
        scores[held] = x[held] @ weight.T + bias
    return scores


def span(x: Doubles) -> Doubles:
    """An orthonormal basis (R, D) of the rows of x (N, D), R at most N."""
    rows = torch.from_numpy(x)
    with one_thread():
        squares, vectors = torch.linalg.eigh(rows @ rows.T)  # (N,), (N, N)
        used = squares > 1e-12 * squares.max()
        return np.asarray((vectors[:, used] / squares[used].sqrt()).T @ rows)


def folds_of(labels: NDArray[Any], folds: int, rng: np.random.Generator) -> Ints:
    """Fold of each example, (N,); every fold holds its share of every class."""
    fold = np.empty(len(labels), dtype=np.int64)
    groups = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == label))
        fold[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return fold


def cross_validate(
    x: Doubles,
    labels: NDArray[Any],
    folds: int,
    seed: int,
    weights: Doubles | None,
    solve: Solver,
    judge: Judge,
) -> dict[float, float]:
    """Mean loss on held-out folds by strength."""
    rng = np.random.default_rng([seed, 0xF01D])
    if len(x) > CV_EXAMPLES:
        chosen = rng.permutation(len(x))[:CV_EXAMPLES]
        x, labels, weights = x[chosen], labels[chosen], None if weights is None else weights[chosen]
    fold = folds_of(labels, folds, rng)
    # each strength goes on from the one before
    starts: list[tuple[Doubles, Doubles] | None] = [None] * folds
    losses: dict[float, float] = {}

    def held_out(number: int, strength: float) -> float:
        train, held = fold != number, fold == number
        found = solve(
            x[train],
            labels[train],
            strength,
            starts[number],
            1e-5,
            None if weights is None else weights[train],
        )
        starts[number] = found
        return judge(x[held], labels[held], *found, None if weights is None else weights[held])

    for strength in STRENGTHS:
        with one_thread():  # each of the folds has its own
            losses[strength] = sum(
                parallel(partial(held_out, strength=strength), range(folds), None)
            ) / len(x)
        last = list(losses.values())[-3:]
        if len(last) == 3 and last[0] < last[1] < last[2]:
            break  # less regularisation only harms from here on
    return losses


def fitting_seconds(examples: int, width: int, classes: int) -> float:
    """About how long a head takes to fit.

    How many steps it needs is for the data to say, by a factor of 2.
    """
    rows, labels = np.zeros((examples, min(width, examples))), np.arange(examples) % classes
    start, times = (np.zeros((classes, rows.shape[1])), np.zeros(classes)), []
    for _ in range(4):  # the first one also imports what optimizers need, for two seconds
        began = time.perf_counter()
        logistic(rows, labels, 1.0, start, tolerance=1.0)  # evaluates the loss once, and is content
        times.append(time.perf_counter() - began)
    return EVALUATIONS * sorted(times)[1]


def losses_of(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of -log p.

    Of the class (labels (N,)), or of the presence or absence of each label (labels (N, V)).
    """
    if labels.ndim == 1:
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    else:
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses if weights is None else losses * weights).sum()


def log_loss(
    x: Doubles, labels: NDArray[Any], weight: Doubles, bias: Doubles, weights: Doubles | None = None
) -> float:
    """Sum of -log p(label)."""
    scores = torch.from_numpy(x @ weight.T + bias)
    return float(
        losses_of(
            scores, torch.from_numpy(labels), None if weights is None else torch.from_numpy(weights)
        )
    )


def squared_error(
    x: Doubles, labels: NDArray[Any], weight: Doubles, bias: Doubles, weights: Doubles | None = None
) -> float:
    """Sum of the squared errors, each number in its own standard deviations so that all count
    alike.
    """
    spread = labels.std(axis=0)
    return float(np.square((x @ weight.T + bias - labels) / np.where(spread > 0, spread, 1)).sum())


def ridge(
    x: Doubles,
    labels: Doubles,
    strength: float,
    start: tuple[Doubles, Doubles] | None = None,
    tolerance: float = 0.0,
    weights: Doubles | None = None,
) -> tuple[Doubles, Doubles]:
    """Weights (V, D) and biases (V,) that minimise `|x W' + b - labels|² + |W|² / strength`, in
    closed form; biases are not penalised.
    """
    centre, target = x.mean(axis=0), labels.mean(axis=0)
    rows = torch.from_numpy(x - centre)
    with one_thread():
        square = rows.T @ rows + torch.eye(x.shape[1], dtype=torch.float64) / strength
        weight = np.asarray(
            torch.linalg.solve(square, rows.T @ torch.from_numpy(labels - target)).T
        )
    return weight, target - weight @ centre


def logistic(
    x: Doubles,
    labels: NDArray[Any],
    strength: float,
    start: tuple[Doubles, Doubles] | None = None,
    tolerance: float = 1e-7,
    weights: Doubles | None = None,
) -> tuple[Doubles, Doubles]:
    """Weights (V, D) and biases (V,) of logistic regression with an L2 penalty of 1 / strength on
    the weights.

    Minimises `sum of cross-entropies + |W|² / (2 strength)`, as scikit-learn does, by torch's
    L-BFGS. Labels are classes (N,), and V is one more than the largest; or zeros and ones (N, V),
    each label a problem of its own.
    """
    classes = (
        len(start[1])
        if start is not None
        else int(labels.max()) + 1
        if labels.ndim == 1
        else labels.shape[1]
    )
    data, target = torch.from_numpy(x), torch.from_numpy(labels)
    counts = None if weights is None else torch.from_numpy(weights)
    first = (
        np.zeros((classes, x.shape[1] + 1))
        if start is None
        else np.concatenate([start[0], start[1][:, None]], axis=1)
    )
    parameters = torch.from_numpy(first).requires_grad_()  # (V, D + 1), biases last
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=500,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=tolerance / 10,
        line_search_fn="strong_wolfe",
    )

    def mean_loss() -> float:
        solver.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = (
            losses_of(data @ weight.T + bias, target, counts)
            + weight.square().sum() / (2 * strength)
        ) / len(target)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with one_thread(), torch.enable_grad():
        solver.step(mean_loss)  # type: ignore[no-untyped-call]
    result = parameters.detach().numpy()
    return result[:, :-1], result[:, -1]


def install(layer: nn.Linear, fit: Fit) -> None:
    """Writes a fitted head into the network."""
    if tuple(layer.weight.shape) != fit.weight.shape:
        raise ConfigError(
            f"the head is {tuple(layer.weight.shape)}, the fitted one {fit.weight.shape}"
        )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fit.weight))
        layer.bias.copy_(torch.from_numpy(fit.bias))
