"""The report and the model card of a finished run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.progress import duration, metric_text, metric_title
from headstart.recipe import Recipe
from headstart.report.enough import enough_sections
from headstart.report.page import (
    BLUE,
    Section,
    Table,
    figure_source,
    learning_curves,
    new_figure,
    plain_axes,
    render,
)
from headstart.report.sections import sections_of
from headstart.report.unknown import reference_sections
from headstart.tasks.base import Evaluation, Task
from headstart.tasks.result import Result, Spread

PAGES = ("report.html", "README.md")


def write_pages(
    task: Task,
    result: Result,
    results: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    seen: Callable[[int], None],
) -> None:
    """Writes `README.md` (the model card) and `report.html` into the result folder.

    Args:
        task: The evaluated task.
        result: What the run made.
        results: What `results.json` holds.
        metrics: What `metrics.jsonl` holds.
        seen: Receives how many more of the two are written.
    """
    assert result.folder is not None
    write_card(result.folder, task, results, result.recipe)
    seen(1)
    first = [] if result.spread is None else [spread_section(result.spread, task.headline)]
    if result.forecast is not None:
        first += enough_sections(result.forecast)
    last = reference_sections(result.reference)
    first += heads_sections(result.trials)
    write_report(
        result.folder, task, result.evaluations, results, result.recipe, metrics, first, last
    )
    seen(1)


def spread_section(spread: Spread, headline: str) -> Section:
    """The results of the same training on several random subsets."""
    figure = new_figure(5.0, 1.6)
    axes, mean = figure.subplots(), spread.mean(headline)
    axes.scatter(spread.values[headline], [0] * len(spread.seeds), color=BLUE, alpha=0.7)
    half = mean - spread.interval(headline)[0]
    axes.errorbar([mean], [0.5], xerr=half, fmt="o", color=BLUE, capsize=4)
    axes.set(yticks=[0, 0.5], ylim=(-0.4, 0.9), xlabel=metric_title(headline))
    axes.set_yticklabels(["each draw", "mean"])
    plain_axes(axes)
    rows = []
    for name, values in spread.values.items():
        bounds = " to ".join(metric_text(name, bound) for bound in spread.interval(name))
        each = ", ".join(metric_text(name, value) for value in values)
        rows.append([metric_title(name), metric_text(name, spread.mean(name)), bounds, each])
    text = (
        f"The same training on {len(spread.seeds)} random subsets of the training examples, all"
        f" evaluated on the same {spread.split} examples. The interval (Student's t) is of the mean"
        " over such subsets. The model in this folder, and everything below on this page, is that"
        " of the first subset; none was chosen by its score."
    )
    table = Table(("metric", "mean", "95 % interval", "draws"), rows)
    return Section("Other draws", text, [figure_source(figure)], table)


def heads_sections(trials: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The heads that were compared on the frozen features; none where there was one."""
    if len(trials) < 2:
        return []
    rows = [
        [
            ("→ " if each["chosen"] else "") + each["name"],
            f"{each['loss']:.3f}",
            f"{each['gain']:+.3f} ± {each['error']:.3f}" if i else "",
            f"{100 * each['accuracy']:.1f} %" if "accuracy" in each else "",
        ]
        for i, each in enumerate(trials)
    ]
    text = (
        "Cross-validated on the training examples, with near duplicates in one fold. The gain is"
        " that of the loss over the first row, with its standard error; a head takes the place of"
        " a simpler one only where the gain exceeds that error. The chosen head is marked."
    )
    head = ("head", "held-out loss", "gain", "held-out accuracy")
    return [Section("Heads that were compared", text, table=Table(head, rows), folded=True)]


def write_report(
    folder: Path,
    task: Task,
    evaluations: Mapping[str, Evaluation],
    results: Mapping[str, Any],
    recipe: Recipe,
    metrics: Sequence[Mapping[str, Any]],
    first: Sequence[Section] = (),
    last: Sequence[Section] = (),
) -> None:
    """Writes `report.html`.

    Args:
        folder: The result folder.
        task: The evaluated task.
        evaluations: By split.
        results: What `results.json` holds.
        recipe: The resolved recipe.
        metrics: What `metrics.jsonl` holds.
        first: Sections before those of the evaluation.
        last: Sections after them.
    """
    evaluated = evaluations.get("test") or evaluations.get("validation")
    curves = learning_curves(metrics, task.headline)
    sections = [*first, *([] if curves is None else [curves])]
    if evaluated is not None:
        sections += sections_of(task, evaluated)
    sections += last
    page = render(
        title=(
            f"{task.name.replace('-', ' ').capitalize()} of {results['data']} with"
            f" {Path(results['model']).name}"
        ),
        found=[*task.found()[:1], *results["notes"]],
        evaluated=evaluated,
        headline=metric_title(task.headline),
        headline_text=metric_text(task.headline, evaluated.metrics[task.headline])
        if evaluated
        else "",
        interval=(
            [metric_text(task.headline, bound) for bound in evaluated.interval]
            if evaluated and evaluated.interval
            else None
        ),
        metrics=(
            [
                (metric_title(name), metric_text(name, value))
                for name, value in evaluated.metrics.items()
            ]
            if evaluated
            else []
        ),
        sections=sections,
        results=results,
        time=duration(results["seconds"]),
        recipe=recipe.relevant(),
        use=task.card().replace("FOLDER", str(folder)),
    )
    atomic_write(folder / PAGES[0], page)


def describe_training(recipe: Recipe) -> str:
    """What was trained, in one or two sentences."""
    if recipe.tune == "head":
        return (
            "A linear head was fitted on the features of the pretrained network and chosen by"
            f" cross-validation; every other weight is the pretrained one. Seed {recipe.seed}."
        )
    return (
        f"Recipe `{recipe.name}`: {recipe.steps} steps of {recipe.batch_size} examples,"
        f" {recipe.optimizer} at {recipe.lr:g}, {recipe.schedule} schedule, {recipe.precision},"
        f" seed {recipe.seed}{trained_part(recipe)}; every value is in `recipe.yaml`."
    )


def trained_part(recipe: Recipe) -> str:
    """Which parameters were trained, where not all of them."""
    if recipe.lora_rank:
        return f", LoRA of rank {recipe.lora_rank} and the head alone"
    names = recipe.unfreeze or recipe.freeze
    listed = ", ".join(f"`{name}`" for name in names)
    if not listed:
        return ""
    return f", {listed} alone" if recipe.unfreeze else f", all but {listed}"


def write_card(
    folder: Path,
    task: Task,
    results: Mapping[str, Any],
    recipe: Recipe,
    examples: Sequence[str] | None = None,
) -> None:
    """Writes `README.md`, with the front matter that the Hub reads.

    Args:
        folder: The result folder.
        task: The task of the model.
        results: What `results.json` holds.
        recipe: The resolved recipe.
        examples: Lines about the training data; None describes what the task has read.
    """
    about = task.found()[:1] if examples is None else examples
    lines = [
        "---",
        "library_name: headstart",
        f"pipeline_tag: {task.result_task}",
        f"base_model: {results['model']}",
        "tags: [headstart]",
        "---",
    ]
    lines += ["", f"# {Path(results['model']).name}, tuned for {task.name.replace('-', ' ')}", ""]
    lines += [*(f"- {line}" for line in [*about, *results["notes"]]), ""]
    lines += card_results(results)
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
        describe_training(recipe),
        f"{duration(results['seconds'])} on {results['device']}, {results['finished']}.",
        f"Data fingerprint `{results['data_fingerprint']}`.",
        "",
    ]
    if results["differences"]:
        lines += ["## In transformers", "", "This folder computes something else there:", ""]
        lines += [*(f"- {each}" for each in results["differences"]), ""]
    atomic_write(folder / PAGES[1], "\n".join(lines))


def card_results(results: Mapping[str, Any]) -> list[str]:
    """Lines of the model card: the metrics of the test or else of the validation examples."""
    split = "test" if results["evaluations"].get("test") else "validation"
    headline, evaluation = results["headline"], results["evaluations"].get(split)
    if not evaluation:
        return ["The model was not evaluated: no data was held out."]
    lines = [
        f"## Result on {evaluation['examples']} {split} examples",
        "",
        "| metric | value |",
        "| --- | --- |",
    ]
    lines += [
        f"| {metric_title(name)} | {metric_text(name, value)} |"
        for name, value in evaluation["metrics"].items()
    ]
    if evaluation["confidence_interval_95"]:
        low, high = (metric_text(headline, bound) for bound in evaluation["confidence_interval_95"])
        lines += [
            "",
            f"95 % confidence interval of {metric_title(headline)}: {low} to {high}.",
            "It is for this choice of training examples: others would give another model.",
        ]
    if results["draws"]:
        mean = results["draws"]["metrics"][headline]
        low, high = (metric_text(headline, bound) for bound in mean["confidence_interval_95"])
        count = len(results["draws"]["seeds"])
        lines += [
            "",
            f"Over {count} draws of the training examples:"
            f" {metric_text(headline, mean['mean'])} on average, "
            f"95 % interval {low} to {high} (Student's t). This model is of the first draw.",
        ]
    return lines
