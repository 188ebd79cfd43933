"""Fills `<!-- options of COMMAND -->` in the pages with the command's own options, so that no page
can lag behind `--help`.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def functions() -> dict[str, Callable[..., None]]:
    """The commands by name."""
    from headstart.cli.app import app

    return {
        (each.name or each.callback.__name__): each.callback
        for each in app.registered_commands
        if each.callback
    }


def options(name: str) -> str:
    """The arguments and options of a command as Markdown tables."""
    rows: dict[str, list[str]] = {"Argument": [], "Option": []}
    for key, parameter in inspect.signature(functions()[name]).parameters.items():
        kind, info = typing.get_args(parameter.annotation)[:2]
        kinds = (
            [each for each in typing.get_args(kind) if each is not type(None)]
            if isinstance(kind, types.UnionType)
            else [kind]
        )
        text = re.sub(r"([|*])", r"\\\1", info.help or "")
        if isinstance(info, ArgumentInfo):
            rows["Argument"].append(f"| `{key.upper()}` | {text} |")
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            text += " **Needed.**"
        elif default not in (None, False) and str(default) not in text:
            text += f" Default: `{default}`."
        # Inside Annotated, typer keeps the first word after "Option(" as the default.
        named = [
            each
            for each in (info.default, *(info.param_decls or ()))
            if isinstance(each, str) and each.startswith("--")
        ]
        flag = (named or [f"--{key.strip('_').replace('_', '-')}"])[0]
        value = (
            ""
            if kinds[0] is bool
            else f" {info.metavar or WORDS.get((typing.get_args(kinds[0]) or kinds)[0], 'TEXT')}"
        )
        rows["Option"].append(f"| `{flag}{value}` | {text} |")
    return "\n\n".join(
        f"| {head} | |\n|---|---|\n" + "\n".join(each) for head, each in rows.items() if each
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with each page's text."""
    return re.sub(r"<!-- options of (\w+) -->", lambda found: options(found[1]), markdown)
