"""Several labels and numbers.

Losses, measures and heads against scikit-learn, class weights, draws, and whole runs.
"""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import headstart
from headstart import AutoModelForImageClassification, pipeline
from headstart.cli.app import main
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.errors import ConfigError, DataError, TrainingInterrupted
from headstart.features.head import Problem, fit_head, logistic, ridge
from headstart.metrics.multilabel import average_precision
from headstart.metrics.regression import r_squared
from headstart.progress import Lines
from headstart.recipe import Recipe, read_class_weights
from headstart.tasks.problems import problem_of
from headstart.tasks.result import Spread, t_quantile
from headstart.training.evaluate import evaluate
from photo_data import make_class_folders

RNG = np.random.default_rng(0)
TRAINING = ("batch_size", "resize", "micro_batch", "steps", "lr")
SMALL = {"steps": 40, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}


def small(tune):
    """Values of a short run; a fitted head takes no steps."""
    return {key: value for key, value in SMALL.items() if tune == "full" or key not in TRAINING}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


# Measures and losses ------------------------------------------------------------------------------


def test_measures_of_labels_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    logits = RNG.normal(size=(60, 4)).round(1)  # rounded: equal scores
    true = (RNG.random((60, 4)) < 0.3).astype(np.float32)
    found, (low, high) = problem_of(MULTI).measure(logits, true)
    predicted = logits > 0
    np.testing.assert_allclose(
        average_precision(logits, true > 0.5),
        metrics.average_precision_score(true, logits, average=None),
    )
    expected = {
        "mean_average_precision": metrics.average_precision_score(true, logits),
        "micro_f1": metrics.f1_score(true, predicted, average="micro"),
        "macro_f1": metrics.f1_score(true, predicted, average="macro"),
        "exact_match": metrics.accuracy_score(true, predicted),
        "loss": sum(
            metrics.log_loss(true[:, i], 1 / (1 + np.exp(-logits[:, i])), labels=[0, 1])
            for i in range(4)
        ),
    }
    assert found == pytest.approx(expected)
    assert low < found["mean_average_precision"] < high


def test_measures_of_numbers_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    true = RNG.normal(size=(50, 2)) * (1, 30) + (0, 100)
    predicted = true + RNG.normal(size=(50, 2)) * (0.5, 9)
    found, (low, high) = problem_of(REGRESSION).measure(predicted, true)
    assert (
        found["r2"] == pytest.approx(metrics.r2_score(true, predicted)) and low < found["r2"] < high
    )
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(true, predicted))
    assert found["pearson"] == pytest.approx(
        np.mean([np.corrcoef(predicted[:, i], true[:, i])[0, 1] for i in range(2)])
    )
    assert r_squared(np.ones((3, 1)), np.ones((3, 1))) == 0.0


def test_weights_of_classes():
    labels = np.array([0] * 6 + [1] * 2)
    logits, target = (
        torch.randn(8, 2, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(labels),
    )
    each = F.cross_entropy(logits, target, reduction="none")
    for weights, expected in (
        ("none", [1, 1]),
        ("balanced", [8 / 12, 8 / 4]),
        ({"b": 3.0}, [1 / 1.5, 3 / 1.5]),
        ((1.0, 3.0), [1 / 1.5, 2]),
    ):
        problem = problem_of(SINGLE)
        problem.look(["a", "b"], labels, weights)
        wanted = torch.tensor(expected, dtype=torch.float32)[target]
        assert wanted.mean() == pytest.approx(1), "the learning rate keeps its meaning"
        for requested in (target, F.one_hot(target, 2).float()):
            loss, _ = problem.compare(logits, requested, 0.0)
            torch.testing.assert_close(loss, (each * wanted).sum())
    problem = problem_of(MULTI)
    there = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    problem.look(["a", "b"], there, "balanced")
    torch.testing.assert_close(problem.weights, torch.tensor([3.0, 1 / 3], dtype=torch.float64))
    loss, _ = problem.compare(torch.zeros(4, 2), torch.from_numpy(there), 0.0)
    # presences and absences of each label weigh the same
    assert float(loss) == pytest.approx(math.log(2) * (3 + 3 + 1 + 3 * 1 / 3))
    with pytest.raises(ConfigError, match="'c', which is not a class; the classes are a, b"):
        problem_of(SINGLE).look(["a", "b"], labels, {"c": 1.0})
    with pytest.raises(ConfigError, match="3 numbers for 2 classes"):
        problem_of(SINGLE).look(["a", "b"], labels, (1, 2, 3))
    with pytest.raises(ConfigError, match="labels are numbers"):
        problem_of(REGRESSION).look(["a"], labels[:, None], "balanced")


def test_class_weights_as_they_are_written(tmp_path):
    (tmp_path / "w.yaml").write_text("cat: 2\n3: 0.5\n")
    assert read_class_weights(str(tmp_path / "w.yaml")) == {"cat": 2, "3": 0.5}
    assert Recipe().updated({"class_weights": {"cat": 2, 3: 0.5}}).class_weights == {
        "cat": 2,
        "3": 0.5,
    }
    assert read_class_weights("{cat: 2, dog: 1}") == {"cat": 2, "dog": 1} and read_class_weights(
        "[1, 2]"
    ) == [1, 2]
    assert Recipe.from_dict(
        Recipe().updated({"class_weights": [1, 2]}).to_dict()
    ).class_weights == (1, 2)
    with pytest.raises(ConfigError, match="expected none, balanced"):
        read_class_weights(str(tmp_path / "none.yaml"))
    for wrong in ("all", {"cat": "two"}, {"cat": 0}, [1, -1]):
        with pytest.raises(ConfigError, match="class_weights"):
            Recipe().updated({"class_weights": wrong})


def test_the_head_starts_with_what_is_known():
    problem, layer = problem_of(MULTI), torch.nn.Linear(3, 2)
    problem.look(["a", "b"], np.array([[1, 0], [1, 1], [0, 0], [1, 0]], dtype=np.float32))
    problem.start(layer)
    torch.testing.assert_close(layer(torch.randn(1, 3)).sigmoid()[0], torch.tensor([4 / 6, 2 / 6]))


def test_numbers_are_learned_in_standard_deviations():
    """The loss has the same size whatever the units, and `finish` gives a head that speaks in
    units.
    """
    labels = np.array([[100.0, 0.1], [300.0, 0.3]], dtype=np.float32)
    problem, layer, x = problem_of(REGRESSION), torch.nn.Linear(3, 2), torch.randn(2, 3)
    problem.look(["a", "b"], labels)
    logits = layer(x)
    loss, shown = problem.compare(logits, torch.from_numpy(labels), 0.0)
    torch.testing.assert_close(
        loss, (logits - torch.tensor([[-1.0, -1], [1, 1]])).square().mean(1).sum()
    )
    spoken = problem.in_units(logits.detach().numpy())
    torch.testing.assert_close(
        float(shown["loss"]), float(np.square(spoken - labels).mean(1).sum()), rtol=1e-4, atol=0
    )
    problem.finish(layer)
    np.testing.assert_allclose(layer(x).detach().numpy(), spoken, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(problem.in_units(spoken), spoken)
    problem.finish(layer)  # again changes nothing
    np.testing.assert_allclose(layer(x).detach().numpy(), spoken, rtol=1e-4, atol=1e-4)


# Heads on features --------------------------------------------------------------------------------


def test_heads_against_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x = RNG.normal(size=(80, 6))
    true = (x[:, :3] + RNG.normal(size=(80, 3)) > 0).astype(np.float64)
    weights = np.where(true > 0.5, 3.0, 1.0)
    for given in (None, weights):
        head = logistic(Problem(x, true, true.shape[1], given), 0.7, tolerance=1e-10)
        weight, bias = head.weight, head.bias
        for i in range(3):
            count = None if given is None else given[:, i]
            theirs = linear.LogisticRegression(C=0.7, tol=1e-10, max_iter=10_000).fit(
                x, true[:, i], sample_weight=count
            )
            np.testing.assert_allclose(weight[i], theirs.coef_[0], atol=1e-4)
            np.testing.assert_allclose(bias[i], theirs.intercept_[0], atol=1e-4)
    numbers = x[:, :2] * (1, 50) + RNG.normal(size=(80, 2))
    head = ridge(Problem(x, numbers, numbers.shape[1]), 0.2)
    weight, bias = head.weight, head.bias
    theirs = linear.Ridge(alpha=1 / 0.2).fit(x, numbers)
    np.testing.assert_allclose(weight, theirs.coef_, rtol=1e-6)
    np.testing.assert_allclose(bias, theirs.intercept_, rtol=1e-6)
    labels = (x[:, 0] > 0.8).astype(np.int64)
    counts = np.where(labels > 0, 4.0, 1.0)
    weight = logistic(Problem(x, labels, 2, counts), 0.5, tolerance=1e-10).weight
    theirs = linear.LogisticRegression(
        C=1.0, class_weight={1: 4.0}, tol=1e-10, max_iter=10_000
    ).fit(x, labels)
    np.testing.assert_allclose(weight[1] - weight[0], theirs.coef_[0], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("width", [5, 90])  # fewer and more features than examples
def test_fitted_heads_learn(width):
    x = (RNG.normal(size=(60, width)) * 7 + 3).astype(np.float32)
    numbers = np.stack([x[:, 0] - x[:, 1], 100 * x[:, 2] + 40], axis=1)
    fit = fit_head(x, numbers, 2, kind=REGRESSION)
    predicted = x @ fit.weight.T + fit.bias
    assert r_squared(predicted, numbers) > 0.9 and fit.folds == 5
    fit = fit_head(x, (x[:, :3] > 3).astype(np.float32), 3, kind=MULTI)
    assert (((x @ fit.weight.T + fit.bias) > 0) == (x[:, :3] > 3)).mean() > 0.85


# Whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """48 noisy images that are red, green, both or neither; how light they are is a number."""
    folder = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(3)
    rows = []
    for i in range(48):
        red, green, light = bool(i & 1), bool(i & 2), 60 + 3 * (7 * i % 48)
        pixels = np.array([light if red else 10, light if green else 10, 40]) + rng.normal(
            0, 15, (24, 24, 3)
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        held_out = "val" if i % 8 < 4 else "test"
        split = "train" if i < 32 or not red | green else held_out
        rows.append(
            {
                "image": f"{i}.png",
                "labels": ["red"] * red + ["green"] * green,
                "light": light / 10,
                "split": split,
            }
        )
    labels = [{key: row[key] for key in ("image", "labels", "split")} for row in rows]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    lines = [f"{row['image']},{row['light']},{row['split']}" for row in rows if row["labels"]]
    (folder / "light.csv").write_text("image,light,split\n" + "\n".join(lines))
    return folder


@pytest.mark.parametrize("tune", ["full", "head"])
def test_several_labels(colors, tiny_model, tmp_path, tune, capsys):
    result = headstart.train(
        colors / "labels.jsonl",
        model=tiny_model,
        out=tmp_path / "run",
        tune=tune,
        progress=Lines(),
        **small(tune),
    )
    printed = capsys.readouterr().err
    assert (
        "column labels: several classes each" in printed
        and "2 labels each" in printed
        and "mean average precision" in printed
    )
    assert (
        set(result.evaluations) == {"validation", "test"}
        and result.metrics["mean_average_precision"] > 0.9
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == MULTI and config["id2label"] == {"0": "green", "1": "red"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Labels</h2>" in page and "average precision" in page
    job, again = evaluate(tmp_path / "run", colors / "labels.jsonl", device="cpu")
    assert again.split == "test" and again.metrics == pytest.approx(result.metrics, abs=1e-4)
    classify = pipeline("image-classification", tmp_path / "run")
    both = {each["label"]: each["score"] for each in classify(colors / "31.png")}
    assert set(both) == {"red", "green"} and min(both.values()) >= 0.5
    assert len(classify(colors / "31.png", top_k=1)) == 1
    sure = pipeline("image-classification", tmp_path / "run", label_threshold=0.999999)
    assert sure(colors / "28.png") == []


@pytest.mark.parametrize("tune", ["full", "head"])
def test_numbers(colors, tiny_model, tmp_path, tune, capsys):
    result = headstart.train(
        colors / "light.csv",
        model=tiny_model,
        out=tmp_path / "run",
        tune=tune,
        progress=Lines(),
        **small(tune),
    )
    assert "light from" in capsys.readouterr().err
    # The tiny network's features were randomly initialized: without training they hardly tell how
    # light an image is.
    assert result.metrics["r2"] > 0.5 or (tune == "head" and result.metrics["mae"] < 6)
    assert {"mae", "rmse", "pearson"} <= set(result.metrics)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == REGRESSION and config["id2label"] == {"0": "light"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Predicted against true</h2>" in page and "<h2>Largest errors</h2>" in page
    job, again = evaluate(tmp_path / "run", colors / "light.csv", device="cpu")
    assert again.metrics == pytest.approx(result.metrics, rel=1e-3)
    (answer,) = pipeline("image-classification", tmp_path / "run")(colors / "31.png")
    assert answer["label"] == "light" and abs(answer["score"] - 13.5) < 6


def test_from_the_command_line(colors, tiny_model, tmp_path, capsys):
    options = ["--model", str(tiny_model), "--tune", "head", "--crop", "20", "--device", "cpu"]
    for table, out, more in (
        ("labels.jsonl", "multi", ["--class-weights", "balanced"]),
        ("light.csv", "numbers", []),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", str(colors / table), "--out", str(tmp_path / out), *options, *more])
        assert stop.value.code == 0
        for command in (
            ["evaluate", str(tmp_path / out), str(colors / table)],
            ["info", str(tmp_path / out)],
        ):
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert stop.value.code == 0
    printed = capsys.readouterr()
    assert "mean average precision\t" in printed.out and "RMSE\t" in printed.out
    for out, expected in (("multi", ["red", "green", "%"]), ("numbers", ["light 1"])):
        with pytest.raises(SystemExit):
            main(["predict", str(tmp_path / out), str(colors / "31.png"), "--threshold", "0.3"])
        line = capsys.readouterr().out
        assert all(word in line for word in expected) and ("%" in line) == (out == "multi")
    assert "balanced" in (tmp_path / "multi" / "recipe.yaml").read_text()


def test_the_command_line_refuses_what_does_not_fit_the_labels(
    colors, tiny_model, tmp_path, capsys
):
    options = ["--model", str(tiny_model), "--tune", "head", "--crop", "20", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                str(colors / "light.csv"),
                "--out",
                str(tmp_path / "x"),
                *options,
                "--class-weights",
                "balanced",
            ]
        )
    assert stop.value.code == 2 and "labels are numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                str(colors / "labels.jsonl"),
                "--out",
                str(tmp_path / "x"),
                *options,
                "--problem-type",
                "regression",
            ]
        )
    assert "expected a number" in capsys.readouterr().err


def test_class_weights_find_the_rare(tiny_model, tmp_path):
    """Two classes that are hard to tell apart, twelve to one.

    Balanced weights find more of the rare one.
    """
    rng = np.random.default_rng(0)
    for split, counts in (("train", (48, 4)), ("val", (20, 20))):
        for label, count, color in (("common", counts[0], 110), ("rare", counts[1], 135)):
            (tmp_path / "d" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = (
                    (rng.normal(color, 30) + rng.normal(0, 30, (20, 20, 3)))
                    .clip(0, 255)
                    .astype(np.uint8)
                )
                Image.fromarray(pixels).save(tmp_path / "d" / split / label / f"{i}.png")
    recall = {}
    for weights in ("none", "balanced"):
        for tune in ("head", "full"):
            out = tmp_path / f"{weights}-{tune}"
            headstart.train(
                tmp_path / "d",
                model=tiny_model,
                out=out,
                tune=tune,
                class_weights=weights,
                **small(tune),
            )
            _, found = evaluate(out, tmp_path / "d", device="cpu")
            recall[weights, tune] = (found.details["logits"].argmax(1) == 1)[
                found.details["labels"] == 1
            ].mean()
    for tune in ("head", "full"):
        assert recall["balanced", tune] > recall["none", tune], recall


# Draws --------------------------------------------------------------------------------------------


def test_the_interval_of_draws():
    stats = pytest.importorskip("scipy.stats")
    spread = Spread([0, 1, 2, 3], "validation", {"accuracy": [0.5, 0.6, 0.8, 0.7]})
    low, high = stats.t.interval(0.95, 3, loc=0.65, scale=stats.sem([0.5, 0.6, 0.8, 0.7]))
    assert spread.mean("accuracy") == pytest.approx(0.65) and spread.interval(
        "accuracy"
    ) == pytest.approx((low, high))
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-3)


@pytest.mark.parametrize("tune", ["head", "full"])
def test_draws(tiny_model, tmp_path, tune, capsys):
    make_class_folders(tmp_path / "d" / "train", {"bird": 8, "cat": 8, "dog": 8})
    make_class_folders(tmp_path / "d" / "val", {"bird": 5, "cat": 5, "dog": 5}, first_seed=90)
    values = small(tune) | {"seed": 5, "tune": tune, "model": tiny_model}
    values |= {"steps": 3} if tune == "full" else {}
    result = headstart.train(
        tmp_path / "d", out=tmp_path / "run", shots=1, draws=3, progress=Lines(), **values
    )
    printed = capsys.readouterr().err
    assert "3 draws: validation accuracy" in printed and "not the one that scored best" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())["draws"]
    accuracies = results["metrics"]["accuracy"]["values"]
    assert (
        results["seeds"] == [5, 6, 7]
        and len(accuracies) == 3
        and accuracies[0] == result.metrics["accuracy"]
    )
    assert results["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert "<h2>Other draws</h2>" in (tmp_path / "run" / "report.html").read_text()
    assert (
        "Over 3 draws" in (tmp_path / "run" / "README.md").read_text()
        and not (tmp_path / "run" / "draws").exists()
    )
    losses = results["metrics"]["loss"]["values"]
    assert len(set(losses)) == 3, "other examples give other models"
    alone = headstart.train(tmp_path / "d", out=tmp_path / "alone", shots=1, **values)
    assert alone.metrics == result.metrics, "the model kept is that of the first draw"
    again = headstart.train(tmp_path / "d", out=tmp_path / "run", resume=True)
    assert again.spread.values["accuracy"] == accuracies


def test_draws_go_on_after_an_interruption(tiny_model, tmp_path, monkeypatch):
    make_class_folders(tmp_path / "d", {"bird": 8, "cat": 8})
    values = SMALL | {"steps": 2, "model": tiny_model}
    whole = headstart.train(tmp_path / "d", out=tmp_path / "whole", shots=2, draws=3, **values)
    from headstart.training import result as module

    calls, write = [], module.write_result

    def failing(*arguments):
        calls.append(arguments[2].folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_result", failing)
    with pytest.raises(TrainingInterrupted, match=f"to go on: .*--out {tmp_path}/run --resume"):
        headstart.train(tmp_path / "d", out=tmp_path / "run", shots=2, draws=3, **values)
    again = headstart.train(tmp_path / "d", out=tmp_path / "run", resume=True, device="cpu")
    assert [path.name for path in calls] == ["2", "3", "3", "run"]
    assert again.spread.values["loss"] == whole.spread.values["loss"]
    a, b = (
        AutoModelForImageClassification.from_pretrained(each).state_dict()
        for each in (tmp_path / "whole", tmp_path / "run")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_draws_want_shots(photos, tiny_model, tmp_path, colors):
    with pytest.raises(ConfigError, match="draws=2 are choices"):
        headstart.train(photos, model=tiny_model, out=tmp_path / "run", draws=2)
    with pytest.raises(DataError, match="these are regression targets"):
        headstart.train(
            colors / "light.csv", model=tiny_model, out=tmp_path / "run", shots=2, draws=2
        )
