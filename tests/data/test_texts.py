"""Readers of texts: real tables, labels that decide the task, groups, splits and bad rows."""

import dataclasses
import json
import re

import numpy as np
import pytest

from conftest import data_dir
from headstart.data.options import DataOptions
from headstart.errors import DataError
from headstart.tasks import task_class
from headstart.tasks.masked_language_modeling import MaskedLanguageModeling
from headstart.tasks.question_answering import QuestionAnswering
from headstart.tasks.text_classification import TextClassification
from headstart.tasks.token_classification import TokenClassification, WordTagging
from text_runs import write


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
