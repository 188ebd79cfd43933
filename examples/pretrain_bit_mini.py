"""Pretrains `bit-mini`, the small BiT that comes with the package, on CIFAR-100 from scratch.

    python examples/pretrain_bit_mini.py DATA/images/cifar100 OUT

Recipe: SGD with Nesterov momentum 0.9, rate 0.1 at a batch of 128 (one cycle), weight decay 5e-4 on
    filters, MixUp 0.2, label
smoothing 0.1, random crop, flip and light color changes, bfloat16, an exponential average of the
weights. Images of 32x32 are shown at 48x48 for the first part of training and at 64x64 for the
rest, which costs a third less and ends better. A killed run goes on from its last epoch. The
weights in the package took 20 epochs, of which the first 6 followed the schedule of a run over 26.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from headstart import BitConfig, BitForImageClassification

MEAN = STD = 0.5
CONFIG = {
    "embedding_size": 32,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [2, 2, 2, 2],
    "num_groups": 8,
}


def read_sheets(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of the sheets of 1,000 images each in the
    folder.
    """
    sheets = [
        np.asarray(Image.open(p).convert("RGB"))
        for p in sorted((folder / "train").glob("sheet_*.avif"))
    ]
    images = np.concatenate(
        [s.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for s in sheets]
    )
    labels = np.load(folder / "train_labels.npz")["labels"]
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels).long(),
    )


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """The same of an npz with `images` (N, 32, 32, 3) and `labels`."""
    data = np.load(path)
    return (
        torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(data["labels"]).long(),
    )


def to_input(images: Tensor, size: int) -> Tensor:
    """(B, 3, 32, 32) bytes → (B, 3, size, size) in [-1, 1]."""
    x = (images.float() / 255 - MEAN) / STD
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False).contiguous(
        memory_format=torch.channels_last
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop after a reflected border of 4, flip, brightness and contrast.

    (B, 3, 32, 32) bytes in and out.
    """
    B = images.shape[0]
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    top, left = (torch.randint(0, 9, (B,), generator=generator) for _ in range(2))
    rows = top[:, None] + torch.arange(32)
    columns = left[:, None] + torch.arange(32)
    flip = torch.rand(B, generator=generator) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    x = padded[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
    gain = 1 + 0.2 * (2 * torch.rand(B, 1, 1, 1, generator=generator) - 1)
    shift = 25 * (2 * torch.rand(B, 1, 1, 1, generator=generator) - 1)
    return ((x - 128) * gain + 128 + shift).clamp(0, 255)


def loss_of(logits: Tensor, labels: Tensor, others: Tensor, fraction: float) -> Tensor:
    """Cross-entropy against two mixed labels, smoothed by 0.1."""
    one, two = (F.cross_entropy(logits, each, label_smoothing=0.1) for each in (labels, others))
    return fraction * one + (1 - fraction) * two


@torch.no_grad()
def accuracy(model: BitForImageClassification, images: Tensor, labels: Tensor, size: int) -> float:
    """Fraction of right answers."""
    model.eval()
    right = sum(
        int((model(to_input(x, size)).logits.argmax(-1) == y).sum())
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    return right / len(labels)


def schedule(done: float) -> float:
    """Factor of the learning rate: a warm-up, then half a cosine."""
    return min(1.0, done / 0.1) * 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.1) / 0.9)))


def optimizer_of(model: BitForImageClassification, lr: float) -> torch.optim.Optimizer:
    """SGD whose weight decay spares what is not a filter."""
    filters = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": filters, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        lr=lr,
        momentum=0.9,
        nesterov=True,
    )


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)

    images, labels = read_sheets(args.data)
    val_images, val_labels = read_npz(args.data / "val.npz")
    names = json.loads((args.data / "classes.json").read_text())["classes"]
    torch.manual_seed(0)
    model = BitForImageClassification(BitConfig(**CONFIG, id2label=dict(enumerate(names))))
    model.to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = optimizer_of(model, args.lr)
    steps = len(images) // args.batch_size
    first, state_file = 0, args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]

    for epoch in range(first, args.epochs):
        generator = torch.Generator().manual_seed(epoch)
        rng = np.random.default_rng(epoch)
        order = torch.randperm(len(images), generator=generator)
        size = 48 if epoch < 0.6 * args.epochs else 64
        model.train()
        start, seen, losses = time.time(), 0, 0.0
        for i in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * schedule((epoch + i / steps) / args.epochs)
            chosen = order[i * args.batch_size : (i + 1) * args.batch_size]
            x, y = to_input(augment(images[chosen], generator), size), labels[chosen]
            mixed = float(rng.beta(0.2, 0.2))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(mixed * x + (1 - mixed) * x.flip(0)).logits
            loss = loss_of(logits.float(), y, y.flip(0), mixed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            seen, losses = seen + len(y), losses + loss.item()
        row = {
            "epoch": epoch + 1,
            "size": size,
            "loss": round(losses / steps, 4),
            "val_accuracy": accuracy(average.module, val_images, val_labels, 64),
            "images_per_second": round(seen / (time.time() - start)),
        }
        print(json.dumps(row), flush=True)
        with (args.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        state = {
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)
    average.module.half().save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
