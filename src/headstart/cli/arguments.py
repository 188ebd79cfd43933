"""What words on the command line mean: models, files, `NAME=VALUE`."""

from pathlib import Path
from typing import Any

import typer

from headstart.errors import FileFormatError, NotFoundError


def check_model(name: str | None) -> None:
    """Refuses at once what cannot be a model; None, which names none, passes.

    Neither a path, nor a published name, nor `owner/name` on the Hub.
    """
    if name is None:
        return
    from headstart.package_data import EMBEDDED
    from headstart.registry import find_published, nearest_names

    if "/" in name or name in EMBEDDED or Path(name).exists() or find_published(name) is not None:
        return
    near = nearest_names(name)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "`headstart models` lists the published ones"
    )
    raise NotFoundError(f"no model is called {name!r}, and there is no such folder; {hint}")


def named_values(items: list[str] | None, option: str) -> dict[str, str]:
    """Name → text of every NAME=VALUE that an option was given."""
    values = {}
    for item in items or []:
        name, sign, value = item.partition("=")
        if not sign or not name or not value:
            raise typer.BadParameter(f"{item!r}: expected NAME=VALUE", param_hint=option)
        values[name.strip()] = value.strip()
    return values


def task_options(items: list[str] | None, masks: Path | None) -> dict[str, Any]:
    """The options of a task, and the folder of masks, which is one of them."""
    options = {name: parsed(text) for name, text in named_values(items, "--option").items()}
    return options | ({"masks": masks} if masks is not None else {})


def parsed(text: str) -> Any:
    """A value as JSON would read it, else the text itself."""
    from headstart.checkpoint.documents import parse_json

    try:
        return parse_json(text, "the value")
    except FileFormatError:
        return text
