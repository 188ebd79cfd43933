"""Sections of the report of a classifier: confusion, classes, mistakes, doubts, calibration.

Shared by the tasks that give each example one class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.calibration import Choice, confidence_of, cross_fitted
from headstart.metrics.classification import (
    best_temperature,
    confusion_matrix,
    per_class,
    reliability,
    softmax,
)
from headstart.report.page import (
    BLUE,
    GREY,
    ORANGE,
    Picture,
    Section,
    Table,
    figure_source,
    new_figure,
    picture_source,
    plain_axes,
)
from headstart.tasks.base import Evaluation

SHOWN_CLASSES = 40  # a larger matrix cannot be read; its worst pairs are listed instead
GALLERY = 12
Pixels = Callable[[int], NDArray[np.uint8]]  # the picture of an example
# the same with what the network looked at for a class or number
LookedAt = Callable[[int, str], NDArray[np.uint8]]


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
        pixels: Gives the picture of an example; None where examples are not pictures.
        looked_at: Gives the picture with what the network looked at.
    """
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    probabilities = softmax(logits)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(classes))
    sections = [
        baseline_section(confusion, classes),
        confusion_section(confusion, classes),
        class_section(confusion, classes),
    ]
    if pixels is not None:
        sections += gallery_sections(probabilities, labels, classes, names, pixels, looked_at)
    return [
        *sections,
        calibration_section(logits, labels),
        *refusal_sections(logits, labels, evaluation.max_error),
    ]


def baseline_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The result against always giving the most frequent class."""
    counts = confusion.sum(axis=1)
    best = int(counts.argmax())
    mistakes = int(counts.sum() - np.trace(confusion))
    text = (
        f"Always answering “{classes[best]}” would be right for {counts[best] / counts.sum():.1%};"
        f" the model is right for {np.trace(confusion) / counts.sum():.1%} and makes {mistakes}"
        f" mistakes on {counts.sum()} examples."
    )
    return Section("Against the most frequent class", text)


def confusion_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The matrix as a picture, or the pairs that are confused most."""
    count = len(classes)
    wrong = confusion - np.diag(np.diag(confusion))
    worst = [divmod(int(i), count) for i in np.argsort(-wrong, axis=None, kind="stable")[:10]]
    pairs = [
        [classes[true], classes[said], str(wrong[true, said])]
        for true, said in worst
        if wrong[true, said]
    ]
    table = Table(("true class", "predicted", "examples"), pairs) if pairs else None
    if count > SHOWN_CLASSES:
        return Section("Confusion", f"The pairs confused most, of {count} classes.", table=table)
    side = min(9.0, 2.2 + 0.32 * count)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(confusion):
        axes.text(
            j,
            i,
            confusion[i, j],
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[i, j] > 0.5 else "black",
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
        "Recall: share of the class that was found. Precision: share of the answers of this class"
        " that are right. Weakest class first."
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
    """The surest mistakes, and the images the model is least sure of."""
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    mistakes = np.flatnonzero(said != labels)
    mistakes = mistakes[np.argsort(-sure[mistakes], kind="stable")][:GALLERY]
    doubts = np.argsort(sure, kind="stable")[:GALLERY]

    def picture(i: int) -> Picture:
        verdict = f"{classes[said[i]]} {sure[i]:.0%}" + (
            "" if said[i] == labels[i] else f", is {classes[labels[i]]}"
        )
        return example_picture(
            i, classes[said[i]], f"{verdict}\n{file_name(names[i])}", pixels, looked_at
        )

    below = (
        ""
        if looked_at is None
        else " Below each: bright where the network saw what speaks for its answer."
    )
    sections = []
    if len(mistakes):
        text = "What the model was surest of and got wrong: hard images, or wrong labels." + below
        sections.append(
            Section("Most confident mistakes", text, pictures=[picture(int(i)) for i in mistakes])
        )
    text = "Images whose best class got the smallest probability, right or wrong." + below
    sections.append(
        Section("Least certain", text, pictures=[picture(int(i)) for i in doubts], folded=True)
    )
    return sections


def example_picture(
    index: int, label: str, caption: str, pixels: Pixels, looked_at: LookedAt | None
) -> Picture:
    """The picture of an example, and below it what the network looked at for a class or number."""
    below = None if looked_at is None else picture_source(looked_at(index, label))
    return Picture(picture_source(pixels(index)), caption, below)


def file_name(name: str) -> str:
    """The file in the name of an example."""
    return Path(name.split(" (")[0]).name


def calibration_section(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Section:
    """Confidence against accuracy, as it is and after temperature scaling that was fitted on other
    examples.
    """
    temperature = best_temperature(logits, labels)
    scaled, _ = cross_fitted(logits, labels)
    errors, figures = [], []
    for title, probabilities in (
        ("as trained", softmax(logits)),
        (f"temperature {temperature:.2f}", scaled),
    ):
        figure = new_figure(4.2, 3.2)
        axes = figure.subplots()
        bins = reliability(probabilities, labels)
        used = bins.count > 0
        errors.append(bins.error)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        area = 12 + 180 * bins.count[used] / bins.count.sum()
        axes.scatter(
            bins.confidence[used], bins.accuracy[used], s=area, color=BLUE, zorder=3, clip_on=False
        )
        axes.plot(bins.confidence[used], bins.accuracy[used], color=ORANGE, linewidth=1)
        axes.set_title(f"{title}: error {bins.error:.1%}", fontsize=10)
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.05), xlabel="confidence", ylabel="accuracy")
        plain_axes(axes)
        figures.append(figure_source(figure))
    text = (
        "Where points lie below the line, the model is surer than it should be. Its expected"
        f" calibration error is {errors[0]:.1%}; dividing the scores by {temperature:.2f} makes it"
        f" {errors[1]:.1%} (each tenth of the examples judged with the temperature that was fitted"
        " on the others)."
    )
    return Section("Can its confidence be believed?", text, figures)


def refusal_sections(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], max_error: float | None
) -> list[Section]:
    """When the model had better say "I don't know": error rate against share refused.

    None where there are too few examples.
    """
    found = confidence_of(logits, labels, max_error)
    if found is None:
        return []
    chosen = found.choice()
    sure, right = cross_fitted(logits, labels)[0].max(axis=1), logits.argmax(axis=1) == labels
    order = np.argsort(-sure, kind="stable")
    count = np.arange(1, len(order) + 1)
    figure = new_figure(4.4, 3.0)
    axes = figure.subplots()
    axes.plot(1 - count / len(order), np.cumsum(~right[order]) / count, color=BLUE)
    axes.axhline(chosen.max_error, color=GREY, linestyle="--", linewidth=1)
    if chosen.error is not None:
        axes.scatter([chosen.refused], [chosen.error], color=ORANGE, zorder=3)
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="share refused, the least certain first",
        ylabel="mistakes among answers",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    plain_axes(axes)

    def cells(each: Choice) -> list[str]:
        error = "" if each.error is None else f"{each.error:.1%}"
        return [
            f"{each.max_error:.0%}",
            f"{each.threshold:.1%}" if each.threshold <= 1 else "never sure enough",
            f"{each.refused:.1%}",
            error,
        ]

    if chosen.error is None:
        text = (
            f"No threshold keeps mistakes at {chosen.max_error:.0%}: the model would have to refuse"
            " every example."
        )
    elif not chosen.threshold:
        text = f"With at most {chosen.max_error:.0%} of mistakes allowed it may answer everything."
    else:
        text = (
            f"To be wrong in at most {chosen.max_error:.0%} of its answers it should not answer"
            f" below {chosen.threshold:.1%} confidence: it would then refuse {chosen.refused:.1%}"
            f" of images like these, and {chosen.error:.1%} of its answers would be wrong."
        )
    text += (
        " Each tenth of the examples was judged by a threshold chosen on the others; headstart"
        " predict refuses by it when asked to."
    )
    table = Table(
        ("allowed mistakes", "least confidence", "refused", "mistakes"),
        [cells(each) for each in found.choices],
    )
    return [Section("When it should say “I don’t know”", text, [figure_source(figure)], table)]
