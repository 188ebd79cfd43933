"""Name tables: our parameter names ↔ the names in published files, as data that works both ways.

A table maps one of our names to theirs; `{}` stands for a number, the same numbers in the same
order on both sides:

    {"stages.{}.blocks.{}.conv_1.weight": "encoder.stages.{}.layers.{}.conv1.weight",
     "blocks.{}.qkv.weight": ("layer.{}.query.weight", "layer.{}.key.weight",
     "layer.{}.value.weight")}  # stacked along the first axis

A `Row` adds a conversion of the values, for a tensor that is laid out otherwise in the file.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headstart.errors import WeightsError


@dataclass(frozen=True)
class Row:
    """Where one of our tensors lies in a published file.

    Args:
        theirs: Their name, or several whose tensors are stacked along the first axis.
        to_ours: From their tensor (already stacked) to ours.
        to_theirs: The inverse (before it is split).
        copy: Their second name of the same tensor, where files may hold it twice: read before the
            first, and written too.
    """

    theirs: str | tuple[str, ...]
    to_ours: Callable[[Any], Any] | None = None
    to_theirs: Callable[[Any], Any] | None = None
    copy: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names, one or several."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass
class NameTable:
    """A two-way table of names.

    Args:
        rows: Our name → theirs; see the module's text.
        dropped: Regular expressions of their names that hold nothing we need (buffers that follow
            from the configuration).
        prefix: What files of head models put before the names of the base model, without the dot
            ("bit").
    """

    rows: Mapping[str, str | tuple[str, ...] | Row]
    dropped: tuple[str, ...] = ()
    prefix: str = ""
    # By the shape of a name: the few rows that may hold it.
    _ours: dict[str, list[tuple[re.Pattern[str], Row]]] = field(init=False, repr=False)
    _theirs: dict[str, list[re.Pattern[str]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._ours, self._theirs = defaultdict(list), defaultdict(list)
        for ours, each in self.rows.items():
            row = each if isinstance(each, Row) else Row(each)
            self._ours[_shape(ours)].append((_pattern(ours), row))
            for part in (*row.parts, *((row.copy,) if row.copy else ())):
                self._theirs[_shape(part)].append(_pattern(part))

    def theirs(self, ours: str) -> Row | None:
        """The row of one of our names (of the base model, or of a head with its prefix), numbers
        filled in.
        """
        base = ours.removeprefix(self.prefix + ".") if self.prefix else ours
        for name, lead in ((ours, ""), (base, f"{self.prefix}." if base != ours else "")):
            for pattern, row in self._ours.get(_shape(name), ()):
                if found := pattern.fullmatch(name):
                    parts = tuple(lead + part.format(*found.groups()) for part in row.parts)
                    copy = lead + row.copy.format(*found.groups()) if row.copy else None
                    return Row(
                        parts[0] if isinstance(row.theirs, str) else parts,
                        row.to_ours,
                        row.to_theirs,
                        copy,
                    )
        return None

    def knows(self, theirs: str) -> bool:
        """Whether a published name belongs to this family.

        To any of its networks, or dropped on purpose.
        """
        base = theirs.removeprefix(f"{self.prefix}.") if self.prefix else theirs
        known = any(
            p.fullmatch(name) for name in (theirs, base) for p in self._theirs.get(_shape(name), ())
        )
        return known or any(re.fullmatch(p, name) for name in (theirs, base) for p in self.dropped)

    def to_ours(
        self, tensors: Mapping[str, Any], wanted: Iterable[str]
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        """Picks and converts published tensors.

        Args:
            tensors: Published name → tensor (torch or numpy).
            wanted: Our names.

        Returns:
            Our name → tensor; our names that are missing; published names that were not used and
            that the table does not know.
        """
        found: dict[str, Any] = {}
        missing: list[str] = []
        used: set[str] = set()
        for ours in wanted:
            row = self.theirs(ours)
            keys = [ours] if ours in tensors else None
            if row is not None:
                keys = self._present(row, tensors)
            if keys is None:
                missing.append(ours)
                continue
            used.update(keys)
            value = (
                tensors[keys[0]] if len(keys) == 1 else concatenate([tensors[key] for key in keys])
            )
            found[ours] = row.to_ours(value) if row and row.to_ours else value
        unknown = sorted(key for key in tensors if key not in used and not self.knows(key))
        return found, missing, unknown

    def _present(self, row: Row, tensors: Mapping[str, Any]) -> list[str] | None:
        """The keys of a row as the file spells them: with the base model's prefix, or without."""
        prefix = f"{self.prefix}."
        for parts in ((row.copy,), row.parts) if row.copy else (row.parts,):
            for spell in (str, lambda key: key.removeprefix(prefix), lambda key: prefix + key):
                keys = [spell(part) for part in parts]
                if all(key in tensors for key in keys):
                    return keys
        return None

    def to_theirs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Published name → tensor, for all of our tensors.

        Raises:
            WeightsError: One of our names is not in the table.
        """
        out: dict[str, Any] = {}
        for ours, value in tensors.items():
            row = self.theirs(ours)
            if row is None:
                raise WeightsError(
                    f"{ours} has no published name; the family's table in weights.py lacks a row"
                    " for it"
                )
            value = row.to_theirs(value) if row.to_theirs else value
            parts = row.parts
            out |= (
                {parts[0]: value}
                if len(parts) == 1
                else dict(zip(parts, split(value, len(parts)), strict=True))
            )
            if row.copy:  # in memory of its own: what lies in one place is stored once
                out[row.copy] = value.copy() if isinstance(value, np.ndarray) else value.clone()
        return out


@dataclass(frozen=True)
class PublishedNames:
    """The names of a family whose networks carry the published ones.

    Files differ in prefixes alone: that of the base model is there or not, and a wrapping module
    may have put another before every name ("module."). Same methods as `NameTable`.

    Args:
        prefix: What head models put before the names of the base model, without the dot ("bit").
        base: First words of the names of the base model ("encoder"), prefix aside.
        extra: First words of what only some of the family's networks have, heads above all: a
            file may hold them in vain.
        ignored: Regular expressions of names that hold nothing we need, prefix aside (buffers
            that follow from the configuration).
    """

    prefix: str
    base: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether a name of a file belongs to this family."""
        name = name.removeprefix("module.")
        wrapped = f".{self.prefix}." in name  # the base model inside another module
        return (
            wrapped or _first(self._bare(name)) in self.base + self.extra or self._is_ignored(name)
        )

    def spelled(self, keys: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
        """Our name → the key of a file that holds it, for all that the file has."""
        keys, wanted = set(keys), list(wanted)
        lead = self.lead(keys, wanted)
        found: dict[str, str] = {}
        for name in wanted:
            present = (lead + each for each in self._spellings(name) if lead + each in keys)
            if key := next(present, None):
                found[name] = key
        return found

    def lead(self, keys: Iterable[str], wanted: Iterable[str]) -> str:
        """What a wrapping module has put before our names in a file ("module."), or nothing."""
        candidates = {spelling for name in wanted for spelling in self._spellings(name)}
        leads = Counter(lead for key in keys if (lead := _lead(key, candidates)) is not None)
        return min(leads, key=lambda each: (-leads[each], each), default="")

    def to_ours(
        self, tensors: Mapping[str, Any], wanted: Iterable[str]
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        """Picks the tensors of a network.

        Args:
            tensors: Name in the file → tensor.
            wanted: The network's names.

        Returns:
            Our name → tensor; our names that are missing; names in the file that were not used
            and that no network of the family would use.
        """
        wanted = list(wanted)
        spelled = self.spelled(tensors, wanted)
        used = set(spelled.values())
        unknown = sorted(
            key
            for key in tensors
            if key not in used
            and not self._is_ignored(key)
            and _first(self._bare(key)) not in self.extra
        )
        missing = [name for name in wanted if name not in spelled]
        return {name: tensors[key] for name, key in spelled.items()}, missing, unknown

    def to_theirs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors as a file holds them: each under its name, a shared one under its first."""
        first: dict[int, str] = {}
        for name, value in tensors.items():
            first.setdefault(id(value), name)
        return {name: value for name, value in tensors.items() if first[id(value)] == name}

    def _spellings(self, name: str) -> tuple[str, ...]:
        """A name of ours, and how it is written with or without the base model's prefix."""
        bare = self._bare(name)
        if bare != name:
            return name, bare
        return (name, f"{self.prefix}.{name}") if self.prefix else (name,)

    def _bare(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name

    def _is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(rf"(.*\.)?{each}", name) for each in self.ignored)


Names = NameTable | PublishedNames


def _first(name: str) -> str:
    return name.partition(".")[0]


def _lead(key: str, candidates: Container[str]) -> str | None:
    """What stands before a known name at the end of a key, or None where the key ends in none."""
    parts = key.split(".")
    for i in range(len(parts)):
        if ".".join(parts[i:]) in candidates:
            return key[: len(key) - len(".".join(parts[i:]))]
    return None


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


def _shape(name: str) -> str:
    """A name or pattern with every number replaced by `{}`."""
    return re.sub(r"\d+", "{}", name)


def concatenate(parts: list[Any]) -> Any:
    """Tensors of either kind, one after the other along the first axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def split(value: Any, count: int) -> list[Any]:
    """The inverse: equal parts along the first axis."""
    if isinstance(value, np.ndarray):
        return np.split(value, count)
    return [part.contiguous() for part in value.chunk(count)]
