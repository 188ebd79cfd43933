"""Linear discriminant analysis from sufficient statistics, with a shrunken covariance.

Each class is a normal distribution around its mean, all with one covariance. The head is a closed
form of counts, sums and second moments, which add up over examples: adding or removing examples
gives the head that a fit to the remaining ones would give.

Letters: N examples, D features, V classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ConfigError
from headstart.metrics.optional import scipy

Doubles = NDArray[np.float64]
FEW = 1.5  # times the examples are fewer than the features where `from_few` is faster
ROWS = 8192  # examples whose features are converted to float64 together


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of linear discriminant analysis; `+` adds examples, `-` removes them.

    Args:
        counts: Examples (or the sum of their weights) of each class, (V,).
        sums: Sum of the features of each class, (V, D).
        moments: Sum of x xᵀ over all examples, (D, D), around the origin.

    Example:
        >>> import numpy as np
        >>> from headstart.features.discriminant import Statistics
        >>> x, labels = np.eye(4), np.array([0, 1, 1, 0])
        >>> rest = Statistics.of(x, labels, 2) - Statistics.of(x[:1], labels[:1], 2)
        >>> rest.counts
        array([1., 2.])
    """

    counts: Doubles
    sums: Doubles
    moments: Doubles

    @classmethod
    def of(
        cls,
        features: NDArray[Any],
        labels: NDArray[np.int64],
        classes: int,
        weights: Doubles | None = None,
        seen: Callable[[int], None] = lambda count: None,
    ) -> Self:
        """The statistics of examples.

        Args:
            features: (N, D).
            labels: Class of each example, (N,), from 0 to V - 1.
            classes: V.
            weights: Weight of each example, (N,); None weighs all the same.
            seen: Receives how many more examples are done.

        Returns:
            The statistics, in float64.
        """
        D = features.shape[1]
        counts, sums, moments = np.zeros(classes), np.zeros((classes, D)), np.zeros((D, D))
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            x = np.asarray(features[rows], dtype=np.float64)
            weighted = x if weights is None else x * weights[rows, None]
            members = np.zeros((classes, len(x)))
            members[labels[rows], np.arange(len(x))] = 1
            counts += members.sum(axis=1) if weights is None else members @ weights[rows]
            sums += members @ weighted
            moments += weighted.T @ x
            seen(len(x))
        return cls(counts, sums, moments)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.counts + other.counts, self.sums + other.sums, self.moments + other.moments
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(
            self.counts - other.counts, self.sums - other.sums, self.moments - other.moments
        )

    @property
    def total(self) -> float:
        """N, or the sum of all weights."""
        return float(self.counts.sum())

    @property
    def means(self) -> Doubles:
        """Mean of each class, (V, D)."""
        return np.asarray(self.sums / self.counts[:, None])

    @property
    def mean(self) -> Doubles:
        """Mean of all examples, (D,)."""
        return np.asarray(self.sums.sum(axis=0) / self.total)

    @property
    def deviations(self) -> Doubles:
        """Standard deviation of each feature over all examples, (D,)."""
        variances = np.diag(self.moments) / self.total - np.square(self.mean)
        return np.sqrt(np.maximum(variances, 0.0))

    def transformed(self, center: Doubles, scale: Doubles) -> Self:
        """The statistics of `(x - center) / scale`, for (D,) vectors."""
        total = self.sums.sum(axis=0)
        cross = np.outer(center, total)
        moments = self.moments - cross - cross.T + self.total * np.outer(center, center)
        sums = self.sums - self.counts[:, None] * center
        return type(self)(self.counts, sums / scale, moments / np.outer(scale, scale))

    def within(self) -> Doubles:
        """Pooled covariance of the examples around the mean of their class, (D, D)."""
        mean = self.mean
        sums = self.sums - self.counts[:, None] * mean  # around the mean, to lose fewer digits
        scatter = self.moments - np.outer(self.total * mean, mean)
        scatter -= sums.T @ (sums / self.counts[:, None])
        return np.asarray(scatter / max(1.0, self.total - len(self.counts)))


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant analysis: `x Wᵀ + b` are the log-posteriors of the classes up to a
    constant.

    Args:
        weight: W, (V, D).
        bias: b, (V,).
        shrinkage: Part of the covariance that is a multiple of the identity, from 0 to 1.
    """

    weight: Doubles
    bias: Doubles
    shrinkage: float

    @classmethod
    def from_statistics(cls, statistics: Statistics, shrinkage: float | None = None) -> Self:
        """The head of these statistics.

        Args:
            statistics: Of standardized features (`Statistics.transformed`): the shrinkage takes
                all features to be of one scale.
            shrinkage: From 0 to 1; None estimates it (`shrinkage_of`).

        Returns:
            The head, in float64.

        Raises:
            ConfigError: A class has no examples, or a shrinkage outside 0 to 1.

        Example:
            >>> import numpy as np
            >>> from headstart.features.discriminant import Discriminant, Statistics
            >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 6.0], [6.0, 5.0]])
            >>> head = Discriminant.from_statistics(Statistics.of(x, np.array([0, 0, 1, 1]), 2))
            >>> (x @ head.weight.T + head.bias).argmax(axis=1)
            array([0, 0, 1, 1])
        """
        empty = np.flatnonzero(statistics.counts <= 0)
        if len(empty):
            raise ConfigError(
                f"class number {int(empty[0])} has no examples; a discriminant needs one of each"
                " class: leave the class out, or add an example"
            )
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ConfigError(f"shrinkage={shrinkage}; it must be from 0 to 1")
        D = len(statistics.mean)
        within = statistics.within()
        scale = float(np.trace(within)) / D
        if shrinkage is None:
            shrinkage = shrinkage_of(within, statistics.total - len(statistics.counts))
        if scale <= 1e-12 * float(np.square(statistics.deviations).mean()):
            # one example of each class: the nearest mean
            scale, shrinkage = float(np.square(statistics.deviations).mean()) or 1.0, 1.0
        covariance = (1 - shrinkage) * within
        covariance[np.diag_indices(D)] += max(shrinkage, 1e-10) * scale
        center = statistics.mean
        means = statistics.means - center  # around 0, so that biases lose no digits
        solve = scipy("linalg")
        weight = solve.cho_solve(solve.cho_factor(covariance), means.T).T  # (V, D)
        priors = np.log(statistics.counts / statistics.total)
        bias = priors - (weight * means).sum(axis=1) / 2 - weight @ center
        return cls(np.asarray(weight), np.asarray(bias), float(shrinkage))

    @classmethod
    def from_few(
        cls,
        features: NDArray[Any],
        labels: NDArray[np.int64],
        classes: int,
        shrinkage: float,
        weights: Doubles | None = None,
        width: int | None = None,
    ) -> Self:
        """The same head, in less time where there are fewer examples than features.

        The inverse of the covariance follows from a matrix of the examples (Woodbury's identity).

        Args:
            features: Standardized, (N, D).
            labels: Class of each example, (N,); every class has one.
            classes: V.
            shrinkage: From 0 to 1.
            weights: Weight of each example, (N,); None weighs all the same.
            width: Dimensions that the trace of the covariance is spread over; None is D.
        """
        x, (N, D) = np.asarray(features, dtype=np.float64), features.shape
        each = np.ones(N) if weights is None else weights
        members = np.zeros((classes, N))
        members[labels, np.arange(N)] = each
        counts = members.sum(axis=1)
        center = each @ x / counts.sum()
        x = x - center  # (N, D), so that no digits are lost
        means = members @ x / counts[:, None]  # (V, D)
        residual = np.sqrt(each)[:, None] * (x - means[labels])  # (N, D)
        degrees = max(1.0, counts.sum() - classes)
        scale = float(np.square(residual).sum()) / degrees / (width or D)
        variance = float(each @ np.square(x).mean(axis=1)) / counts.sum()
        if scale <= 1e-12 * variance:  # one example of each class: the nearest mean
            scale, shrinkage = variance or 1.0, 1.0
        ridge, part = max(shrinkage, 1e-10) * scale, (1 - shrinkage) / degrees
        gram = part * (residual @ residual.T)  # (N, N)
        gram[np.diag_indices(N)] += ridge
        solve = scipy("linalg")
        inner = solve.cho_solve(solve.cho_factor(gram), residual @ means.T)  # (N, V)
        weight = (means - part * inner.T @ residual) / ridge  # (V, D)
        bias = np.log(counts / counts.sum()) - (weight * means).sum(axis=1) / 2 - weight @ center
        return cls(weight, bias, float(shrinkage))


def shrinkage_of(covariance: Doubles, degrees: float) -> float:
    """The shrinkage of the least expected squared error for normal examples, from 0 to 1.

    Source: Chen, Wiesel, Eldar, Hero 2010, "Shrinkage Algorithms for MMSE Covariance Estimation",
    equation 17: the estimate of Ledoit and Wolf given the sample covariance, which is all that it
    needs.

    Args:
        covariance: Sample covariance, (D, D).
        degrees: Degrees of freedom that it was estimated with.
    """
    D = len(covariance)
    squares, trace = float(np.square(covariance).sum()), float(np.trace(covariance))
    spread = squares - trace**2 / D
    if degrees < 2 or spread <= 0:
        return 1.0
    return min(1.0, ((degrees - 2) / degrees * squares + trace**2) / ((degrees + 2) * spread))
