"""The command line: each command is a few lines over the library.

Nothing heavy is imported before a command needs it, so that `headstart --help` is quick.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

try:
    import typer
except ImportError:
    sys.exit(
        "headstart: the command line needs typer and rich; install them with: pip install"
        " 'headstart[train]'"
    )

from headstart.cli import engine as engine_commands
from headstart.cli.arguments import (
    Readable,
    check_model,
    image_files,
    named_values,
    parsed,
    task_options,
)
from headstart.errors import HeadstartError, TrainingInterrupted, listed

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
F = TypeVar("F", bound=Callable[..., None])

DATA_HELP = (
    "Folder of class folders, of train/val/test or of WebDataset tars, a table (CSV, TSV, JSONL,"
    " Parquet), .npz, .tar or 'shard-{0000..0009}.tar', or a data set of the Hub: hf:owner/name."
)
COLUMN_HELP = "Column of a table, such as image=file or label=species; label=x,y takes several."
PROBLEM_HELP = (
    "What labels are: single-label, multi-label or regression; default what they look like."
)
WEIGHTS_HELP = (
    "What classes count in the loss: none, balanced, a YAML or JSON file, or '{cat: 2, dog: 1}'."
)
MODEL_HELP = "Pretrained model: folder, Hub id or authors' name (`headstart models`)."
DataArgument = Annotated[Path, typer.Argument(help=DATA_HELP)]


def _model_names(incomplete: str) -> list[str]:
    """What the shell offers for a model: the published names."""
    from headstart.registry import published_models

    return [name for name in published_models() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str, typer.Argument(help="Result folder, Hub id or authors' name.", autocompletion=_model_names)
]
MasksArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of masks, where DATA is a folder of images (semantic segmentation)."
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the task; may be repeated."),
]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help=COLUMN_HELP)
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, …; default the best there is.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")]


def _version(asked: bool) -> None:
    if asked:
        from headstart._version import __version__

        print(f"headstart {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Say the version, and stop."),
]


def root(version: VersionOption = False) -> None:
    """Tune pretrained vision and text models to your own data."""


def command(function: F) -> F:
    """Makes a function a command of its name."""
    app.command()(function)
    return function


@command
def train(  # noqa: PLR0913 - one parameter for each option
    data: DataArgument,
    masks: MasksArgument = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="Result folder; must be new, or hold the run that --resume goes on with."
        ),
    ],
    model: Annotated[str | None, typer.Option(help=MODEL_HELP, autocompletion=_model_names)] = None,
    task: Annotated[str, typer.Option(help="What is learned.")] = "image-classification",
    config: Annotated[Path | None, typer.Option(help="YAML file of recipe values.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe to take in place of the family's own: hyperrule or finetune."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="full: every weight. head: only the last layer, on features computed once."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Training examples of each class.")
    ] = None,
    draws: Annotated[
        int,
        typer.Option(min=1, help="Train on so many draws of the --shots: mean and 95 % interval."),
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides order, augmentation, dropout and splits.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Updates of the weights; warm-up and decays keep their proportions."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate after the warm-up.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in one update.")] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Examples in one forward pass; default what fits into memory."),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="staircase, cosine, poly or constant.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Side of training images before the crop.")
    ] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Side of what the network sees.")] = None,
    mixup: Annotated[float | None, typer.Option(help="MixUp's a; 0 is off.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16 (with scaled gradients).")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Beginning of names of weights that stay as they are; may be repeated."),
    ] = None,
    unfreeze: Annotated[
        list[str] | None,
        typer.Option(help="Beginning of names of weights that are trained; all else stays."),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Train LoRA matrices of this rank, and the head."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other recipe value; may be repeated."
        ),
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Validation data, if it is elsewhere.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test data, if it is elsewhere.")] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.9, help="Share held out where the data has no validation split."
        ),
    ] = 0.2,
    column: ColumnOption = None,
    option: TaskOption = None,
    problem_type: Annotated[str | None, typer.Option(help=PROBLEM_HELP)] = None,
    class_weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    skip_bad: Annotated[
        bool, typer.Option(help="Go on without images that cannot be read.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and stop.")] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time that everything may take, such as 10m; the recipe is cut to fit."),
    ] = None,
    fsdp: Annotated[
        bool, typer.Option(help="Share the model between the processes of torchrun.")
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(help="Mistakes allowed when the model may refuse to answer; default 0.05."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option(help="Write the numbers for TensorBoard too, below --out.")
    ] = False,
) -> None:
    """Tune a pretrained model to your data.

    Examples: [bold]headstart train photos/ --model BiT-M-R50x1 --out runs/photos[/bold] · the head
        alone, quick on a CPU:
    [bold]headstart train photos/ --model BiT-M-R50x1 --tune head --out runs/head[/bold] · within a
    time: [bold]… --budget 10m[/bold] · goes on: [bold]headstart train photos/ --out runs/photos
        --resume[/bold] · LoRA: [bold]… --lora 8[/bold] · many processes:
    [bold]torchrun --nproc-per-node 2 -m headstart train …[/bold]
    """
    if model is not None:
        check_model(model)
    from headstart.progress import progress_for_terminal
    from headstart.recipe import read_class_weights
    from headstart.training.run import train as run

    values: dict[str, Any] = {
        "tune": tune, "seed": seed, "steps": steps, "lr": lr, "batch_size": batch_size, "micro_batch": micro_batch, "optimizer": optimizer,
        "schedule": schedule, "resize": resize, "crop": crop, "mixup": mixup, "precision": precision,
        "freeze": tuple(freeze) if freeze else None, "unfreeze": tuple(unfreeze) if unfreeze else None, "lora_rank": lora,
        "class_weights": read_class_weights(class_weights) if class_weights else None,
    }  # fmt: skip
    values |= {name: parsed(text) for name, text in named_values(set_, "--set").items()}
    run(
        data, model=model, out=out, task=task, config=config, recipe=recipe, resume=resume, dry_run=dry_run, shots=shots, draws=draws,
        problem_type=problem_type, val_fraction=val_fraction, skip_bad=skip_bad, columns=named_values(column, "--column"),
        validation=val, test=test,
        task_options=task_options(option, masks), device=device, workers=workers, budget=budget, fsdp=fsdp, tensorboard=tensorboard,
        max_error=max_error,
        progress=progress_for_terminal(), **values,
    )  # fmt: skip


@command
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    masks: MasksArgument = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation or test; default the last of these that there is."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    column: ColumnOption = None,
    option: TaskOption = None,
    skip_bad: Annotated[
        bool, typer.Option(help="Go on without images that cannot be read.")
    ] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Judge a tuned model on labelled data.

    Example: [bold]headstart evaluate runs/photos photos/ --split test[/bold]
    """
    check_model(model)
    from headstart.progress import metric_text
    from headstart.training.run import evaluate as run

    columns, options = named_values(column, "--column"), task_options(option, masks)
    job, found = run(
        model,
        data,
        columns=columns,
        skip_bad=skip_bad,
        split=split,
        task_options=options,
        device=device,
        workers=workers,
    )
    if as_json:
        values = {
            "split": found.split,
            "examples": found.examples,
            "metrics": found.metrics,
            "confidence_interval_95": found.interval,
        }
        print(json.dumps(values, indent=2))
        return
    rows = [
        (name.replace("_", " "), metric_text(name, value)) for name, value in found.metrics.items()
    ]
    if found.interval:
        rows.insert(
            1,
            (
                "95 % interval",
                " to ".join(metric_text(job.headline, bound) for bound in found.interval),
            ),
        )
    _print_table(f"{found.examples} {found.split} examples", ("measure", "value"), rows)


@command
def predict(
    model: ModelArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, or folders of them; text files or tables for a text model."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Labels, guesses or answers to give of each; default 3."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Several labels an image: give those at least as probable."
        ),
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images or texts that go through the network together.")
    ] = 8,
    out: Annotated[
        Path, typer.Option(help="Folder for what is painted: masks and overlays, reconstructions.")
    ] = Path("predictions"),
    refuse: Annotated[
        bool,
        typer.Option("--refuse", help='Say "I don\'t know" where the model is not sure enough.'),
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(help="With --refuse: mistakes allowed among the answers, such as 0.02."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text itself; may be repeated.")] = None,
    question: Annotated[
        str | None, typer.Option(help="What is asked of every text (question answering).")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line of a text file is a text.")
    ] = False,
    long: Annotated[
        str,
        typer.Option(
            help="Texts longer than the network reads: refuse, cut or extend (sampled attention)."
        ),
    ] = "refuse",
    hash_error: Annotated[
        float | None,
        typer.Option(help="Sample attention, with hashes enough for this error, such as 0.1."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A value of a text model's configuration."
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Say what is in pictures or texts: classes, numbers, hidden words, tags, answers; pictures in
    --out (segmentation and masked images).

    Images that cannot be read are named and left out; the exit code is then 1.

    Example: [bold]headstart predict runs/photos holiday/ --top 1 --refuse[/bold]
    """
    from headstart.data import text_files
    from headstart.pipelines.base import pipeline, task_of

    check_model(model)
    task, best = task_of(model), top or 3
    if task in text_files.TASKS:
        inputs = text_files.read_inputs(task, files or [], text or [], question, lines)
        values = {name: parsed(text) for name, text in named_values(set_, "--set").items()}
        results = text_files.predict_texts(
            task,
            model,
            inputs,
            top=best,
            batch_size=batch_size,
            long=long,
            hash_error=hash_error,
            settings=values,
            device=device,
        )
        if as_json:
            for name, found in results:
                print(text_files.as_json(task, name, found), flush=True)
            return
        _print_table(
            "",
            ("text", text_files.KEYS[task]),
            ((name, text_files.as_line(task, found)) for name, found in results),
        )
        return
    images = Readable(image_files(files or []))
    if task in ("semantic-segmentation", "masked-image-modeling"):
        _paint(pipeline(task, model, device=device), images, out, best, as_json)
    else:
        how: bool | float = refuse if max_error is None else max_error
        classify = pipeline(
            "image-classification", model, device=device, refuse=how, label_threshold=threshold
        )
        single = classify.kind in (None, "single_label_classification")
        found = classify.stream(images, best if single else top, batch_size)
        # a name is there once its picture has been read
        answers = zip(found, images.names, strict=False)
        if as_json:
            for labels, file in answers:
                print(json.dumps({"image": str(file), "labels": labels}), flush=True)
        else:
            form = ".4g" if classify.kind == "regression" else ".1%"
            rows = (
                (str(file), "  ".join(f"{each['label']} {each['score']:{form}}" for each in labels))
                for labels, file in answers
            )
            _print_table("", ("image", f"top {best}" if single else "labels"), rows)
    if images.lost:
        raise typer.Exit(1)


def _paint(painter: Any, images: Readable, out: Path, top: int, as_json: bool) -> None:  # noqa: ANN401 - a pipeline that writes pictures
    """Writes the pictures of a pipeline and says where they are."""
    rows, taken = [], set()
    for pixels in images:
        file = images.names[-1]
        names = (file.stem, *(f"{file.stem}_{i}" for i in range(2, len(images.files) + 2)))
        stem = next(out / name for name in names if name not in taken)
        taken.add(stem.name)
        found = painter.write(pixels, stem)
        written = [found[key] for key in found if key.endswith("_file")]
        if as_json:
            print(
                json.dumps({"image": str(file), "classes": found["classes"], "files": written}),
                flush=True,
            )
        rows.append(
            (
                str(file),
                "  ".join(
                    f"{each['label']} {each['share']:.1%}" for each in found["classes"][:top]
                ),
                ", ".join(written),
            )
        )
    if not as_json:
        _print_table("", ("image", f"largest {top}", "written"), rows)


@command
def explain(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    label: Annotated[
        str | None,
        typer.Option(help="Class or number to look for; default the most probable class."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Show where in pictures a network saw what it says.

    Example: [bold]headstart explain runs/photos bee.jpg --out seen/[/bold]
    """
    check_model(model)
    files = image_files(images)
    from PIL import Image

    from headstart.pipelines.base import pipeline
    from headstart.report.explain import explain as run

    classify = pipeline("image-classification", model, device=device)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, file in enumerate(files, start=1):
        found = run(classify.model, classify.image_processor, file, label, classify.temperature)
        # the number keeps files of the same name apart
        picture = out / f"{number:04d}_{file.stem}.png"
        Image.fromarray(found.overlay()).save(picture)
        score = f"{found.score:.4g}" if classify.kind == "regression" else f"{found.score:.1%}"
        rows.append((str(file), f"{found.label} {score}", str(picture)))
    _print_table("", ("image", "found", "picture"), rows)


@command
def audit(
    data: DataArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Page with the pictures, such as audit.html.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Network whose features tell wrong labels and outliers.")
    ] = "bit-mini",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave out wrong labels and outliers, which need the network."
        ),
    ] = False,
    column: ColumnOption = None,
    workers: WorkersOption = None,
) -> None:
    """Find unreadable images, duplicates, leaks between splits, contradicting and probably wrong
    labels, and outliers.

    Exit code 1 if images are unreadable or there are duplicates; wrong labels and outliers are
    guesses, which do not change it.

    Examples: [bold]headstart audit photos/[/bold]

    [bold]headstart audit photos/ --model BiT-M-R50x1 --html audit.html[/bold]
    """
    if not quick:
        check_model(model)
    from headstart.data.options import DataOptions
    from headstart.report.audit import audit as run
    from headstart.report.audit import write_page

    found = run(
        data,
        DataOptions(val_fraction=0.0, columns=named_values(column, "--column"), workers=workers),
        None if quick else model,
    )
    if html is not None:
        write_page(found, html, str(data))
    if as_json:
        pairs = [
            vars(pair) | {"leaks": pair.leaks, "contradicts": pair.contradicts}
            for pair in found.pairs
        ]
        values = {"images": found.images, "unreadable": found.unreadable, "pairs": pairs}
        values |= {
            "mislabelled": [vars(each) for each in found.mislabelled],
            "outliers": [vars(each) for each in found.outliers],
        }
        values["agreement"] = found.agreement
        print(json.dumps(values, indent=2))
    else:
        rows = [("unreadable", name, reason) for name, reason in found.unreadable]
        for pair in found.pairs:
            words = [f"{pair.kind} duplicate"] + ["leak: " + " and ".join(pair.splits)] * pair.leaks
            words += ["classes: " + " and ".join(pair.labels)] * pair.contradicts
            rows.append((", ".join(words), pair.first, pair.second))
        for doubt in found.mislabelled:
            said = (
                f"is {doubt.label} ({doubt.probability:.0%}), looks like {doubt.likely}"
                f" ({doubt.likely_probability:.0%})"
            )
            rows.append(("probably mislabelled", doubt.name, said))
        rows += [
            ("outlier", each.name, f"{each.label}, {each.distance:.1f} deviations from the others")
            for each in found.outliers
        ]
        _print_table("", ("what", "image", "and"), rows)
        first, *others = found.lines()
        print(f"{first}: {', '.join(others)}", file=sys.stderr)
    if found.unreadable or found.pairs:
        raise typer.Exit(1)


@command
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the published models: their sizes, what their authors measured, licences, and which are
    on this machine already.

    Example: [bold]headstart models[/bold]
    """
    from headstart.loading import cached_file
    from headstart.registry import published_models

    found = published_models()
    files = {name: cached_file(each) for name, (_, each) in found.items()}
    if as_json:
        keys = ("name", "parameters", "size", "licence", "image_size", "result", "hub_id", "url")
        values = [
            {"family": family.model_type} | {key: getattr(each, key) for key in keys}
            for family, each in found.values()
        ]
        print(
            json.dumps(
                [
                    each | {"cached": files[each["name"]] and str(files[each["name"]])}
                    for each in values
                ],
                indent=2,
            )
        )
        return
    rows = []
    for name, (family, each) in found.items():
        weights = f"{each.parameters / 1e6:.1f} M" if each.parameters else ""
        size = (
            f"{(each.size or 4 * each.parameters) / 2**20:.0f} MB"
            if each.size or each.parameters
            else ""
        )
        cached = "yes" if files[name] else ""
        rows.append(
            (
                name,
                family.model_type,
                weights,
                size,
                str(each.image_size or ""),
                each.result,
                each.licence,
                cached,
            )
        )
    _print_table(
        "",
        ("name", "family", "weights", "file", "image", "published result", "licence", "cached"),
        rows,
    )


@command
def convert(
    source: Annotated[
        str, typer.Argument(help="Folder, file of any format, Hub id or authors' name.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="Folder as the Hub's; or a file: .safetensors, .bin, the authors' .npz or .pth."
        ),
    ],
    format: Annotated[
        str, typer.Option(help="Weights in a folder: safetensors or bin.")
    ] = "safetensors",
    compat: Annotated[
        str | None, typer.Option(help="Whose arithmetic it is to run: authors or transformers.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Class of the network, where the weights do not tell.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="Weights in a folder are split above this size.")
    ] = "5GB",
    overwrite: Annotated[bool, typer.Option(help="Replace what is at TARGET.")] = False,
) -> None:
    """Write a checkpoint in another format, and check every weight and the outputs of what was
    written.

    Examples: [bold]headstart convert BiT-M-R50x1.npz bit-m[/bold] · [bold]headstart convert
        runs/photos photos.npz[/bold]
    """
    check_model(source)
    from headstart.engine.convert import convert as run

    how: Any = {"format": format, "compat": compat, "architecture": architecture}
    made = run(source, target, max_shard_size=shard, overwrite=overwrite, **how)
    print(
        f"{made.path}: {made.kind} of a {made.network}, {made.weights:,} weights; read again, every"
        " weight and the outputs are equal"
    )


@command
def demo(
    out: Annotated[
        Path, typer.Option(help="Result folder; a number is added where it exists.")
    ] = Path("runs/demo"),
    draws: Annotated[int, typer.Option(min=1, help="Draws of ten pictures of each digit.")] = 5,
) -> None:
    """Transfer the network that comes with the package to handwritten digits: a minute, no network
    needed.

    Example: [bold]headstart demo[/bold]
    """
    from headstart.cli.demo import demo as run

    run(out, draws)


@command
def info(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint is: family, size, classes, and how it was made.

    Example: [bold]headstart info runs/photos[/bold]
    """
    check_model(model)
    from headstart.auto import AutoConfig
    from headstart.pipelines.base import read_results

    config = AutoConfig.from_pretrained(model)
    names = [config.id2label[i] for i in sorted(config.id2label)]
    values: dict[str, Any] = {"model": model, "family": config.model_type, "compat": config.compat}
    values |= {"classes": len(names), "class names": names}
    results = Path(model) / "results.json"
    if results.is_file():
        made = read_results(model)
        values |= {
            "tuned from": made["model"],
            "task": made["task"],
            "evaluations": made["evaluations"],
            "finished": made["finished"],
        }
    if as_json:
        print(json.dumps(values, indent=2))
        return
    values["class names"] = listed(names, 10)
    if results.is_file():
        from headstart.progress import metric_text

        name = made["headline"]
        parts = (
            f"{split} {name.replace('_', ' ')} {metric_text(name, e['metrics'][name])}"
            for split, e in made["evaluations"].items()
        )
        values["evaluations"] = ", ".join(parts)
    _print_table("", ("", ""), [(key, str(value)) for key, value in values.items()])


app.callback()(root), command(engine_commands.optimize), command(engine_commands.export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. What a user can cause is one clear line and exit code 2.

    An interrupted run is 130.
    """
    try:
        with _plain_warnings():
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
    if os.environ.get("RANK", "0") != "0":
        # what ended every process is said by the first; the launcher ends the others meanwhile
        time.sleep(2)
    print(f"headstart: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of this and other libraries as plain lines, without the line of code that they come
    from.
    """
    import logging
    import warnings

    logger = logging.getLogger("headstart")
    if not logger.handlers:
        handler = logging.StreamHandler()
        # a new head is what tuning is for
        handler.addFilter(lambda record: "drawn at random" not in record.getMessage())
        logger.addHandler(handler)
        logger.propagate = False
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"headstart: {message}", file=sys.stderr)
        yield


def _print_table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere, each as soon as it is known."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row), flush=True)
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
