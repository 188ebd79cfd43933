"""What is learned of each example: one class, any number of classes, or numbers. Loss, measures and
head of each, for images and texts.

Letters: B examples of a micro-batch, N of a split, V classes or numbers, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.errors import ConfigError
from headstart.metrics.classification import classification_metrics, wilson
from headstart.metrics.text import pearson
from headstart.training.head import Fit, fit_head

Interval = tuple[float, float]
Weights = str | Mapping[str, float] | Sequence[float]
BOOTSTRAPS = 200
BOOTSTRAP_CELLS = 200_000  # numbers in a split up to which an interval is worth its time


class Problem(ABC):
    """What the labels of a task are, and what follows from it."""

    kind: ClassVar[str]
    headline: str

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # (V,)

    def look(self, names: Sequence[str], labels: NDArray[Any], weights: Weights = "none") -> None:
        """Takes from the training labels what the loss needs.

        Args:
            names: V names.
            labels: Of the training data.
            weights: `class_weights` of the recipe.
        """
        if weights == "none":
            self.weights = None
        elif weights == "balanced":
            self.weights = torch.from_numpy(self.balanced(labels, len(names)))
        else:
            if not isinstance(weights, Mapping) and len(weights) != len(names):
                raise ConfigError(
                    f"class_weights has {len(weights)} numbers for {len(names)} classes"
                )
            given: dict[str, Any] = (
                dict(weights)
                if isinstance(weights, Mapping)
                else dict(zip(names, weights, strict=True))
            )
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ConfigError(
                    f"class_weights names {unknown[0]!r}, which is no class; the classes are"
                    f" {', '.join(names[:20])}"
                )
            self.weights = torch.from_numpy(
                self.scaled(np.array([float(given.get(name, 1.0)) for name in names]), labels)
            )

    @abstractmethod
    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Weights (V,) that make up for rare classes."""

    def scaled(self, weights: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Weights as the loss takes them."""
        return weights

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64] | None:
        """What each label counts in a fitted head: (N,) or (N, V)."""
        return None

    def start(self, layer: nn.Linear) -> None:
        """Sets a new head to what is known before anything is learned."""
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

    @abstractmethod
    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of (B, V) scores, and sums of further measures."""

    @abstractmethod
    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """The numbers of an evaluation of scores (N, V), and the 95 % interval of the headline."""

    def in_units(self, logits: NDArray[Any]) -> NDArray[Any]:
        """What the network says (N, V), in the units of the labels."""
        return logits

    def finish(self, layer: nn.Linear) -> None:  # noqa: B027 - most have nothing to do
        """Puts what only training knew into the weights of the head."""

    def fit(
        self, features: NDArray[np.float32], labels: NDArray[Any], classes: int, seed: int
    ) -> Fit:
        """A head on features (N, D)."""
        return fit_head(
            features, labels, classes, seed, kind=self.kind, weights=self.weights_of(labels)
        )

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """Values of the network's configuration."""
        return {"id2label": dict(enumerate(names)), "problem_type": self.kind}


class SingleLabel(Problem):
    """One class each: cross-entropy, whose targets may be classes (B,) or shares of them (B, V)."""

    kind: ClassVar[str] = SINGLE
    headline = "accuracy"

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """See `Problem.overrides`; one class each is what a configuration that says nothing means."""
        return {"id2label": dict(enumerate(names)), "problem_type": None}

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """The inverse of each class's share, 1 on average over the examples (as scikit-learn's
        "balanced").
        """
        return np.asarray(
            len(labels) / (classes * np.maximum(1, np.bincount(labels, minlength=classes))),
            dtype=np.float64,
        )

    def scaled(self, weights: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
        """1 on average over the examples, so that the learning rate keeps its meaning."""
        return np.asarray(weights / weights[labels].mean())

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64] | None:
        """See `Problem.weights_of`."""
        return None if self.weights is None else np.asarray(self.weights.numpy()[labels])

    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Problem.compare`.

        An image is right when its best class is the larger share of a mixture.
        """
        weights = None if self.weights is None else self.weights.to(logits)
        loss = F.cross_entropy(
            logits, target, weight=weights, reduction="sum", label_smoothing=smoothing
        )
        return loss, {
            "accuracy": (
                (
                    logits.detach().argmax(1) == (target if target.ndim == 1 else target.argmax(1))
                ).sum()
            )
        }

    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """See `Problem.measure`."""
        return classification_metrics(logits, labels), wilson(
            int((logits.argmax(1) == labels).sum()), len(labels)
        )


class MultiLabel(Problem):
    """Any number of classes each: binary cross-entropy, the sum over the classes.

    Labels are zeros and ones (B, V).
    """

    kind: ClassVar[str] = MULTI

    def __init__(self, headline: str = "mean_average_precision") -> None:
        super().__init__()
        self.headline = headline
        self.shares: Tensor | None = None

    def look(self, names: Sequence[str], labels: NDArray[Any], weights: Weights = "none") -> None:
        """See `Problem.look`."""
        super().look(names, labels, weights)
        # (V,), never 0 or 1
        self.shares = torch.from_numpy((labels.sum(0) + 1) / (len(labels) + 2))

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Absences for one presence of each label: what the presences count."""
        there = labels.sum(0)
        return np.asarray((len(labels) - there) / np.maximum(1, there), dtype=np.float64).clip(1e-3)

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64] | None:
        """See `Problem.weights_of`."""
        return None if self.weights is None else np.where(labels > 0.5, self.weights.numpy(), 1.0)

    def start(self, layer: nn.Linear) -> None:
        """Weights of zero, and biases that give each label the probability it has in the training
        data (Lin et al. 2017, section 4.1).
        """
        super().start(layer)
        if self.shares is not None and self.weights is None:
            with torch.no_grad():
                layer.bias.copy_(self.shares.logit())

    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Problem.compare`; label smoothing moves both values towards one half."""
        target = target.to(logits.dtype)
        weights = None if self.weights is None else self.weights.to(logits)
        smooth = target * (1 - smoothing) + smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=weights, reduction="sum"
        )
        return loss, {"exact_match": ((logits.detach() > 0) == (target > 0.5)).all(1).sum()}

    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """Mean average precision over the labels that occur; F1 over all answers and over labels.

        The share that is right altogether.
        """
        true = labels > 0.5
        loss = F.binary_cross_entropy_with_logits(
            torch.tensor(logits).double(), torch.tensor(labels).double(), reduction="none"
        )
        metrics = {
            "mean_average_precision": mean_average_precision(logits, true),
            "micro_f1": micro_f1(logits > 0, true),
        }
        table = per_label(logits, true)
        there = true.any(0)
        metrics["macro_f1"] = float(table["f1"][there].mean()) if there.any() else 0.0
        metrics |= {
            "exact_match": float(((logits > 0) == true).all(1).mean()),
            "loss": float(loss.sum(1).mean()),
        }

        def headline(rows: NDArray[np.int64]) -> float:
            if self.headline == "micro_f1":
                return micro_f1(logits[rows] > 0, true[rows])
            return mean_average_precision(logits[rows], true[rows])

        return metrics, bootstrap(headline, len(labels)) if logits.size <= BOOTSTRAP_CELLS else None


class Regression(Problem):
    """Numbers: squared error. The network learns them in standard deviations from their mean.

    `finish` puts both into the head.
    """

    kind: ClassVar[str] = REGRESSION

    def __init__(self, headline: str = "r2") -> None:
        super().__init__()
        self.headline = headline
        self.centre: NDArray[np.float64] | None = None  # (V,)
        self.scale: NDArray[np.float64] | None = None

    def look(self, names: Sequence[str], labels: NDArray[Any], weights: Weights = "none") -> None:
        """See `Problem.look`."""
        if weights != "none":
            raise ConfigError(
                "class_weights are for classes, and these labels are numbers; leave it out"
            )
        values = labels.astype(np.float64).reshape(len(labels), -1)
        spread = values.std(axis=0)
        self.centre, self.scale = values.mean(axis=0), np.where(spread > 0, spread, 1.0)

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Numbers have no classes."""
        return np.ones(classes)

    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Problem.compare`.

        The loss that is shown is in the labels' units, as that of an evaluation.
        """
        target = target.reshape(len(target), -1).to(logits.dtype)
        if self.centre is None or self.scale is None:
            return (loss := (logits - target).square().mean(1).sum()), {"loss": loss.detach()}
        scale = torch.as_tensor(self.scale, dtype=logits.dtype, device=logits.device)
        wanted = (
            target - torch.as_tensor(self.centre, dtype=logits.dtype, device=logits.device)
        ) / scale
        errors = (logits - wanted).square()  # (B, V)
        return errors.mean(1).sum(), {"loss": (errors.detach() * scale.square()).mean(1).sum()}

    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """Mean absolute and root mean squared error, the share of the variance that is explained,
        correlation; means over the numbers.
        """
        said, true = logits.astype(np.float64), labels.reshape(len(labels), -1).astype(np.float64)
        errors = said - true
        metrics = {
            "mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean(0)).mean()), "r2": r_squared(said, true),
            "pearson": correlation(said, true), "loss": float(np.square(errors).mean()),
        }  # fmt: skip
        score = correlation if self.headline == "pearson" else r_squared
        interval = (
            bootstrap(lambda rows: score(said[rows], true[rows]), len(true))
            if said.size <= BOOTSTRAP_CELLS
            else None
        )
        return metrics, interval

    def in_units(self, logits: NDArray[Any]) -> NDArray[Any]:
        """See `Problem.in_units`."""
        return (
            logits
            if self.centre is None or self.scale is None
            else (logits * self.scale + self.centre).astype(np.float32)
        )

    def finish(self, layer: nn.Linear) -> None:
        """See `Problem.finish`.

        W f + b in standard deviations is (scale W) f + (scale b + centre) in units.
        """
        if self.centre is None or self.scale is None:
            return
        scale, centre = (
            torch.as_tensor(each, dtype=layer.weight.dtype, device=layer.weight.device)
            for each in (self.scale, self.centre)
        )
        with torch.no_grad():
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale).add_(centre)
        self.centre = self.scale = None

    def fit(
        self, features: NDArray[np.float32], labels: NDArray[Any], classes: int, seed: int
    ) -> Fit:
        """See `Problem.fit`: in the labels' units."""
        self.centre = self.scale = None
        return super().fit(features, labels, classes, seed)


def problem_of(kind: str, **headlines: str) -> Problem:
    """The problem of a kind.

    Args:
        kind: One of `headstart.data.labels.KINDS`.
        **headlines: The measure that is shown first, by kind, where it is not the usual one.
    """
    made: dict[str, Callable[..., Problem]] = {
        SINGLE: SingleLabel,
        MULTI: MultiLabel,
        REGRESSION: Regression,
    }
    return made[kind](headlines[kind]) if kind in headlines else made[kind]()


# Measures -----------------------------------------------------------------------------------------


def average_precision(scores: NDArray[Any], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under precision over recall of each label, (V,), as scikit-learn computes it.

    Examples of equal score count together.
    """
    N, V = scores.shape
    found = np.zeros(V)
    for label in range(V):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked, hits = scores[order, label], np.cumsum(true[order, label])
        last = np.append(ranked[1:] != ranked[:-1], True)  # the end of each run of equal scores
        precision, recall = (hits / np.arange(1, N + 1))[last], hits[last] / max(1, hits[-1])
        found[label] = float((np.diff(recall, prepend=0.0) * precision).sum())
    return found


def mean_average_precision(scores: NDArray[Any], true: NDArray[np.bool_]) -> float:
    """The mean over the labels that occur."""
    there = true.any(0)
    return float(average_precision(scores[:, there], true[:, there]).mean()) if there.any() else 0.0


def micro_f1(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """F1 over all answers together."""
    return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))


def per_label(logits: NDArray[Any], true: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Measures of each label by itself at a probability of one half, each (V,).

    Examples, recall, precision, F1, average precision.
    """
    said = logits > 0
    both, given, there = (said & true).sum(0), said.sum(0), true.sum(0)
    return {
        "examples": there, "recall": both / np.maximum(1, there), "precision": both / np.maximum(1, given),
        "f1": 2 * both / np.maximum(1, given + there), "average_precision": average_precision(logits, true),
    }  # fmt: skip


def r_squared(said: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """1 - squared error over variance, the mean over the numbers; 0 where a number is constant."""
    variance = np.square(true - true.mean(0)).sum(0)
    return float(
        np.where(
            variance > 0,
            1 - np.square(said - true).sum(0) / np.where(variance > 0, variance, 1),
            0.0,
        ).mean()
    )


def correlation(said: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Pearson's correlation, the mean over the numbers."""
    return float(np.mean([pearson(said[:, i], true[:, i]) for i in range(true.shape[1])]))


def bootstrap(score: Callable[[NDArray[np.int64]], float], examples: int) -> Interval | None:
    """95 % interval of a score by drawing examples with replacement; None for too few examples."""
    if examples < 5:
        return None
    rng = np.random.default_rng(0xB007)
    scores = [score(rng.integers(0, examples, examples)) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
