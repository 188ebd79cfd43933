"""Extractive question answering: windows, spans, and a whole run."""

import json

import numpy as np
import pytest
import torch

from conftest import data_dir
from headstart.data.options import DataOptions
from headstart.recipe import Recipe
from headstart.tasks.masked_language_modeling import MaskedLanguageModeling
from headstart.tasks.question_answering import QuestionAnswering, best_span, token_span
from text_runs import WORDS, held_out, part_of_all, run, sentences


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
