"""`headstart.update` and `headstart.forget`: against runs on all images together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from command_line import call
from headstart import AutoModelForImageClassification, pipeline
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError
from headstart.features import choice
from headstart.features.memory import Head, Memory
from headstart.features.portfolio import Comparison
from headstart.pipelines.confidence import Confidence
from headstart.tasks.image_classification import ImageClassification
from headstart.training import seen
from headstart.training import update as module
from headstart.training.update import exchanged, existing_run
from photo_data import CLASSES, make_class_folders, make_photo


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["discriminant", "logistic"])
def head(request, monkeypatch):
    """Makes every run choose this kind of head."""
    chosen = Comparison.better
    kind = request.param

    def better(self, trial, other):
        wanted = [each.head for each in trial.candidates] == [kind]
        return wanted and (kind == "discriminant" or chosen(self, trial, other))

    monkeypatch.setattr(Comparison, "better", better)
    monkeypatch.setattr(choice, "PERFECT", -1.0)  # every kind is tried
    return kind


def run_on(data, tiny_model, out, **more):
    return headstart.train(
        data, model=tiny_model, out=out, tune="head", crop=20, device="cpu", **more
    ).folder


def head_of(folder):
    state = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    return state["classifier.1.weight"], state["classifier.1.bias"]


def without_cache(tmp_path):
    shutil.rmtree(tmp_path / "cache")


def test_added_and_removed_images_give_the_model_of_what_remains(
    head, tiny_model, photos, tmp_path
):
    run = run_on(photos, tiny_model, tmp_path / "run")
    memory = Memory.read(run)
    assert [each.kind for each in memory.heads] == [head]
    assert (memory.sums is not None) == (head == "discriminant")
    before = head_of(run)
    more = make_class_folders(tmp_path / "more", {"bird": 3, "cat": 2}, first_seed=200)
    (run / "unknown.safetensors").write_text("about the images so far")
    if head == "discriminant":
        without_cache(tmp_path)  # earlier images are not needed
    result = headstart.update(run, more, device="cpu")
    assert not torch.equal(head_of(run)[0], before[0])
    grown = Memory.read(run)
    assert len(grown.digests["train"]) == 20 and grown.classes == memory.classes
    values = json.loads((run / "results.json").read_text())
    assert values["splits"]["train"] == 20 and "5 images added from more" in values["notes"]
    assert not (run / "report.html").exists() and not (run / "unknown.safetensors").exists()
    assert "32 images" in (run / "README.md").read_text()
    if head == "logistic":
        assert (
            result.metrics["accuracy"] == values["evaluations"]["validation"]["metrics"]["accuracy"]
        )
    headstart.forget(run, [more / "bird", more / "cat"], device="cpu")
    for one, other in zip(head_of(run), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    last = Memory.read(run)
    assert sorted(last.digests["train"]) == sorted(memory.digests["train"])
    if head == "discriminant":
        both = zip(last.sums.solve(last.heads[0]), memory.sums.solve(memory.heads[0]), strict=True)
        for one, other in both:
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert len(json.loads((run / "results.json").read_text())["updates"]) == 2


@pytest.mark.parametrize("head", ["discriminant"], indirect=True)
def test_refusal_and_candidates_follow_the_changed_run(head, tiny_model, tmp_path):
    data = make_class_folders(tmp_path / "data", {"bird": 50, "cat": 50})
    run = run_on(data, tiny_model, tmp_path / "run", max_error=0.03, val_fraction=0.5)
    before = Confidence.read(run)
    assert before.max_error == 0.03 and len(before.minimums) == 2
    more = make_class_folders(tmp_path / "more", {"dog": 3}, first_seed=200)
    result = headstart.update(run, more, device="cpu")
    after = Confidence.read(run)
    assert (after.max_error, after.coverage) == (0.03, before.coverage)
    assert len(after.minimums) == 3
    assert not any("any more" in note for note in result.notes)
    without_cache(tmp_path)
    notes = headstart.forget(run, more / "dog" / "dog_0.png", device="cpu").notes
    assert sum("any more" in note for note in notes) == 2  # neither confidence nor p-values
    assert not (run / "confidence.json").exists() and not (run / "unknown.safetensors").exists()


def test_new_classes_are_learned_and_forgotten(head, tiny_model, tmp_path):
    old = make_class_folders(tmp_path / "old", {"bird": 8, "cat": 8})
    run = run_on(old, tiny_model, tmp_path / "run")
    new = make_class_folders(tmp_path / "new", {"dog": 6})
    result = headstart.update(run, new, device="cpu")
    assert Memory.read(run).classes == ["bird", "cat", "dog"]
    classify = pipeline("image-classification", run, top_k=1)
    found = [classify(make_photo(CLASSES[name], 300))[0]["label"] for name in CLASSES]
    assert found == ["bird", "cat", "dog"]
    assert result.evaluation.details["logits"].shape[1] == 3
    headstart.forget(run, new, device="cpu")
    assert Memory.read(run).classes == ["bird", "cat"]
    assert AutoModelForImageClassification.from_pretrained(run).config.num_labels == 2
    assert "the classes: dog" in json.loads((run / "results.json").read_text())["notes"][-1]


@pytest.mark.parametrize("head", ["discriminant"], indirect=True)
def test_a_joint_fit_from_sums_within_float64(head, tiny_model, tmp_path):
    parts = [
        make_class_folders(tmp_path / f"part{i}", {"bird": 7, "cat": 6}, first_seed=40 * i)
        for i in range(2)
    ]
    run = run_on(parts[0], tiny_model, tmp_path / "run", val_fraction=0.0)
    headstart.update(run, parts[1], device="cpu")
    whole = tmp_path / "whole"
    for part in parts:
        for file in part.rglob("*.png"):
            (whole / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, whole / file.parent.name / f"{part.name}-{file.name}")
    joint = Memory.read(run_on(whole, tiny_model, tmp_path / "joint", val_fraction=0.0))
    updated = Memory.read(run)
    width = updated.width
    assert joint.width == width
    same: list[Head] = updated.heads
    for one, other in zip(updated.sums.solve(same[0]), joint.sums.solve(same[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    weight, bias = (each.double().numpy() for each in head_of(run))
    np.testing.assert_allclose(weight, joint.sums.solve(same[0])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bias, joint.sums.solve(same[0])[1], rtol=1e-5, atol=1e-5)


def folder_state(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_what_cannot_be_changed_changes_nothing(tiny_model, photos, tmp_path, monkeypatch):
    run = run_on(photos, tiny_model, tmp_path / "run")
    before = folder_state(run)
    stranger = tmp_path / "stranger.png"
    Image.fromarray(make_photo(CLASSES["dog"], 999)).save(stranger)
    known = photos / "train" / "bird" / "bird_0.png"
    with pytest.raises(DataError, match=r"1 of 2 images are not among those.*stranger\.png"):
        headstart.forget(run, [known, stranger], device="cpu")
    with pytest.raises(DataError, match="knows every image"):
        headstart.update(run, photos, device="cpu")
    moved = tmp_path / "moved" / "cat"
    moved.mkdir(parents=True)
    shutil.copy(known, moved)
    make_class_folders(tmp_path / "moved2", {"dog": 1}, first_seed=500)
    shutil.copytree(tmp_path / "moved2" / "dog", tmp_path / "moved" / "dog")
    with pytest.raises(DataError, match="with another label"):
        headstart.update(run, tmp_path / "moved", device="cpu")
    with pytest.raises(ConfigError, match="no training image would be left"):
        headstart.forget(run, photos / "train", device="cpu")
    with pytest.raises(ConfigError, match="only the class 'bird' would be left"):
        headstart.forget(run, [photos / "train" / "cat", photos / "train" / "dog"], device="cpu")

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_state", broken)
    with pytest.raises(OSError, match="No space"):
        headstart.forget(run, known, device="cpu")
    assert folder_state(run) == before
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".run")] == []


def test_missing_features_of_a_logistic_head_are_named(tiny_model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "better", lambda *_: False)
    run = run_on(photos, tiny_model, tmp_path / "run")
    without_cache(tmp_path)
    more = make_class_folders(tmp_path / "more", {"bird": 2, "dog": 2}, first_seed=200)
    with pytest.raises(ConfigError, match="features of 15 of 19 images are not in the cache"):
        headstart.update(run, more, device="cpu")


def test_an_interrupted_exchange_is_undone(tiny_model, photos, tmp_path):
    run = run_on(photos, tiny_model, tmp_path / "run")
    before = folder_state(run)
    run.rename(tmp_path / ".run.previous")  # killed between the two renames
    assert existing_run(run) == run.resolve() and folder_state(run) == before
    with exchanged(run) as new:
        (new / "marker").write_text("new")
    assert (run / "marker").read_text() == "new" and not (tmp_path / ".run.previous").exists()


def test_folders_that_hold_no_such_run_are_refused(tiny_model, photos, tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run"):
        headstart.update(tmp_path, photos)
    run = run_on(photos, tiny_model, tmp_path / "run")
    (run / "headstart_optimized.json").write_text("{}")
    for change in (headstart.update, headstart.forget, headstart.plan):
        with pytest.raises(ConfigError, match="is an optimized model.*the run that it was made of"):
            change(run, photos)
    (run / "headstart_optimized.json").unlink()
    (run / "training.safetensors").unlink()
    with pytest.raises(ConfigError, match="keeps no statistics"):
        headstart.update(run, photos)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"task": "text-classification"}))
    with pytest.raises(ConfigError, match="text-classification; update, forget and plan are for"):
        headstart.update(run, photos)


def test_a_network_of_another_size_is_refused(tiny_model, photos, tmp_path):
    run = run_on(photos, tiny_model, tmp_path / "run")
    memory = Memory.read(run)
    wide = [Head("logistic", 1.0, False, memory.width + 1)]
    Memory(memory.kind, memory.classes, wide, "none", memory.digests, memory.labels).write(run)
    with pytest.raises(ConfigError, match="the model was replaced since"):
        headstart.forget(run, photos / "train" / "bird" / "bird_0.png", device="cpu")


def table_of(folder, rows, first_seed=0):
    """A table with the labels of each row, and its images."""
    folder.mkdir()
    lines = []
    for i, (color, label) in enumerate(rows):
        Image.fromarray(make_photo(color, first_seed + i)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label}")
    (folder / "table.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return folder / "table.csv"


def reds(count):
    return [((20 * i % 250, 60, 90), round(0.08 * (20 * i % 250), 2)) for i in range(count)]


def test_regression_targets_are_added_and_removed_exactly(tiny_model, tmp_path):
    data = table_of(tmp_path / "data", reds(16))
    run = run_on(data, tiny_model, tmp_path / "run", problem_type="regression")
    memory = Memory.read(run)
    before = memory.sums.solve(memory.heads[0])
    assert memory.heads[0].kind == "ridge"
    without_cache(tmp_path)
    more = table_of(tmp_path / "more", reds(7), first_seed=70)
    headstart.update(run, more, device="cpu")
    grown = Memory.read(run)
    assert grown.sums.examples == memory.sums.examples + 7
    assert np.abs(grown.sums.solve(grown.heads[0])[0] - before[0]).max() > 1e-3
    result = headstart.forget(run, more.parent, device="cpu")
    last = Memory.read(run)
    for one, other in zip(last.sums.solve(last.heads[0]), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert result.evaluations == {}  # held-out features were in the cache that is gone
    assert (
        "not evaluated on the validation"
        in json.loads((run / "results.json").read_text())["notes"][-1]
    )


def test_several_labels_are_added(tiny_model, tmp_path):
    def rows(count):
        kinds = [("bird", "red"), ("cat", "green|alive"), ("dog", "blue|alive")]
        return [(CLASSES[kinds[i % 3][0]], kinds[i % 3][1]) for i in range(count)]

    data = table_of(tmp_path / "data", rows(18))
    run = run_on(data, tiny_model, tmp_path / "run", problem_type="multi-label")
    assert Memory.read(run).classes == ["alive", "blue", "green", "red"]
    new = [((120, 120, 120), "gray"), ((125, 120, 118), "gray"), ((40, 200, 60), "green")]
    more = table_of(tmp_path / "more", new, first_seed=80)
    headstart.update(run, more, device="cpu")
    grown = Memory.read(run)
    assert grown.classes == ["alive", "blue", "green", "red", "gray"]
    assert grown.labels["train"].sum(0)[-1] == 2
    assert AutoModelForImageClassification.from_pretrained(run).config.num_labels == 5


def test_the_commands_are_the_functions(tiny_model, photos, tmp_path, capsys):
    run = run_on(photos, tiny_model, tmp_path / "run")
    more = make_class_folders(tmp_path / "more", {"dog": 2}, first_seed=200)
    code, _, err = call(capsys, "update", run, more, "--device", "cpu")
    assert code == 0 and "2 images added from more" in err and "validation accuracy" in err
    code, _, err = call(capsys, "forget", run, more / "dog" / "dog_0.png", "--device", "cpu")
    assert code == 0 and "1 image removed" in err
    assert len(Memory.read(run).digests["train"]) == 16
    code, _, err = call(capsys, "forget", run, more / "dog" / "dog_0.png", "--device", "cpu")
    assert code == 3 and "1 of 1 images are not among those" in err


def test_copies_of_training_images_are_known_after_a_change(tiny_model, tmp_path):
    """Images that were scaled and saved again have other bytes; their looks are remembered."""
    rng = np.random.default_rng(0)

    def draw(folder, count):
        for label in ("a", "b"):
            (folder / label).mkdir(parents=True)
            for i in range(count):
                blocks = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8).repeat(16, 0)
                image = Image.fromarray(blocks.repeat(16, 1))
                image.save(folder / label / f"{i}.png")
        return folder

    first, more = draw(tmp_path / "first", 10), draw(tmp_path / "more", 3)
    run = run_on(first, tiny_model, tmp_path / "run", val_fraction=0.0)
    headstart.update(run, more, device="cpu")
    headstart.forget(run, first / "a" / "0.png", device="cpu")
    copies = tmp_path / "copies"
    for source in (first / "a" / "0.png", first / "a" / "1.png", more / "b" / "2.png"):
        target = copies / source.parent.name / f"{source.parents[1].name}_{source.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).resize((150, 150)).save(target)
    task = ImageClassification.read(copies, DataOptions(val_fraction=0.0))
    found = seen.looks_trained_on(run, task, "train")
    names = [name for name, known in zip(task.names("train"), found, strict=True) if known]
    assert [Path(name).name for name in names] == ["first_1.jpg", "more_2.jpg"]
    assert seen.trained_on(run, ImageClassification.read(more, DataOptions()), "train").all()
