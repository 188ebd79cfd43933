"""Thresholds of confidence whose error rate is promised on new examples, not only on those seen.

Learn then test (Angelopoulos et al. 2021): each candidate threshold is a hypothesis "the error rate
of the answers is above the target", and the threshold returned is one whose hypothesis was rejected
by the exact binomial test, which is Clopper and Pearson's upper bound. Over all candidates together
a true hypothesis is rejected with probability at most 1 - level.

Letters: N examples.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.classification import Floats
from headstart.metrics.optional import scipy

LEVEL = 0.9  # probability that the error rate on new examples is at most the target
NEVER = 2.0  # a threshold that no confidence reaches
GROWTH = 1.1  # of the number of answers from one candidate threshold to the next


def upper_bound(errors: int, answers: int, level: float = LEVEL) -> float:
    """Upper confidence bound of an error rate (Clopper and Pearson 1934).

    Args:
        errors: Number of wrong answers.
        answers: Number of answers.
        level: Probability that the bound is at least the true rate.

    Returns:
        Between 0 and 1.
    """
    if errors >= answers:
        return 1.0
    return float(scipy("special").betaincinv(errors + 1, answers - errors, level))


def fewest_answers(max_error: float, level: float = LEVEL) -> int:
    """The number of right answers without an error from which on a target can be promised."""
    return math.ceil(math.log(1 - level) / math.log(1 - max_error) - 1e-9)


def promised_threshold(
    confidence: Floats, right: NDArray[np.bool_], max_error: float, level: float = LEVEL
) -> float:
    """The lowest confidence (N,) from which on a target error rate can be promised.

    The candidates are the highest k confidences, k growing by a tenth at a time. They are tested in
    this order by the fallback procedure (Wiens 2003): 1 - level is split evenly over the starts, at
    a doubling k; a rejected candidate passes its part on to the next one, and others lose it.

    Args:
        confidence: (N,), of examples that the model was not trained on.
        right: Whether each answer is right, (N,).
        max_error: Target error rate among the answers.
        level: Probability with which the promise holds over random sets of N examples.

    Returns:
        0 where everything may be answered, `NEVER` where nothing may.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, errors = confidence[order], np.cumsum(~right[order])
    # equal confidences are answered together
    ends = 1 + np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    candidates = list(_candidates(ends, max_error, level))
    starts = sum(is_start for _, is_start in candidates)
    found, part = 0, 0.0
    for answers, is_start in candidates:
        part += (1 - level) / starts if is_start else 0.0
        if part and upper_bound(int(errors[answers - 1]), answers, 1 - part) <= max_error:
            found = answers
        else:
            part = 0.0
    if not found:
        return NEVER
    return 0.0 if found == len(ranked) else float(ranked[found - 1])


def _candidates(
    ends: NDArray[np.int64], max_error: float, level: float
) -> Iterator[tuple[int, bool]]:
    """Numbers of answers to test, and whether a part of 1 - level starts there.

    Nothing here depends on which answers are right.
    """
    total, starts = int(ends[-1]), 1
    # so many starts that even the first can be rejected with its part
    while fewest_answers(max_error, 1 - (1 - level) / (starts + 1)) << starts <= total:
        starts += 1
    wanted = float(fewest_answers(max_error, 1 - (1 - level) / starts))
    next_start = wanted
    while wanted <= total:
        answers = int(ends[np.searchsorted(ends, math.ceil(wanted))])
        is_start = answers >= next_start
        while next_start <= answers:
            next_start *= 2
        yield answers, is_start
        wanted = max(answers * GROWTH, answers + 1)
        if answers < total < wanted:
            wanted = total
