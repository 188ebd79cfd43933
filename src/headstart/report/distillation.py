"""Sections of the report of a distillation, of images and of texts."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.cache import decode
from headstart.metrics.divergence import kl_divergence
from headstart.report.classification import file_name
from headstart.report.page import Section, Table
from headstart.report.problems import problem_sections
from headstart.tasks.base import Evaluation

SHOWN = 20  # images or texts
LONGEST = 200  # characters of a text that are shown
MOST = 2000  # texts whose neighbors are compared


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


def text_distillation_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """How often a text has the same nearest text for student and teacher, and where it has not."""
    texts = [text[:LONGEST] for text in task.texts(evaluation.split)[:MOST]]
    if len(texts) < 3:
        return []
    student, teacher = (
        _similarities(evaluation.details[name][:MOST]) for name in ("vectors", "teacher_vectors")
    )
    nearest, taught = student.argmax(1), teacher.argmax(1)
    # by how much the student's choice is less similar for the teacher than the teacher's own
    loss = teacher.max(1) - teacher[np.arange(len(texts)), nearest]
    order = [i for i in np.argsort(-loss, kind="stable") if nearest[i] != taught[i]][:SHOWN]
    rows = [[texts[i], texts[taught[i]], texts[nearest[i]]] for i in order]
    about = (
        f"For {np.mean(nearest == taught):.1%} of {len(texts)} texts student and teacher find the"
        " same other text nearest, by the cosine of their vectors. Below are those of the others"
        " where the teacher disagrees most."
    )
    table = Table(("text", "nearest for the teacher", "nearest for the student"), rows)
    return [Section("Student and teacher", about, table=table)]


def _similarities(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines (N, N) of centered vectors (N, D); -1 of a text with itself."""
    centered = vectors - vectors.mean(axis=0)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    unit = centered / np.where(lengths > 0, lengths, 1)
    cosines: NDArray[np.float32] = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    return cosines
