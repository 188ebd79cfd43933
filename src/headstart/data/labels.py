"""What the labels of a data set are: one class, several classes, or numbers; found by looking at
them, for images and texts alike.

Three kinds, named as `problem_type` of a configuration is: one class for each example, any number
of classes, one or more numbers.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from headstart.checkpoint.documents import parse_json
from headstart.errors import ConfigError, DataError, FileFormatError, listed

SINGLE, MULTI, REGRESSION = KINDS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
WORDS = {SINGLE: "one class each", MULTI: "several classes each", REGRESSION: "numbers"}
SEPARATORS = "|;"  # between the classes in one cell of text
# spaces that do not break become spaces; the mark of byte order and what has no width go
SAME_LOOK = {0xA0: " ", 0x2007: " ", 0x202F: " ", 0xAD: None, 0x200B: None, 0x2060: None}
SAME_LOOK |= {0xFEFF: None}
MISSING = ("NA", "N/A", "#N/A", "nan", "NaN", "NULL")  # what tables hold where nothing is known
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
# a text in quotes, or a number, as Python writes them inside a list
ITEM = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([-+]?\d[\w.+-]*)""")
# a list whose beginning or end is missing: ['a', 'b or a', 'b']
CUT_LIST = re.compile(r"""[\[({]\s*['"]|.*['"]\s*[\])}]$""", re.DOTALL)
DECIMAL_COMMA = re.compile(r"[-+]?\d[\d.' ]*,\d+")
Cells = tuple[Any, ...]


def kind_named(text: str) -> str:
    """A kind as an option names it: "multi-label" is short for "multi_label_classification".

    Raises:
        ConfigError: No such kind.
    """
    found = [
        kind
        for kind in KINDS
        if text and kind.startswith(text.strip().lower().replace("-", "_").replace(" ", "_"))
    ]
    if len(found) != 1:
        raise ConfigError(f"problem_type={text!r}; expected {', '.join(KINDS)}")
    return found[0]


def as_number(cell: Any) -> float | None:
    """A cell as a number, or None."""
    try:
        return None if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return None


def as_flag(cell: Any) -> bool | None:
    """A cell as yes (1, true) or no (0, false), or None."""
    return FLAGS.get(str(cell).strip().lower())


def as_class(cell: Any) -> str:
    """A class as text; 1.0 is 1."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return class_name(str(cell))


def as_list(cell: Any) -> list[Any] | None:
    """The classes in a cell that holds a list of them, also one written as JSON, Python or NumPy
    write it.

    None for anything else.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if text[:1] + text[-1:] not in ("[]", "()", "{}"):
            return None
        try:
            cell = parse_json(text, "a cell") if text[0] == "[" else _written_list(text)
        except FileFormatError:
            cell = _written_list(text)
    return list(cell) if isinstance(cell, (list, tuple, set, np.ndarray)) else None


def _written_list(text: str) -> list[str] | None:
    """What `str` of a list, tuple, set or array of texts or numbers holds; None for other texts."""
    quoted = "'" in text or '"' in text
    if not quoted and text[0] != "[":
        return None
    found = ITEM.findall(text[1:-1])
    if ITEM.sub("", text[1:-1]).strip(", \n\t"):
        return None
    return [re.sub(r"\\(.)", r"\1", a or b) or number for a, b, number in found]


def check_list(cell: Any, place: str, column: str, *, several: bool = False) -> None:
    """Refuses a cell that begins or ends as a list does and that is none.

    Args:
        cell: The cell.
        place: Where it is.
        column: Its column.
        several: Whether other cells of the column hold several classes: then one square bracket is
            enough.

    Raises:
        DataError: It is such a cell.
    """
    if not isinstance(cell, str) or as_list(cell) is not None:
        return
    text = cell.strip()
    if CUT_LIST.match(text) or (several and (text[:1] == "[") != (text[-1:] == "]")):
        raise DataError(
            f"{place}: {column} is {cell!r:.200}, which begins or ends like a list; expected a"
            " whole list such as ['a', 'b'], or a class name"
        )


def separated(cell: str) -> list[str]:
    """The classes in a cell of text with separators between them; an empty cell has none."""
    for mark in SEPARATORS[1:]:
        cell = cell.replace(mark, SEPARATORS[0])
    return [part.strip() for part in cell.split(SEPARATORS[0]) if part.strip()]


def is_number(text: str) -> bool:
    """Whether a text is a non-negative integer in plain digits: not ② or ٣."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def class_key(name: str) -> tuple[int, int, str]:
    """Order of classes: numbers by value, then names by letter."""
    return (0, int(name), name) if is_number(name) else (1, 0, name)


def class_name(text: str) -> str:
    """A class name in one Unicode form, without spaces around it: é is one letter or two.

    Spaces that do not break are spaces, and what has no width is left out.
    """
    return unicodedata.normalize("NFC", text.translate(SAME_LOOK)).strip()


def look_alikes(classes: Iterable[str]) -> list[str]:
    """Notes on classes that may be one class, or none: they differ in letter case alone, or stand
    for a missing label.
    """
    by_case: dict[str, list[str]] = {}
    for name in classes:
        by_case.setdefault(name.casefold(), []).append(name)
    notes = [
        f"classes that differ in letter case alone: {listed(names)}; give them one name if they are"
        " one class"
        for names in by_case.values()
        if len(names) > 1
    ]
    commas = [name for names in by_case.values() for name in names if DECIMAL_COMMA.fullmatch(name)]
    others = [name for names in by_case.values() for name in names if name not in commas]
    if commas and all(as_number(name) is not None for name in others):
        notes.append(
            f"classes {listed(sorted(commas), 3)} look like numbers with decimal commas; write"
            " points for regression"
        )
    missing = [name for names in by_case.values() for name in names if name in MISSING]
    if missing:
        notes.append(f"class {listed(missing)}: remove these rows if they have no label")
    return notes


def kind_of(labels: Sequence[Cells], *, several: bool = False) -> str:
    """The kind of labels by their cells: one cell an example, or several of one kind.

    Args:
        labels: The cells of every example.
        several: Whether the column's name promises several classes ("labels",
            "tags").
    """
    cells = [cell for row in labels for cell in row]
    if labels and len(labels[0]) > 1:
        if all(as_flag(cell) is not None for cell in cells):
            return (
                SINGLE
                if all(sum(bool(as_flag(cell)) for cell in row) == 1 for row in labels)
                else MULTI
            )
        return REGRESSION
    if any(as_list(cell) is not None for cell in cells):
        return MULTI
    if _separated(cells, several):
        return MULTI
    numbers = [as_number(cell) for cell in cells]
    if all(n is not None for n in numbers) and any(
        n is not None and not n.is_integer() for n in numbers
    ):
        return REGRESSION
    return SINGLE


def _separated(cells: Iterable[Any], several: bool) -> bool:
    """Whether cells of text hold several classes.

    There are separators, and what is between them is seen in other cells too.
    """
    texts = {cell.strip() for cell in cells if isinstance(cell, str)}
    split = [separated(text) for text in texts if any(mark in text for mark in SEPARATORS)]
    if several or not split:
        return bool(split)
    seen: dict[str, int] = {}
    for text in texts:
        for part in set(separated(text)):
            seen[part] = seen.get(part, 0) + 1
    return any(seen[part] > 1 for parts in split for part in parts)


def classes_in(
    cells: Cells, columns: Sequence[str], place: str, names: Sequence[str] | None = None
) -> list[str]:
    """The classes of an example that may have several: of a list, of text with separators, or of
    columns of 0 and 1.

    Raises:
        DataError: A cell that is none of these.
    """
    if len(cells) > 1:
        flags = [as_flag(cell) for cell in cells]
        wrong = next((i for i, flag in enumerate(flags) if flag is None), None)
        if wrong is not None:
            raise DataError(f"{place}: {columns[wrong]} is {cells[wrong]!r}; expected 0 or 1")
        return [column for column, flag in zip(columns, flags, strict=True) if flag]
    cell = cells[0]
    parts = as_list(cell)
    if parts is None:
        if not isinstance(cell, str):
            raise DataError(
                f"{place}: {columns[0]} is {cell!r}; expected a list of classes, such as a|b"
            )
        check_list(cell, place, columns[0], several=True)
        parts = separated(cell)
    return sorted(
        {with_name(as_class(part), names, place, columns[0]) for part in parts if as_class(part)}
    )


def class_in(
    cells: Cells, columns: Sequence[str], place: str, names: Sequence[str] | None = None
) -> str:
    """The class of an example that has one.

    Raises:
        DataError: It has none, or more.
    """
    if len(cells) > 1:
        found = classes_in(cells, columns, place)
        if len(found) != 1:
            raise DataError(
                f"{place}: {len(found)} of the columns {', '.join(columns)} are 1; expected one"
            )
        return found[0]
    cell = cells[0]
    check_list(cell, place, columns[0])
    parts = as_list(cell)
    if parts is not None and len(parts) == 1:
        cell = parts[0]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, bool) or not isinstance(cell, (str, int)) or not str(cell).strip():
        raise DataError(f"{place}: {columns[0]} is {cell!r}; expected a class name or number")
    return with_name(class_name(str(cell)), names, place, columns[0])


def with_name(label: str, names: Sequence[str] | None, place: str, column: str) -> str:
    """The name that a number stands for, where there are names."""
    if names is None or not is_number(label) or label in names:
        return label
    if int(label) >= len(names):
        raise DataError(
            f"{place}: {column} is {label}, but classes.json names {len(names)} classes"
        )
    return names[int(label)]


def numbers_in(cells: Cells, columns: Sequence[str], place: str) -> list[float]:
    """The numbers of an example.

    Raises:
        DataError: A cell is not a number, or not finite.
    """
    found = []
    for column, cell in zip(columns, cells, strict=True):
        value = as_number(cell)
        if value is None or not np.isfinite(value):
            comma = isinstance(cell, str) and DECIMAL_COMMA.fullmatch(cell.strip())
            point = " with a decimal point" if comma else ""
            raise DataError(f"{place}: {column} is {cell!r}; expected a number{point}")
        found.append(value)
    return found
