"""`--set lr=0.01,0.03 --shots N --draws K`: the same training with each of a few values.

Every value is trained on the same K random subsets, so that differences between values are those of
pairs, which scatter less than the values themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.errors import ConfigError
from headstart.pipelines.base import read_results
from headstart.recipe import Recipe
from headstart.tasks.result import Result, Spread

FILE = "comparison.json"


@dataclass(frozen=True)
class Compared:
    """What came of one value.

    Args:
        value: The value.
        folder: The result of its first draw.
        mean: Mean of the headline metric over the draws.
        interval: 95 % confidence interval of the mean.
        difference: Mean difference from the first value, draw by draw; None of the first.
        difference_interval: 95 % confidence interval of that.
    """

    value: float
    folder: str
    mean: float
    interval: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


def several(values: Mapping[str, Any], draws: int) -> tuple[str, list[float]] | None:
    """The name that was given several numbers, as "0.01,0.03", and these; None where none was.

    Raises:
        ConfigError: Two names, a number twice, or fewer than two draws.
    """
    found = {}
    for name, value in values.items():
        if isinstance(value, str) and "," in value:
            try:
                found[name] = [float(part) for part in value.split(",")]
            except ValueError:
                continue
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"several values of {' and of '.join(found)}; compare one at a time")
    ((name, numbers),) = found.items()
    if values.get("tune") == "head":
        raise ConfigError(
            f"--set {name}={values[name]}: a head is fitted without {name}; --tune full trains"
        )
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--set {name}={values[name]} has a value twice")
    if draws < 2:
        raise ConfigError(
            f"--set {name}={values[name]} compares values on random subsets; say how many and how"
            " large with --draws 3 --shots 10"
        )
    chosen = [int(each) if each.is_integer() else each for each in numbers]
    for each in chosen:  # before the first is trained
        Recipe().updated({name: each})
    return name, chosen


def compare(
    name: str, values: Sequence[float], out: Path, run: Callable[[float, Path], Result]
) -> tuple[Result, list[Compared]]:
    """Trains with every value, and compares.

    Args:
        name: Of the recipe's value.
        values: The values.
        out: Folder of all; each value has one below it.
        run: Trains with a value into a folder, with two draws or more.

    Returns:
        The result of the value with the highest mean, and a row for each value, in their order.

    Raises:
        ConfigError: Nothing was evaluated.
    """
    results = {value: run(value, out / f"{name}={value}") for value in values}
    spreads = {value: results[value].spread for value in values}
    headline = read_results(out / f"{name}={values[0]}")["headline"]
    rows: list[Compared] = []
    for value, spread in spreads.items():
        first = spreads[values[0]]
        if spread is None or first is None:
            raise ConfigError("nothing was evaluated; give the data a validation split")
        numbers = spread.values[headline]
        row = Compared(
            value, str(results[value].folder), spread.mean(headline), spread.interval(headline)
        )
        if rows:
            pairs = zip(numbers, first.values[headline], strict=True)
            gaps = Spread(spread.seeds, spread.split, {"gap": [a - b for a, b in pairs]})
            row = Compared(
                row.value,
                row.folder,
                row.mean,
                row.interval,
                gaps.mean("gap"),
                gaps.interval("gap"),
            )
        rows.append(row)
    content = {"name": name, "metric": headline, "values": [asdict(each) for each in rows]}
    atomic_write(out / FILE, json.dumps(content, indent=2) + "\n")
    return results[max(rows, key=lambda each: each.mean).value], rows
