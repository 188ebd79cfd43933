"""Section of the report: when a classifier should rather answer "I don't know"."""

import numpy as np

from headstart.metrics.calibration import Calibration, confidence_of
from headstart.metrics.selective import LEVEL, fewest_answers
from headstart.pipelines.confidence import Choice
from headstart.report.page import (
    BLUE,
    GRAY,
    ORANGE,
    Section,
    Table,
    figure_source,
    new_figure,
    plain_axes,
)


def refusal_sections(found: Calibration, max_error: float | None) -> list[Section]:
    """Error rate against fraction refused, and the threshold of each target error rate.

    None where there are too few examples.
    """
    confidence = confidence_of(found, max_error)
    if confidence is None:
        return []
    chosen = confidence.choice()
    table = Table(
        ("target error rate", "threshold", "refused", "error rate here"),
        [_cells(each, confidence.examples) for each in confidence.choices],
    )
    text = (
        f"{_advice(chosen, confidence.examples)} Each threshold is promised for new examples like"
        f" these: over random sets of {confidence.examples}, the error rate of the answers exceeds"
        f" its target with a probability of at most {1 - LEVEL:.0%}. headstart predict --refuse"
        " uses it."
    )
    return [Section("When it should say “I don’t know”", text, [_figure(found, chosen)], table)]


def _advice(chosen: Choice, examples: int) -> str:
    """What the threshold of the requested target error rate means."""
    wanted = f"{chosen.max_error:.0%}"
    if chosen.error is not None and not chosen.threshold:
        return f"For an error rate of at most {wanted} it may answer everything."
    if chosen.error is not None:
        return (
            f"To be wrong in at most {wanted} of its answers it should not answer below"
            f" {chosen.threshold:.1%} confidence: it refuses {chosen.refused:.1%} of these"
            f" examples, and {chosen.error:.1%} of its answers to the others are wrong."
        )
    if examples < (fewest := fewest_answers(chosen.max_error)):
        return (
            f"These {examples} examples are too few for an error rate of {wanted}: even without an"
            f" error it takes {fewest}. With --refuse it answers nothing."
        )
    return (
        f"No threshold can be promised to keep the error rate at {wanted}: with --refuse it answers"
        " nothing. More held-out examples, or a higher target, may change that."
    )


def _cells(each: Choice, examples: int) -> list[str]:
    """The row of a target error rate."""
    threshold = f"{each.threshold:.1%}"
    if examples < (fewest := fewest_answers(each.max_error)):
        threshold = f"needs {fewest} examples"
    elif each.error is None:
        threshold = "none"
    error = "" if each.error is None else f"{each.error:.1%}"
    return [f"{each.max_error:.0%}", threshold, f"{each.refused:.1%}", error]


def _figure(found: Calibration, chosen: Choice) -> str:
    """Errors among the answers by the fraction refused."""
    order = np.argsort(-found.fitted, kind="stable")
    count = np.arange(1, len(order) + 1)
    figure = new_figure(4.4, 3.0)
    axes = figure.subplots()
    errors = np.cumsum(~found.right[order]) / count
    axes.plot(1 - count / len(order), errors, color=BLUE)
    axes.axhline(chosen.max_error, color=GRAY, linestyle="--", linewidth=1)
    if chosen.error is not None:
        axes.scatter([chosen.refused], [chosen.error], color=ORANGE, zorder=3)
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="fraction refused, lowest confidence first",
        ylabel="errors among answers",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    plain_axes(axes)
    return figure_source(figure)
