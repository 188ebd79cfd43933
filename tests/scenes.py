"""Made-up scenes of three classes, and quick runs over them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import BeitConfig, BeitForMaskedImageModeling, BeitImageProcessor
from headstart.data.masks import IGNORED
from headstart.data.options import DataOptions
from headstart.tasks import task_class

# of the classes of the made-up scenes
COLORS = np.array([(220, 40, 40), (40, 200, 60), (50, 60, 220)], np.uint8)


def scene(seed: int, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Three colors in vertical stripes of random width with noise, and their classes.

    The last row has no class.
    """
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(8, width - 8, 2))
    classes = np.searchsorted(edges, np.arange(width), side="right")[None].repeat(height, 0)
    classes = rng.permutation(3)[classes]
    image = (COLORS[classes] + rng.normal(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)
    classes[-1] = IGNORED
    return image, classes.astype(np.uint8)


def write_scenes(folder: Path, count: int, first: int = 0, mode: str = "L") -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, classes = scene(first + i)
        Image.fromarray(image).save(folder / "images" / f"s{i}.png")
        if mode == "RGB":
            mask = Image.fromarray(
                np.where((classes == IGNORED)[..., None], 0, COLORS[np.minimum(classes, 2)]).astype(
                    np.uint8
                )
            )
        else:
            mask = Image.fromarray(classes)
        mask.save(folder / "masks" / f"s{i}.png")
    return folder


def task_of(path: Path, **values):
    return task_class("semantic-segmentation").read(path, DataOptions(**values))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", 6)
    write_scenes(folder / "val", 5, first=100)
    (folder / "classes.json").write_text(
        json.dumps({"classes": ["red", "green", "blue"], "palette": COLORS.tolist()})
    )
    return folder


@pytest.fixture(scope="session")
def tiny_beit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-beit")
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        vocab_size=16,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        drop_path_rate=0.0,
        auxiliary_channels=16,
    )
    BeitForMaskedImageModeling(config).save_pretrained(folder)
    BeitImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    return folder
