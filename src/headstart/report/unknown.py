"""Sections of the report: sets of classes with a promised coverage, and none of the classes."""

from headstart.metrics.classification import softmax
from headstart.metrics.conformal import COVERAGE, ENOUGH, cross_coverage, set_minimums
from headstart.pipelines.confidence import FEWEST
from headstart.pipelines.unknown import LEVEL, Reference
from headstart.report.page import BLUE, GRAY, Section, Table, figure_source, new_figure, plain_axes
from headstart.tasks.base import Evaluation


def set_sections(evaluation: Evaluation, classes: list[str]) -> list[Section]:
    """How large sets are that contain the true class as often as promised.

    None where there are too few examples.
    """
    calibration = evaluation.calibration
    if calibration is None or evaluation.examples < FEWEST:
        return []
    labels = evaluation.details["labels"]
    probabilities = softmax(evaluation.details["logits"], calibration.temperature)
    covered, size = cross_coverage(probabilities, labels)
    minimums = set_minimums(probabilities, labels)
    sizes = (probabilities >= minimums).sum(axis=1)
    rows = [
        [_size_text(number), f"{(sizes == number).mean():.1%}"]
        for number in range(int(sizes.max()) + 1)
        if (sizes == number).any()
    ]
    text = (
        f"In place of one class, the set of classes that contains the true one for {COVERAGE:.0%}"
        f" of new examples like these (conformal prediction): {size:.1f} of {len(classes)} classes"
        f" on average. Sets of tenths of the examples, made with the others, contained it for"
        f" {covered:.1%}. A class with {ENOUGH} evaluated examples or more keeps the promise by"
        " itself, the others together. For images, headstart predict --out lists them."
    )
    table = Table(("classes in the set", "examples"), rows)
    return [Section("Which classes may it be?", text, table=table, folded=True)]


def _size_text(number: int) -> str:
    """How many classes are in a set."""
    return "none: unlike every class" if not number else str(number)


def reference_sections(reference: Reference | None) -> list[Section]:
    """From which distance on an image is none of the classes."""
    if reference is None:
        return []
    distances = reference.distances.numpy()
    limit = float(distances[min(len(distances) - 1, int((1 - LEVEL) * (len(distances) + 1)))])
    figure = new_figure(4.4, 2.4, short=True)
    axes = figure.subplots()
    axes.hist(distances, bins=30, color=BLUE)
    axes.axvline(limit, color=GRAY, linestyle="--", linewidth=1)
    axes.set(xlabel="distance to the nearest class", ylabel="known examples")
    plain_axes(axes)
    text = (
        f"Examples of the known classes, {len(distances)} that the distances were not fitted to:"
        " how far they are from the nearest class, as the network sees them. An example of"
        f" something else is often farther. Beyond the line its p-value is below {LEVEL:.0%}, and"
        f" headstart predict --refuse does not answer: this also happens to about {LEVEL:.0%} of"
        " examples of the known classes."
    )
    return [Section("None of these classes?", text, [figure_source(figure)], folded=True)]
