"""Does a classifier notice what is none of its classes, and do its conformal sets keep promises?

    python benchmarks/unknown.py \
        ../shared/data/images/{flowers102,eurosat,cifar10/train_100shot.npz,cifar100/val.npz}

A head is fitted to half of the classes of a set (70 % of their examples). The other 30 % are to be
kept; the other half of the classes ("near"), and the other sets ("far"), to be refused. Compared
with the largest probability (Hendrycks and Gimpel 2017), the energy (Liu et al. 2020) and the plain
cosine distance to the five nearest examples (Sun et al. 2022), all on the same features. Coverage
is that of sets for all classes: a quarter of the examples for the minimums, a quarter to test them.
Writes results/unknown.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.images import ImageData, read_images
from headstart.data.options import DataOptions
from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.extract import extractor_of
from headstart.features.unknown import fit_reference
from headstart.metrics.classification import softmax
from headstart.metrics.conformal import COVERAGE, set_minimums
from headstart.pipelines.unknown import LEVEL
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks.image_classification import ImageClassification

RESULTS = Path(__file__).parent / "results" / "unknown.json"
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
NEIGHBORS = 5
KEPT = 0.95
TRAININGS = 10  # of the heads whose sets are tested; the draws are split evenly among them


def features_of(data: str, model: str) -> tuple[Floats, Ints]:
    """Features (N, D) and classes (N,) of a data set, all splits together."""
    options = DataOptions(val_fraction=0.0)
    read = read_images(data, options)
    task = ImageClassification(ImageData(read.classes, dict(read.splits), [], read.kind), options)
    task.trains = False
    network = task.build(model, Recipe(tune="head")).eval()
    digests = task.feature_digests()
    every = [digest for names in digests.values() for digest in names]
    store = extractor_of(task, network, torch.device("cpu")).fill(every, Silent())
    rows = [store[names] for names in digests.values()]
    labels = [task.data.splits[split].labels for split in digests]
    return np.concatenate(rows), np.concatenate(labels)


def head_of(x: Floats, labels: Ints) -> Discriminant:
    """Linear discriminant analysis of classes 0 to V - 1."""
    return Discriminant.from_statistics(Statistics.of(x, labels, int(labels.max()) + 1))


def scores_of(x: Floats, labels: Ints, seed: int):
    """Functions of features (M, D) that give how unknown each example is, by method."""
    head, reference = head_of(x, labels), fit_reference(x, labels, seed=seed)
    assert reference is not None
    mean = x.mean(axis=0)

    def unit(each: Floats) -> Floats:
        centered = each - mean
        return centered / np.linalg.norm(centered, axis=1, keepdims=True)

    directions = unit(x)

    def nearest(similar: Floats) -> Floats:
        return np.sort(similar, axis=1)[:, -NEIGHBORS:].mean(axis=1)

    def logits(each: Floats) -> NDArray[np.float64]:
        return np.asarray(each @ head.weight.T + head.bias)

    return reference, {
        "ours": lambda each: reference.distances_of(torch.from_numpy(each)).numpy(),
        "max-softmax": lambda each: -softmax(logits(each)).max(axis=1),
        "energy": lambda each: -np.logaddexp.reduce(logits(each), axis=1),
        "kNN": lambda each: -nearest(unit(each) @ directions.T),
    }


def compared(known: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, float]:
    """AUROC, and the fraction of others accepted where 95 % of the known ones are."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(known), len(others)])
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate([known, others]))),
        "false_accepts": float((others <= np.quantile(known, KEPT)).mean()),
    }


def half_of_the_classes(x: Floats, labels: Ints, far: Floats, seed: int) -> dict[str, dict]:
    """One trial: figures by method, and what the p-value of our own does at 5 %."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(int(labels.max()) + 1)
    number = np.full(len(classes), -1)
    number[classes[: len(classes) // 2]] = np.arange(len(classes) // 2)
    own = number[labels]
    rows = rng.permutation(np.flatnonzero(own >= 0))
    train, kept = rows[: len(rows) * 7 // 10], rows[len(rows) * 7 // 10 :]
    reference, methods = scores_of(x[train], own[train], seed)
    found: dict[str, dict] = {}
    for name, score in methods.items():
        known = score(x[kept])
        near, distant = compared(known, score(x[own < 0])), compared(known, score(far))
        found[name] = {"near": near, "far": distant}
    small = {
        name: float((reference.p_values(torch.from_numpy(part)) < LEVEL).float().mean())
        for name, part in (("known", x[kept]), ("near", x[own < 0]), ("far", far))
    }
    return found | {"refused": small}


def coverages(x: Floats, labels: Ints, draws: int) -> list[float]:
    """Coverage of conformal sets on fresh examples, one number a draw."""
    found = []
    for training in range(TRAININGS):
        rng = np.random.default_rng([training, 0xC0])
        order = rng.permutation(len(x))
        order = order[labels[order].argsort(kind="stable")]
        train, rest = order[::2], order[1::2]  # half of every class
        head = head_of(x[train], labels[train])
        probabilities = softmax(x[rest] @ head.weight.T + head.bias)
        for _ in range(draws // TRAININGS):
            mixed = rng.permutation(len(rest))
            fit, test = mixed[: len(rest) // 2], mixed[len(rest) // 2 :]
            minimums = set_minimums(probabilities[fit], labels[rest][fit])
            own = labels[rest][test]
            found.append(float((probabilities[test, own] >= minimums[own]).mean()))
    return found


def mean_of(trials: list[dict], *keys: str) -> float:
    """Mean of a nested figure over trials."""
    values = []
    for trial in trials:
        value = trial
        for key in keys:
            value = value[key]
        values.append(value)
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    sets = {Path(data).parent.name if Path(data).suffix else Path(data).name:
            features_of(data, arguments.model) for data in arguments.data}  # fmt: skip
    table: dict[str, dict] = {}
    for name, (x, labels) in sets.items():
        far = np.concatenate([rows[::4] for other, (rows, _) in sets.items() if other != name])
        trials = [half_of_the_classes(x, labels, far, seed) for seed in range(arguments.seeds)]
        covered = coverages(x, labels, arguments.draws)
        table[name] = {
            "methods": {
                method: {
                    where: {key: round(mean_of(trials, method, where, key), 4)
                            for key in ("auroc", "false_accepts")}
                    for where in ("near", "far")
                }
                for method in trials[0] if method != "refused"
            },
            "refused": {key: round(mean_of(trials, "refused", key), 4)
                        for key in ("known", "near", "far")},
            "coverage": {"promised": COVERAGE, "mean": round(float(np.mean(covered)), 4),
                         "sd": round(float(np.std(covered)), 4), "draws": len(covered)},
            "examples": len(x), "classes": int(labels.max()) + 1,
        }  # fmt: skip
        print(json.dumps({name: table[name]}), flush=True)
    facts = {"model": arguments.model, "seeds": arguments.seeds, "sets": table}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
