"""Is this enough? Heads fitted to subsets of the training examples, on features that are known.

The head is a shrunken linear discriminant, which takes a closed form: some fifty of them are fitted
in about a second, whatever head the run itself has. Of many examples the curve goes on to all of
them, as a discriminant's statistics add up.

Letters: N training examples, M held-out examples, D features, R dimensions of their span, V
classes, K sizes.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.labels import SINGLE
from headstart.features.discriminant import FEW, ROWS, Discriminant, Statistics
from headstart.features.extract import Extractor
from headstart.features.head import compact, one_thread, stratified
from headstart.metrics.learning_curve import Forecast, LearningCurve, class_gains, fit_power_laws
from headstart.progress import Progress, Silent
from headstart.tasks.base import HeadTask

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST, FEWEST_OF_CLASS = 20, 5  # training examples below which nothing is said
SIZES = 7
SMALLEST = 1 / 12  # of the training examples
DRAWS = 8
# Of the covariance; one value for all sizes keeps the curve smooth. 0.3 to 0.9 differ by a point or
# two on photos; the estimate of the least squared error, 0.05 to 0.4, loses up to five.
SHRINKAGE = 0.5
MOST = 4000  # examples of the largest subset
LEAST_CHANCE = 0.05  # variance of an answer; few examples may all be answered well by luck


def forecast(
    task: HeadTask, extractor: Extractor, seed: int, progress: Progress | None = None
) -> Forecast | None:
    """Whether a task's training examples are enough, from features that are in the cache.

    Args:
        task: Its held-out splits are tested on too.
        extractor: What computed the features.
        seed: Decides the subsets.
        progress: Shows the heads that are fitted.

    Returns:
        The forecast; None unless each example has one class, or with fewer than 20 training
        examples or 5 for each class on average.
    """
    if task.problem.kind != SINGLE:
        return None
    labels = task.targets("train")
    if len(labels) < max(FEWEST, FEWEST_OF_CLASS * len(task.classes)):
        return None
    digests = task.feature_digests()
    store = extractor.found(
        [each for names in digests.values() for each in names], progress or Silent()
    )
    others = [split for split in digests if split != "train"]
    held_out = None
    if others:
        rows = np.concatenate([store[digests[split]] for split in others])
        held_out = rows, np.concatenate([task.targets(split) for split in others])
    found = forecast_of(
        store[digests["train"]], labels, task.classes, held_out, seed=seed, progress=progress
    )
    if len(labels) > MOST:  # not all of them were compared when the head was selected
        return found
    group = task.groups(np.arange(len(labels)))
    related = float((np.bincount(group)[group] > 1).mean())
    return dataclasses.replace(found, related=related)


def forecast_of(
    features: Floats,
    labels: Ints,
    classes: Sequence[str],
    held_out: tuple[Floats, Ints] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forecast:
    """Whether training examples are enough.

    Args:
        features: (N, D).
        labels: Classes (N,).
        classes: Names of the V classes.
        held_out: Features (M, D) and classes (M,) of examples that no head is fitted to.
        seed: Decides the subsets.
        progress: Shows the heads that are fitted.
    """
    curve, recalls = measure(features, labels, len(classes), held_out, seed=seed, progress=progress)
    laws = fit_power_laws(curve, seed)
    counts = np.bincount(labels, minlength=len(classes))
    gains = class_gains(classes, counts, curve, recalls, laws)
    return Forecast(curve, laws, len(labels), gains)


def measure(
    features: Floats,
    labels: Ints,
    classes: int,
    held_out: tuple[Floats, Ints] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[LearningCurve, Doubles]:
    """Errors of heads fitted to stratified subsets.

    Every head is tested on the held-out examples and on the training examples that its subset
    leaves out. Subsets of more than `2 * MOST` examples are nested, one of each size.

    Args:
        features: (N, D).
        labels: Classes (N,).
        classes: V.
        held_out: Features (M, D) and classes (M,) of examples that no head is fitted to.
        seed: Decides the subsets.
        progress: Shows the heads that are fitted.

    Returns:
        The errors by size, and the recall of each class (K, V); NaN where none was tested.
    """
    rng = np.random.default_rng([seed, 0xE0F])
    order = stratified(labels, rng)
    if held_out is not None:
        some = rng.permutation(len(held_out[1]))[:MOST]
        held_out = held_out[0][some], held_out[1][some]
    pool = order if held_out is not None else order[:-MOST]
    further = larger_sizes(len(pool))
    progress = progress or Silent()
    few = order[: 2 * MOST]
    curve, recalls = measure_few(
        features[few], labels[few], classes, held_out, rng, progress, len(further)
    )
    if not len(further):
        return curve, recalls
    tests = held_out or (features[order[-MOST:]], labels[order[-MOST:]])
    rows = []
    for answers in measure_many(features, labels, classes, pool, further, tests[0]):
        rows.append(answers == tests[1])
        progress.update(DRAWS * len(curve.sizes) + len(rows), {})
    right = np.stack(rows)  # (K, M)
    errors = 1 - right.mean(axis=1)
    deviations = np.sqrt(np.maximum(errors * (1 - errors), LEAST_CHANCE) / len(tests[1]))
    of_class = tests[1] == np.arange(classes)[:, None]  # (V, M)
    with np.errstate(invalid="ignore"):
        found = (right[:, None] & of_class).sum(axis=2) / of_class.sum(axis=1)
    whole = LearningCurve(
        np.append(curve.sizes, further),
        np.append(curve.errors, errors),
        np.append(curve.deviations, deviations),
        curve.tested,
    )
    return whole, np.concatenate([recalls, found])


def measure_few(
    features: Floats,
    labels: Ints,
    classes: int,
    held_out: tuple[Floats, Ints] | None,
    rng: np.random.Generator,
    progress: Progress,
    further: int,
) -> tuple[LearningCurve, Doubles]:
    """As `measure`, of at most `2 * MOST` training examples, with several draws of each size.

    `further` heads will follow on the progress bar.
    """
    answers = labels
    if held_out is not None:
        features = np.concatenate([features, held_out[0]])
        answers = np.concatenate([labels, held_out[1]])
    x, N, width = spanned(features), len(labels), features.shape[1]
    sizes = subset_sizes(N, classes, len(answers) - N)
    wrong = np.full((DRAWS, len(sizes)), np.nan)
    right_of, tested_of = np.zeros((2, len(sizes), classes))
    progress.start("learning curve", DRAWS * len(sizes) + further, unit="heads")
    with one_thread():
        for draw in range(DRAWS):
            order = np.append(stratified(labels, rng), np.arange(N, len(answers)))
            for k, size in enumerate(sizes):
                progress.update(draw * len(sizes) + k + 1, {})
                if size == N and draw:
                    continue  # there is one subset with all
                train, test = order[:size], order[size:]
                truth = answers[test]
                right = truth == predictions(x[train], labels[train], x[test], width)
                wrong[draw, k] = 1 - right.mean()
                right_of[k] += np.bincount(truth[right], minlength=classes)
                tested_of[k] += np.bincount(truth, minlength=classes)
    draws = np.isfinite(wrong).sum(axis=0)
    errors = np.nanmean(wrong, axis=0)
    squares = np.nansum(np.square(wrong - errors), axis=0) / np.maximum(1, draws - 1)
    variances = squares / draws
    if draws[-1] == 1:  # its error is also that of few examples
        chance = max(errors[-1] * (1 - errors[-1]), LEAST_CHANCE)
        variances[-1] = squares[-2] + chance / (len(answers) - N)
    curve = LearningCurve(sizes, errors, np.sqrt(variances), len(answers))
    with np.errstate(invalid="ignore"):
        return curve, right_of / tested_of


def measure_many(
    features: Floats, labels: Ints, classes: int, order: Ints, sizes: Ints, others: Floats
) -> Iterator[Ints]:
    """Answers (M,) for other examples of heads fitted to the first of an order, by size.

    Each head takes the statistics of the one before it and adds the examples in between.
    """
    first = features[order[: sizes[0]]]
    center, scale = first.mean(axis=0, dtype=np.float64), first.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    standard = (others - center) / scale
    statistics = Statistics.of(first[:0], labels[:0], classes)
    done = 0
    for size in sizes.tolist():
        for start in range(done, size, ROWS):
            rows = order[start : min(start + ROWS, size)]
            statistics += Statistics.of((features[rows] - center) / scale, labels[rows], classes)
        present = np.flatnonzero(statistics.counts)
        known = Statistics(statistics.counts[present], statistics.sums[present], statistics.moments)
        head = Discriminant.from_statistics(known, SHRINKAGE)
        yield present[(standard @ head.weight.T + head.bias).argmax(axis=1)]
        done = size


def spanned(features: Floats) -> Doubles:
    """Features in standard deviations, rotated into the span of the examples, (N, R)."""
    x = np.asarray(features - features.mean(axis=0), dtype=np.float64)
    deviations = x.std(axis=0)
    return np.asarray(compact(x / np.where(deviations > 0, deviations, 1.0))[0])


def subset_sizes(examples: int, classes: int, held_out: int) -> Ints:
    """Sizes of the subsets, in equal ratios; all examples only where others are held out."""
    pool = min(examples, MOST)
    largest = pool if held_out and pool == examples else round(0.9 * pool)
    smallest = max(SMALLEST * pool, min(2 * classes, pool / 3), 4)
    return np.unique(np.geomspace(smallest, largest, SIZES).round().astype(np.int64))


def larger_sizes(examples: int) -> Ints:
    """Sizes above those of `subset_sizes`, about twice as large each, up to all examples."""
    if examples <= 2 * MOST:
        return np.zeros(0, dtype=np.int64)
    count = 1 + math.ceil(math.log2(examples / (2 * MOST)))
    return np.geomspace(2 * MOST, examples, count).round().astype(np.int64)


def predictions(x: Doubles, labels: Ints, others: Doubles, width: int) -> Ints:
    """Classes (M,) of other examples by a linear discriminant; one without examples is never given.

    Args:
        x: Features (N, R), rotated into their span.
        labels: Classes (N,).
        others: Features (M, R).
        width: D, which decides the part of the identity.
    """
    present, renumbered = np.unique(labels, return_inverse=True)
    if FEW * len(x) < x.shape[1]:
        head = Discriminant.from_few(x, renumbered, len(present), SHRINKAGE, width=width)
    else:
        # the identity of D dimensions has R / D of its trace in these
        odds = SHRINKAGE / (1 - SHRINKAGE) * x.shape[1] / width
        statistics = Statistics.of(x, renumbered, len(present))
        head = Discriminant.from_statistics(statistics, odds / (1 + odds))
    return np.asarray(present[(others @ head.weight.T + head.bias).argmax(axis=1)])
