"""Commands that change the examples of a run: update, forget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.arguments import named_values
from headstart.cli.options import ColumnOption, DataArgument, DeviceOption, WorkersOption
from headstart.cli.output import result_values

if TYPE_CHECKING:
    from headstart.tasks.result import Result

RunArgument = Annotated[
    Path, typer.Argument(help="Result folder of an image classifier made with --tune head.")
]


def update(
    run: RunArgument,
    data: DataArgument,
    *,
    column: ColumnOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Continue without images that cannot be read.")
    ] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> dict[str, Any]:
    """Add labeled images, and new classes, to a run whose head was fitted on frozen features.

    Example: [bold]headstart update runs/photos new-photos/[/bold]
    """
    from headstart.progress import progress_for_terminal
    from headstart.training.update import update as change

    found = change(
        run,
        data,
        columns=named_values(column, "--column"),
        skip_bad=skip_bad,
        device=device,
        workers=workers,
        progress=progress_for_terminal(),
    )
    return changed_values(found)


def forget(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, folders of them, or globs.")],
    *,
    device: DeviceOption = None,
) -> dict[str, Any]:
    """Remove images from a run whose head was fitted on frozen features, as if never seen.

    Example: [bold]headstart forget runs/photos photos/cat/0012.jpg[/bold]
    """
    from headstart.progress import progress_for_terminal
    from headstart.training.update import forget as change

    found = change(run, images, device=device, progress=progress_for_terminal())
    return changed_values(found)


def changed_values(found: "Result") -> dict[str, Any]:
    """A changed run as JSON."""
    values = result_values(found) | {"notes": found.notes}
    del values["estimated_seconds"]
    return values
