"""How well `headstart audit` finds wrong labels: some are flipped, and its doubts counted.

    python benchmarks/wrong_labels.py
    ../shared/data/images/{cifar10/train_100shot.npz,eurosat,flowers102,hymenoptera}

The flipped ones are sampled anew for each of three seeds. Labels that were wrong before count as
mistakes of the audit, so that it is at least as right as is printed. Writes
results/wrong_labels.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from headstart.data.images import read_images
from headstart.data.options import DataOptions
from headstart.report.audit import audit

RESULTS = Path(__file__).parent / "results" / "wrong_labels.json"


def flipped_and_found(data: str, share: float, seed: int, model: str) -> dict[str, float]:
    """One audit of a data set, a fraction of whose labels was changed to another class."""
    read = read_images(data, DataOptions(val_fraction=0.0))
    rng, flipped = np.random.default_rng(seed), set()
    for examples in read.splits.values():
        for i in rng.permutation(len(examples))[: round(share * len(examples))]:
            examples.labels[i] = (examples.labels[i] + rng.integers(1, len(read.classes))) % len(
                read.classes
            )
            flipped.add(examples.names[i])
    found = audit(read, model=model)
    doubted = {each.name for each in found.mislabelled}
    return {
        "images": found.images,
        "flipped": len(flipped),
        "doubted": len(doubted),
        "right": len(doubted & flipped),
        "agreement": found.agreement or 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--model", default="bit-mini")
    arguments = parser.parse_args()
    table = {}
    print(
        f"{'data':24} {'images':>7} {'agrees':>7} {'flipped':>8} {'found':>6} {'doubted':>8}"
        f" {'right':>6}"
    )
    for data in arguments.data:
        runs = [
            flipped_and_found(data, arguments.share, seed, arguments.model) for seed in range(3)
        ]
        flipped, doubted, right = (
            sum(run[name] for run in runs) for name in ("flipped", "doubted", "right")
        )
        name, agreement = Path(data).name, float(np.mean([run["agreement"] for run in runs]))
        table[name] = {
            "runs": runs,
            "recall": right / flipped,
            "precision": right / max(1, doubted),
        }
        shares = (
            f"{agreement:7.0%} {flipped:8} {right / flipped:6.0%} {doubted:8}"
            f" {right / max(1, doubted):6.0%}"
        )
        print(f"{name:24} {runs[0]['images']:7} {shares}", flush=True)
    RESULTS.write_text(
        json.dumps({"model": arguments.model, "share": arguments.share, "data": table}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
