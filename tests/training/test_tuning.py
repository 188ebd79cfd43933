"""A head first, then every weight from there: where it starts, how long, and which one is kept."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import headstart
from conftest import assert_close
from headstart.errors import TrainingInterrupted
from headstart.features.extract import Extractor
from headstart.progress import Lines, Silent
from headstart.recipe import Facts, Recipe, finetune, hyper_rule
from headstart.tasks.problems import Regression
from headstart.training import loop, tuning
from headstart.training.estimate import RESERVE, Estimate
from headstart.training.evaluate import evaluate
from headstart.training.loop import DivergedError
from headstart.training.tuning import (
    LARGE_RATE,
    Start,
    choose_rate,
    cut_steps,
    examples_of,
    planned,
    rounds_of,
    within,
)

FEW = {"steps": 4, "lr": 0.01, "batch_size": 8, "tune": "auto", "device": "cpu", "seed": 3}
ALONE = {"tune": "head", "device": "cpu", "seed": 3}  # the head of `FEW`
LARGE = 25_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def full():
    return hyper_rule(Facts(examples=1000, height=300, width=400))


def estimate(example):
    return Estimate(example, example / 3, 0.0, 200, 1e9)


def claim(monkeypatch, value):
    """Makes the head's result look like this value."""
    write = Start.write

    def wrong(self, *arguments):
        write(dataclasses.replace(self, value=value), *arguments)

    monkeypatch.setattr(Start, "write", wrong)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_better_one_is_kept(photos, tiny_model, tmp_path, capsys, monkeypatch):
    """A head that is claimed to be perfect stays, to the bit; one claimed to be useless does not.

    Either way folder, note and evaluation are those of what was kept.
    """
    values = {"model": tiny_model, "progress": Lines()}
    head = headstart.train(photos, out=tmp_path / "h", **values | ALONE)
    found = {}
    for name, value in (("kept", 2.0), ("replaced", -1.0)):
        claim(monkeypatch, value)
        found[name] = headstart.train(photos, out=tmp_path / name, **values | FEW)
        monkeypatch.undo()
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
        printed = capsys.readouterr().err
        assert "every weight trained from the fitted head: validation accuracy" in printed
        assert ("the head alone is kept" in printed) == (name == "kept")
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert any("trained from the fitted head" in note for note in results["notes"])
        assert (
            results["heads"]
            and "trained from the fitted head" in (tmp_path / name / "report.html").read_text()
        )
        _, again = evaluate(tmp_path / name, photos, device="cpu")
        assert again.metrics == pytest.approx(found[name].metrics, abs=1e-5)
        assert not (tmp_path / name / "head").exists()
    recipes = {n: yaml.safe_load((tmp_path / n / "recipe.yaml").read_text()) for n in found}
    assert recipes["kept"]["tune"] == "head" and recipes["replaced"]["tune"] == "full"
    for name, recipe in recipes.items():  # what the next command reads of the run
        request = json.loads((tmp_path / name / "run.json").read_text())["recipe"]
        assert {key: request[key] for key in recipe} == recipe
    card = (tmp_path / "kept" / "README.md").read_text()
    (tmp_path / "kept" / "report.html").unlink()
    headstart.train(photos, out=tmp_path / "kept", resume=True)
    assert "A linear head was fitted" in card
    assert (tmp_path / "kept" / "README.md").read_text() == card
    assert same(weights(tmp_path / "kept"), weights(head.folder))
    assert found["kept"].metrics == head.metrics
    assert not same(weights(tmp_path / "replaced"), weights(head.folder))
    assert (tmp_path / "kept" / "training.safetensors").is_file()
    assert not (tmp_path / "replaced" / "training.safetensors").exists()


@pytest.mark.parametrize("value", [-1.0, 2.0])
def test_an_interrupted_run_goes_on_to_the_bit(photos, tiny_model, tmp_path, monkeypatch, value):
    claim(monkeypatch, value)
    headstart.train(photos, model=tiny_model, out=tmp_path / "whole", **FEW)
    original = loop.Stopper.__init__

    def stopped(self):
        original(self)
        self.requested = True

    with monkeypatch.context() as patch:
        patch.setattr(loop.Stopper, "__init__", stopped)
        with pytest.raises(TrainingInterrupted, match="stopped after step 1 of 4"):
            headstart.train(photos, model=tiny_model, out=tmp_path / "run", **FEW)
    found = headstart.train(photos, out=tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("run", "whole")
    ]
    assert lines[0] == lines[1] and found.recipe.tune == ("head" if value > 0 else "full")


def test_training_that_diverges_leaves_the_head(photos, tiny_model, tmp_path, capsys, monkeypatch):
    def diverging(self, batch):
        raise DivergedError("the loss is nan at step 0")

    monkeypatch.setattr(loop.Loop, "update", diverging)
    found = headstart.train(photos, model=tiny_model, out=tmp_path / "run", progress=Lines(), **FEW)
    assert found.recipe.tune == "head" and found.metrics["accuracy"] > 0.5
    assert "the loss is nan at step 0; the fitted head is kept" in capsys.readouterr().err


def test_a_budget_is_for_the_head_and_for_what_follows(
    photos, tiny_model, tmp_path, capsys, monkeypatch
):
    """Without a value of full training, a small network takes AdamW for as many steps as fit."""
    monkeypatch.setattr(
        "headstart.training.fit_both.measure", lambda loop: Estimate(0.05, 0.0, 0.0, 0, 1e9)
    )
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", budget="1m", progress=Lines(), device="cpu"
    )
    printed = capsys.readouterr().err
    steps = re.search(r"from the fitted head with recipe hyperrule: (\d+) steps of 64", printed)
    assert steps and 1 <= int(steps[1]) <= 16 and "adamw at 0.0003" in printed  # of a minute
    assert (
        printed.index("head: ") < printed.index("from the fitted head with") < printed.index("kept")
    )
    assert any("in place of 4000 steps" in each for each in found.given_up)


def test_no_pass_in_the_budget_leaves_the_head(photos, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "headstart.training.fit_both.measure", lambda loop: Estimate(100.0, 0.0, 0.0, 0, 1e9)
    )
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", budget="1m", progress=Lines(), device="cpu"
    )
    assert found.recipe.tune == "head" and not (tmp_path / "run" / "head").exists()
    assert "no time to train every weight: the fitted head is kept" in capsys.readouterr().err


def test_a_head_in_units_becomes_one_in_standard_deviations():
    """Inverse of what training leaves at its end."""
    labels = np.array([[3.0, 500.0], [5.0, 900.0], [4.5, 100.0]], dtype=np.float32)
    problem, layer = Regression(), nn.Linear(4, 2).double()
    problem.look(["a", "b"], labels)
    before = [each.detach().clone() for each in layer.parameters()]
    x = torch.randn(3, 4).double()
    in_units = layer(x).detach()
    problem.standardize(layer)
    assert_close(torch.from_numpy(problem.in_units(layer(x).detach().numpy())), in_units.float())
    problem.finish(layer)
    for after, each in zip(layer.parameters(), before, strict=True):
        assert_close(after.detach(), each, 1e-5)
    problem.standardize(layer)  # nothing is known any more
    assert_close(layer.weight.detach(), before[0], 1e-5)


def test_recipes_by_size_of_the_network():
    small = planned(full(), 64, 1_000_000, False)
    assert (small.optimizer, small.crop, small.batch_size) == ("adamw", 64, 64)
    assert examples_of(small) == examples_of(full())
    assert small.resize == round(full().resize * 64 / full().crop)
    assert planned(full(), 64, LARGE, False) == full() == planned(full(), 64, 1_000_000, True)
    other = finetune(Facts(examples=1000, model_image_size=224))
    assert planned(other, 224, 1_000_000, False) == other


def test_hyperrule_makes_way_where_less_than_half_of_it_fits():
    whole, nothing = within(full(), estimate(0.001), 3600, 128, False)
    assert whole == full() and not nothing
    half, _ = within(full(), estimate(1.0), 3600, 128, False)
    assert half.optimizer == "sgd" and 250 <= half.steps < 500
    less, given_up = within(full(), estimate(1.0), 600, 128, False)
    assert (less.optimizer, less.lr, less.crop) == ("adamw", LARGE_RATE, 128)
    assert given_up[0] == "AdamW at 0.0001 in place of HyperRule" and "steps" in given_up[1]
    pixels = (128 / full().crop) ** 2
    assert less.steps * 64 * pixels == pytest.approx(RESERVE * 600, rel=0.2)
    original, _ = within(full(), estimate(1.0), 600, 128, True)
    assert original.optimizer == "sgd"


def test_steps_that_fit():
    recipe = Recipe(steps=1000, warmup_steps=100, batch_size=10)
    assert cut_steps(recipe, estimate(0.001), 600) == (recipe, [])
    cut, given_up = cut_steps(recipe, Estimate(0.1, 0.0, 0.5, 0, 1e9), 100)
    assert cut.steps == 17 and cut.warmup_steps == 2  # reading takes longest
    assert given_up == ["17 in place of 1000 steps"]
    assert cut_steps(recipe, estimate(100.0), 1)[0].steps == 1
    # evaluations of a long run that would take all the time there is
    many = Estimate(0.1, 0.05, 0.0, 10_000, 1e9)
    assert cut_steps(recipe, many, 100)[0].steps == int(85 / (1 + 0.75 * 10 * 0.05))


def test_rates_are_compared_where_there_is_time():
    recipe = Recipe(optimizer="adamw", steps=1000, batch_size=64)
    assert rounds_of(recipe, 10_000) == 40 and rounds_of(recipe, 1000) == 15
    assert rounds_of(recipe, 300) == 0 == rounds_of(recipe.with_steps(100), 10_000)
    assert rounds_of(dataclasses.replace(recipe, optimizer="sgd"), 10_000) == 0


def test_successive_halving(monkeypatch):
    """The worst of three is left out after a round; one that falls behind later loses."""
    seen = []

    class Trial:
        def __init__(self, recipe):
            self.rate, self.step, self.task, self.workers = recipe.lr, 0, None, None
            self.world = types.SimpleNamespace(rows=lambda size: slice(0, size))

        def update(self, batch):
            seen.append((self.rate, batch["number"]))
            if self.rate == 3e-3:
                raise DivergedError("nan")
            late = {1e-3: 0.9, 3e-4: 0.5}[self.rate]
            return {"loss": late if self.step >= 10 else 1 - late}

    class Numbered:
        def __init__(self, *arguments):
            pass

        def __getitem__(self, step):
            return {"number": step}

        def close(self):
            pass

    monkeypatch.setattr(tuning, "Batches", Numbered)
    rate, losses = choose_rate(Trial, Recipe(lr=1e-3, steps=500), 10)
    assert rate == 3e-4 and losses == {3e-4: 0.5, 1e-3: 0.9, 3e-3: float("inf")}
    for each, steps in ((3e-4, 20), (1e-3, 20), (3e-3, 10)):
        assert [number for other, number in seen if other == each] == list(range(steps))


def test_a_run_stopped_at_its_head_is_undecided(photos, tiny_model, tmp_path, monkeypatch):
    """It goes on with the head and then with every weight, as a whole run does."""
    claim(monkeypatch, -1.0)
    headstart.train(photos, model=tiny_model, out=tmp_path / "whole", **FEW)

    class Stop(Silent):
        def start(self, label, total, done=0, unit="img"):
            if label == "fitting the head":
                raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="--resume"):
        headstart.train(photos, model=tiny_model, out=tmp_path / "run", progress=Stop(), **FEW)
    found = headstart.train(photos, out=tmp_path / "run", resume=True)
    assert found.recipe.tune == "full"
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def table_of(photos, tmp_path, kind):
    """The photos with two labels each, or with two numbers."""
    lines = []
    for i, file in enumerate(sorted((photos / "train").rglob("*.png"))):
        number = 100 * len(file.parent.name) + 7 * (i % 3)
        values = f"{100 + number},{number / 90}"
        if kind == "labels":
            values = f"{i % 2},{int(file.parent.name != 'cat')}"
        lines.append(f"{file},{values}\n")
    path = tmp_path / "data.csv"
    path.write_text("image,a,b\n" + "".join(lines))
    return path


@pytest.mark.parametrize("value", [-9.0, 9.0])
@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_other_labels_than_classes(photos, tiny_model, tmp_path, monkeypatch, kind, value):
    """Outputs in the units of the labels, whichever model is kept."""
    data = table_of(photos, tmp_path, kind)
    how = {"model": tiny_model, "val_fraction": 0.4, "columns": {"label": "a,b"}, "crop": 20} | FEW
    how["problem_type"] = {"labels": "multi-label", "numbers": "regression"}[kind]
    claim(monkeypatch, value)
    found = headstart.train(data, out=tmp_path / "run", **how | {"lr": 1e-5})
    head = headstart.train(
        data, out=tmp_path / "head", **{k: how[k] for k in how if k not in FEW} | ALONE
    )
    _, again = evaluate(tmp_path / "run", data, columns={"label": "a,b"}, device="cpu")
    assert again.metrics == pytest.approx(found.metrics, rel=1e-4, abs=1e-5)
    if value > 0:
        assert same(weights(tmp_path / "run"), weights(head.folder))
        assert found.metrics == pytest.approx(head.metrics, rel=1e-5)
    else:  # hardly trained: still where the head was, in the same units
        assert found.recipe.tune == "full"
        assert found.metrics["loss"] == pytest.approx(head.metrics["loss"], rel=0.1)


def test_features_that_are_done_outlive_a_stopped_run(
    photos, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    options = {"model": tiny_model, "tune": "head", "device": "cpu", "out": tmp_path / "run"}
    monkeypatch.setattr("headstart.tasks.image_classification.images_in_a_pass", lambda values: 4)
    compute, calls = Extractor.compute, []

    def stopped(self, inputs):
        calls.append(len(inputs["pixel_values"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, inputs)

    monkeypatch.setattr(Extractor, "compute", stopped)
    monkeypatch.setattr(Extractor, "seconds", lambda *_: 0.0)
    with pytest.raises(TrainingInterrupted, match="in the cache"):
        headstart.train(photos, **options)
    monkeypatch.setattr(Extractor, "compute", compute)
    headstart.train(photos, progress=Lines(), **options)
    assert f"features of {calls[0]} images are known from before" in capsys.readouterr().err
