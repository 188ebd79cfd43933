"""Features and labels of small data sets, for benchmarks of heads: eight sets of five sources.

Images go through a frozen network; SST-2 has no pretrained network here and takes latent semantic
analysis of words and word pairs.
"""

import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headstart.data.options import DataOptions
from headstart.features.extract import extractor_of
from headstart.progress import progress_for_terminal
from headstart.recipe import Recipe
from headstart.tasks.image_classification import ImageClassification

SETS = (
    "CIFAR-10",
    "EuroSAT",
    "flowers",
    "pneumonia",
    "digits",
    "CIFAR-100 coarse, unseen",
    "CIFAR-100 coarse, seen",
    "SST-2 words",
)
SHEETS = 6  # of 1,000 images that bit-mini was pretrained on


def features_and_labels(name: str, data: Path, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and classes (N,) of a set, without exact duplicates.

    Args:
        name: One of `SETS`.
        data: Folder with `images` and `text`.
        model: The network.
    """
    if name == "SST-2 words":
        return words(data / "text" / "glue" / "SST-2")
    images, folders = data / "images", {"EuroSAT": "eurosat", "flowers": "flowers102"}
    if name in folders:
        return through(images / folders[name], model)
    with tempfile.TemporaryDirectory() as folder:
        pixels, labels = arrays(name, images)
        np.savez(Path(folder) / "train.npz", images=pixels, labels=labels)
        return through(Path(folder), model)


def arrays(name: str, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, H, W, 3) and classes (N,) of a set of arrays."""
    if name == "CIFAR-10":
        parts = [np.load(images / "cifar10" / f"{each}.npz") for each in ("train_100shot", "val")]
    elif name == "pneumonia":
        parts = [np.load(images / "pneumoniamnist" / f"{each}.npz") for each in ("train", "val")]
    elif name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        gray = (digits.images / 16 * 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1), digits.target
    elif name == "CIFAR-100 coarse, unseen":
        part = np.load(images / "cifar100" / "val.npz")
        return part["images"], part["coarse_labels"]
    else:
        folder = images / "cifar100"
        sheets = sorted((folder / "train").glob("sheet_*.avif"))[:SHEETS]
        cut = [
            np.asarray(Image.open(sheet).convert("RGB"))
            .reshape(25, 32, 40, 32, 3)
            .swapaxes(1, 2)
            .reshape(-1, 32, 32, 3)
            for sheet in sheets
        ]
        pixels = np.concatenate(cut)
        return pixels, np.load(folder / "train_labels.npz")["coarse_labels"][: len(pixels)]
    return tuple(np.concatenate([part[key] for part in parts]) for key in ("images", "labels"))


def through(path: Path, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of images by a frozen network."""
    task = ImageClassification.read(path, DataOptions(val_fraction=0.0))
    network = task.build(model, Recipe(tune="head")).eval()
    digests = task.feature_digests()
    every = [digest for split in digests.values() for digest in split]
    store = extractor_of(task, network, torch.device("cpu")).fill(every, progress_for_terminal())
    labels = np.concatenate([task.targets(split) for split in digests])
    _, first = np.unique(every, return_index=True)
    first.sort()
    return store[[every[i] for i in first]], labels[first].astype(np.int64)


def words(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latent semantic analysis of sentences."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = []
    for split in ("train", "dev"):
        with (folder / f"{split}.tsv").open(encoding="utf-8") as file:
            rows += list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = texts.fit_transform([row["sentence"] for row in rows])
    features = TruncatedSVD(300, random_state=0).fit_transform(x).astype(np.float32)
    labels = np.array([int(row["label"]) for row in rows])
    _, first = np.unique(features.round(6), axis=0, return_index=True)
    first.sort()
    return features[first], labels[first]
