"""`--set lr=0.01,0.03 --shots N --draws K`: the same training with each of a few values.

Every value is trained on the same K random subsets, so that differences between values are those of
pairs, which scatter less than the values themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, read_object, value_of
from headstart.errors import ConfigError
from headstart.pipelines.base import read_results
from headstart.recipe import Recipe
from headstart.tasks.result import Result, Spread
from headstart.training.loop import DivergedError

FILE = "comparison.json"


@dataclass(frozen=True)
class Compared:
    """What came of one value.

    Args:
        value: The value.
        folder: The result of its first draw.
        mean: Mean of the headline metric over the draws; None where training failed.
        interval: 95 % confidence interval of the mean.
        difference: Mean difference from the first value that has a result, draw by draw; None of
            that value itself.
        difference_interval: 95 % confidence interval of that.
        error: Why there is no result: training diverged.
    """

    value: float
    folder: str
    mean: float | None = None
    interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    error: str | None = None


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
    name: str,
    values: Sequence[float],
    out: Path,
    run: Callable[[float, Path], Result],
    resume: bool = False,
) -> tuple[Result, list[Compared]]:
    """Trains with every value, and compares; `comparison.json` has a row as soon as it is known.

    Args:
        name: Of the recipe's value.
        values: The values.
        out: Folder of all; each value has one below it.
        run: Trains with a value into a folder, with two draws or more.
        resume: Values that failed before are not tried again.

    Returns:
        The result of the value with the highest mean, and a row for each value, in their order.

    Raises:
        ConfigError: Nothing was evaluated, the folder holds another comparison, or every value
            failed.
    """
    failed = failed_before(name, out) if resume else {}
    results: dict[float, Result] = {}
    rows: list[Compared] = []
    for value in values:
        folder = out / f"{name}={value}"
        if value in failed:
            rows.append(Compared(value, str(folder), error=failed[value]))
            continue
        try:
            results[value] = run(value, folder)
        except DivergedError as error:
            rows.append(Compared(value, str(folder), error=str(error)))
        else:
            first = results[next(iter(results))]
            rows.append(compared(value, results[value], None if len(results) == 1 else first))
        content = {"name": name, "metric": None, "values": [asdict(each) for each in rows]}
        if results:
            content["metric"] = headline_of(results[next(iter(results))])
        atomic_write(out / FILE, json.dumps(content, indent=2) + "\n")
    if not results:
        raise ConfigError(f"training failed with every value of {name}: {rows[0].error}")
    return max(results.items(), key=lambda each: mean_of(each[1]))[1], rows


def failed_before(name: str, out: Path) -> dict[float, str]:
    """Value → error of what failed in an earlier run of the comparison in this folder."""
    path = out / FILE
    if not path.is_file():
        return {}
    found = read_object(path)
    if value_of(found, "name", str, path) != name:
        raise ConfigError(
            f"{out} compares values of {found['name']}, not of {name}; choose another --out"
        )
    values = value_of(found, "values", list[dict[str, Any]], path)
    rows = [as_dataclass(Compared, each, path) for each in values]
    return {row.value: row.error for row in rows if row.error is not None}


def headline_of(result: Result) -> str:
    """Name of the metric that values are compared by."""
    assert result.folder is not None
    return str(read_results(result.folder)["headline"])


def mean_of(result: Result) -> float:
    """Mean of the headline metric over the draws."""
    assert result.spread is not None
    return result.spread.mean(headline_of(result))


def compared(value: float, result: Result, first: Result | None) -> Compared:
    """The row of a value; `first` is the result that it is compared with, if any.

    Raises:
        ConfigError: Nothing was evaluated.
    """
    spread = result.spread
    if spread is None:
        raise ConfigError("nothing was evaluated; give the data a validation split")
    headline = headline_of(result)
    row = Compared(value, str(result.folder), spread.mean(headline), spread.interval(headline))
    if first is None or first.spread is None:
        return row
    pairs = zip(spread.values[headline], first.spread.values[headline], strict=True)
    gaps = Spread(spread.seeds, spread.split, {"gap": [a - b for a, b in pairs]})
    return replace(row, difference=gaps.mean("gap"), difference_interval=gaps.interval("gap"))
