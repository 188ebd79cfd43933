"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DATA_HELP = (
    "Folder of class folders, of train/val/test or of WebDataset tars, a table (CSV, TSV, JSONL,"
    " Parquet), .npz, .tar or 'shard-{0000..0009}.tar', or a data set of the Hub: hf:owner/name."
)
COLUMN_HELP = (
    "Column of a table, such as image=file or label=species; label=x,y takes several. Rows that"
    " share a value of the column group stay together when data is split."
)
PROBLEM_HELP = (
    "Kind of labels: single-label, multi-label or regression; default inferred from them."
)
WEIGHTS_HELP = (
    "Weight of each class in the loss: none, balanced, a YAML or JSON file, or '{cat: 2, dog: 1}'."
)
MODEL_HELP = (
    "Pretrained model: folder, Hub id or authors' name (`headstart models`); default yoso-mini for"
    " text classification."
)
DataArgument = Annotated[Path, typer.Argument(help=DATA_HELP)]


def model_names(incomplete: str) -> list[str]:
    """What the shell offers for a model: the published names."""
    from headstart.registry import published_models

    return [name for name in published_models() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str, typer.Argument(help="Result folder, Hub id or authors' name.", autocompletion=model_names)
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
DEVICE_HELP = "cpu, cuda, cuda:1, …; default a GPU where PyTorch finds one."
DeviceOption = Annotated[str | None, typer.Option(help=DEVICE_HELP)]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that read and decode; default one a processor, 8 at most."),
]
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Images, folders, globs, tars, tables with a column of paths, or - for a list on"
        " standard input; text files or tables for a text model. With --ray also URIs."
    ),
]
LinesOption = Annotated[
    bool, typer.Option("--lines", help="Treat each line of a text file as one text.")
]
LongOption = Annotated[
    str,
    typer.Option(help="Texts above the maximum length: refuse, cut or extend (sampled attention)."),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images or texts in one forward pass; default 8 texts, 8 images of 224x224 pixels, or"
        " up to 64 smaller ones.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Compute on a Ray cluster: host:6379 or ray://host:10001, auto for the one that this"
        " machine belongs to, local for this machine alone. --out is then a folder or URI.",
    ),
]
ActorsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="With --ray: models in the cluster; default one for every four processors."
    ),
]

# Of `train` and `distill`.
ConfigOption = Annotated[
    Path | None, typer.Option(help="YAML file of recipe values.", rich_help_panel="Recipe")
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Seed of order, augmentation, dropout and splits.",
        rich_help_panel="Optimization",
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Training steps; warm-up and decays keep their proportions.",
        rich_help_panel="Optimization",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(help="Learning rate after the warm-up.", rich_help_panel="Optimization"),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Examples in one training step.", rich_help_panel="Optimization"),
]
CropOption = Annotated[
    int | None,
    typer.Option(min=1, help="Side of the crop that the network sees.", rich_help_panel="Recipe"),
]
MixupOption = Annotated[
    float | None, typer.Option(help="Alpha of MixUp; 0 turns it off.", rich_help_panel="Recipe")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Precision: fp32, bf16 or fp16 (with scaled gradients).",
        rich_help_panel="Optimization",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other recipe value; may be repeated. With --draws, several numbers of one"
        " (lr=0.01,0.03) are compared.",
        rich_help_panel="Recipe",
    ),
]
ValidationOption = Annotated[
    Path | None,
    typer.Option(
        help="Validation data, where it is separate; default a part of the training data.",
        rich_help_panel="Data",
    ),
]
TestOption = Annotated[
    Path | None,
    typer.Option(
        help="Test data, where it is separate; default the data's own test split.",
        rich_help_panel="Data",
    ),
]
ValFractionOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=0.9,
        help="Fraction held out where the data has no validation split.",
        rich_help_panel="Data",
    ),
]
SkipBadOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out unreadable examples instead of stopping.",
        rich_help_panel="Data",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel="Run")
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done, and stop.", rich_help_panel="Run"),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time limit of the run, such as 10m, which shortens the recipe; default none.",
        rich_help_panel="Run",
    ),
]
TensorboardOption = Annotated[
    bool,
    typer.Option(
        "--tensorboard", help="Also write TensorBoard logs, below --out.", rich_help_panel="Run"
    ),
]
