"""Text tasks: readers, measures, and whole runs of every task on tiny networks."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, data_dir
from headstart import AutoModelForSequenceClassification, YosoConfig, YosoForMaskedLM, YosoTokenizer
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError
from headstart.metrics.regression import pearson, spearman
from headstart.metrics.text import answer_scores, entities, entity_scores, matthews
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks import task_class
from headstart.tasks.masked_language_modeling import MaskedLanguageModeling
from headstart.tasks.question_answering import QuestionAnswering, best_span, token_span
from headstart.tasks.text_classification import TextClassification
from headstart.tasks.token_classification import TokenClassification, WordTagging
from headstart.training.checkpoints import load_checkpoint
from headstart.training.evaluate import evaluate
from headstart.training.loop import Batches, Loop
from headstart.training.run import train
from headstart.training.tuning import Start
from headstart.training.world import World

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


@pytest.fixture(scope="session")
def tiny_yoso(tmp_path_factory):
    """A YOSO of a few thousand weights with its tokenizer."""
    folder = tmp_path_factory.mktemp("yoso")
    torch.manual_seed(0)
    tokenizer = YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")
    config = YosoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        hash_code_len=4,
        initializer_range=0.1,
        layer_norm_eps=1e-5,
    )
    YosoForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


# Readers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, columns, kind, train_rows, labels",
    [
        ("glue/SST-2", {}, "single_label_classification", 3000, ["0", "1"]),
        ("glue/MRPC", {}, "single_label_classification", 700, ["0", "1"]),
        ("glue/RTE", {}, "single_label_classification", 500, ["entailment", "not_entailment"]),
        ("glue/QNLI", {}, "single_label_classification", 800, ["entailment", "not_entailment"]),
        ("glue/CoLA", {"text": "4", "label": "2"}, "single_label_classification", 1000, ["0", "1"]),
        ("glue/STS-B", {}, "regression", 800, ["score"]),
        ("imdb", {}, "single_label_classification", 500, ["0", "1"]),
        (
            "listops_original",
            {"text": "2", "label": "1"},
            "single_label_classification",
            600,
            [str(i) for i in range(10)],
        ),
    ],
)
def test_real_tables(file, columns, kind, train_rows, labels):
    folder = data_dir("text", *file.split("/"))
    task = TextClassification.read(folder, DataOptions(columns=columns))
    assert (
        task.kind == kind
        and task.labels == labels
        and task.splits["train"] == train_rows
        and "validation" in task.splits
    )
    pair = file in ("glue/MRPC", "glue/RTE", "glue/QNLI", "glue/STS-B")
    assert ("pair" in task.data.splits["train"][0].values) == pair


def test_real_words_questions_and_choices():
    ner = TokenClassification.read(data_dir("text", "ner", "wnut17"), DataOptions())
    assert (
        ner.splits == {"train": 800, "validation": 250}
        and type(ner) is TokenClassification
        and ner.labels[0] == "O"
    )
    assert set(ner.labels) == set(
        json.loads(data_dir("text", "ner", "wnut17", "labels.json").read_text())
    )
    pos = TokenClassification.read(data_dir("text", "pos", "ud_ewt"), DataOptions())
    assert (
        pos.splits == {"train": 500, "validation": 150}
        and type(pos) is WordTagging
        and "NOUN" in pos.labels
        and len(pos.labels) == 17
    )
    for name, counts, unanswered in (("squad2", (201, 53), True), ("xquad_en", (228, 107), False)):
        options = DataOptions(extra={"validation": str(data_dir("text", "qa", f"{name}_dev.json"))})
        qa = QuestionAnswering.read(data_dir("text", "qa", f"{name}_train.json"), options)
        assert tuple(qa.splits.values()) == counts and qa.may_be_unanswered == unanswered
    choices = task_class("multiple-choice")
    codah = choices.read(data_dir("text", "mc", "codah_train.tsv"), DataOptions())
    assert sum(codah.splits.values()) == 700 and codah.choices == 4
    swag = choices.read(data_dir("text", "mc", "swag_sample.jsonl"), DataOptions(val_fraction=0.0))
    first = swag.data.splits["train"][0].values
    assert first["text"].startswith("Members of the procession") and first["choices"][0].startswith(
        "A drum line passes by"
    )
    lm = MaskedLanguageModeling.read(data_dir("text", "lm", "sherlock_holmes.txt"), DataOptions())
    assert lm.splits["train"] > 1000


def test_labels_tell_the_task(tmp_path):
    rows = [
        {"text": f"t {i}", "label": label}
        for i, label in enumerate([["a"], ["b", "c"], [], ["a", "b"]])
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    multi = TextClassification.read(tmp_path / "m.jsonl", DataOptions(val_fraction=0.0))
    assert multi.kind == "multi_label_classification" and multi.labels == ["a", "b", "c"]
    assert multi.target(multi.data.splits["train"][1]) == [0.0, 1.0, 1.0]
    file = write(tmp_path / "m.tsv", [("x", "a|b"), ("y", "b")], ("text", "classes"))
    assert TextClassification.read(
        file, DataOptions(columns={"labels": "classes"}, val_fraction=0.0)
    ).labels == ["a", "b"]
    file = write(tmp_path / "r.tsv", [("x", "1"), ("y", "2.5"), ("z", "3")], ("text", "score"))
    assert TextClassification.read(file, DataOptions(val_fraction=0.0)).kind == "regression"
    file = write(tmp_path / "c.tsv", [("x", "1"), ("y", "10"), ("z", "2")], ("text", "label"))
    assert TextClassification.read(file, DataOptions(val_fraction=0.0)).labels == ["1", "2", "10"]


def test_rows_of_a_group_stay_together(tmp_path):
    """In the split and in the folds of a head, where equal texts also share a group."""
    rows = [(f"t{i % 30}", "ab"[i % 2], f"g{i // 4}") for i in range(32)] + [("u", "a", "")]
    file = write(tmp_path / "g.tsv", rows, ("text", "label", "author"))
    options = DataOptions(columns={"group": "author"})
    task = TextClassification.read(file, options)
    sides = {s: {row.group for row in found} for s, found in task.data.splits.items()}
    assert not sides["train"] & sides["validation"] and len(sides["validation"]) >= 1
    assert any("33 rows in 9 groups" in note for note in task.data.notes)
    whole = TextClassification.read(file, dataclasses.replace(options, val_fraction=0.0))
    whole.encoded = {
        "train": [
            {"input_ids": [ord(c) for c in row.values["text"]]}
            for row in whole.data.splits["train"]
        ]
    }
    groups = whole.groups(np.arange(33))
    assert groups[0] == groups[3] == groups[30] and groups[4] != groups[0] != groups[32]


def test_split_column_and_held_out_rows(tmp_path):
    rows = [(f"t{i}", "ab"[i % 2], ("train", "dev", "test")[i % 3]) for i in range(12)]
    file = write(tmp_path / "s.tsv", rows, ("text", "label", "split"))
    assert TextClassification.read(file, DataOptions()).splits == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }
    file = write(tmp_path / "h.tsv", [row[:2] for row in rows], ("text", "label"))
    task = TextClassification.read(file, DataOptions(val_fraction=0.34))
    assert task.splits == {"train": 8, "validation": 4}
    assert sorted(row.values["label"] for row in task.data.splits["validation"]) == list("aabb")
    again = TextClassification.read(file, DataOptions(val_fraction=0.34))
    assert again.fingerprint == task.fingerprint
    assert (
        TextClassification.read(file, DataOptions(val_fraction=0.34, seed=1)).fingerprint
        != task.fingerprint
    )
    assert (
        TextClassification.read(file, DataOptions(shots=2, val_fraction=0.34)).splits["train"] == 4
    )


@pytest.mark.parametrize(
    "task, name, text, message",
    [
        (
            "text-classification",
            "a.tsv",
            "text\tlabel\nx\ta\n\tb\n",
            r"1 of 2 rows cannot be used.*a.tsv line 3: text holds no text",
        ),
        (
            "text-classification",
            "a.tsv",
            "text\tlabel\nx\t\ny\tb\n",
            "a.tsv line 2: label is empty",
        ),
        ("text-classification", "a.tsv", "text\tlabel\nx\ta\ny\ta\n", "one class"),
        (
            "text-classification",
            "a.tsv",
            "words\tlabel\nx\ta\n",
            "which column holds the text.*--column text=NAME",
        ),
        ("text-classification", "a.tsv", "text\tkind\nx\ta\n", "which column holds the label"),
        (
            "text-classification",
            "a.jsonl",
            '{"text": "x", "label": ["a"]}\n{"text": "y", "label": 3}\n',
            "expected|other rows have lists",
        ),
        ("text-classification", "a.tsv", "text\tlabel\tsplit\nx\ta\tnone\n", "split is 'none'"),
        ("token-classification", "a.conll", "one O\ntwo\n\n", "a.conll line 2: 1 columns"),
        (
            "token-classification",
            "a.jsonl",
            '{"tokens": ["a", "b"], "tags": ["O"]}\n',
            "2 words and 1 tags",
        ),
        (
            "question-answering",
            "a.jsonl",
            (
                '{"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start":'
                " [2]}}\n"
            ),
            "'b' is not at character 2",
        ),
        (
            "multiple-choice",
            "a.tsv",
            "question\tchoice0\tchoice1\tlabel\nq\ta\tb\t2\n",
            "expected the number of a choice, from 0 to 1",
        ),
        ("multiple-choice", "a.tsv", "question\tlabel\nq\t2\n", "where are the choices"),
    ],
)
def test_bad_data(task, name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.compile(message, re.DOTALL)):
        task_class(task).read(tmp_path / name, DataOptions(val_fraction=0.0))


def test_bad_rows_can_be_left_out(tmp_path):
    file = write(tmp_path / "a.tsv", [("x", "a"), (" ", "b"), ("y", "b")], ("text", "label"))
    task = TextClassification.read(file, DataOptions(skip_bad=True, val_fraction=0.0))
    assert task.splits == {"train": 2} and "1 unusable rows left out" in task.found()
    with pytest.raises(DataError, match="no file or folder"):
        TextClassification.read(tmp_path / "none", DataOptions())
    write(tmp_path / "d" / "dev.tsv", [("x", "a")], ("text", "label"))
    with pytest.raises(DataError, match="no training data"):
        TextClassification.read(tmp_path / "d", DataOptions())
    unknown = write(
        tmp_path / "u" / "train.tsv", [("x", "a"), ("y", "b")], ("text", "label")
    ).parent
    write(unknown / "dev.tsv", [("x", "c")], ("text", "label"))
    with pytest.raises(DataError, match="dev.tsv line 2: class 'c' is not among a, b"):
        task = TextClassification.read(unknown, DataOptions())
        task.target(task.data.splits["validation"][0])


# Measures -----------------------------------------------------------------------------------------


def test_correlations():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0]) and spearman(
        a, b
    ) == pytest.approx(stats.spearmanr(a, b)[0])
    assert pearson(a, np.ones(50)) == 0.0
    true, said = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    tp, tn = ((true == 1) & (said == 1)).sum(), ((true == 0) & (said == 0)).sum()
    fp, fn = ((true == 0) & (said == 1)).sum(), ((true == 1) & (said == 0)).sum()
    expected = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert matthews(true, said) == pytest.approx(expected)
    assert matthews(true, true) == 1.0 and matthews(true, np.zeros(40, int)) == 0.0


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-a I-a O", {("a", 0, 2)}),
        ("B-a B-a", {("a", 0, 1), ("a", 1, 2)}),
        ("I-a I-a O I-b", {("a", 0, 2), ("b", 3, 4)}),
        ("B-a I-b I-b", {("a", 0, 1), ("b", 1, 3)}),
        ("O O", set()),
        ("B-x-y I-x-y", {("x-y", 0, 2)}),
    ],
)
def test_entities(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_scores():
    true = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    said = [["B-a", "I-a", "O", "B-a"], ["O", "B-a"]]
    scores = entity_scores(true, said)
    assert (scores[""].precision, scores[""].recall, scores[""].count) == (2 / 3, 2 / 3, 3)
    assert scores["a"].f1 == pytest.approx(4 / 5) and scores["b"].f1 == 0.0


def test_answer_scores():
    assert answer_scores("the  Cat!", ["cat"]) == (1.0, 1.0)
    assert answer_scores("a black cat", ["dog", "black dog"]) == (0.0, 0.5)
    assert (
        answer_scores("", []) == (1.0, 1.0)
        and answer_scores("cat", []) == (0.0, 0.0)
        and answer_scores("", ["cat"]) == (0.0, 0.0)
    )


# Whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moods")
    write(folder / "train.tsv", sentences(80), ("text", "label"))
    write(folder / "dev.tsv", sentences(40, seed=1), ("text", "label"))
    return folder


def test_text_classification(moods, tiny_yoso, tmp_path):
    result = run(moods, tiny_yoso, tmp_path / "out", "text-classification")
    assert (
        result.metrics["accuracy"] > 0.9
        and {"f1", "mcc", "macro_f1", "loss"} <= result.metrics.keys()
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert results["headline"] == "accuracy" and config["id2label"] == {"0": "bad", "1": "good"}


def test_a_network_that_pools_by_the_mean_compares_pairs(tiny_yoso, tmp_path):
    folder = tmp_path / "mean"
    YosoForMaskedLM.from_pretrained(tiny_yoso, classifier_pooling="mean").save_pretrained(folder)
    YosoTokenizer.from_pretrained(tiny_yoso).save_pretrained(folder)
    texts = sentences(24)
    single = write(tmp_path / "texts.tsv", texts, ("text", "label"))
    pairs = write(
        tmp_path / "pairs.tsv",
        [(text, texts[0][0], label) for text, label in texts],
        ("sentence1", "sentence2", "label"),
    )
    for data, pooling in ((single, "mean"), (pairs, "pair")):
        out = tmp_path / "out" / pooling
        train(data, model=folder, out=out, task="text-classification", tune="head")
        assert json.loads((out / "config.json").read_text())["classifier_pooling"] == pooling


@pytest.mark.parametrize("value", [-9.0, 9.0])
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_every_weight_from_a_fitted_head(tiny_yoso, tmp_path, monkeypatch, kind, value):
    """What is kept is evaluated alike from its folder: the trained network, or the head alone."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    numbers = {"good": 150.0, "bad": -25.0}
    rows = [(text, numbers[m] if kind == "numbers" else m) for text, m in sentences(80)]
    data = write(tmp_path / "d.tsv", rows, ("text", "score" if kind == "numbers" else "label"))
    original = Start.write
    monkeypatch.setattr(
        Start, "write", lambda self, *a: original(dataclasses.replace(self, value=value), *a)
    )
    few = {"steps": 3, "batch_size": 8, "tune": "auto", "lr": 1e-4}
    result = train(data, model=tiny_yoso, out=tmp_path / "a", task="text-classification", **few)
    assert result.recipe.tune == ("head" if value > 0 else "full")
    _, again = evaluate(tmp_path / "a", data)
    for name, each in again.metrics.items():
        assert each == pytest.approx(result.metrics[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("kind", ["classes", "lists", "numbers"])
def test_tuned_head(tiny_yoso, tmp_path, monkeypatch, kind):
    """The last layer alone learns.

    Features are computed once, and the saved network gives what was evaluated.
    """
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    texts = sentences(80)
    if kind == "classes":
        rows, names = texts, ("text", "label")
    elif kind == "lists":
        rows, names = (
            [(text, f"{mood}|seen" if "seen" in text else mood) for text, mood in texts],
            ("text", "labels"),
        )
    else:
        rows, names = (
            [(text, 1.5 if mood == "good" else -0.25) for text, mood in texts],
            ("text", "score"),
        )
    data = write(tmp_path / "data.tsv", rows, names)
    columns = {names[1]: names[1]}
    before = YosoForMaskedLM.from_pretrained(tiny_yoso).state_dict()
    lines = []
    monkeypatch.setattr(Watcher, "said", lines)
    with pytest.raises(
        ConfigError, match="bit has no network for text-classification; families that have: yoso"
    ):
        train(
            data, model="bit-mini", out=tmp_path / "a", task="text-classification", columns=columns
        )
    result = train(
        data,
        model=tiny_yoso,
        out=tmp_path / "a",
        task="text-classification",
        tune="head",
        columns=columns,
        progress=Watcher(),
    )
    assert not any("known from before" in line for line in lines)
    again = train(
        data,
        model=tiny_yoso,
        out=tmp_path / "b",
        task="text-classification",
        tune="head",
        columns=columns,
        progress=Watcher(),
    )
    assert any("features of 80 texts are known from before" in line for line in lines)
    assert again.metrics == pytest.approx(result.metrics)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor) for name, tensor in before.items() if name in after
    ), "only the head may change"
    assert not torch.equal(
        model.classifier.out_proj.weight, torch.zeros_like(model.classifier.out_proj.weight)
    )
    _, evaluated = evaluate(tmp_path / "a", data, columns=columns, split="train")
    headline = {"classes": "accuracy", "lists": "micro_f1", "numbers": "pearson"}[kind]
    assert evaluated.metrics[headline] > (0.8 if kind == "classes" else 0.6)


class Watcher(Silent):
    """Keeps what was said."""

    said: list[str] = []

    def report(self, text):
        self.said.append(text)


def test_pairs(tiny_yoso, tmp_path):
    rows = [
        (a, b, i % 2)
        for i, ((a, _), (b, _)) in enumerate(zip(sentences(40), sentences(40, seed=2), strict=True))
    ]
    file = write(tmp_path / "pairs.tsv", rows * 2, ("sentence1", "sentence2", "label"))
    task = TextClassification.read(file, DataOptions())
    task.build(str(tiny_yoso), Recipe(max_length=20))
    task.prepare(None)
    for example, row in zip(task.encoded["train"], task.data.splits["train"], strict=True):
        ids = example["input_ids"]
        assert len(ids) <= 20 and ids.count(task.tokenizer.sep_token_id) == 3
        whole = task.tokenizer(row.values["text"], row.values["pair"]).input_ids
        assert (ids == whole) == (len(whole) <= 20)
    assert any("are cut" in note for note in task.data.notes)


def test_multi_label_and_regression(tiny_yoso, tmp_path):
    rows = [
        {"text": text, "label": [label] + ["house"] * ("house" in text)}
        for text, label in sentences(120)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = train(
        tmp_path / "m.jsonl",
        model=tiny_yoso,
        out=tmp_path / "multi",
        task="text-classification",
        **(QUICK | {"steps": 100}),
    )
    assert result.metrics["micro_f1"] > 0.9
    assert (
        json.loads((tmp_path / "multi" / "config.json").read_text())["problem_type"]
        == "multi_label_classification"
    )
    scored = [(text, f"{1.5 if label == 'good' else -0.5}") for text, label in sentences(120)]
    file = write(tmp_path / "r.tsv", scored, ("text", "score"))
    result = train(
        file,
        model=tiny_yoso,
        out=tmp_path / "regression",
        task="text-classification",
        **(QUICK | {"steps": 100}),
    )
    assert result.metrics["pearson"] > 0.9 and result.metrics["rmse"] < 0.5
    job, again = evaluate(tmp_path / "regression", file)
    assert job.kind == "regression" and again.metrics["pearson"] > 0.9
    job, again = evaluate(tmp_path / "multi", tmp_path / "m.jsonl")
    assert job.kind == "multi_label_classification" and again.metrics["micro_f1"] > 0.9


def tagged(count, seed):
    rows = []
    for text, _ in sentences(count, seed):
        words = text.split()
        kinds = {word: kind for kind, group in WORDS.items() for word in group}
        rows.append(
            "\n".join(f"{word}\t{'B-' + kinds[word] if word in kinds else 'O'}" for word in words)
            + "\n"
        )
    return "\n".join(rows)


def test_token_classification(tiny_yoso, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.conll").write_text(tagged(80, 0))
    (tmp_path / "data" / "dev.conll").write_text(tagged(30, 1))
    result = run(tmp_path / "data", tiny_yoso, tmp_path / "out", "token-classification")
    assert result.metrics["f1"] > 0.9 and result.metrics["entities"] == 30
    figures, rows = held_out(result)
    assert figures["entities"].keys() == {"good", "bad"}
    assert sum(each["count"] for each in figures["entities"].values()) == 30
    assert figures["classes"].keys() == {"O", "B-good", "B-bad"}
    assert sum(map(sum, figures["confusion_matrix"])) == len(rows)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == pytest.approx(result.metrics["accuracy"])
    words = tagged(30, 1).split("\n")[0].split("\t")
    assert rows[0]["name"].endswith(f"word 1: {words[0]}") and rows[0]["label"] == words[1]
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)


def held_out(result):
    """Figures of the validation examples in `results.json`, and the rows of `predictions.csv`."""
    figures = json.loads((result.folder / "results.json").read_text())["evaluations"]["validation"]
    with (result.folder / "predictions.csv").open(newline="") as file:
        return figures, list(csv.DictReader(file))


def test_a_tag_that_only_held_out_texts_have_does_not_end_a_run(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["X" if i == 7 else "A", "B"]} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = [
        TokenClassification.read(tmp_path / "a.jsonl", DataOptions(seed=seed, val_fraction=0.5))
        for seed in range(8)
    ]
    assert all(task.tags == ["A", "B", "X"] for task in read)
    notes = ["no training text has the tag X" in task.data.notes for task in read]
    trained = ["X" in row.values["tags"] for task in read for row in task.data.splits["train"]]
    assert 0 < sum(notes) < 8 and sum(notes) + sum(trained) == 8


def test_digits_of_other_scripts_are_names(tmp_path):
    """`str.isdigit` holds for ② and `int` refuses it."""
    rows = [(f"text {i}", "②①"[i % 2] if i % 3 else "10") for i in range(12)]
    file = write(tmp_path / "a.tsv", [*rows, ("x", "9")], ("text", "label"))
    task = TextClassification.read(file, DataOptions(val_fraction=0.0))
    assert task.classes == ["9", "10", "①", "②"]
    lines = [{"tokens": ["a", "b"], "tags": ["②", "10"]}] * 3
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tags = TokenClassification.read(tmp_path / "b.jsonl", DataOptions(val_fraction=0.0)).tags
    assert tags == ["10", "②"]


def test_every_word_is_evaluated_however_long(tiny_yoso, tmp_path):
    words = [f"w{i}" for i in range(90)]
    lines = [{"tokens": words, "tags": ["B-a" if i % 7 == 0 else "O" for i in range(90)]}] * 4
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = TokenClassification.read(tmp_path / "a.jsonl", DataOptions())
    model = task.build(str(tiny_yoso), Recipe()).eval()
    task.prepare(None)
    found = task.evaluate(model, "validation", torch.device("cpu"))
    assert (
        len(found.details["labels"]) == 90 * found.examples
        and found.metrics["entities"] == 13 * found.examples
    )
    first = task.encoded["train"][0]
    assert len(first["input_ids"]) == 64 and any("are cut" in note for note in task.data.notes)


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


def test_some_texts_are_evaluated_as_all_are(moods, tiny_yoso, tmp_path):
    task = TextClassification.read(moods, DataOptions())
    part, every, rows = part_of_all(task, task.build(str(tiny_yoso), Recipe()), "logits")
    np.testing.assert_allclose(part, every[rows], rtol=1e-4, atol=1e-5)


def test_some_words_are_evaluated_as_all_are(tiny_yoso, tmp_path):
    (tmp_path / "a.conll").write_text(tagged(40, 0))
    task = TokenClassification.read(tmp_path / "a.conll", DataOptions())
    model = task.build(str(tiny_yoso), Recipe())
    part, every, rows = part_of_all(task, model, "predicted")
    ends = task.evaluate(model, "validation", torch.device("cpu")).details["ends"]
    words = np.split(every, ends[:-1])
    assert (part == np.concatenate([words[row] for row in rows])).all()


def test_some_blocks_and_questions_are_evaluated(tiny_yoso, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([" we man" * 15] * 60))
    task = MaskedLanguageModeling.read(tmp_path / "a.txt", DataOptions())
    model = task.build(str(tiny_yoso), Recipe(max_length=20)).eval()
    task.prepare(None)
    part = task.subset("validation", np.array([0, 3]))
    assert part.evaluate(model, "validation", torch.device("cpu")).examples == 2
    answers = {"text": ["we"], "answer_start": [0]}
    lines = [
        {"id": i, "question": "who", "context": f"we saw {i}", "answers": answers}
        for i in range(40)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = QuestionAnswering.read(tmp_path / "q.jsonl", DataOptions())
    model = task.build(str(tiny_yoso), Recipe())
    part, every, rows = part_of_all(task, model, "answers")
    assert (part == every[rows]).all()


def test_question_answering(tiny_yoso, tmp_path):
    def row(text, label, i):
        word = next(w for w in text.split() if w in WORDS[label])
        answers = (
            {"text": [word], "answer_start": [f" {text} ".index(f" {word} ")]}
            if i % 4
            else {"text": [], "answer_start": []}
        )
        context = text if i % 4 else " ".join(w for w in text.split() if w != word)
        return {"id": i, "question": "which mood", "context": context, "answers": answers}

    for name, count, seed in (("train", 120, 0), ("dev", 40, 1)):
        rows = [row(text, label, i) for i, (text, label) in enumerate(sentences(count, seed))]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run(tmp_path / "data", tiny_yoso, tmp_path / "out", "question-answering", steps=120)
    assert (
        result.metrics["f1"] > 0.8
        and {"exact_match", "no_answer_accuracy", "f1_answered"} <= result.metrics.keys()
    )
    _, rows = held_out(result)
    assert len(rows) == 40 and sum(row["label"] == "" for row in rows) == 10
    f1 = sum(float(row["f1"]) for row in rows) / 40
    assert f1 == pytest.approx(result.metrics["f1"], abs=1e-4)
    exact = [row for row in rows if float(row["exact_match"])]
    assert exact and all(row["label"] == row["prediction"].strip() for row in exact)


def test_windows_hold_every_answer(tiny_yoso):
    """In some window the tokens of the span are the answer; windows cover the context."""
    task = QuestionAnswering.read(
        data_dir("text", "qa", "squad2_train.json"), DataOptions(val_fraction=0.0)
    )
    task.build(str(tiny_yoso), Recipe())
    task.prepare(None)
    inside = 0
    for row, example in zip(task.data.splits["train"], task.encoded["train"], strict=True):
        spans = [w for w in example["windows"] if w["span"] != (0, 0)]
        assert all(len(w["input_ids"]) <= 64 for w in example["windows"])
        if not row.values["answers"]:
            assert not spans
        for window in spans:
            inside += 1
            first, last = window["span"]
            found = row.values["context"][window["offsets"][first, 0] : window["offsets"][last, 1]]
            assert row.values["answers"][0]["text"] in found
        covered = {
            int(c)
            for w in example["windows"]
            for a, b in w["offsets"]
            if a >= 0
            for c in range(a, b)
        }
        assert covered >= {
            i for i, c in enumerate(row.values["context"]) if not c.isspace() and ord(c) < 128
        }
    assert inside > 50


def test_best_span_is_the_best_of_all_pairs():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 50)).astype(np.float32)
    offsets = np.array([(-1, -1)] * 5 + [(i, i + 1) for i in range(44)] + [(-1, -1)])
    pairs = [
        (start[i] + end[j], i - 5, j - 4) for i in range(5, 49) for j in range(i, min(i + 30, 49))
    ]
    score, first, last = best_span(start, end, offsets)
    assert (first, last) == max(pairs)[1:] and score == pytest.approx(max(pairs)[0])
    assert best_span(start[:3], end[:3], offsets[:3]) is None
    assert token_span([(-1, -1), (0, 2), (3, 5)], {"text": "de", "start": 3}) == (2, 2)
    assert token_span([(-1, -1), (0, 2), (3, 5)], {"text": "de f", "start": 3}) == (0, 0)


def test_multiple_choice(tiny_yoso, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 80), ("dev", 40)):
        rows = []
        for i in range(count):
            label = int(rng.integers(0, 3))
            choices = [
                str(rng.choice(WORDS["good" if j == label else "bad"])) + " man" * j
                for j in range(3)
            ]
            rows.append((f"we saw {i}", *choices, "ABC"[label]))
        write(
            tmp_path / "data" / f"{name}.tsv",
            rows,
            ("question", "choice0", "choice1", "choice2", "answer"),
        )
    result = run(tmp_path / "data", tiny_yoso, tmp_path / "out", "multiple-choice", steps=80)
    assert result.metrics["accuracy"] > 0.9 and result.metrics["chance"] == pytest.approx(1 / 3)
    figures, rows = held_out(result)
    assert figures["classes"].keys() == {"0", "1", "2"} and len(rows) == 40
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right == np.trace(figures["confusion_matrix"]) == 40 * result.metrics["accuracy"]


def test_masked_language_modeling(tiny_yoso, tmp_path):
    # with the separator 32: the place tells the token
    (tmp_path / "train.txt").write_text("\n".join([" we man" * 15 + " we"] * 60))
    values = QUICK | {"max_length": 34}
    result = train(
        tmp_path / "train.txt",
        model=tiny_yoso,
        out=tmp_path / "out",
        task="masked-language-modeling",
        **values,
    )
    assert result.metrics["accuracy"] > 0.6 and result.metrics["perplexity"] == pytest.approx(
        np.exp(result.metrics["loss"])
    )


def test_masking_is_fifteen_percent_and_80_10_10(tiny_yoso, tmp_path):
    (tmp_path / "a.txt").write_text(
        "\n".join(f"the house was seen by man {i} and we went" for i in range(400))
    )
    task = MaskedLanguageModeling.read(tmp_path / "a.txt", DataOptions(val_fraction=0.0))
    task.build(str(tiny_yoso), Recipe())
    task.prepare(None)
    special, mask = set(task.tokenizer.all_special_ids), task.tokenizer.mask_token_id
    tokens = chosen = masked = same = 0
    for index in range(task.splits["train"]):
        whole = torch.tensor(task.encoded["train"][index]["input_ids"])
        assert len(whole) <= 64
        for draw in range(20):
            example = task.example(index, np.random.default_rng([index, draw]))
            hidden = example["labels"] != -100
            assert torch.equal(example["labels"][hidden], whole[hidden]) and torch.equal(
                example["input_ids"][~hidden], whole[~hidden]
            )
            assert not special & set(whole[hidden].tolist()) and not (special - {mask}) & set(
                example["input_ids"][hidden].tolist()
            )
            tokens += sum(int(t) not in special for t in whole)
            chosen += int(hidden.sum())
            masked += int((example["input_ids"][hidden] == mask).sum())
            same += int((example["input_ids"][hidden] == whole[hidden]).sum())
    assert chosen / tokens == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.02) and same / chosen == pytest.approx(
        0.1, abs=0.02
    )


# The loop over texts ------------------------------------------------------------------------------

STEPS = Recipe(
    optimizer="adamw",
    lr=0.01,
    schedule="constant",
    steps=6,
    batch_size=10,
    micro_batch=10,
    zero_head=False,
    seed=3,
)


def looped(moods, model_folder, folder, recipe, until=None, checkpoint=None, **config):
    task = TextClassification.read(moods, DataOptions())
    torch.manual_seed(1)
    model = task.build(str(model_folder), recipe)
    for module in model.modules():
        if config.get("dropout") == 0 and isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task.prepare(None)
    loop = Loop(task, model, task.recipe, folder, World("cpu"), Silent())
    if checkpoint is not None:
        loop.restore(checkpoint)
    if until is None:
        loop.run()
    else:
        batches = Batches(task, task.recipe, slice(0, 10), 1)
        while loop.step < until:
            loop.update(batches[loop.step])
            loop.step += 1
        loop.save()
        batches.close()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_micro_batches_of_texts_change_nothing(moods, tiny_yoso, tmp_path):
    """Padding differs between micro-batches of 3, 3, 3, 1 and the whole batch.

    The weights do not.
    """
    whole = looped(moods, tiny_yoso, tmp_path / "a", STEPS, dropout=0)
    parts = looped(
        moods, tiny_yoso, tmp_path / "b", dataclasses.replace(STEPS, micro_batch=3), dropout=0
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_batches_give_what_each_text_gives_alone(moods, tiny_yoso):
    task = TextClassification.read(moods, DataOptions())
    model = task.build(str(tiny_yoso), Recipe(zero_head=False)).eval()
    task.prepare(None)
    together = task.scores(model, "validation", torch.device("cpu"), lambda out: out.logits)
    for row, scores in zip(task.data.splits["validation"], together, strict=True):
        with torch.inference_mode():
            alone = model(**task.tokenizer(row.values["text"], return_tensors="pt")).logits[0]
        np.testing.assert_allclose(scores, alone.numpy(), atol=1e-5)


def test_resumed_run_is_the_same_run(moods, tiny_yoso, tmp_path):
    """With dropout: bit for bit."""
    whole = looped(moods, tiny_yoso, tmp_path / "a", STEPS)
    looped(moods, tiny_yoso, tmp_path / "b", STEPS, until=3)
    resumed = looped(
        moods,
        tiny_yoso,
        tmp_path / "b",
        STEPS,
        checkpoint=load_checkpoint(tmp_path / "b" / "checkpoints"),
    )
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_broken_run_goes_on_bit_for_bit(moods, tiny_yoso, tmp_path, monkeypatch):
    values = {
        "model": str(tiny_yoso),
        "task": "text-classification",
        "device": "cpu",
        "steps": 8,
        "batch_size": 8,
        "checkpoint_every": 3,
    }
    whole = train(moods, out=tmp_path / "whole", eval_every=100, **values)
    update = Loop.update

    def power_cut(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(moods, out=tmp_path / "broken", eval_every=100, **values)
    monkeypatch.setattr(Loop, "update", update)
    torch.manual_seed(99)
    resumed = train(moods, out=tmp_path / "broken", resume=True)
    assert resumed.metrics == whole.metrics
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_tokenizer_of_another_network(moods, tiny_yoso, tmp_path):
    task = TextClassification.read(moods, DataOptions())
    config = YosoConfig(
        vocab_size=90,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    YosoForMaskedLM(config).save_pretrained(tmp_path)
    YosoTokenizer.from_pretrained(tiny_yoso).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer has 700 tokens and the network 90"):
        task.build(str(tmp_path), Recipe())


def test_texts_are_tokenized_once_and_in_parts(tiny_yoso, tmp_path, monkeypatch):
    """Only texts that are too long are given to the tokenizer again; progress counts them."""
    monkeypatch.setattr("headstart.tasks.text.TOKENIZED_TOGETHER", 4)
    lines = [f"{'so ' * (30 if i == 5 else 2)}w{i},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]))
    task = TextClassification.read(tmp_path / "t.csv", DataOptions(val_fraction=0.0))
    task.build(tiny_yoso, Recipe(max_length=16))
    seen, counts, tokens = [], [], task.tokens

    def counted(texts, *more, **options):
        seen.append(len(texts))
        return tokens(texts, *more, **options)

    monkeypatch.setattr(task, "tokens", counted)
    encoded = task.encode("train")
    assert sorted(seen) == [1, 4, 4, 4, 4, 4]
    assert [each["cut"] for each in encoded] == [i == 5 for i in range(20)]
    assert len(encoded[5]["input_ids"]) == 16
    task.tokenized = counts.append
    task.encode("train")
    assert counts == [4] * 5


def test_word_tags_in_parts_are_those_of_one_call(tiny_yoso, tmp_path, monkeypatch):
    texts = [["so O", f"w{i} B-PER", "is O", *["fair O"] * i, "\n"] for i in range(9)]
    (tmp_path / "t.conll").write_text("\n".join(line for each in texts for line in each))
    task = TokenClassification.read(tmp_path / "t.conll", DataOptions(val_fraction=0.0))
    task.build(tiny_yoso, Recipe(max_length=8))
    whole = task.encode("train")
    assert len(whole) == 9 and any(each["rest"] for each in whole)
    monkeypatch.setattr("headstart.tasks.text.TOKENIZED_TOGETHER", 2)
    assert task.encode("train") == whole
