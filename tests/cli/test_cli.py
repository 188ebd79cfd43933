"""The command line: output, exit codes, one clear line for every error."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

import headstart
from command_line import call
from headstart.cli import app as cli
from photo_data import make_class_folders

SMALL = [
    "--steps",
    "20",
    "--lr",
    "0.05",
    "--batch-size",
    "16",
    "--resize",
    "24",
    "--crop",
    "20",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def tuned(photos, tiny_model, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(photos), "--model", str(tiny_model), "--out", str(out), *SMALL])
    assert end.value.code == 0
    return out


def test_help_is_light():
    """`headstart --help` loads no framework."""
    code = (
        "import sys; from headstart.cli import app as cli\ntry: cli.main(['--help'])\nexcept"
        " SystemExit: pass\n"
    )
    code += (
        "heavy = {'torch', 'numpy', 'matplotlib', 'keras', 'jax', 'PIL'} & set(sys.modules); assert"
        " not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    for name in ("train", "evaluate", "predict", "audit", "models", "info"):
        assert name in done.stdout


def test_every_command_has_help_with_an_example():
    names = [each.name or each.callback.__name__ for each in cli.application().registered_commands]
    assert {
        "train",
        "evaluate",
        "predict",
        "explain",
        "audit",
        "models",
        "convert",
        "info",
        "demo",
    } <= set(names)
    for name in names:
        result = CliRunner().invoke(
            cli.application(), [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}
        )
        assert (
            result.exit_code == 0
            and "Example" in result.output
            and f"headstart {name}" in result.output
        ), name


@pytest.mark.parametrize(
    "words, expected",
    [("headstart tr", "train"), ("headstart train --model BiT-M-R5", "BiT-M-R50x1")],
)
def test_the_shell_completes_commands_and_models(words, expected):
    environment = {
        "_HEADSTART_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import sys; sys.argv = ['headstart']; from headstart.cli.app import application;"
        " application()(prog_name='headstart')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert expected in done.stdout.split(), done.stderr


def test_train_prints_plain_lines(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    code, out, err = call(
        capsys,
        "train",
        photos,
        "--model",
        tiny_model,
        "--out",
        tmp_path / "run",
        *SMALL,
        "--set",
        "ema=0.5",
    )
    assert code == 0 and out == ""
    assert (
        "27 images (15 train, 12 validation)" in err
        and "validation accuracy" in err.splitlines()[-1]
    )
    assert "\x1b[" not in err and "randomly initialized" not in err
    assert "ema: 0.5" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_evaluate(tuned, photos, capsys):  # noqa: F811
    code, out, _ = call(capsys, "evaluate", tuned, photos, "--json", "--device", "cpu")
    found = json.loads(out)
    saved = json.loads((tuned / "results.json").read_text())["evaluations"]["validation"]
    assert (
        code == 0
        and found["split"] == "validation"
        and found["metrics"] == pytest.approx(saved["metrics"], abs=1e-6)
    )
    code, out, _ = call(capsys, "evaluate", tuned, photos, "--split", "train", "--device", "cpu")
    assert code == 0 and out.startswith("accuracy\t")
    code, _, err = call(capsys, "evaluate", tuned, photos, "--split", "test")
    assert code == 3 and "has no test data" in err


def test_predict(tuned, photos, capsys):  # noqa: F811
    files = sorted((photos / "val").rglob("*.png"))
    code, out, _ = call(
        capsys, "predict", tuned, photos / "val", "--json", "--top", 2, "--device", "cpu"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["image"] for row in rows] == [str(file) for file in files]
    right = sum(row["labels"][0]["label"] in row["image"] for row in rows)
    assert (
        right / len(rows)
        == json.loads((tuned / "results.json").read_text())["evaluations"]["validation"]["metrics"][
            "accuracy"
        ]
    )
    code, out, _ = call(capsys, "predict", tuned, files[0], files[1], "--top", 1)
    assert (
        code == 0 and len(out.splitlines()) == 2 and out.splitlines()[0].startswith(f"{files[0]}\t")
    )


def test_predict_goes_on_after_a_damaged_image(tuned, photos, tmp_path, capsys):  # noqa: F811
    good = sorted((photos / "val").rglob("*.png"))[:3]
    bad = tmp_path / "words.png"
    bad.write_text("words")
    for files in ([bad, *good], [good[0], bad, *good[1:]], [*good, bad]):
        code, out, err = call(capsys, "predict", tuned, *files, "--top", 1, "--batch-size", 2)
        assert code == 3 and [line.split("\t")[0] for line in out.splitlines()] == [
            str(file) for file in good
        ]
        assert err == f"headstart: {bad}: cannot be read as an image: unknown image format\n"


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"headstart {headstart.__version__}\n", "")


def test_explain(tuned, photos, tmp_path, capsys):  # noqa: F811
    files = sorted((photos / "val").rglob("*.png"))[:2]
    code, out, _ = call(
        capsys, "explain", tuned, *files, "--out", tmp_path / "seen", "--device", "cpu"
    )
    assert code == 0 and len(out.splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        f"000{i + 1}_{file.stem}.png" for i, file in enumerate(files)
    ]
    code, _, err = call(
        capsys, "explain", tuned, files[0], "--out", tmp_path / "seen", "--label", "wing"
    )
    assert code == 2 and "no class 'wing'; it has bird, cat, dog" in err


def test_explain_writes_one_file(tuned, photos, tmp_path, capsys):  # noqa: F811
    files = sorted((photos / "val").rglob("*.png"))[:2]
    one = tmp_path / "new" / "seen.png"
    assert call(capsys, "explain", tuned, files[0], "--out", one)[0] == 0
    with Image.open(one) as heat, Image.open(files[0]) as whole:
        assert heat.size == whole.size
    (tmp_path / "notes.txt").touch()
    config = json.loads((tuned / "config.json").read_text())
    config["architectures"] = ["BeitForSemanticSegmentation"]
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "config.json").write_text(json.dumps(config))
    code, _, err = call(capsys, "explain", tmp_path / "scenes", files[0], "--out", tmp_path / "s")
    assert code == 2 and "gives every pixel a class, which `headstart predict` shows" in err
    for images, name in ((files, "both.png"), (files[:1], "a.jpg"), (files[:1], "notes.txt")):
        code, _, err = call(capsys, "explain", tuned, *images, "--out", tmp_path / name)
        assert code == 2 and f"{name} names a file" in err and "expected a folder, or a name" in err
    assert not (tmp_path / "both.png").exists() and not (tmp_path / "a.jpg").exists()


def test_audit(photos, tmp_path, capsys):  # noqa: F811
    code, out, err = call(
        capsys, "audit", make_class_folders(tmp_path / "train", {"bird": 3, "cat": 3}).parent
    )
    assert (
        code == 0
        and out == ""
        and "6 images: 0 unreadable, 0 duplicates, 0 leaks, 0 contradictions" in err
    )
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "same.png").write_bytes(
        (tmp_path / "train" / "bird" / "bird_0.png").read_bytes()
    )
    (tmp_path / "val" / "cat" / "words.png").write_text("words")
    code, out, _ = call(capsys, "audit", tmp_path)
    assert (
        code == 3
        and "exact duplicate, leak: train and validation, classes: bird and cat\t" in out
        and "unreadable\t" in out
    )
    code, out, _ = call(capsys, "audit", tmp_path, "--json")
    assert code == 3 and json.loads(out)["pairs"][0]["leaks"] is True


def test_models_and_info(tuned, capsys):
    code, out, _ = call(capsys, "models")
    assert code == 0 and any(line.startswith("BiT-M-R50x1\t") for line in out.splitlines())
    code, out, _ = call(capsys, "models", "--json")
    assert code == 0 and {json.loads(line)["name"] for line in out.splitlines()} >= {
        "BiT-M-R50x1",
        "BiT-M-R152x4",
    }
    code, out, _ = call(capsys, "models", "r50x1", "--max-size", "100", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {each["family"] for each in found} == {"bit"} and len(found) > 2
    assert all("R50x1" in each["name"] and each["parameters"] < 26e6 for each in found)
    code, out, _ = call(capsys, "models", "--family", "yoso")
    assert code == 0 and all(line.split("\t")[1] == "yoso" for line in out.splitlines())
    code, _, err = call(capsys, "models", "--family", "resnet")
    assert code == 2 and "bit, cvt, beit, yoso" in err
    code, _, err = call(capsys, "models", "nothing-like-this")
    assert code == 2 and "lists them all" in err
    code, out, _ = call(capsys, "info", tuned, "--json")
    found = json.loads(out)
    assert (
        code == 0
        and found["class_names"] == ["bird", "cat", "dog"]
        and found["task"] == "image-classification"
    )
    code, out, _ = call(capsys, "info", tuned)
    assert code == 0 and "bird, cat, dog" in out


def errors_of_use(photos, model, tuned, folder):  # noqa: F811
    one = make_class_folders(folder / "one", {"bird": 2})
    bad = make_class_folders(folder / "bad", {"bird": 2, "cat": 2})
    for file in bad.rglob("*.png"):
        file.write_text("words")
    new = folder / "new"
    return {
        "there is no file or folder": ["train", folder / "nowhere", "--model", model, "--out", new],
        "has one class, 'bird'": ["train", one, "--model", model, "--out", new],
        "4 of 4 images cannot be read": ["train", bad, "--model", model, "--out", new],
        "did you mean BiT-M-R50x1": ["train", photos, "--model", "BiT-M-R50x1x", "--out", new],
        "which model?": ["train", photos, "--out", new],
        "holds a finished run": ["train", photos, "--model", model, "--out", tuned],
        "no run to go on with": ["train", photos, "--out", new, "--resume"],
        "a recipe has no value 'wings'": [
            "train",
            photos,
            "--model",
            model,
            "--out",
            new,
            "--set",
            "wings=2",
        ],
        "--precision fp8": ["train", photos, "--model", model, "--out", new, "--precision", "fp8"],
        "none.yaml: no such file": [
            "train",
            photos,
            "--model",
            model,
            "--out",
            new,
            "--config",
            folder / "none.yaml",
        ],
        "no model is called 'nonsense'": ["predict", "nonsense", photos],
        "holds no images": ["predict", tuned, folder / "empty"],
        "no such folder": ["info", "nonsense"],
    }


OF_THE_DATA = (
    "there is no file or folder",
    "has one class, 'bird'",
    "4 of 4 images cannot be read",
)


def test_errors_are_one_clear_line(photos, tiny_model, tuned, tmp_path, capsys):  # noqa: F811
    (tmp_path / "empty").mkdir()
    for words, arguments in errors_of_use(photos, tiny_model, tuned, tmp_path).items():
        code, _, err = call(capsys, *arguments)
        assert code == (3 if words in OF_THE_DATA else 2), (words, err)
        assert words in err and "Traceback" not in err, (words, err)
        assert err.splitlines()[-1].startswith("headstart: ") or "images cannot be read" in err, err
    assert not (tmp_path / "new" / "run.json").exists()


def test_wrong_options(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    for arguments in (
        ["train"],
        ["train", photos, "--out", tmp_path / "x", "--shots", "0"],
        ["nothing"],
        ["train", photos, "--model", tiny_model, "--out", tmp_path / "x", "--column", "image"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and "Traceback" not in err, arguments


def test_a_place_that_cannot_be_written(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    """A path below a file, and a file system that takes no files from anybody."""
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "run", "/proc/headstart-run"):
        code, _, err = call(capsys, "train", photos, "--model", tiny_model, "--out", out, *SMALL)
        assert (
            code == 2
            and "Traceback" not in err
            and str(out).removesuffix("/run") in err.splitlines()[-1]
        )


def test_damaged_metadata_does_not_warn(tuned, tmp_path, capfd):
    damaged = tmp_path / "exif.jpg"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # five entries are promised
    Image.new("RGB", (20, 20)).save(damaged, exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(damaged):
        pass
    code, out, err = call(capfd, "predict", tuned, damaged)
    assert code == 0 and str(damaged) in out and not err
