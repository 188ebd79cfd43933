"""Error by number of training examples: power laws that fit it, and what they promise.

A law is `error(n) = floor + a n^-slope`, with another slope before a break where that is more
probable (Caballero et al. 2022, "Broken neural scaling laws"). Few measured points allow many laws,
so they are not reduced to the best one: a posterior over a grid of slopes, floors and breaks is
sampled, and what is said about more examples is a quantile of the samples.

Letters: K measured sizes, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

SLOPES = np.linspace(0.02, 1.2, 30)
# as fractions of the error at the largest size; dense where small, since more data helps for long
FLOORS = np.linspace(0.0, 0.95, 20) ** 2
RATIOS = (0.25, 0.5, 2.0, 4.0)  # slope before a break to the slope after it
BROKEN = 0.3  # prior probability of a break
# prior of the slope: normal, cut to SLOPES; 0.2 to 0.6 is usual for heads on fixed features
SLOPE_MEAN, SLOPE_DEVIATION = 0.4, 0.25
# how far measured errors may lie from the best law, relative and absolute
MISFIT, LEAST_MISFIT = 0.02, 0.002
# uncertainty that no law knows about, for each factor e of more examples, of log error: what makes
# intervals cover 80 % in benchmarks/enough.py
DRIFT = 0.09
SAMPLES = 4000
INTERVAL = 0.8  # probability that intervals are made for
LIMIT = 100.0  # multiple of the present examples up to which a target is looked for
RELATED = 0.1  # fraction of related examples from which on forecasts are called optimistic
GOALS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995)


@dataclass(frozen=True)
class LearningCurve:
    """Measured errors of heads that were fitted to subsets of the training examples.

    Args:
        sizes: Training examples (K,), increasing.
        errors: Fraction of wrong answers (K,), mean over the subsets of each size.
        deviations: Standard error (K,) of these means.
        tested: Different examples that were answered.
    """

    sizes: Ints
    errors: Doubles
    deviations: Doubles
    tested: int


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 80 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaws:
    """Samples (S,) of the laws that a learning curve allows.

    Args:
        examples: Number that the errors are given at.
        error: Error at that number.
        floor: Error with endless examples.
        slope: Exponent from there on.
        noise: Standard normal deviation of each sample from its law.
    """

    examples: int
    error: Doubles
    floor: Doubles
    slope: Doubles
    noise: Doubles

    def errors(self, examples: float) -> Doubles:
        """Error (S,) of each sample with so many training examples, at least `self.examples`."""
        growth = np.log(examples / self.examples)
        expected = self.floor + (self.error - self.floor) * np.exp(-self.slope * growth)
        return np.asarray(np.minimum(1.0, expected * np.exp(DRIFT * growth * self.noise)))

    def accuracy(self, examples: float) -> Estimate:
        """Accuracy with so many training examples."""
        low, value, high = np.quantile(1 - self.errors(examples), tails())
        return Estimate(float(value), float(low), float(high))

    def examples_for(self, accuracy: float) -> Estimate:
        """Training examples that an accuracy needs.

        Args:
            accuracy: The target.

        Returns:
            Number of examples, infinite where `LIMIT` times the present ones are not enough.
        """
        factors = np.geomspace(1.0, LIMIT, 200)
        needed = np.full(len(self.error), np.inf)
        for factor in factors[::-1]:
            needed[self.errors(self.examples * factor) <= 1 - accuracy] = self.examples * factor
        # "nearest" ranks: between a number and infinity there is nothing
        low, value, high = np.quantile(needed, tails(), method="nearest")
        return Estimate(float(value), float(low), float(high))


def tails() -> Doubles:
    """Quantiles of the lower bound, the middle and the upper bound of an interval."""
    return np.array([(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2])


def fit_power_laws(curve: LearningCurve, seed: int = 0) -> PowerLaws:
    """Samples of the power laws that measured errors allow.

    For each slope, floor and break of a grid the amplitude has a normal posterior. The number of
    different examples that were tested limits how well the level of the curve is known, whatever
    the law.

    Args:
        curve: At least two sizes.
        seed: Decides the samples.
    """
    errors = curve.errors
    last = float(np.average(errors[-2:], weights=1 / (curve.deviations[-2:] ** 2 + 1e-6)))
    last = max(last, 0.5 / curve.tested)
    variance = curve.deviations**2 + (MISFIT * errors) ** 2 + LEAST_MISFIT**2  # (K,)
    shapes, slopes, prior = laws(np.log(curve.sizes / curve.sizes[-1]))  # (G, K), (G,), (G,)
    floors = FLOORS * last  # (F,)
    precision = (shapes**2 / variance).sum(axis=1)[:, None]  # (G, 1)
    above = errors - floors[:, None]  # (F, K)
    amplitude = (shapes / variance) @ above.T / precision  # (G, F)
    misfit = (above**2 / variance).sum(axis=1) - amplitude**2 * precision  # (G, F)
    score = np.log(prior)[:, None] - misfit / 2 - np.log(precision) / 2
    weight = np.exp(score - score.max())
    rng = np.random.default_rng([seed, 0xC0FFEE])
    cells = rng.choice(weight.size, SAMPLES, p=(weight / weight.sum()).ravel())
    g, f = np.unravel_index(cells, weight.shape)
    found = amplitude[g, f] + rng.standard_normal(SAMPLES) / np.sqrt(precision[g, 0])
    # which examples are tested moves the whole curve
    shift = np.sqrt(last * (1 - min(last, 0.5)) / curve.tested) / last
    level = np.exp(shift * rng.standard_normal(SAMPLES) - shift**2 / 2)
    error = np.clip((floors[f] + np.maximum(0.0, found)) * level, 0.0, 1.0)
    floor = np.minimum(floors[f] * level, error)
    return PowerLaws(int(curve.sizes[-1]), error, floor, slopes[g], rng.standard_normal(SAMPLES))


def laws(time: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Shapes of all slopes and breaks, 1 at the largest size.

    Args:
        time: Logarithm (K,) of sizes divided by the largest.

    Returns:
        Shapes (G, K), slopes after the break (G,), and prior probabilities (G,), not normalized.
    """
    usual = np.exp(-(((SLOPES - SLOPE_MEAN) / SLOPE_DEVIATION) ** 2) / 2)
    shapes, slopes, prior = [np.exp(-SLOPES[:, None] * time)], [SLOPES], [(1 - BROKEN) * usual]
    breaks = time[2:-2]  # two sizes and more on both sides
    for at in breaks:
        for ratio in RATIOS:
            bend = (ratio - 1) * np.minimum(0.0, time - at)
            shapes.append(np.exp(-SLOPES[:, None] * (time + bend)))
            slopes.append(SLOPES)
            prior.append(BROKEN * usual / (len(breaks) * len(RATIOS)))
    return np.concatenate(shapes), np.concatenate(slopes), np.concatenate(prior)


@dataclass(frozen=True)
class ClassGain:
    """What twice the examples should bring one class.

    Args:
        name: The class.
        examples: Its training examples.
        recall: Fraction of its examples that is found with the present number.
        gain: Expected increase of the recall.
    """

    name: str
    examples: int
    recall: float
    gain: float


@dataclass(frozen=True)
class Forecast:
    """Whether the training examples are enough.

    Args:
        curve: Measured errors by number of training examples.
        laws: Power laws that fit them.
        examples: Training examples there are.
        gains: What twice the examples should bring each class, the largest gain first.
        related: Fraction of the training examples that share a group with others, or are nearly
            the same: random subsets divide them.
    """

    curve: LearningCurve
    laws: PowerLaws
    examples: int
    gains: list[ClassGain]
    related: float = 0.0

    @property
    def caution(self) -> str:
        """Why the forecast is too high; empty where it need not be."""
        if self.related <= RELATED:
            return ""
        return (
            f"{self.related:.0%} of the training examples share a group with others or are nearly"
            " the same, and random subsets divide them: the forecast is optimistic"
        )

    @property
    def now(self) -> Estimate:
        """Accuracy with the present number of training examples."""
        return self.laws.accuracy(self.examples)

    @property
    def doubled(self) -> Estimate:
        """Accuracy with twice as many."""
        return self.laws.accuracy(2 * self.examples)

    def targets(self) -> list[tuple[float, Estimate]]:
        """The next accuracies that are worth asking for, and the examples that they need."""
        goals = [goal for goal in GOALS if goal > self.now.value][:2]
        return [(goal, self.laws.examples_for(goal)) for goal in goals]

    def needed_text(self, needed: Estimate) -> str:
        """A number of examples that is needed, and its interval."""
        most = LIMIT * self.laws.examples
        if not np.isfinite(needed.low):
            return rounded(needed.low, most)
        low, value, high = (rounded(n, most) for n in (needed.low, needed.value, needed.high))
        about = value if value.startswith("more") else f"about {value}"
        return f"{about} (80 % interval {low} to {high})"

    def text(self) -> str:
        """One line for the terminal."""
        now, doubled = self.now, self.doubled
        line = (
            f"is this enough? {now.value:.1%} with {self.examples} training examples; twice as many"
            f" should give {doubled.value:.1%} (80 % interval {doubled.low:.1%} to"
            f" {doubled.high:.1%})"
        )
        if targets := self.targets():
            goal, needed = targets[0]
            line += f"; {goal:.0%} needs {self.needed_text(needed)}"
        return f"{line}; {self.caution}" if self.caution else line

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        factors = (1, 2, 4)
        return {
            "curve": {
                "examples": self.curve.sizes.tolist(),
                "accuracy": (1 - self.curve.errors).tolist(),
                "deviation": self.curve.deviations.tolist(),
            },
            "forecast": [
                {"examples": factor * self.examples}
                | interval_values("accuracy", self.laws.accuracy(factor * self.examples))
                for factor in factors
            ],
            "targets": [
                {"accuracy": goal} | interval_values("examples", needed)
                for goal, needed in self.targets()
            ],
            "classes": [vars(each) for each in self.gains],
            "related": self.related,
        }


def interval_values(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON; None stands for infinity."""
    bounds = [each if np.isfinite(each) else None for each in (estimate.low, estimate.high)]
    return {name: estimate.value if np.isfinite(estimate.value) else None, "interval_80": bounds}


def rounded(examples: float, most: float) -> str:
    """A number of examples with two digits, or that it is above `most`."""
    number = examples if np.isfinite(examples) else most
    digits = 10 ** max(0, len(str(int(number))) - 2)
    text = f"{round(number / digits) * digits:,}"
    return text if np.isfinite(examples) else f"more than {text}"


def class_gains(
    names: Sequence[str], counts: Ints, curve: LearningCurve, recalls: Doubles, laws: PowerLaws
) -> list[ClassGain]:
    """What twice the examples should bring each class, the largest gain first.

    The slope of a class over the last sizes is uncertain, so that it is moved towards what the
    curve of all classes gives a class with its error (empirical Bayes).

    Args:
        names: V classes.
        counts: Training examples (V,).
        curve: Errors by number of training examples.
        recalls: Recall by size and class (K, V).
        laws: Power laws of the curve.
    """
    now = laws.accuracy(laws.examples).value
    relative = (laws.accuracy(2 * laws.examples).value - now) / max(1 - now, 1e-6)
    used = curve.sizes >= curve.sizes[-1] / 4
    if not np.isfinite(recalls[used]).all():
        return []
    time = np.log2(curve.sizes[used])
    time = time - time.mean()
    slopes = time @ recalls[used] / np.square(time).sum()  # (V,), for each doubling
    recall = recalls[used].mean(axis=0) + slopes * time[-1]
    recall = np.clip(recall, 0.0, 1.0)
    usual = relative * (1 - recall)
    tested = np.maximum(1, curve.tested * counts / counts.sum())
    # the same examples are tested at all sizes: a slope is about as uncertain as one recall
    noise = np.maximum(recall * (1 - recall), 0.02) / tested
    own = max(0.0, float(np.mean(np.square(slopes - usual) - noise)))
    gains = usual + (slopes - usual) * own / (own + noise)
    gains = np.clip(gains, 0.0, 1 - recall)
    order = np.argsort(-gains, kind="stable")
    return [ClassGain(names[i], int(counts[i]), float(recall[i]), float(gains[i])) for i in order]
