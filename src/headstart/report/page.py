"""The report of a run: one self-contained page, and a model card.

Tasks add `Section`s; nothing here knows what they are about.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.checkpoint import atomic_write
from headstart.errors import MissingExtraError
from headstart.progress import duration, metric_text
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "report.html"
INK, BLUE, ORANGE, GREY = "#1c2733", "#2364aa", "#d1603d", "#9aa5b1"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; numbers are given as text already."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A small picture with a caption, perhaps with a second one below it.

    Data addresses (see `picture_source`).
    """

    source: str
    caption: str
    below: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, a sentence, and any of a figure, a table and pictures.

    Args:
        title: Heading.
        text: What the reader sees there, in one or two sentences.
        figures: Data addresses of figures, see `figure_source`.
        table: A table.
        pictures: A gallery.
        folded: Whether the section is closed until it is clicked.
        wide: Whether each picture of the gallery takes the whole width.
    """

    title: str
    text: str = ""
    figures: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = field(default_factory=list)
    folded: bool = False
    wide: bool = False


def new_figure(width: float = 6.4, height: float = 3.6) -> "Figure":
    """An empty matplotlib figure in the report's style, sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train") from None
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Any) -> None:  # noqa: ANN401 - matplotlib's axes
    """Takes the frame away that says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def figure_source(figure: "Figure") -> str:
    """A figure as a data address of SVG.

    Its words are drawn by the browser, which knows more scripts than matplotlib's font.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_source(pixels: Any, side: int = 180) -> str:  # noqa: ANN401 - an (H, W, 3) uint8 array
    """A small JPEG of pixels as a data address."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Tiny pictures are shown as the squares they are, not as a blur.
    picture = picture.resize(
        size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def learning_curves(metrics: Sequence[Mapping[str, Any]], headline: str) -> Section | None:
    """Loss and headline by step, training beside validation."""
    steps = [line for line in metrics if "loss" in line]
    if len(steps) < 2:
        return None
    judged = [line for line in metrics if "validation" in line]
    shown = [
        name
        for name in ("loss", headline)
        if any(name in line for line in [*steps, *(each["validation"] for each in judged)])
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
            for line in judged
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
        axes.set_title(name.replace("_", " "))
        if name == "loss" and min(y) >= 0:
            axes.set_ylim(0, 1.1 * max(y) or 1)
        plain_axes(axes)
        axes.legend(frameon=False, fontsize=8)
        figures.append(figure_source(figure))
    text = (
        "Training values are of examples as the network saw them, augmented and with dropout, so"
        " they may lie below validation."
    )
    return Section("Learning curves", text, figures)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Running mean over the last `width` values."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / len(values[max(0, i + 1 - width) : i + 1])
        for i in range(len(values))
    ]


def render(**values: Any) -> str:  # noqa: ANN401 - what the template shows
    """The page of the template. Without `results` it is a page of sections that is about no run."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "train") from None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values)
    return page


def write_report(
    folder: Path,
    task: Task,
    evaluations: Mapping[str, Evaluation],
    results: Mapping[str, Any],
    recipe: Recipe,
    metrics: Sequence[Mapping[str, Any]],
    draws: Section | None = None,
) -> None:
    """Writes `report.html`."""
    judged = evaluations.get("test") or evaluations.get("validation")
    sections = [
        section
        for section in [draws, learning_curves(metrics, task.headline)]
        if section is not None
    ]
    if judged is not None:
        sections += task.report(judged)
    page = render(
        title=f"{task.name.replace('-', ' ').capitalize()} with {Path(results['model']).name}",
        found=[*task.found()[:1], *results["notes"]],
        judged=judged,
        headline=task.headline.replace("_", " "),
        headline_text=metric_text(task.headline, judged.metrics[task.headline]) if judged else "",
        interval=(
            [metric_text(task.headline, bound) for bound in judged.interval]
            if judged and judged.interval
            else None
        ),
        metrics=(
            [
                (name.replace("_", " "), metric_text(name, value))
                for name, value in judged.metrics.items()
            ]
            if judged
            else []
        ),
        sections=sections,
        results=results,
        time=duration(results["seconds"]),
        recipe=recipe.to_dict(),
        use=task.card().replace("FOLDER", str(folder)),
    )
    atomic_write(folder / "report.html", page)


def write_card(folder: Path, task: Task, results: Mapping[str, Any], recipe: Recipe) -> None:
    """Writes `README.md`, with the front matter that the Hub reads."""
    evaluation = results["evaluations"].get("test") or results["evaluations"].get("validation")
    lines = [
        "---",
        "library_name: headstart",
        f"pipeline_tag: {task.name}",
        f"base_model: {results['model']}",
        "tags: [headstart]",
        "---",
    ]
    lines += ["", f"# {Path(results['model']).name}, tuned for {task.name.replace('-', ' ')}", ""]
    lines += [*(f"- {line}" for line in [*task.found()[:1], *results["notes"]]), ""]
    if evaluation:
        split = "test" if "test" in results["evaluations"] else "validation"
        lines += [
            f"## Result on {evaluation['examples']} {split} examples",
            "",
            "| measure | value |",
            "| --- | --- |",
        ]
        lines += [
            f"| {name.replace('_', ' ')} | {metric_text(name, value)} |"
            for name, value in evaluation["metrics"].items()
        ]
        if evaluation["confidence_interval_95"]:
            low, high = (
                metric_text(task.headline, bound) for bound in evaluation["confidence_interval_95"]
            )
            lines += [
                "",
                f"95 % confidence interval of {task.headline.replace('_', ' ')}: {low} to {high}.",
            ]
        if results["draws"]:
            mean = results["draws"]["metrics"][task.headline]
            low, high = (
                metric_text(task.headline, bound) for bound in mean["confidence_interval_95"]
            )
            count = len(results["draws"]["seeds"])
            lines += [
                "",
                (
                    f"Over {count} draws of the training examples:"
                    f" {metric_text(task.headline, mean['mean'])} on average, "
                ),
            ]
            lines[-1] += (
                f"95 % interval {low} to {high} (Student's t). This model is of the first draw."
            )
    else:
        lines += ["The model was not judged: no data was held out."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        task.card().replace("FOLDER", "path/to/this/folder").rstrip(),
        "```",
        "",
    ]
    lines += [
        "## Training",
        "",
        (
            f"Recipe `{recipe.name}`: {recipe.steps} steps of {recipe.batch_size} examples,"
            f" {recipe.optimizer} at {recipe.lr:g}, {recipe.schedule} schedule, {recipe.precision},"
            f" seed {recipe.seed}; every value is in `recipe.yaml`."
        ),
        f"{duration(results['seconds'])} on {results['device']}, {results['finished']}.",
        f"Data fingerprint `{results['data_fingerprint']}`.",
        "",
    ]
    if results["differences"]:
        lines += ["## In transformers", "", "This folder computes something else there:", ""]
        lines += [*(f"- {each}" for each in results["differences"]), ""]
    atomic_write(folder / "README.md", "\n".join(lines))
