"""Commands about checkpoints: models, info, convert."""

import difflib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.arguments import check_model
from headstart.cli.options import ModelArgument
from headstart.cli.output import JsonOption, emit
from headstart.cli.terminal import print_line, print_table
from headstart.errors import ConfigError, listed

if TYPE_CHECKING:
    from headstart.registry import Published

MEGABYTE = 1 << 20
WIDE = 120  # columns of a terminal that has room for everything about a model


def models(
    text: Annotated[
        str | None, typer.Argument(help="Part of a name, such as R50x1; default every model.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Models of one family: bit, cvt, beit or yoso.")
    ] = None,
    max_size: Annotated[
        float | None, typer.Option(min=0, metavar="MB", help="Files of at most this many MB.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the published models: size, published accuracy, licence, and whether cached here.

    Examples: [bold]headstart models[/bold] · [bold]headstart models ft22k --family beit
        --max-size 400[/bold]
    """
    from headstart.loading import cached_file
    from headstart.registry import FAMILIES, published_models

    if family is not None and family not in FAMILIES:
        raise ConfigError(f"--family {family}: expected one of {', '.join(FAMILIES)}")
    found = {
        name: (kind, each)
        for name, (kind, each) in published_models().items()
        if (text is None or text.lower() in name.lower())
        and family in (None, kind.model_type)
        and (max_size is None or 0 < _file_size(each) <= max_size * MEGABYTE)
    }
    if not found:
        raise ConfigError(_nothing(text, family, max_size))
    files = {name: cached_file(each) for name, (_, each) in found.items()}
    if as_json:
        keys = ("name", "parameters", "size", "licence", "image_size", "result", "hub_id", "url")
        values = [
            {"family": kind.model_type}
            | {key: getattr(each, key) for key in keys}
            | {"cached": files[name] and str(files[name])}
            for name, (kind, each) in found.items()
        ]
        for line in values:
            emit("models", line)
        return
    rows: list[tuple[str, ...]] = [
        (
            name,
            kind.model_type,
            f"{each.parameters / 1e6:.1f} M" if each.parameters else "",
            f"{_file_size(each) / MEGABYTE:.0f} MB" if _file_size(each) else "",
            str(each.image_size or ""),
            each.result,
            each.licence,
            "yes" if files[name] else "",
        )
        for name, (kind, each) in found.items()
    ]
    head: tuple[str, ...]
    head = ("name", "family", "weights", "file", "image", "published result", "licence", "cached")
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:
        kept = [head.index(name) for name in ("name", "family", "file", "cached")]
        head, rows = tuple(head[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]
    print_table("", head, rows)


def _nothing(text: str | None, family: str | None, max_size: float | None) -> str:
    """That no published model fits, and the nearest names."""
    from headstart.registry import FAMILIES, published_models

    requested = [f"with {text!r} in its name"] if text is not None else []
    requested += [f"of --family {family}"] if family is not None else []
    requested += [f"of at most {max_size:g} MB"] if max_size is not None else []
    near = []
    if text is not None:
        names = {name.lower(): name for name in (*FAMILIES, *published_models())}
        # a part of a name is short beside the name
        near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.35)
        near = [names[each] for each in near]
    hint = f"the nearest are {', '.join(near)}; " if near else ""
    what = f"there is no published model {' and '.join(requested)}"
    return f"{what}; {hint}`headstart models` lists them all"


def _file_size(model: "Published") -> int:
    """Bytes of a checkpoint's file, of its float32 weights where nothing says; 0 if unknown."""
    return model.size or 4 * (model.parameters or 0)


def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a checkpoint is: family, size, classes, training.

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
        emit("info", {key.replace(" ", "_"): value for key, value in values.items()})
        return
    values["class names"] = listed(names, 10)
    if results.is_file():
        from headstart.progress import metric_text, metric_title

        name = made["headline"]
        parts = (
            f"{split} {metric_title(name)} {metric_text(name, e['metrics'][name])}"
            for split, e in made["evaluations"].items()
        )
        values["evaluations"] = ", ".join(parts)
    print_table("", ("", ""), [(key, str(value)) for key, value in values.items()])


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
        str | None, typer.Option(help="Arithmetic of the result: authors or transformers.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="Class of the network, where the weights do not determine it."),
    ] = None,
    shard: Annotated[str, typer.Option(help="Maximum size of a weights file in a folder.")] = "5GB",
    overwrite: Annotated[bool, typer.Option(help="Replace what is at TARGET.")] = False,
) -> dict[str, Any]:
    """Convert a checkpoint to another format, and verify every weight and the outputs.

    Examples: [bold]headstart convert BiT-M-R50x1.npz bit-m[/bold] · [bold]headstart convert
        runs/photos photos.npz[/bold]
    """
    check_model(source)
    from headstart.engine.convert import convert as run

    how: Any = {"format": format, "compat": compat, "architecture": architecture}
    made = run(source, target, max_shard_size=shard, overwrite=overwrite, **how)
    print_line(
        f"{made.path}: {made.kind} of a {made.network}, {made.weights:,} weights; read again, every"
        " weight and the outputs are equal"
    )
    return {"out": str(made.path), "network": made.network, "weights": made.weights}
