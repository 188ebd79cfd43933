"""Charts as SVG: where things are drawn, and which words stand there."""

import base64
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from headstart.report.figure import (
    BLUE,
    MOST_POINTS,
    ORANGE,
    Axis,
    Chart,
    legend_source,
    matrix_source,
    shade,
    shortened,
)

SVG = "{http://www.w3.org/2000/svg}"


def read(source):
    """The SVG of a data address, parsed."""
    head, _, data = source.partition("base64,")
    assert head == "data:image/svg+xml;"
    return ElementTree.fromstring(base64.b64decode(data))


def words(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def places(root):
    """The points of the first line."""
    line = next(root.iter(f"{SVG}polyline"))
    return [tuple(map(float, point.split(","))) for point in line.get("points").split()]


def text_at(root, content):
    element = next(each for each in root.iter(f"{SVG}text") if each.text == content)
    return float(element.get("x")), float(element.get("y"))


def test_points_lie_at_the_ticks_of_their_values():
    chart = Chart(4.0, 3.0, Axis("step"), Axis("loss", low=0.0, high=2.0), "a title")
    chart.line([0, 10, 20], [0.5, 2.0, 1.0], BLUE, label="training", marked=True)
    root = read(chart.source())
    assert {"step", "loss", "a title", "training", "0", "10", "20", "0.5", "2.0"} <= {*words(root)}
    for (x, y), step, loss in zip(
        places(root), ("0", "10", "20"), ("0.5", "2.0", "1.0"), strict=True
    ):
        assert x == pytest.approx(text_at(root, step)[0], abs=0.11)
        assert y == pytest.approx(text_at(root, loss)[1] - 3.5, abs=0.11)
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    assert circles[:3] == places(root)


def test_equal_lengths_of_a_logarithmic_axis_are_equal_ratios():
    x = Axis("examples", log=True, ticks=[(10, "ten"), (1000, "many")])
    chart = Chart(4.0, 3.0, x, Axis("accuracy", percent=True))
    chart.line([10, 100, 1000], [0.5, 0.6, 0.7], BLUE)
    root = read(chart.source())
    (a, _), (b, _), (c, _) = places(root)
    assert b - a == pytest.approx(c - b, abs=0.2)
    assert text_at(root, "ten")[0] == pytest.approx(a, abs=0.11)
    assert "60%" in words(root) and "50%" in words(root)


@pytest.mark.parametrize(
    ("low", "high", "some"),
    [
        (0.0, 1.0, {"0.0", "0.2", "1.0"}),
        (-3.0, 7.0, {"−2", "0", "6"}),
        (0.7, 0.78, {"0.70", "0.74"}),
        (0.0, 2e7, {"0", "5e6", "2e7"}),
        (0.0, 1e-4, {"0", "2e−5", "0.0001"}),
        (5.0, 5.0, {"5.0"}),
        (0.0, 0.0, {"0.00"}),
    ],
)
def test_ticks_are_round_numbers(low, high, some):
    marks = Axis().marks([low, high], 7)
    assert some <= {word for _, word in marks} and 2 <= len(marks) <= 11
    steps = np.diff([value for value, _ in marks])
    np.testing.assert_allclose(steps, steps[0])
    assert len({word for _, word in marks}) == len(marks)


def test_what_is_not_finite_is_left_out():
    chart = Chart(4.0, 3.0)
    chart.line([0, 1, 2, 3], [1.0, math.nan, math.inf, 4.0], BLUE)
    chart.deviations([0, 3], [1.0, 4.0], [math.nan, 0.5], BLUE)
    root = read(chart.source())
    assert len(places(root)) == 2 and len(list(root.iter(f"{SVG}polyline"))) == 2
    assert "nan" not in base64.b64decode(chart.source().partition(",")[2]).decode().lower()
    assert words(read(Chart(4.0, 3.0).source()))  # without data, with axes all the same


def test_long_lines_keep_their_peaks():
    values = np.sin(np.arange(100_000) / 9000)
    values[[12_345, 60_000]] = 5.0, -7.0
    chart = Chart(4.0, 3.0, y=Axis(low=-7.0, high=5.0))
    chart.line(range(len(values)), values.tolist(), BLUE)
    found = places(read(chart.source()))
    assert len(found) <= MOST_POINTS + 4
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    short = Chart(4.0, 3.0, y=Axis(low=-7.0, high=5.0))
    short.line([0, 12_345, 60_000, 99_999], [0.0, 5.0, -7.0, values[-1]], BLUE)
    assert {*places(read(short.source()))[1:]} <= {*found}


def test_bars_bands_and_intervals():
    chart = Chart(4.0, 3.0, y=Axis(low=0.0))
    chart.bars([0.0, 1.0, 2.0, 3.0], [4, 0, 2], BLUE)
    chart.band([0.0, 3.0], [1.0, 1.0], [2.0, 3.0], ORANGE)
    root = read(chart.source())
    bars = [e for e in root.iter(f"{SVG}rect") if e.get("width") != "100%"]
    heights = [float(bar.get("height")) for bar in bars]
    assert len(bars) == 2 and heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    area = next(root.iter(f"{SVG}polygon")).get("points").split()
    assert len(area) == 4 and area[0].split(",")[0] == area[3].split(",")[0]


def test_a_legend_hides_as_few_points_as_it_can():
    """A rising line leaves two corners free, a falling one the other two."""
    for ends, left in (([0.0, 1.0], True), ([1.0, 0.0], False)):
        chart = Chart(4.0, 3.0)
        chart.line(
            np.linspace(0, 1, 50).tolist(), np.linspace(*ends, 50).tolist(), BLUE, label="name"
        )
        x, _ = text_at(read(chart.source()), "name")
        assert (x < 150) == left


def test_names_are_data():
    """Tags, formulas, control characters and every script; in charts, matrices and legends."""
    names = ["<b>&\"'", "$x$ and $y", "\x1b[31mred\x07", "grün 青 кот"]
    shown = ["<b>&\"'", "$x$ and $y", "[31mred", "grün 青 кот"]
    for name, expected in zip(names, shown, strict=True):
        chart = Chart(4.0, 3.0, Axis(name), title=name)
        chart.line([0, 1], [0, 1], BLUE, label=name)
        assert words(read(chart.source())).count(expected) == 3
    for turned in (True, False):
        source = matrix_source(np.eye(4), lambda i, j: "", names, 0.32, turned=turned)
        assert all(words(read(source)).count(name) == 2 for name in shown)
    assert words(read(legend_source(names, [(1, 2, 3)] * 4))) == shown


def test_a_matrix_shades_the_cells_of_its_rows():
    fraction = np.array([[1.0, 0.0], [0.25, 0.75]])
    source = matrix_source(fraction, lambda i, j: f"{i}{j}", ["a", "b"], 0.32, turned=False)
    root = read(source)
    cells = [e for e in root.iter(f"{SVG}rect") if e.get("fill", "").startswith("rgb")][1:]
    assert [cell.get("fill") for cell in cells] == [shade(1.0), shade(0.25), shade(0.75)]
    first, below, last = ((float(c.get("x")), float(c.get("y"))) for c in cells)
    assert first[0] == below[0] < last[0] and first[1] < below[1] == last[1]
    assert text_at(root, "a")[1] < text_at(root, "b")[1]  # rows are true classes
    assert text_at(root, "01")[0] > text_at(root, "00")[0]
    assert shade(0.0) == "rgb(247,251,255)" and shade(1.0) == "rgb(8,48,107)"


def test_long_names_are_truncated():
    assert shortened("short", 5) == "short" and shortened("longer", 5) == "long…"
