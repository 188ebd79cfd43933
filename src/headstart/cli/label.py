"""The command `headstart label`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.arguments import check_model
from headstart.cli.options import DeviceOption
from headstart.cli.output import JsonOption, emit
from headstart.errors import MissingExtraError, counted


def label(
    folder: Annotated[Path, typer.Argument(help="Images, anywhere below a folder.")],
    out: Annotated[
        Path, typer.Option(help="CSV table of image and label; continued where it exists.")
    ] = Path("labels.csv"),
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class that is known beforehand; may be repeated."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Network whose features the head learns on.")
    ] = "bit-mini",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label images on a local page: a key a class, the most useful image first.

    Example: [bold]headstart label photos/ --out labels.csv[/bold]
    """
    try:
        from headstart.serving.label_app import serve_labels
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    from headstart.checkpoint.writing import take_lock
    from headstart.errors import InputError
    from headstart.progress import progress_for_terminal
    from headstart.serving.labelling import open_labelling
    from headstart.training.world import best_device

    check_model(model)
    with progress_for_terminal() as progress:
        labelling = open_labelling(folder, out, model, class_ or [], progress, best_device(device))
    address = f"http://127.0.0.1:{port}/"
    done, total = len(labelling.labels), len(labelling.inputs)
    if as_json:
        emit("label", {"address": address, "out": str(out), "images": total, "done": done})
    else:
        print(f"{done} of {total} images have a label; open {address} (stop with Ctrl+C)")
    sys.stdout.flush()
    try:
        with out.open("rb") as table:
            if not take_lock(table.fileno()):
                raise InputError(f"{out} is being labelled already; give another --out")
            serve_labels(labelling, port)
    finally:
        more = f"headstart train {out} --model {model} --out runs/{out.stem}"
        print(f"{counted(len(labelling.labels), 'label')} in {out}: {more}", file=sys.stderr)
