"""Charts as SVG: lines, points, bars and bands over one pair of axes; matrices; legends of colors.

Written as text, since a plotting library takes longer to import than all else that a report needs.
The browser renders the words, so that every script is shown. Lengths are in points, 72 an inch.
"""

import base64
import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from headstart.progress import plain

BLUE, ORANGE, GRAY = "#2364aa", "#d1603d", "#9aa5b1"
FONT = "'DejaVu Sans', Verdana, sans-serif"
LARGE, SMALL = 10.0, 8.0  # sizes of letters
INCH, TICK, GAP = 72.0, 3.5, 4.0
MARGIN = 0.05  # of the range of the data, on each side
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # between ticks, times a power of ten
MOST_TICKS = 9
MOST_POINTS = 1000  # of a line; of a longer one, the lowest and the highest of each part are shown
# ColorBrewer's Blues, from 0 to 1
SHADES = np.array(
    [
        (247, 251, 255),
        (222, 235, 247),
        (198, 219, 239),
        (158, 202, 225),
        (107, 174, 214),
        (66, 146, 198),
        (33, 113, 181),
        (8, 81, 156),
        (8, 48, 107),
    ]
)
Point = tuple[float, float]
Place = Callable[[float, float], Point]  # data → points from the left and from the top


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        label: What it shows.
        low: Where it begins; None leaves a margin below the data.
        high: Where it ends; None leaves a margin above the data.
        log: Whether equal lengths are equal ratios.
        percent: Whether fractions are written as percentages.
        ticks: Values that are marked, with their words; None chooses round ones.
    """

    label: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    percent: bool = False
    ticks: Sequence[tuple[float, str]] | None = None

    def bounds(self, values: Sequence[float]) -> tuple[float, float]:
        """Where the axis begins and ends for some data; logarithms where it is logarithmic."""
        ends = [self._forward(value) for value in (self.low, self.high) if value is not None]
        within = [*map(self._forward, values), *ends] or [0.0, 1.0]
        low, high = min(within), max(within)
        margin = MARGIN * (high - low) or abs(high) * MARGIN or MARGIN
        return (
            low - margin if self.low is None else self._forward(self.low),
            high + margin if self.high is None else self._forward(self.high),
        )

    def scale(self, values: Sequence[float]) -> Callable[[float], float]:
        """Data → 0 at the beginning of the axis to 1 at its end."""
        low, high = self.bounds(values)
        return lambda value: (self._forward(value) - low) / (high - low)

    def marks(self, values: Sequence[float], most: int) -> list[tuple[float, str]]:
        """Values to mark and their words, at most about `most` of them."""
        if self.ticks is not None:
            return list(self.ticks)
        low, high = self.bounds(values)
        raw = (high - low) / max(1, min(MOST_TICKS, most))
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(each * power for each in STEPS if each * power >= raw * (1 - 1e-9))
        first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
        return [(i * step, self._words(i * step, step)) for i in range(first, last + 1)]

    def _forward(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _words(self, value: float, step: float) -> str:
        """A value with as many digits as the step between ticks has."""
        if self.percent:
            value, step = 100 * value, 100 * step
        digits = next((d for d in range(5) if abs(round(step, d) - step) < 1e-9 * step), None)
        if digits is None or step >= 1e6:
            return f"{value:.4g}".replace("e+0", "e").replace("e-0", "e-").replace("-", "−")
        return f"{value:.{digits}f}".replace("-", "−") + "%" * self.percent


@dataclass
class Chart:
    """Lines, points, bars and bands over one pair of axes; later ones lie above earlier ones.

    Args:
        width: In inches.
        height: In inches.
        x: The horizontal axis.
        y: The vertical axis.
        title: Above the axes.
        title_size: Of its letters.
    """

    width: float
    height: float
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""
    title_size: float = LARGE

    def __post_init__(self) -> None:
        self._points: list[Point] = []  # of everything, for the range of the axes
        self._shapes: list[Callable[[Place], str]] = []
        self._legend: list[tuple[str, str, bool]] = []  # words, color, whether with points

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        color: str,
        *,
        label: str = "",
        width: float = 1.5,
        alpha: float = 1.0,
        dashed: bool = False,
        marked: bool = False,
    ) -> None:
        """Points (x, y) joined by a line; those that are not finite are left out."""
        points = _thinned(self._finite(x, y))
        style = f'fill="none" stroke="{color}" stroke-width="{width:g}"'
        style += f' stroke-opacity="{alpha:g}"' * (alpha < 1)
        style += ' stroke-dasharray="3.7 1.6"' * dashed
        self._shapes.append(lambda at: f'<polyline points="{_path(points, at)}" {style}/>')
        if marked:
            self.points([p[0] for p in points], [p[1] for p in points], color, size=2.0)
        if label:
            self._legend.append((label, color, marked))

    def points(
        self,
        x: Sequence[float],
        y: Sequence[float],
        color: str,
        *,
        size: float | Sequence[float] = 3.0,
        alpha: float = 1.0,
    ) -> None:
        """Discs of a radius, or of one each."""
        count = len(x)
        sizes = [float(size)] * count if isinstance(size, int | float) else list(size)
        points = self._finite(x, y, sizes)

        def draw(at: Place) -> str:
            places = ((*at(a, b), radius) for a, b, radius in points)
            discs = dict.fromkeys(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}"/>' for a, b, radius in places
            )
            return f'<g fill="{color}" fill-opacity="{alpha:g}">{"".join(discs)}</g>'

        self._shapes.append(draw)

    def deviations(
        self, x: Sequence[float], y: Sequence[float], by: Sequence[float], color: str
    ) -> None:
        """A line of `by` above and below each point."""
        for a, b, d in zip(x, y, by, strict=True):
            if math.isfinite(b) and math.isfinite(d):
                self.line([a, a], [b - d, b + d], color)
                self._shapes.append(partial(_caps, (a, b - d), (a, b + d), color))

    def band(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str
    ) -> None:
        """The area between two lines."""
        around = [*self._finite(x, low), *self._finite(x, high)[::-1]]
        style = f'fill="{color}" fill-opacity="0.18"'
        self._shapes.append(lambda at: f'<polygon points="{_path(around, at)}" {style}/>')

    def bars(self, edges: Sequence[float], heights: Sequence[float], color: str) -> None:
        """A bar from 0 to each height, between neighbouring edges."""
        boxes = list(zip(pairwise(edges), heights, strict=True))
        self._finite(edges, [0.0] * len(edges))
        self._finite(edges[1:], heights)

        def draw(at: Place) -> str:
            corners = ((*at(left, top), *at(right, 0)) for (left, right), top in boxes if top)
            return f'<g fill="{color}">{"".join(_box(*each) for each in corners)}</g>'

        self._shapes.append(draw)

    def text(self, x: float, y: float, words: str, color: str = GRAY) -> None:
        """Small words that end left of a point."""

        def draw(at: Place) -> str:
            left, top = at(x, y)
            return _text(left - GAP, top, words, "end", SMALL, color)

        self._shapes.append(draw)

    def _finite(self, *columns: Sequence[float]) -> list[Any]:
        """Rows of finite numbers; their first two count for the range of the axes."""
        rows = [
            tuple(map(float, row))
            for row in zip(*columns, strict=True)
            if all(math.isfinite(value) for value in row)
        ]
        self._points += [(row[0], row[1]) for row in rows]
        return rows

    def source(self) -> str:
        """The chart as a data address of SVG."""
        width, height = INCH * self.width, INCH * self.height
        xs, ys = ([point[i] for point in self._points] for i in (0, 1))
        title = (self.title_size + 2 * GAP) * bool(self.title)
        top, bottom = GAP + title, height - 2 * LARGE - TICK - 3 * GAP
        y_marks = self.y.marks(ys, int((bottom - top) / (2 * LARGE)))
        left = 2 * GAP + TICK + max((text_width(words, LARGE) for _, words in y_marks), default=0)
        left += (LARGE + 1.5 * GAP) * bool(self.y.label)
        x_marks = self.x.marks(xs, int((width - left) / (3 * LARGE)))
        right = width - max(3 * GAP, GAP + text_width(x_marks[-1][1], LARGE) / 2)
        across, up = self.x.scale(xs), self.y.scale(ys)

        def at(x: float, y: float) -> Point:
            return left + across(x) * (right - left), bottom - up(y) * (bottom - top)

        parts = []
        for value, words in x_marks:
            x = left + across(value) * (right - left)
            parts += [_grid(x, top, x, bottom), _rule(x, bottom, x, bottom + TICK)]
            parts.append(_text(x, bottom + TICK + GAP + 0.7 * LARGE, words, "middle"))
        for value, words in y_marks:
            y = bottom - up(value) * (bottom - top)
            parts += [_grid(left, y, right, y), _rule(left - TICK, y, left, y)]
            parts.append(_text(left - TICK - GAP, y + 0.35 * LARGE, words, "end"))
        parts += [_rule(left, top, left, bottom), _rule(left, bottom, right, bottom)]
        middle, center = (left + right) / 2, (top + bottom) / 2
        parts.append(_text(middle, height - GAP, self.x.label, "middle"))
        parts.append(_text(GAP + 0.7 * LARGE, center, self.y.label, "middle", turned=True))
        parts.append(_text(middle, GAP + self.title_size, self.title, "middle", self.title_size))
        parts += [shape(at) for shape in self._shapes]
        parts.append(self._legend_at((left, top, right, bottom), [at(*p) for p in self._points]))
        return _source(width, height, parts)

    def _legend_at(self, box: tuple[float, float, float, float], points: Sequence[Point]) -> str:
        """The legend, in the corner where it hides the fewest points."""
        if not self._legend:
            return ""
        left, top, right, bottom = box
        width = 28 + max(text_width(words, SMALL) for words, _, _ in self._legend) + 2 * GAP
        height = 1.5 * SMALL * len(self._legend) + GAP

        def hidden(corner: Point) -> int:
            x, y = corner
            return sum(x <= a <= x + width and y <= b <= y + height for a, b in points)

        corners = [(x, y) for y in (top, bottom - height) for x in (right - width, left + GAP)]
        x, y = min(corners, key=hidden)
        parts = []
        for words, color, marked in self._legend:
            y += 1.5 * SMALL
            middle = y - 0.35 * SMALL
            parts.append(_rule(x, middle, x + 20, middle, color, 1.5))
            if marked:
                parts.append(f'<circle cx="{x + 10:.1f}" cy="{middle:.1f}" r="2" fill="{color}"/>')
            parts.append(_text(x + 28, y, words, "start", SMALL))
        return "".join(parts)


def matrix_source(
    fraction: np.ndarray[Any, Any],
    words: Callable[[int, int], str],
    names: Sequence[str],
    growth: float,
    *,
    turned: bool,
    size: float = SMALL,
) -> str:
    """A confusion matrix as a data address of SVG: a shade and words in each cell.

    Args:
        fraction: From 0 to 1, (V, V); rows are true classes.
        words: What is written in row i, column j; "" for nothing.
        names: Of the V classes.
        growth: Inches by which the matrix grows with each class, up to 9.
        turned: Whether the names of the columns are written upwards.
        size: Of the letters in the cells.
    """
    count = len(names)
    longest = max(text_width(name, SMALL) for name in names)
    left, top = LARGE + 3 * GAP + TICK + longest, GAP
    side = INCH * min(9.0, 2.2 + growth * count) - left
    cell = side / count
    below = longest if turned else SMALL
    width, height = left + side + 3 * GAP, top + side + TICK + below + LARGE + 4 * GAP
    cells, labels = [_box(left, top, left + side, top + side, shade(0.0))], []
    for i, j in product(range(count), repeat=2):
        x, y, value = left + j * cell, top + i * cell, float(fraction[i, j])
        if value:
            cells.append(_box(x, y, x + cell, y + cell, shade(value)))
        color = "#ffffff" if value > 0.5 else "#000000"
        center, base = x + cell / 2, y + cell / 2 + 0.35 * size
        labels.append(_text(center, base, words(i, j), "middle", size, color))
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        labels.append(_rule(left - TICK, top + middle, left, top + middle))
        labels.append(_rule(left + middle, top + side, left + middle, top + side + TICK))
        labels.append(_text(left - TICK - GAP, top + middle + 0.35 * SMALL, name, "end", SMALL))
        x, y = left + middle, top + side + TICK + GAP
        if turned:
            labels.append(_text(x + 0.35 * SMALL, y, name, "end", SMALL, turned=True))
        else:
            labels.append(_text(x, y + 0.7 * SMALL, name, "middle", SMALL))
    frame = f'<rect x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}"'
    labels.append(f'{frame} fill="none" stroke="#000000" stroke-width="0.8"/>')
    labels.append(_text(left + side / 2, height - GAP, "predicted", "middle"))
    labels.append(_text(GAP + 0.7 * LARGE, top + side / 2, "true", "middle", turned=True))
    return _source(
        width, height, [f'<g shape-rendering="crispEdges">{"".join(cells)}</g>', *labels]
    )


def legend_source(names: Sequence[str], colors: Iterable[Sequence[int]]) -> str:
    """Names beside their colors (red, green, blue, 0 to 255), as a data address of SVG."""
    columns = min(6, max(1, len(names)))
    width, row = 8.4 * INCH, 0.24 * INCH
    parts = []
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = GAP + i % columns * (width / columns), 2 * GAP + i // columns * row
        parts.append(_box(x, y, x + 16, y + 6, f"rgb({','.join(str(int(c)) for c in color)})"))
        parts.append(_text(x + 20, y + 6, name, "start", SMALL))
    return _source(width, 0.25 * INCH + row * math.ceil(len(names) / columns), parts)


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def shade(value: float) -> str:
    """A blue, the darker the higher a value from 0 to 1."""
    places = np.linspace(0, 1, len(SHADES))
    color = (round(float(np.interp(value, places, channel))) for channel in SHADES.T)
    return f"rgb({','.join(map(str, color))})"


def text_width(words: str, size: float) -> float:
    """About how wide words are."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in words)
    return size * (0.6 * (len(words) - wide) + wide)


def _thinned(points: list[Point]) -> list[Point]:
    """Fewer points of a long line that look the same: each part's lowest and highest."""
    if len(points) <= MOST_POINTS:
        return points
    length = math.ceil(2 * len(points) / MOST_POINTS)
    kept = [points[0]]
    for start in range(0, len(points), length):
        rows = range(start, min(start + length, len(points)))
        lowest, highest = (pick(rows, key=lambda i: points[i][1]) for pick in (min, max))
        kept += [points[i] for i in sorted({lowest, highest})]
    return [*kept, points[-1]]


def _path(points: Iterable[Point], at: Place) -> str:
    """Where points lie, for the attribute of a line or of an area."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))


def _caps(low: Point, high: Point, color: str, at: Place) -> str:
    """The ends of an interval."""
    return "".join(_rule(x - 2, y, x + 2, y, color) for x, y in (at(*low), at(*high)))


def _box(left: float, top: float, right: float, bottom: float, fill: str = "") -> str:
    """A filled rectangle."""
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    color = f' fill="{fill}"' * bool(fill)
    return f'<rect x="{left:.1f}" y="{top:.1f}" {size}{color}/>'


def _rule(
    x: float, y: float, to_x: float, to_y: float, color: str = "#000000", width: float = 0.8
) -> str:
    """A straight line."""
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width:g}"/>'


def _grid(x: float, y: float, to_x: float, to_y: float) -> str:
    """A light line."""
    return _rule(x, y, to_x, to_y, "#ebebeb")


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str,
    size: float = LARGE,
    color: str = "#000000",
    *,
    turned: bool = False,
) -> str:
    """Words; names are data, so that nothing in them is a tag or a control character."""
    if not words:
        return ""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' * turned
    style = f'text-anchor="{anchor}" font-size="{size:g}" fill="{color}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}{turn}>{html.escape(plain(words))}</text>'


def _source(width: float, height: float, parts: Iterable[str]) -> str:
    """A data address of SVG."""
    size = f'width="{width:.1f}pt" height="{height:.1f}pt" viewBox="0 0 {width:.1f} {height:.1f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}">'
    text = f'{head}<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
