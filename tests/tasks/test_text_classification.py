"""Text classification: single labels, pairs, several labels, regression and fitted heads."""

import dataclasses
import json

import pytest
import torch

from headstart import AutoModelForSequenceClassification, YosoForMaskedLM, YosoTokenizer
from headstart.data.options import DataOptions
from headstart.errors import ConfigError
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks.text_classification import TextClassification
from headstart.training.evaluate import evaluate
from headstart.training.run import train
from headstart.training.tuning import Start
from text_runs import QUICK, run, sentences, write


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


def labelled(kind):
    """Rows of 80 texts with labels of a kind, and the names of their columns."""
    texts = sentences(80)
    if kind == "classes":
        return texts, ("text", "label")
    if kind == "lists":
        rows = [(text, f"{mood}|seen" if "seen" in text else mood) for text, mood in texts]
        return rows, ("text", "labels")
    return [(text, 1.5 if mood == "good" else -0.25) for text, mood in texts], ("text", "score")


def test_a_network_of_images_has_no_text_task(tmp_path):
    data = write(tmp_path / "data.tsv", *labelled("classes"))
    with pytest.raises(
        ConfigError, match="bit has no network for text-classification; families that have: yoso"
    ):
        train(data, model="bit-mini", out=tmp_path / "a", task="text-classification")


@pytest.mark.parametrize("kind", ["classes", "lists", "numbers"])
def test_tuned_head(tiny_yoso, tmp_path, monkeypatch, kind):
    """The last layer alone learns.

    Features are computed once, and the saved network gives what was evaluated.
    """
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    rows, names = labelled(kind)
    data = write(tmp_path / "data.tsv", rows, names)
    columns = {names[1]: names[1]}
    before = YosoForMaskedLM.from_pretrained(tiny_yoso).state_dict()
    lines = []
    monkeypatch.setattr(Watcher, "printed", lines)
    values = {"task": "text-classification", "tune": "head", "columns": columns}
    result = train(data, model=tiny_yoso, out=tmp_path / "a", progress=Watcher(), **values)
    assert not any("known from before" in line for line in lines)
    again = train(data, model=tiny_yoso, out=tmp_path / "b", progress=Watcher(), **values)
    assert any("features of 80 texts are known from before" in line for line in lines)
    assert any("fitting a new head" in line for line in lines)
    assert not any(word in line for line in lines for word in ("pixels", "img", "images"))
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
    """Keeps what was reported."""

    printed: list[str] = []

    def report(self, text):
        self.printed.append(text)


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
