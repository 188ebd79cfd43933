"""What distillation brings: a student 17 times smaller than its teacher, with and without it.

    python benchmarks/distillation.py DATA/images [--seeds 3] [--steps 300]

CIFAR-10 with 10 labelled images of each class. The teacher is bit-mini with a head tuned on them.
The student, a BiT of 115,000 weights, is trained from random weights on the labels alone, and
distilled (`headstart distill`) on 1,000 training images without labels; both with the same recipe,
steps and images per step, evaluated on 1,000 other images, for several seeds (which also choose the
labelled images). Prints a table and writes results/distillation.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, machine

from headstart import (
    AutoModelForImageClassification,
    BitConfig,
    BitForImageClassification,
    BitImageProcessor,
    distill,
    train,
)
from headstart.training.evaluate import evaluate

SHOTS, SIDE, STUDENT_SIDE = 10, 64, 32
STUDENT = {
    "embedding_size": 16,
    "hidden_sizes": [48, 96, 192],
    "depths": [1, 1, 2],
    "num_groups": 4,
}


def write_student(folder: Path, seed: int) -> Path:
    """A student with random weights, as a folder."""
    torch.manual_seed(seed)
    BitForImageClassification(BitConfig(**STUDENT, num_labels=10)).save_pretrained(folder)
    size = {"height": STUDENT_SIDE, "width": STUDENT_SIDE}
    processor = BitImageProcessor(
        size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
    return folder


def one_seed(images: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Accuracy of teacher and both students, and processor seconds of both trainings."""
    data, validation = images / "cifar10/train_100shot.npz", images / "cifar10/val.npz"
    common: dict[str, Any] = {"seed": seed, "device": "cpu", "val_fraction": 0.0}
    teacher = folder / "teacher"
    labels: dict[str, Any] = {"validation": validation, "shots": SHOTS, **common}
    tuned = train(data, model="bit-mini", out=teacher, tune="head", crop=SIDE, **labels)
    recipe: dict[str, Any] = {
        "recipe": "distill", "steps": steps, "batch_size": 64, "crop": STUDENT_SIDE, "lr": 3e-3,
        "eval_every": steps, "checkpoint_every": steps,
    }  # fmt: skip
    student = write_student(folder / "student", seed)
    began = time.process_time()
    alone = train(data, model=student, out=folder / "alone", **labels, **recipe)
    between = time.process_time()
    distill(teacher, data, student=student, out=folder / "distilled", **common, **recipe)
    end = time.process_time()
    _, found = evaluate(folder / "distilled", validation)
    weights = [
        sum(p.numel() for p in AutoModelForImageClassification.from_pretrained(each).parameters())
        for each in (teacher, folder / "distilled")
    ]
    return {
        "seed": seed,
        "teacher": tuned.metrics["accuracy"],
        "labels alone": alone.metrics["accuracy"],
        "distilled": found.metrics["accuracy"],
        "seconds": [between - began, end - between],
        "weights": weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    rows = []
    print("| seed | teacher | labels alone | distilled |\n|---|---|---|---|")
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_seed(args.images, Path(folder), seed, args.steps))
        cells = [f"{100 * rows[-1][name]:.1f}" for name in ("teacher", "labels alone", "distilled")]
        print(f"| {seed} | {' | '.join(cells)} |", flush=True)
    gains = np.array([row["distilled"] - row["labels alone"] for row in rows])
    print(
        f"gain {100 * gains.mean():.1f} points, {100 * gains.min():.1f} to {100 * gains.max():.1f}"
    )
    out = {"machine": machine(), "shots": SHOTS, "steps": args.steps, "rows": rows}
    (RESULTS / "distillation.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
