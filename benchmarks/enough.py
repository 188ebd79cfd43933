"""Do the forecasts of "Is this enough?" come true? From 10 to 50 % of the examples to all of them.

    python benchmarks/enough.py DATA [--trials 20]

Half of each set tests, half is the pool. Of a part of the pool, the user's data, a fifth is held
out, the rest is what the forecast knows; it is compared with a head that is fitted to the whole
pool. The test examples were seen by nothing before; how finite they are is added to the interval.
Two floors show how much of the error no forecast could avoid: what the final accuracy of one pool
is off the mean of the other pools, and the error of a forecast that knows the whole curve of the
data set from the other pools and only measures its level, on the user's own examples.
A class is named as gaining most; its rank among all by what it gained says whether that was right.
Parts with fewer than 5 training examples a class are left out, as the report does. Prints a table
and writes results/enough.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from feature_sets import SETS, features_and_labels
from timing import RESULTS, machine

from headstart.features.enough import (
    FEWEST,
    FEWEST_OF_CLASS,
    forecast_of,
    predictions,
    spanned,
    stratified,
)
from headstart.metrics.learning_curve import tails

FRACTIONS = (0.1, 0.2, 0.3, 0.5)
FIRST_SEED = 1000  # the width of the intervals was chosen on other draws


def answers(features: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray):
    """Whether a head that was fitted to some examples is right about others, (M,)."""
    x = spanned(features[np.concatenate([train, test])])
    count = len(train)
    found = predictions(x[:count], labels[train], x[count:], features.shape[1])
    return found == labels[test]


def trial(features: np.ndarray, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """The forecasts from every fraction of one random pool."""
    rng = np.random.default_rng([FIRST_SEED, seed])
    order, classes = stratified(labels, rng), int(labels.max()) + 1
    pool, test = order[: len(order) // 2], order[len(order) // 2 :]
    pool = pool[stratified(labels[pool], rng)]
    final = answers(features, labels, pool, test)
    rows = []
    for fraction in FRACTIONS:
        mine = pool[: round(fraction * len(pool))]
        mine = mine[stratified(labels[mine], rng)]
        held = max(1, round(0.2 * len(mine)))
        train, validation = mine[:-held], mine[-held:]
        if len(train) < max(FEWEST, FEWEST_OF_CLASS * classes):
            continue
        began = time.perf_counter()
        found = forecast_of(
            features[train],
            labels[train],
            [str(label) for label in range(classes)],
            (features[validation], labels[validation]),
            seed=seed,
        )
        seconds = time.perf_counter() - began
        samples = 1 - found.laws.errors(len(pool))
        seen = rng.binomial(len(test), samples) / len(test)
        low, value, high = np.quantile(seen + (rng.random(len(seen)) - 0.5) / len(test), tails())
        row = {
            "fraction": fraction,
            "examples": len(mine),
            "final": float(final.mean()),
            "forecast": float(value),
            "low": float(low),
            "high": float(high),
            "now": found.now.value,
            "seconds": seconds,
            "curve": found.curve,
        }
        if fraction == 0.5 and classes > 2 and found.gains:
            before = answers(features, labels, train, test)
            gained = [final[labels[test] == c].mean() - before[labels[test] == c].mean()
                      for c in range(classes)]  # fmt: skip
            named = gained[int(found.gains[0].name)]
            row["named_rank"] = float((np.array(gained) < named).mean())
        rows.append(row)
    return rows


def add_floors(rows: list[dict[str, Any]]) -> None:
    """Adds to each row of one set and fraction what forecasts from other pools are off.

    "noise" is for the mean final accuracy of the others; "known_shape" for their mean curve, moved
    to the level of the last three sizes here.
    """
    errors = np.stack([np.maximum(row["curve"].errors, 1e-3) for row in rows])  # (T, K)
    deviations = np.stack([row["curve"].deviations for row in rows])
    finals = np.array([row["final"] for row in rows])
    for i, row in enumerate(rows):
        others = np.arange(len(rows)) != i
        usual, final = errors[others].mean(axis=0), finals[others].mean()
        weights = 1 / ((deviations[others].mean(axis=0) / usual) ** 2 + 1e-4)
        ratios = np.log(errors[i] / usual)
        level = np.exp(np.average(ratios[-3:], weights=weights[-3:]))
        row["noise"] = row["final"] - float(final)
        row["known_shape"] = row["final"] - float(1 - (1 - final) * level)


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Coverage and errors of forecasts."""
    final, forecast, low, high, now = (
        np.array([row[key] for row in rows]) for key in ("final", "forecast", "low", "high", "now")
    )
    return {
        "forecasts": len(rows),
        "coverage": float(((low <= final) & (final <= high)).mean()),
        "median_error": float(np.median(np.abs(forecast - final))),
        "bias": float((forecast - final).mean()),
        "median_gain": float(np.median(final - now)),
        "width": float(np.median(high - low)),
        "noise_floor": float(np.median([abs(row["noise"]) for row in rows])),
        "known_shape_floor": float(np.median([abs(row["known_shape"]) for row in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--sets", nargs="+", default=SETS)
    args = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    everything: list[dict[str, Any]] = []
    ranks: list[float] = []
    head = f"{'data':26} {'of all':>6} {'n':>5} {'covered':>8} {'error':>6} {'bias':>6} {'gain':>6}"
    print(f"{head} {'width':>6} {'noise':>6} {'shape':>6}")
    for name in args.sets:
        features, labels = features_and_labels(name, args.data, args.model)
        rows = [row for seed in range(args.trials) for row in trial(features, labels, seed)]
        everything += rows
        ranks += [row["named_rank"] for row in rows if "named_rank" in row]
        table[name] = {}
        for fraction in FRACTIONS:
            some = [row for row in rows if row["fraction"] == fraction]
            if some:
                add_floors(some)
                table[name][str(fraction)] = found = summary(some) | {
                    "examples": some[0]["examples"]
                }
                print(line(name, fraction, found), flush=True)
    total = {str(f): summary([r for r in everything if r["fraction"] == f]) for f in FRACTIONS}
    for fraction in FRACTIONS:
        print(line("all sets", fraction, total[str(fraction)] | {"examples": 0}))
    total["all"] = summary(everything)
    print(line("all sets", 0.0, total["all"] | {"examples": 0}))
    seconds = float(np.median([row["seconds"] for row in everything]))
    rank = float(np.mean(ranks)) if ranks else None
    print(
        f"median {seconds:.1f} s a forecast; the class named gained more than {rank} of the others"
    )
    facts = {
        "model": args.model,
        "trials": args.trials,
        "machine": machine(),
        "seconds": seconds,
        "named_class_gained_more_than": rank,
        "sets": table,
        "total": total,
    }
    (RESULTS / "enough.json").write_text(json.dumps(facts, indent=1) + "\n")


def line(name: str, fraction: float, found: dict[str, float]) -> str:
    """A row of the printed table."""
    return (
        f"{name:26} {fraction:6.0%} {found['examples']:5.0f} {found['coverage']:8.0%}"
        f" {100 * found['median_error']:6.1f} {100 * found['bias']:+6.1f}"
        f" {100 * found['median_gain']:+6.1f} {100 * found['width']:6.1f}"
        f" {100 * found['noise_floor']:6.1f} {100 * found['known_shape_floor']:6.1f}"
    )


if __name__ == "__main__":
    main()
