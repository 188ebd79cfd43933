"""Pipelines of texts, and `headstart predict` on files of them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from conftest import ROOT
from headstart import (
    YosoConfig,
    YosoForMaskedLM,
    YosoForQuestionAnswering,
    YosoForSequenceClassification,
    YosoForTokenClassification,
    YosoTokenizer,
    pipeline,
)
from headstart.cli.app import main
from headstart.errors import ConfigError, HeadstartError, InputError
from headstart.pipelines.base import task_of
from headstart.pipelines.confidence import UNKNOWN, Choice, Confidence
from headstart.pipelines.texts import best_spans

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hash_code_len": 4,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-5,
}


@pytest.fixture(scope="module")
def tokenizer():
    return YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Makes the checkpoint of a network of random weights."""

    def make(cls, **values):
        path = tmp_path_factory.mktemp(cls.__name__)
        torch.manual_seed(1)
        cls(YosoConfig(vocab_size=len(tokenizer), **SMALL, **values)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="module")
def fill(folder):
    return folder(YosoForMaskedLM)


@pytest.fixture(scope="module")
def moods(folder):
    return folder(YosoForSequenceClassification, id2label={0: "bad", 1: "good", 2: "odd"})


@pytest.fixture(scope="module")
def tags(folder):
    return folder(YosoForTokenClassification, id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"})


@pytest.fixture(scope="module")
def answers(folder):
    return folder(YosoForQuestionAnswering)


TEXTS = [
    "The house was seen by a man.",
    "We went.",
    "She was not at all amused by the long way that they had to go.",
]


def test_classes_of_texts(moods, tokenizer):
    classify = pipeline("sentiment-analysis", moods, batch_size=2)
    model = YosoForSequenceClassification.from_pretrained(moods)
    with torch.no_grad():
        expected = [
            model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0) for text in TEXTS
        ]
    found = classify(TEXTS, top_k=None)
    for labels, scores in zip(found, expected, strict=True):
        assert [each["label"] for each in labels] == [
            model.config.id2label[i] for i in scores.argsort(descending=True).tolist()
        ]
        assert [each["score"] for each in labels] == pytest.approx(
            scores.sort(descending=True).values.tolist(), abs=1e-5
        )
    assert classify(TEXTS) == [labels[0] for labels in classify(TEXTS, top_k=1)]
    assert (
        classify(TEXTS[0])[0]["label"] == found[0][0]["label"]
        and len(classify(TEXTS[0], top_k=2)) == 2
    )
    raw = classify(TEXTS[0], top_k=1, function_to_apply="none")
    with torch.no_grad():
        assert raw[0]["score"] == pytest.approx(
            float(model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.max()), abs=1e-4
        )


def test_pairs_of_texts(moods, tokenizer):
    classify = pipeline("text-classification", moods)
    model = YosoForSequenceClassification.from_pretrained(moods)
    with torch.no_grad():
        scores = model(**tokenizer(TEXTS[0], TEXTS[1], return_tensors="pt")).logits[0].softmax(0)
    found = classify({"text": TEXTS[0], "text_pair": TEXTS[1]}, top_k=None)
    assert found[0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    with pytest.raises(InputError, match="pairs together"):
        classify([TEXTS[0], {"text": TEXTS[0], "text_pair": TEXTS[1]}])


@pytest.mark.parametrize(
    "problem, check", [("multi_label_classification", torch.sigmoid), ("regression", lambda x: x)]
)
def test_scores_are_what_was_trained(folder, tokenizer, problem, check):
    path = folder(YosoForSequenceClassification, problem_type=problem, id2label={0: "a", 1: "b"})
    with torch.no_grad():
        expected = check(
            YosoForSequenceClassification.from_pretrained(path)(
                **tokenizer(TEXTS[0], return_tensors="pt")
            ).logits[0]
        )
    found = {
        each["label"]: each["score"]
        for each in pipeline("text-classification", path)(TEXTS[0], top_k=None)
    }
    assert found == pytest.approx({"a": float(expected[0]), "b": float(expected[1])}, abs=1e-5)


def test_hidden_words(fill, tokenizer):
    guess = pipeline("fill-mask", fill)
    text = "The house was <mask> by a man."
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = YosoForMaskedLM.from_pretrained(fill)(**inputs).logits[0]  # (L, V)
    place = int((inputs.input_ids[0] == tokenizer.mask_token_id).nonzero())
    best = logits[place].softmax(0).topk(5)
    found = guess(text)
    assert [each["token"] for each in found] == best.indices.tolist()
    assert [each["score"] for each in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    filled = inputs.input_ids[0].clone()
    filled[place] = best.indices[0]
    assert found[0]["sequence"] == tokenizer.decode(filled, skip_special_tokens=True)
    assert found[0]["token_str"] == tokenizer.decode([int(best.indices[0])])
    # one text is padded
    several = guess([text, "A <mask> and a <mask> were here for a long time, we said."], top_k=2)
    assert [each["token"] for each in several[0]] == best.indices[:2].tolist()
    assert len(several[1]) == 2 and all(len(each) == 2 for each in several[1])
    words = guess(text, targets=[" house", " by"])
    assert {each["token_str"] for each in words} == {" house", " by"}
    assert words[0]["score"] == pytest.approx(
        float(logits[place].softmax(0)[words[0]["token"]]), abs=1e-5
    )
    with pytest.raises(InputError, match="text 2 has no <mask>"):
        guess([text, "nothing"])


def test_logits_at_some_places_are_those_of_all(fill, tokenizer):
    model = YosoForMaskedLM.from_pretrained(fill)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    where = inputs.input_ids % 3 == 0
    labels = torch.where(where, inputs.input_ids, -100)
    whole, some = model(**inputs, labels=labels), model(**inputs, labels=labels, logits_at=where)
    assert (
        torch.allclose(some.logits, whole.logits[where], atol=1e-5)
        and some.logits.shape[0] == where.sum()
    )
    assert some.loss.item() == pytest.approx(whole.loss.item(), abs=1e-5)
    with pytest.raises(InputError, match="logits_at"):
        model(**inputs, logits_at=where[0])


def test_tagged_tokens_and_entities(tags, tokenizer):
    tag = pipeline("ner", tags)
    model = YosoForTokenClassification.from_pretrained(tags)
    inputs = tokenizer(TEXTS[2], return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        scores = model(input_ids=inputs.input_ids).logits[0].softmax(-1)  # (L, V)
    names = [model.config.id2label[i] for i in scores.argmax(-1).tolist()]
    expected = [(i, names[i]) for i in range(1, len(names) - 1) if names[i] != "O"]
    found = tag(TEXTS[2])
    assert expected and [(each["index"], each["entity"]) for each in found] == expected
    for each in found:
        assert each["score"] == pytest.approx(float(scores[each["index"]].max()), abs=1e-5)
        assert (each["start"], each["end"]) == tuple(inputs.offset_mapping[0][each["index"]])
    assert len(tag(TEXTS)) == 3 and tag(TEXTS)[2][0]["entity"] == found[0]["entity"]


def test_entities_join_tokens(tags, tokenizer, monkeypatch):
    """Tags that are set by hand: "Ann" is B-PER in pieces, "Lee" I-PER, and a place follows."""
    tag = pipeline("token-classification", tags)
    text = "Ann Lee went unbelievable Rome"
    batch = tag.encode([text])
    words = [
        None if w is None else text[slice(*batch.word_to_chars(0, w))] for w in batch.word_ids(0)
    ]
    kinds = {"Ann": 1, "Lee": 2, "Rome": 3}
    logits = torch.zeros(1, len(words), 4)
    seen = set()
    for i, word in enumerate(words):
        kind = kinds.get(word, 0)
        logits[0, i, kind] = 5.0 if word not in seen else 1.0
        if kind == 1 and word in seen:  # later pieces of a word say something else
            logits[0, i] = torch.tensor([0.0, 0.0, 0.0, 2.0])
        seen.add(word)
    monkeypatch.setattr(tag, "run", lambda batch: type("Out", (), {"logits": logits}))
    for how in ("first", "max"):
        found = tag(text, aggregation_strategy=how)
        assert [(each["entity_group"], each["word"]) for each in found] == [
            ("PER", "Ann Lee"),
            ("LOC", "Rome"),
        ]
        assert text[found[0]["start"] : found[0]["end"]] == "Ann Lee"
    with pytest.raises(InputError, match="aggregation_strategy"):
        tag(text, aggregation_strategy="best")


def test_best_spans_are_the_best_of_all_pairs():
    rng = np.random.default_rng(0)
    for length, longest in ((9, 3), (4, 15), (1, 1)):
        start, end = rng.random(length), rng.random(length)
        pairs = {
            (i, j): start[i] * end[j]
            for i in range(length)
            for j in range(i, min(length, i + longest))
        }
        right = sorted(pairs.items(), key=lambda each: -each[1])[:3]
        assert [(a, b) for a, b, _ in best_spans(start, end, longest, 3)] == [
            span for span, _ in right
        ]


def test_answers(answers, tokenizer):
    ask = pipeline("question-answering", answers)
    context = "The house was seen by a man. We went on. " * 8
    found = ask(question="Who went?", context=context, top_k=3, max_answer_len=4)
    assert len(found) == 3 and found[0]["score"] >= found[1]["score"]
    for each in found:
        assert context[each["start"] : each["end"]] == each["answer"] and each["answer"].strip()
        assert not re.match(r"\w", context[each["end"] : each["end"] + 1]), (
            "an answer ends with a word"
        )
    whole = pipeline(
        "question-answering", answers, extend_positions=True, model_kwargs={"use_expectation": True}
    )
    best = whole({"question": "Who went?", "context": context})
    assert whole.longest > 64 and context[best["start"] : best["end"]] == best["answer"]
    many = ask([{"question": q, "context": context} for q in ("Who?", "Where?")])
    assert len(many) == 2 and set(many[0]) == {"score", "start", "end", "answer"}
    assert any(
        each["answer"] == ""
        for each in ask(question="Who?", context="A man.", top_k=20, handle_impossible_answer=True)
    )
    with pytest.raises(InputError, match="question"):
        ask(question="Who?")


# Long texts ---------------------------------------------------------------------------------------

NOVEL = " ".join(f"{TEXTS[i % 3]} <mask> said he." if i == 30 else TEXTS[i % 3] for i in range(60))


def test_long_texts_are_refused_cut_or_read_whole(moods, fill):
    with pytest.raises(InputError, match=r"text 1 has \d+ tokens and the network reads 64"):
        pipeline("text-classification", moods)(NOVEL)
    assert len(pipeline("text-classification", moods, truncation=True)([NOVEL, "We went."])) == 2
    read = pipeline("fill-mask", fill, extend_positions=True)
    assert len(read(NOVEL, top_k=2)) == 2
    assert not read.model.config.use_expectation and read.longest > 600
    exact = pipeline(
        "fill-mask", fill, extend_positions=True, model_kwargs={"use_expectation": True}
    )
    exact(NOVEL)
    assert exact.model.config.use_expectation


def test_more_positions_repeat_the_old_ones(moods):
    model = YosoForSequenceClassification.from_pretrained(moods)
    old = model.yoso.embeddings.position_embeddings.weight.clone()
    model.resize_position_embeddings(150)
    new = model.yoso.embeddings.position_embeddings.weight
    assert new.shape[0] == 152 and model.config.max_position_embeddings == 150
    assert (
        torch.equal(new[:66], old)
        and torch.equal(new[66:130], old[2:])
        and torch.equal(new[130:], old[2:24])
    )
    assert new.requires_grad
    with pytest.raises(InputError):
        model.resize_position_embeddings(0)


def test_texts_in_parts_are_the_same(moods, monkeypatch):
    from headstart.models.yoso import torch as network

    model = YosoForSequenceClassification.from_pretrained(moods)
    ids = torch.randint(5, 100, (2, 50))
    with torch.no_grad():
        whole = model(ids).logits
        monkeypatch.setattr(network, "TOKENS_AT_ONCE", 16)
        assert torch.allclose(model(ids).logits, whole, atol=1e-5)


def test_memory_of_inference_is_linear(moods, fill, monkeypatch):
    """Peak of what tensors hold, twice the tokens: about twice the memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor):
                    self.numbers = max(self.numbers, each.numel())
            return out

    model = YosoForMaskedLM.from_pretrained(fill)
    model.read_long_texts(4096)
    sizes = []
    for length in (1024, 4096):
        ids = torch.randint(5, 100, (1, length))
        where = torch.zeros(1, length, dtype=torch.bool)
        where[0, 3] = True
        with torch.inference_mode(), Largest() as seen:
            model(ids, logits_at=where)
        sizes.append(seen.numbers)
    assert sizes[1] <= 4 * sizes[0] and sizes[1] < 4096 * 4096


# The command line ---------------------------------------------------------------------------------


def predict(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    printed = capsys.readouterr()
    return end.value.code, printed.out.splitlines(), printed.err


def test_predict_reads_files_tables_and_texts(moods, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "b.tsv").write_text(
        "sentence1\tsentence2\n" + f"{TEXTS[0]}\t{TEXTS[1]}\n", encoding="utf-8"
    )
    code, lines, _ = predict(capsys, moods, tmp_path / "a.txt", "--lines", "--json", "--top", 2)
    found = [json.loads(line) for line in lines]
    assert (
        code == 0
        and [len(each["labels"]) for each in found] == [2, 2, 2]
        and found[1]["text"].endswith("a.txt line 2")
    )
    direct = pipeline("text-classification", moods)(TEXTS)
    assert [each["labels"][0]["label"] for each in found] == [each["label"] for each in direct]
    code, lines, _ = predict(capsys, moods, tmp_path / "b.tsv", "--json")
    assert code == 0 and json.loads(lines[0])["labels"][0]["score"] == pytest.approx(
        pipeline("text-classification", moods)({"text": TEXTS[0], "text_pair": TEXTS[1]})[0][
            "score"
        ],
        abs=1e-6,
    )
    code, lines, _ = predict(capsys, moods, "--text", TEXTS[0])
    assert code == 0 and lines[0].startswith("text 1\t") and "%" in lines[0]


def test_predict_a_long_text(fill, tmp_path, capsys):
    (tmp_path / "novel.txt").write_text(NOVEL, encoding="utf-8")
    code, _, error = predict(capsys, fill, tmp_path / "novel.txt")
    assert code == 2 and "novel.txt has" in error and "extend" in error
    code, lines, _ = predict(
        capsys,
        fill,
        tmp_path / "novel.txt",
        "--long",
        "extend",
        "--hash-error",
        0.2,
        "--top",
        2,
        "--json",
    )
    assert code == 0 and len(json.loads(lines[0])["masks"][0]) == 2
    code, _, error = predict(capsys, fill, tmp_path / "novel.txt", "--long", "fold")
    assert code == 2 and "refuse, cut or extend" in error


def test_predict_tags_and_answers(tags, answers, tmp_path, capsys):
    code, lines, _ = predict(capsys, tags, "--text", TEXTS[2], "--json")
    assert code == 0 and all("entity_group" in each for each in json.loads(lines[0])["entities"])
    code, lines, _ = predict(
        capsys, answers, "--text", TEXTS[2], "--question", "Who was amused?", "--json", "--top", 1
    )
    assert code == 0 and json.loads(lines[0])["answers"][0]["answer"] in TEXTS[2]
    code, _, error = predict(capsys, answers, "--text", TEXTS[2])
    assert code == 2 and "--question" in error
    code, _, error = predict(capsys, tags)
    assert code == 2 and "which texts" in error


def test_predict_without_files_asks_for_them(capsys):
    code, _, error = predict(capsys, "bit-mini")
    assert code == 2 and "which images?" in error


def test_tasks_are_known_by_their_checkpoints(moods, fill, tags, answers):
    tasks = ["text-classification", "fill-mask", "token-classification", "question-answering"]
    assert [task_of(folder) for folder in (moods, fill, tags, answers)] == tasks


def test_all_scores_from_the_constructor(moods):
    everything = pipeline("text-classification", moods)(TEXTS, top_k=None)
    for options in ({"top_k": None}, {"return_all_scores": True}):
        assert pipeline("text-classification", moods, **options)(TEXTS) == everything
    best = [each[0] for each in everything]
    assert pipeline("text-classification", moods, return_all_scores=False)(TEXTS) == best


def test_token_features_are_those_of_the_network(moods, tokenizer):
    model = YosoForSequenceClassification.from_pretrained(moods).yoso
    extract = pipeline("feature-extraction", model, tokenizer=tokenizer, batch_size=2)
    found = extract(TEXTS, return_tensors=True)
    for text, features in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(features, alone, rtol=1e-5, atol=1e-5)
    assert extract(TEXTS[1]) == extract(TEXTS[1:2])[0]


def test_a_long_text_names_the_options_of_the_interface(moods, tmp_path, capsys):
    with pytest.raises(InputError, match="truncation=True truncates it, or extend_positions=True"):
        pipeline("text-classification", moods)(NOVEL)
    (tmp_path / "novel.txt").write_text(NOVEL)
    code, _, err = predict(capsys, moods, tmp_path / "novel.txt")
    assert code == 2 and "--long cut truncates it, or --long extend reads it whole" in str(err)


def test_wrong_arguments(moods, tokenizer):
    with pytest.raises(ConfigError, match="image_processor"):
        pipeline("text-classification", moods, image_processor=object())
    model = YosoForSequenceClassification.from_pretrained(moods)
    assert pipeline("text-classification", model, tokenizer=tokenizer)("We went.")
    with pytest.raises(ConfigError, match="model_kwargs"):
        pipeline("text-classification", model, tokenizer=tokenizer, model_kwargs={"num_hash": 2})
    for call in (
        lambda: pipeline("text-classification", moods)("We went.", top_k=0),
        lambda: pipeline("text-classification", moods)("We went.", function_to_apply="tanh"),
    ):
        with pytest.raises(HeadstartError):
            call()


def test_classes_are_scaled_and_refused_as_training_found(moods, tmp_path):
    """The temperature changes every probability; below the threshold there is no answer."""
    run = tmp_path / "run"
    shutil.copytree(moods, run)
    cold = pipeline("text-classification", run, top_k=None)(TEXTS)
    chances = [sorted((each["score"] for each in row), reverse=True) for row in cold]
    scaled = [np.sqrt(row) / np.sqrt(row).sum() for row in chances]
    threshold = float(np.median([row[0] for row in scaled])) - 1e-6
    choice = Choice(max_error=0.05, threshold=threshold, refused=0.3, error=0.02)
    Confidence(2.0, 99, [choice], 0.05, 0.9).write(run)
    found = pipeline("text-classification", run, top_k=None)(TEXTS)
    for row, expected in zip(found, scaled, strict=True):
        assert [each["score"] for each in row] == pytest.approx(expected, abs=1e-5)
    careful = pipeline("text-classification", run, refuse=True)(TEXTS)
    assert [each["label"] == UNKNOWN for each in careful] == [
        bool(row[0] < threshold) for row in scaled
    ]
    assert sum(each["label"] == UNKNOWN for each in careful) == 1


def test_what_does_not_classify_cannot_refuse(fill, capsys):
    code, _, error = predict(capsys, fill, "--text", "I am <mask>.", "--refuse")
    assert code == 2 and "--refuse is for models that classify" in error


def test_a_promise_that_cannot_be_made_is_named(moods, tmp_path, caplog):
    """Every text is refused, and a warning says why and which rate has a threshold."""
    run = tmp_path / "run"
    shutil.copytree(moods, run)
    choices = [Choice(0.05, 2.0, 1.0, None), Choice(0.2, 0.0, 0.0, 0.1)]
    Confidence(1.0, 30, choices, 0.05, 0.9).write(run)
    answers = pipeline("text-classification", run, refuse=True)(TEXTS)
    assert {each["label"] for each in answers} == {UNKNOWN}
    assert "error rate at 0.05, from 30 evaluated examples; for 0.2 there is one" in caplog.text
