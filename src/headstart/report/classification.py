"""Sections of the report of a classifier: confusion, classes, errors, calibration, refusals.

Shared by the tasks that give each example one class.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.calibration import Calibration
from headstart.metrics.classification import confusion_matrix, per_class, reliability, softmax
from headstart.report.page import (
    BLUE,
    GRAY,
    ORANGE,
    GalleryImage,
    Section,
    Table,
    figure_source,
    image_source,
    new_figure,
    plain_axes,
)
from headstart.report.refusals import refusal_sections
from headstart.report.unknown import set_sections
from headstart.tasks.base import Evaluation

SHOWN_CLASSES = 40  # a larger matrix cannot be read; its worst pairs are listed instead
GALLERY = 12
Pixels = Callable[[int], NDArray[np.uint8]]  # the image of an example
# examples, each with a class or target → their images with what the network looked at for it
LookedAt = Callable[[Sequence[tuple[int, str]]], Iterator[NDArray[np.uint8]]]


class Shown(NamedTuple):
    """An example of a gallery: its row, the class or target that is explained, a caption."""

    row: int
    label: str
    caption: str


def classification_sections(
    evaluation: Evaluation,
    classes: list[str],
    names: list[str],
    pixels: Pixels | None,
    looked_at: LookedAt | None = None,
) -> list[Section]:
    """The sections of one evaluation.

    Args:
        evaluation: With details "logits" (N, C) and "labels" (N,).
        classes: Names of the classes.
        names: How each example is named to the user.
        pixels: Gives the image of an example; None where examples are not images.
        looked_at: Gives the image with what the network looked at.
    """
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    calibration = evaluation.calibration
    probabilities = softmax(logits, 1.0 if calibration is None else calibration.temperature)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(classes))
    sections = [
        baseline_section(confusion, classes),
        confusion_section(confusion, classes),
        class_section(confusion, classes),
    ]
    if pixels is not None:
        sections += gallery_sections(probabilities, labels, classes, names, pixels, looked_at)
    if calibration is None:
        return sections
    refusals = refusal_sections(calibration, evaluation.max_error)
    sets = set_sections(evaluation, classes)
    return [*sections, calibration_section(calibration), *refusals, *sets]


def baseline_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The result against always giving the most frequent class."""
    counts = confusion.sum(axis=1)
    best = int(counts.argmax())
    errors = int(counts.sum() - np.trace(confusion))
    text = (
        f"Always answering “{classes[best]}” would be right for {counts[best] / counts.sum():.1%};"
        f" the model is right for {np.trace(confusion) / counts.sum():.1%} and makes {errors}"
        f" errors on {counts.sum()} examples."
    )
    return Section("Against the most frequent class", text)


def confusion_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The matrix as a figure, or the pairs that are confused most."""
    count = len(classes)
    wrong = confusion - np.diag(np.diag(confusion))
    worst = [divmod(int(i), count) for i in np.argsort(-wrong, axis=None, kind="stable")[:10]]
    pairs = [
        [classes[true], classes[predicted], str(wrong[true, predicted])]
        for true, predicted in worst
        if wrong[true, predicted]
    ]
    table = Table(("true class", "predicted", "examples"), pairs) if pairs else None
    if count > SHOWN_CLASSES:
        return Section("Confusion", f"The pairs confused most, of {count} classes.", table=table)
    side = min(9.0, 2.2 + 0.32 * count)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(confusion):
        axes.text(
            j,
            i,
            confusion[i, j],
            ha="center",
            va="center",
            fontsize=8,
            color="white" if fraction[i, j] > 0.5 else "black",
        )
    short = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
    axes.set_xticks(
        range(count),
        short,
        rotation=90 if count > 6 and max(map(len, short)) > 2 else 0,
        fontsize=8,
    )
    axes.set_yticks(range(count), short, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    text = "Rows are the true classes; a perfect model has everything on the diagonal."
    return Section("Confusion", text, [figure_source(figure)], table)


def class_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """Precision, recall and F1 of each class, the weakest first."""
    table = per_class(confusion)
    order = np.argsort(table.f1, kind="stable")
    rows = [
        [
            classes[i],
            str(table.count[i]),
            *(f"{values[i]:.1%}" for values in (table.recall, table.precision, table.f1)),
        ]
        for i in order
    ]
    text = (
        "Recall: fraction of the class that was found. Precision: fraction of the predictions of"
        " this class that are right. Weakest class first."
    )
    return Section(
        "Classes",
        text,
        table=Table(("class", "examples", "recall", "precision", "F1"), rows),
        folded=len(classes) > 20,
    )


def gallery_sections(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: list[str],
    names: list[str],
    pixels: Pixels,
    looked_at: LookedAt | None,
) -> list[Section]:
    """The highest-confidence errors, and the lowest-confidence predictions."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    errors = np.flatnonzero(predicted != labels)
    errors = errors[np.argsort(-confidence[errors], kind="stable")][:GALLERY]
    lowest = np.argsort(confidence, kind="stable")[:GALLERY]

    def shown(i: int) -> Shown:
        caption = f"{classes[predicted[i]]} {confidence[i]:.0%}"
        if predicted[i] != labels[i]:
            caption += f", is {classes[labels[i]]}"
        caption += f"\n{file_name(names[i])}"
        return Shown(i, classes[predicted[i]], caption)

    below = "" if looked_at is None else " Below each: bright is evidence for the prediction."
    wrong, doubtful = ([shown(int(i)) for i in rows] for rows in (errors, lowest))
    images = gallery([*wrong, *doubtful], pixels, looked_at)
    sections = []
    if wrong:
        text = "Wrong predictions of the highest confidence: hard images, or wrong labels." + below
        sections.append(Section("Highest-confidence errors", text, images=images[: len(wrong)]))
    text = "Images whose best class has the smallest probability, right or wrong." + below
    title = "Lowest-confidence predictions"
    return [*sections, Section(title, text, images=images[len(wrong) :], folded=True)]


def gallery(
    shown: Sequence[Shown], pixels: Pixels, looked_at: LookedAt | None
) -> list[GalleryImage]:
    """Images of examples, and below each what the network looked at for its class or target."""
    different = list(dict.fromkeys((each.row, each.label) for each in shown))
    seen = repeat(None, len(different)) if looked_at is None else looked_at(different)
    sources = {
        key: (image_source(pixels(key[0])), None if below is None else image_source(below))
        for key, below in zip(different, seen, strict=True)
    }
    return [
        GalleryImage(source, each.caption, below)
        for each in shown
        for source, below in [sources[each.row, each.label]]
    ]


def file_name(name: str) -> str:
    """The file in the name of an example."""
    return Path(name.split(" (")[0]).name


def calibration_section(found: Calibration) -> Section:
    """Confidence against accuracy, before and after temperature scaling on held-out examples."""
    shown = [("as trained", found.raw)]
    if found.temperature != 1:
        shown.append((f"temperature {found.temperature:.2f}", found.crossed))
    errors, figures = [], []
    for title, confidence in shown:
        figure = new_figure(4.2, 3.2, short=True)
        axes = figure.subplots()
        bins = reliability(confidence, found.right)
        used = bins.count > 0
        errors.append(bins.error)
        axes.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1)
        area = 12 + 180 * bins.count[used] / bins.count.sum()
        x, y = bins.confidence[used], bins.accuracy[used]
        axes.scatter(x, y, s=area, color=BLUE, zorder=3, clip_on=False)
        axes.plot(x, y, color=ORANGE, linewidth=1)
        axes.set_title(f"{title}: error {bins.error:.1%}", fontsize=10)
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.05), xlabel="confidence", ylabel="accuracy")
        plain_axes(axes)
        figures.append(figure_source(figure))
    text = (
        "Where points lie below the line, the model is more confident than it should be. Its"
        f" expected calibration error is {errors[0]:.1%}; "
    )
    if found.temperature == 1:
        text += "no temperature makes it smaller on held-out examples, so none is used."
    else:
        text += (
            f"dividing the scores by {found.temperature:.2f} makes it {errors[1]:.1%} (each tenth"
            " of the examples with the temperature that was fitted on the others)."
        )
    return Section("Can its confidence be believed?", text, figures)
