"""What is bit-mini's pretraining worth? CIFAR-10 from a few images of each class, beside the same
network with random weights.

    python benchmarks/few_shot.py DATA/images/cifar10 [--shots 10] [--seeds 3]

Both start with a zero head and are tuned with the same recipe at several rates; each kind keeps its
best rate, so that random weights are not evaluated at a rate that suits the other. Prints
accuracies on 1,000 held-out images and writes results/few_shot.json.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from timing import RESULTS, machine

from headstart.cli.demo import write_random
from headstart.training.run import train

RATES = (0.01, 0.03, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    train_set, val_set = (
        dict(np.load(args.data / name)) for name in ("train_100shot.npz", "val.npz")
    )
    rows: dict[str, dict[str, list[float]]] = {"pretrained": {}, "random": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir()
        count = 10 * args.shots  # rows are in the order of shots
        np.savez(
            folder / "train.npz",
            images=train_set["images"][:count],
            labels=train_set["labels"][:count],
        )
        np.savez(folder / "val.npz", images=val_set["images"], labels=val_set["labels"])
        for seed in range(args.seeds):
            write_random(Path(scratch) / f"random-{seed}", seed)
            for kind, model in (
                ("pretrained", "bit-mini"),
                ("random", str(Path(scratch) / f"random-{seed}")),
            ):
                for rate in RATES:
                    out = Path(scratch) / f"{kind}-{seed}-{rate}"
                    result = train(
                        folder / "train.npz",
                        validation=folder / "val.npz",
                        model=model,
                        out=out,
                        seed=seed,
                        lr=rate,
                        val_fraction=0.0,
                        steps=args.steps,
                        batch_size=32,
                        resize=72,
                        crop=64,
                        eval_every=args.steps,
                    )
                    accuracy = result.evaluations["validation"].metrics["accuracy"]
                    rows[kind].setdefault(str(rate), []).append(accuracy)
                    print(f"{kind:<11} rate {rate:<5} seed {seed}: {accuracy:.1%}", flush=True)
    best = {
        kind: max((statistics.mean(values), rate) for rate, values in rates.items())
        for kind, rates in rows.items()
    }
    for kind, (mean, rate) in best.items():
        print(f"{kind:<11} best rate {rate}: mean {mean:.1%} over {args.seeds} seeds")
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "shots": args.shots,
        "steps": args.steps,
        "machine": machine(),
        "rows": rows,
        "best": best,
    }
    (RESULTS / "few_shot.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
