"""Trains a small discrete VAE, the image tokenizer that BEiT's pretraining needs, on any images.

    python examples/train_dvae.py DATA/images/cifar100/train OUT        # sheets of CIFAR-100
    python examples/train_dvae.py photos/ OUT --size 128                # any folder of photos

The recipe is that of DALL-E's paper (Ramesh et al. 2021, appendix A) at a small scale: codes are
sampled softly (Gumbel-softmax) at a temperature that falls from 1 to 1/16, the decoder gives each
color a logit-Laplace distribution, and a growing fraction of the divergence from even use of all
codes keeps codes from dying. The result folder is what `DalleImageTokenizer.from_pretrained` and
`headstart train --task masked-image-modeling --option tokenizer=OUT` read; `reconstructions.png`
shows what the codes keep.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headstart import DalleImageTokenizer

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 1 / 16


def read_images(folder: Path, size: int) -> list[np.ndarray]:
    """Images (H, W, 3) uint8 whose shorter side is at least `size`.

    Of CIFAR-100's sheets, or of every image file below a folder.
    """
    sheets = sorted(folder.glob("sheet_*.avif"))
    if sheets:
        tiles = [
            np.asarray(Image.open(p).convert("RGB"))
            .reshape(25, 32, 40, 32, 3)
            .swapaxes(1, 2)
            .reshape(-1, 32, 32, 3)
            for p in sheets
        ]
        return list(np.concatenate(tiles))
    images = []
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    ):
        image = Image.open(path).convert("RGB")
        scale = 2 * size / min(image.size)
        images.append(
            np.asarray(
                image.resize(
                    [max(size, round(side * scale)) for side in image.size],
                    Image.Resampling.LANCZOS,
                )
            )
        )
    return images


def batch_of(
    images: list[np.ndarray], count: int, size: int, crop: int, rng: np.random.Generator
) -> Tensor:
    """Random mirrored crops (B, 3, crop, crop) in 0..1, of images shown at a shorter side of
    `size` (or at their own, if larger).
    """
    out = np.empty((count, crop, crop, 3), np.uint8)
    for i in range(count):
        image = images[rng.integers(len(images))]
        if min(image.shape[:2]) < size:
            image = np.asarray(
                Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
            )
        top, left = (int(rng.integers(0, side - crop + 1)) for side in image.shape[:2])
        part = image[top : top + crop, left : left + crop]
        out[i] = part[:, ::-1] if rng.random() < 0.5 else part
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def losses(
    tokenizer: DalleImageTokenizer, images: Tensor, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log likelihood of the pixels, divergence of the codes from even use, both per pixel
    or code; and the scores (B, V, h, w).
    """
    logits = tokenizer(images).float()  # (B, V, h, w)
    noise = -torch.log(
        -torch.log(torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7))
    )
    probabilities = ((logits + noise) / temperature).softmax(1)
    scores = tokenizer.expected_image(probabilities).float()  # (B, 6, H, W)
    pixels = torch.logit(tokenizer.map_pixels(images))  # (B, 3, H, W)
    mean, log_spread = scores[:, :3], scores[:, 3:].clamp(-6, 6)
    # without the terms that no weight changes
    nll = ((pixels - mean).abs() * torch.exp(-log_spread) + log_spread).mean()
    log_p = logits.log_softmax(1)
    divergence = (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1).mean()
    return nll, divergence, logits


@torch.no_grad()
def evaluate(tokenizer: DalleImageTokenizer, images: Tensor) -> dict[str, float]:
    """Root mean square error of hard reconstructions in gray levels, and how many codes are in use
    (two to the entropy of their use).
    """
    codes = torch.cat([tokenizer.encode(part) for part in images.split(50)])
    back = torch.cat([tokenizer.decode(part) for part in codes.split(50)])
    frequency = (
        torch.bincount(codes.flatten(), minlength=tokenizer.vocab_size).float() / codes.numel()
    )
    entropy = torch.special.entr(frequency).sum()
    return {
        "rmse": float(255 * ((back - images) ** 2).mean().sqrt()),
        "codes_in_use": float(entropy.exp()),
    }


def save_images(tokenizer: DalleImageTokenizer, images: Tensor, path: Path) -> None:
    """Images above their reconstructions."""
    with torch.no_grad():
        back = tokenizer.decode(tokenizer.encode(images))
    rows = [torch.cat(list(each), 2) for each in (images, back)]  # 2 × (3, H, B * W)
    pixels = (torch.cat(rows, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--size", type=int, default=64, help="shorter side that images are shown at"
    )
    parser.add_argument(
        "--crop",
        type=int,
        default=32,
        help="side of the random crops; the networks work at any size",
    )
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--divergence",
        type=float,
        default=0.02,
        help="largest weight of the codes' divergence from even use",
    )
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)

    images = read_images(args.data, args.size)
    torch.manual_seed(0)
    tokenizer = DalleImageTokenizer(
        args.codes, args.hidden_size, blocks_per_group=1, decoder_init_size=args.hidden_size
    )
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    held_out, images = images[-200:], images[:-200] if len(images) > 400 else images
    shown = batch_of(
        held_out, min(200, 4 * len(held_out)), args.size, args.size, np.random.default_rng(1)
    )
    print(
        f"{len(images)} images, {sum(p.numel() for p in tokenizer.parameters()):,} weights",
        flush=True,
    )
    rng, generator, began, values = (
        np.random.default_rng(0),
        torch.Generator().manual_seed(0),
        time.time(),
        {},
    )
    for step in range(args.steps):
        done = step / args.steps
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50) * cosine
        temperature = max(
            LAST_TEMPERATURE,
            FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** (done / 0.8),
        )
        weight = args.divergence * min(1.0, done / 0.1)
        batch = batch_of(images, args.batch_size, args.size, args.crop, rng)
        nll, divergence, _ = losses(tokenizer, batch, temperature, generator)
        optimizer.zero_grad()
        (nll + weight * divergence).backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, args.steps // 10) == 0:
            values = {
                "step": step + 1,
                "nll": nll.item(),
                "divergence": divergence.item(),
                **evaluate(tokenizer.eval(), shown),
            }
            tokenizer.train()
            print(
                json.dumps(
                    {key: round(value, 3) for key, value in values.items()}
                    | {"seconds": round(time.time() - began)}
                ),
                flush=True,
            )
    tokenizer.eval().save_pretrained(args.out)
    save_images(tokenizer, shown[:12], args.out / "reconstructions.png")
    (args.out / "results.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
