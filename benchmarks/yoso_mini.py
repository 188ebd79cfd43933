"""Frozen features of `yoso-mini` beside TF-IDF: the table of its model card.

    python benchmarks/yoso_mini.py DATA/text [--also FOLDER …] [--only SST-2 …]
    python benchmarks/yoso_mini.py DATA/text --choose [--also FOLDER …]

The network's features meet the head that `headstart train --tune head` chooses by
cross-validation, TF-IDF (words and pairs of words of the training rows) logistic regression whose
regularization the same cross-validation chooses. Five random subsets of 20 and of 100 training
rows, and all of them; accuracy on the validation rows. Tags (UD, WNUT) meet logistic regression:
on the network's vector of a word's first token, or on words, affixes and shapes in a window of two
words on either side. Baselines are taken from the results file where it has them. Prints a table
and writes results/yoso_mini.json.

`--choose` compares networks without the validation rows, so that settings can be chosen: heads are
fitted to one half of the training rows and evaluated on the other. It writes nothing.
"""

import argparse
import csv
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from timing import RESULTS, machine

from headstart import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from headstart.features.choice import search
from headstart.features.extract import inputs_of
from headstart.features.head import fit_head
from headstart.features.portfolio import Candidate, Comparison, View, fit_trial
from headstart.metrics.text import entity_scores
from headstart.progress import Silent

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Texts = list[tuple[str, ...]]
Rows = tuple[Texts, Ints]
Tagged = list[tuple[list[str], list[str]]]  # words and tags
DRAWS, BATCH = 5, 32
CHOOSING = 1000  # seed of the halves, and of the first subset, where networks are chosen
SIZES = (20, 100, None)  # training rows; None takes all
# data set → columns of the texts, column of the label
GLUE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "SST-2": (("sentence",), "label"),
    "CoLA": ((3,), 1),  # no line of names
    "MRPC": (("#1 String", "#2 String"), "Quality"),
    "RTE": (("sentence1", "sentence2"), "label"),
    "QNLI": (("question", "sentence"), "label"),
}
TAGS = {"UD": "pos/ud_ewt/{}.tsv", "WNUT": "ner/wnut17/{}.conll"}


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


def data_sets(folder: Path, only: list[str]) -> dict[str, tuple[Rows, Rows]]:
    """Training and validation rows of every data set, or of some."""
    found: dict[str, tuple[Rows, Rows]] = {}
    for name in (name for name in (*GLUE, "IMDb") if name in (only or (*GLUE, "IMDb"))):
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


@dataclass
class Given:
    """Features at hand, where `search` asks for views of a task."""

    features_at_hand: Floats
    wide: bool = False
    progress: Silent = field(default_factory=Silent)

    def features(self, view: View, rows: Any) -> Floats:
        """Those of some rows."""
        found: Floats = self.features_at_hand[np.asarray(rows)]
        return found

    def of(self, candidate: Candidate, features: Floats) -> Floats:
        """All of them."""
        return features


def accuracy(x: Floats, labels: Ints, y: Floats, true: Ints, *, portfolio: bool) -> float:
    """Of a head fitted to x on the rows y: of the portfolio, or logistic regression."""
    classes = int(max(labels.max(), true.max())) + 1
    comparison = Comparison(labels, classes, widest=x.shape[1])
    if comparison.possible and portfolio:
        given: Any = Given(x)
        trial, _ = search(given, comparison, comparison.rows, (), lambda view: True)
        fit = fit_trial(trial, lambda candidate: x, labels, classes, None)
    else:
        fit = fit_head(x, labels, classes)
    return float(((y @ fit.weight.T + fit.bias).argmax(1) == true).mean())


def compare(
    train: Rows, test: Rows, networks: dict[str, Any], size: int | None, first: int = 0
) -> dict[str, Any]:
    """Accuracies of every trial: TF-IDF where no networks are given, else the networks."""
    found: dict[str, list[float]] = {name: [] for name in networks or ["TF-IDF"]}
    for draw in range(first, first + (1 if size is None else DRAWS)):
        rows = subset(train[1], size, draw)
        labels = train[1][rows]
        if not networks:
            x, y = tf_idf([train[0][i] for i in rows], test[0])
            found["TF-IDF"].append(accuracy(x, labels, y, test[1], portfolio=False))
        for name, (a, b) in networks.items():
            found[name].append(accuracy(a[rows], labels, b, test[1], portfolio=True))
    return found


def halves(train: Rows) -> tuple[Rows, Rows]:
    """The training rows in two parts, the second of at most 1,000 rows."""
    texts, labels = train
    rows = np.random.default_rng(CHOOSING).permutation(len(labels))
    parts = rows[: len(rows) // 2], rows[len(rows) // 2 :][:1000]
    first, second = (([texts[i] for i in part], labels[part]) for part in parts)
    return first, second


def classification(
    folder: Path, names: list[str], known: dict[str, Any], only: list[str], choosing: bool
) -> dict[str, Any]:
    """Accuracies by data set, size and features; those of TF-IDF are taken from `known`."""
    found: dict[str, Any] = {}
    for data, (train, test) in data_sets(folder, only).items():
        if choosing:
            train, test = halves(train)
        networks = {name: (pooled(name, train[0]), pooled(name, test[0])) for name in names}
        for size in SIZES:
            key = f"{data}, {size or 'all'}"
            first = CHOOSING if choosing else 0
            before = known.get(key, {}).get("TF-IDF")
            base: dict[str, Any] = {}
            if not choosing:
                base = {"TF-IDF": before} if before else compare(train, test, {}, size)
            found[key] = base | compare(train, test, networks, size, first)
            show(data, size, found[key])
    return found


def show(data: str, size: int | None, values: dict[str, list[float]]) -> None:
    """Prints one line of the table."""
    cells = [f"{100 * float(np.mean(each)):.1f}" for each in values.values()]
    print(f"| {data} | {size or 'all'} | {' | '.join(cells)} |", flush=True)


# Tags ---------------------------------------------------------------------------------------------


def read_tags(folder: Path, name: str, split: str) -> Tagged:
    """Words and tags of each sentence."""
    sentences: Tagged = []
    path = folder / TAGS[name].format(split)
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        lines = [line.split("\t") for line in block.split("\n") if not line.startswith("# ")]
        if name == "UD":
            lines = [line[1:4:2] for line in lines if line[0].isdigit()]
        sentences.append(([line[0] for line in lines], [line[1] for line in lines]))
    return sentences


def kind_of_character(c: str) -> str:
    """0 for digits, X and x for letters, and the character itself for others."""
    if c.isdigit():
        return "0"
    if c.isupper():
        return "X"
    return "x" if c.islower() else c


def shape(word: str) -> str:
    """Its kinds of characters, such as Xx-0."""
    kinds = [kind_of_character(c) for c in word]
    return "".join(kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1])


def window(words: list[str]) -> list[dict[str, bool]]:
    """Words, affixes and shapes of two words on either side of each word, and its own."""
    padded = ["<s>", "<s>", *words, "</s>", "</s>"]
    found = []
    for i in range(len(words)):
        features = {}
        for at, word in zip(range(-2, 3), padded[i : i + 5], strict=True):
            lower = word.lower()
            parts = [lower, shape(word), *(lower[-n:] for n in (1, 2, 3)), lower[:2], lower[:3]]
            features |= {f"{at}:{kind}:{part}": True for kind, part in enumerate(parts)}
        found.append(features)
    return found


def token_vectors(name: str, sentences: Tagged) -> list[Floats]:
    """The network's vector of the first token of each word, by sentence."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    found = []
    for words, _ in sentences:
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        ids = batch.word_ids(0)
        first = [ids.index(word) for word in range(len(words))]
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0]
        found.append(hidden[first].numpy())
    return found


def tag_score(name: str, x: list[Any], train: Tagged, y: list[Any], test: Tagged) -> float:
    """Accuracy of words, or F1 of entities, of logistic regression chosen by cross-validation."""
    tags = [tag for _, each in train for tag in each]
    groups = np.repeat(np.arange(len(train)), [len(each) for each, _ in train])
    features = sparse.vstack(x).tocsr() if sparse.issparse(x[0]) else np.concatenate(x)
    chooser = GridSearchCV(
        LogisticRegression(max_iter=300), {"C": [0.1, 1.0, 10.0]}, cv=GroupKFold(3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # folds without a rare tag, iterations that ended
        found = chooser.fit(features, tags, groups=groups).best_estimator_
    true, guesses = [each for _, each in test], [list(found.predict(each)) for each in y]
    if name == "WNUT":
        return entity_scores(true, guesses)[""].f1
    return float(np.mean(np.concatenate(true) == np.concatenate(guesses)))


def tagging(
    folder: Path, names: list[str], known: dict[str, Any], only: list[str]
) -> dict[str, Any]:
    """Scores by data set, size and features; those of the window are taken from `known`."""
    found: dict[str, Any] = {}
    for data in (name for name in TAGS if name in (only or TAGS)):
        train, test = (read_tags(folder, data, split) for split in ("train", "dev"))
        networks = {n: (token_vectors(n, train), token_vectors(n, test)) for n in names}
        for size in SIZES:
            key = f"{data}, {size or 'all'}"
            scores: dict[str, list[float]] = {"window": known.get(key, {}).get("window", [])}
            scores |= {name: [] for name in names}
            for draw in range(1 if size is None else DRAWS):
                rows = np.random.default_rng(draw).permutation(len(train))[:size]
                some = [train[i] for i in rows]
                if len(scores["window"]) <= draw:
                    encoder = DictVectorizer(dtype=np.float32)
                    encoder.fit([word for words, _ in some for word in window(words)])
                    x, y = (
                        [encoder.transform(window(words)) for words, _ in part]
                        for part in (some, test)
                    )
                    scores["window"].append(tag_score(data, x, some, y, test))
                for name, (a, b) in networks.items():
                    vectors = [a[i] for i in rows]
                    scores[name].append(tag_score(data, vectors, some, b, test))
            found[key] = scores
            show(data, size, scores)
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
    parser.add_argument("--only", nargs="*", default=[], help="data sets; all where none is named")
    parser.add_argument("--choose", action="store_true", help="compare without validation rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "yoso_mini.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [*args.names, *args.also]
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    known, tags = before.get("accuracy", {}), before.get("tags", {})
    print(f"| data | rows | {'' if args.choose else 'baseline | '}{' | '.join(names)} |")
    print("|---|---|" + "---|" * (len(names) + (not args.choose)))
    found = classification(args.texts, names, known, args.only, args.choose)
    if found:
        print(f"| mean | | {' | '.join(f'{value:.1f}' for value in average(found).values())} |")
    if args.choose:
        return
    tags |= tagging(args.texts, names, tags, args.only)
    known |= found
    means = average({key: known[key] for key in known if set(names) <= set(known[key])})
    result = {"machine": machine(), "accuracy": known, "mean": means, "tags": tags}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
