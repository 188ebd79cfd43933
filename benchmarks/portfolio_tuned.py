"""`--tune auto` in a budget beside full training by others in the same CPU seconds.

    python benchmarks/portfolio_tuned.py DATA/images --peer PYTHON [--fastai FOLDER] [--shots 10]
        [--draws 1] [--budget 20] [--size 128] [--also scenes=FOLDER …]

The Hugging Face Trainer (AdamW, linear schedule) and fastai (`fine_tune`'s two one-cycle schedules)
train the same `bit-mini` on the same images as `portfolio.py`, randomly cropped to 128 pixels of
144, in as many CPU seconds as `train --tune auto --budget` took, features included. Each tries
three rates with that time for every one, and the rate that is best on the held-out images counts,
which flatters them; ours decides by a fifth of its training images. On a busy machine a budget of
wall clock time means little: CPU seconds count, here also for the budget. PYTHON is an interpreter
with transformers and accelerate; FOLDER holds fastai, for the same interpreter. Writes the results
after every trial; a later call goes on from there, if the network is the same.
"""

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bit_mini import Rows
from numpy.typing import NDArray
from PIL import Image
from portfolio import (
    data_sets,
    interval,
    is_late,
    known_trials,
    packed,
    subset,
    unpacked,
    weights_of,
    write,
    write_results,
)
from timing import RESULTS, machine

from headstart import BitForImageClassification
from headstart.engine.convert import convert
from headstart.training.run import train

RATES = {"trainer": (3e-4, 1e-3, 3e-3), "fastai": (1e-3, 3e-3, 1e-2)}
BATCH = 32


def squares(images: list[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """(N, side, side, 3)."""
    size, how = (side, side), Image.Resampling.BICUBIC
    return np.stack(
        [np.asarray(Image.fromarray(each).convert("RGB").resize(size, how)) for each in images]
    )


def by_label(rows: Rows) -> Rows:
    """The rows in the order of their labels, as class folders give them."""
    order = np.argsort(rows[1], kind="stable")
    return [rows[0][i] for i in order], rows[1][order]


def ours(model: str, folder: Path, budget: float, seed: int) -> dict[str, Any]:
    """Answers and CPU seconds of `train`, and what was kept."""
    began = time.process_time()
    with patch("time.perf_counter", time.process_time):
        result = train(
            folder / "train",
            test=folder / "val",
            model=model,
            out=folder / "run",
            tune="auto",
            budget=f"{budget}s",
            seed=seed,
        )
    seconds = time.process_time() - began
    answers = result.evaluations["test"].details["logits"].argmax(1)
    kept = "head" if result.recipe.tune == "head" else "all weights"
    return {"seconds": seconds, "answers": answers.tolist(), "kept": kept}


def ask(args: argparse.Namespace, **words: Any) -> Any:
    """What `portfolio_peer.py` answers."""
    script = Path(__file__).with_name("portfolio_peer.py")
    environment = dict(os.environ, PYTHONPATH=str(args.fastai or ""))
    command = [args.peer, str(script), json.dumps(words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def same_weights(args: argparse.Namespace, folder: Path) -> float:
    """Largest difference of transformers' scores from ours, over the largest score."""
    pixels = torch.randn(4, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    np.save(folder / "pixels.npy", pixels.numpy())
    theirs = torch.tensor(ask(args, model=str(folder / "theirs"), check=str(folder / "pixels.npy")))
    with torch.inference_mode():
        scores = BitForImageClassification.from_pretrained(args.model)(pixel_values=pixels).logits
    return float((scores - theirs).abs().max() / scores.abs().max())


def contend(args: argparse.Namespace, theirs: Path, train_: Rows, test: Rows, seed: int) -> dict:
    """Which held-out images each contender has right, and what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HEADSTART_CACHE"] = str(folder / "cache")  # no features of earlier trials
        write(train_, folder / "train")
        write(test, folder / "val")
        mine = ours(args.model, folder, args.budget, seed)
        np.savez(
            folder / "data.npz",
            train_images=squares(train_[0], round(1.125 * args.size)),
            train_labels=train_[1],
            test_images=squares(test[0], args.size),
        )
        right = {"headstart": packed(np.array(mine["answers"]) == test[1])}
        seconds = {"headstart": mine["seconds"]}
        tried: dict[str, Any] = {}
        for who in ("trainer", "fastai") if args.fastai else ("trainer",):
            found = ask(
                args,
                who=who,
                model=str(theirs),
                data=str(folder / "data.npz"),
                rates=RATES[who],
                seconds=mine["seconds"],
                batch=BATCH,
                seed=seed,
            )
            hits = [np.array(each.pop("answers")) == test[1] for each in found]
            best = max(hits, key=lambda each: each.mean())
            right[who] = packed(best)
            seconds[who] = float(np.mean([each["seconds"] for each in found]))
            tried[who] = [
                each | {"accuracy": float(hit.mean())}
                for each, hit in zip(found, hits, strict=True)
            ]
    return {
        "count": len(test[1]),
        "right": right,
        "seconds": {who: round(each, 2) for who, each in seconds.items()},
        "kept": mine["kept"],
        "tried": tried,
    }


def row_of(name: str, shots: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of every contender, and what ours gains over the others."""
    row: dict[str, Any] = {"data": name, "shots": shots, "draws": len(found)}
    right = {
        who: [unpacked(each["right"][who], each["count"]) for each in found]
        for who in found[0]["right"]
    }
    for who, each in right.items():
        row[who] = round(100 * float(np.mean([r.mean() for r in each])), 1)
        row[f"{who}: CPU seconds"] = round(float(np.mean([e["seconds"][who] for e in found])), 1)
        if who != "headstart":
            pairs = zip(right["headstart"], each, strict=True)
            row[f"gain over {who}"] = interval([a.astype(float) - b for a, b in pairs])
    row["kept"] = [each["kept"] for each in found]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--peer", required=True, help="interpreter with transformers, accelerate")
    parser.add_argument("--fastai", type=Path, help="folder that fastai is imported from")
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--shots", nargs="*", type=int, default=[10])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--first-draw", type=int, default=100)
    parser.add_argument("--budget", type=float, default=20.0, help="CPU seconds of ours")
    parser.add_argument("--size", type=int, default=128, help="pixels that the others train on")
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--also", nargs="*", default=[])
    parser.add_argument("--loaded", action="store_true", help="say that the machine was busy")
    parser.add_argument("--until", help="HH:MM after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=RESULTS / "portfolio_tuned.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[str, Any] = {
        "model": args.model,
        "weights": weights_of(args.model),
        "budget": args.budget,
        "size": args.size,
        "rates": RATES,
        "loaded": args.loaded,
        "machine": machine(),
    }
    trials = known_trials(args.out, facts["weights"])
    sets = data_sets(args.images, args.also)
    draws = range(args.first_draw, args.first_draw + args.draws)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = Path(scratch) / "theirs"
        convert(args.model, theirs, compat="transformers")
        facts["untuned_difference"] = same_weights(args, Path(scratch))
        for draw, name, shots in itertools.product(draws, args.sets or sets, args.shots):
            rows, test = sets[name][0], by_label(sets[name][1])
            shots = min(shots, int(np.bincount(rows[1]).min()))
            key = {"data": name, "shots": shots, "draw": draw}
            if is_late(args.until) or any(each | key == each for each in trials):
                continue
            chosen = subset(rows[1], shots, draw)
            train_ = by_label(([rows[0][i] for i in chosen], rows[1][chosen]))
            trials.append(key | contend(args, theirs, train_, test, draw))
            write_results(args.out, facts, trials, row_of)
            print(row_of(name, shots, trials[-1:]), flush=True)


if __name__ == "__main__":
    main()
