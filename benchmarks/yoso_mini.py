"""Frozen features of `yoso-mini` beside TF-IDF: the table of its model card.

    python benchmarks/yoso_mini.py DATA/text [--also FOLDER …]

Both kinds of features meet the head of `headstart train --tune head`: logistic regression whose
regularization is chosen by cross-validation. TF-IDF has words and pairs of words, fitted to the
training rows. Five random subsets of 20 and of 100 training rows, and all of them; accuracy on the
validation rows. TF-IDF is computed once and taken from the results file from then on. Prints a
table and writes results/yoso_mini.json.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from timing import RESULTS, machine

from headstart import AutoModelForSequenceClassification, AutoTokenizer
from headstart.features.extract import inputs_of
from headstart.features.head import fit_head

Floats = NDArray[np.float32]
Texts = list[tuple[str, ...]]
Rows = tuple[Texts, NDArray[np.int64]]
Features = Callable[[Texts, Texts], tuple[Floats, Floats]]
DRAWS, BATCH = 5, 32
SIZES = (20, 100, None)  # training rows; None takes all
# data set → columns of the texts, column of the label
GLUE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "SST-2": (("sentence",), "label"),
    "CoLA": ((3,), 1),  # no line of names
    "MRPC": (("#1 String", "#2 String"), "Quality"),
    "RTE": (("sentence1", "sentence2"), "label"),
    "QNLI": (("question", "sentence"), "label"),
}


def numbered(texts: Texts, labels: list[Any], classes: list[Any]) -> Rows:
    """The rows with class numbers."""
    return texts, np.array([classes.index(label) for label in labels])


def read_glue(folder: Path, name: str, split: str) -> tuple[Texts, list[str]]:
    """Texts and labels of a GLUE table."""
    columns, label = GLUE[name]
    path = folder / f"glue/{name}/{split}.tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = lines.pop(0) if isinstance(label, str) else list(range(len(lines[0])))
    where, target = [names.index(column) for column in columns], names.index(label)
    return [tuple(line[i] for i in where) for line in lines], [line[target] for line in lines]


def read_imdb(folder: Path, split: str) -> tuple[Texts, list[Any]]:
    """Reviews and their labels."""
    lines = (folder / f"imdb/{split}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    return [(row["text"],) for row in rows], [row["label"] for row in rows]


def data_sets(folder: Path) -> dict[str, tuple[Rows, Rows]]:
    """Training and validation rows of every data set."""
    found: dict[str, tuple[Rows, Rows]] = {}
    for name in (*GLUE, "IMDb"):
        parts = [
            read_imdb(folder, split) if name == "IMDb" else read_glue(folder, name, glue)
            for split, glue in (("train", "train"), ("val", "dev"))
        ]
        classes = sorted(set(parts[0][1]))
        train, test = (numbered(*part, classes) for part in parts)
        found[name] = train, test
    return found


def tf_idf(train: Texts, test: Texts) -> tuple[Floats, Floats]:
    """TF-IDF of words and pairs of words; the vocabulary is that of the training rows."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=20_000)
    joined = [" ".join(row) for row in train]
    x = vectorizer.fit_transform(joined).toarray().astype(np.float32)
    y = vectorizer.transform([" ".join(row) for row in test]).toarray().astype(np.float32)
    return x, y


def pooled(name: str, texts: Texts) -> Floats:
    """The features of a network: what the classifier of `headstart train` is given."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    pooling = "mean" if len(texts[0]) == 1 else "pair"
    model = AutoModelForSequenceClassification.from_pretrained(
        name, classifier_pooling=pooling
    ).eval()
    order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))
    rows: list[Floats] = []
    with torch.inference_mode(), inputs_of(model.classifier.dense) as seen:
        for start in range(0, len(order), BATCH):
            part = [texts[i] for i in order[start : start + BATCH]]
            columns = [list(column) for column in zip(*part, strict=True)]
            model(**tokenizer(*columns, padding=True, truncation=True, return_tensors="pt"))
            rows.append(seen.pop().numpy())
    features: Floats = np.concatenate(rows)[np.argsort(order)]
    return features


def subset(labels: NDArray[np.int64], size: int | None, draw: int) -> NDArray[np.int64]:
    """Random rows, at least two of each class."""
    if size is None or size >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(draw)
    rows = rng.permutation(len(labels))
    first = [rows[labels[rows] == c][:2] for c in np.unique(labels)]
    chosen = np.concatenate([*first, rows])
    return chosen[np.sort(np.unique(chosen, return_index=True)[1])][:size]


def accuracy(x: Floats, labels: NDArray[np.int64], y: Floats, true: NDArray[np.int64]) -> float:
    """Of a head fitted to x on the rows y."""
    fit = fit_head(x, labels, int(max(labels.max(), true.max())) + 1)
    return float(((y @ fit.weight.T + fit.bias).argmax(1) == true).mean())


def compare(train: Rows, test: Rows, networks: dict[str, Any], size: int | None) -> dict[str, Any]:
    """Accuracies of every trial: TF-IDF where no networks are given, else the networks."""
    found: dict[str, list[float]] = {name: [] for name in networks or ["TF-IDF"]}
    for draw in range(1 if size is None else DRAWS):
        rows = subset(train[1], size, draw)
        labels = train[1][rows]
        if not networks:
            x, y = tf_idf([train[0][i] for i in rows], test[0])
            found["TF-IDF"].append(accuracy(x, labels, y, test[1]))
        for name, (a, b) in networks.items():
            found[name].append(accuracy(a[rows], labels, b, test[1]))
    return found


def classification(folder: Path, names: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by data set, size and features; those of TF-IDF are taken from `known`."""
    found: dict[str, Any] = {}
    for data, (train, test) in data_sets(folder).items():
        networks = {name: (pooled(name, train[0]), pooled(name, test[0])) for name in names}
        for size in SIZES:
            key = f"{data}, {size or 'all'}"
            before = known.get(key, {}).get("TF-IDF")
            base = {"TF-IDF": before} if before else compare(train, test, {}, size)
            found[key] = base | compare(train, test, networks, size) if names else base
            cells = [f"{100 * float(np.mean(values)):.1f}" for values in found[key].values()]
            print(f"| {data} | {size or 'all'} | {' | '.join(cells)} |", flush=True)
    return found


def average(found: dict[str, Any]) -> dict[str, float]:
    """Mean over data sets and sizes by features."""
    names = next(iter(found.values()))
    return {n: 100 * float(np.mean([np.mean(v[n]) for v in found.values()])) for n in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--also", nargs="*", default=[], help="folders of further networks")
    parser.add_argument("--names", nargs="*", default=["yoso-mini"])
    parser.add_argument("--out", type=Path, default=RESULTS / "yoso_mini.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [*args.names, *args.also]
    known = json.loads(args.out.read_text())["accuracy"] if args.out.is_file() else {}
    print(f"| data | rows | TF-IDF | {' | '.join(names)} |")
    print("|---|---|" + "---|" * (len(names) + 1))
    accuracies = classification(args.texts, names, known)
    means = average(accuracies)
    print(f"| mean | | {' | '.join(f'{value:.1f}' for value in means.values())} |")
    result = {"machine": machine(), "accuracy": accuracies, "mean": means}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
