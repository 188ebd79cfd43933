"""Small text data sets and quick runs over them."""

import csv
import json

import numpy as np
import pytest
import torch

from headstart.training.evaluate import evaluate
from headstart.training.run import train

WORDS = {"good": ["glad", "happy", "kind", "fair"], "bad": ["sad", "angry", "cruel", "dark"]}
QUICK = {
    "steps": 60,
    "batch_size": 16,
    "micro_batch": 16,
    "lr": 0.01,
    "warmup_steps": 6,
    "device": "cpu",
    "workers": 2,
    "eval_every": 60,
}


def sentences(count, seed=0):
    """Texts of a few words, one of which tells the class."""
    rng = np.random.default_rng(seed)
    fill = ["the", "house", "was", "seen", "by", "a", "man", "and", "we", "went"]
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        words = rng.choice(fill, rng.integers(3, 9)).tolist()
        words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(WORDS[label])))
        rows.append((" ".join(words), label))
    return rows


def write(path, rows, header=None, sep="\t"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([sep.join(header)] if header else []) + [sep.join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(data, model, out, task, **values):
    result = train(data, model=model, out=out, task=task, **(QUICK | values))
    _, again = evaluate(out, data)  # from the files alone
    for name, value in again.metrics.items():
        assert value == pytest.approx(result.metrics[name], rel=1e-4, abs=1e-5), name
    assert (out / "report.html").stat().st_size > 1000 and (out / "README.md").exists()
    return result


def held_out(result):
    """Figures of the validation examples in `results.json`, and the rows of `predictions.csv`."""
    figures = json.loads((result.folder / "results.json").read_text())["evaluations"]["validation"]
    with (result.folder / "predictions.csv").open(newline="") as file:
        return figures, list(csv.DictReader(file))


def part_of_all(task, model, key):
    """Details of an evaluation of some validation examples, and those that all have there."""
    model.eval()
    task.prepare(None)
    rows = np.array([1, 2, 5])
    device = torch.device("cpu")
    part = task.subset("validation", rows).evaluate(model, "validation", device)
    every = task.evaluate(model, "validation", device)
    assert part.examples == 3 < every.examples == task.splits["validation"]
    return part.details[key], every.details[key], rows
