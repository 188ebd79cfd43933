"""The public face: names, what importing costs, and the pages' signatures."""

import inspect
import subprocess
import sys

import pytest

import headstart
from headstart.registry import FAMILIES, exports

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


def test_families_do_not_import_each_other():
    """A family's room needs nothing from another's; base modules need none of the rooms."""
    root = headstart.__path__[0]
    from pathlib import Path

    for path in Path(root).rglob("*.py"):
        text, parts = path.read_text(), path.relative_to(root).parts
        own = parts[1] if parts[0] == "models" and len(parts) > 2 else None
        for family in FAMILIES:
            used = (
                f"headstart.models.{family}" in text
                and 'import_module(f"headstart.models.{name}")' not in text
            )
            assert not used or family == own, (
                f"{path.name} of {own or 'the house'} needs the room {family}"
            )


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
