"""Pieces of a self-contained page: sections, tables, figures, images.

Nothing here knows what they are about.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import MissingExtraError
from headstart.progress import metric_title, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "report.html"
BLUE, ORANGE, GRAY = "#2364aa", "#d1603d", "#9aa5b1"
# inches around a chart for a title, for the names of both axes and for short numbers beside them
LEFT, RIGHT, BOTTOM, TOP = 0.8, 0.25, 0.52, 0.32


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; numbers are given as text already."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class GalleryImage:
    """A small image with a caption, perhaps with a second one below it.

    Data addresses (see `image_source`).
    """

    source: str
    caption: str
    below: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, a sentence, and any of a figure, a table and images.

    Args:
        title: Heading.
        text: What the reader sees there, in one or two sentences.
        figures: Data addresses of figures, see `figure_source`.
        table: A table.
        images: A gallery of images.
        folded: Whether the section is closed until it is clicked.
        wide: Whether each image of the gallery takes the whole width.
    """

    title: str
    text: str = ""
    figures: Sequence[str] = ()
    table: Table | None = None
    images: Sequence[GalleryImage] = field(default_factory=list)
    folded: bool = False
    wide: bool = False


def new_figure(width: float = 6.4, height: float = 3.6, *, short: bool = False) -> "Figure":
    """An empty matplotlib figure in the report's style.

    Args:
        width: In inches.
        height: In inches.
        short: Whether the words beside its one chart are numbers of at most five digits. Other
            words are measured, which takes longer than drawing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train") from None
    figure = Figure(figsize=(width, height), layout=None if short else "constrained")
    if short:
        figure.subplots_adjust(LEFT / width, BOTTOM / height, 1 - RIGHT / width, 1 - TOP / height)
    return figure


def plain_axes(axes: Any) -> None:
    """Removes the frame and adds a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def figure_source(figure: "Figure") -> str:
    """A figure as a data address of SVG.

    Its words are rendered by the browser, which knows more scripts than matplotlib's font.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names are data: no formulas, no control characters
        text.set_parse_math(False)
        text.set_text(plain(text.get_text()))
    buffer = io.BytesIO()
    style = {"svg.fonttype": "none", "text.parse_math": False}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_source(pixels: Any, side: int = 180) -> str:
    """A small JPEG of pixels as a data address."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Tiny images are shown as the squares they are, not as a blur.
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def learning_curves(metrics: Sequence[Mapping[str, Any]], headline: str) -> Section | None:
    """Loss and headline by step, training beside validation."""
    steps = [line for line in metrics if "loss" in line]
    if len(steps) < 2:
        return None
    evaluated = [line for line in metrics if "validation" in line]
    shown = [
        name
        for name in ("loss", headline)
        if any(name in line for line in [*steps, *(each["validation"] for each in evaluated)])
    ]
    figures = []
    for name in shown:  # one figure each, so that a phone shows them one below the other
        figure = new_figure(4.4, 3.0)
        axes = figure.subplots()
        x, y = (
            [line["step"] for line in steps if name in line],
            [line[name] for line in steps if name in line],
        )
        if y:
            axes.plot(x, y, color=BLUE, alpha=0.3, linewidth=0.8)
            axes.plot(
                x, _smooth(y, max(1, len(y) // 25)), color=BLUE, label="training (running mean)"
            )
        points = [
            (line["step"], line["validation"][name])
            for line in evaluated
            if name in line["validation"]
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=ORANGE,
                marker="o",
                markersize=4,
                label="validation",
            )
        axes.set_xlabel("step")
        axes.set_title(metric_title(name))
        if name == "loss" and min(y) >= 0:
            axes.set_ylim(0, 1.1 * max(y) or 1)
        plain_axes(axes)
        axes.legend(frameon=False, fontsize=8)
        figures.append(figure_source(figure))
    text = (
        "Training values are of examples as the network saw them, augmented and with dropout, so"
        " they may lie below validation."
    )
    if parts := {line["examples"] for line in evaluated if "examples" in line}:
        text += (
            f" Validation along the way is of {max(parts)} random examples, always the same; the"
            " results of this page are of all."
        )
    return Section("Learning curves", text, figures)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Running mean over the last `width` values."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / len(values[max(0, i + 1 - width) : i + 1])
        for i in range(len(values))
    ]


def render(**values: Any) -> str:
    """The page of the template. Without `results` it is a page of sections that is about no run."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "train") from None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values)
    return plain(page)
