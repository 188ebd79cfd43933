"""Every snippet of the README and of the docs runs, in the order of its page, with small networks
in place of the published ones.

A block that cannot run here has the reason above it: <!-- not run: needs a network of processes -->
"""

import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from conftest import ROOT
from contract.test_models import BEIT, BIT, CVT, SEG, YOSO
from headstart import errors, recipe, registry
from headstart.cli.app import main
from headstart.config import COMPATS
from headstart.engine import engines, exporting, search
from headstart.tasks import TASKS

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# they choose a backend, which one process does once
OWN_PROCESS = ("docs/keras.md", "docs/flax.md")
FENCE = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.S | re.M)
RUN = ("python", "bash", "console")
# Names that need a download → a small network of the same class here. The longest first, as one may
# begin like another.
STAND_INS = {
    "google/bit-50": "bit",
    "BiT-M-R50x1": "bit",
    "microsoft/cvt-13": "cvt",
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit",
    "beit_base_patch16_224_pt22k_ft22k": "segmenter",
    "beit_base_patch16_224_pt22k": "masked",
    "uw-madison/yoso-4096": "yoso",
    "dall-e": "codes",
}
SHORT = (
    "--steps 2 --batch-size 4 --set micro_batch=4 --workers 1 --device cpu --set eval_every=2 --set"
    " checkpoint_every=2"
)

ARRAYS = (  # what keras.md fits on
    "x_train = x_val = np.zeros((4, 3, 32, 32), 'float32'); y_train = y_val = np.array([0, 1,"
    " 0, 1])"
)


@dataclass
class Block:
    """A fenced block.

    Its language, why it is not run, its text, and the output that the next block promises.
    """

    language: str
    skip: str
    text: str
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    found, text, end = [], page.read_text(encoding="utf-8"), None
    for match in FENCE.finditer(text):
        skip, language, body = match[1] or "", match[2].strip(), match[3]
        if (
            not language
            and found
            and found[-1].language == "python"
            and text[end : match.start()].strip() == ""
        ):
            found[-1].output = body
        found.append(Block(language, skip, body))
        end = match.end()
    return found


def images(
    folder: Path, names: list[str], rng: np.random.Generator, count: int = 8, side: int = 64
) -> None:
    """A few images a class, each class with a color of its own."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (side, side, 3), np.uint8)
            pixels[..., number % 3] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def networks(folder: Path) -> None:
    """The stand-ins: a random network of each family, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    headstart.DalleImageTokenizer(64, 8, blocks_per_group=1, decoder_init_size=8).save_pretrained(
        folder / "codes"
    )
    square = {"height": 32, "width": 32}
    small = headstart.BitImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    patches = headstart.BeitImageProcessor(size=square)
    for name, cls, values, processor in [
        ("bit", "BitForImageClassification", BIT, small),
        (
            "cvt",
            "CvtForImageClassification",
            CVT,
            headstart.ConvNextImageProcessor(size={"shortest_edge": 64}),
        ),
        ("beit", "BeitForImageClassification", BEIT, patches),
        (
            "segmenter",
            "BeitForSemanticSegmentation",
            SEG,
            headstart.BeitImageProcessor(size={"height": 64, "width": 64}),
        ),
        ("masked", "BeitForMaskedImageModeling", BEIT | {"vocab_size": 64}, patches),
    ]:
        made = getattr(headstart, cls)
        made(made.config_class(**values)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tokenizer = headstart.YosoTokenizer.train(
        ["what a fine film", "the capital of France is Paris"] * 4, vocab_size=300
    )
    tokenizer.save_pretrained(folder / "yoso")
    vocabulary = {"vocab_size": len(tokenizer), "max_position_embeddings": 600}
    headstart.YosoForMaskedLM(headstart.YosoConfig(**(YOSO | vocabulary))).save_pretrained(
        folder / "yoso"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the pages take for granted.

    Photos, masks, texts, small networks, and the result of one training.
    """
    folder, rng = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)
    images(folder / "photos", ["ants", "bees"], rng, count=56)  # enough to be evaluated on
    images(folder / "holiday", ["sea"], rng)
    images(folder / "new-photos", ["ants", "wasps"], np.random.default_rng(1))
    for name in ("holiday.jpg", "photo.jpg", "cat.jpg"):
        shutil.copy(folder / "photos" / "ants" / "0.png", folder / name)
    rows = [f"photos/{name}/{i}.png,{name}" for name in ("ants", "bees") for i in range(8)]
    (folder / "photos.csv").write_text("\n".join(["file,species", *rows]) + "\n")
    texts = [f"{word} film {i},{word}" for word in ("good", "bad") for i in range(8)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    for name in ("street", "more"):
        images(folder / name, ["images", "masks"], rng)
        for i in range(8):
            Image.fromarray(rng.integers(0, 3, (64, 64), np.uint8)).save(
                folder / name / "masks" / f"{i}.png"
            )
    (folder / "labelled").symlink_to("photos")
    (folder / "recipe.yaml").write_text(
        next(
            block.text
            for block in blocks(DOCS / "commands" / "train.md")
            if block.language == "yaml"
        )
    )
    networks(folder / "stand-ins")
    (folder / "novel.txt").write_text("what a <mask> film " * 200)
    run("headstart train photos --model google/bit-50 --tune head --out runs/photos", folder)
    (folder / "runs" / "flowers").symlink_to("photos")
    (folder / "runs" / "my_yoso").symlink_to(folder / "stand-ins" / "yoso")
    return folder


def localised(text: str, folder: Path) -> str:
    """The text with names of downloads replaced."""
    for name in sorted(STAND_INS, key=len, reverse=True):
        text = re.sub(
            rf"(?<![\w/-]){re.escape(name)}(?![\w.-])",
            str(folder / "stand-ins" / STAND_INS[name]),
            text,
        )
    return text


def run(text: str, folder: Path) -> None:
    """Runs the `headstart` commands of a block here.

    Other commands are not part of the project and may not be left unmarked.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in localised(text.replace("\\\n", " "), folder).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if not words:
                continue
            assert words[0] == "headstart", (
                f"{line!r}: give the reason above the block if it cannot run"
            )
            if (
                words[1] in ("train", "distill")
                and "--dry-run" not in words
                and "--resume" not in words
            ):
                target = Path(words[words.index("--out") + 1])
                if target.exists():
                    shutil.rmtree(target) if not target.is_symlink() else target.unlink()
                words += (
                    SHORT.split() if "head" not in words else ["--workers", "1", "--device", "cpu"]
                )
            with pytest.raises(SystemExit) as ended, redirect_stderr(io.StringIO()) as printed:
                main(words[1:])
            usual = (0, 1) if words[1] == "audit" else (0,)  # 1: the audit found something
            assert (ended.value.code or 0) in usual, f"{line}: {printed.getvalue()[-2000:]}"
    finally:
        os.chdir(before)


def pages() -> list[str]:
    return [
        str(page.relative_to(ROOT))
        for page in PAGES
        if any(block.language in RUN for block in blocks(page))
    ]


def test_blocks_name_their_language():
    """A block without one is the output of the Python block above it."""
    for page in PAGES:
        found = blocks(page)
        for before, block in zip([None, *found], found, strict=False):
            assert block.language in (*RUN, "yaml", "json", "text") or (
                before and before.language == "python"
            ), f"{page.name}: {block.text}"


@pytest.mark.parametrize("page", [page for page in pages() if page not in OWN_PROCESS])
def test_page(page, world, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "page"
    shutil.copytree(world, folder, symlinks=True)
    shutil.rmtree(folder / "stand-ins")
    (folder / "stand-ins").symlink_to(world / "stand-ins")
    monkeypatch.chdir(folder)
    # the others compile for many seconds
    monkeypatch.setattr(search, "candidates", lambda name, *_: [name or "torch"])
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(ROOT / page):
        if block.skip or block.language not in RUN:
            continue
        if block.language != "python":
            run(block.text, folder)
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(localised(block.text, folder), page, "exec"), names)
        if block.output is not None:
            assert printed.getvalue() == block.output, page


@pytest.mark.parametrize("page", OWN_PROCESS)
def test_page_with_a_backend_of_its_own(page, world, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(world, folder, symlinks=True)
    code = [
        localised(block.text, world)
        for block in blocks(ROOT / page)
        if block.language == "python" and not block.skip
    ]
    script = "\n".join(["import numpy as np", ARRAYS, *code]).replace(
        '"KERAS_BACKEND"] = "jax"', '"KERAS_BACKEND"] = "torch"'
    )  # JAX compiles long
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_reasons_are_given_and_few():
    """A block is left out for what this machine lacks, not to be rid of it."""
    allowed = (
        "installs",
        "needs ",
        "a minute of training",
        "minutes of training",
        "the whole",
        "serves until",
    )
    for page in PAGES:
        for block in blocks(page):
            assert not block.skip or block.skip.startswith(allowed), f"{page.name}: {block.skip}"


def hooks() -> ModuleType:
    """docs/hooks.py, which fills the pages."""
    sys.path.insert(0, str(DOCS))
    try:
        return import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))


def test_every_command_has_a_page_with_its_options():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "commands").glob("*.md"))
    for name in hooks().functions():
        assert f"<!-- options of {name} -->" in text, f"docs/commands has no options of {name}"
        assert "| `--" in hooks().options(name) or " " in name  # one of a group may have none


def choices() -> dict[tuple[str, str], tuple[str, ...]]:
    """Command and option → the values that the code takes."""
    kinds = typing.get_type_hints(recipe.Recipe)
    found = {
        ("train", each): typing.get_args(kinds[each])
        for each in ("tune", "optimizer", "schedule", "precision")
    }
    tasks = tuple(each for each in TASKS if "distillation" not in each)
    return found | {
        ("train", "task"): tasks,
        ("train", "recipe"): tuple(
            each for each in recipe.RECIPES if not each.startswith("distill")
        ),
        ("distill", "recipe"): tuple(each for each in recipe.RECIPES if each != "text"),
        ("distill", "precision"): found["train", "precision"],
        ("optimize", "engine"): tuple(engines.ENGINES),
        ("optimize", "precision"): tuple(engines.PRECISIONS),
        ("optimize", "goal"): typing.get_args(search.Goal),
        ("export", "to"): tuple(exporting.SUFFIXES),
        ("convert", "compat"): COMPATS,
        ("models", "family"): registry.FAMILIES,
    }


@pytest.mark.parametrize("command, option", choices())
def test_the_page_of_a_command_lists_the_values_of_an_option(command, option):
    row = re.search(rf"^\| `--{option}\b.*$", hooks().options(command), re.M)[0]
    for value in choices()[command, option]:
        assert re.search(rf"(?<![\w-]){value}(?![\w-])", row), f"{value} is missing: {row}"


def test_the_page_of_a_command_gives_every_default():
    for name in hooks().functions():
        for row in re.findall(r"^\| `--.*$", hooks().options(name), re.M):
            flag, default, text = row.strip("| ").split(" | ")
            assert default and text, row
            assert default != "–" or "default" not in text.lower(), row
    assert "| `--draws N`{ .whole } | `1` |" in hooks().options("train")
    assert "| `--lr X`{ .whole } | of the recipe |" in hooks().options("train")


def test_troubleshooting_explains_every_error_code():
    """Codes of exceptions, and those that the command line gives to others."""
    classes = [each for each in vars(errors).values() if inspect.isclass(each)]
    kinds = {each.code: each for each in classes if issubclass(each, errors.HeadstartError)}
    source = "".join(path.read_text() for path in (ROOT / "src/headstart/cli").glob("*.py"))
    others = set(re.findall(r'(?:"code": |emit_error\()"([\w-]+)"', source))
    others |= set(re.findall(r'emit_error\("(\w+)" if call else "(\w+)"', source)[0])
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| \[`([\w-]+)`\]\(#(\w+)\) \|", page, re.M))
    assert {"usage", "bug", "path", "system"} <= others
    assert set(listed) == set(kinds) | others
    for code, anchor in listed.items():
        title = kinds[code].__name__ if code in kinds else code
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert anchor == title.lower() and f"`{code}`" in section
        for word in ("What", "Why", "Fix"):
            assert f"**{word}.**" in section, f"{title}: {word}"
        if code in kinds:
            row = f"](#{anchor}) | {kinds[code].exit_code} | `{title}`"
            assert row in page, row


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f"{page.relative_to(DOCS)}" in listed, f"mkdocs.yml does not list {page.name}"


def test_images_are_small():
    found = list((DOCS / "images").iterdir())
    assert {"demo.svg", "train.svg", "report.png"} <= {each.name for each in found}
    for each in found:
        assert each.stat().st_size < 150_000, each.name


def test_results_that_pages_name_are_there():
    for page in PAGES:
        for name in re.findall(
            r"`python ((?:benchmarks|examples)/\w+\.py)", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
        for name in re.findall(r"`(tests/[\w/*.]+)`", page.read_text(encoding="utf-8")):
            assert list(ROOT.glob(name)), f"{page.name} names {name}"
    assert json.loads((ROOT / "benchmarks" / "results" / "bit.json").read_text())
