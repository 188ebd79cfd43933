"""Commands that train and evaluate: train, evaluate, demo."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.arguments import check_model, named_values, parsed, task_options
from headstart.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    PROBLEM_HELP,
    WEIGHTS_HELP,
    BatchSizeOption,
    BudgetOption,
    ColumnOption,
    ConfigOption,
    CropOption,
    DataArgument,
    DeviceOption,
    DryRunOption,
    MasksArgument,
    MixupOption,
    ModelArgument,
    PrecisionOption,
    RateOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    StepsOption,
    TaskOption,
    TensorboardOption,
    TestOption,
    ValFractionOption,
    ValidationOption,
    WorkersOption,
    model_names,
)
from headstart.cli.output import JsonOption, emit, result_values
from headstart.cli.terminal import load_torch, print_table
from headstart.errors import ConfigError

if TYPE_CHECKING:
    from headstart.tasks.result import Result
    from headstart.training.compare import Compared


def train(
    data: Annotated[str, typer.Argument(help=f"{DATA_HELP} With --stream also a URI.")],
    masks: MasksArgument = None,
    *,
    out: Annotated[
        Path,
        typer.Option(help="Result folder; must be new, or hold the run that --resume continues."),
    ],
    model: Annotated[str | None, typer.Option(help=MODEL_HELP, autocompletion=model_names)] = None,
    task: Annotated[
        str,
        typer.Option(
            help="Task: image-classification, semantic-segmentation, text-classification, …"
        ),
    ] = "image-classification",
    config: ConfigOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe: hyperrule, finetune or text; default that of the model's family.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="full: every weight. head: only the last layer, on features computed once; kind,"
            " stages and image size are chosen by cross-validation."
            " auto: a head, then every weight from it where time allows; the better one is kept;"
            " default auto where no value of full training is given.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training examples of each class; default all.", rich_help_panel="Data"
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of random subsets of --shots to train on; reports mean and 95 % interval.",
            rich_help_panel="Data",
        ),
    ] = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the training data, in place of --steps.",
            rich_help_panel="Optimization",
        ),
    ] = None,
    lr: RateOption = None,
    batch_size: BatchSizeOption = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples in one forward pass; default what fits into memory.",
            rich_help_panel="Optimization",
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Optimizer: sgd or adamw.", rich_help_panel="Optimization")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Learning-rate schedule: staircase, cosine, poly or constant.",
            rich_help_panel="Optimization",
        ),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of training images before the crop.", rich_help_panel="Recipe"
        ),
    ] = None,
    crop: CropOption = None,
    mixup: MixupOption = None,
    precision: PrecisionOption = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Prefix of parameter names to freeze; may be repeated.", rich_help_panel="Recipe"
        ),
    ] = None,
    unfreeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Prefix of parameter names to train; all others are frozen.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="RANK",
            help="Rank of LoRA matrices, which are trained with the head; default no LoRA.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    set_: SetOption = None,
    val: ValidationOption = None,
    test: TestOption = None,
    val_fraction: ValFractionOption = 0.2,
    column: ColumnOption = None,
    option: TaskOption = None,
    problem_type: Annotated[
        str | None, typer.Option(help=PROBLEM_HELP, rich_help_panel="Data")
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read shards (WebDataset tars, Parquet) from front to back as they are needed, for"
            " images that fit on no disk; URIs such as s3://bucket/train-{0000..0099}.tar too.",
            rich_help_panel="Data",
        ),
    ] = False,
    class_weights: Annotated[
        str | None, typer.Option(help=WEIGHTS_HELP, rich_help_panel="Data")
    ] = None,
    skip_bad: SkipBadOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel="Run")
    ] = False,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    budget: BudgetOption = None,
    fsdp: Annotated[
        bool,
        typer.Option(
            help="Shard the model over the processes of torchrun (FSDP).", rich_help_panel="Run"
        ),
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Target error rate for refusing to answer; default 0.05.", rich_help_panel="Run"
        ),
    ] = None,
    tensorboard: TensorboardOption = False,
) -> dict[str, Any]:
    """Fine-tune a pretrained model on your data.

    Examples: [bold]headstart train photos/ --model BiT-M-R50x1 --out runs/photos[/bold] · the head
        alone, quick on a CPU:
    [bold]headstart train photos/ --model BiT-M-R50x1 --tune head --out runs/head[/bold] · within a
    time: [bold]… --budget 10m[/bold] · continue: [bold]headstart train photos/ --out runs/photos
        --resume[/bold] · LoRA: [bold]… --lora 8[/bold] · many processes:
    [bold]torchrun --nproc-per-node 2 -m headstart train …[/bold]
    """
    check_model(model)
    load_torch()
    from headstart.progress import progress_for_terminal
    from headstart.recipe import read_class_weights
    from headstart.training.compare import several
    from headstart.training.run import train as run

    values: dict[str, Any] = {
        "tune": tune,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "optimizer": optimizer,
        "schedule": schedule,
        "resize": resize,
        "crop": crop,
        "mixup": mixup,
        "precision": precision,
        "freeze": tuple(freeze) if freeze else None,
        "unfreeze": tuple(unfreeze) if unfreeze else None,
        "lora_rank": lora,
        "class_weights": read_class_weights(class_weights) if class_weights else None,
    }
    values |= set_values(set_, values)
    compared = several(values, draws)

    once = partial(
        run,
        data,
        model=model,
        task=task,
        config=config,
        recipe=recipe,
        dry_run=dry_run,
        shots=shots,
        draws=draws,
        problem_type=problem_type,
        val_fraction=val_fraction,
        skip_bad=skip_bad,
        columns=named_values(column, "--column"),
        validation=val,
        test=test,
        stream=stream,
        task_options=task_options(option, masks),
        device=device,
        workers=workers,
        budget=budget,
        fsdp=fsdp,
        tensorboard=tensorboard,
        max_error=max_error,
        epochs=epochs,
        overwrite=overwrite,
        progress=progress_for_terminal(),
        **values,
    )
    if compared is None:
        return result_values(once(out=out, resume=resume))
    if dry_run:
        raise ConfigError(f"--dry-run looks at one run; give one value of {compared[0]}")
    return compare_values(once, *compared, out=out, draws=draws, resume=resume, overwrite=overwrite)


def compare_values(
    once: "Callable[..., Result]",
    name: str,
    numbers: list[float],
    *,
    out: Path,
    draws: int,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """The best of one run for each value of an option, shown with the others as a table.

    Args:
        once: Trains into a folder, with a value by its name.
        name: The option.
        numbers: Its values.
        out: Folder of the comparison.
        draws: Random subsets that each value is trained on.
        resume: Whether runs that were stopped go on.
        overwrite: Whether a comparison in `out` is replaced.
    """
    from headstart.training.compare import FILE, compare
    from headstart.training.request import RUN

    if (out / FILE).exists() and not (resume or overwrite):
        raise ConfigError(f"{out} holds a comparison; go on with --resume, or choose another --out")

    def with_value(value: float, where: Path) -> "Result":
        return once(out=where, resume=resume and (where / RUN).exists(), **{name: value})

    best, rows = compare(name, numbers, out, with_value, resume)
    print_comparison(name, rows, draws)
    return result_values(best) | {"comparison": [asdict(each) for each in rows]}


def set_values(given: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Values of `--set NAME=VALUE`; none of them may be given as an option too."""
    values = {name: parsed(text) for name, text in named_values(given, "--set").items()}
    twice = [name for name in values if options.get(name) is not None]
    if twice:
        raise ConfigError(f"--set {twice[0]} stands beside the option of that name; give one")
    return values


def print_comparison(name: str, rows: "list[Compared]", draws: int) -> None:
    """The results of several values of an option as a table."""
    print_table(
        f"{name}, {draws} draws",
        (name, "mean", "95 % interval", "from the first"),
        (compared_line(each) for each in rows),
    )
    print("The highest of several means is optimistic by itself: evaluate it on other examples.")


def compared_line(row: "Compared") -> tuple[str, ...]:
    """A value's results for a table."""
    from headstart.pipelines.base import read_results
    from headstart.progress import metric_text

    if row.mean is None or row.interval is None:
        return f"{row.value:g}", "failed", f"{row.error}", ""
    headline = read_results(row.folder)["headline"]
    bounds = " to ".join(metric_text(headline, bound) for bound in row.interval)
    if row.difference is None or row.difference_interval is None:
        return f"{row.value:g}", metric_text(headline, row.mean), bounds, ""
    low, high = row.difference_interval
    gap = f"{row.difference:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{row.value:g}", metric_text(headline, row.mean), bounds, gap


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    masks: MasksArgument = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split: train, validation or test; default the last one present."),
    ] = None,
    as_json: JsonOption = False,
    column: ColumnOption = None,
    option: TaskOption = None,
    skip_bad: Annotated[
        bool, typer.Option(help="Leave out unreadable examples instead of stopping.")
    ] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Evaluate a fine-tuned model on labelled data.

    Example: [bold]headstart evaluate runs/photos photos/ --split test[/bold]
    """
    check_model(model)
    load_torch()
    from headstart.progress import metric_text, metric_title, progress_for_terminal
    from headstart.training.evaluate import evaluate as run

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
        progress=progress_for_terminal(),
    )
    if as_json:
        values = {
            "notes": found.notes,
            "split": found.split,
            "examples": found.examples,
            "metrics": found.metrics,
            "confidence_interval_95": found.interval,
        }
        emit("evaluate", values)
        return
    rows = [(metric_title(name), metric_text(name, value)) for name, value in found.metrics.items()]
    if found.interval:
        rows.insert(
            1,
            (
                "95 % interval",
                " to ".join(metric_text(job.headline, bound) for bound in found.interval),
            ),
        )
    print_table(f"{found.examples} {found.split} examples", ("metric", "value"), rows)


def demo(
    out: Annotated[
        Path, typer.Option(help="Result folder; a number is appended where it exists.")
    ] = Path("runs/demo"),
    draws: Annotated[
        int, typer.Option(min=1, help="Random choices of ten training images of each class.")
    ] = 3,
    digits: Annotated[
        bool, typer.Option("--digits", help="Handwritten digits in place of satellite images.")
    ] = False,
) -> dict[str, Any]:
    """Fine-tune the embedded network on ten images of each class (a minute, offline).

    Example: [bold]headstart demo[/bold]
    """
    from headstart.cli.demo import demo as run

    return dict(run(out, draws, digits))
