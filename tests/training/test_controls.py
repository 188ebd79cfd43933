"""Training controls: LoRA, precision, what is trained, TensorBoard.

Each reaches the weights, and an interrupted run goes on to the bit.
"""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headstart
from conftest import assert_close
from headstart import BitForImageClassification
from headstart.errors import ConfigError, TrainingInterrupted
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.training import loop
from headstart.training.evaluate import evaluate
from headstart.training.lora import add_lora, merge_lora
from small_loop import SMALL as RECIPE
from small_loop import ready
from tiny_networks import NETWORKS

SMALL = {
    "steps": 8,
    "lr": 0.05,
    "batch_size": 12,
    "resize": 24,
    "crop": 20,
    "device": "cpu",
    "seed": 3,
    "eval_every": 3,
}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def answer(model, family):
    torch.manual_seed(2)  # YOSO's hashes
    with torch.no_grad():
        return (
            model(input_ids=torch.arange(10, 34).view(2, 12))
            if family == "yoso"
            else model(pixel_values=PIXELS)
        ).logits


@pytest.mark.parametrize("family", NETWORKS)
def test_lora_starts_as_nothing_and_merges_exactly(family):
    torch.manual_seed(0)
    model = NETWORKS[family]().eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    before = answer(model, family)
    add_lora(model, Recipe(lora_rank=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name or name.startswith(model.heads) for name in trained)
    assert (
        sum(".lora_A." in name for name in trained)
        == {"bit": 6, "beit": 8, "cvt": 16, "yoso": 8}[family]
    )
    assert_close(answer(model, family), before, 1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    model.train().eval()
    changed = answer(model, family)
    assert not torch.allclose(changed, before, atol=1e-3)
    merge_lora(model)
    assert_close(answer(model, family), changed, 1e-5)
    after = model.state_dict()
    assert list(after) == list(plain)
    differing = [name for name in plain if not torch.equal(after[name], plain[name])]
    assert len(differing) == sum(".lora_A." in name for name in trained)
    for name in differing:  # by a matrix of rank 2
        assert (
            torch.linalg.matrix_rank((after[name] - plain[name]).flatten(1).double(), tol=1e-4) == 2
        )


def test_lora_of_named_layers_with_dropout():
    model = NETWORKS["beit"]()
    add_lora(
        model,
        Recipe(lora_rank=3, lora_alpha=6.0, lora_targets=("intermediate.dense",), lora_dropout=0.5),
    )
    layers = [
        module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    ]
    assert (
        len(layers) == 2
        and layers[0].scaling["default"] == 2.0
        and layers[0].lora_dropout["default"].p == 0.5
    )
    with pytest.raises(
        ConfigError,
        match=r"no layer is called 'fc_9'; layers are called .*query, key, value, dense",
    ):
        add_lora(NETWORKS["beit"](), Recipe(lora_rank=3, lora_targets=("fc_9",)))
    with pytest.raises(ConfigError, match="lora_dropout is for linear layers"):
        add_lora(NETWORKS["bit"](), Recipe(lora_rank=3, lora_dropout=0.5))


def test_a_lora_run_leaves_a_plain_checkpoint(photos, tiny_model, tmp_path):
    found = headstart.train(photos, model=tiny_model, out=tmp_path / "run", lora_rank=2, **SMALL)
    weights, before = (
        load_file(folder / "model.safetensors") for folder in (found.folder, tiny_model)
    )
    assert weights.keys() == before.keys()
    changed = {
        name
        for name in weights
        if weights[name].shape != before[name].shape or not torch.equal(weights[name], before[name])
    }
    head = {name for name in changed if name.startswith("classifier")}
    assert (
        len(head) == 2
        and len(changed - head) == 6
        and all("conv" in name for name in changed - head)
    )
    _, again = evaluate(found.folder, photos, device="cpu")
    assert again.metrics == pytest.approx(found.metrics, abs=1e-6)


def stopped_after_one_step(monkeypatch):
    """Every run is requested to stop while it makes its first step."""
    before = loop.Stopper.__init__

    def requested(self):
        before(self)
        self.requested = True

    monkeypatch.setattr(loop.Stopper, "__init__", requested)


@pytest.mark.parametrize(
    "values",
    [
        {"lora_rank": 2, "ema": 0.5},
        {"precision": "float16", "clip_grad": 0.5, "optimizer": "adamw", "lr": 0.01},
        {"precision": "bf16", "gradient_checkpointing": True},
        {
            "freeze": ("bit.embedder",),
            "layer_decay": 0.5,
            "rand_augment": 9.0,
            "erasing": 0.5,
            "cutmix": 1.0,
        },
    ],
    ids=["lora", "fp16", "bf16", "augmented"],
)
def test_an_interrupted_run_goes_on_to_the_bit(photos, tiny_model, tmp_path, values):
    unbroken = headstart.train(
        photos, model=tiny_model, out=tmp_path / "a", tensorboard=True, **SMALL | values
    )
    with pytest.MonkeyPatch.context() as patch:
        stopped_after_one_step(patch)
        with pytest.raises(TrainingInterrupted, match="stopped after step 1 of 8"):
            headstart.train(photos, model=tiny_model, out=tmp_path / "b", **SMALL | values)
    broken = headstart.train(photos, out=tmp_path / "b", resume=True, device="cpu")
    assert broken.metrics == unbroken.metrics
    one, two = (load_file(result.folder / "model.safetensors") for result in (unbroken, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_float16_scales_gradients_and_leaves_out_a_step_that_overflows(
    photos, tiny_model, tmp_path
):
    recipe = dataclasses.replace(RECIPE, precision="fp16", lr=0.01)
    task, model = ready(photos, tiny_model, recipe)
    run = loop.Loop(task, model, task.recipe, tmp_path, loop.World("cpu"), Silent())
    batches = loop.Batches(task, task.recipe, slice(0, 10), 1)
    # no gradient survives this
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**60})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.update(batches[0])
    assert (
        all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        and run.scaler.get_scale() == 2.0**59
    )
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 1024.0})
    values = run.update(batches[0])
    batches.close()
    assert not torch.equal(
        model.classifier[1].weight, before["classifier.1.weight"]
    ) and np.isfinite(values["loss"])

    # The step is the one of float32, to what float16 can tell.
    task, other = ready(photos, tiny_model, dataclasses.replace(recipe, precision="fp32"))
    other.load_state_dict(before)
    exact = loop.Loop(task, other, task.recipe, tmp_path, loop.World("cpu"), run.progress)
    batches = loop.Batches(task, task.recipe, slice(0, 10), 1)
    assert exact.update(batches[0])["loss"] == pytest.approx(values["loss"], rel=1e-2)
    batches.close()
    steps = [
        (m.classifier[1].weight - before["classifier.1.weight"]).detach() for m in (model, other)
    ]
    assert (steps[0] - steps[1]).norm() < 0.02 * steps[1].norm()


def changed_parts(photos, tiny_model, out, **values):
    found = headstart.train(photos, model=tiny_model, out=out, **SMALL | {"steps": 2} | values)
    new, old = (
        BitForImageClassification.from_pretrained(folder, num_labels=3).state_dict()
        for folder in (found.folder, tiny_model)
    )
    return {
        ".".join(name.split(".")[:4])
        for name in new
        if name.startswith("bit") and not torch.equal(new[name], old[name])
    }


def test_freeze_and_unfreeze_by_stage(photos, tiny_model, tmp_path):
    everything = changed_parts(photos, tiny_model, tmp_path / "a")
    assert {
        "bit.embedder.convolution.weight",
        "bit.encoder.stages.0",
        "bit.encoder.stages.1",
    } <= everything
    assert changed_parts(
        photos, tiny_model, tmp_path / "b", freeze=("bit.embedder", "bit.encoder.stages.0")
    ) == everything - {"bit.embedder.convolution.weight", "bit.encoder.stages.0"}
    assert changed_parts(
        photos, tiny_model, tmp_path / "c", unfreeze=("bit.encoder.stages.1",)
    ) == {"bit.encoder.stages.1"}
    assert changed_parts(
        photos, tiny_model, tmp_path / "d", freeze=("bit",), unfreeze=("bit.encoder.stages.1",)
    ) == {"bit.encoder.stages.1"}
    with pytest.raises(
        ConfigError,
        match="unfreeze: no parameter begins with 'bit.encoder.stages.7'; beginnings are"
        " bit.embedder",
    ):
        changed_parts(photos, tiny_model, tmp_path / "e", unfreeze=("bit.encoder.stages.7",))


def test_gradient_checkpointing_changes_no_number(photos, tiny_model, tmp_path):
    both = [
        headstart.train(
            photos, model=tiny_model, out=tmp_path / str(on), gradient_checkpointing=on, **SMALL
        )
        for on in (False, True)
    ]
    one, two = (
        [
            json.loads(line).get("loss")
            for line in (each.folder / "metrics.jsonl").read_text().splitlines()
        ]
        for each in both
    )
    assert one == two


def test_clipping_bounds_the_step(photos, tiny_model, tmp_path):
    """One step of the head alone, which starts at zero: its length is the clipping
    threshold of the gradient.
    """
    values = {
        "steps": 1,
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": 0.0,
        "lr": 1.0,
        "freeze": ("bit",),
    }
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", **SMALL | values | {"clip_grad": 0.01}
    )
    head = [
        value.flatten()
        for name, value in load_file(found.folder / "model.safetensors").items()
        if name.startswith("classifier")
    ]
    assert float(torch.cat(head).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("writers", [0, 9], ids=["first-writers", "tenth-writer"])
def test_tensorboard_shows_the_numbers_of_the_log(
    writers, monkeypatch, photos, tiny_model, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    counter = event_file_writer.AtomicCounter(writers)  # decides the order of one second, as text
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)
    with pytest.MonkeyPatch.context() as patch:
        stopped_after_one_step(patch)
        with pytest.raises(TrainingInterrupted, match="--resume --tensorboard"):
            headstart.train(
                photos, model=tiny_model, out=tmp_path / "run", tensorboard=True, **SMALL
            )
    found = headstart.train(
        photos, out=tmp_path / "run", resume=True, tensorboard=True, device="cpu"
    )
    events = EventAccumulator(str(found.folder / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    shown = {each.step: each.value for each in events.Scalars("train/loss")}
    assert list(shown) == list(range(1, 9)) and shown == pytest.approx(losses, rel=1e-5)
    accuracy = {
        line["step"]: line["validation"]["accuracy"] for line in lines if "validation" in line
    }
    seen = {each.step: each.value for each in events.Scalars("validation/accuracy")}
    assert len(seen) > 1 and seen == pytest.approx(accuracy, rel=1e-5)


# A recipe none of whose values is its default, but for those that the test names.
EVERY_VALUE = Recipe(
    name="mine",
    optimizer="adamw",
    lr=0.002,
    momentum=0.8,
    betas=(0.8, 0.99),
    weight_decay=0.01,
    layer_decay=0.9,
    clip_grad=2.0,
    schedule="poly",
    steps=3,
    warmup_steps=1,
    warmup_lr=1e-4,
    decay_at=(2,),
    decay_factor=0.5,
    final_lr=1e-5,
    power=2.0,
    batch_size=6,
    micro_batch=4,
    resize=24,
    crop=20,
    max_length=9,
    augment="flip",
    mixup=0.1,
    cutmix=0.2,
    mix_fraction=0.7,
    rand_augment=3.0,
    color_jitter=0.1,
    erasing=0.2,
    label_smoothing=0.05,
    drop_path=0.1,
    zero_head=False,
    freeze=("bit.embedder",),
    unfreeze=("bit.embedder.convolution",),
    lora_rank=2,
    lora_alpha=3.0,
    lora_targets=("conv1",),
    lora_dropout=0.0,
    gradient_checkpointing=True,
    ema=0.9,
    precision="bf16",
    seed=4,
    eval_every=2,
    checkpoint_every=2,
    class_weights="balanced",
)


def test_every_recipe_value_goes_through_a_file_and_the_command_line(photos, tiny_model, tmp_path):
    """A file that sets every value, one of which an option overrides.

    The resolved recipe is what was requested.
    """
    import yaml

    requested, default = EVERY_VALUE, Recipe()
    untouched = {
        f.name
        for f in dataclasses.fields(Recipe)
        if getattr(requested, f.name) == getattr(default, f.name)
    }
    assert untouched <= {"tune", "optimizer", "lora_dropout"}, (
        "a new recipe value: give it one here that is not its default"
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(requested.to_dict() | {"lr": "1e-3"}))
    found = headstart.train(
        photos,
        model=tiny_model,
        out=tmp_path / "run",
        config=tmp_path / "mine.yaml",
        lr=0.002,
        device="cpu",
    )
    assert found.recipe == requested
    assert Recipe.from_dict(yaml.safe_load((found.folder / "recipe.yaml").read_text())) == requested


def test_out_of_time_the_best_weights_are_kept(photos, tiny_model, tmp_path):
    """The validation evaluates every step; after a step that spoils the weights time runs out."""
    task, model = ready(
        photos, tiny_model, dataclasses.replace(RECIPE, steps=50, lr=0.02, ema=0.5, eval_every=1)
    )
    run = loop.Loop(task, model, task.recipe, tmp_path, loop.World("cpu"), Silent())
    update = run.update

    def spoiling(batch):
        values = update(batch)
        if run.step == 6:
            with torch.no_grad():
                run.average.tensors["classifier.1.weight"].neg_()
        return values

    run.update = spoiling
    clock = time.perf_counter

    def hurried():  # the deadline comes with the seventh step
        return clock() + (1000 if run.step >= 7 else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.time, "perf_counter", hurried)
        run.run(deadline=clock() + 500)
    assert run.step == 7 and run.best[1] < 7 and run.average is None
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {
        line["step"]: line["validation"]["accuracy"] for line in lines if "validation" in line
    }
    assert list(scores) == [1, 2, 3, 4, 5, 6, 7] and scores[7] < max(scores.values())
    assert run.best[0] == max(scores.values()) == run.evaluate().metrics["accuracy"]
