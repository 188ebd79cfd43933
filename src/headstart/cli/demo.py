"""`headstart demo`: the main job on images that come with the package, in about a minute and
without a network.

`bit-mini`, distilled on photos of a thousand kinds of things, is transferred to satellite images of
ten kinds of land, ten of each, and so is the same network with random weights: what the pretraining
is worth is the difference. `--digits` takes scikit-learn's handwritten digits.
"""

import itertools
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import MissingExtraError
from headstart.package_data import embedded_folder

SHOTS = 10
EXAMPLES = ("forest", "highway", "residential", "river")
# HyperRule with fewer and smaller steps at a higher rate: enough for a hundred small images, and
# a minute's work.
RECIPE: dict[str, Any] = {
    "steps": 60,
    "batch_size": 32,
    "lr": 0.02,
    "augment": "none",
    "resize": 64,
    "crop": 64,
    "eval_every": 60,
}


def write_photos(folder: Path, seed: int) -> None:
    """Writes the embedded part of EuroSAT (64x64, ten classes of 20 images) as class folders.

    Ten of each to train, ten to evaluate.
    """
    with tarfile.open(embedded_folder("eurosat-mini") / "images.tar") as tar:
        names = sorted(tar.getnames())
        rng = np.random.default_rng(seed)
        for label in sorted({Path(name).parent.name for name in names}):
            own = [name for name in names if Path(name).parent.name == label]
            for place, i in enumerate(rng.permutation(len(own))):
                path = folder / ("train" if place < SHOTS else "val") / own[i]
                path.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(own[i])
                assert file is not None  # the archive holds files only
                path.write_bytes(file.read())


def write_digits(folder: Path, seed: int) -> None:
    """Writes scikit-learn's 1,797 digits (8x8 gray) as class folders.

    Ten of each to train, the others to evaluate.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train") from error
    from PIL import Image

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    seen = dict.fromkeys(range(10), 0)
    for i in order:
        label = int(data.target[i])
        split = "train" if seen[label] < SHOTS else "val"
        seen[label] += 1
        path = folder / split / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[i] * 15.9375).astype(np.uint8)).save(path)


def write_random(folder: Path, seed: int) -> None:
    """Writes bit-mini with random weights, as a checkpoint."""
    import torch

    from headstart.auto import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained("bit-mini")
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained("bit-mini").save_pretrained(folder)


def demo(
    out: str | Path = "runs/demo",
    draws: int = 3,
    digits: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Fine-tunes bit-mini, and the same network from random weights, once for each draw.

    Args:
        out: Result folder of the first draw's pretrained run; a number is added where it exists.
        draws: Random choices of ten images of each class to train on; the others are evaluated.
        digits: Handwritten digits in place of satellite images.
        report: Called with each line of output.

    Returns:
        Accuracies on images that were not trained on: "pretrained" and "random", one for each draw.
    """
    from headstart.pipelines.base import pipeline
    from headstart.training.run import train

    out = _unused(Path(out))
    write = write_digits if digits else write_photos
    what = "images of each handwritten digit"
    if not digits:
        what = "satellite images of each of ten kinds of land"
    held_out = "1,697" if digits else "100"
    report(f"Fine-tunes the embedded network, pretrained on photos, on {SHOTS} {what};")
    report(f"evaluates it on {held_out} other images.\n")
    report("draw   pretrained   random weights")
    found: dict[str, list[float]] = {"pretrained": [], "random": []}
    name = "digits" if digits else "satellite images"
    with tempfile.TemporaryDirectory() as scratch:
        for draw in range(draws):
            images = Path(scratch) / str(draw) / name
            random = Path(scratch) / f"random-{draw}"
            write(images, draw)
            write_random(random, draw)
            for kind, model in (("pretrained", "bit-mini"), ("random", str(random))):
                first = draw == 0 and kind == "pretrained"
                target = out if first else Path(scratch) / f"{kind}-{draw}-tuned"
                result = train(images, model=model, out=target, seed=draw, **RECIPE)
                found[kind].append(result.evaluations["validation"].metrics["accuracy"])
            report(
                f"{draw + 1:>4}   {found['pretrained'][-1]:>9.1%}   {found['random'][-1]:>13.1%}"
            )
        classify = pipeline("image-classification", out, top_k=1)
        answers = {
            label: classify(min((Path(scratch) / "0" / name / "val" / label).iterdir()))[0]
            for label in (("1", "3", "7", "8") if digits else EXAMPLES)
        }
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    report(f"mean   {means['pretrained']:>9.1%}   {means['random']:>13.1%}")
    report("\nFour images that it has not seen:")
    for label, best in answers.items():
        report(f"  {label:<12} predicted {best['label']}, probability {best['score']:.0%}")
    report(f"The model and its report are in {out}: open {out / 'report.html'}")
    report("Your own photos: headstart train PHOTOS --model bit-mini --out runs/photos")
    return found


def _unused(folder: Path) -> Path:
    """The folder, or the first of its name with a number that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(each for each in numbered if not each.exists())
