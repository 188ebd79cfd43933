"""Messages of the library in the words of the command line: `max_error=2` is `--max-error 2`.

The library names arguments as Python does: `name=value`, `name=` without a value, or alone where
the name has an underscore; or `option 'name'`. Whatever the running command takes as an option is
spelled as such.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Arguments of the library whose option has another name.
OTHER_NAMES = {
    "columns": "column",
    "label_threshold": "threshold",
    "lora_rank": "lora",
    "settings": "set_",
    "top_k": "top",
    "validation": "val",
}
OTHER_MEANING = ("config",)  # a model's configuration, and `train --config` is a recipe
VALUE = r"""'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^\s,;:)]*[^\s,;:).]"""
# `--set lr=1` and `--option lanes=2` are the command line's words already.
WORD = re.compile(
    rf"(?P<option>--[\w-]+\s)?(?<![\w./\\\-'\"=])(?P<name>[a-z]\w*)(?P<sign>=(?P<value>{VALUE})?)?"
    r"(?![\w/'\"]|\.\w)"
)
QUOTED = re.compile(r"\b(?P<what>option|argument) '(?P<name>\w+)'")


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        text: As it is typed, such as "--max-error".
        is_flag: Whether it takes no value.
    """

    text: str
    is_flag: bool


def options_of(command: Any) -> dict[str, Option]:
    """The options of a click command by the names of their parameters, and other names of them."""
    found = {
        each.name: Option(max(each.opts, key=len), bool(each.is_flag))
        for each in command.params
        if each.opts[0].startswith("-") and each.name not in OTHER_MEANING
    }
    others = {name: found[own] for name, own in OTHER_NAMES.items() if own in found}
    return others | found


def spelled(text: str, options: Mapping[str, Option]) -> str:
    """A message with the options of a command as they are typed."""

    def word(match: re.Match[str]) -> str:
        option = options.get(match["name"])
        named = match["sign"] is not None or "_" in match["name"]
        if option is None or not named or match["option"] is not None:
            return match[0]
        value = (match["value"] or "").strip("'\"")
        if value in ("False", "None"):
            return f"no {option.text}"
        if option.is_flag or not value:
            return option.text
        return f"{option.text} {value}"

    def quoted(match: re.Match[str]) -> str:
        option = options.get(match["name"])
        return match[0] if option is None else f"{match['what']} {option.text}"

    return WORD.sub(word, QUOTED.sub(quoted, text))
