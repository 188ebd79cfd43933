"""What use has shown: nothing is lost, nothing is ignored, nothing flatters."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import headstart
from headstart.data import cache
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError
from headstart.progress import Lines, Silent, plain
from headstart.report import sections
from headstart.tasks import task_class
from headstart.training import lock
from headstart.training.evaluate import evaluate
from headstart.training.lock import locked
from headstart.training.log import read_metrics
from headstart.training.result import PARTS
from photo_data import make_class_folders, make_photo
from tiny_networks import NETWORKS

SMALL = {"steps": 3, "lr": 0.05, "batch_size": 8, "resize": 24, "crop": 20, "device": "cpu"}
HEAD = {"tune": "head", "crop": 20, "device": "cpu"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return make_class_folders(tmp_path / "d", {"bird": 10, "cat": 10})


def test_names_are_data(tiny_model, tmp_path, capsys):
    """Formulas, markup and control characters in names change neither page nor terminal."""
    names = {"bird": "a$\\frac$b", "cat": "[bold]x[red]", "dog": "\x1b[31mred\x07"}
    data = make_class_folders(tmp_path / "d", dict.fromkeys(names, 12))
    for plain_name, name in names.items():
        (data / plain_name).rename(data / name)
    found = headstart.train(
        data, model=tiny_model, out=tmp_path / "run", progress=Lines(), skip_bad=True, **HEAD
    )
    shown = capsys.readouterr().err
    assert "could not be written" not in shown and "\x1b" not in shown and "\x07" not in shown
    page = (found.folder / "report.html").read_text()
    assert "a$\\frac$b" in page and "[bold]x[red]" in page and "\x1b" not in page
    assert "\x1b" not in (found.folder / "predictions.csv").read_text()
    assert plain("a\x00b\x9bc\td\n") == "abc\td\n"


def test_a_report_that_fails_does_not_lose_the_run(
    folder, tiny_model, tmp_path, capsys, monkeypatch
):
    def failing(*arguments):
        raise ValueError("no such glyph")

    monkeypatch.setattr("headstart.report.write.write_report", failing)
    found = headstart.train(
        folder, model=tiny_model, out=tmp_path / "run", progress=Lines(), **HEAD
    )
    assert "the report could not be written (ValueError: no such glyph)" in capsys.readouterr().err
    assert json.loads((found.folder / "results.json").read_text())["evaluations"]
    assert evaluate(found.folder, folder, device="cpu")[1].metrics == pytest.approx(
        found.metrics, abs=1e-4
    )


def test_one_run_at_a_time(folder, tiny_model, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="another run writes into"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD)
    assert not (tmp_path / "run").exists()
    headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD)
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_run_is_overwritten_only_on_request(folder, tiny_model, tmp_path):
    out = tmp_path / "run"
    headstart.train(folder, model=tiny_model, out=out, **HEAD)
    (out / "old.txt").write_text("of the old run")
    with pytest.raises(ConfigError, match="finished run; choose another --out"):
        headstart.train(folder, model=tiny_model, out=out, **HEAD)
    again = headstart.train(folder, model=tiny_model, out=out, overwrite=True, seed=3, **HEAD)
    assert again.recipe.seed == 3 and not (out / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not a run")
    with pytest.raises(ConfigError, match="is not empty"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "mine", overwrite=True, **HEAD)


def test_what_the_run_reads_is_not_overwritten(folder, tiny_model, tmp_path, monkeypatch):
    run = headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD).folder
    inside = shutil.copytree(folder, run / "data")
    before = sorted(run.rglob("*"))
    for data, more in (
        (folder, {"model": run}),
        (inside, {"model": tiny_model}),
        (folder, {"model": tiny_model, "test": inside}),
    ):
        with pytest.raises(ConfigError, match="overwrite would remove .*, which this run reads"):
            headstart.train(data, out=run, overwrite=True, **more, **HEAD)
    monkeypatch.chdir(inside)
    with pytest.raises(ConfigError, match="would remove the current folder"):
        headstart.train(folder, model=tiny_model, out=run, overwrite=True, **HEAD)
    assert sorted(run.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_refused_at_once(folder, tiny_model, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, what in (("file/x", "file is a file"), ("link", "link is a link to nothing")):
        with pytest.raises(ConfigError, match=what):
            headstart.train(folder, model=tiny_model, out=tmp_path / name, **HEAD)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_another_process_finished_meanwhile_stays(
    folder, tiny_model, tmp_path, monkeypatch, resume
):
    """The other one begins and ends while this one reads its data."""
    out, other = tmp_path / "run", tmp_path / "other"
    headstart.train(folder, model=tiny_model, out=other, **HEAD)
    if resume:
        out.mkdir()
        shutil.copy2(other / "run.json", out)

    def meanwhile(run):
        shutil.copytree(other, out, dirs_exist_ok=True)

    monkeypatch.setattr("headstart.training.run.announce", meanwhile)
    more = {"resume": True} if resume else {"model": tiny_model, "seed": 3, **HEAD}
    what = "was finished by another process" if resume else "holds a finished run"
    with pytest.raises(ConfigError, match=what):
        headstart.train(folder, out=out, **more)
    assert (out / "run.json").read_bytes() == (other / "run.json").read_bytes()


def test_the_lock_is_that_of_the_file_in_the_folder(tmp_path, monkeypatch):
    """A run that ends removes the file that another has opened already."""
    with locked(tmp_path):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").touch()  # of a run that began since
    assert (tmp_path / ".lock").exists()

    def late(handle, take=lock.take_lock):
        (tmp_path / ".lock").unlink()
        return take(handle)

    monkeypatch.setattr(lock, "take_lock", late)
    with pytest.raises(ConfigError, match="another run writes into"), locked(tmp_path):
        pass


def test_a_folder_that_is_removed_meanwhile_is_no_success(
    folder, tiny_model, tmp_path, monkeypatch
):
    from headstart.training import fit_head

    begin = fit_head.begin

    def begin_and_remove(run, full=None):
        begin(run, full)
        shutil.rmtree(run.out)

    monkeypatch.setattr(fit_head, "begin", begin_and_remove)
    monkeypatch.setattr(fit_head.MetricsLog, "write", lambda self, values: None)
    with pytest.raises(ConfigError, match="was removed during the run"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD)


def test_a_relative_model_is_found_from_anywhere(folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    found = headstart.train(folder, model=tiny_model.name, out=tmp_path / "run", **HEAD)
    request = json.loads((found.folder / "run.json").read_text())
    assert request["model"] == str(tiny_model.resolve())


def test_a_damaged_log_is_read_as_far_as_it_is_whole(tmp_path):
    lines = [b'{"step": 1, "loss": 2.0}', b"\xff\xfe", b"[1]", b'{"loss": 1.0}', b'{"step": 2']
    lines += [b'{"step": 3, "validation": 5}', b'{"step": 3, "validation": {"accuracy": "high"}}']
    lines += [b'{"step": 3, "loss": "low"}', b'{"step": 3, "loss": [1]}', b'{"step": true}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_evaluation_leaves_out_what_was_trained_on(folder, tiny_model, tmp_path, capsys):
    """The data of the training, which has no split of its own, gives the held-out result."""
    found = headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD)
    task, again = evaluate(found.folder, folder, device="cpu", progress=Lines())
    assert repr(task) == "ImageClassification(4 train)"
    assert repr(again).startswith("Evaluation('train', 4 examples, accuracy=")
    assert again.examples == found.evaluation.examples == 4
    for name, value in again.metrics.items():
        assert value == pytest.approx(found.metrics[name], abs=1e-4), name
    assert "evaluating the 4 of 20 examples that the model was not" in capsys.readouterr().err
    _, whole = evaluate(found.folder, folder, split="train", device="cpu")
    assert whole.examples == 20
    assert whole.notes == [
        "warning: the model was trained on 16 of these 20 examples, so the result is too good"
    ]
    other = make_class_folders(tmp_path / "other", {"bird": 3, "cat": 3}, first_seed=900)
    _, new = evaluate(found.folder, other, device="cpu")
    assert new.examples == 6 and new.notes == []


def test_copies_that_were_saved_again_are_noticed(tiny_model, tmp_path):
    """Their bytes are others; their looks are those of the training images."""
    folder = tmp_path / "photos"
    make_class_folders(folder, {"bird": 10})
    make_class_folders(folder, {"cat": 10}, first_seed=50)
    run = headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD).folder
    assert run is not None
    for file in folder.rglob("*.png"):
        copy = tmp_path / "copies" / file.relative_to(folder).with_suffix(".bmp")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(copy)
    _, found = evaluate(run, tmp_path / "copies", device="cpu")
    assert found.examples == 20 and found.notes == [
        "warning: 16 of these 20 images look the same as images that the model was trained on, so"
        " the result may be too good"
    ]
    same = make_class_folders(tmp_path / "same", {"bird": 10, "cat": 10})
    for i in range(10):  # data whose images look alike: the hash cannot tell copies from others
        Image.fromarray(make_photo((200, 40, 40), 3)).save(same / "cat" / f"cat_{i}.png")
    alike = headstart.train(same, model=tiny_model, out=tmp_path / "alike", **HEAD).folder
    assert alike is not None
    _, found = evaluate(alike, tmp_path / "copies", device="cpu")
    assert found.notes == []


def test_epochs_are_steps(folder, tiny_model, tmp_path):
    values = {"batch_size": 8, "crop": 20, "device": "cpu", "dry_run": True}
    found = headstart.train(folder, model=tiny_model, out=tmp_path / "run", epochs=5, **values)
    assert found.recipe.steps == 10 and found.recipe.tune == "full" and found.estimated > 0
    with pytest.raises(ConfigError, match="epochs and steps"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "run", epochs=5, steps=3, **values)
    with pytest.raises(ConfigError, match="epochs=0"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "run", epochs=0, **values)
    assert not (tmp_path / "run").exists()


def test_the_head_alone_where_full_training_takes_long(
    folder, tiny_model, tmp_path, capsys, monkeypatch
):
    for module in ("fit_full", "fit_both"):
        monkeypatch.setattr(f"headstart.training.{module}.AUTO_SECONDS", 0.0)
    values = {"model": tiny_model, "device": "cpu", "progress": Lines(), "crop": 20}
    found = headstart.train(folder, out=tmp_path / "a", **values)
    assert found.recipe.tune == "head"
    assert "the head alone is fitted (--tune full trains every weight)" in capsys.readouterr().err
    requested = headstart.train(folder, out=tmp_path / "b", steps=2, batch_size=4, **values)
    assert requested.recipe.tune == "full", "a number of steps asks for full training"
    auto = headstart.train(folder, out=tmp_path / "c", steps=2, batch_size=4, tune="auto", **values)
    assert auto.recipe.tune == "head"


def test_recipe_and_card_of_a_head_describe_what_happened(folder, tiny_model, tmp_path):
    pytest.importorskip("tensorboard")
    found = headstart.train(
        folder, model=tiny_model, out=tmp_path / "run", tensorboard=True, **HEAD
    )
    recipe = yaml.safe_load((found.folder / "recipe.yaml").read_text())
    assert recipe.keys() == {"name", "tune", "crop", "max_length", "class_weights", "seed"}
    card = (found.folder / "README.md").read_text()
    assert "A linear head was fitted" in card and "steps of" not in card and "sgd" not in card
    assert list((found.folder / "tensorboard").iterdir()), "--tensorboard is honored"
    again = headstart.train(
        folder, model=tiny_model, out=tmp_path / "b", config=found.folder / "recipe.yaml",
        device="cpu",
    )  # fmt: skip
    assert again.metrics == found.metrics


def test_results_hold_classes_and_predictions(folder, tiny_model, tmp_path):
    found = headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD)
    values = json.loads((found.folder / "results.json").read_text())["evaluations"]["validation"]
    assert values["classes"].keys() == {"bird", "cat"}
    confusion = values["confusion_matrix"]
    assert sum(map(sum, confusion)) == 4 and values["classes"]["cat"]["examples"] == 2
    right = confusion[0][0] + confusion[1][1]
    assert right / 4 == found.metrics["accuracy"]
    with (found.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["split"] for row in rows} == {"validation"}
    assert sum(row["label"] == row["prediction"] for row in rows) == right
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert all(row["label"] in row["name"] for row in rows)


def test_a_result_is_shown_in_a_notebook(folder, tiny_model, tmp_path):
    found = headstart.train(folder, model=tiny_model, out=tmp_path / "<run>", **HEAD)
    assert len(repr(found)) < 300 and "accuracy=" in repr(found)
    page = found._repr_html_()
    assert "<th>accuracy</th>" in page and "&lt;run&gt;" in page and "<run>" not in page


class Jobs(Silent):
    """Notes the pieces of work with their totals, and what was reported."""

    def __init__(self):
        self.jobs, self.lines = [], []

    def start(self, label, total, done=0, unit="img"):
        self.jobs.append((label, total, unit))

    def report(self, text):
        self.lines.append(text)


def test_evaluation_decodes_every_image_once(folder, tiny_model, tmp_path, monkeypatch):
    """Where memory has no room for the pixels, the evaluation itself finds what is damaged."""
    run = headstart.train(folder, model=tiny_model, out=tmp_path / "run", **SMALL).folder
    image = folder / "cat" / "cat_3.png"
    image.write_bytes(image.read_bytes()[:-40])
    decoded = []
    original = cache.decode
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(cache, "decode", lambda source: decoded.append(source) or original(source))
    with pytest.raises(DataError, match=r"1 of 20 images cannot be read(.|\n)*cat_3.png"):
        evaluate(run, folder, split="train", device="cpu")
    decoded.clear()
    jobs = Jobs()
    _, found = evaluate(run, folder, split="train", device="cpu", skip_bad=True, progress=jobs)
    assert found.examples == 19 and len(found.details["logits"]) == 19
    assert len(decoded) == len(set(decoded)) == 20
    assert ("reading labels", 1, "data sets") in jobs.jobs
    assert ("reading images", 20, "img") in jobs.jobs and ("evaluating", 20, "img") in jobs.jobs


def test_what_is_decoded_in_every_epoch_is_said(folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(cache, "CACHE_LIMIT", 0)
    jobs = Jobs()
    found = headstart.train(folder, model=tiny_model, out=tmp_path / "run", progress=jobs, **SMALL)
    line = "are not stored, they exceed 8 GB: every epoch decodes them again"
    assert any(line in each for each in jobs.lines)
    assert line in (found.folder / "report.html").read_text()
    assert ("decoding images", 20, "img") in jobs.jobs and ("evaluating", 4, "img") in jobs.jobs
    assert ("measuring the time", 1, "runs") in jobs.jobs
    assert ("writing results and report", PARTS, "parts") in jobs.jobs


class Counted(Silent):
    """Notes the steps of each piece of work."""

    def __init__(self):
        self.done, self.label = {}, ""

    def start(self, label, total, done=0, unit="img"):
        self.label, self.done[label] = label, [done]

    def update(self, done, values, rate=None):
        self.done[self.label].append(done)


def test_the_report_counts_its_parts_and_hashes_an_image_once(
    folder, tiny_model, tmp_path, monkeypatch
):
    hashed, original = [], sections.difference_hash
    monkeypatch.setattr(
        sections, "difference_hash", lambda image: hashed.append(1) or original(image)
    )
    monkeypatch.setattr("headstart.progress.SHORT", -1.0)
    shown = Counted()
    headstart.train(folder, model=tiny_model, out=tmp_path / "run", progress=shown, **SMALL)
    assert len(hashed) == 20
    assert shown.done["hashing images"] == list(range(21))
    assert shown.done["writing results and report"] == list(range(PARTS + 1))


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("text-classification", {"text": "a good book", "label": "good"}),
        ("token-classification", {"tokens": ["a", "book"], "tags": ["O", "B-X"]}),
        ("multiple-choice", {"text": "a", "choices": ["b", "c"], "label": 0}),
    ],
)
def test_texts_are_not_read_in_silence(task, row, tmp_path):
    rows = [row, row | {"label": "poor"} if task == "text-classification" else row] * 4
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = Jobs()
    task_class(task).read(tmp_path / "t.jsonl", DataOptions(progress=jobs))
    assert jobs.jobs == [("reading texts", 1, "data sets")]


@pytest.mark.parametrize(
    "values",
    [{"lr": 0.1}, {"mixup": 0.2}, {"epochs": 2}, {"freeze": ["bit"]}, {"precision": "bf16"}]
    + [{"batch_size": 8}, {"micro_batch": 4}, {"resize": 24}],
)
def test_a_fitted_head_refuses_values_of_training(folder, tiny_model, tmp_path, values):
    with pytest.raises(ConfigError, match=f"has no use for {next(iter(values))}=; leave it out"):
        headstart.train(folder, model=tiny_model, out=tmp_path / "run", **HEAD, **values)


def test_a_fitted_head_refuses_recipes_of_training(folder, tiny_model, tmp_path):
    file = tmp_path / "full.yaml"
    file.write_text("lr: 0.5\nseed: 2\n")
    values = {"model": tiny_model, "out": tmp_path / "run", **HEAD}
    with pytest.raises(ConfigError, match=r"full\.yaml: .* has no use for lr; leave it out"):
        headstart.train(folder, config=file, **values)
    with pytest.raises(ConfigError, match="has no use for recipe='finetune'"):
        headstart.train(folder, recipe="finetune", **values)
    first = headstart.train(folder, **values)  # what a head's run wrote is read again
    again = values | {"out": tmp_path / "again"}
    second = headstart.train(folder, config=tmp_path / "run" / "recipe.yaml", **again)
    assert second.recipe.relevant() == first.recipe.relevant()


def test_texts_refuse_values_of_images(tmp_path):
    rows = [f"text {i}\t{i % 2}" for i in range(20)]
    (tmp_path / "t.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    with pytest.raises(ConfigError, match="reads texts, and crop=, mixup= is for images"):
        headstart.train(
            tmp_path / "t.tsv", task="text-classification", out=tmp_path / "run", crop=20, mixup=0.5
        )


@pytest.mark.parametrize(
    "values", [{"mixup": 0.2}, {"class_weights": "balanced"}, {"problem_type": "multi-label"}]
)
def test_segmentation_refuses_what_is_for_classes_of_images(tmp_path, values):
    for kind, shape in (("images", (32, 32, 3)), ("masks", (32, 32))):
        (tmp_path / kind).mkdir()
        for i in range(5):
            pixels = np.arange(np.prod(shape)).reshape(shape) % 2
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    NETWORKS["beit"]().save_pretrained(tmp_path / "beit")
    headstart.BeitImageProcessor().save_pretrained(tmp_path / "beit")
    message = f"{next(iter(values))}=.* is for .* of whole examples, not for semantic-segmentation"
    with pytest.raises(ConfigError, match=message):
        headstart.train(
            tmp_path / "images",
            model=tmp_path / "beit",
            out=tmp_path / "run",
            task="semantic-segmentation",
            task_options={"masks": tmp_path / "masks"},
            **values,
        )
