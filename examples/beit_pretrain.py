"""Pretrains a small BEiT on CIFAR-100 with a small tokenizer, and shows what that is worth on a few
CIFAR-10 images.

    python examples/train_dvae.py DATA/images/cifar100/train runs/dvae
    python examples/beit_pretrain.py DATA runs/dvae runs/beit

Runs of `headstart.train`, each with its report: masked image modelling from random weights; then
classification of CIFAR-10 from that checkpoint and from the same network's random weights, with
only a new head, and with every weight at three rates. `summary.json` holds the accuracies. Runs
that are finished are not made again.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import headstart
from headstart import (
    AutoModelForMaskedImageModeling,
    BeitConfig,
    BeitImageProcessor,
    DalleImageTokenizer,
)
from headstart.progress import progress_for_terminal

# 8x8 patches of 4 pixels; the tokenizer sees the same images at 64x64, so that a code stands for
# the same 4x4 pixels.
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": 32,
    "patch_size": 4,
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-6,
}


def write_images(data: Path, folder: Path, count: int) -> Path:
    """`train.npz` and `val.npz` of CIFAR-100's sheets of 1,000 images."""
    if not (folder / "val.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        sheets = sorted((data / "images" / "cifar100" / "train").glob("sheet_*.avif"))[
            : -(-count // 1000)
        ]
        tiles = [
            np.asarray(Image.open(p).convert("RGB"))
            .reshape(25, 32, 40, 32, 3)
            .swapaxes(1, 2)
            .reshape(-1, 32, 32, 3)
            for p in sheets
        ]
        np.savez(
            folder / "train.npz", images=np.concatenate(tiles)[:count], labels=np.arange(count) % 2
        )  # masks need no classes
        val = np.load(data / "images" / "cifar100" / "val.npz")["images"]
        np.savez(folder / "val.npz", images=val, labels=np.arange(len(val)) % 2)
    return folder


def write_random_network(folder: Path, tokenizer: Path) -> Path:
    """A folder with the small network's random weights."""
    config = BeitConfig(
        **SHAPE, vocab_size=DalleImageTokenizer.from_pretrained(tokenizer).vocab_size
    )
    AutoModelForMaskedImageModeling.from_config(config).save_pretrained(folder)
    BeitImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    return folder


def run(out: Path, data: Path, **values: object) -> dict[str, float]:
    """One run of training, or what it gave if it was made before."""
    if (out / "results.json").exists():
        evaluations = json.loads((out / "results.json").read_text())["evaluations"]
        return evaluations["validation"]["metrics"]
    resume = (out / "run.json").exists()
    return headstart.train(
        data, out=out, resume=resume, progress=progress_for_terminal(), **({} if resume else values)
    ).metrics


def write_cifar10(source: Path, few: Path) -> Path:
    """CIFAR-10 as `train` reads it."""
    few.mkdir(exist_ok=True)
    names = {"train.npz": "train_100shot.npz", "val.npz": "val.npz", "classes.json": "classes.json"}
    for name, file in names.items():
        shutil.copyfile(source / file, few / name)
    return few


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--views", type=int, default=2, help="fixed views of each image")
    parser.add_argument("--steps", type=int, default=1200, help="of pretraining, 64 images each")
    parser.add_argument("--shots", type=int, default=100, help="CIFAR-10 images of each class")
    parser.add_argument("--tune-steps", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    return parser.parse_args()


def main() -> None:
    args = parsed()

    images = write_images(args.data, args.out / "images", args.images)
    network = args.out / "random"
    if not network.exists():
        write_random_network(network, args.tokenizer)
    pretrained = args.out / "pretrained"
    guessed = run(
        pretrained,
        images,
        model=network,
        task="masked-image-modeling",
        recipe="finetune",
        precision="bf16",
        steps=args.steps,
        warmup_steps=args.steps // 10,
        batch_size=64,
        micro_batch=64,
        lr=2e-3,
        layer_decay=1.0,
        weight_decay=0.05,
        clip_grad=3.0,
        resize=40,
        augment="resized-crop",
        label_smoothing=0.0,
        eval_every=max(1, args.steps // 4),
        task_options={"tokenizer": args.tokenizer, "views": args.views},
    )
    tune = {
        "recipe": "finetune",
        "precision": "bf16",
        "steps": args.tune_steps,
        "batch_size": 64,
        "micro_batch": 64,
        "crop": 32,
        "resize": 36,
        "layer_decay": 1.0,
        "augment": "crop-flip",
        "shots": args.shots,
        "eval_every": max(1, args.tune_steps // 4),
    }
    few = write_cifar10(args.data / "images" / "cifar10", args.out / "cifar10")
    summary = {
        "masked_codes_guessed": guessed["code_accuracy"],
        "most_common_code": guessed["most_common_code_accuracy"],
    }
    for name, start in (("pretrained", pretrained), ("random", network)):
        head = run(
            args.out / f"head-{name}", few, model=start, tune="head", crop=32, shots=args.shots
        )
        summary[f"cifar10_accuracy_{name}_head"] = head["accuracy"]
        summary[f"cifar10_accuracy_{name}_all"] = {
            rate: run(args.out / f"tuned-{name}-{rate}", few, model=start, lr=rate, **tune)[
                "accuracy"
            ]
            for rate in args.rates
        }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
