"""Sections of the report that answer "is this enough?": the learning curve and what it promises."""

from headstart.metrics.learning_curve import Estimate, Forecast
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

AHEAD = 4  # times the present examples that the chart shows
SHOWN_GAINS = 20  # classes of a table that is open


def enough_sections(found: Forecast) -> list[Section]:
    """The learning curve with its forecast, and the classes that gain most from more examples."""
    sections = [curve_section(found)]
    return [*sections, gain_section(found)] if found.gains else sections


def curve_section(found: Forecast) -> Section:
    """Measured and expected accuracy by number of training examples."""
    import numpy as np

    figure = new_figure(5.6, 3.4, short=True)
    axes = figure.subplots()
    curve, count = found.curve, found.examples
    ahead = np.geomspace(curve.sizes[-1], AHEAD * count, 40)
    expected = [found.laws.accuracy(n) for n in ahead]
    low, high = [each.low for each in expected], [each.high for each in expected]
    axes.fill_between(ahead, low, high, color=ORANGE, alpha=0.18, linewidth=0)
    axes.plot(
        ahead, [each.value for each in expected], color=ORANGE, label="expected, 80 % interval"
    )
    axes.errorbar(
        curve.sizes,
        1 - curve.errors,
        yerr=curve.deviations,
        fmt="o-",
        color=BLUE,
        markersize=4,
        linewidth=1,
        capsize=2,
        label="measured",
    )
    axes.axvline(count, color=GRAY, linestyle="--", linewidth=1)
    axes.annotate(
        "now",
        (count, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=GRAY,
    )
    axes.set_xscale("log")
    ticks = sorted({int(curve.sizes[0]), count // 4, count, 2 * count, AHEAD * count})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training examples", ylabel="accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
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
    if found.caution:
        text += f" {found.caution}."
    rows = [
        [f"{factor * count:,} ({factor} ×)", *accuracy_cells(found.laws.accuracy(factor * count))]
        for factor in (1, 2, AHEAD)
    ]
    table = Table(("training examples", "accuracy", "80 % interval"), rows)
    return Section("Is this enough?", text, [figure_source(figure)], table)


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
