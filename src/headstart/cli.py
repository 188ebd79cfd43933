"""The command line: each command is a few lines over the library.

Nothing heavy is imported before a command needs it, so that `headstart --help` is quick.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

try:
    import typer
except ImportError:
    sys.exit("headstart: the command line needs typer and rich; install them with: pip install 'headstart[train]'")

from headstart.engine import cli as engine_commands
from headstart.errors import HeadstartError, NotFoundError, TrainingInterrupted

app = typer.Typer(
    help="Tune pretrained vision and text models to your own data.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
F = TypeVar("F", bound=Callable[..., None])

DATA_HELP = "Folder of class folders, of train/val/test, or a table (CSV, TSV, JSONL, Parquet), .npz or .tar."
COLUMN_HELP = "Column of a table, such as image=file or label=species."
DataArgument = Annotated[Path, typer.Argument(help=DATA_HELP)]
ModelArgument = Annotated[str, typer.Argument(help="Result folder, Hub id or authors' name.")]
MasksArgument = Annotated[Path | None, typer.Argument(help="Folder of masks, where DATA is a folder of images (semantic segmentation).")]
TaskOption = Annotated[list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the task; may be repeated.")]
ColumnOption = Annotated[list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help=COLUMN_HELP)]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, …; default the best there is.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")]


def command(function: F) -> F:
    """Makes a function a command of its name."""
    app.command()(function)
    return function


@command
def train(  # noqa: PLR0913 - one parameter for each option
    data: DataArgument,
    masks: MasksArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="Result folder; must be new, or hold the run that --resume goes on with.")],
    model: Annotated[str | None, typer.Option(help="Pretrained model: folder, Hub id or authors' name (`headstart models`).")] = None,
    task: Annotated[str, typer.Option(help="What is learned.")] = "image-classification",
    config: Annotated[Path | None, typer.Option(help="YAML file of recipe values.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to take in place of the family's own: hyperrule or finetune.")] = None,
    tune: Annotated[str | None, typer.Option(help="full: every weight. head: only the last layer, on features computed once.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Training examples of each class.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides order, augmentation, dropout and splits.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the weights; warm-up and decays keep their proportions.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate after the warm-up.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in one update.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Examples in one forward pass; default what fits into memory.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    schedule: Annotated[str | None, typer.Option(help="staircase, cosine, poly or constant.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Side of training images before the crop.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Side of what the network sees.")] = None,
    mixup: Annotated[float | None, typer.Option(help="MixUp's a; 0 is off.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Beginning of names of weights that stay as they are; may be repeated.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other recipe value; may be repeated.")] = None,
    val: Annotated[Path | None, typer.Option(help="Validation data, if it is elsewhere.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test data, if it is elsewhere.")] = None,
    val_fraction: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share held out where the data has no validation split.")] = 0.2,
    column: ColumnOption = None,
    option: TaskOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Go on without images that cannot be read.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and stop.")] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    budget: Annotated[str | None, typer.Option(help="Time that everything may take, such as 10m; the recipe is cut to fit.")] = None,
) -> None:
    """Tune a pretrained model to your data.

    Example: [bold]headstart train photos/ --model BiT-M-R50x1 --out runs/photos[/bold]
    """
    if model is not None:
        _check_model(model)
    from headstart.train.progress import progress_for_terminal
    from headstart.train.run import train as run

    values: dict[str, Any] = {
        "tune": tune, "seed": seed, "steps": steps, "lr": lr, "batch_size": batch_size, "micro_batch": micro_batch, "optimizer": optimizer,
        "schedule": schedule, "resize": resize, "crop": crop, "mixup": mixup, "precision": precision,
        "freeze": tuple(freeze) if freeze else None,
    }  # fmt: skip
    values |= {name: _value(text) for name, text in _pairs(set_, "--set").items()}
    run(
        data, model=model, out=out, task=task, config=config, recipe=recipe, resume=resume, dry_run=dry_run, shots=shots,
        val_fraction=val_fraction, skip_bad=skip_bad, columns=_pairs(column, "--column"), validation=val, test=test,
        task_options=_task_options(option, masks), device=device, workers=workers, budget=budget,
        progress=progress_for_terminal(), **values,
    )  # fmt: skip


@command
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    masks: MasksArgument = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default the last of these that there is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    column: ColumnOption = None,
    option: TaskOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Go on without images that cannot be read.")] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Judge a tuned model on labelled data."""
    _check_model(model)
    from headstart.train.progress import metric_text
    from headstart.train.run import evaluate as run

    columns, options = _pairs(column, "--column"), _task_options(option, masks)
    job, found = run(model, data, columns=columns, skip_bad=skip_bad, split=split, task_options=options, device=device, workers=workers)
    if as_json:
        values = {"split": found.split, "examples": found.examples, "metrics": found.metrics, "confidence_interval_95": found.interval}
        print(json.dumps(values, indent=2))
        return
    rows = [(name.replace("_", " "), metric_text(name, value)) for name, value in found.metrics.items()]
    if found.interval:
        rows.insert(1, ("95 % interval", " to ".join(metric_text(job.headline, bound) for bound in found.interval)))
    _print_table(f"{found.examples} {found.split} examples", ("measure", "value"), rows)


@command
def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Labels to give of each image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for what is painted: masks and overlays, reconstructions.")] = Path("predictions"),
    device: DeviceOption = None,
) -> None:
    """Say what is in pictures: classes, or (segmentation, masked image modelling) pictures in --out."""
    from headstart.pipelines import pipeline, task_of

    _check_model(model)
    files, task = _image_files(images), task_of(model)
    if task in ("semantic-segmentation", "masked-image-modeling"):
        _paint(pipeline(task, model, device=device), files, out, top, as_json)
        return
    classify = pipeline("image-classification", model, device=device)
    results = zip(files, classify.stream(files, top, batch_size), strict=True)
    if as_json:
        for file, labels in results:
            print(json.dumps({"image": str(file), "labels": labels}), flush=True)
        return
    rows = [(str(file), "  ".join(f"{each['label']} {each['score']:.1%}" for each in labels)) for file, labels in results]
    _print_table("", ("image", f"top {top}"), rows)


def _paint(painter: Any, files: list[Path], out: Path, top: int, as_json: bool) -> None:  # noqa: ANN401 - a pipeline that writes pictures
    """Writes the pictures of a pipeline and says where they are."""
    rows, taken = [], set()
    for file in files:
        stem = next(out / name for name in (file.stem, *(f"{file.stem}_{i}" for i in range(2, len(files) + 2))) if name not in taken)
        taken.add(stem.name)
        found = painter.write(file, stem)
        written = [found[key] for key in found if key.endswith("_file")]
        if as_json:
            print(json.dumps({"image": str(file), "classes": found["classes"], "files": written}), flush=True)
        rows.append((str(file), "  ".join(f"{each['label']} {each['share']:.1%}" for each in found["classes"][:top]), ", ".join(written)))
    if not as_json:
        _print_table("", ("image", f"largest {top}", "written"), rows)


@command
def explain(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    label: Annotated[str | None, typer.Option(help="Class to look for; default the most probable one.")] = None,
    device: DeviceOption = None,
) -> None:
    """Show where in pictures a classifier saw what it says (Grad-CAM)."""
    _check_model(model)
    files = _image_files(images)
    from PIL import Image

    from headstart.pipelines import pipeline
    from headstart.train.explain import explain as run

    classify = pipeline("image-classification", model, device=device)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, file in enumerate(files, start=1):
        found = run(classify.model, classify.image_processor, file, label)
        picture = out / f"{number:04d}_{file.stem}.png"  # the number keeps files of the same name apart
        Image.fromarray(found.overlay()).save(picture)
        rows.append((str(file), f"{found.label} {found.score:.1%}", str(picture)))
    _print_table("", ("image", "class", "picture"), rows)


@command
def audit(
    data: DataArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    column: ColumnOption = None,
    workers: WorkersOption = None,
) -> None:
    """Find unreadable images, duplicates, leaks between splits and contradicting labels. Exit code 1 if there are any."""
    from headstart.train.audit import audit as run
    from headstart.train.tasks import DataOptions

    found = run(data, DataOptions(val_fraction=0.0, columns=_pairs(column, "--column"), workers=workers))
    if as_json:
        pairs = [vars(pair) | {"leaks": pair.leaks, "contradicts": pair.contradicts} for pair in found.pairs]
        print(json.dumps({"images": found.images, "unreadable": found.unreadable, "pairs": pairs}, indent=2))
    else:
        rows = [("unreadable", name, reason) for name, reason in found.unreadable]
        for pair in found.pairs:
            words = [f"{pair.kind} duplicate"] + ["leak: " + " and ".join(pair.splits)] * pair.leaks
            words += ["classes: " + " and ".join(pair.labels)] * pair.contradicts
            rows.append((", ".join(words), pair.first, pair.second))
        _print_table("", ("what", "image", "and"), rows)
        counts = f"{len(found.unreadable)} unreadable, {len(found.pairs)} duplicates"
        print(f"{found.images} images: {counts}, {len(found.leaks)} leaks, {len(found.contradictions)} contradictions", file=sys.stderr)
    if found.unreadable or found.pairs:
        raise typer.Exit(1)


@command
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the published models."""
    from headstart.auto import zoo

    found = zoo()
    if as_json:
        keys = ("name", "parameters", "licence", "image_size", "result", "hub_id", "url")
        values = [{"family": family.model_type} | {key: getattr(each, key) for key in keys} for family, each in found.values()]
        print(json.dumps(values, indent=2))
        return
    rows = []
    for name, (family, each) in found.items():
        weights = f"{each.parameters / 1e6:.1f} M" if each.parameters else ""
        rows.append((name, family.model_type, weights, str(each.image_size or ""), each.result, each.licence))
    _print_table("", ("name", "family", "weights", "image", "published result", "licence"), rows)


@command
def demo(
    out: Annotated[Path, typer.Option(help="Result folder; a number is added where it exists.")] = Path("runs/demo"),
    draws: Annotated[int, typer.Option(min=1, help="Draws of ten pictures of each digit.")] = 5,
) -> None:
    """Transfer the network that comes with the package to handwritten digits: a minute, no network needed."""
    from headstart.demo import demo as run

    run(out, draws)


@command
def info(model: ModelArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what a checkpoint is: family, size, classes, and how it was made."""
    _check_model(model)
    from headstart.auto import AutoConfig

    config = AutoConfig.from_pretrained(model)
    names = [config.id2label[i] for i in sorted(config.id2label)]
    values: dict[str, Any] = {"model": model, "family": config.model_type, "compat": config.compat}
    values |= {"classes": len(names), "class names": names}
    results = Path(model) / "results.json"
    if results.is_file():
        made = json.loads(results.read_text(encoding="utf-8"))
        values |= {"tuned from": made["model"], "task": made["task"], "evaluations": made["evaluations"], "finished": made["finished"]}
    if as_json:
        print(json.dumps(values, indent=2))
        return
    values["class names"] = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    if results.is_file():
        parts = (f"{split} {made['headline']} {each['metrics'][made['headline']]:.1%}" for split, each in made["evaluations"].items())
        values["evaluations"] = ", ".join(parts)
    _print_table("", ("", ""), [(key, str(value)) for key, value in values.items()])


command(engine_commands.optimize), command(engine_commands.export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. What a user can cause is one clear line and exit code 2; an interrupted run is 130."""
    _show_warnings()
    try:
        app(args=arguments, standalone_mode=True)
    except TrainingInterrupted as error:
        _stop(str(error), 130)
    except HeadstartError as error:
        _stop(str(error), 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _stop(f"{error.strerror or error}{where}", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: str, code: int) -> None:
    print(f"headstart: {message}", file=sys.stderr)
    sys.exit(code)


def _show_warnings() -> None:
    """Warnings of the library as plain lines."""
    import logging

    logger = logging.getLogger("headstart")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(lambda record: "drawn at random" not in record.getMessage())  # a new head is what tuning is for
        logger.addHandler(handler)
        logger.propagate = False


def _check_model(name: str) -> None:
    """Refuses at once what can be no model: neither a path, nor a published name, nor `owner/name` on the Hub."""
    from headstart.auto import find_published, nearest_names

    if "/" in name or Path(name).exists() or find_published(name) is not None:
        return
    near = nearest_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "`headstart models` lists the published ones"
    raise NotFoundError(f"no model is called {name!r}, and there is no such folder; {hint}")


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        name, sign, value = item.partition("=")
        if not sign or not name or not value:
            raise typer.BadParameter(f"{item!r}: expected NAME=VALUE", param_hint=option)
        pairs[name.strip()] = value.strip()
    return pairs


def _task_options(items: list[str] | None, masks: Path | None) -> dict[str, Any]:
    options = {name: _value(text) for name, text in _pairs(items, "--option").items()}
    return options | ({"masks": masks} if masks is not None else {})


def _value(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """A value as JSON would read it, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _image_files(paths: list[Path]) -> list[Path]:
    """The images among the paths, folders searched through."""
    from headstart.errors import InputError
    from headstart.train.sources import IMAGE_SUFFIXES

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            if not inside:
                raise InputError(f"the folder {path} holds no images")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"there is no file or folder {path}")
    return files


def _print_table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=None, pad_edge=False, show_header=any(head))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
