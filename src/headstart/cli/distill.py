"""The command `headstart distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.arguments import check_model, named_values, parsed
from headstart.cli.options import (
    BatchSizeOption,
    BudgetOption,
    ColumnOption,
    ConfigOption,
    CropOption,
    DeviceOption,
    DryRunOption,
    MixupOption,
    PrecisionOption,
    RateOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    StepsOption,
    TensorboardOption,
    TestOption,
    ValFractionOption,
    ValidationOption,
    WorkersOption,
)
from headstart.cli.output import result_values
from headstart.errors import ConfigError

TEACHER_HELP = (
    "Result folder, Hub id or authors' name of an image classifier, or of a network that reads"
    " texts; for images also a folder that `headstart optimize` wrote, or an ONNX (.onnx) or"
    " OpenVINO (.xml) file."
)
IMAGES_HELP = (
    "Images or texts: everything that `headstart train` reads, or images anywhere below a folder."
)
STUDENT_HELP = (
    "Checkpoint by name or folder, or a configuration (.json), whose weights are randomly"
    " initialized; a YOSO learns from texts, the other families from images."
)
NORMALIZATION_HELP = (
    "of each channel (of 0..1) that the teacher's images are normalized by, such as 0.5,0.5,0.5;"
    " default the teacher's own, else the student's."
)
FEATURE_HELP = (
    "Of images: weight of the squared error of the teacher's last features, predicted by a linear"
    " map of the student's; default 0."
)
VECTOR_HELP = (
    "Of texts: weight of the squared error of the teacher's vector of a text, predicted by a linear"
    " map of the student's; default 1."
)
HIDDEN_HELP = "Of texts: weight of the squared error of the teacher's hidden states; default 1."
MASK_HELP = "Of texts: weight of the cross-entropy of masked tokens; 0 masks none; default 0.1."
TOKENIZER_HELP = (
    "Of texts: folder with the tokenizer of a student that is a configuration; default the"
    " teacher's."
)


def distill(
    teacher: Annotated[str, typer.Argument(help=TEACHER_HELP)],
    images: Annotated[Path, typer.Argument(help=IMAGES_HELP)],
    *,
    student: Annotated[
        str | None, typer.Option(help=STUDENT_HELP, rich_help_panel="Teacher and student")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Result folder; must be new, or hold the run to --resume.")
    ],
    scratch: Annotated[
        bool,
        typer.Option(
            "--scratch",
            help="Take only the configuration of --student.",
            rich_help_panel="Teacher and student",
        ),
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of images: divides the logits of both before they are compared; default 1.",
            rich_help_panel="Teacher and student",
        ),
    ] = None,
    label_weight: Annotated[
        float | None,
        typer.Option(
            help="Of images: weight of the cross-entropy of labels that the teacher has; default 0,"
            " which reads no labels.",
            rich_help_panel="Teacher and student",
        ),
    ] = None,
    feature_weight: Annotated[
        float | None, typer.Option(help=FEATURE_HELP, rich_help_panel="Teacher and student")
    ] = None,
    vector_weight: Annotated[
        float | None, typer.Option(help=VECTOR_HELP, rich_help_panel="Teacher and student")
    ] = None,
    hidden_weight: Annotated[
        float | None, typer.Option(help=HIDDEN_HELP, rich_help_panel="Teacher and student")
    ] = None,
    mask_weight: Annotated[
        float | None, typer.Option(help=MASK_HELP, rich_help_panel="Teacher and student")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help=TOKENIZER_HELP, rich_help_panel="Teacher and student")
    ] = None,
    teacher_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of what the teacher sees; default its own, else the student's.",
            rich_help_panel="Teacher and student",
        ),
    ] = None,
    teacher_mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help=f"Mean {NORMALIZATION_HELP}",
            rich_help_panel="Teacher and student",
        ),
    ] = None,
    teacher_std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help=f"Standard deviation {NORMALIZATION_HELP}",
            rich_help_panel="Teacher and student",
        ),
    ] = None,
    config: ConfigOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe: distill, distill-texts, hyperrule or finetune; default by the student.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    lr: RateOption = None,
    batch_size: BatchSizeOption = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Largest number of tokens of a text; longer ones are truncated.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    crop: CropOption = None,
    mixup: MixupOption = None,
    precision: PrecisionOption = None,
    set_: SetOption = None,
    val: ValidationOption = None,
    test: TestOption = None,
    val_fraction: ValFractionOption = 0.2,
    column: ColumnOption = None,
    skip_bad: SkipBadOption = False,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    budget: BudgetOption = None,
    tensorboard: TensorboardOption = False,
) -> dict[str, Any]:
    """Train a small network to answer as a large one does, from images or texts without labels.

    Example: [bold]headstart distill runs/large photos/ --student bit-mini --out runs/small[/bold]
    """
    for name in (teacher, student):
        if name is not None and not Path(name).is_file():
            check_model(name)
    from headstart.progress import progress_for_terminal
    from headstart.training.distill import distill as run

    values: dict[str, Any] = {
        "seed": seed, "steps": steps, "lr": lr, "batch_size": batch_size, "crop": crop,
        "mixup": mixup, "precision": precision, "max_length": max_length,
    }  # fmt: skip
    values |= {name: parsed(text) for name, text in named_values(set_, "--set").items()}
    found = run(
        teacher,
        images,
        student=student,
        out=out,
        scratch=scratch,
        temperature=temperature,
        label_weight=label_weight,
        feature_weight=feature_weight,
        vector_weight=vector_weight,
        hidden_weight=hidden_weight,
        mask_weight=mask_weight,
        tokenizer=tokenizer,
        teacher_size=teacher_size,
        teacher_mean=_numbers(teacher_mean, "--teacher-mean"),
        teacher_std=_numbers(teacher_std, "--teacher-std"),
        recipe=recipe,
        config=config,
        resume=resume,
        dry_run=dry_run,
        val_fraction=val_fraction,
        skip_bad=skip_bad,
        columns=named_values(column, "--column"),
        validation=val,
        test=test,
        device=device,
        workers=workers,
        budget=budget,
        tensorboard=tensorboard,
        progress=progress_for_terminal(),
        **values,
    )
    return result_values(found)


def _numbers(text: str | None, option: str) -> list[float] | None:
    """The numbers of an option such as 0.5,0.5,0.5."""
    if text is None:
        return None
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: expected numbers such as 0.5,0.5,0.5") from None
