"""Semantic segmentation.

Data, views, measures, windows, and whole runs that end in a folder to predict with.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from headstart.cli.app import main as command_line
from headstart.data.masks import IGNORED
from headstart.pipelines.base import task_of as task_of_model
from headstart.pipelines.semantic_segmentation import SemanticSegmentationPipeline, segment
from headstart.recipe import Recipe
from headstart.report.page import learning_curves
from headstart.training.evaluate import evaluate
from headstart.training.loop import Loop
from headstart.training.run import train
from scenes import COLORS, scene, task_of


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_some_images_are_evaluated_as_all_are(scenes, tiny_beit, monkeypatch, memory):
    monkeypatch.setattr("headstart.tasks.semantic_segmentation.MEMORY", memory)
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, resize=32)).eval()
    task.prepare(None)
    rows, device = np.array([1]), torch.device("cpu")
    part = task.subset("validation", rows).evaluate(model, "validation", device)
    every = task.evaluate(model, "validation", device)
    assert part.examples == 1 < every.examples
    assert (part.details["confusions"] == every.details["confusions"][rows]).all()


def test_a_lone_image_can_be_trained_on(scenes, tiny_beit):
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, augment="none")).train()
    task.prepare(None)
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(2)])
    loss, measures = task.loss(model, task.micro(batch, slice(0, 1), torch.device("cpu")))
    assert torch.isfinite(loss) and 0 <= float(measures["pixel_accuracy"]) <= task.weight(batch)


@pytest.mark.parametrize("mean", ["all", "valid"])
def test_loss_is_the_sum_over_labelled_pixels(scenes, tiny_beit, mean):
    """Against cross-entropy written out.

    The micro-batch does not matter (the norms are held still).
    """
    task = task_of(scenes)
    model = task.build(str(tiny_beit), Recipe(crop=32, augment="none")).eval()
    model.config.semantic_loss_mean, model.config.use_auxiliary_head = mean, False
    model.auxiliary_head = None
    task.prepare(None)
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(3)])
    batch["labels"][1, :20] = IGNORED
    inputs = task.micro(batch, slice(0, 3), torch.device("cpu"))
    with torch.no_grad():
        total, _ = task.loss(model, inputs)
        parts = sum(
            task.loss(model, task.micro(batch, rows, torch.device("cpu")))[0]
            for rows in (slice(0, 1), slice(1, 3))
        )
        logits = nn.functional.interpolate(
            model(inputs["pixel_values"]).logits, size=(32, 32), mode="bilinear"
        ).log_softmax(1)
    expected = 0.0
    for b, y, x in np.argwhere(batch["labels"].numpy() != IGNORED):
        expected -= float(logits[b, batch["labels"][b, y, x].long(), y, x])
    assert (
        abs(float(total) - expected) < 1e-4 * expected
        and abs(float(parts) - expected) < 1e-4 * expected
    )
    assert task.weight(batch) == (batch["labels"] != IGNORED).sum()


@pytest.fixture(scope="session")
def result(scenes, tiny_beit, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "stripes"
    return train(
        scenes,
        model=str(tiny_beit),
        out=out,
        task="semantic-segmentation",
        recipe="finetune",
        steps=60,
        batch_size=4,
        lr=3e-3,
        crop=32,
        resize=40,
        augment="flip",
        label_smoothing=0.0,
        eval_every=100,
        checkpoint_every=100,
    )


def test_a_run_learns_and_leaves_a_folder(result, scenes):
    assert result.metrics["mean_iou"] > 0.6  # one color for all: at most 0.2
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "results.json",
        "report.html",
    } <= names
    values = json.loads((result.folder / "results.json").read_text())["evaluations"]["validation"]
    ious = [each["iou"] for each in values["classes"].values() if each["iou"] is not None]
    assert np.mean(ious) == pytest.approx(result.metrics["mean_iou"])
    pixels = [each["pixels"] for each in values["classes"].values()]
    assert [sum(row) for row in values["confusion_matrix"]] == pixels
    rows = (result.folder / "predictions.csv").read_text().splitlines()
    assert rows[0] == "split,name,mean_iou,pixel_accuracy" and len(rows) == 1 + values["examples"]
    page = (result.folder / "report.html").read_text()
    assert (
        "Against one answer for all" in page
        and "always “" in page
        and "<h2>Images</h2>" in page
        and "gallery wide" in page
    )


def test_evaluate_repeats_the_run(result, scenes):
    task, found = evaluate(result.folder, scenes)
    assert (
        found.metrics == pytest.approx(result.metrics, abs=1e-6)
        and task.name == "semantic-segmentation"
    )


def test_pipeline_answers_at_the_images_size(result, tmp_path):
    predict = SemanticSegmentationPipeline(result.folder)
    image, classes = scene(500, 51, 77)
    found = predict(image)
    assert found["mask"].shape == (51, 77) and found["classes"][0]["label"] in (
        "red",
        "green",
        "blue",
    )
    assert abs(sum(each["fraction"] for each in found["classes"]) - 1) < 1e-9
    assert np.array_equal(predict.colors, COLORS)  # those of the data, kept with the model
    predicted = found["mask"][:-1]
    assert (predicted == classes[:-1]).mean() > 0.6
    Image.fromarray(image).save(tmp_path / "p.png")
    written = predict.write(tmp_path / "p.png", tmp_path / "out" / "p")
    mask = Image.open(written["mask_file"])
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), found["mask"])
    assert np.array_equal(np.asarray(mask.convert("RGB")), COLORS[found["mask"]])
    with Image.open(written["overlay_file"]) as painted:
        assert painted.size == (77, 51)


def test_modes(result):
    predict = SemanticSegmentationPipeline(result.folder)
    image, _ = scene(501, 40, 120)
    slide, whole = (
        segment(predict.model, predict.image_processor, image, mode) for mode in ("slide", "whole")
    )
    assert slide.shape == whole.shape == (40, 120) and (slide == whole).mean() > 0.5


def run_command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(arguments)
    assert not end.value.code


def test_command_line_round_trip(result, scenes, tmp_path, capsys):
    assert task_of_model(result.folder) == "semantic-segmentation"
    run_command(
        [
            "predict",
            str(result.folder),
            str(scenes / "val" / "images"),
            "--out",
            str(tmp_path / "out"),
            "--json",
        ]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5 and all(Path(file).is_file() for line in lines for file in line["files"])
    assert lines[0]["files"][0].endswith("s0.png") and lines[0]["files"][1].endswith(
        "s0_overlay.jpg"
    )
    run_command(
        [
            "evaluate",
            str(result.folder),
            str(scenes / "val" / "images"),
            str(scenes / "val" / "masks"),
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == pytest.approx(result.metrics, abs=1e-6)
    run_command(["evaluate", str(result.folder), str(scenes), "--option", "mode=whole", "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"]["mean_iou"] > 0.4


def test_images_of_one_name_do_not_overwrite_each_other(result, scenes, tmp_path, capsys):
    folders = [str(scenes / split / "images" / "s0.png") for split in ("train", "val")]
    run_command(["predict", str(result.folder), *folders, "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "s0.png",
        "s0_overlay.jpg",
        "s0_2.png",
        "s0_2_overlay.jpg",
    }


def test_a_broken_run_goes_on_bit_for_bit(scenes, tiny_beit, tmp_path, monkeypatch):
    values = {
        "recipe": "finetune",
        "steps": 8,
        "batch_size": 3,
        "crop": 32,
        "checkpoint_every": 3,
        "eval_every": 100,
        "drop_path": 0.1,
    }
    whole = train(
        scenes, model=str(tiny_beit), out=tmp_path / "whole", task="semantic-segmentation", **values
    )
    update = Loop.update

    def power_cut(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(
            scenes,
            model=str(tiny_beit),
            out=tmp_path / "broken",
            task="semantic-segmentation",
            **values,
        )
    monkeypatch.setattr(Loop, "update", update)
    resumed = train(scenes, out=tmp_path / "broken", resume=True)
    one, two = (
        load_file(folder / "model.safetensors") for folder in (whole.folder, resumed.folder)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert whole.metrics == resumed.metrics


def test_learning_curves_show_a_measure_that_only_validation_has():
    lines = [{"step": i, "loss": 1.0 / i} for i in range(1, 9)]
    plain = learning_curves(lines, "mean_iou")
    both = learning_curves(
        [
            *lines,
            {"step": 4, "validation": {"mean_iou": 0.3}},
            {"step": 8, "validation": {"mean_iou": 0.4}},
        ],
        "mean_iou",
    )
    assert len(plain.figures) == 1 and len(both.figures) == 2
