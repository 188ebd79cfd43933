"""Checks of the values of a configuration."""

import math
from collections.abc import Mapping
from typing import Any

from headstart.checkpoint.documents import check_kind
from headstart.errors import ConfigError

# Largest values that a file may ask for; more would fill memory and time before any weight is read.
MOST = {"num_labels": 1_000_000, "layers": 1_000, "image side": 1 << 15, "other": 1 << 27}
LAYERS = ("num_hidden_layers", "depths", "depth", "auxiliary_num_convs")
SIDES = ("image_size", "patch_size")
NOT_NEGATIVE = ("initializer_range", "_norm_eps")  # ends of names


def check_values(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of another type than its field's, or out of all proportion."""
    for name, value in values.items():
        if name not in kinds:
            continue  # Python's own error names it
        check_kind(value, kinds[name], name, ConfigError)
        kind = {**dict.fromkeys(LAYERS, "layers"), **dict.fromkeys(SIDES, "image side")}
        most = MOST[kind.get(name, "other")]
        numbers = value if isinstance(value, list | tuple) else [value]
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name}={value!r:.80}; expected finite numbers")
            if isinstance(number, int | float) and not -most <= number <= most:
                raise ConfigError(f"{name}={value!r:.80}; expected at most {most:,}")
            if isinstance(number, int | float) and number < 0 and name.endswith(NOT_NEGATIVE):
                raise ConfigError(f"{name}={value!r:.80}; expected 0 or more")
        if name in LAYERS and sum(numbers) > most:
            raise ConfigError(f"{name} has {sum(numbers):,} layers; expected at most {most:,}")


def as_label(number: Any) -> int:
    """A class number, which JSON can only keep as text."""
    if isinstance(number, int) or (
        isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 10
    ):
        return int(number)
    raise ConfigError(f"the class number {number!r:.80} is not an integer")


def list_of(name: str, value: Any, length: int, kind: str = "stage") -> None:
    """Raises ConfigError unless `value` is a list or tuple of that length."""
    if not isinstance(value, list | tuple) or len(value) != length:
        got = len(value) if isinstance(value, list | tuple) else repr(value)
        raise ConfigError(f"{name} has {got} entries; expected {length}, one per {kind}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ConfigError unless `value` is among the choices."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")


def align_outputs(
    out_features: list[str] | None, out_indices: list[int] | None, stage_names: list[str]
) -> tuple[list[str], list[int]]:
    """Names and numbers of the stages that a backbone returns.

    Either may be given, the last stage is the default.
    """
    count = len(stage_names)
    if out_features is None and out_indices is None:
        return [stage_names[-1]], [count - 1]
    if out_features is None:
        indices = [i + count if i < 0 else i for i in out_indices or []]
        if any(not 0 <= i < count for i in indices):
            raise ConfigError(
                f"out_indices={list(out_indices or [])}; expected {-count} to {count - 1}, for"
                f" {', '.join(stage_names)}"
            )
        names = [stage_names[i] for i in indices]
    else:
        names = list(out_features)
        unknown = [name for name in names if name not in stage_names]
        if unknown:
            raise ConfigError(
                f"out_features has {unknown[0]!r}; expected some of {', '.join(stage_names)}"
            )
        indices = [stage_names.index(name) for name in names]
        if out_indices is not None and [i % count for i in out_indices] != indices:
            raise ConfigError(
                f"out_features={names} and out_indices={list(out_indices)} name different stages;"
                " give one of them"
            )
    if indices != sorted(set(indices)):
        raise ConfigError(
            f"out_features={names} must be in the order of the stages, each once:"
            f" {', '.join(stage_names)}"
        )
    # The numbers are kept as they were given: -1 stays -1.
    return names, indices if out_indices is None else list(out_indices)
