"""Sections of the report of the text tasks.

Letters: N examples, V classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.labels import REGRESSION, SINGLE
from headstart.metrics.classification import confusion_matrix, per_class, softmax
from headstart.metrics.text import entity_scores
from headstart.report.page import Section, Table
from headstart.report.problems import problem_sections
from headstart.tasks.base import Evaluation

SHOWN = 20  # examples of one kind


def text_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Sections of a text classifier: those of its problem, and its errors."""
    names = task.names(evaluation.split)
    sections = problem_sections(task.kind, evaluation, task.classes, names, None)
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    rows = task.data.splits[evaluation.split]
    if task.kind == SINGLE:
        calibration = evaluation.calibration
        scaled = logits if calibration is None else logits / calibration.temperature
        sections += _errors(scaled, labels, rows, task.classes)
    elif task.kind == REGRESSION:
        worst = np.argsort(-np.abs(logits[:, 0] - labels), kind="stable")[:SHOWN]
        table = [
            [f"{labels[i]:g}", f"{logits[i, 0]:.2f}", shortened(rows[i].values), rows[i].name]
            for i in worst
        ]
        head = ("number", "predicted", "text", "where")
        sections.append(Section("Largest errors", table=Table(head, table)))
    return sections


def _errors(
    logits: NDArray[Any], labels: NDArray[np.int64], rows: Any, classes: list[str]
) -> list[Section]:
    confidence, predicted = softmax(logits).max(1), logits.argmax(1)
    order = np.argsort(-confidence, kind="stable")
    table = [
        [
            classes[labels[i]],
            f"{classes[predicted[i]]} {confidence[i]:.0%}",
            shortened(rows[i].values),
            rows[i].name,
        ]
        for i in order[predicted[order] != labels[order]][:SHOWN]
    ]
    text = "Wrong predictions of the highest confidence: hard texts, or wrong labels."
    head = ("class", "predicted", "text", "where")
    return [Section("Highest-confidence errors", text, table=Table(head, table))] if table else []


def answer_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Questions answered wrong."""
    rows, scores = task.data.splits[evaluation.split], evaluation.details["scores"][:, 1]
    answers = evaluation.details["answers"]
    table = [
        [
            rows[i].values["question"],
            " / ".join(dict.fromkeys(a["text"] for a in rows[i].values["answers"]))
            or "(no answer)",
            str(answers[i]) or "(no answer)",
            f"{scores[i]:.0%}",
        ]
        for i in np.argsort(scores, kind="stable")[:SHOWN]
        if scores[i] < 1
    ]
    head = ("question", "right", "answered", "F1")
    return [Section("Worst answers", table=Table(head, table))] if table else []


def entity_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Scores of each kind of entity."""
    ends = evaluation.details["ends"][:-1]
    true, predicted = (
        [[task.tags[n] for n in part] for part in np.split(evaluation.details[key], ends)]
        for key in ("labels", "predicted")
    )
    rows = [
        [kind, str(each.count), f"{each.recall:.1%}", f"{each.precision:.1%}", f"{each.f1:.1%}"]
        for kind, each in entity_scores(true, predicted).items()
        if kind
    ]
    text = "An entity counts as found where its kind, first and last word are right."
    head = ("kind", "in the data", "recall", "precision", "F1")
    return [Section("Entities", text, table=Table(head, rows))]


def tag_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Scores of each tag."""
    details = evaluation.details
    table = per_class(confusion_matrix(details["labels"], details["predicted"], len(task.tags)))
    columns = (table.recall, table.precision, table.f1)
    rows = [
        [tag, str(table.count[i]), *(f"{values[i]:.1%}" for values in columns)]
        for i, tag in enumerate(task.tags)
    ]
    return [Section("Tags", table=Table(("tag", "words", "recall", "precision", "F1"), rows))]


def choice_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Wrong choices of the highest margin."""
    logits, labels = evaluation.details["logits"], evaluation.details["labels"]
    rows = task.data.splits[evaluation.split]
    margin = logits.max(1) - logits[np.arange(len(labels)), labels]
    table = [
        [
            shortened(rows[i].values),
            rows[i].values["choices"][labels[i]],
            rows[i].values["choices"][logits[i].argmax()],
            rows[i].name,
        ]
        for i in np.argsort(-margin, kind="stable")[:SHOWN]
        if margin[i] > 0
    ]
    head = ("text", "right", "chosen", "where")
    return [Section("Highest-confidence errors", table=Table(head, table))] if table else []


def shortened(values: dict[str, Any], limit: int = 160) -> str:
    """The beginning of a row's text."""
    parts = [str(values[key]) for key in ("text", "pair") if key in values]
    text = " ".join(" / ".join(parts).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
