"""What is refused in JSON, YAML and text, and how the error reads."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from headstart.checkpoint.documents import (
    as_dataclass,
    is_kind,
    parse_json,
    parse_yaml,
    read_bytes,
    read_object,
    read_text,
    value_of,
)
from headstart.errors import ConfigError, FileFormatError, HubError, listed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x is not JSON: Expecting property name"),
        ('{"a": 1, "a": 2}', "x: the key 'a' occurs twice"),
        ("[" * 65 + "]" * 65, "x: nested more than 64 deep"),
        ("[" * 100_000, "x: nested more than 64 deep"),
        ("[NaN]", "x: NaN is not a number"),
        ("1e999", "x: the number 1e999 is larger than any float"),
        ("9" * 5000, "x: an integer has 5000 digits"),
        (r'"\ud800"', "x: a text holds half of a surrogate pair"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(FileFormatError, match=message):
        parse_json(text, "x")


def test_json_that_is_read():
    assert parse_json(r'{"a": [1, 2.5, null, "\ud83d\ude00"]}', "x") == {"a": [1, 2.5, None, "😀"]}
    assert parse_json("[" * 64 + "]" * 64, "x")
    assert parse_json("[1" + "0" * 30 + "]", "x") == [10**30]
    assert str(parse_json("NaN", "x", nan=True)) == "nan"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [1", "x is not YAML: while parsing a flow sequence"),
        ("a: &b [1]\nc: *b", r"x: the alias \*b is not read"),
        ("a: !!python/object/apply:os.system [true]", "x: the tag .*os.system is not read"),
        ("a: !!timestamp x", "x: the tag .*timestamp is not read"),
        ("a: 1\na: 2", "x: the key 'a' occurs twice"),
        ("a: " + "[" * 20_000, "x: nested more than 64 deep"),
        ("a: .nan", "x: Out of range float"),
        ('a: "\\UFFFFFFFF"', "x: Python int too large"),
        ("? [a]\n: b", "x: a key is a list or a mapping"),
        ("a: " + "9" * 41, "x: an integer has more than 40 digits"),
        ("a" * (1 << 20) + "b", "x has more than 1,048,576 characters"),
    ],
)
def test_yaml_that_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x", ConfigError)


def test_yaml_holds_plain_values_only():
    values = parse_yaml("a: 1\nb: 2020-01-01\nc: [x, 1.5, true, null]\n<<: y", "x")
    assert values == {"a": 1, "b": "2020-01-01", "c": ["x", 1.5, True, None], "<<": "y"}
    assert parse_yaml("{}", "x") == {}


@pytest.mark.parametrize(
    "text", ["010", "1:30", "1_000", "0x1f", "0b_", "no", "yes", "off", "y", "1:30.5", "=", "5e"]
)
def test_yaml_words_that_some_readers_take_for_numbers(text):
    """Each is a text, as a value and as a key."""
    assert parse_yaml(f"a: {text}\n{text}: 1", "x") == {"a": text, text: 1}


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001), ("-5", -5), ("+.5", 0.5), ("1.", 1.0), ("0", 0), ("2E4", 20000.0),
        ("True", True), ("FALSE", False), ("Null", None), ("~", None), ("", None), ("'1'", "1"),
    ],
)  # fmt: skip
def test_yaml_values_are_those_of_its_second_edition(text, value):
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value and type(found) is type(value)


def test_yaml_keys_are_texts_as_they_are_written():
    text = "true: 1\n1.50: 2\n~: 3\n-3: 4\n"
    assert parse_yaml(text, "x") == {"true": 1, "1.50": 2, "~": 3, "-3": 4}


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(FileFormatError, match="is not a regular file"):
            read_bytes(path, 10)
    with pytest.raises(FileFormatError, match="absent: no such file"):
        read_bytes(tmp_path / "absent", 10)
    with pytest.raises(FileFormatError, match="embedded null byte"):
        read_bytes("a\0b", 10)


def test_size_and_encoding_of_files(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(path) == {"a": 1}
    with pytest.raises(FileFormatError, match="more than 5 bytes"):
        read_object(path, limit=5)
    path.write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match=r"t\.json is not UTF-8 text \(byte 2\)"):
        read_text(path, error=ConfigError)
    path.write_text("[1]")
    with pytest.raises(FileFormatError, match=r"t\.json holds a list; expected an object"):
        read_object(path)


@dataclass
class Part:
    name: str
    sizes: tuple[int, int] = (1, 1)
    ratio: float | None = None


def test_a_dataclass_from_a_file_names_what_is_wrong():
    assert as_dataclass(Part, {"name": "a", "sizes": [2, 3]}, "f").sizes == [2, 3]
    for values, message in (
        ({}, "f has no 'name'"),
        ([], "f has no 'name'"),
        ({"name": 1}, "f: 'name'=1; expected text"),
        ({"name": "a", "sizes": [1, 2, 3]}, r"f: 'sizes'=\[1, 2, 3\]; expected a list of integers"),
        ({"name": "a", "ratio": "x"}, "f: 'ratio'='x'; expected a number or null"),
        ({"name": "a", "more": 1}, "f has the unknown key 'more'"),
    ):
        with pytest.raises(FileFormatError, match=message):
            as_dataclass(Part, values, "f")


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1 << 63, int, False),
        (1.0, int, False),
        ([1, 2], tuple[int, ...], True),
        ([1, "2"], list[int], False),
        ("a", Literal["a", "b"], True),
        (True, Literal[1], False),
        ({"a": 1}, dict[str, int], True),
        ({1: 1}, dict[str, int], False),
        (None, int | None, True),
        (object(), Any, True),
    ],
)
def test_kinds(value, kind, fits):
    assert is_kind(value, kind) is fits


def test_values_are_named_with_file_and_key():
    assert value_of({"a": 1}, "a", int, "f") == 1
    with pytest.raises(FileFormatError, match="f: 'a'='1'; expected an integer"):
        value_of({"a": "1"}, "a", int, "f")


def test_messages_are_short_and_printable():
    message = str(FileFormatError("begin " + "x" * 10_000 + " end"))
    assert len(message) < 900 and message.startswith("begin") and message.endswith("end")
    assert str(HubError("a\x1b[31m\ud800\r\nb\tc")) == "a\\x1b[31m\\ud800\\r\nb\tc"
    lines = str(ConfigError("\n".join(map(str, range(100))))).split("\n")
    assert len(lines) == 40 and lines[-1] == "and 61 more lines"


def test_listed():
    assert listed([1, 2, 3], 3) == "1, 2, 3"
    assert listed("abcd", 2) == "a, b and 2 more"
    assert listed(["a", "b", "c"], 2, "\n") == "a\nb and 1 more"
