"""Loss, metrics and initial head of each problem type, for images and texts.

One class for each example, any number of labels, or regression targets.

Letters: B examples of a micro-batch, N of a split, V classes or targets, D features.
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
from headstart.metrics.bootstrap import Interval, bootstrap
from headstart.metrics.classification import classification_metrics, wilson
from headstart.metrics.multilabel import mean_average_precision, micro_f1, per_label
from headstart.metrics.regression import correlation, r_squared

Weights = str | Mapping[str, float] | Sequence[float]
BOOTSTRAP_CELLS = 200_000  # scores of a split up to which an interval is worth its time


class Problem(ABC):
    """What the labels of a task are, and the loss, metrics and head that follow from it."""

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
                    f"class_weights names {unknown[0]!r}, which is not a class; the classes are"
                    f" {', '.join(names[:20])}"
                )
            values = np.array([float(given.get(name, 1.0)) for name in names])
            self.weights = torch.from_numpy(self.scaled(values, labels))

    @abstractmethod
    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Weights (V,) that make up for rare classes."""

    def scaled(self, weights: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Weights as the loss takes them."""
        return weights

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64] | None:
        """Weight of each label in a fitted head, (N,) or (N, V); None weighs all the same."""
        return None

    def start(self, layer: nn.Linear) -> None:
        """Initializes a new head with what is known before training."""
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

    @abstractmethod
    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of (B, V) scores, and sums of further metrics for the log."""

    @abstractmethod
    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """Metrics of scores (N, V), and the 95 % interval of the headline."""

    def use_units(self) -> None:  # noqa: B027 - most have none
        """Takes outputs to be in the units of the labels already, as those of a fitted head."""

    def in_units(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Outputs of the network (N, V) in the units of the labels."""
        return logits

    def finish(self, layer: nn.Linear) -> None:  # noqa: B027 - most have nothing to do
        """Puts what only training knew into the weights of the head."""

    def standardize(self, layer: nn.Linear) -> None:  # noqa: B027 - most have nothing to do
        """Inverse of `finish`: makes a head in the units of the labels one that training knows."""

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """Values of the network's configuration."""
        return {"id2label": dict(enumerate(names)), "problem_type": self.kind}


class SingleLabel(Problem):
    """One class each: cross-entropy against classes (B,) or probabilities (B, V)."""

    kind: ClassVar[str] = SINGLE
    headline = "accuracy"

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """See `Problem.overrides`; one class each is the default of a configuration."""
        return {"id2label": dict(enumerate(names)), "problem_type": None}

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Inverse frequency of each class, 1 on average over the examples.

        This is "balanced" of scikit-learn.
        """
        counts = np.maximum(1, np.bincount(labels, minlength=classes))
        return np.asarray(len(labels) / (classes * counts), dtype=np.float64)

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

        An image is right when its best class is the larger part of a mixture.
        """
        weights = None if self.weights is None else self.weights.to(logits)
        loss = F.cross_entropy(
            logits, target, weight=weights, reduction="sum", label_smoothing=smoothing
        )
        classes = target if target.ndim == 1 else target.argmax(1)
        return loss, {"accuracy": (logits.detach().argmax(1) == classes).sum()}

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
        self.frequencies: Tensor | None = None

    def look(self, names: Sequence[str], labels: NDArray[Any], weights: Weights = "none") -> None:
        """See `Problem.look`."""
        super().look(names, labels, weights)
        # (V,), never 0 or 1
        self.frequencies = torch.from_numpy((labels.sum(0) + 1) / (len(labels) + 2))

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Absences for one presence of each label: what the presences count."""
        present = labels.sum(0)
        absences = (len(labels) - present) / np.maximum(1, present)
        return np.asarray(absences, dtype=np.float64).clip(1e-3)

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64] | None:
        """See `Problem.weights_of`."""
        return None if self.weights is None else np.where(labels > 0.5, self.weights.numpy(), 1.0)

    def start(self, layer: nn.Linear) -> None:
        """Weights of zero, and biases that give each label its frequency in the training data.

        Source: Lin et al. 2017, section 4.1.
        """
        super().start(layer)
        if self.frequencies is not None and self.weights is None:
            with torch.no_grad():
                layer.bias.copy_(self.frequencies.logit())

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
        """Mean average precision over the labels that occur, F1 over all answers and over labels.

        "exact_match" is the fraction of examples whose labels are all right.
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
        occur = true.any(0)
        metrics["macro_f1"] = float(table["f1"][occur].mean()) if occur.any() else 0.0
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
    """Regression: squared error, learned in standard deviations from the mean of each target.

    `finish` puts both into the head.
    """

    kind: ClassVar[str] = REGRESSION

    def __init__(self, headline: str = "r2") -> None:
        super().__init__()
        self.headline = headline
        self.center: NDArray[np.float64] | None = None  # (V,)
        self.scale: NDArray[np.float64] | None = None

    def look(self, names: Sequence[str], labels: NDArray[Any], weights: Weights = "none") -> None:
        """See `Problem.look`."""
        if weights != "none":
            raise ConfigError(
                "class_weights are for classes, and these labels are numbers; leave it out"
            )
        values = labels.astype(np.float64).reshape(len(labels), -1)
        spread = values.std(axis=0)
        self.center, self.scale = values.mean(axis=0), np.where(spread > 0, spread, 1.0)

    def balanced(self, labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
        """Regression targets have no classes."""
        return np.ones(classes)

    def compare(
        self, logits: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Problem.compare`; the loss in the log is in the labels' units, as in `measure`."""
        target = target.reshape(len(target), -1).to(logits.dtype)
        if self.center is None or self.scale is None:
            return (loss := (logits - target).square().mean(1).sum()), {"loss": loss.detach()}
        scale = torch.as_tensor(self.scale, dtype=logits.dtype, device=logits.device)
        wanted = (
            target - torch.as_tensor(self.center, dtype=logits.dtype, device=logits.device)
        ) / scale
        errors = (logits - wanted).square()  # (B, V)
        return errors.mean(1).sum(), {"loss": (errors.detach() * scale.square()).mean(1).sum()}

    def measure(
        self, logits: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[dict[str, float], Interval | None]:
        """Mean absolute and root mean squared error, R² and correlation; means over the targets."""
        predicted = logits.astype(np.float64)
        true = labels.reshape(len(labels), -1).astype(np.float64)
        errors = predicted - true
        metrics = {
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt(np.square(errors).mean(0)).mean()),
            "r2": r_squared(predicted, true),
            "pearson": correlation(predicted, true),
            "loss": float(np.square(errors).mean()),
        }
        if predicted.size > BOOTSTRAP_CELLS:
            return metrics, None
        score = correlation if self.headline == "pearson" else r_squared
        return metrics, bootstrap(lambda rows: score(predicted[rows], true[rows]), len(true))

    def use_units(self) -> None:
        """See `Problem.use_units`."""
        self.center = self.scale = None

    def in_units(self, logits: NDArray[Any]) -> NDArray[Any]:
        """See `Problem.in_units`."""
        if self.center is None or self.scale is None:
            return logits
        return np.asarray(logits * self.scale + self.center, dtype=np.float32)

    def finish(self, layer: nn.Linear) -> None:
        """See `Problem.finish`.

        W f + b in standard deviations is (scale W) f + (scale b + center) in units.
        """
        if self.center is None or self.scale is None:
            return
        scale, center = (
            torch.as_tensor(each, dtype=layer.weight.dtype, device=layer.weight.device)
            for each in (self.scale, self.center)
        )
        with torch.no_grad():
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale).add_(center)
        self.use_units()

    def standardize(self, layer: nn.Linear) -> None:
        """See `Problem.standardize`."""
        if self.center is None or self.scale is None:
            return
        scale, center = (
            torch.as_tensor(each, dtype=layer.weight.dtype, device=layer.weight.device)
            for each in (self.scale, self.center)
        )
        with torch.no_grad():
            layer.weight.div_(scale[:, None])
            layer.bias.sub_(center).div_(scale)


def problem_of(kind: str, **headlines: str) -> Problem:
    """The problem of a kind.

    Args:
        kind: One of `headstart.data.labels.KINDS`.
        **headlines: The metric that is shown first, by kind, where it is not the usual one.
    """
    made: dict[str, Callable[..., Problem]] = {
        SINGLE: SingleLabel,
        MULTI: MultiLabel,
        REGRESSION: Regression,
    }
    return made[kind](headlines[kind]) if kind in headlines else made[kind]()
