"""Fills `<!-- options of COMMAND -->` in the pages with the command's own options, and
`<!-- reference of NAMES -->` with the objects of those names, so that no page can lag behind.
"""

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import reference  # noqa: E402 - beside this file, which mkdocs loads alone

DEFAULT = re.compile(r"[;,:.]? ?\b[Dd]efault:? ([^;]+?)\.?$")  # at the end of a help text
WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def functions() -> dict[str, Callable[..., None]]:
    """The commands by name; those of a group as "group command"."""
    from headstart.cli.app import application

    app = application()
    groups = {"": app} | {f"{each.name} ": each.typer_instance for each in app.registered_groups}
    return {
        prefix + (each.name or each.callback.__name__): each.callback
        for prefix, group in groups.items()
        for each in group.registered_commands
        if each.callback
    }


def default_of(key: str, parameter: inspect.Parameter, info: Any) -> str:
    """What an option is where it is not given, as the cell of a table."""
    from headstart.recipe import Recipe

    if parameter.default is inspect.Parameter.empty:
        return "required"
    if isinstance(info.show_default, str):
        return f"`{info.show_default}`"
    if stated := DEFAULT.search(info.help or ""):
        return stated[1].strip()
    if parameter.default is None and key in {each.name for each in dataclasses.fields(Recipe)}:
        return "of the recipe"
    if parameter.default is False:
        return "off"
    return "–" if parameter.default is None else f"`{parameter.default}`"


def flag_of(key: str, annotation: Any, info: Any) -> str:
    """An option as it is written on the command line, with the kind of its value."""
    kinds = [each for each in typing.get_args(annotation) if each is not type(None)]
    kind = kinds[0] if isinstance(annotation, types.UnionType) else annotation
    # Inside Annotated, typer keeps the first word after "Option(" as the default.
    named = (each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str))
    flags = [each for each in named if each.startswith("--")]
    flag = flags[0] if flags else f"--{key.strip('_').replace('_', '-')}"
    if kind is bool:
        return flag
    return f"{flag} {info.metavar or WORDS.get((typing.get_args(kind) or [kind])[0], 'TEXT')}"


def options(name: str) -> str:
    """The arguments and options of a command as Markdown tables, one a group of `--help`."""
    rows: dict[str, list[str]] = {"Argument": [], "Option": []}
    for key, parameter in inspect.signature(functions()[name]).parameters.items():
        annotation, info = typing.get_args(parameter.annotation)[:2]
        text = re.sub(r"([|*])", r"\\\1", DEFAULT.sub("", info.help or ""))
        text = re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)
        text = text.rstrip(";, ") + "." * (not text.rstrip().endswith((".", "…")))
        if key == "task" and "classification" in str(parameter.default):
            text = "Task: " + ", ".join(f"`{each}`" for each in train_tasks()) + "."
        if isinstance(info, ArgumentInfo):
            rows["Argument"].append(f"| `{key.upper()}` | {text} |")
            continue
        default = default_of(key, parameter, info)
        flag = flag_of(key, annotation, info)
        group = info.rich_help_panel or "Option"
        rows.setdefault(group, []).append(f"| `{flag}`{{ .whole }} | {default} | {text} |")
    heads = {head: "| Default " * (head != "Argument") for head in rows}
    return "\n\n".join(
        f"| {head} {heads[head]}| |\n|---{'|---' * bool(heads[head])}|---|\n" + "\n".join(each)
        for head, each in rows.items()
        if each
    )


def train_tasks() -> list[str]:
    """The tasks that `headstart train` takes."""
    from headstart.tasks import TASKS

    return [each for each in TASKS if "distillation" not in each]


def keys() -> str:
    """What each command prints with `--json`, as Markdown tables."""
    from headstart.cli.output import KEYS

    return "\n\n".join(
        f"`{command}`\n\n| Key | |\n|---|---|\n"
        + "\n".join(f"| `{key.strip('[]')}` | {_when(key)}{text} |" for key, text in each.items())
        for command, each in KEYS.items()
    )


def _when(key: str) -> str:
    return "where it applies: " if key.startswith("[") else ""


def described(folder: Path) -> dict[str, str]:
    """Name → page of the reference that describes it."""
    return {
        name: page.name
        for page in sorted(folder.glob("*.md"))
        for name in reference.names(page.read_text(encoding="utf-8"))
    }


PRETRAINED = (  # pattern at the begin of a name → what the weights were trained on first
    ("bit-mini", "small photos, distilled"),
    ("BiT-S", "ImageNet-1k"),
    ("BiT-M", "ImageNet-21k"),
    ("BiT-distill", "ImageNet-21k teacher"),
    ("vtab/", "ImageNet-21k"),
    ("CvT-.*22k", "ImageNet-22k"),
    ("CvT", "ImageNet-1k"),
    ("beit_base_patch16_224_pt1k", "ImageNet-1k, masked"),
    ("beit", "ImageNet-22k, masked"),
    ("", "English text"),
)


def zoo() -> str:
    """The published models as Markdown tables, one a family."""
    from headstart.registry import families

    parts = []
    for family in families().values():
        rows, tasks = [], []
        for each in family.published.values():
            if each.name.startswith("vtab/"):
                tasks.append(each.name)
                continue
            data = next(data for begin, data in PRETRAINED if re.match(begin, each.name))
            hub = f"<br>`{each.hub_id}`" if each.hub_id and each.hub_id != each.name else ""
            size = each.image_size or "4,096 tokens"
            rows.append(
                f"| `{each.name}`{hub} | {each.parameters / 1e6:,.1f} M | {size} | {data} |"
                f' {each.result or "–"} | <span class="whole">{each.licence}</span> |'
            )
        head = "| name | parameters | input | pretrained on | published | licence |\n"
        parts.append(
            f"## {family.model_type}\n\n{head}|---|---|---|---|---|---|\n" + "\n".join(rows)
        )
        if tasks:
            parts.append(
                f"And {len(tasks)} networks that the authors fine-tuned to the 19 tasks of VTAB-1k,"
                f" such as `{tasks[0]}`."
            )
    return "\n\n".join(parts)


def equations(markdown: str) -> str:
    """The text with `$$…$$` and `$…$` as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def block(found: re.Match[str]) -> str:
        return f'<div class="equation">{convert(found[1].strip(), display="block")}</div>'

    markdown = re.sub(r"^\$\$\n(.*?)\n\$\$$", block, markdown, flags=re.S | re.M)
    return re.sub(
        r"(?<![\\$`\w])\$([^$`\n]+)\$(?![\w`])",
        lambda each: (
            f"<span>{convert(each[1])}</span>"
        ),  # else a line that begins with it is a block
        markdown,
    )


def on_config(config: Any) -> Any:
    """Called by mkdocs first: the footer names version and licence."""
    from headstart import __version__

    config["copyright"] = f"headstart {__version__} · Apache-2.0"
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with each page's text."""
    markdown = re.sub(r"<!-- options of ([\w ]+) -->", lambda found: options(found[1]), markdown)
    markdown = markdown.replace("<!-- keys of commands -->", keys())
    if "<!-- changelog -->" in markdown:
        text = (HERE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
        markdown = re.sub(r"\]\(docs/", "](", text)
    if "<!-- zoo -->" in markdown:
        markdown = markdown.replace("<!-- zoo -->", zoo())
    if reference.DIRECTIVE.search(markdown):
        markdown = reference.fill(markdown, described(HERE / "reference"))
    return equations(markdown) if "<!-- equations -->" in markdown else markdown
