"""What a run will cost, and a recipe cut to a time."""

import dataclasses
import json
import time

import pytest
import torch

import headstart
from headstart.data.options import DataOptions
from headstart.errors import ConfigError
from headstart.features.head import head_cost
from headstart.progress import Lines, Silent
from headstart.recipe import Facts, Recipe, finetune, hyper_rule
from headstart.tasks.image import UNOPENED
from headstart.tasks.image_classification import ImageClassification
from headstart.training.estimate import (
    RESERVE,
    Estimate,
    fit_budget,
    hashing_seconds,
    measure,
    parse_budget,
    peak_memory,
    unknown_seconds,
)
from headstart.training.loop import Loop
from headstart.training.world import World

SMALL = {"steps": 30, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("90s", 90),
        ("1h 5m 2s", 3902),
        ("1.5h", 5400),
        ("20", 1200),
        (0.5, 30),
    ],
)
def test_budgets_are_times(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 min", "-3m", "0m", "m10", 0])
def test_other_words_are_no_times(text):
    with pytest.raises(ConfigError, match="budget="):
        parse_budget(text)


def estimate(example):
    return Estimate(example, example / 3, load=1e-5, evaluated=1000, memory=1e9, last=1000)


def full(facts=None):
    return hyper_rule(facts or Facts(examples=3000, height=300, width=400))


def test_a_run_that_fits_is_left_alone():
    recipe, given_up = fit_budget(full(), estimate(0.001), 3600)
    assert recipe == full() and given_up == []


def test_what_hurts_least_is_given_up_first():
    """The batch, then the resolution, then steps, then everything but the head."""
    batch, given_up = fit_budget(full(), estimate(0.05), 2 * 3600)
    assert (
        (batch.batch_size, batch.crop, batch.steps) == (128, 480, 500)
        and batch.lr == pytest.approx(0.001)
        and len(given_up) == 1
    )
    smaller, given_up = fit_budget(full(), estimate(0.25), 2 * 3600)
    assert (smaller.batch_size, smaller.crop, smaller.resize, smaller.steps) == (
        128,
        224,
        239,
        500,
    ) and len(given_up) == 2
    fewer, given_up = fit_budget(full(), estimate(1.0), 3600)
    assert (
        fewer.crop == 128 and 250 <= fewer.steps < 500 and "in place of 500 steps" in given_up[-1]
    )
    assert fewer.decay_at[0] == round(200 * fewer.steps / 500)
    for seconds in (2400, 60):  # fewer than half of the steps, and none
        head, given_up = fit_budget(full(), estimate(1.0), seconds)
        assert (head.tune, head.resize, head.crop, len(given_up)) == (
            "head",
            None,
            224,
            1,
        ) and "--tune head" in given_up[0]
    headless, _ = fit_budget(full(), estimate(1.0), 2400, head=False)
    assert headless.tune == "full" and headless.steps < 250


def test_a_small_network_with_fewer_steps_takes_adamw():
    """As many images as the steps that are left have, in batches of 64."""
    plain, _ = fit_budget(full(), estimate(1.0), 3600)
    fewer, given_up = fit_budget(full(), estimate(1.0), 3600, small=True)
    assert (fewer.optimizer, fewer.schedule, fewer.lr) == ("adamw", "cosine", 3e-4)
    assert fewer.steps * fewer.batch_size == plain.steps * plain.batch_size
    assert fewer.batch_size == 64 and fewer.warmup_steps == fewer.steps // 10
    assert fewer.lr_at(fewer.steps - 1) < 1e-6 and "AdamW at 0.0003" in given_up[-1]
    whole, _ = fit_budget(full(), estimate(0.001), 3600, small=True)
    assert whole == full()
    other, _ = fit_budget(replace_name(full()), estimate(1.0), 3600, small=True)
    assert other.optimizer == "sgd"


def replace_name(recipe):
    return dataclasses.replace(recipe, name="mine")


def test_transformers_keep_their_resolution():
    recipe = finetune(Facts(examples=1000, model_image_size=224))
    before = estimate(0.2)
    cut, given_up = fit_budget(recipe, before, before.seconds(recipe))
    assert (
        (cut.crop, cut.batch_size, cut.tune) == (224, 64, "full")
        and cut.steps < recipe.steps
        and len(given_up) == 1
    )


@pytest.mark.parametrize("example", [0.001, 0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("seconds", [300, 1800, 7200])
def test_what_is_left_fits(example, seconds):
    before = estimate(example)
    recipe, _ = fit_budget(full(), before, seconds)
    if recipe.tune == "full":
        smaller = ((recipe.crop or 1) / 480) ** 2
        after = dataclasses.replace(
            before, example=before.example * smaller, forward=before.forward * smaller
        )
        assert after.seconds(recipe) <= RESERVE * seconds * 1.001


def test_measuring_changes_nothing(photos, tiny_model, tmp_path):
    """Weights, gradients and the losses of the run that follows are those of a run that was not
    measured.
    """
    losses = []
    sizes = {"steps": 3, "batch_size": 10, "micro_batch": 5, "resize": 24, "crop": 20}
    recipe = Recipe(optimizer="sgd", lr=0.05, schedule="constant", drop_path=0.3, **sizes)
    for measured in (False, True):
        task = ImageClassification.read(photos, DataOptions())
        torch.manual_seed(1)
        model = task.build(str(tiny_model), recipe)
        task.prepare(None)
        loop = Loop(task, model, task.recipe, tmp_path / str(measured), World("cpu"), Silent())
        if measured:
            found = measure(loop)
            assert found.example > 0 and found.forward > 0 and found.load > 0
            assert found.memory > peak_memory(torch.device("cpu"))  # of the whole process
            # 12 after step 2, and at the end
            assert found.evaluated == 24 and all(p.grad is None for p in model.parameters())
        loop.run()
        lines = [
            json.loads(line)
            for line in (tmp_path / str(measured) / "metrics.jsonl").read_text().splitlines()
        ]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1]


def test_a_budget_cuts_the_evaluations_of_a_given_interval_with_the_steps():
    """800 evaluations of 1,000 examples take longer than the whole budget, those of fewer steps do
    not.
    """
    recipe = dataclasses.replace(full(), steps=8000, batch_size=100, crop=None, eval_every=10)
    costs = Estimate(example=0.01, forward=0.001, load=0.0, evaluated=800_000, memory=1e9)
    fewer, _ = fit_budget(recipe, costs, 220.5 / RESERVE, head=False)
    # a step takes 1 s, and a tenth of an evaluation 0.1 s
    assert fewer.steps == 200


def test_a_short_run_is_not_charged_with_the_evaluations_of_a_long_one():
    """800,000 of them take longer than the budget; beside fewer steps there are at most three for
    four examples that are trained on, and those after training.
    """
    recipe = dataclasses.replace(full(), steps=8000, batch_size=100, crop=None)
    costs = Estimate(
        example=0.01, forward=0.001, load=0.0, evaluated=800_000, memory=1e9, last=10_000
    )
    fewer, _ = fit_budget(recipe, costs, 225.5 / RESERVE, head=False)
    # a step takes 1 s, what is evaluated beside it at most 0.075 s, and the end 10 s
    assert fewer.steps == 200


def test_a_budget_cuts_steps(photos, tiny_model, tmp_path, capsys, monkeypatch):
    """On a machine that needs a tenth of a second for an example, 50 steps of 16 do not fit into a
    minute; 30 do.
    """
    monkeypatch.setattr(
        "headstart.training.fit_full.measure", lambda loop: Estimate(0.1, 0.0, 0.0, 0, 1e9)
    )
    found = headstart.train(
        photos,
        model=tiny_model,
        out=tmp_path / "run",
        budget="1m",
        progress=Lines(),
        **SMALL | {"steps": 50},
    )
    printed = capsys.readouterr().err
    assert (
        found.recipe.steps in (30, 31)
        and f"to keep the budget: {found.recipe.steps} in place of 50 steps" in printed
    )


def test_a_budget_is_respected_and_leaves_a_model(photos, tiny_model, tmp_path, capsys):
    """For a hundredth of the steps it takes the head alone, which is better than so little
    training.
    """
    options = SMALL | {"steps": 100_000, "batch_size": 8}
    began = time.perf_counter()
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", budget="4s", progress=Lines(), **options
    )
    printed = capsys.readouterr().err
    # writing the report on a busy machine is not part of training
    assert time.perf_counter() - began < 12
    assert (
        "to keep the budget: " in printed and "for features" in printed and "(expected " in printed
    )
    assert found.recipe.tune == "head" and found.metrics["accuracy"] > 0.5
    values = json.loads((tmp_path / "run" / "results.json").read_text())
    assert values["estimated_seconds"] > 0 and any(
        "to keep the budget: " in note for note in values["notes"]
    )
    assert "to keep the budget: " in (tmp_path / "run" / "report.html").read_text()


def test_a_head_keeps_a_budget_with_smaller_images(
    photos, tiny_model, tmp_path, capsys, monkeypatch
):
    """Features that do not fit at 64 pixels, but at 32."""
    monkeypatch.setattr("headstart.training.estimate.SIDES", (32, 20))

    def slow(task, extractor, memory):
        features = 1000.0 if task.recipe.crop == 64 else 1.0
        return dataclasses.replace(head_cost(task, extractor, memory), features=features)

    monkeypatch.setattr("headstart.training.fit_head.head_cost", slow)
    options = {"tune": "head", "crop": 64, "device": "cpu", "progress": Lines()}
    found = headstart.train(photos, model=tiny_model, out=tmp_path / "run", budget="1m", **options)
    assert found.recipe.crop == 32 and found.given_up == ["images of 32 pixels"]
    assert "to keep the budget: images of 32 pixels" in capsys.readouterr().err
    monkeypatch.setattr("headstart.training.estimate.SIDES", ())
    headstart.train(photos, model=tiny_model, out=tmp_path / "over", budget="1m", **options)
    assert "more than the budget" in capsys.readouterr().err


def test_a_deadline_ends_the_loop(photos, tiny_model, tmp_path):
    recipe = Recipe(steps=50, batch_size=4, micro_batch=4, resize=24, crop=20)
    task = ImageClassification.read(photos, DataOptions())
    model = task.build(str(tiny_model), recipe)
    task.prepare(None)
    loop = Loop(task, model, task.recipe, tmp_path, World("cpu"), Silent())
    loop.run(deadline=time.perf_counter() - 1)
    assert loop.step == 1


def test_what_follows_training_is_expected_but_not_cut(photos):
    """Features for p-values and the report are part of the time that is printed."""
    recipe = Recipe(steps=100, batch_size=10)
    costs = Estimate(0.01, 0.002, 0.0, 500, 1e9, after=20.0)
    assert costs.seconds(recipe) == pytest.approx(11.0)
    assert costs.total(recipe) == pytest.approx(31.0)
    assert costs.text(recipe).startswith("about 31s ")
    task = ImageClassification.read(photos, DataOptions())
    assert unknown_seconds(task, 0.5, 1) == pytest.approx(0.5 * sum(task.splits.values()))
    assert unknown_seconds(task, 0.5, 2) == unknown_seconds(task, 50.0, 1) == 0.0


def test_a_head_that_does_not_fit_into_memory_is_refused(photos, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.training.fit_head.free_memory", lambda device: 1000.0)
    monkeypatch.setattr("headstart.training.fit_head.peak_memory", lambda device: 0.0)
    with pytest.raises(
        ConfigError, match=r"needs about \d+\.\d GB of memory, and 0\.0 GB are free"
    ):
        headstart.train(photos, model=tiny_model, out=tmp_path / "run", tune="head", crop=20)
    assert not (tmp_path / "run").exists()


def test_the_cost_is_reported_first(photos, tiny_model, tmp_path, capsys):
    headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", progress=Lines(), **SMALL | {"steps": 2}
    )
    printed = capsys.readouterr().err
    assert (
        printed.index("27 images")
        < printed.index("tuning")
        < printed.index("on this machine")
        < printed.index("validation accuracy")
    )
    assert "(expected " in printed.splitlines()[-1]


def test_the_report_of_many_images_takes_time(tmp_path, photos):
    """Those that are opened before training are compared with each other."""
    task = ImageClassification.read(photos, DataOptions())
    assert hashing_seconds(task) == pytest.approx(2e-4 * sum(task.splits.values()))
    task.sizes["train"][:3, 0] = UNOPENED
    assert hashing_seconds(task) == pytest.approx(2e-4 * (sum(task.splits.values()) - 3))
