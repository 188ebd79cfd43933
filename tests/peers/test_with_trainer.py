"""Every snippet of docs/with-trainer.md runs with small networks in place of the published ones."""

import re
from importlib.util import find_spec

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

import headstart  # noqa: E402
from conftest import ROOT  # noqa: E402
from contract.test_models import BEIT, BIT, SEG, YOSO  # noqa: E402

PAGE = (ROOT / "docs" / "with-trainer.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"<!-- not run: ([^\n]*) -->\n```python\n(.*?)```", PAGE, re.S)
STAND_INS = {
    "google/bit-50": ("BitForImageClassification", BIT),
    "microsoft/beit-base-patch16-224-pt22k-ft22k": ("BeitForImageClassification", BEIT),
    "microsoft/beit-base-patch16-224-pt22k": ("BeitForMaskedImageModeling", BEIT),
    "microsoft/beit-base-finetuned-ade-640-640": ("BeitForSemanticSegmentation", SEG),
    "uw-madison/yoso-4096": ("YosoForMaskedLM", YOSO),
}
SIDES = {"BitForImageClassification": 64, "BeitForSemanticSegmentation": 64}


def stand_in(folder, cls, values):
    """A small network of a class, with its processor or tokenizer."""
    network = getattr(headstart, cls)
    if cls.startswith("Yoso"):
        texts = ["a fine film", "a dull one", "Ann sat, she ran home"] * 4
        tokenizer = headstart.YosoTokenizer.train(texts, vocab_size=300)
        tokenizer.save_pretrained(folder)
        values = values | {"vocab_size": len(tokenizer)}
    else:
        kind = "BitImageProcessor" if cls.startswith("Bit") else "BeitImageProcessor"
        side = SIDES.get(cls, 32)
        getattr(headstart, kind)(size=side, crop_size=side).save_pretrained(folder)
    network(network.config_class(**values)).save_pretrained(folder)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # those of the other libraries
def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "\n".join(
        text for needs, text in SNIPPETS if "lightning" not in needs or find_spec("lightning")
    )
    for name, (cls, values) in STAND_INS.items():
        stand_in(tmp_path / cls, cls, values)
        code = code.replace(f'"{name}"', repr(str(tmp_path / cls)))
    assert not re.search('"(google|microsoft|uw-madison)/', code)
    page: dict = {"__name__": "page"}
    exec(compile(code, "docs/with-trainer.md", "exec"), page)
    tasks = ("images", "segmentation", "masked", "texts", "tokens", "questions", "choices")
    folders = [f"{task}/best" for task in (*tasks, "language")]
    folders += [f"{task}/checkpoint-2" for task in (*tasks, "language")]
    folders += ["accelerate", "merged"]
    for folder in folders:
        assert (tmp_path / "runs" / folder / "config.json").is_file(), folder
        assert list((tmp_path / "runs" / folder).glob("*.safetensors")), folder
    assert page["classifier"].config.id2label == {0: "cat", 1: "dog"}
    assert not page["filler"].randomly_initialized
