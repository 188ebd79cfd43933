"""A whole run through `headstart.train`.

The result folder, what stops a run before it starts, and evaluating a result again.
"""

import json

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart import AutoImageProcessor, AutoModelForImageClassification
from headstart.cli.app import main
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError, HubError
from headstart.progress import Lines
from headstart.tasks.image_classification import ImageClassification
from headstart.training.evaluate import evaluate
from photo_data import make_class_folders, make_photo

SMALL = {"steps": 30, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}


@pytest.fixture(scope="module")
def result(photos, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "run"
    return headstart.train(photos, model=tiny_model, out=folder, **SMALL)


def test_the_result_is_a_checkpoint_like_any_other(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "examples.npz",
        "metrics.jsonl",
        "model.safetensors",
        "predictions.csv",
        "preprocessor_config.json",
        "recipe.yaml",
        "report.html",
        "results.json",
        "run.json",
    }
    model = AutoModelForImageClassification.from_pretrained(result.folder)
    processor = AutoImageProcessor.from_pretrained(result.folder)
    assert model.config.id2label == {0: "bird", 1: "cat", 2: "dog"}
    assert processor(make_photo((0, 0, 0), 0), return_tensors="pt")["pixel_values"].shape == (
        1,
        3,
        20,
        20,
    )


def test_it_learned(result):
    """Three colors.

    The tiny network must do better than the 12 validation images' chance, and its interval must say
    so.
    """
    assert result.metrics["accuracy"] > 0.8
    low, high = result.evaluation.interval
    assert low < result.metrics["accuracy"] <= high and result.evaluation.examples == 12


def test_results_tell_what_happened(result):
    values = json.loads((result.folder / "results.json").read_text())
    assert values["evaluations"]["validation"]["metrics"] == result.metrics
    assert values["splits"] == {"train": 15, "validation": 12} and values["seed"] == 0
    assert (
        len(values["data_fingerprint"]) == 64
        and {"headstart", "torch", "python"} <= values["versions"].keys()
    )
    lines = [
        json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 31))
    assert {"step", "loss", "accuracy", "lr", "seconds"} == set(lines[0])
    card = (result.folder / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: headstart\n")
        and f"{result.metrics['accuracy']:.1%}" in card
    )


def test_the_report_is_one_page_with_the_numbers(result):
    page = (result.folder / "report.html").read_text()
    assert f"{result.metrics['accuracy']:.1%}" in page
    for heading in (
        "Learning curves",
        "Confusion",
        "Classes",
        "Lowest-confidence predictions",
        "Can its confidence be believed?",
        "Duplicates and leaks",
    ):
        assert f"<h2>{heading}</h2>" in page, heading
    assert "http" not in page.replace("http://www.w3.org", ""), (
        "the page must not reach for the network"
    )
    assert page.count("data:image/jpeg") >= 12


def test_evaluating_the_result_again_gives_the_same(result, photos):
    task, again = evaluate(result.folder, photos, device="cpu")
    assert again.split == "validation" and task.headline == "accuracy"
    for name, value in again.metrics.items():
        assert value == pytest.approx(result.metrics[name], abs=1e-6), name


def test_the_saved_recipe_gives_the_same_run(result, photos, tiny_model, tmp_path):
    again = headstart.train(
        photos,
        model=tiny_model,
        out=tmp_path / "run",
        config=result.folder / "recipe.yaml",
        device="cpu",
    )
    assert (again.folder / "model.safetensors").read_bytes() == (
        result.folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "name, tune", [("val", "full"), ("validation", "head"), ("valid", "full"), ("dev", "head")]
)
def test_the_test_data_is_evaluated_once_at_the_end(
    name, tune, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    for split, first in (("train", 0), (name, 100), ("test", 200)):
        make_class_folders(
            tmp_path / "data" / split,
            {"bird": 4, "cat": 4} | ({"dog": 4} if split != "test" else {}),
            first_seed=first,
        )
    evaluated, evaluate_task = [], ImageClassification.evaluate
    monkeypatch.setattr(
        ImageClassification,
        "evaluate",
        lambda self, model, split, *rest: (
            evaluated.append(split) or evaluate_task(self, model, split, *rest)
        ),
    )
    run = tmp_path / "run"
    arguments = ["train", str(tmp_path / "data"), "--model", str(tiny_model), "--out", str(run)]
    arguments += ["--tune", tune, "--device", "cpu"]
    if tune == "full":
        arguments += ["--steps", "4", "--batch-size", "8", "--crop", "20", "--set", "eval_every=1"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr().err
    assert end.value.code == 0, printed
    # a head is evaluated on the features
    assert evaluated == (["validation"] * 4 + ["test"] if tune == "full" else [])
    assert (
        "12 train, 12 validation, 8 test" in printed
        and "no test image is dog" in printed
        and "test accuracy" in printed.splitlines()[-1]
    )
    results = json.loads((run / "results.json").read_text())
    assert results["splits"] == {"train": 12, "validation": 12, "test": 8}
    assert set(results["evaluations"]) == {"validation", "test"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines and not any("test" in line for line in lines)
    page, card = ((run / file).read_text() for file in ("report.html", "README.md"))
    assert "on 8 test examples" in page and "## Result on 8 test examples" in card


def test_splits_that_do_not_fit_together(tiny_model, tmp_path, capsys):
    make_class_folders(tmp_path / "a" / "train", {"bird": 3, "cat": 3})
    make_class_folders(tmp_path / "a" / "test", {"bird": 3, "dog": 3})
    make_class_folders(tmp_path / "b" / "train", {"bird": 3, "cat": 3})
    for name in ("val", "valid"):
        make_class_folders(tmp_path / "b" / name, {"bird": 3, "cat": 3})
    for folder, message in (
        ("a", "class 'dog' is not among the classes of the training data: bird, cat"),
        ("b", "look like the validation data; keep one"),
    ):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "train",
                    str(tmp_path / folder),
                    "--model",
                    str(tiny_model),
                    "--out",
                    str(tmp_path / "run"),
                ]
            )
        printed = " ".join(capsys.readouterr().err.split())
        assert end.value.code == 3 and message in printed, printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tune", ["full", "head"])
def test_the_report_shows_duplicates_and_leaks(tune, tiny_model, tmp_path, monkeypatch):
    """The same file in two classes and in two splits, and one that was scaled."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 4)):
        for name in ("bird", "cat"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize(
                    (40, 45)
                ).save(tmp_path / "data" / split / name / f"{i}.png")
    first = tmp_path / "data" / "train" / "bird" / "0.png"
    for copy in ("val/bird/leak.png", "train/cat/other.png"):
        (tmp_path / "data" / copy).write_bytes(first.read_bytes())
    Image.open(tmp_path / "data" / "train" / "cat" / "1.png").resize((80, 90)).save(
        tmp_path / "data" / "val" / "cat" / "near.png"
    )
    values = {"steps": 2, "batch_size": 4, "crop": 40, "eval_every": 2} if tune == "full" else {}
    found = headstart.train(
        tmp_path / "data", model=tiny_model, out=tmp_path / "run", tune=tune, device="cpu", **values
    )
    page = (found.folder / "report.html").read_text()
    assert (
        "3 images are the same as another, or look so: 2 of them in another split,"
        " which flatters the result, and 1 with" in page
    )
    assert "exact: bird in train and bird in validation\n0.png, leak.png" in page
    assert "exact: bird in train and cat in train\n0.png, other.png" in page
    assert "near: cat in train and cat in validation\n1.png, near.png" in page


def test_the_fingerprint_is_of_the_content(photos, tiny_model, tmp_path, result):
    import shutil

    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    prints = []
    for change in (False, True):
        if change:
            file = next((moved / "train" / "cat").iterdir())
            Image.fromarray(make_photo((1, 2, 3), 0)).save(file)
        prints.append(ImageClassification.read(moved, DataOptions()).fingerprint)
    assert (
        prints[0]
        == json.loads((result.folder / "results.json").read_text())["data_fingerprint"]
        != prints[1]
    )


def test_a_dry_run_writes_nothing(photos, tiny_model, tmp_path, capsys):
    found = headstart.train(
        photos, model=tiny_model, out=tmp_path / "run", dry_run=True, progress=Lines(), **SMALL
    )
    printed = capsys.readouterr().err
    assert found.folder is None and not (tmp_path / "run").exists()
    assert (
        "27 images (15 train, 12 validation), 3 classes of 4 to 6 training images" in printed
        and "30 steps of 16 examples" in printed
    )


def test_few_shots_and_a_test_split(photos, tiny_model, tmp_path):
    test = make_class_folders(tmp_path / "test", {"bird": 3, "cat": 2, "dog": 2}, first_seed=500)
    found = headstart.train(
        photos,
        model=tiny_model,
        out=tmp_path / "run",
        shots=2,
        test=test,
        seed=5,
        **SMALL | {"steps": 3},
    )
    assert set(found.evaluations) == {"validation", "test"} and found.evaluation.examples == 7
    assert json.loads((tmp_path / "run" / "results.json").read_text())["splits"] == {
        "train": 6,
        "validation": 12,
        "test": 7,
    }


@pytest.fixture
def spoilt(tmp_path):
    """Class folders with a text, an empty file, a truncated PNG and a missing file among them."""
    folder = make_class_folders(tmp_path / "spoilt", {"bird": 8, "cat": 8})
    (folder / "bird" / "words.jpg").write_text("not an image")
    (folder / "cat" / "empty.png").write_bytes(b"")
    data = (folder / "cat" / "cat_0.png").read_bytes()
    (folder / "cat" / "half.png").write_bytes(data[: len(data) // 2])
    (folder / "bird" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    return folder


def test_bad_images_stop_the_run_before_it_starts(spoilt, tiny_model, tmp_path):
    with pytest.raises(DataError) as caught:
        headstart.train(spoilt, model=tiny_model, out=tmp_path / "run", val_fraction=0.0, **SMALL)
    message = str(caught.value)
    assert "4 of 20 images cannot be read" in message and "--skip-bad" in message
    for name in ("words.jpg", "empty.png", "half.png", "gone.png: no such file"):
        assert name in message
    assert "cat_0.png" not in message and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_skip_bad_goes_on_and_reports_it(spoilt, tiny_model, tmp_path):
    found = headstart.train(
        spoilt, model=tiny_model, out=tmp_path / "run", skip_bad=True, **SMALL | {"steps": 2}
    )
    values = json.loads((found.folder / "results.json").read_text())
    assert sum(values["splits"].values()) == 16
    assert any("4 unreadable images left out" in note for note in values["notes"])
    assert "4 unreadable images left out" in (found.folder / "report.html").read_text()


def test_a_class_of_bad_images_only(tmp_path, tiny_model):
    folder = make_class_folders(tmp_path / "d", {"bird": 4, "cat": 4})
    (folder / "dog").mkdir()
    (folder / "dog" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no readable training image is left of class 'dog'"):
        headstart.train(
            folder, model=tiny_model, out=tmp_path / "run", skip_bad=True, val_fraction=0.0, **SMALL
        )


def test_a_leak_is_reported(tiny_model, tmp_path):
    make_class_folders(tmp_path / "d" / "train", {"bird": 3, "cat": 3})
    make_class_folders(tmp_path / "d" / "val", {"bird": 1, "cat": 1}, first_seed=50)
    found = headstart.train(
        tmp_path / "d", model=tiny_model, out=tmp_path / "run", **SMALL | {"steps": 1}
    )
    assert "are also in the evaluation data" not in (found.folder / "README.md").read_text()
    make_class_folders(tmp_path / "e" / "train", {"bird": 3, "cat": 3})
    make_class_folders(tmp_path / "e" / "val", {"bird": 1, "cat": 1})
    found = headstart.train(
        tmp_path / "e", model=tiny_model, out=tmp_path / "run2", **SMALL | {"steps": 1}
    )
    assert (
        "2 training images are also in the evaluation data"
        in (found.folder / "README.md").read_text()
    )


def test_errors_of_the_caller(photos, tiny_model, tmp_path, result):
    with pytest.raises(ConfigError, match="which model"):
        headstart.train(photos, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a finished run"):
        headstart.train(photos, model=tiny_model, out=result.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        headstart.train(photos, model=tiny_model, out=tmp_path / "full")
    with pytest.raises(ConfigError, match="no run to go on with"):
        headstart.train(photos, out=tmp_path / "full", resume=True)
    with pytest.raises(
        ConfigError,
        match="no task is called 'image-clasification'; did you mean image-classification",
    ):
        headstart.train(photos, model=tiny_model, out=tmp_path / "run", task="image-clasification")
    with pytest.raises(HubError):
        headstart.train(photos, model=tmp_path / "no-model", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="device='gpu'"):
        headstart.train(photos, model=tiny_model, out=tmp_path / "run", device="gpu")


def test_a_resumed_run_must_be_the_same_run(photos, tiny_model, tmp_path):
    from headstart.errors import TrainingInterrupted
    from headstart.training import loop

    out = tmp_path / "run"
    before = loop.Stopper.__init__

    def asked_at_once(self):
        before(self)
        self.requested = True

    loop.Stopper.__init__ = asked_at_once
    try:
        with pytest.raises(TrainingInterrupted, match="stopped after step 1 of 30"):
            headstart.train(photos, model=tiny_model, out=out, **SMALL)
    finally:
        loop.Stopper.__init__ = before
    with pytest.raises(ConfigError, match="holds an unfinished run; go on with --resume"):
        headstart.train(photos, model=tiny_model, out=out)
    with pytest.raises(ConfigError, match=r"has lr=0.05, not 0.1"):
        headstart.train(photos, out=out, resume=True, lr=0.1)
    with pytest.raises(ConfigError, match="not other/model"):
        headstart.train(photos, model="other/model", out=out, resume=True)
    other = make_class_folders(tmp_path / "other", {"bird": 9, "cat": 9, "dog": 9})
    with pytest.raises(DataError, match="the data is not what the run was started with"):
        headstart.train(other, out=out, resume=True, device="cpu")
    assert headstart.train(photos, out=out, resume=True, device="cpu").metrics["accuracy"] > 0.8


def test_numbers_without_pixels_on_disk(tiny_model, tmp_path):
    """Gray arrays of 28 x 28, as data sets of digits are."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (
        (rng.normal(60, 20, (40, 28, 28)) + 120 * labels[:, None, None])
        .clip(0, 255)
        .astype(np.uint8)
    )
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    found = headstart.train(
        tmp_path / "digits.npz", model=tiny_model, out=tmp_path / "run", **SMALL
    )
    assert found.metrics["accuracy"] == 1.0
