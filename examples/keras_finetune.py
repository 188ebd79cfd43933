"""Fine-tunes CvT with Keras' `fit` on a folder that has one subfolder of images a class.

    KERAS_BACKEND=jax python examples/keras_finetune.py FOLDER --model microsoft/cvt-13 --out MODEL

FOLDER holds train/ and val/, or the classes themselves, of which a fifth is then kept for
validation. `--model tiny` is a small network with random weights, for a quick try without a
download.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from headstart import (
    AutoImageProcessor,
    ConvNextImageProcessor,
    CvtConfig,
    TFCvtForImageClassification,
)

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".avif"}
TINY = {
    "embed_dim": [16, 32, 64],
    "num_heads": [1, 2, 4],
    "depth": [1, 1, 2],
    "layer_norm_eps": 1e-5,
}


def images(folder: Path, classes: list[str], processor) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, C, H, W) and labels (N,) of a folder of class folders."""
    files = [
        (path, i)
        for i, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]
    pixels = [
        processor(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"]
        for path, _ in files
    ]
    return np.concatenate(pixels), np.array([label for _, label in files])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="microsoft/cvt-13")
    parser.add_argument("--out", type=Path, default=Path("cvt-finetuned"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    train = args.folder / "train" if (args.folder / "train").is_dir() else args.folder
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    id2label = dict(enumerate(classes))
    if args.model == "tiny":
        processor = ConvNextImageProcessor(size={"shortest_edge": args.size}, crop_pct=0.875)
        model = TFCvtForImageClassification(CvtConfig(**TINY, id2label=id2label))
    else:
        processor = AutoImageProcessor.from_pretrained(
            args.model, size={"shortest_edge": args.size}
        )
        model = TFCvtForImageClassification.from_pretrained(args.model, id2label=id2label)

    x, y = images(train, classes, processor)
    if (args.folder / "val").is_dir():
        validation = images(args.folder / "val", classes, processor)
    else:
        order = np.random.default_rng(0).permutation(len(x))
        kept, order = order[: len(x) // 5], order[len(x) // 5 :]
        validation, x, y = (x[kept], y[kept]), x[order], y[order]
    print(
        f"{len(x)} images to learn from, {len(validation[0])} to validate with, classes:"
        f" {', '.join(classes)}"
    )

    model.compile(keras.optimizers.AdamW(args.rate, weight_decay=0.05), metrics=["accuracy"])
    model.fit(
        x, y, validation_data=validation, batch_size=args.batch, epochs=args.epochs, verbose=2
    )
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{args.out} is read by TFCvtForImageClassification and CvtForImageClassification")


if __name__ == "__main__":
    main()
