"""Metrics of text tasks: correlation, entities, answers."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.optional import scikit_learn


def matthews(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Matthews' correlation of (N,) classes; 1 is perfect, 0 is chance or a constant answer."""
    return float(scikit_learn("metrics").matthews_corrcoef(labels, predicted))


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
    true: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> dict[str, EntityScore]:
    """Scores of each kind of entity, and of all of them under ""."""
    right, there, given = Counter[str](), Counter[str](), Counter[str]()
    for a, b in zip(true, predicted, strict=True):
        wanted, found = entities(a), entities(b)
        for counter, each in ((right, wanted & found), (there, wanted), (given, found)):
            for kind, _, _ in each:
                counter[kind] += 1
                counter[""] += 1
    scores = {}
    for kind in sorted({"", *there, *given}):
        scores[kind] = EntityScore(
            precision=right[kind] / max(1, given[kind]),
            recall=right[kind] / max(1, there[kind]),
            f1=2 * right[kind] / max(1, given[kind] + there[kind]),
            count=there[kind],
        )
    return scores


def normal_answer(text: str) -> str:
    """An answer as SQuAD compares it.

    Lower case, without punctuation, articles and repeated spaces.
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and word F1 against the best of the answers.

    None of them means that "" is right (SQuAD 2.0).
    """
    if not answers:
        right = float(not normal_answer(predicted))
        return right, right
    exact = max(float(normal_answer(predicted) == normal_answer(each)) for each in answers)
    return exact, max(
        _word_f1(normal_answer(predicted).split(), normal_answer(each).split()) for each in answers
    )


def _word_f1(predicted: list[str], true: list[str]) -> float:
    if not predicted or not true:
        return float(predicted == true)
    common = sum((Counter(predicted) & Counter(true)).values())
    return 2 * common / (len(predicted) + len(true))
