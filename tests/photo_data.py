"""Small models and small data sets that every training test may use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import BitConfig, BitForImageClassification, BitImageProcessor

torch.set_num_threads(1)  # tiny networks gain nothing from more, and lose much on a busy machine

CLASSES = {"bird": (220, 40, 40), "cat": (40, 200, 60), "dog": (50, 60, 220)}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A BiT of a few thousand weights with its processor: something to tune."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def write_tiny_model(folder: Path) -> Path:
    """Writes the tiny BiT, with random weights."""
    torch.manual_seed(0)
    config = BitConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4, num_labels=5
    )
    BitForImageClassification(config).save_pretrained(folder)
    size = {"height": 20, "width": 20}
    BitImageProcessor(
        size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def make_photo(
    color: tuple[int, int, int], seed: int, width: int = 30, height: int = 24
) -> np.ndarray:
    """Noise around a color: classes that a tiny network tells apart."""
    noise = np.random.default_rng(seed).normal(0, 40, (height, width, 3))
    return (np.array(color) + noise).clip(0, 255).astype(np.uint8)


def make_class_folders(folder: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(make_photo(CLASSES[label], first_seed + i)).save(
                folder / label / f"{label}_{i}.png"
            )
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Class folders with train and val: 6, 5 and 4 training images, 4 of each for validation."""
    folder = tmp_path_factory.mktemp("photos")
    make_class_folders(folder / "train", {"bird": 6, "cat": 5, "dog": 4})
    make_class_folders(folder / "val", {"bird": 4, "cat": 4, "dog": 4}, first_seed=100)
    return folder


ODD_SHAPES = (
    (90, 120, 3), (120, 90, 3), (61, 200, 3), (400, 40, 3), (40, 400, 3), (30, 20, 3), (1, 1, 3),
    (1, 70, 3), (70, 1, 3), (48, 48, 3), (33, 47, 1), (50, 60, 4), (700, 3, 3),
)  # fmt: skip


def odd_photo(shape, seed=0):
    """Noise under soft shapes: filters overshoot on it."""
    generator = np.random.default_rng([seed, *shape])
    coarse = generator.integers(0, 256, (3, 4, shape[2]), dtype=np.uint8)
    soft = np.stack(
        [
            np.asarray(Image.fromarray(each).resize(shape[1::-1]))
            for each in coarse.transpose(2, 0, 1)
        ],
        axis=-1,
    )
    noise = generator.integers(-90, 91, shape)
    return np.clip(soft.astype(int) + noise, 0, 255).astype(np.uint8)


def pillow_levels(processor, image):
    """The definition, (1, 3, R, S): Pillow's resize, then a crop with zeros around."""
    size, crop = processor.resized_size(*image.shape[:2]), processor.target[1]
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    height, width = size
    whole = np.asarray(
        Image.fromarray(rgb).resize((width, height), Image.Resampling(processor.resample))
    )
    rows, columns = crop or (height, width)
    canvas = np.zeros((rows, columns, 3), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    part = whole[max(top, 0) : max(top, 0) + rows, max(left, 0) : max(left, 0) + columns]
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas.transpose(2, 0, 1)[None]
