"""A student that learns from a teacher of texts: what the loss is, and who may teach."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import headstart
from headstart import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    YosoConfig,
    YosoModel,
    YosoTokenizer,
    distill,
)
from headstart.cli.app import main
from headstart.data.options import DataOptions
from headstart.data.text_rows import read_any_text
from headstart.errors import ConfigError, InputError, TrainingInterrupted
from headstart.metrics.alignment import linear_cka
from headstart.recipe import Recipe
from headstart.tasks.text import IGNORE
from headstart.training.distill_settings import FUNCTION, teacher_function
from headstart.training.distill_texts import MAPS, TextDistillation
from headstart.training.loop import Loop
from headstart.training.text_teacher import covering, read_text_teacher

SMALL = {"steps": 6, "lr": 0.01, "batch_size": 8, "device": "cpu"}
WORDS = ["red", "blue", "green", "small", "large", "old", "new", "cat", "dog", "house", "tree"]


def network(size: int, **more) -> YosoConfig:
    """A tiny configuration."""
    return YosoConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        hidden_dropout_prob=0.1,
        **more,
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of 48 short lines."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(48)]
    file = tmp_path_factory.mktemp("texts") / "lines.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    """Pieces of these lines."""
    folder = tmp_path_factory.mktemp("tokenizer")
    YosoTokenizer.train(
        texts.read_text().split("\n"), 300, min_frequency=1, model_max_length=40
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
    """A folder of a network with random weights and vectors of 20 numbers."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    pieces = AutoTokenizer.from_pretrained(tokenizer)
    config = network(len(pieces), initializer_range=0.5)
    config.hidden_size, config.num_attention_heads = 20, 4
    YosoModel(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def words_of(lines):
    """A teacher: a vector and a state for each word, by its letters."""
    vectors, states, offsets = [], [], []
    for line in lines:
        spans, at = [], 0
        for word in line.split(" "):
            spans.append((at, at + len(word)))
            at += len(word) + 1
        letters = [[line[a:b].count(c) for c in "abcdegr"] for a, b in spans]
        states.append(torch.tensor(letters, dtype=torch.float32))
        offsets.append(torch.tensor(spans))
        vectors.append(states[-1].sum(0))
    return torch.stack(vectors), states, offsets


def task_of(texts, teacher, student, recipe=None, **extra):
    """A prepared task and its student."""
    given = teacher_function.set(teacher if callable(teacher) else None)
    name = FUNCTION if callable(teacher) else str(teacher)
    try:
        task = TextDistillation.read(texts, DataOptions(extra={"teacher": name, **extra}))
        model = task.build(str(student), recipe or Recipe(max_length=32, zero_head=False))
    finally:
        teacher_function.reset(given)
    task.prepare(None)
    return task, model


# What is learned ----------------------------------------------------------------------------------


def test_covering_is_the_definition():
    offsets = torch.tensor([[0, 0], [0, 3], [4, 9], [9, 11], [0, 0]])
    starts = torch.tensor([-1, 0, 2, 3, 4, 8, 9, 10, 11, 40])
    expected = []
    for start in starts.tolist():
        inside = [i for i, (a, b) in enumerate(offsets.tolist()) if a <= start < b]
        expected.append(inside[0] if inside else -1)
    assert covering(starts, offsets).tolist() == expected == [-1, 1, 1, -1, 2, 2, 3, 3, -1, -1]
    assert covering(starts[:2], torch.zeros(2, 2, dtype=torch.int64)).tolist() == [-1, -1]


def test_cka_is_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 7))
    center = np.eye(30) - 1 / 30
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(x, y) == pytest.approx(expected)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, np.ones((30, 2))) == 0


@torch.no_grad()
def test_the_loss_is_the_definition(texts, teacher):
    weights = {"vector_weight": 0.5, "hidden_weight": 2.0, "mask_weight": 0.25}
    task, model = task_of(texts, words_of, teacher, **weights)
    model.eval()
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(4)])
    batch["labels"][0, 1:4] = batch["input_ids"][0, 1:4]  # texts count alike, not their words
    inputs = task.micro(batch, slice(0, 4), torch.device("cpu"))
    loss, measures = task.loss(model, inputs)
    parts = slow_loss_parts(task, model, batch)
    assert set(parts) == set(measures)
    for name, value in parts.items():
        assert float(measures[name]) == pytest.approx(value, rel=1e-4), name
    expected = 0.5 * parts["vector_error"] + 2 * parts["hidden_error"] + 0.25 * parts["masked_loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    halves = [
        task.loss(model, task.micro(batch, rows, torch.device("cpu")))[0]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(halves)) == pytest.approx(float(loss), rel=1e-5)


def slow_loss_parts(task, model, batch):
    """One text at a time, token by token, without padding."""
    maps = getattr(model, MAPS)
    parts = dict.fromkeys(("vector_error", "hidden_error", "masked_loss"), 0.0)
    lines = [row.values["text"] for row in task.data.splits["train"]]
    for row in range(4):
        line = lines[int(batch["index"][row])]
        encoded = task.tokenizer(line, return_offsets_mapping=True, return_tensors="pt")
        ids = encoded["input_ids"]
        x = model(ids, output_hidden_states=True).hidden_states[-1][0]
        vectors, states, offsets = words_of([line])
        guess = maps["vector"](x.mean(0))
        wanted = F.layer_norm(vectors[0], (7,))
        parts["vector_error"] += float((guess - wanted).square().mean())
        errors = [
            float((maps["states"](x[at]) - F.layer_norm(states[0][number], (7,))).square().mean())
            for at, (a, b) in enumerate(encoded["offset_mapping"][0].tolist())
            for number, (c, d) in enumerate(offsets[0].tolist())
            if a < b and c <= a < d
        ]
        assert len(errors) >= len(line.split())
        parts["hidden_error"] += float(np.mean(errors))
        length = ids.shape[1]
        shown, labels = batch["shown"][row, :length], batch["labels"][row, :length]
        logits = model(shown[None]).logits[0]
        assert (labels != IGNORE).any()
        assert torch.equal(ids[0][labels != IGNORE], labels[labels != IGNORE])
        parts["masked_loss"] += float(F.cross_entropy(logits, labels))
    return parts


def test_a_student_comes_closer_to_its_teacher(texts, teacher, tmp_path):
    def run(steps):
        return distill(
            teacher,
            texts,
            student=network(300),
            out=tmp_path / f"run{steps}",
            **SMALL | {"steps": steps, "eval_every": 20},
        )

    first, last = run(1), run(80)
    assert last.metrics["cka"] > first.metrics["cka"] + 0.1
    lines = (tmp_path / "run80" / "metrics.jsonl").read_text().splitlines()
    losses = [row["masked_loss"] for row in map(json.loads, lines) if "masked_loss" in row]
    assert losses[-1] < losses[0] - 0.5
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run80")
    assert model.config.classifier_pooling == "mean"
    assert not any(MAPS in name for name in load_file(tmp_path / "run80" / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path / "run80").tokenize("red cat")
    report = (tmp_path / "run80" / "report.html").read_text()
    assert "nearest for the teacher" in report
    guessed = headstart.pipeline("fill-mask", tmp_path / "run80")("red <mask> tree")
    assert len(guessed) == 5


def test_without_masked_words_the_result_has_no_head(texts, teacher, tmp_path):
    made = distill(
        teacher, texts, student=network(300), out=tmp_path / "run", mask_weight=0.0, **SMALL
    )
    assert list(made.metrics) == ["cka"]
    names = load_file(tmp_path / "run" / "model.safetensors")
    assert not any(name.startswith("cls.") for name in names)
    headstart.embed(tmp_path / "run", texts=["red cat"])


def test_a_pretrained_student_keeps_its_tokenizer(texts, teacher, tmp_path):
    distill(teacher, texts, student=teacher, out=tmp_path / "run", **SMALL | {"lr": 0.0})
    before = YosoModel.from_pretrained(teacher).state_dict()
    after = YosoModel.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    distill(
        teacher, texts, student=teacher, out=tmp_path / "new", scratch=True, **SMALL | {"lr": 0.0}
    )
    after = YosoModel.from_pretrained(tmp_path / "new").state_dict()
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(before[name], after[name])


# Resume -------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_run_that_was_not_stopped(texts, teacher, tmp_path, monkeypatch):
    values = SMALL | {"steps": 10, "checkpoint_every": 2, "eval_every": 5}
    whole = distill(words_of, texts, student=teacher, out=tmp_path / "whole", **values)
    update = Loop.update

    def stopped(self, batch):
        if self.step == 6:
            raise TrainingInterrupted("stopped by the test")
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", stopped)
        with pytest.raises(TrainingInterrupted):
            distill(words_of, texts, student=teacher, out=tmp_path / "broken", **values)
    with pytest.raises(ConfigError, match="go on with it in Python"):
        headstart.train(texts, out=tmp_path / "broken", task="text-distillation", resume=True)
    with pytest.raises(ConfigError, match=r"has hidden_weight=1.0, not 3.0"):
        distill(words_of, texts, out=tmp_path / "broken", resume=True, hidden_weight=3.0)
    broken = distill(words_of, texts, out=tmp_path / "broken", resume=True)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert whole.metrics == broken.metrics
    logs = []
    for name in ("whole", "broken"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logs.append([{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines])
    assert logs[0] == logs[1]


# Teachers and texts -------------------------------------------------------------------------------


def test_a_checkpoint_teaches(teacher):
    lines = ["red cat", "a large old house, new tree"]
    found = read_text_teacher(teacher)(lines, torch.device("cpu"))
    model, tokenizer = (
        YosoModel.from_pretrained(teacher).eval(),
        AutoTokenizer.from_pretrained(teacher),
    )
    for i, line in enumerate(lines):
        batch = tokenizer(line, return_offsets_mapping=True, return_tensors="pt")
        with torch.no_grad():
            states = model(batch["input_ids"]).last_hidden_state[0]
        torch.testing.assert_close(found.states[i], states, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.vectors[i], states.mean(0), rtol=0, atol=1e-5)
        assert found.offsets[i].tolist() == batch["offset_mapping"][0].tolist()


@pytest.mark.parametrize(
    "answer, message",
    [
        (torch.zeros(3, 4), r"the teacher gives \(3, 4\) for 2 texts"),
        ((torch.zeros(2, 4), None), "the teacher returns 2 values"),
        ((torch.zeros(2, 4), [torch.zeros(1, 3)], [torch.zeros(1, 2)]), "states of 1 and offsets"),
        (
            (torch.zeros(2, 4), [torch.zeros(1, 3)] * 2, [torch.zeros(2, 2)] * 2),
            r"states \(1, 3\) with offsets \(2, 2\)",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused(answer, message):
    with pytest.raises(InputError, match=message):
        read_text_teacher(lambda lines: answer)(["a", "b"], torch.device("cpu"))


def test_texts_of_everything_that_text_tasks_read(tmp_path):
    files = {
        "lines.txt": "one\n\ntwo\n",
        "pairs.csv": "sentence1,sentence2,label\na b,c d,1\n",
        "words.conll": "the\tO\ncat\tO\n\nit\tO\n",
        "squad.json": json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": "It is red.",
                                "qas": [
                                    {"id": "1", "question": "What?", "answers": []},
                                    {"id": "2", "question": "Why?", "answers": []},
                                ],
                            }
                        ]
                    }
                ]
            }
        ),
    }
    found = {}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        rows = read_any_text(tmp_path / name, DataOptions())
        found[name] = [row.values["text"] for row in rows]
    assert found == {
        "lines.txt": ["one", "two"],
        "pairs.csv": ["a b", "c d"],
        "words.conll": ["the cat", "it"],
        "squad.json": ["It is red.", "What?", "Why?"],
    }


def test_texts_that_are_too_long_are_cut_and_counted(texts, teacher):
    recipe = Recipe(max_length=6, zero_head=False)
    task, _ = task_of(texts, teacher, teacher, recipe)
    assert max(len(each["input_ids"]) for each in task.encoded["train"]) == 6
    assert any("train texts are longer than 6 tokens" in note for note in task.notes)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_weight": -1.0}, "mask_weight=-1.0; it must not be negative"),
        ({"vector_weight": 0.0, "hidden_weight": 0.0}, "nothing would be learned"),
        ({"temperature": 2.0}, "temperature=2.0 is for students of images"),
        ({"lora_rank": 2}, "lora_rank"),
        ({"tune": "head", "steps": None, "lr": None}, "tune head is not available"),
        ({"tokenizer": "x"}, "tokenizer=x: this student has its own"),
    ],
)
def test_what_cannot_be_honored_is_refused(texts, teacher, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        distill(teacher, texts, student=teacher, out=tmp_path / "run", **SMALL | settings)


def test_a_teacher_without_hidden_states_needs_no_weight_for_them(texts, tokenizer, tmp_path):
    def lengths(lines):
        return np.array([[len(line), line.count("e")] for line in lines], dtype=np.float32)

    def run(**more):
        return distill(lengths, texts, out=tmp_path / "run", **SMALL, **more)

    with pytest.raises(ConfigError, match="which tokenizer?"):
        run(student=network(300))
    with pytest.raises(ConfigError, match="hidden_weight needs a teacher that gives hidden states"):
        run(student=network(300), tokenizer=tokenizer)
    assert run(student=network(300), tokenizer=tokenizer, hidden_weight=0.0).metrics["cka"] >= 0


def test_a_teacher_of_images_is_refused(texts, teacher, tmp_path):
    with pytest.raises(ConfigError, match="bit-mini reads images, and the student texts"):
        distill("bit-mini", texts, student=teacher, out=tmp_path / "run", **SMALL)


# Command line -------------------------------------------------------------------------------------


def test_the_command(texts, teacher, tmp_path):
    config = tmp_path / "student.json"
    config.write_text(json.dumps({"model_type": "yoso", **network(300).to_dict()}))
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(
            ["distill", str(teacher), str(texts), "--student", str(config), "--out", str(out)]
            + ["--steps=3", "--batch-size=8", "--device=cpu", "--mask-weight=0.3"]
            + ["--max-length=16"]
        )
    assert ended.value.code == 0
    assert AutoModelForMaskedLM.from_pretrained(out).config.hidden_size == 16
    extra = json.loads((out / "run.json").read_text())["options"]["extra"]
    assert (extra["mask_weight"], extra["scratch"]) == (0.3, True)
    assert json.loads((out / "results.json").read_text())["task"] == "masked-language-modeling"
