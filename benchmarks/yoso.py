"""How long does a whole YOSO base model take, beside transformers' one (exact attention; it has no
other on a CPU)?

    python benchmarks/yoso.py [turns]

Random weights, no padding (transformers attends it), forward without gradients, 4 texts of 512
tokens and 1 of 4,096. Outputs are compared before anything is timed. transformers takes about 40 s
for the long text on two cores, so two turns are the default, after a warm-up on short texts.
Processor time is printed too: it does not grow where other programs share the cores.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from timing import report

from headstart import YosoConfig, YosoForMaskedLM


def outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits


def turns(
    contenders: dict[str, Callable[[], torch.Tensor]], count: int, case: str
) -> dict[str, list[float]]:
    """Milliseconds of each contender in turns.

    Medians of wall and processor time are printed at once.
    """
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, run in contenders.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(1e3 * (time.perf_counter() - start))
            busy[name].append(1e3 * (time.process_time() - cpu))
    first = statistics.median(next(iter(busy.values())))
    for name in contenders:
        real, ms = statistics.median(wall[name]), statistics.median(busy[name])
        print(
            f"{case:<10} {name:<22} {real:9.0f} ms, processor time {ms:9.0f} ms,"
            f" {first / ms:5.2f} x",
            flush=True,
        )
    return wall


def main(count: int) -> None:
    torch.manual_seed(0)
    exact = YosoForMaskedLM(YosoConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        exact.save_pretrained(folder)
        theirs = transformers.YosoForMaskedLM.from_pretrained(folder).eval()
        sampled = YosoForMaskedLM.from_pretrained(folder, use_expectation=False, num_hash=32)
    short = torch.randint(3, 50_000, (2, 64))
    difference = float((outputs(exact, short) - outputs(theirs, short)).abs().max())
    print(f"largest difference of the logits: {difference:.2g}")
    assert difference < 1e-3
    outputs(sampled, short)
    rows = {}
    for texts, length in ((4, 512), (1, 4096)):
        ids = torch.randint(3, 50_000, (texts, length))
        contenders = {
            "transformers": lambda ids=ids: outputs(theirs, ids),
            "headstart, exact": lambda ids=ids: outputs(exact, ids),
            "headstart, 32 hashes": lambda ids=ids: outputs(sampled, ids),
        }
        rows[f"{texts} x {length}"] = turns(contenders, count, f"{texts} x {length}")
    report("YOSO base, masked language model, forward", rows, "transformers", "yoso")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
