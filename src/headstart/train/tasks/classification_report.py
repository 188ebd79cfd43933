"""Sections of the report of a classifier: confusion, classes, mistakes, doubts, calibration.

Shared by the tasks that give each example one class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.train.metrics import best_temperature, confusion_matrix, per_class, reliability, softmax
from headstart.train.report import BLUE, GREY, ORANGE, Picture, Section, Table, figure_source, new_figure, picture_source, plain_axes
from headstart.train.tasks import Evaluation

SHOWN_CLASSES = 40  # a larger matrix cannot be read; its worst pairs are listed instead
GALLERY = 12


def classification_sections(
    evaluation: Evaluation,
    classes: list[str],
    names: list[str],
    pixels: Callable[[int], NDArray[np.uint8]] | None,
    looked_at: Callable[[int, str], NDArray[np.uint8]] | None = None,
) -> list[Section]:
    """The sections of one evaluation.

    Args:
        evaluation: With details "logits" (N, C) and "labels" (N,).
        classes: Names of the classes.
        names: How each example is named to the user.
        pixels: Gives the picture of an example; None where examples are not pictures.
        looked_at: Gives the picture with what spoke for a class in the eyes of the network.
    """
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    probabilities = softmax(logits)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(classes))
    sections = [baseline_section(confusion, classes), confusion_section(confusion, classes), class_section(confusion, classes)]
    if pixels is not None:
        sections += gallery_sections(probabilities, labels, classes, names, pixels, looked_at)
    return [*sections, calibration_section(logits, labels)]


def baseline_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The result against always giving the most frequent class."""
    counts = confusion.sum(axis=1)
    best = int(counts.argmax())
    mistakes = int(counts.sum() - np.trace(confusion))
    text = (
        f"Always answering “{classes[best]}” would be right for {counts[best] / counts.sum():.1%}; "
        f"the model is right for {np.trace(confusion) / counts.sum():.1%} and makes {mistakes} mistakes on {counts.sum()} examples."
    )
    return Section("Against the most frequent class", text)


def confusion_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The matrix as a picture, or the pairs that are confused most."""
    count = len(classes)
    wrong = confusion - np.diag(np.diag(confusion))
    worst = [divmod(int(i), count) for i in np.argsort(-wrong, axis=None, kind="stable")[:10]]
    pairs = [[classes[true], classes[said], str(wrong[true, said])] for true, said in worst if wrong[true, said]]
    table = Table(("true class", "predicted", "examples"), pairs) if pairs else None
    if count > SHOWN_CLASSES:
        return Section("Confusion", f"The pairs confused most, of {count} classes.", table=table)
    side = min(9.0, 2.2 + 0.32 * count)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(confusion):
        axes.text(j, i, confusion[i, j], ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.5 else "black")
    short = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
    axes.set_xticks(range(count), short, rotation=90 if count > 6 else 0, fontsize=8)
    axes.set_yticks(range(count), short, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    text = "Rows are the true classes; a perfect model has everything on the diagonal."
    return Section("Confusion", text, [figure_source(figure)], table)


def class_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """Precision, recall and F1 of each class, the weakest first."""
    table = per_class(confusion)
    order = np.argsort(table.f1, kind="stable")
    rows = [[classes[i], str(table.count[i]), *(f"{values[i]:.1%}" for values in (table.recall, table.precision, table.f1))] for i in order]
    text = "Recall: share of the class that was found. Precision: share of the answers of this class that are right. Weakest class first."
    return Section("Classes", text, table=Table(("class", "examples", "recall", "precision", "F1"), rows), folded=len(classes) > 20)


def gallery_sections(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: list[str],
    names: list[str],
    pixels: Callable[[int], Any],
    looked_at: Callable[[int, str], Any] | None,
) -> list[Section]:
    """The surest mistakes, and the images the model is least sure of."""
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    mistakes = np.flatnonzero(said != labels)
    mistakes = mistakes[np.argsort(-sure[mistakes], kind="stable")][:GALLERY]
    doubts = np.argsort(sure, kind="stable")[:GALLERY]

    def picture(index: int, shown: NDArray[np.uint8]) -> Picture:
        verdict = f"{classes[said[index]]} {sure[index]:.0%}"
        verdict += "" if said[index] == labels[index] else f", is {classes[labels[index]]}"
        return Picture(picture_source(shown), f"{verdict}\n{Path(names[index].split(' (')[0]).name}")

    sections = []
    if len(mistakes):
        text = "What the model was surest of and got wrong: hard images, or wrong labels."
        sections.append(Section("Most confident mistakes", text, pictures=[picture(int(i), pixels(int(i))) for i in mistakes]))
    if looked_at is not None and len(mistakes):
        text = "The same mistakes: bright where the network saw what speaks for its wrong answer (Grad-CAM)."
        shown = [picture(int(i), looked_at(int(i), classes[said[i]])) for i in mistakes]
        sections.append(Section("What the network looked at", text, pictures=shown))
    text = "Images whose best class got the smallest probability, right or wrong."
    sections.append(Section("Least certain", text, pictures=[picture(int(i), pixels(int(i))) for i in doubts], folded=True))
    return sections


def calibration_section(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Section:
    """Confidence against accuracy, as it is and after temperature scaling."""
    temperature = best_temperature(logits, labels)
    errors, figures = [], []
    panels = [("as trained", 1.0), (f"temperature {temperature:.2f}", temperature)]
    for title, divisor in panels:
        figure = new_figure(4.2, 3.2)
        axes = figure.subplots()
        bins = reliability(softmax(logits, divisor), labels)
        used = bins.count > 0
        errors.append(bins.error)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        axes.scatter(bins.confidence[used], bins.accuracy[used], s=12 + 180 * bins.count[used] / bins.count.sum(), color=BLUE, zorder=3)
        axes.plot(bins.confidence[used], bins.accuracy[used], color=ORANGE, linewidth=1)
        axes.set_title(f"{title}: error {bins.error:.1%}", fontsize=10)
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.05), xlabel="confidence", ylabel="accuracy")
        plain_axes(axes)
        figures.append(figure_source(figure))
    text = (
        f"Where points lie below the line, the model is surer than it should be. Its expected calibration error is {errors[0]:.1%}; "
        f"dividing the scores by {temperature:.2f} (fitted on these same examples, so a little flattering) makes it {errors[1]:.1%}."
    )
    return Section("Can its confidence be believed?", text, figures)
