"""CvT's recipe.

The paper's numbers for the paper's data sets, and `train` takes it by default.
"""

import json

import numpy as np
import pytest

import headstart
from headstart.models.cvt.recipe import recipe
from headstart.recipe import Facts


@pytest.mark.parametrize(
    ("examples", "steps"), [(2_040, 500), (50_000, 10_000), (1_281_167, 20_000)]
)
def test_the_papers_numbers(examples, steps):
    got = recipe(Facts(examples, 100, 500, 500, model_image_size=224))
    assert (got.steps, got.batch_size, got.crop, got.momentum, got.optimizer, got.schedule) == (
        steps,
        512,
        384,
        0.9,
        "sgd",
        "cosine",
    )
    assert (got.weight_decay, got.clip_grad, got.mixup, got.resize) == (0, 1, 0, 448)


def test_small_networks_keep_their_size():
    assert recipe(Facts(100, model_image_size=32)).crop == 32
    assert recipe(Facts(100, model_image_size=512)).crop == 512
    assert recipe(Facts(100)).crop == 384


def test_train_takes_it(tmp_path):
    config = headstart.CvtConfig(embed_dim=[8, 16, 32], depth=[1, 1, 1], num_heads=[1, 2, 4])
    model = headstart.CvtForImageClassification(config)
    model.save_pretrained(tmp_path / "model")
    headstart.ConvNextImageProcessor(size=48, crop_pct=1.0).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.integers(0, 100, (40, 48, 48, 3)) + labels[:, None, None, None] * 120).astype(
        "uint8"
    )  # dark and bright
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    result = headstart.train(
        tmp_path / "data.npz",
        model=tmp_path / "model",
        out=tmp_path / "out",
        steps=40,
        lr=0.03,
        batch_size=16,
    )
    assert (result.recipe.name, result.recipe.optimizer, result.recipe.crop) == ("cvt", "sgd", 48)
    assert result.metrics["accuracy"] > 0.9
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "cvt"
    assert len(headstart.pipeline("image-classification", tmp_path / "out")(images[0])) == 2
