"""Every example of the reference pages runs with only its import line changed.

The checkpoints they name are replaced by small random ones of the same class, the images they
download by one of ours.
"""

import io
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import headstart
from conftest import SHARED, data_dir
from contract.test_models import BEIT, BIT, CVT, SEG, YOSO

SIZES = {"Bit": BIT, "Cvt": CVT, "Beit": BEIT, "Yoso": YOSO}
PAGES = sorted((SHARED / "seeds").glob("*.txt")) if (SHARED / "seeds").is_dir() else []


def examples() -> dict[str, str]:
    """Code of the examples by class and number, of all pages; equal ones once."""
    found: dict[str, str] = {}
    for page in PAGES:
        code: list[str] = []
        for line in [*page.read_text(encoding="utf-8").splitlines(), "## end"]:
            text = line.strip()
            if text.startswith((">>> ", "... ")):
                # Some copies of the pages have lost the indentation of what follows a `with`.
                lost = (
                    code
                    and code[-1].startswith("with ")
                    and text.startswith("...")
                    and text[4] != " "
                )
                code.append("    " + text[4:] if lost else text[4:])
            elif text in (">>>", "..."):
                code.append("")
            elif code and (
                text.startswith(("#", "class ", "( ", "```", "forward", "Example"))
                or "`class" in text
            ):
                block, code = "\n".join(code), []
                for part in re.split(
                    r"\n(?=import torch\nfrom transformers)|(?<!import torch)\n(?=from"
                    r" transformers)",
                    block,
                ):
                    # a Flax example that names the PyTorch class by mistake
                    if 'return_tensors="np"' in part:
                        part = re.sub(r"(?<!Flax)BeitFor", "FlaxBeitFor", part)
                    names = re.findall(r"from transformers import (.*)", part)
                    if names and part not in found.values():
                        used = names[0].split(", ")[-1].split("\n")[0]
                        found[f"{used}-{sum(k.startswith(used + '-') for k in found)}"] = part
    return found


EXAMPLES = examples()


def framework(code: str) -> str:
    if "Flax" in code:
        return "flax"
    return "keras" if "import TF" in code or ", TF" in code else "torch"


def checkpoint(cls_name: str, folder: Path) -> Path:
    """A small random checkpoint for a class of the pages, with its image processor or tokenizer."""
    plain = re.sub("^(TF|Flax)", "", cls_name)
    family = next(f for f in SIZES if plain.startswith(f))
    settings = SEG if "Segmentation" in plain else SIZES[family]
    if family == "Yoso":
        settings = settings | {"vocab_size": 50265}
    cls = getattr(headstart, plain)
    torch.manual_seed(0)
    cls(cls.config_class(**settings)).save_pretrained(folder)
    size = settings.get("image_size", 64)
    if family == "Bit":
        headstart.BitImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(
            folder
        )
    elif family == "Beit":
        square = {"height": size, "width": size}
        headstart.BeitImageProcessor(size=square, crop_size=square).save_pretrained(folder)
    elif family == "Cvt":
        headstart.ConvNextImageProcessor(size={"shortest_edge": size}).save_pretrained(folder)
    else:
        headstart.AutoTokenizer.from_pretrained(
            data_dir("tokenizer", "roberta-base")
        ).save_pretrained(folder)
    return folder


@pytest.fixture
def stand_ins(monkeypatch):
    """`datasets` and `requests`, as far as the pages use them."""
    content = sorted(data_dir("images", "imagenet_samples").glob("*.JPEG"))[0].read_bytes()
    image = Image.open(io.BytesIO(content))
    modules = {
        "datasets": {"load_dataset": lambda *args, **kwargs: {"test": {"image": [image]}}},
        "requests": {"get": lambda *args, **kwargs: types.SimpleNamespace(raw=io.BytesIO(content))},
    }
    for name, values in modules.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)


def test_examples_were_found():
    if not PAGES:
        pytest.skip("the reference pages are not here")
    assert len(EXAMPLES) >= 24, sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, stand_ins, tmp_path, capsys):
    code = EXAMPLES[name]
    kind = framework(code)
    needed = {"torch": "torch", "keras": "tensorflow", "flax": "flax"}[kind]
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    cls = next(
        (
            n
            for n in re.findall(r"\b(?:TF|Flax)?(?:Bit|Cvt|Beit|Yoso)\w+", code)
            if not n.endswith(("Config", "Processor"))
        ),
        None,
    )
    code = code.replace("from transformers import", "from headstart import")
    if "uw-madison" in code:  # the page prints [MASK]; the checkpoint's vocabulary is RoBERTa's
        code = code.replace("is [MASK].", "is <mask>.")
    if ".from_pretrained(" in code:
        folder = checkpoint(cls, tmp_path / "checkpoint")
        code = re.sub(r'from_pretrained\(\s*"[^"]+"', f'from_pretrained("{folder}"', code)
    exec(compile(code, name, "exec"), {})
    assert "Traceback" not in capsys.readouterr().err
