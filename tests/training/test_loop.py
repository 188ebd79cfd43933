"""The loop.

Whole-batch gradients, MixUp, optimizers, and that nothing but the recipe decides the numbers.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headstart.data.options import DataOptions
from headstart.errors import ConfigError
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.report.page import learning_curves
from headstart.tasks.image_classification import ImageClassification, head_of
from headstart.training.checkpoints import load_checkpoint
from headstart.training.log import read_metrics
from headstart.training.loop import Batches, Loop, cut, default_interval, evaluated_along
from headstart.training.micro_batch import fitting_micro_batch
from headstart.training.optim import Average, depths, freeze, make_optimizer
from headstart.training.world import World
from small_loop import SMALL, ready


def run(photos, tiny_model, folder, recipe=SMALL, workers=None):
    task, model = ready(photos, tiny_model, recipe)
    loop = Loop(task, model, task.recipe, folder, World("cpu"), Silent(), workers=workers)
    loop.run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        line["loss"] for line in lines if "loss" in line
    ]


@pytest.mark.parametrize("mixup, smoothing", [(0.0, 0.0), (0.7, 0.1)])
def test_micro_batches_change_nothing(photos, tiny_model, tmp_path, mixup, smoothing):
    """Uneven micro-batches of 3, 3, 3, 1 give the weights of the whole batch of 10, also when
    examples are mixed across them.
    """
    base = dataclasses.replace(SMALL, mixup=mixup, label_smoothing=smoothing, steps=2, lr=0.01)
    whole, losses = run(photos, tiny_model, tmp_path / "a", base)
    parts, losses_parts = run(
        photos, tiny_model, tmp_path / "b", dataclasses.replace(base, micro_batch=3)
    )
    assert losses_parts == pytest.approx(losses, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_workers_and_runs_change_nothing(photos, tiny_model, tmp_path):
    first, losses = run(photos, tiny_model, tmp_path / "a", workers=1)
    second, losses_again = run(photos, tiny_model, tmp_path / "b", workers=4)
    assert losses == losses_again
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("killed", ["before evaluating", "while evaluating", "after evaluating"])
def test_what_is_due_at_a_checkpoint_is_evaluated_once(
    photos, tiny_model, tmp_path, killed, monkeypatch
):
    """A checkpoint and an evaluation fall on step 2.

    A run that is killed between or after them has the metrics of one that was not.
    """
    recipe = dataclasses.replace(SMALL, eval_every=2, checkpoint_every=2)
    run(photos, tiny_model, tmp_path / "whole", recipe)

    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    part = {
        "before evaluating": (Loop, "_validate"),
        "while evaluating": (Loop, "evaluate"),
        "after evaluating": (World, "any"),
    }[killed]
    task, model = ready(photos, tiny_model, recipe)
    loop = Loop(task, model, task.recipe, tmp_path / "killed", World("cpu"), Silent())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after = 3 if killed == "after evaluating" else 2  # `any` is called once in every step
        original = getattr(*part)
        patch.setattr(
            *part,
            lambda self, *rest, **more: (
                kill() if loop.step == after else original(self, *rest, **more)
            ),
        )
        loop.run()
    task, model = ready(photos, tiny_model, recipe)
    again = Loop(task, model, task.recipe, tmp_path / "killed", World("cpu"), Silent())
    again.restore(load_checkpoint(tmp_path / "killed" / "checkpoints"))
    again.run()
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert sum("validation" in line for line in lines[0]) == 1
    whole, resumed = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in each] for each in lines
    )
    assert resumed == whole


def test_another_seed_is_another_run(photos, tiny_model, tmp_path):
    _, losses = run(photos, tiny_model, tmp_path / "a")
    _, others = run(photos, tiny_model, tmp_path / "b", dataclasses.replace(SMALL, seed=4))
    assert losses != others


def test_one_step_is_the_textbook_step(photos, tiny_model, tmp_path):
    """The weights after one step, computed here from the mean loss of the same batch."""
    recipe = dataclasses.replace(SMALL, micro_batch=4)
    task, model = ready(photos, tiny_model, recipe)
    loop = Loop(task, model, task.recipe, tmp_path, World("cpu"), Silent())
    batches = Batches(task, task.recipe, slice(0, 10), 1)
    batch = batches[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    pixels = (batch["image"].float() / 255 - 0.5) / 0.5
    loss = F.cross_entropy(model(pixel_values=pixels).logits, batch["label"])
    gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    values = loop.update(batch)
    batches.close()
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(),
            before[name] - 0.05 * gradients[name],
            rtol=1e-4,
            atol=1e-6,
            msg=name,
        )


def test_mixup_is_one_share_and_one_order_a_batch(photos, tiny_model):
    recipe = dataclasses.replace(SMALL, mixup=0.4)
    task, _ = ready(photos, tiny_model, recipe)
    batches = Batches(task, task.recipe, slice(0, 10), 1)
    batch = batches[1]
    batches.close()
    share, order = batch["portion"], batch["partner"]
    assert share.ndim == 0 and 0 <= share <= 1 and sorted(order.tolist()) == list(range(10))
    pixels = (batch["image"].float() / 255 - 0.5) / 0.5
    targets = F.one_hot(batch["label"], 3).float()
    found = task.micro(batch, slice(4, 7), torch.device("cpu"))
    torch.testing.assert_close(
        found["pixel_values"],
        (share * pixels + (1 - share) * pixels[order])[4:7],
        rtol=0,
        atol=1e-5,
    )
    torch.testing.assert_close(
        found["targets"], (share * targets + (1 - share) * targets[order])[4:7], rtol=0, atol=1e-6
    )


def test_examples_are_crops_and_mirrors_of_the_resized_image(photos, tiny_model):
    """Every training example is a window of the image resized to 24, mirrored or not.

    Both occur, at many places.
    """
    task, _ = ready(photos, tiny_model, SMALL)
    resized = task.caches["train"][2]
    assert resized.shape == (24, 24, 3)
    seen = set()
    for i in range(80):
        image = task.example(2, np.random.default_rng([5, i]))["image"].permute(1, 2, 0).numpy()
        for mirrored in (False, True):
            straight = image[:, ::-1] if mirrored else image
            for top in range(5):
                for left in range(5):
                    if np.array_equal(straight, resized[top : top + 20, left : left + 20]):
                        seen.add((mirrored, top, left))
    assert {m for m, _, _ in seen} == {False, True} and {t for _, t, _ in seen} == set(
        range(5)
    ) == {x for _, _, x in seen}


def test_evaluation_sees_what_the_processor_makes(photos, tiny_model):
    from headstart.pipelines.base import pipeline

    task, model = ready(photos, tiny_model, SMALL)
    found = task.evaluate(model.eval(), "validation", torch.device("cpu"))
    part = task.data.splits["validation"]
    answers = pipeline("image-classification", model, image_processor=task.processor)(
        part.images, top_k=3
    )
    for i, labels in enumerate(answers):
        expected = torch.from_numpy(found.details["logits"][i]).softmax(0)
        for each in labels:
            assert each["score"] == pytest.approx(
                float(expected[model.config.label2id[each["label"]]]), abs=1e-5
            )


def test_along_the_way_the_same_part_is_evaluated(photos, tiny_model, tmp_path, monkeypatch):
    """Fewer validation examples than there are: their scores are those that all have there, and the
    log counts them.
    """
    monkeypatch.setattr("headstart.training.loop.ALONG", 5)
    recipe = dataclasses.replace(SMALL, eval_every=1, batch_size=4, micro_batch=4)
    task, model = ready(photos, tiny_model, recipe)
    loop = Loop(task, model, task.recipe, tmp_path, World("cpu"), Silent())
    count = task.splits["validation"]
    assert loop.along == 5 < count
    every = task.evaluate(model.eval(), "validation", torch.device("cpu"))
    part = loop.evaluate()
    names = list(task.names("validation"))
    rows = [names.index(name) for name in loop.evaluated.names("validation")]
    assert part.examples == 5 and rows != list(range(5))
    np.testing.assert_allclose(
        part.details["logits"], every.details["logits"][rows], rtol=1e-4, atol=1e-5
    )
    assert (part.details["labels"] == every.details["labels"][rows]).all()
    assert task.splits["validation"] == count  # the result is of all
    loop.run()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["examples"] for line in lines if "validation" in line] == [5, 5, 5]
    assert "of 5 random examples" in learning_curves(lines, "accuracy").text


@pytest.mark.parametrize(
    "steps, batch, validation, every, along",
    [
        (500, 512, 5000, 50, 5000),  # a fifth of the time is enough for all
        (100, 64, 20_000, 21, 1008),
        (10, 512, 20_000, 3, 1152),
        (500, 512, 100, 50, 100),
        (100, 64, 40, 10, 40),
        (10, 64, 20_000, 21, 1008),  # at the end alone
    ],
)
def test_evaluations_take_a_fifth_of_the_time(steps, batch, validation, every, along):
    recipe, splits = Recipe(steps=steps, batch_size=batch), {"validation": validation}
    assert default_interval(recipe, splits) == every
    assert evaluated_along(recipe, splits, every) == along


def test_a_zero_head_gives_every_class_the_same_chance(photos, tiny_model):
    task = ImageClassification.read(photos, DataOptions())
    model = task.build(str(tiny_model), SMALL)
    assert model.config.id2label == {0: "bird", 1: "cat", 2: "dog"}
    assert (
        not head_of(model).weight.any()
        and not head_of(model).bias.any()
        and head_of(model).weight.shape[0] == 3
    )
    kept = task.build(str(tiny_model), dataclasses.replace(SMALL, zero_head=False))
    assert head_of(kept).weight.any()


def test_depths_follow_the_data(tiny_model, photos):
    _, model = ready(photos, tiny_model, SMALL)
    depth = depths(model)
    assert sorted(set(depth.values())) == [0, 1, 2, 3]
    of = {
        part: {d for name, d in depth.items() if name.startswith(part)}
        for part in ("bit.encoder.stages.0", "bit.encoder.stages.1", "classifier")
    }
    assert of == {"bit.encoder.stages.0": {1}, "bit.encoder.stages.1": {2}, "classifier": {3}}


def test_layer_decay_and_weight_decay_by_group(tiny_model, photos):
    recipe = Recipe(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    _, model = ready(photos, tiny_model, dataclasses.replace(SMALL))
    optimizer = make_optimizer(model, recipe)
    names = {id(p): name for name, p in model.named_parameters()}
    depth = depths(model)
    count = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            count += 1
            assert group["scale"] == 0.5 ** (3 - depth[names[id(parameter)]])
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert count == len(names)


def test_frozen_weights_stay(photos, tiny_model, tmp_path):
    _, model = ready(photos, tiny_model, SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after, _ = run(photos, tiny_model, tmp_path, dataclasses.replace(SMALL, freeze=("bit.",)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ConfigError, match="no parameter begins with 'encoder'"):
        freeze(model, ["encoder"])
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(model, ["bit.", "classifier"])


def test_the_average_is_the_definition(tiny_model, photos):
    _, model = ready(photos, tiny_model, SMALL)
    average = Average(model, decay=0.5)
    name, parameter = next(iter(model.named_parameters()))
    expected = parameter.detach().clone()
    for step in range(4):
        with torch.no_grad():
            parameter.add_(1.0)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(average.tensors[name], expected)
    trained = parameter.detach().clone()
    average.swap(model)
    torch.testing.assert_close(parameter.detach(), expected)
    average.swap(model)
    assert torch.equal(parameter.detach(), trained)


def test_a_run_that_diverges_is_reported(photos, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="training diverged; try a smaller --lr than 1e"):
        run(photos, tiny_model, tmp_path, dataclasses.replace(SMALL, lr=1e30, eval_every=9))
    with pytest.raises(ConfigError, match="scores are not finite.*smaller --lr"):
        run(photos, tiny_model, tmp_path, dataclasses.replace(SMALL, lr=1e30, eval_every=1))


def test_the_micro_batch_fits(photos, tiny_model):
    recipe = dataclasses.replace(SMALL, micro_batch=None, batch_size=100)
    task, model = ready(photos, tiny_model, recipe)
    assert fitting_micro_batch(task, model, task.recipe, World("cpu"), print) == 32
    assert (
        fitting_micro_batch(
            task, model, dataclasses.replace(task.recipe, batch_size=7), World("cpu"), print
        )
        == 7
    )
    assert (
        fitting_micro_batch(
            task, model, dataclasses.replace(task.recipe, micro_batch=5), World("cpu"), print
        )
        == 5
    )


def test_cut_covers_every_row_once():
    assert [list(range(part.start, part.stop)) for part in cut(slice(3, 10), 3)] == [
        [3, 4, 5],
        [6, 7, 8],
        [9],
    ]


def test_bf16_and_adamw_learn(photos, tiny_model, tmp_path):
    recipe = Recipe(
        optimizer="adamw",
        lr=0.01,
        steps=12,
        batch_size=15,
        micro_batch=15,
        resize=22,
        crop=20,
        precision="bf16",
        clip_grad=1.0,
        augment="resized-crop",
        weight_decay=0.01,
        ema=0.8,
    )
    state, losses = run(photos, tiny_model, tmp_path, recipe)
    assert losses[-1] < 0.6 * losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
