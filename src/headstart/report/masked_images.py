"""Sections of the report of masked image modeling.

Letters: N images, h w sides of the grid of patches.
"""

from typing import Any

import numpy as np
import torch

from headstart.pipelines.masked_image_modeling import panels
from headstart.report.classification import file_name
from headstart.report.page import GalleryImage, Section, Table, image_source
from headstart.report.segmentation import side_by_side
from headstart.tasks.base import Evaluation

SHOWN = 8


def masked_image_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Baselines, and the reconstructions of a few images."""
    metrics, details, vocabulary = evaluation.metrics, evaluation.details, task.tokenizer.vocab_size
    codes, masks, predicted = (details[key] for key in ("codes", "masks", "predicted"))  # (N, h, w)
    frequency = np.bincount(codes.ravel(), minlength=vocabulary) / codes.size
    occurring = frequency[frequency > 0]
    used = float(np.exp(-(occurring * np.log(occurring)).sum()))
    rows = [
        ["this model", f"{metrics['code_accuracy']:.1%}"],
        ["always the most common code", f"{metrics['most_common_code_accuracy']:.1%}"],
        ["chance", f"{1 / vocabulary:.2%}"],
    ]
    text = (
        f"Of {vocabulary} codes, the images use as many as {used:.0f} evenly used ones would be"
        " (exponential of the entropy)."
    )
    sections = [Section("Prediction of hidden codes", text, table=Table(("", "right codes"), rows))]
    shown = []
    for index in np.linspace(0, len(codes) - 1, min(SHOWN, len(codes))).round().astype(int):
        mask = masks[index]
        right = (predicted[index] == codes[index])[mask]
        parts = panels(
            task.whole(evaluation.split, int(index)),
            mask,
            torch.from_numpy(codes[index]),
            torch.from_numpy(predicted[index]),
            task.tokenizer,
        )
        name = file_name(task.names(evaluation.split)[index])
        fraction = float(right.mean()) if mask.any() else 0.0
        caption = f"{name}: {fraction:.0%} of the hidden codes are right"
        shown.append(GalleryImage(image_source(side_by_side(parts, gap=2), 900), caption))
    text = (
        "The image, what the mask leaves of it, the reconstruction from visible and predicted"
        " codes, and that from the true codes."
    )
    return [*sections, Section("Reconstructions", text, images=shown, wide=True)]
