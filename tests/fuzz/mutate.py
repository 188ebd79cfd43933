"""Damages a whole file: bytes, text, the values of JSON, the members of a zip archive."""

import copy
import io
import json
import random
import struct
import zipfile
from typing import Any

# Values that programs trip over; texts that begin with "raw:" are written as they are.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "",
    "x", "0", "-1", "a" * 3000,
    "../x", "/etc/passwd", "\0", "\u00e9", "\U0001f600", "\x1b[31m", "$x$", "[b]", [], [[]], {},
    {"a": {}}, [0] * 300, [None], ["a", 1], {"0": "a"},
    "raw:NaN", "raw:Infinity", "raw:1e999", "raw:" + "9" * 400, "raw:" + "9" * 5000,
    'raw:"\\ud800"', "raw:" + "[" * 70 + "]" * 70,
    "raw:" + "[" * 3000 + "]" * 3000, 'raw:{"a":1,"a":2}', "raw:[" + "1," * 3000 + "1]", "raw:'",
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b'"', b"'", b",", b";", b"\t", b"\n\n", b"[" * 200,
    b"{" * 2000, b"&a ", b"*a", b"!!timestamp x",
    b"!!python/name:os.system", b"<<: ", b"0b_", b"9" * 5000, b".nan", b"1e999", b"\xed\xa0\x80",
    b"\xe2\x80\xa8", b"-DOCSTART-", b"1\t", b"#", b"..",
    b"x" * 5000, b"{0..9}", "²".encode(), "①".encode(), b"\x85", b"\x1b[2J", b"- ", b"? ", b": ",
    b"|", b"~", b"true", b"-1", b"1-2", b"99999999999999999999",
]  # fmt: skip


def damaged(kind: str, content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file; `other` is another whole file of the format."""
    if kind == "json" and rng.random() < 0.85:
        return json_values(content, rng)
    if kind == "lines" and rng.random() < 0.85:
        lines = content.split(b"\n")
        for _ in range(rng.choice((1, 1, 2))):
            i = rng.randrange(len(lines))
            lines[i] = json_values(lines[i], rng)
        return b"\n".join(lines)
    if kind == "zip" and rng.random() < 0.7:
        return zip_members(content, rng)
    if kind in ("text", "json", "lines") and rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 2, 3))):
            i = rng.randrange(len(content) + 1)
            skipped = rng.choice((0, 0, 1, 3, 10))
            content = content[:i] + rng.choice(TOKENS) + content[i + skipped :]
        return content
    return some_bytes(content, other, rng)


def some_bytes(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flipped, inserted, removed, repeated and exchanged bytes, and odd integers."""
    data = bytearray(content)
    # Headers are where formats differ: half of the damage is near the beginning or the end.
    spots = (
        lambda: rng.randrange(len(data)),
        lambda: min(len(data) - 1, rng.randrange(64)),
        lambda: max(0, len(data) - 1 - rng.randrange(128)),
    )
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        i, what = rng.choice(spots)(), rng.randrange(9)
        n = rng.choice((1, 2, 4, 8, 32, 200))
        if what == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[i] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what == 2:
            del data[i:]
        elif what == 3:
            del data[i : i + n]
        elif what == 4:
            data[i:i] = rng.randbytes(n)
        elif what == 5:
            data[i:i] = data[i : i + n] * rng.choice((1, 2, 50))
        elif what == 6:
            j = rng.randrange(len(data))
            data[i : i + n] = data[j : j + n]
        elif what == 7:
            j = rng.randrange(max(1, len(other)))
            data[i:] = other[j:]
        else:
            code = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            most = 256 ** struct.calcsize(code) - 1
            value = rng.choice((0, 1, most, most // 2, most // 2 + 1, len(data), 1 << 12, 1 << 31))
            data[i : i + struct.calcsize(code)] = struct.pack(code, min(value, most))
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, todo = [], [value]
    while todo:
        here = todo.pop()
        pairs = here.items() if isinstance(here, dict) else enumerate(here)
        for key, child in pairs:
            found.append((here, key))
            if isinstance(child, dict | list):
                todo.append(child)
    return found


def json_values(content: bytes, rng: random.Random) -> bytes:
    """Other values, missing keys, keys twice and other keys somewhere in a JSON document."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # an earlier change may have nested it too deep
        return some_bytes(content, content, rng)
    if not isinstance(value, dict | list) or rng.random() < 0.03:
        return _text(rng.choice(ODD))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            break
        holder, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0 and isinstance(holder, dict):
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "\0", "é", "9" * 50, "a" * 2000, "0", "-1"))] = holder[key]
        elif what == 2 and isinstance(holder[key], list):
            holder[key] = holder[key] * rng.choice((0, 2, 40))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return _text(value)


def _text(value: Any) -> bytes:
    text = json.dumps(value)
    while (i := text.find('"raw:')) >= 0:
        end = i + 5
        while text[end] != '"' or text[end - 1] == "\\":
            end += 1
        raw = json.loads(text[i : end + 1]).removeprefix("raw:")
        text = text[:i] + raw + text[end + 1 :]
    return text.encode("utf-8", "surrogatepass")


def zip_members(content: bytes, rng: random.Random) -> bytes:
    """A zip archive one of whose members is damaged, its checksum being right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return some_bytes(content, content, rng)
    hit = rng.randrange(len(members))
    for i, (info, _) in enumerate(members):
        if info.filename.endswith("data.pkl") and rng.random() < 0.7:
            hit = i
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i, (info, data) in enumerate(members):
            new = zipfile.ZipInfo(info.filename)
            new.compress_type = info.compress_type
            archive.writestr(new, some_bytes(data, data, rng) if i == hit else data)
    return out.getvalue()
