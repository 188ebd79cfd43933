"""Fills `<!-- reference of NAMES -->` in the pages with what the named objects are at run time:
import path, parameters with types and defaults, methods, examples.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import griffe

import headstart

# Public methods that serve the library's own parts; a user calls none of them.
INTERNAL = {
    "add_pyramid", "align_stages", "all_states", "check_plain_head", "check_pyramid",
    "default_shape", "fit", "flags", "for_published", "grid", "longer", "loss", "make_grid",
    "model_class", "pyramid", "reset_parameters", "resized_size", "segmentation_blocks", "take",
    "BeitModel.encode", "BeitBackbone.encode",
    "adapt", "assign", "build", "build_from_config", "compute_loss", "compute_metrics",
    "compute_output_spec", "differences", "features", "finish", "from_file_values",
    "from_published", "init_module", "labels_of", "made", "name_table", "named_arrays", "padding",
    "post_init", "predict_step", "published_tensors", "read", "run_block", "scores", "to_published",
    "unpack", "value_names", "wants",
}  # fmt: skip
SPECIAL = ("__call__", "forward", "call")  # methods that a call of the object runs


def cell(text: str) -> str:
    """Text as it may stand in a cell of a table, where bars in code need no escape."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


def code(text: str) -> str:
    """Code as it may stand in a cell of a table."""
    return cell(f"`{text}`")


def plain(annotation: Any) -> str:
    """A type as a user writes it."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)


def default(value: Any) -> str:
    """A default as Python writes it; functions and classes by their names."""
    name = getattr(value, "__name__", None)
    return name if callable(value) and name else repr(value)


def defaults(thing: Any) -> dict[str, str]:
    """Parameter → default, those that a dataclass makes anew for each object included."""
    found = {
        name: default(each.default)
        for name, each in inspect.signature(thing).parameters.items()
        if each.default is not inspect.Parameter.empty
    }
    if dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            if field.default_factory is not dataclasses.MISSING:
                found[field.name] = default(field.default_factory())
    return found


def table(thing: Any, described: dict[str, str]) -> str:
    """The parameters: name, type, default, meaning."""
    known, rows = defaults(thing), []
    for name, each in inspect.signature(thing).parameters.items():
        if name == "self":
            continue
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        value = code(known[name]) if name in known else ("" if stars else "required")
        kind = code(plain(each.annotation)) if plain(each.annotation) else ""
        meaning = cell(described.get(stars + name, described.get(name, "")))
        rows.append(f"| `{stars}{name}` | {kind} | {value} | {meaning} |")
    head = "| parameter | type | default | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def docstring(thing: Any) -> list[Any]:
    """The sections of a docstring in Google's style."""
    text = inspect.getdoc(thing) or ""
    return griffe.Docstring(text).parse("google", warnings=False)


def body(thing: Any) -> Iterator[str]:
    """Text, parameters, results, errors and examples of a class or function."""
    sections = docstring(thing)
    described = {
        each.name: each.description
        for section in sections
        if section.kind.value in ("parameters", "other parameters")
        for each in section.value
    }
    shown = False
    for section in sections:
        kind = section.kind.value
        if kind == "text":
            yield textwrap.dedent(section.value)
        elif kind == "parameters" and not shown:
            shown = True
            yield table(thing, described)
        elif kind in ("returns", "yields"):
            text = " ".join(f"{each.name or ''} {each.description}" for each in section.value)
            yield f"**{kind.title()}** {cell(text)}"
        elif kind == "raises":
            rows = (f"- `{each.annotation}`: {cell(each.description)}" for each in section.value)
            yield "**Raises**\n\n" + "\n".join(rows)
        elif kind == "examples":
            parts = (text for part, text in section.value if part.value == "examples")
            yield "```pycon\n" + "\n\n".join(parts) + "\n```"
        elif kind == "admonition" and section.title == "Example":
            yield f"```pycon\n{section.value.description.strip()}\n```"
        elif kind == "admonition":
            yield f"**{section.title}** {section.value.description}"
    if not shown and not inspect.isclass(thing) or not shown and dataclasses.is_dataclass(thing):
        yield table(thing, described)


def signature(thing: Any, name: str) -> str:
    """The call as Python writes it, without types, which the table gives."""
    parts, known, named = [], defaults(thing), False
    for key, each in inspect.signature(thing).parameters.items():
        if key == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not named:
            named = True
            parts.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        named = named or each.kind is each.VAR_POSITIONAL
        parts.append(f"{stars}{key}" + (f"={known[key]}" if key in known else ""))
    line = f"{name}({', '.join(parts)})"
    if len(line) > 80:
        line = f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"
    return f"```python\n{line}\n```"


def methods(cls: type) -> dict[str, tuple[type, Any]]:
    """Public method → the class of ours that holds it, and the method."""
    found: dict[str, tuple[type, Any]] = {}
    for name in dir(cls):
        if (name.startswith("_") and name not in SPECIAL) or name in INTERNAL:
            continue
        owner = next((each for each in cls.__mro__ if name in vars(each)), None)
        if owner is None or not owner.__module__.startswith("headstart"):
            continue
        if f"{cls.__name__}.{name}" in INTERNAL or not inspect.getdoc(getattr(cls, name)):
            continue
        method = getattr(cls, name)
        if inspect.isfunction(method) or inspect.ismethod(method):
            found[name] = owner, method
    return found


def first_line(thing: Any) -> str:
    """What a docstring says first."""
    return cell((inspect.getdoc(thing) or "").split("\n\n")[0])


def public_base(cls: type, method: str) -> str:
    """The class of the reference above `cls` that describes the method, or ""."""
    for base in reversed(cls.__mro__[1:]):
        if getattr(headstart, base.__name__, None) is base and hasattr(base, method):
            return base.__name__
    return ""


def of_class(cls: type, path: str, pages: dict[str, str]) -> Iterator[str]:
    """A class: its text, its constructor, its own methods, and those that it inherits."""
    yield signature(cls, path)
    yield from body(cls)
    inherited = []
    for name, (owner, method) in methods(cls).items():
        base = public_base(cls, name)
        if owner is not cls and base and name not in SPECIAL:
            link = f"{pages[base]}#headstart.{base}.{name}"
            inherited.append(f"| [`{name}`]({link}) | {base} | {first_line(method)} |")
            continue
        yield f"#### `{name}` {{ #{path}.{name.strip('_')} }}"
        yield signature(method, name)
        yield from body(method)
    properties = [
        f"| `{name}` | {first_line(value)} |"
        for name, value in inspect.getmembers(cls, lambda each: isinstance(each, property))
        if not name.startswith("_")
        and value.fget.__module__.startswith("headstart")
        and value.__doc__
    ]
    if properties:
        yield "| property | |\n|---|---|\n" + "\n".join(properties)
    if inherited:
        yield "| inherited method | of | |\n|---|---|---|\n" + "\n".join(inherited)


def resolve(name: str) -> Any:
    """The object of a name below `headstart`: a public name, or `module.name`."""
    module, _, last = name.rpartition(".")
    return getattr(import_module(f"headstart.{module}") if module else headstart, last)


def entry(name: str, pages: dict[str, str]) -> str:
    """The section of a name as Markdown.

    Args:
        name: A public name, or `module.name`.
        pages: Name → page of the reference that describes it.
    """
    thing, path = resolve(name), f"headstart.{name}"
    last = name.rpartition(".")[2]
    parts = [f"### `{path}` {{ #{path} data-toc-label='{last}' }}"]
    if inspect.isclass(thing) and issubclass(thing, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in thing.__bases__)
        parts += [f"Is a {bases}.", inspect.getdoc(thing) or ""]
    elif inspect.isclass(thing) and thing.__name__ != last:
        page = pages[thing.__name__]
        link = f"[`{thing.__name__}`]({page}#headstart.{thing.__name__})"
        parts.append(f"Another name of {link}.")
    elif inspect.isclass(thing):
        parts += of_class(thing, path, pages)
    else:
        parts += [signature(thing, path), *body(thing)]
    return "\n\n".join(part for part in parts if part)


DIRECTIVE = re.compile(r"<!-- reference of ([\w., \n]+?) -->")


def names(markdown: str) -> list[str]:
    """The names that a page describes."""
    return re.findall(r"[\w.]+", " ".join(DIRECTIVE.findall(markdown)))


def fill(markdown: str, pages: dict[str, str]) -> str:
    """A page's text with the sections in place of the directives."""

    def sections(found: re.Match[str]) -> str:
        return "\n\n".join(entry(name, pages) for name in re.findall(r"[\w.]+", found[1]))

    return DIRECTIVE.sub(sections, markdown)
