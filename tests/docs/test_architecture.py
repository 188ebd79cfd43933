"""The five steps of docs/architecture.md, followed for a toy family and a toy engine."""

import re
import textwrap

import pytest
import torch

import headstart
import headstart.models
from conftest import ROOT
from headstart import registry
from headstart.engine import engines
from headstart.pipelines.base import pipeline
from photo_data import make_photo

STEPS = {
    "config.py": (
        """
        from dataclasses import field
        from headstart.config import PreTrainedConfig, config_class

        @config_class
        class ToyConfig(PreTrainedConfig):
            model_type = "toy"
            num_channels: int = 3
            width: int = 4
        """
    ),
    "torch.py": (
        """
        from torch import nn
        from headstart.models.toy.config import ToyConfig
        from headstart.nn.losses import classification_loss
        from headstart.nn.torch import PreTrainedModel
        from headstart.outputs import ImageClassifierOutputWithNoAttention

        class ToyForImageClassification(PreTrainedModel):
            config_class = ToyConfig
            base_model_prefix = "toy"
            heads = ("classifier",)

            def __init__(self, config):
                super().__init__(config)
                self.convolution = nn.Conv2d(3, config.width, 3)
                self.classifier = nn.Linear(config.width, config.num_labels)
                self.post_init()

            def forward(
                self, pixel_values=None, labels=None, output_hidden_states=None, return_dict=None
            ):
                maps = self.convolution(pixel_values)
                logits = self.classifier(maps.mean((2, 3)))
                loss = None if labels is None else classification_loss(logits, labels, self.config)
                wanted = self.wants("output_hidden_states", output_hidden_states)
                states = (maps,) if wanted else None
                output = ImageClassifierOutputWithNoAttention(loss, logits, states)
                return self.finish(output, return_dict)
        """
    ),
    "image.py": (
        """
        from headstart.models.bit.image import BitImageProcessor

        class ToyImageProcessor(BitImageProcessor):
            image_processor_type = "ToyImageProcessor"
        """
    ),
    "__init__.py": (
        """
        from headstart.registry import Family

        FAMILY = Family(
            model_type="toy",
            exports={
                "ToyConfig": "headstart.models.toy.config",
                "ToyForImageClassification": "headstart.models.toy.torch",
                "ToyImageProcessor": "headstart.models.toy.image",
            },
            tasks={
                "base": "ToyForImageClassification",
                "image-classification": "ToyForImageClassification",
            },
            processor="ToyImageProcessor",
        )
        """
    ),
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Steps 1 to 5: the files of a family in `headstart.models`, and its name in the registry."""
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    for name, text in STEPS.items():
        (folder / name).write_text(textwrap.dedent(text))
    paths = [*headstart.models.__path__, str(folder.parent)]
    monkeypatch.setattr(headstart.models, "__path__", paths)
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, "toy"))
    registry.families.cache_clear()
    yield
    registry.families.cache_clear()


def test_a_family_of_five_steps_loads_trains_and_predicts(toy, photos, tmp_path):
    torch.manual_seed(0)
    config = headstart.ToyConfig(width=5, num_labels=2)
    model = headstart.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(tmp_path / "toy")
    size = {"height": 16, "width": 16}
    headstart.ToyImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path / "toy")
    result = headstart.train(
        photos, model=tmp_path / "toy", out=tmp_path / "run", steps=3, batch_size=8, device="cpu"
    )
    assert 0 <= result.metrics["accuracy"] <= 1
    classify = pipeline("image-classification", tmp_path / "run")
    assert isinstance(classify.image_processor, headstart.ToyImageProcessor)
    labels = {each["label"] for each in classify(make_photo((9, 9, 9), 0))}
    assert labels == {"bird", "cat", "dog"}
    fast = headstart.optimize(headstart.AutoModelForImageClassification.from_pretrained(
        tmp_path / "run"
    ), engine="torch")  # fmt: skip
    pixels = torch.randn(1, 3, 16, 16)
    assert fast(pixel_values=pixels).logits.shape == (1, 3)


def test_the_page_names_what_is_there():
    """Tables, modules and folders that the page of steps sends a reader to."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "headstart"
    layers = text.split("```text\n")[1].split("```")[0]
    for line in layers.splitlines():
        for name in line.split("  ")[0].replace(" ", "").split(","):
            part = source / name.split("/")[0]
            assert part.exists() or part.with_suffix(".py").exists() or name == "serving", name
    assert engines.ENGINES and "engine.engines.ENGINES" in text
    files = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.]+)`", text)
    named = [each for each in files if "NAME" not in each and "/toy/" not in each]
    assert len(named) >= 6 and all((ROOT / each).exists() for each in named), named
    for heading in ("family", "task", "engine", "file format"):
        steps = text.split(f"## Add a{'n' if heading == 'engine' else ''} {heading}")[1].split(
            "##"
        )[0]
        assert [line[0] for line in steps.splitlines() if line[:1].isdigit()] == list("12345")
