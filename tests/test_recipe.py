"""Recipes: BiT-HyperRule as published, schedules, and the four layers a recipe is resolved from."""

import math

import pytest

from conftest import golden_dir, read_json
from headstart.errors import ConfigError
from headstart.recipe import (
    Facts,
    Recipe,
    hyper_rule,
    hyper_rule_resolution,
    named_recipe,
    read_recipe_file,
    resolve_recipe,
)


def golden():
    return read_json(golden_dir("hyperrule") / "hyperrule.json")


def test_hyper_rule_is_the_published_one():
    """Every rate of the authors' code.

    The first step has rate 0, a decay comes one step after its boundary, None after the end.
    """
    for case in golden()["dataset_size"]:
        recipe = hyper_rule(Facts(examples=case["n"], height=32, width=32))
        assert recipe.mixup == case["mixup"]
        assert recipe.steps == case["total_steps"]
        assert [recipe.warmup_steps, *recipe.decay_at, recipe.steps] == case["schedule"]
        for base, rates in case["lr"].items():
            scaled = recipe.updated({"lr": float(base)})
            for step, rate in rates:
                ours = scaled.lr_at(step)
                assert (ours is None) == (rate is None), (case["n"], step)
                assert ours is None or math.isclose(ours, rate, rel_tol=1e-12, abs_tol=0), (
                    case["n"],
                    step,
                    ours,
                    rate,
                )


def test_hyper_rule_resolution_follows_the_area():
    for case in golden()["resolution"]:
        assert list(hyper_rule_resolution(*case["hw"])) == case["precrop_crop"], case
    recipe = hyper_rule(Facts(examples=1, height=95, width=96))
    assert (recipe.resize, recipe.crop) == (160, 128)


def test_hyper_rule_batch_and_optimizer():
    recipe = hyper_rule(Facts(examples=100, height=300, width=400))
    assert (
        recipe.optimizer,
        recipe.momentum,
        recipe.lr,
        recipe.batch_size,
        recipe.weight_decay,
    ) == ("sgd", 0.9, 0.003, 512, 0.0)
    assert recipe.zero_head and recipe.augment == "crop-flip" and recipe.label_smoothing == 0.0


@pytest.mark.parametrize(
    "schedule, rates",
    [
        ("constant", {0: 0.0, 5: 0.05, 10: 0.1, 55: 0.1, 99: 0.1}),
        (
            "cosine",
            {5: 0.05, 10: 0.1, 55: 0.06, 99: 0.02 + 0.08 * (1 + math.cos(math.pi * 89 / 90)) / 2},
        ),
        ("poly", {10: 0.1, 55: 0.02 + 0.08 * 0.5**2, 99: 0.02 + 0.08 * (1 / 90) ** 2}),
    ],
)
def test_schedules(schedule, rates):
    recipe = Recipe(
        schedule=schedule,
        lr=0.1,
        final_lr=0.02 if schedule != "constant" else 0.0,
        power=2.0,
        steps=100,
        warmup_steps=10,
    )
    for step, rate in rates.items():
        assert recipe.lr_at(step) == pytest.approx(rate, rel=1e-9), step
    assert recipe.lr_at(100) is None


def test_steps_alone_keep_the_proportions():
    recipe = hyper_rule(Facts(examples=1, height=9, width=9)).updated({"steps": 50})
    assert (recipe.steps, recipe.warmup_steps, recipe.decay_at) == (50, 10, (20, 30, 40))
    given = hyper_rule(Facts(examples=1, height=9, width=9)).updated(
        {"steps": 50, "warmup_steps": 3}
    )
    assert (given.warmup_steps, given.decay_at) == (3, (200, 300, 400))


def test_layers_override_in_order(tmp_path):
    """Defaults, then the family's recipe, then the file, then the command line."""
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 1e-2\nmixup: 0.3\nbatch_size: 32\ndecay_at: [7, 8]\n")
    base = hyper_rule(Facts(examples=1, height=9, width=9))
    recipe = resolve_recipe(base, file, {"batch_size": 16, "mixup": None})
    assert (recipe.lr, recipe.mixup, recipe.batch_size, recipe.momentum, recipe.decay_at) == (
        0.01,
        0.3,
        16,
        0.9,
        (7, 8),
    )


def test_a_recipe_survives_its_file(tmp_path):
    import yaml

    recipe = hyper_rule(Facts(examples=30_000, height=9, width=9)).updated(
        {"steps": 77, "freeze": ["bit.embedder"], "ema": 0.9}
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.from_dict(read_recipe_file(file)) == recipe
    assert (
        resolve_recipe(named_recipe("finetune", Facts(examples=3)), file)
        == recipe.updated({})
        == recipe
    )


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rate": 1.0}, "no value 'learning_rate'"),
        ({"step": 3}, "did you mean steps"),
        ({"lr": "fast"}, "lr='fast'; expected a number"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch_size": 0}, "batch_size=0; it must be at least 1"),
        ({"batch_size": True}, "batch_size=True; expected an integer"),
        ({"optimizer": "lion"}, "optimizer='lion'; expected 'sgd' or 'adamw'"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"resize": 10, "crop": 12}, "resize=10 is smaller than crop=12"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"betas": [0.9]}, "betas"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe().updated(values)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_recipe_file(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected lines"):
        read_recipe_file(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("lr: [1\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML"):
        read_recipe_file(tmp_path / "bad.yaml")
    (tmp_path / "octal.yaml").write_text("batch_size: 010\n")
    with pytest.raises(ConfigError, match=r"octal\.yaml: batch_size='010'; expected an integer"):
        resolve_recipe(Recipe(), tmp_path / "octal.yaml")
    (tmp_path / "typo.yaml").write_text("momentun: 0.5\n")
    with pytest.raises(ConfigError, match=r"typo\.yaml.*did you mean momentum"):
        resolve_recipe(Recipe(), tmp_path / "typo.yaml")
    with pytest.raises(ConfigError, match="no recipe is called 'hyper'"):
        named_recipe("hyper", Facts(examples=1))


def test_a_small_model_keeps_its_own_resolution():
    """HyperRule's sides are for the published models.

    One made for smaller images is not shown larger ones.
    """
    assert (
        hyper_rule(Facts(100, 2, 300, 400)).resize,
        hyper_rule(Facts(100, 2, 300, 400)).crop,
    ) == (512, 480)
    small = hyper_rule(Facts(100, 2, 300, 400, model_image_size=64))
    assert (small.resize, small.crop) == (72, 64)
    assert hyper_rule(Facts(100, 2, 300, 400, model_image_size=128)).crop == 128
    assert hyper_rule(Facts(100, 2, 300, 400, model_image_size=224)).crop == 480


def test_another_crop_keeps_its_border():
    recipe = resolve_recipe(hyper_rule(Facts(100, 2, 300, 400)), None, {"crop": 240})
    assert (recipe.resize, recipe.crop) == (256, 240)
    assert (
        resolve_recipe(
            hyper_rule(Facts(100, 2, 300, 400)), None, {"crop": 240, "resize": 250}
        ).resize
        == 250
    )


def test_lora_takes_ten_times_the_rate_unless_one_is_given(tmp_path):
    base = hyper_rule(Facts(100, 2, 300, 400))
    recipe = resolve_recipe(base, None, {"lora_rank": 4})
    assert recipe.lr == pytest.approx(10 * base.lr) and recipe.name == base.name
    (tmp_path / "r.yaml").write_text("lora_rank: 4\nlr: 0.5\n")
    assert resolve_recipe(base, tmp_path / "r.yaml").lr == 0.5
    assert (
        resolve_recipe(base, None, {"lora_rank": 4, "lr": 0.2}).lr == 0.2
        and resolve_recipe(base).lr == base.lr
    )
    (tmp_path / "r.yaml").write_text("lora_rank: 4\n")
    assert resolve_recipe(base, tmp_path / "r.yaml").lr == pytest.approx(10 * base.lr)
