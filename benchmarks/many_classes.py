"""Do closed forms lose accuracy where there are many classes? Discriminants beside logistic heads.

    python benchmarks/many_classes.py DATA/images [--each 10] [--out FILE]

`train --tune head` compares shrunken discriminants alone where logistic heads would take longer
than the features. On CIFAR-100 (100 classes) both ways choose among the last and all stages of the
frozen `bit-mini` at 64 pixels, average their best three heads, and are evaluated on 1,000 held-out
images. Seconds are CPU time of comparison and fit, features apart. Nothing is chosen by held-out
images.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from bit_mini import read_npz
from numpy.typing import NDArray
from portfolio import opened, subset
from timing import RESULTS, machine

from headstart.features import head
from headstart.features.portfolio import Candidate, Comparison, View, fit_trial

SIDE = 64
Floats = NDArray[np.float32]


def chosen(train: Floats, labels: NDArray[Any], test: Floats, usual: int) -> dict[str, Any]:
    """Answers on the held-out images, and what they took."""

    def reads(features: Floats, stages: str) -> Floats:
        return features[:, -usual:] if stages == "last" else features

    began, classes = time.process_time(), int(labels.max()) + 1
    comparison = Comparison(labels, classes, widest=train.shape[1])
    for kind in comparison.heads:
        for stages in ("last", "all"):
            candidate = Candidate(View(SIDE), stages, kind)
            comparison.try_candidate(candidate, reads(train, stages)[comparison.rows])
    average = comparison.average_best(View(SIDE))
    assert average is not None
    fit = fit_trial(average, lambda each: reads(train, each.stages), labels, classes, None)
    seconds = time.process_time() - began
    answers = (test[:, -fit.weight.shape[1] :] @ fit.weight.T + fit.bias).argmax(axis=1)
    return {"seconds": round(seconds, 1), "chosen": average.name, "answers": answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--loaded", action="store_true", help="say that the machine was busy")
    parser.add_argument("--out", type=Path, default=RESULTS / "many_classes.json")
    args = parser.parse_args()
    cifar = args.images / "cifar100"
    train, test = read_npz(cifar / "train_10shot.npz"), read_npz(cifar / "val.npz")
    facts: dict[str, Any] = {
        "model": args.model,
        "each": args.each,
        "loaded": args.loaded,
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        views, _ = opened(train, test, Path(folder), args.model)
        labels, digests = views.task.targets("train"), views.task.feature_digests()
        rows = subset(labels, args.each, 0)
        names = [digests["train"][row] for row in rows]
        x, held = (views.features(View(SIDE), each) for each in (names, digests["validation"]))
    truth = views.task.targets("validation")
    for name, bound in (("closed form", 0.0), ("logistic too", np.inf)):
        with patch.object(head, "COMPARED", bound):
            found = chosen(x, labels[rows], held, views.usual)
        found["accuracy"] = round(100 * float((found.pop("answers") == truth).mean()), 1)
        facts[name] = found
        print(name, found, flush=True)
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
