"""The public face: names, what importing costs, and the pages' signatures."""

import inspect
import subprocess
import sys

import pytest

import headstart
from conftest import ROOT
from headstart.registry import exports

# The pages' classes, and what their examples use around them.
PAGES = [
    "BitConfig",
    "BitImageProcessor",
    "BitModel",
    "BitForImageClassification",
    "BitBackbone",
    "CvtConfig",
    "CvtModel",
    "CvtForImageClassification",
    "TFCvtModel",
    "TFCvtForImageClassification",
    "BeitConfig",
    "BeitImageProcessor",
    "BeitFeatureExtractor",
    "BeitModel",
    "BeitForMaskedImageModeling",
    "BeitForImageClassification",
    "BeitForSemanticSegmentation",
    "BeitBackbone",
    "FlaxBeitModel",
    "FlaxBeitForMaskedImageModeling",
    "FlaxBeitForImageClassification",
    "YosoConfig",
    "YosoModel",
    "YosoForMaskedLM",
    "YosoForSequenceClassification",
    "YosoForMultipleChoice",
    "YosoForTokenClassification",
    "YosoForQuestionAnswering",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoTokenizer",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedLM",
]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_name_of_the_pages_is_exported():
    assert set(PAGES) <= set(dir(headstart))


def test_editors_and_type_checkers_see_every_public_name():
    done = subprocess.run([sys.executable, "scripts/stubs.py", "--check"], cwd=ROOT)
    assert done.returncode == 0


def test_star_import_gives_every_public_name():
    names = {name for name in dir(headstart) if not name.startswith("__")}
    assert set(headstart.__all__) == names
    for name in ("train", "evaluate", "optimize", "export", "pipeline"):
        assert inspect.isfunction(getattr(headstart, name)), name
    assert "model" in inspect.signature(headstart.train).parameters


def test_importing_loads_no_framework():
    heavy = "torch jax keras tensorflow numpy huggingface_hub PIL"
    code = f"import sys, headstart; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run(code) == "[]"
    assert (
        run("import headstart; headstart.BitConfig(); import sys; print('torch' in sys.modules)")
        == "False"
    )


def test_importing_prints_nothing():
    assert run("import headstart; from headstart import BitModel, BitImageProcessor") == ""


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'BitForEverything'"):
        headstart.BitForEverything  # noqa: B018


@pytest.mark.parametrize("name", [n for n in exports() if n.endswith("Config")])
def test_configurations_document_every_argument(name):
    cls = getattr(headstart, name)
    text = inspect.getdoc(cls)
    for argument in inspect.signature(cls).parameters:
        if argument not in ("args", "kwargs"):
            assert (
                f"\n    {argument}" in text.replace("Args:", "Args:\n") or f"{argument}:" in text
            ), f"{name} does not document {argument}"
