"""Measures of text tasks: correlation, entities, answers."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.classification import confusion_matrix


def matthews(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004).

    1 is perfect, 0 is chance or a constant answer.
    """
    table = confusion_matrix(labels, predicted, classes).astype(np.float64)
    true, said, total = table.sum(1), table.sum(0), table.sum()
    cover = np.sqrt((total**2 - (said**2).sum()) * (total**2 - (true**2).sum()))
    return float((np.trace(table) * total - (true * said).sum()) / cover) if cover else 0.0


def pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Linear correlation; 0 where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - counts + last - 1) / 2
    return mean[inverse]


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of the ranks."""
    return pearson(ranks(a), ranks(b))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of one text's IOB tags: kind, first word, and the word after the last.

    As conlleval and seqeval count: an entity begins at B-, or at an I- that follows nothing or
    another kind; it ends before O, B-, or an I- of another kind.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((kind, start, i))
            kind = ""
        if prefix == "B" or (prefix == "I" and not kind):
            kind, start = name, i
    return found


@dataclass(frozen=True)
class EntityScore:
    """Precision, recall and F1 of exact entities, and how many there are."""

    precision: float
    recall: float
    f1: float
    count: int


def entity_scores(
    true: Iterable[Sequence[str]], said: Iterable[Sequence[str]]
) -> dict[str, EntityScore]:
    """Scores of each kind of entity, and of all of them under ""."""
    right, there, given = Counter[str](), Counter[str](), Counter[str]()
    for a, b in zip(true, said, strict=True):
        wanted, found = entities(a), entities(b)
        for counter, each in ((right, wanted & found), (there, wanted), (given, found)):
            for kind, _, _ in each:
                counter[kind] += 1
                counter[""] += 1
    scores = {}
    for kind in sorted({"", *there, *given}):
        scores[kind] = EntityScore(
            right[kind] / max(1, given[kind]), right[kind] / max(1, there[kind]),
            2 * right[kind] / max(1, given[kind] + there[kind]), there[kind],
        )  # fmt: skip
    return scores


def normal_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and double spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and word F1 against the best of the answers.

    None of them means that "" is right (SQuAD 2.0).
    """
    if not answers:
        right = float(not normal_answer(said))
        return right, right
    exact = max(float(normal_answer(said) == normal_answer(each)) for each in answers)
    return exact, max(
        _word_f1(normal_answer(said).split(), normal_answer(each).split()) for each in answers
    )


def _word_f1(said: list[str], true: list[str]) -> float:
    if not said or not true:
        return float(said == true)
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true))
