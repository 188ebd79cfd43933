"""How many labels does `headstart plan` save? Against random order, and each of its two ways alone.

    python benchmarks/plan.py DATA [--trials 5]

Half of each set tests. In the other half two images of each class are labeled at random; then, in
rounds of one image a class, those that are planned, or random ones. Heads are those of "Is this
enough?". Prints the labels that 90 % of the accuracy with all labels takes, and the accuracy with
5, 10 and 20 labels a class on average; writes results/plan.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from feature_sets import features_and_labels
from timing import RESULTS, machine

from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.enough import predictions, spanned, stratified
from headstart.features.plan import FEW, margins_of, typical, uncertain

SETS = ("CIFAR-10", "EuroSAT", "pneumonia", "digits", "CIFAR-100 coarse, unseen")
WAYS = ("random", "plan", "typical", "uncertain")
ROUNDS = 24  # of one label a class, after the first two
STAGES = (5, 10, 20)  # labels a class on average at which accuracies are shown
GOAL = 0.9


def scores(x, labels, others):
    """Scores of a discriminant, (U, V)."""
    head = Discriminant.from_statistics(Statistics.of(x, labels, int(labels.max()) + 1), 0.5)
    return others @ head.weight.T + head.bias


def curve(way, features, labels, pool, test, seed):
    """Accuracy after every round."""
    rng, classes = np.random.default_rng([seed, 5]), int(labels.max()) + 1
    x = spanned(features[np.concatenate([pool, test])])
    count, truth = len(pool), labels[pool]
    labeled = pool_order(truth, seed)[: 2 * classes]
    found = []
    for number in range(ROUNDS):
        answers = predictions(x[labeled], truth[labeled], x[count:], features.shape[1])
        found.append(float((answers == labels[test]).mean()))
        rest = np.setdiff1d(np.arange(count), labeled)
        if not len(rest):
            break
        few = len(labeled) <= FEW * classes
        if way == "random":
            chosen = rng.permutation(len(rest))[:classes]
        elif way == "typical" or (way == "plan" and few):
            chosen = typical(features[pool[labeled]], features[pool[rest]], classes, number)
        else:
            margins = margins_of(scores(x[labeled], truth[labeled], x[rest]), True)
            chosen = uncertain(features[pool[rest]], margins, classes, number)
        labeled = np.append(labeled, rest[chosen])
    return found


def pool_order(truth, seed):
    """The order that first labels come in: the same for every way."""
    return stratified(truth, np.random.default_rng([seed, 9]))


def labels_for(accuracies, goal, classes):
    """Labels at which an accuracy is reached; that of one round more where it never is."""
    reached = [i for i, accuracy in enumerate(accuracies) if accuracy >= goal]
    return classes * (2 + (reached[0] if reached else len(accuracies)))


def percents(accuracies):
    """Mean accuracies in percent."""
    return ", ".join(f"{100 * each:.1f}" for each in np.mean(accuracies, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--model", default="bit-mini")
    args = parser.parse_args()
    table = {}
    for name in SETS:
        features, labels = features_and_labels(name, args.data, args.model)
        classes = int(labels.max()) + 1
        needed = {way: [] for way in WAYS}
        accuracy = {way: [] for way in WAYS}
        for seed in range(args.trials):
            order = stratified(labels, np.random.default_rng([seed, 3]))
            pool, test = order[: len(order) // 2], order[len(order) // 2 :]
            x = spanned(features[np.concatenate([pool, test])])
            answers = predictions(x[: len(pool)], labels[pool], x[len(pool) :], features.shape[1])
            goal = GOAL * float((answers == labels[test]).mean())
            for way in WAYS:
                found = curve(way, features, labels, pool, test, seed)
                needed[way].append(labels_for(found, goal, classes))
                accuracy[way].append([found[min(stage - 2, len(found) - 1)] for stage in STAGES])
        table[name] = {
            "classes": classes,
            "pool": len(labels) // 2,
            "labels": needed,
            "accuracy": accuracy,
        }
        text = "  ".join(
            f"{way} {np.mean(needed[way]):.0f} ({percents(accuracy[way])})" for way in WAYS
        )
        print(f"{name:26} {text}", flush=True)
    facts = {
        "model": args.model,
        "trials": args.trials,
        "labels_a_class": STAGES,
        "machine": machine(),
        "sets": table,
    }
    (RESULTS / "plan.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
