"""Commands about checkpoints: models, info, convert."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.arguments import check_model
from headstart.cli.options import ModelArgument
from headstart.cli.terminal import print_table
from headstart.errors import listed


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the published models: size, published accuracy, licence, and whether cached here.

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
    print_table(
        "",
        ("name", "family", "weights", "file", "image", "published result", "licence", "cached"),
        rows,
    )


def info(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
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
) -> None:
    """Convert a checkpoint to another format, and verify every weight and the outputs.

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
