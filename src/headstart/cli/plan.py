"""The command `headstart plan`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.options import DeviceOption
from headstart.cli.update import RunArgument


def plan(
    run: RunArgument,
    unlabeled: Annotated[list[Path], typer.Argument(help="Images, folders of them, or globs.")],
    *,
    number: Annotated[int, typer.Option(min=1, help="How many images to choose.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Also write the list, one path a line, to this file.")
    ] = None,
    copy: Annotated[
        Path | None, typer.Option(help="Also copy the images, numbered, to this new folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the groups of images.")] = 0,
    device: DeviceOption = None,
) -> dict[str, Any]:
    """Choose the images to label next: typical ones, later those that the model is unsure of.

    Example: [bold]headstart plan runs/photos unlabeled/ --number 20 --copy to-label[/bold]
    """
    from headstart.checkpoint import atomic_write
    from headstart.progress import plain, progress_for_terminal
    from headstart.training.plan import copy_images
    from headstart.training.plan import plan as choose

    progress = progress_for_terminal()
    found = choose(run, unlabeled, number=number, device=device, seed=seed, progress=progress)
    if copy is not None:
        copy_images(found, copy)
    text = "".join(f"{each.image}\n" for each in found)
    if out is not None:
        atomic_write(out, text)
    print(plain(text), end="")
    progress.report(f"{len(found)} {found[0].reason} images to label")
    return {"images": [str(each.image) for each in found], "reason": found[0].reason}
