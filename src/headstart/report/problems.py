"""Sections of the report where examples have several labels, or numbers. Shared by images and
texts.

The sections of one class each are in `classification_report`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import decode
from headstart.data.duplicates import Pair
from headstart.data.labels import MULTI, SINGLE
from headstart.data.sources.raw import Source
from headstart.metrics.multilabel import per_label
from headstart.metrics.regression import correlation, r_squared
from headstart.report.classification import (
    GALLERY,
    LookedAt,
    Pixels,
    Shown,
    classification_sections,
    file_name,
    gallery,
)
from headstart.report.page import (
    BLUE,
    GRAY,
    GalleryImage,
    Section,
    Table,
    figure_source,
    image_source,
    new_figure,
    plain_axes,
)
from headstart.tasks.base import Evaluation


def problem_sections(
    kind: str,
    evaluation: Evaluation,
    classes: Sequence[str],
    names: Sequence[str],
    pixels: Pixels | None,
    looked_at: LookedAt | None = None,
) -> list[Section]:
    """The sections of one evaluation.

    Args:
        kind: What the labels are.
        evaluation: With details "logits" (N, V) and "labels".
        classes: Names of the classes or numbers.
        names: How each example is named to the user.
        pixels: Gives the image of an example; None where examples are not images.
        looked_at: Gives the image with what the network looked at.
    """
    if kind == SINGLE:
        return classification_sections(evaluation, list(classes), list(names), pixels, looked_at)
    sections = label_sections if kind == MULTI else number_sections
    return sections(
        evaluation.details["logits"],
        evaluation.details["labels"],
        classes,
        names,
        pixels,
        looked_at,
    )


def label_sections(
    logits: NDArray[Any],
    labels: NDArray[Any],
    classes: Sequence[str],
    names: Sequence[str],
    pixels: Pixels | None,
    looked_at: LookedAt | None,
) -> list[Section]:
    """The table of labels, and the images whose labels surprise the model most."""
    true = labels > 0.5
    table = per_label(logits, true)
    order = np.argsort(table["f1"], kind="stable")
    fractions = ("recall", "precision", "f1", "average_precision")
    rows = [
        [
            classes[i],
            str(table["examples"][i]),
            *(f"{table[fraction][i]:.1%}" for fraction in fractions),
        ]
        for i in order
    ]
    text = (
        "Each label by itself, at a threshold of 0.5. Recall: fraction of the examples with the"
        " label that were found. Precision: fraction of the predictions of this label that are"
        " right. Average precision is independent of the threshold. Predicting no label at all"
        f" would be entirely right for {(~true.any(1)).mean():.1%}. Weakest label first."
    )
    head = ("label", "examples", "recall", "precision", "F1", "average precision")
    sections = [Section("Labels", text, table=Table(head, rows), folded=len(classes) > 40)]
    if pixels is None:
        return sections
    # (N, V): -log of the probability of what is true
    surprise = np.logaddexp(0, np.where(true, -logits, logits))
    worst = [
        int(i)
        for i in np.argsort(-surprise.max(1), kind="stable")[:GALLERY]
        if ((logits[i] > 0) != true[i]).any()
    ]

    def shown(i: int) -> Shown:
        label = int(surprise[i].argmax())
        chance = 1 / (1 + np.exp(-logits[i, label]))
        verdict = (
            f"{classes[label]} {chance:.0%}, but it is {'' if true[i, label] else 'not '}there"
        )
        there = ", ".join(classes[j] for j in np.flatnonzero(true[i]).tolist()) or "no label"
        return Shown(i, classes[label], f"{verdict}\nlabels: {there}\n{file_name(names[i])}")

    if worst:
        text = "Wrong predictions of the highest confidence: hard images, or wrong labels."
        text += (
            ""
            if looked_at is None
            else " Below each: bright where the network saw what speaks for the label."
        )
        images = gallery([shown(i) for i in worst], pixels, looked_at)
        sections.append(Section("Highest-confidence errors", text, images=images))
    return sections


def number_sections(
    predictions: NDArray[Any],
    labels: NDArray[Any],
    columns: Sequence[str],
    names: Sequence[str],
    pixels: Pixels | None,
    looked_at: LookedAt | None,
) -> list[Section]:
    """Predicted against true values, metrics of each number, and the largest errors."""
    true = labels.reshape(len(labels), -1).astype(np.float64)
    predictions = predictions.astype(np.float64)
    errors = predictions - true
    mean_error = float(np.abs(true - true.mean(0)).mean())
    figures = [_scatter(predictions[:, i], true[:, i], name) for i, name in enumerate(columns[:6])]
    text = (
        "A perfect model has every point on the line. Always answering the mean would be off by"
        f" {mean_error:.4g} on average, the model is off by {np.abs(errors).mean():.4g}."
    )
    sections = [Section("Predicted against true", text, figures)]
    if len(columns) > 1:
        rows = []
        for i, name in enumerate(columns):
            one, other = predictions[:, i : i + 1], true[:, i : i + 1]
            measures = (
                np.abs(one - other).mean(),
                np.sqrt(np.square(one - other).mean()),
                r_squared(one, other),
                correlation(one, other),
            )
            rows.append([name, *(f"{value:.4g}" for value in measures)])
        table = Table(
            ("number", "mean absolute error", "root mean squared error", "R²", "correlation"), rows
        )
        sections.append(Section("Each number", "", table=table))
    spread = np.where(true.std(0) > 0, true.std(0), 1)
    worst = [int(i) for i in np.argsort(-np.abs(errors / spread).max(1), kind="stable")[:GALLERY]]
    if pixels is None:
        return sections

    def shown(i: int) -> Shown:
        farthest = columns[int(np.abs(errors[i] / spread).argmax())]
        lines = (
            f"{name}: {predictions[i, j]:.4g}, is {true[i, j]:.4g}"
            for j, name in enumerate(columns[:4])
        )
        return Shown(i, farthest, "\n".join([*lines, file_name(names[i])]))

    what = "the number" if len(columns) == 1 else "the number that is farthest off"
    text = "Where the model is farthest off."
    text += (
        ""
        if looked_at is None
        else f" Below each: bright where the image moved {what}, up or down."
    )
    images = gallery([shown(i) for i in worst], pixels, looked_at)
    return [*sections, Section("Largest errors", text, images=images)]


def duplicate_section(
    pairs: Sequence[Pair], where: Mapping[str, Source], among: tuple[int, int] | None = None
) -> Section:
    """Images of the data that are the same.

    Args:
        pairs: Duplicates, leaks first.
        where: Where each image is, by name.
        among: Number of images that were looked at, and of all; None is all.
    """
    leaks, contradictions = (
        sum(pair.leaks for pair in pairs),
        sum(pair.contradicts for pair in pairs),
    )
    text = (
        f"{len(pairs)} images are the same as another, or look so: {leaks} of them in another"
        f" split, which flatters the result, and {contradictions} with another label."
    )
    text = (
        f"{text if pairs else 'No two images are the same.'} headstart audit, which reads the files"
        " again, looks closer."
    )
    if among is not None:
        text = f"Among {among[0]:,} of {among[1]:,} images, those opened before training: {text}"

    def image(pair: Pair) -> GalleryImage:
        first, second = (image_source(decode(where[name])) for name in (pair.first, pair.second))
        same = " and ".join(
            f"{label} in {split}" for label, split in zip(pair.labels, pair.splits, strict=True)
        )
        return GalleryImage(
            first, f"{pair.kind}: {same}\n{file_name(pair.first)}, {file_name(pair.second)}", second
        )

    return Section("Duplicates and leaks", text, images=[image(pair) for pair in pairs[:GALLERY]])


def _scatter(predictions: NDArray[np.float64], true: NDArray[np.float64], name: str) -> str:
    figure = new_figure(4.4, 3.6)
    axes = figure.subplots()
    low, high = float(min(predictions.min(), true.min())), float(max(predictions.max(), true.max()))
    axes.plot([low, high], [low, high], color=GRAY, linestyle="--", linewidth=1)
    axes.scatter(true, predictions, s=10, color=BLUE, alpha=0.6, linewidths=0)
    axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    plain_axes(axes)
    return figure_source(figure)
