"""Sections of the report of a distillation."""

from typing import Any

import numpy as np
import torch

from headstart.data.cache import decode
from headstart.metrics.divergence import kl_divergence
from headstart.report.classification import file_name
from headstart.report.page import Section, Table
from headstart.report.problems import problem_sections
from headstart.tasks.base import Evaluation

SHOWN = 20  # images


def distillation_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Where student and teacher differ; the errors of the student, where labels are known."""
    logits, taught = (evaluation.details[name] for name in ("logits", "teacher_logits"))
    examples, classes = task.examples[evaluation.split], task.classes
    divergence = kl_divergence(torch.tensor(logits), torch.tensor(taught), 1.0).numpy()
    rows = [
        [
            file_name(examples.names[i]),
            classes[taught[i].argmax()],
            classes[logits[i].argmax()],
            f"{divergence[i]:.2f}",
        ]
        for i in np.argsort(-divergence, kind="stable")[:SHOWN]
    ]
    text = (
        f"The student's first answer is the teacher's for {evaluation.metrics['agreement']:.1%} of"
        " the images. In these images the two differ most, by the KL divergence of their"
        " probabilities in nats."
    )
    table = Table(("image", "teacher", "student", "KL divergence"), rows)
    sections = [Section("Student and teacher", text, table=table)]
    if "labels" in evaluation.details:
        sections += problem_sections(
            task.problem.kind,
            evaluation,
            classes,
            examples.names,
            lambda index: decode(examples.images[index]),
            None,
        )
    return sections
