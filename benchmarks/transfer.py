"""What transfer costs and brings: the head alone, every weight, and the same weights through the
Hugging Face Trainer in the same time.

    python benchmarks/transfer.py DATA/images [--peer PYTHON] [--only cifar10 flowers ants-bees
    eurosat] [--steps 300]

Accuracy is bit-mini's on the validation data, seconds are of the processor (all threads of the
process together). `--tune full` and the Trainer each try two rates and keep the better; the Trainer
gets the processor time that `--tune full` took, and its images decoded and resized already. PYTHON
is an interpreter with transformers and accelerate (the `peers` extra); without it that column stays
empty. Last comes BiT-50 with random weights, for its time alone. Prints a table and writes
results/transfer.json.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, machine

from headstart import BitConfig, BitForImageClassification, BitImageProcessor
from headstart.data.cache import decode, square
from headstart.data.options import DataOptions
from headstart.engine.convert import convert
from headstart.tasks import task_class
from headstart.training.run import train

RATES, PEER_RATES = (0.01, 0.03), (3e-4, 1e-3)
SHOTS, BATCH, RESIZE, CROP = 10, 32, 72, 64
BICUBIC = 3


def sources(images: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Data sets: the arguments of `train` for them, and what they are."""
    return {
        "cifar10": (
            {
                "data": images / "cifar10/train_100shot.npz",
                "validation": images / "cifar10/val.npz",
                "shots": SHOTS,
            },
            "10 of each",
        ),
        "flowers": (
            {"data": images / "flowers102/train.tar", "validation": images / "flowers102/val.tar"},
            "20 classes, 8 of each",
        ),
        "ants-bees": ({"data": images / "hymenoptera"}, "50 photos"),
        "eurosat": (
            {"data": images / "eurosat/train.tar", "validation": images / "eurosat/val.tar"},
            "10 classes, 50 of each",
        ),
    }


def timed(out: Path, data: dict[str, Any], **values: Any) -> dict[str, float]:
    """Accuracy on the validation data, and seconds of the processor and of the clock, of one
    run.
    """
    cpu, clock = time.process_time(), time.perf_counter()
    result = train(out=out, val_fraction=0.0, **data, **values)
    return {
        "accuracy": result.metrics.get("accuracy", float("nan")),
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - clock,
    }


def dump(data: dict[str, Any], file: Path, resize: int = RESIZE, crop: int = CROP) -> None:
    """The same examples as arrays.

    Training images at the side that they are cropped from, validation images as the network sees
    them.
    """
    options = DataOptions(
        val_fraction=0.0, shots=data.get("shots"), extra={"validation": data.get("validation")}
    )
    read = task_class("image-classification").read(data["data"], options).data
    arrays = {}
    for split, side in (("train", resize), ("validation", crop)):
        examples = read.splits[split]
        arrays[f"{split}_images"] = np.stack(
            [square(decode(image), side, BICUBIC) for image in examples.images]
        )
        arrays[f"{split}_labels"] = np.asarray(examples.labels)
    np.savez(file, **arrays)


def peer(
    python: str | None,
    model: Path,
    data: Path,
    *,
    rate: float,
    seconds: float | None,
    steps: int | None = None,
) -> dict[str, Any] | None:
    """A run of the Trainer in its own process."""
    if python is None:
        return None
    found: dict[str, Any] = ask(
        python,
        model=str(model),
        data=str(data),
        rate=rate,
        seconds=seconds,
        steps=steps,
        batch=BATCH,
    )
    return found


def ask(python: str, **words: Any) -> Any:
    """What `transfer_peer.py` answers."""
    script = Path(__file__).with_name("transfer_peer.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script), json.dumps(words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def same_weights(python: str | None, folder: Path) -> float | None:
    """Largest difference of transformers' scores from ours, of the weights that both are tuned
    from, as a fraction of the largest score.
    """
    if python is None:
        return None
    pixels = torch.randn(4, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    np.save(folder / "pixels.npy", pixels.numpy())
    theirs = torch.tensor(
        ask(python, model=str(folder / "theirs"), pixels=str(folder / "pixels.npy"))
    )
    with torch.inference_mode():
        ours = BitForImageClassification.from_pretrained("bit-mini")(pixel_values=pixels).logits
    return float((ours - theirs).abs().max() / ours.abs().max())


def small(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The rows of bit-mini."""
    convert("bit-mini", folder / "theirs", compat="transformers")
    rows = []
    for name, (data, what) in sources(args.images).items():
        if args.only and name not in args.only:
            continue
        head = timed(folder / f"{name}-head", data, model="bit-mini", tune="head", crop=CROP)
        values = {
            "steps": args.steps,
            "batch_size": BATCH,
            "resize": RESIZE,
            "crop": CROP,
            "eval_every": args.steps,
        }
        full = [
            timed(folder / f"{name}-{rate}", data, model="bit-mini", lr=rate, **values)
            | {"rate": rate}
            for rate in RATES
        ]
        best = max(full, key=lambda each: each["accuracy"])
        dump(data, folder / f"{name}.npz")
        theirs = [
            peer(
                args.peer,
                folder / "theirs",
                folder / f"{name}.npz",
                rate=rate,
                seconds=best["cpu_seconds"],
            )
            for rate in PEER_RATES
        ]
        trainer = max(
            (each for each in theirs if each), key=lambda each: each["accuracy"], default=None
        )
        rows.append(
            {
                "data": name,
                "what": what,
                "head": head,
                "full": best,
                "trainer": trainer,
                "full_all": full,
                "trainer_all": theirs,
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def large(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time of BiT-50 with random weights on EuroSAT.

    Ours and the Trainer's, a few steps at 128 pixels, in seconds of the processor.
    """
    torch.manual_seed(0)
    BitForImageClassification(BitConfig(num_labels=10)).save_pretrained(folder / "bit50")
    BitImageProcessor(size={"height": 128, "width": 128}, do_center_crop=False).save_pretrained(
        folder / "bit50"
    )
    data = sources(args.images)["eurosat"][0] | {"shots": 16}  # five whole batches
    values = {
        "batch_size": BATCH,
        "resize": 144,
        "crop": 128,
        "checkpoint_every": 9,
        "eval_every": 9,
        "micro_batch": BATCH,
        "lr": 1e-3,
    }
    # What a run costs besides its steps is the same in both, and cancels out.
    whole = [
        timed(folder / f"b50-{steps}", data, model=folder / "bit50", steps=steps, **values)[
            "cpu_seconds"
        ]
        for steps in (2, 6)
    ]
    head = timed(folder / "b50-head", data, model=folder / "bit50", tune="head", crop=128)
    dump(data, folder / "b50.npz", 144, 128)
    theirs = peer(args.peer, folder / "bit50", folder / "b50.npz", rate=1e-3, seconds=None, steps=6)
    return {
        "cpu_seconds_a_step": (whole[1] - whole[0]) / 4,
        "head": head,
        "trainer_cpu_seconds_a_step": theirs and theirs["cpu_seconds_a_step"],
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{row['data']:<10}"]
    for kind in ("head", "full", "trainer"):
        cells.append(
            f"{row[kind]['accuracy']:6.1%} in {row[kind]['cpu_seconds']:5.0f} s"
            if row[kind]
            else f"{'–':>16}"
        )
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--peer", help="interpreter with transformers and accelerate")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        # features of an earlier run would flatter the time
        os.environ["HEADSTART_CACHE"] = f"{scratch}/cache"
        print(
            f"{'data':<10}  {'--tune head':>16}  {'--tune full':>16}  {'HF Trainer':>16}  "
            " (validation accuracy, processor seconds)"
        )
        rows = small(args, Path(scratch))
        apart = same_weights(args.peer, Path(scratch))
        big = large(args, Path(scratch))
    steps = [
        f"{big[key]:.2f}" if big[key] else "–"
        for key in ("cpu_seconds_a_step", "trainer_cpu_seconds_a_step")
    ]
    print(
        f"BiT-50, {BATCH} images of 128 pixels, processor seconds a step: {steps[0]}, the Trainer"
        f" {steps[1]}"
    )
    if apart is not None:
        print(
            f"scores of the weights before tuning differ between the two by at most {apart:.1e} of"
            " the largest"
        )
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "steps": args.steps,
        "batch": BATCH,
        "rates": RATES,
        "trainer_rates": PEER_RATES,
        "machine": machine(),
    }
    (RESULTS / "transfer.json").write_text(
        json.dumps(facts | {"rows": rows, "bit50": big, "untuned_difference": apart}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
