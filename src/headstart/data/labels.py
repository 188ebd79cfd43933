"""What the labels of a data set are: one class, several classes, or numbers; found by looking at
them, for images and texts alike.

Three kinds, named as `problem_type` of a configuration is: one class for each example, any number
of classes, one or more numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint.documents import parse_json
from headstart.errors import ConfigError, DataError, FileFormatError

SINGLE, MULTI, REGRESSION = KINDS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
WORDS = {SINGLE: "one class each", MULTI: "several classes each", REGRESSION: "numbers"}
SEPARATORS = "|;"  # between the classes in one cell of text
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
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


def as_number(cell: Any) -> float | None:  # noqa: ANN401 - what a table holds
    """A cell as a number, or None."""
    try:
        return None if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return None


def as_flag(cell: Any) -> bool | None:  # noqa: ANN401 - what a table holds
    """A cell as yes (1, true) or no (0, false), or None."""
    return FLAGS.get(str(cell).strip().lower())


def as_class(cell: Any) -> str:  # noqa: ANN401 - what a table holds
    """A class as text; 1.0 is 1."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip()


def as_list(cell: Any) -> list[Any] | None:  # noqa: ANN401 - what a table holds
    """The classes in a cell that holds a list of them, also one written as JSON.

    None for anything else.
    """
    if isinstance(cell, str) and cell.strip().startswith("["):
        try:
            cell = parse_json(cell, "a cell")
        except FileFormatError:
            return None
    return list(cell) if isinstance(cell, (list, tuple, set, np.ndarray)) else None


def separated(cell: str) -> list[str]:
    """The classes in a cell of text with separators between them; an empty cell has none."""
    for mark in SEPARATORS[1:]:
        cell = cell.replace(mark, SEPARATORS[0])
    return [part.strip() for part in cell.split(SEPARATORS[0]) if part.strip()]


def class_key(name: str) -> tuple[int, int, str]:
    """Order of classes: numbers by value, then names by letter."""
    return (0, int(name), name) if name.isdigit() else (1, 0, name)


def kind_of(labels: Sequence[Cells], *, several: bool = False) -> str:
    """The kind of labels by their cells: one cell an example, or several of one kind.

    Args:
        labels: The cells of every example.
        several: Whether the column says by its name that it holds several classes ("labels",
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
    parts = as_list(cell)
    if parts is not None and len(parts) == 1:
        cell = parts[0]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, bool) or not isinstance(cell, (str, int)) or not str(cell).strip():
        raise DataError(f"{place}: {columns[0]} is {cell!r}; expected a class name or number")
    return with_name(str(cell).strip(), names, place, columns[0])


def with_name(label: str, names: Sequence[str] | None, place: str, column: str) -> str:
    """The name that a number stands for, where there are names."""
    if names is None or not label.isdigit() or label in names:
        return label
    if int(label) >= len(names):
        raise DataError(
            f"{place}: {column} is {label}, but classes.json names {len(names)} classes"
        )
    return names[int(label)]


def numbers_in(cells: Cells, columns: Sequence[str], place: str) -> list[float]:
    """The numbers of an example.

    Raises:
        DataError: A cell is no number, or not finite.
    """
    found = []
    for column, cell in zip(columns, cells, strict=True):
        value = as_number(cell)
        if value is None or not np.isfinite(value):
            raise DataError(f"{place}: {column} is {cell!r}; expected a number")
        found.append(value)
    return found


# Splits -------------------------------------------------------------------------------------------


def held_out_of(
    labels: NDArray[Any], kind: str, fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which examples are held out, (N,): a share of every class, or of every range of a number.

    Args:
        labels: (N,) classes, (N, V) zeros and ones, or (N, V) numbers.
        kind: What they are.
        fraction: Share to hold out.
        rng: Decides which.
    """
    if kind == SINGLE:
        return stratified(labels, fraction, rng)
    if kind == MULTI:
        return stratified_labels(labels > 0.5, fraction, rng)
    groups = max(1, min(10, int(len(labels) * fraction)))
    return stratified(
        labels[:, 0].argsort(kind="stable").argsort(kind="stable") * groups // len(labels),
        fraction,
        rng,
    )


def stratified(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which examples are held out.

    This share of every class, at least one of a class with two, none of a class with one.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = (
            0 if len(members) < 2 else min(len(members) - 1, max(1, round(len(members) * fraction)))
        )
        held_out[rng.permutation(members)[:count]] = True
    return held_out


def stratified_labels(
    labels: NDArray[np.bool_], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """The same where an example has any number of labels (N, V): iterative stratification (Sechidis
    et al. 2011).

    The rarest label goes first, and each of its examples to the side that lacks it most. Every
    label that occurs stays in training.
    """
    N, V = labels.shape
    held_out, left = np.zeros(N, dtype=bool), np.ones(N, dtype=bool)
    sides = np.array([1 - fraction, fraction])
    # (2, V + 1): of each label, and of examples
    wanted = np.outer(sides, np.append(labels.sum(0), N))
    while left.any():
        counts = labels[left].sum(0)
        label = int(np.where(counts > 0, counts, N + 1).argmin()) if counts.any() else None
        members = (
            np.flatnonzero(left & labels[:, label]) if label is not None else np.flatnonzero(left)
        )
        for i in rng.permutation(members):
            lack = (wanted[:, label], wanted[:, V]) if label is not None else (wanted[:, V],)
            side = int(max((0, 1), key=lambda s: (*(row[s] for row in lack), -s)))
            held_out[i] = side == 1
            wanted[side, :V] -= labels[i]
            wanted[side, V] -= 1
        left[members] = False
    for label in range(V):
        members = np.flatnonzero(labels[:, label])
        if len(members) and held_out[members].all():
            held_out[members[0]] = False
    return held_out


def few_shot(labels: NDArray[Any], shots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `shots` examples of every class (all of a class that has fewer), in their order.

    Args:
        labels: (N,) classes; or (N, V) zeros and ones: then each label is in at least so many
            examples, the rarest chosen first.
        shots: Examples of each class.
        rng: Decides which.
    """
    if shots < 1:
        raise DataError(f"--shots {shots}: at least one example of each class is needed")
    if labels.ndim == 1:
        chosen = [
            rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)
        ]
        return np.sort(np.concatenate(chosen))
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.argsort((labels > 0.5).sum(0), kind="stable"):
        has = labels[:, label] > 0.5
        taken[
            rng.permutation(np.flatnonzero(has & ~taken))[
                : max(0, shots - int((has & taken).sum()))
            ]
        ] = True
    return np.flatnonzero(taken)
