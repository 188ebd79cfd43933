"""What words on the command line mean: models, files, `NAME=VALUE`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from headstart.errors import FileFormatError, InputError, NotFoundError


def check_model(name: str) -> None:
    """Refuses at once what can be no model.

    Neither a path, nor a published name, nor `owner/name` on the Hub.
    """
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


def parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """A value as JSON would read it, else the text itself."""
    from headstart.checkpoint.documents import parse_json

    try:
        return parse_json(text, "the value")
    except FileFormatError:
        return text


def image_files(paths: list[Path]) -> list[Path]:
    """The images among the paths, folders searched through."""
    from headstart.data.sources.raw import IMAGE_SUFFIXES

    if not paths:
        raise InputError("which images? Give files or folders")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not inside:
                raise InputError(f"the folder {path} holds no images")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"there is no file or folder {path}")
    return files


class Readable:
    """The pixels of image files, one after the other; a file that cannot be read is named on
    standard error and left out.

    Attributes:
        names: The files that were given so far.
        lost: How many were left out.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files, self.lost = files, 0
        self.names: list[Path] = []

    def __iter__(self) -> Iterator[Any]:
        from headstart.images.decode import load_image

        for file in self.files:
            try:
                pixels = load_image(file)
            except InputError as error:
                self.lost += 1
                print(f"headstart: {error}", file=sys.stderr)
            else:
                self.names.append(file)
                yield pixels
