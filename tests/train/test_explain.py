"""Grad-CAM: looks where the evidence is, on networks of maps and of tokens."""

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import AutoImageProcessor, AutoModelForImageClassification, BeitConfig, BeitForImageClassification, BeitImageProcessor
from headstart.errors import ConfigError
from headstart.train.explain import as_map, explain, heat_map
from headstart.train.tasks.image_classification import head_of


def test_heat_is_the_definition(tiny_model):
    """Against the formula with gradients taken by hand from the last map on."""
    model = AutoModelForImageClassification.from_pretrained(tiny_model).eval()
    pixels = torch.randn(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    last = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1].detach()

    def score(values):
        pooled = model.bit.norm(values).mean((2, 3))
        return head_of(model)(pooled)[0, 2]

    slope = torch.autograd.functional.jacobian(score, last)
    expected = (slope.mean((2, 3), keepdim=True) * last).sum(1)[0].relu()
    expected = (expected / expected.max().clamp(min=1e-12)).detach().numpy()
    np.testing.assert_allclose(heat_map(model, pixels, 2), expected, atol=1e-4)


def test_it_looks_at_what_decides(photos, tiny_model, tmp_path):
    """A network tuned to tell red, green and blue is shown a red patch in a grey picture."""
    import headstart

    options = {"steps": 40, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}
    out = headstart.train(photos, model=tiny_model, out=tmp_path / "run", **options).folder
    picture = np.full((20, 20, 3), 110, np.uint8)
    picture[2:9, 11:18] = (230, 30, 30)
    found = explain(AutoModelForImageClassification.from_pretrained(out), AutoImageProcessor.from_pretrained(out), picture, "bird")
    assert found.label == "bird" and found.heat.shape == (20, 20) and found.heat.min() >= 0 and found.heat.max() <= 1
    assert found.heat[2:9, 11:18].mean() > 1.5 * found.heat[11:, :9].mean()
    assert found.overlay().shape == (20, 20, 3) and np.array_equal(found.seen, picture)


def test_tokens_have_places():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20, "image_size": 24}
    config = BeitConfig(**sizes, patch_size=4, num_labels=3, use_relative_position_bias=True)
    torch.manual_seed(0)
    model = BeitForImageClassification(config).eval()
    found = explain(model, BeitImageProcessor(size=24, do_center_crop=False), Image.new("RGB", (40, 30), (200, 30, 60)))
    assert found.heat.shape == (24, 24) and np.isfinite(found.heat).all()
    tokens = torch.arange(1 + 2 * 3).float().view(1, 7, 1)
    assert torch.equal(as_map(tokens, torch.zeros(1, 3, 4, 6)), torch.tensor([[[1.0, 2, 3], [4, 5, 6]]]))


def test_mistakes(tiny_model):
    model = AutoModelForImageClassification.from_pretrained(tiny_model)
    processor = AutoImageProcessor.from_pretrained(tiny_model)
    picture = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ConfigError, match="no class 'wing'"):
        explain(model, processor, picture, "wing")
    torch.nn.init.zeros_(head_of(model).weight)
    assert explain(model, processor, picture).heat.max() == 0
