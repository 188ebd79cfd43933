"""Trains the small CvT in `trained-cvt`, on which tests count what int8 keeps: CIFAR-100's 20 kinds
of things, 43 % right from scratch.

    python tests/engine/train_cvt.py DATA RUN

DATA is the folder of reference data, RUN a new folder; the weights are put beside this file in
float16. About 20 minutes on a core.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import headstart
from headstart.progress import progress_for_terminal

STEPS = 3500


def write_images(data: Path, images: Path) -> None:
    """CIFAR-100 with its coarse classes, as arrays."""
    images.mkdir(parents=True)
    sheets = sorted((data / "images" / "cifar100" / "train").glob("sheet_*.avif"))
    tiles = [
        np.asarray(Image.open(p).convert("RGB"))
        .reshape(25, 32, 40, 32, 3)
        .swapaxes(1, 2)
        .reshape(-1, 32, 32, 3)
        for p in sheets
    ]
    labels = np.load(data / "images" / "cifar100" / "train_labels.npz")["coarse_labels"]
    np.savez(images / "train.npz", images=np.concatenate(tiles), labels=labels)
    val = np.load(data / "images" / "cifar100" / "val.npz")
    np.savez(images / "val.npz", images=val["images"], labels=val["coarse_labels"])


def main(data: Path, run: Path) -> None:
    images, start = run / "images", run / "random"
    write_images(data, images)
    config = headstart.CvtConfig(
        patch_sizes=[3, 3, 3],
        patch_stride=[2, 2, 2],
        patch_padding=[1, 1, 1],
        embed_dim=[32, 64, 96],
        num_heads=[1, 2, 3],
        depth=[1, 1, 3],
        mlp_ratio=[2.0, 2.0, 3.0],
        drop_path_rate=[0.0, 0.0, 0.0],
        num_labels=20,
    )
    torch.manual_seed(0)
    headstart.CvtForImageClassification(config).save_pretrained(start)
    colors = {"image_mean": [0.507, 0.487, 0.441], "image_std": [0.267, 0.256, 0.276]}
    headstart.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=1.0, **colors
    ).save_pretrained(start)
    headstart.train(
        images,
        model=str(start),
        out=run / "trained",
        recipe="finetune",
        steps=STEPS,
        lr=2e-3,
        batch_size=128,
        weight_decay=0.05,
        warmup_steps=STEPS // 20,
        augment="crop-flip",
        resize=36,
        crop=32,
        zero_head=False,
        progress=progress_for_terminal(),
    )
    trained, folder = run / "trained", Path(__file__).parent / "trained-cvt"
    headstart.CvtForImageClassification.from_pretrained(trained).half().save_pretrained(folder)
    headstart.AutoImageProcessor.from_pretrained(trained).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
