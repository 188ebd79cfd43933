"""JSON, YAML and text from outside: bytes → checked plain values, or one error that names file and
key.

Every document is bounded before it is parsed (size, regular files only) and while it is parsed
(depth, digits, repeated keys, aliases), and holds nothing that breaks a program later on: no lone
surrogate, no NaN unless asked for. Nothing above this module parses JSON or YAML itself.
"""

import dataclasses
import functools
import json
import math
import re
import stat
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from headstart.errors import FileFormatError, HeadstartError, MissingExtraError

MAX_JSON, MAX_YAML = 256 << 20, 1 << 20  # bytes
MAX_TEXT = 2 << 30
MAX_DEPTH = 64
MAX_DIGITS = 40  # of an integer; tokenizer_config.json writes 10^30 for "no limit"
MAX_INTEGER = (1 << 63) - 1  # what torch, NumPy and the engines can hold

Error = type[HeadstartError]
T = TypeVar("T")
# What values without quotes stand for in YAML 1.2's core schema, and how they begin.
YAML_WORDS = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)$", "~nN"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"[-+]?(?:\.\d+|(?:0|[1-9]\d*)(?:\.\d*)?)(?:[eE][-+]?\d+)?$", "-+.0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """A value that is valid JSON or YAML, and is not read."""


# Bytes and text -----------------------------------------------------------------------------------


def check_regular(path: Path | str, error: Error = FileFormatError) -> None:
    """Raises `error` for a device, a pipe or a folder; a missing file is Python's own error."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise error(f"{path} is not a regular file; devices, pipes and folders are not read")


def read_bytes(path: Path | str, limit: int, error: Error = FileFormatError) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file; a device, a FIFO or a folder is refused before it is opened.
        limit: Largest size in bytes.
        error: Class of the error.

    Raises:
        HeadstartError: Of the class `error`: missing, unreadable, not a regular file, or too large.
    """
    try:
        check_regular(path, error)
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except HeadstartError:
        raise
    except FileNotFoundError as problem:
        raise error(f"cannot read {path}: no such file") from problem
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"cannot read {path}: {getattr(problem, 'strerror', problem)}") from problem
    if len(data) > limit:
        raise error(f"{path} has more than {limit:,} bytes; that much is not read")
    return data


def decode_text(data: bytes, where: str, error: Error = FileFormatError) -> str:
    """UTF-8 bytes, with or without a byte order mark, as text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8 text (byte {problem.start})") from problem


def read_text(path: Path | str, limit: int = MAX_TEXT, error: Error = FileFormatError) -> str:
    """The text of a regular UTF-8 file; arguments and errors as for `read_bytes`."""
    return decode_text(read_bytes(path, limit, error), str(path), error)


# JSON ---------------------------------------------------------------------------------------------


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused(f"an integer has {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"the number {text:.40} is larger than any float")
    return value


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a number that can be used here")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice!r:.80} occurs twice")
    return values


def parse_json(text: str, where: str, error: Error = FileFormatError, *, nan: bool = False) -> Any:
    """The value of a JSON document.

    Args:
        text: The document.
        where: How errors name it: a file, or a file and its line.
        error: Class of the error.
        nan: Whether NaN and infinities, which metrics may be, are read.

    Raises:
        HeadstartError: Of the class `error`: not JSON, nested more than 64 deep, a repeated key, an
            integer of more than 40 digits, NaN, or half of a surrogate pair.
    """
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=None if nan else _constant,
            object_pairs_hook=_pairs,
        )
        _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        raise error(f"{where} is not JSON: {problem.msg} at {place}") from problem
    except UnicodeEncodeError as problem:
        raise error(f"{where}: a text holds half of a surrogate pair") from problem
    except RecursionError as problem:
        raise error(f"{where}: nested more than {MAX_DEPTH} deep") from problem
    except _Refused as problem:
        raise error(f"{where}: {problem}") from problem
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        children = [
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        ]
        level = [child for group in children for child in group if isinstance(child, dict | list)]


def read_json(
    path: Path | str, error: Error = FileFormatError, *, limit: int = MAX_JSON, nan: bool = False
) -> Any:
    """The value of a JSON file; arguments and errors as for `read_bytes` and `parse_json`."""
    return parse_json(read_text(path, limit, error), str(path), error, nan=nan)


def read_object(
    path: Path | str, error: Error = FileFormatError, *, limit: int = MAX_JSON, nan: bool = False
) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        HeadstartError: Of the class `error`: as `read_json`, or the file holds another value.
    """
    values = read_json(path, error, limit=limit, nan=nan)
    if not isinstance(values, dict):
        raise error(f"{path} holds {kind_of(values)}; expected an object like {{...}}")
    return values


# YAML ---------------------------------------------------------------------------------------------


@functools.cache
def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "train") from None

    class Loader(yaml.SafeLoader):
        """Plain values only: no tags, aliases or repeated keys, and bounded depth.

        A value without quotes is what YAML 1.2 and JSON take it for: `no` is a text and not false,
        `1:30` is not 90, `1e-3` is a number. `010`, 8 to some readers and 10 to others, is a text.
        Keys are texts as they are written.
        """

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types
            if isinstance(event, yaml.AliasEvent):
                raise _Refused(f"the alias *{event.anchor:.40} is not read; write the value again")
            if getattr(event, "tag", None):
                raise _Refused(f"the tag {event.tag:.80} is not read")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _Refused(f"nested more than {MAX_DEPTH} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _Refused("a key is a list or a mapping; expected a text")
            keys = [key.value for key, _ in node.value]
            _pairs([(key, None) for key in keys])
            values = [self.construct_object(value, deep=True) for _, value in node.value]
            return dict(zip(keys, values, strict=True))

    Loader.yaml_implicit_resolvers = {}
    for kind, pattern, first in YAML_WORDS:
        tag = f"tag:yaml.org,2002:{kind}"
        Loader.add_implicit_resolver(tag, re.compile(pattern, re.ASCII), [*first, None])
    return yaml, Loader


def parse_yaml(text: str, where: str, error: Error = FileFormatError) -> Any:
    """The value of a YAML document of plain values; arguments as for `parse_json`.

    Raises:
        MissingExtraError: PyYAML is not installed.
        HeadstartError: Of the class `error`: not YAML, longer than 1 MiB, an alias or a tag, or
            what `parse_json` refuses.
    """
    yaml, loader = _yaml()
    if len(text) > MAX_YAML:
        raise error(f"{where} has more than {MAX_YAML:,} characters; that much is not read")
    try:
        value = yaml.load(text, Loader=loader)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        _check_numbers(value)
    except yaml.YAMLError as problem:
        raise error(f"{where} is not YAML: {' '.join(str(problem).split())}") from problem
    except RecursionError as problem:
        raise error(f"{where}: nested more than {MAX_DEPTH} deep") from problem
    # infinity, half of a surrogate pair, thousands of digits; a character \\UFFFFFFFF
    except (ValueError, OverflowError) as problem:
        raise error(f"{where}: {problem}") from problem
    return value


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for child in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_numbers(child)
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise _Refused(f"an integer has more than {MAX_DIGITS} digits")


def read_yaml(path: Path | str, error: Error = FileFormatError) -> Any:
    """The value of a YAML file; errors as for `read_bytes` and `parse_yaml`."""
    return parse_yaml(read_text(path, MAX_YAML, error), str(path), error)


# Types --------------------------------------------------------------------------------------------


def is_kind(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type.

    An integer is a float too, but a bool is not a number; a list may stand for a tuple and the
    other way round. Integers have at most 63 bits.
    """
    if kind is Any or (type(value) is kind and kind is not int):
        return True
    origin, args = _parts(kind)
    if origin in (typing.Union, types.UnionType):
        return any(is_kind(value, each) for each in args)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in args)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and _are_kinds(value, origin, args)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            is_kind(key, args[0]) and is_kind(each, args[1]) for key, each in value.items()
        )
    if origin is not None:  # Callable[..., Any]
        return callable(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        number = isinstance(value, Integral) and not isinstance(value, bool)
        return number and abs(int(value)) <= MAX_INTEGER  # type: ignore[call-overload]
    return isinstance(value, kind)


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


def _are_kinds(values: Sequence[Any], origin: Any, args: tuple[Any, ...]) -> bool:
    if origin is tuple and Ellipsis not in args:
        return len(values) == len(args) and all(map(is_kind, values, args))
    return all(is_kind(each, args[0]) for each in values)


def kind_words(kind: Any) -> str:
    """An annotated type in words: "an integer or a list of integers"."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_words(each) for each in args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (list, tuple, Sequence):
        return f"a list of {_PLURALS.get(args[0], 'values')}"
    if origin in (dict, Mapping):
        return f"an object of {_PLURALS.get(args[1], 'values')}"
    return _WORDS.get(kind, "a function" if origin is not None else str(kind))


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
_PLURALS: dict[Any, str] = {int: "integers", float: "numbers", str: "texts", bool: "flags"}


def kind_of(value: object) -> str:
    """What a parsed value is, in words."""
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else _WORDS.get(type(value), "another value")


def brief(value: object) -> str:
    """A value for a message: short texts and numbers as they are, of all else the type.

    The representation of a container that a pickle made could be endless.
    """
    if isinstance(value, str | bytes):
        return f"{value[:80]!r}"
    plain = value is None or isinstance(value, bool | float)
    if plain or (isinstance(value, int) and abs(value) <= MAX_INTEGER):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def check_kind(value: object, kind: Any, where: str, error: Error = FileFormatError) -> None:
    """Raises `error` unless a value is of an annotated type.

    Args:
        value: The value.
        kind: The type, such as `list[int] | None`.
        where: File and key, for the message.
        error: Class of the error.
    """
    if not is_kind(value, kind):
        raise error(f"{where}={value!r:.80}; expected {kind_words(kind)}")


def check_names(
    cls: type, names: Iterable[str], where: str, error: Error = FileFormatError
) -> None:
    """Raises `error` for a key that would replace a method if it became an attribute."""
    for name in names:
        found = getattr(cls, name, None)
        fixed = isinstance(found, property) and found.fset is None
        if name == "self" or name.startswith("__") or callable(found) or fixed:
            raise error(f"{where} cannot have a value named {name!r:.80}")


def value_of(
    values: object, key: str, kind: Any, where: object, error: Error = FileFormatError
) -> Any:
    """The value of a key that an object must have, of a type that it must be.

    Raises:
        HeadstartError: Of the class `error`: no object, no such key, or a value of another type.
    """
    if not isinstance(values, Mapping) or key not in values:
        raise error(f"{where} has no {key!r}; the file is damaged or of another program")
    check_kind(values[key], kind, f"{where}: {key!r}", error)
    return values[key]


def as_dataclass(
    cls: type[T], values: object, where: object, error: Error = FileFormatError, **given: Any
) -> T:
    """A dataclass from the object that `dataclasses.asdict` made.

    Args:
        cls: The dataclass.
        values: The object; keys that are not fields, and missing ones, are refused.
        where: File, for the message.
        error: Class of the error.
        **given: Fields that are ready, whatever the object says.

    Raises:
        HeadstartError: Of the class `error`.
    """
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]  # every class is hashable
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        needed = field.default is field.default_factory is dataclasses.MISSING
        if field.name in given:
            found[field.name] = given[field.name]
        elif needed or isinstance(values, Mapping) and field.name in values:
            found[field.name] = value_of(values, field.name, hints[field.name], where, error)
    unknown = sorted(map(str, set(values) - set(hints))) if isinstance(values, Mapping) else []
    if unknown:
        raise error(f"{where} has the unknown key {unknown[0]!r:.80}")
    return cls(**found)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)
