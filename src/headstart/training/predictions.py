"""What `results.json` and `predictions.csv` hold of an evaluation.

Letters: N examples, V classes.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint import atomic_write
from headstart.data.labels import MULTI, SINGLE
from headstart.data.results import csv_cell
from headstart.metrics.classification import confusion_matrix, figures_of_classes, softmax
from headstart.metrics.multilabel import per_label
from headstart.progress import plain
from headstart.tasks.base import Evaluation, HeadTask, Task

PREDICTIONS = "predictions.csv"


def figures_of(task: Task, evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as `results.json` holds it, with figures of each class where it has classes."""
    if isinstance(task, HeadTask):
        return figures(evaluation, task.problem.kind, task.classes)
    return figures(evaluation, None, []) | task.class_figures(evaluation)


def figures(evaluation: Evaluation, kind: str | None, classes: Sequence[str]) -> dict[str, Any]:
    """An evaluation as `results.json` holds it.

    Args:
        evaluation: With details "logits" and "labels" where there is a kind.
        kind: What the labels are; None where they are not classes or targets.
        classes: Names of classes or targets.
    """
    values: dict[str, Any] = {
        "examples": evaluation.examples,
        "metrics": evaluation.metrics,
        "confidence_interval_95": evaluation.interval,
    }
    if kind is None:
        return values
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    if kind == SINGLE:
        confusion = confusion_matrix(labels, logits.argmax(1), len(classes))
        return values | figures_of_classes(confusion, classes)
    if kind == MULTI:
        columns = per_label(logits, labels > 0.5)
        values["classes"] = {
            name: {key: column[i].item() for key, column in columns.items()}
            for i, name in enumerate(classes)
        }
    return values


def prediction_rows(task: HeadTask, evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Name, label, prediction and probability of every example."""
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    names, classes = task.names(evaluation.split), task.classes
    if task.problem.kind == SINGLE:
        calibration = evaluation.calibration
        chances = softmax(logits, 1.0 if calibration is None else calibration.temperature)
        best = chances.argmax(1)
        return [
            (name, classes[label], classes[i], f"{row[i]:.6g}")
            for name, label, i, row in zip(names, labels.tolist(), best, chances, strict=True)
        ]
    true = labels.reshape(len(labels), -1)
    if task.problem.kind == MULTI:
        chances = 1 / (1 + np.exp(-logits.astype(np.float64)))

        def listed(on: Any) -> str:
            return "|".join(classes[i] for i in np.flatnonzero(on))

        return [
            (name, listed(row > 0.5), listed(p > 0.5), "|".join(f"{v:.6g}" for v in p[p > 0.5]))
            for name, row, p in zip(names, true, chances, strict=True)
        ]
    return [
        (name, "|".join(f"{v:.6g}" for v in row), "|".join(f"{v:.6g}" for v in found), "")
        for name, row, found in zip(names, true, logits, strict=True)
    ]


def write_predictions(folder: Path, task: Task, evaluations: Mapping[str, Evaluation]) -> None:
    """Writes `predictions.csv`: one row for each held-out example, for tokens for each word; none
    for masked words and patches.
    """
    rows = [
        (split, *row)
        for split, evaluation in evaluations.items()
        for row in _rows_of(task, evaluation)
    ]
    if not rows:
        return
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("split", "name", *task.prediction_columns))
    table.writerows([csv_cell(cell) for cell in row] for row in rows)
    atomic_write(folder / PREDICTIONS, plain(text.getvalue()))


def _rows_of(task: Task, evaluation: Evaluation) -> list[tuple[str, ...]]:
    if isinstance(task, HeadTask):
        return prediction_rows(task, evaluation)
    return task.prediction_rows(evaluation)
