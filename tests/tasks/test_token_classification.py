"""Token classification: words, tags, and evaluation of a part of the rows."""

import json

import numpy as np
import pytest
import torch

from headstart.data.options import DataOptions
from headstart.recipe import Recipe
from headstart.tasks.text_classification import TextClassification
from headstart.tasks.token_classification import TokenClassification
from text_runs import WORDS, held_out, part_of_all, run, sentences


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


def test_word_tags_in_parts_are_those_of_one_call(tiny_yoso, tmp_path, monkeypatch):
    texts = [["so O", f"w{i} B-PER", "is O", *["fair O"] * i, "\n"] for i in range(9)]
    (tmp_path / "t.conll").write_text("\n".join(line for each in texts for line in each))
    task = TokenClassification.read(tmp_path / "t.conll", DataOptions(val_fraction=0.0))
    task.build(tiny_yoso, Recipe(max_length=8))
    whole = task.encode("train")
    assert len(whole) == 9 and any(each["rest"] for each in whole)
    monkeypatch.setattr("headstart.tasks.text.TOKENIZED_TOGETHER", 2)
    assert task.encode("train") == whole
