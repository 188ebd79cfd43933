"""Sections of the report of a segmentation.

Baselines, classes, confusion, images with overlays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.segmentation import class_scores, constant_answer, mean_iou
from headstart.pipelines.semantic_segmentation import overlay
from headstart.report.classification import SHOWN_CLASSES
from headstart.report.page import (
    GalleryImage,
    Section,
    Table,
    figure_source,
    image_source,
    new_figure,
)

Pixels = NDArray[np.uint8]


def segmentation_sections(
    confusion: NDArray[np.int64],
    classes: list[str],
    colors: Pixels,
    shown: Sequence[tuple[str, Pixels, Pixels, Pixels, float]],
) -> list[Section]:
    """The sections of one evaluation.

    Args:
        confusion: Pixels (V, V), rows the true classes.
        classes: Their names.
        colors: (V, 3).
        shown: Name, image (H, W, 3), true classes (H, W), answer (H, W) and mean IoU of the
            images to show, worst first.
    """
    sections = [baseline_section(confusion, classes), class_section(confusion, classes)]
    if shown:
        sections.append(image_section(classes, colors, shown))
    if len(classes) <= SHOWN_CLASSES:
        sections.append(confusion_section(confusion, classes))
    return sections


def baseline_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """The result against answering one class everywhere.

    The first one, and the most frequent one.
    """
    most = int(confusion.sum(1).argmax())
    rows = [
        [
            "this model",
            f"{mean_iou(confusion):.1%}",
            f"{np.trace(confusion) / max(1, confusion.sum()):.1%}",
        ]
    ]
    for name, answer in (("most frequent class", most), ("first class", 0)):
        constant = constant_answer(confusion, answer)
        rows.append(
            [
                f"always “{classes[answer]}” ({name})",
                f"{mean_iou(constant):.1%}",
                f"{np.trace(constant) / max(1, constant.sum()):.1%}",
            ]
        )
    text = "A model that has learned nothing else may still call every pixel by one class."
    return Section(
        "Against one answer for all", text, table=Table(("", "mean IoU", "right pixels"), rows)
    )


def class_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """IoU, accuracy and precision of each class, the weakest first."""
    scores = class_scores(confusion)
    fraction = scores.pixels / max(1, scores.pixels.sum())

    def text_of(value: float) -> str:
        return "–" if np.isnan(value) else f"{value:.1%}"

    # classes that do not occur come last
    order = np.argsort(np.nan_to_num(scores.iou, nan=2.0), kind="stable")
    rows = [
        [
            classes[i],
            f"{fraction[i]:.2%}",
            *(text_of(v[i]) for v in (scores.iou, scores.accuracy, scores.precision)),
        ]
        for i in order
    ]
    text = (
        "IoU: pixels that are and were called the class, divided by those that are or were."
        " Accuracy: fraction of the class that was found. Precision: fraction of what was called"
        " the class that is. Weakest class first; ignored pixels are not counted."
    )
    table = Table(("class", "fraction of pixels", "IoU", "accuracy", "precision"), rows)
    return Section("Classes", text, table=table, folded=len(classes) > 30)


def confusion_section(confusion: NDArray[np.int64], classes: list[str]) -> Section:
    """What each class's pixels were called."""
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.36 * len(classes))
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(fraction >= 0.005):
        axes.text(
            j,
            i,
            f"{fraction[i, j]:.0%}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if fraction[i, j] > 0.5 else "black",
        )
    short = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
    axes.set_xticks(range(len(classes)), short, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), short, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    text = (
        "What the pixels of each class (rows) were called; a perfect model has everything on the"
        " diagonal."
    )
    return Section("Confusion", text, [figure_source(figure)])


def image_section(
    classes: list[str], colors: Pixels, shown: Sequence[tuple[str, Pixels, Pixels, Pixels, float]]
) -> Section:
    """Image, truth and answer side by side, under the colors of the classes."""
    used = sorted(
        {
            int(i)
            for _, _, true, predictions, _ in shown
            for i in np.union1d(true, predictions)
            if i < len(classes)
        }
    )
    images = []
    for name, image, true, predictions, iou in shown:
        panels = [image, overlay(image, true, colors), overlay(image, predictions, colors)]
        images.append(
            GalleryImage(image_source(side_by_side(panels), 1200), f"{name}: mean IoU {iou:.1%}")
        )
    text = (
        "Image, labels and answer; unlabelled pixels keep the image's colors. The worst"
        " images first, then some others."
    )
    return Section(
        "Images",
        text,
        [legend_source([classes[i] for i in used], colors[used])],
        images=images,
        wide=True,
    )


def side_by_side(panels: Sequence[Pixels], gap: int = 6) -> Pixels:
    """Images of one height in a row, with white between them."""
    white = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, white)][:-1]
    return np.concatenate(parts, axis=1)


def legend_source(names: list[str], colors: Any) -> str:
    """The classes' colors as a figure."""
    from matplotlib.patches import Patch

    columns = min(6, max(1, len(names)))
    figure = new_figure(8.4, 0.25 + 0.24 * -(-len(names) // columns))
    short = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    patches = [
        Patch(color=color / 255, label=name) for name, color in zip(short, colors, strict=True)
    ]
    figure.legend(handles=patches, loc="center", ncols=columns, frameon=False, fontsize=8)
    return figure_source(figure)
