"""Sections of the report that answer "is this enough?": the learning curve and what it promises."""

from headstart.metrics.learning_curve import Estimate, Forecast
from headstart.report.figure import BLUE, GRAY, ORANGE, Axis, Chart
from headstart.report.page import Section, Table

AHEAD = 4  # times the present examples that the chart shows
SHOWN_GAINS = 20  # classes of a table that is open


def enough_sections(found: Forecast) -> list[Section]:
    """The learning curve with its forecast, and the classes that gain most from more examples."""
    sections = [curve_section(found)]
    return [*sections, gain_section(found)] if found.gains else sections


def curve_section(found: Forecast) -> Section:
    """Measured and expected accuracy by number of training examples."""
    import numpy as np

    curve, count = found.curve, found.examples
    ahead = np.geomspace(curve.sizes[-1], AHEAD * count, 40).tolist()
    expected = [found.laws.accuracy(n) for n in ahead]
    sizes, accuracies = curve.sizes.tolist(), (1 - curve.errors).tolist()
    ticks = sorted({int(sizes[0]), count // 4, count, 2 * count, AHEAD * count})
    x = Axis("training examples", log=True, ticks=[(tick, f"{tick:,}") for tick in ticks if tick])
    chart = Chart(5.6, 3.4, x, Axis("accuracy", percent=True))
    low, high = [each.low for each in expected], [each.high for each in expected]
    chart.band(ahead, low, high, ORANGE)
    chart.line(ahead, [each.value for each in expected], ORANGE, label="expected, 80 % interval")
    chart.deviations(sizes, accuracies, curve.deviations.tolist(), BLUE)
    chart.line(sizes, accuracies, BLUE, label="measured", width=1, marked=True)
    bottom = min([*low, *accuracies])
    chart.line([count, count], [bottom, max(high)], GRAY, width=1, dashed=True)
    chart.text(count, bottom, "now")
    now, doubled = found.now, found.doubled
    text = (
        f"Linear discriminants on the same features, fitted to random parts of the {count} training"
        " examples and tested on the others, show how accuracy grows. Power laws that fit these"
        f" points expect {doubled.value:.1%} with twice the examples (80 % interval"
        f" {doubled.low:.1%} to {doubled.high:.1%}), after {now.value:.1%} now. The further ahead,"
        " the less is known; new examples have to be like these."
    )
    for goal, needed in found.targets():
        text += f" {goal:.0%} needs {found.needed_text(needed)} training examples."
    rows = [
        [f"{factor * count:,} ({factor} ×)", *accuracy_cells(found.laws.accuracy(factor * count))]
        for factor in (1, 2, AHEAD)
    ]
    table = Table(("training examples", "accuracy", "80 % interval"), rows)
    return Section("Is this enough?", text, [chart.source()], table)


def accuracy_cells(estimate: Estimate) -> list[str]:
    """An accuracy and its interval."""
    return [f"{estimate.value:.1%}", f"{estimate.low:.1%} to {estimate.high:.1%}"]


def gain_section(found: Forecast) -> Section:
    """What twice the examples should bring each class."""
    rows = [
        [each.name, str(each.examples), f"{each.recall:.1%}", f"{100 * each.gain:+.1f} points"]
        for each in found.gains
    ]
    text = (
        "Expected increase of the recall of each class if there were twice the examples of all,"
        " from the slope of its own curve as far as that is certain. A hint, no promise: in our"
        " measurements the first class gained no more than others."
    )
    return Section(
        "Which class gains most from more examples?",
        text,
        table=Table(("class", "examples", "recall now", "gain"), rows),
        folded=len(rows) > SHOWN_GAINS,
    )
