"""`headstart demo`: the main job on data that comes with scikit-learn, in about a minute and
without a network.

`bit-mini`, pretrained on photos of a hundred kinds of things, is transferred to handwritten digits,
ten of each, and so is the same network with random weights: what the pretraining is worth is the
difference.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import MissingExtraError

SHOTS = 10
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


def write_digits(folder: Path, seed: int) -> None:
    """Writes scikit-learn's 1,797 digits (8x8 gray) as class folders.

    Ten of each to train, the others to judge.
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
    out: str | Path = "runs/demo", seeds: int = 5, say: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Fine-tunes bit-mini, and the same network from random weights, on digits, once for each seed.

    Args:
        out: Result folder of the first seed's pretrained run; a number is added where it exists.
        seeds: Random subsets of ten images of each digit.
        say: Called with each line of output.

    Returns:
        Accuracies on the other 1,697 digits: "pretrained" and "random", one for each seed.
    """
    from headstart.pipelines.base import pipeline
    from headstart.training.run import train

    out = _unused(Path(out))
    say(
        "Fine-tunes the embedded network, pretrained on photos, on 10 images of each handwritten"
        " digit; evaluates it on 1,697 others.\n"
    )
    say("draw   pretrained   random weights")
    found: dict[str, list[float]] = {"pretrained": [], "random": []}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            digits = Path(scratch) / f"digits-{seed}"
            write_digits(digits, seed)
            write_random(Path(scratch) / f"random-{seed}", seed)
            for kind, model in (
                ("pretrained", "bit-mini"),
                ("random", str(Path(scratch) / f"random-{seed}")),
            ):
                target = (
                    out
                    if seed == 0 and kind == "pretrained"
                    else Path(scratch) / f"{kind}-{seed}-tuned"
                )
                result = train(digits, model=model, out=target, seed=seed, **RECIPE)
                found[kind].append(result.evaluations["validation"].metrics["accuracy"])
            say(f"{seed + 1:>4}   {found['pretrained'][-1]:>9.1%}   {found['random'][-1]:>13.1%}")
        image = sorted((Path(scratch) / "digits-0" / "val" / "7").glob("*.png"))[0]
        best = pipeline("image-classification", out)(image)[0]
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    say(f"mean   {means['pretrained']:>9.1%}   {means['random']:>13.1%}")
    say(f"\nPrediction for an unseen 7: {best['label']!r}, probability {best['score']:.0%}")
    say(f"The model and its report are in {out}: open {out / 'report.html'}")
    say("Your own photos: headstart train PHOTOS --model bit-mini --out runs/photos")
    return found


def _unused(folder: Path) -> Path:
    """The folder, or the first of its name with a number that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(each for each in numbered if not each.exists())
