"""Short texts a second: a classifier on `yoso-mini`, as it is and through `optimize`.

    python benchmarks/yoso_mini_speed.py DATA/text/glue/SST-2/train.tsv [threads]

1,000 sentences, in batches of 64 that are alike in length. Tokenizer, network and both together,
by wall and by processor time: the latter does not grow where other programs share the cores.
Writes results/yoso_mini_speed.json.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, machine

import headstart
from headstart import AutoModelForSequenceClassification, AutoTokenizer

TEXTS, BATCH, ROUNDS = 1000, 64, 5


def sentences(path: Path) -> list[str]:
    """Some thousand of a GLUE table, two words or longer."""
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    texts = [line.rsplit("\t", 1)[0] for line in lines]
    return [text for text in texts if text.count(" ") >= 2][:TEXTS]


def measured(run: Callable[[], Any]) -> dict[str, float]:
    """Texts a second of wall and of processor time, medians."""
    wall, busy = [], []
    run()
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - began)
        busy.append(time.process_time() - cpu)
    return {
        "per second": TEXTS / statistics.median(wall),
        "per processor second": TEXTS / statistics.median(busy),
    }


def main(path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    texts = sorted(sentences(path), key=len)
    parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    tokenizer = AutoTokenizer.from_pretrained("yoso-mini")
    plain = AutoModelForSequenceClassification.from_pretrained("yoso-mini", num_labels=2).eval()
    batches = [tokenizer(part, padding=True, return_tensors="pt") for part in parts]
    middle = batches[len(batches) // 2]
    example = {key: middle[key] for key in ("input_ids", "attention_mask")}
    networks = {"PyTorch": plain, "optimize": headstart.optimize(plain, example=example)}
    # only PyTorch has sampled attention, which starts at 512 tokens; without it others may serve
    exact = AutoModelForSequenceClassification.from_pretrained(
        "yoso-mini", num_labels=2, use_expectation=True
    ).eval()
    for engine in ("openvino", "onnxruntime"):
        networks[f"optimize, exact, {engine}"] = headstart.optimize(
            exact, example=example, engine=engine
        )

    def forward(network: Any, batch: Any) -> Any:
        with torch.inference_mode():
            return network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    found = {"tokenizer": measured(lambda: [tokenizer(part, padding=True) for part in parts])}
    for name, network in networks.items():
        found[name] = measured(lambda network=network: [forward(network, b) for b in batches])
    fastest = max(list(networks), key=lambda name: found[name]["per processor second"])
    found[f"both, {fastest}"] = measured(
        lambda: [
            forward(networks[fastest], tokenizer(part, padding=True, return_tensors="pt"))
            for part in parts
        ]
    )
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches) / TEXTS
    print(f"{TEXTS} texts of {tokens:.1f} tokens on average, {threads} threads")
    print("| | texts a second | texts a processor second |\n|---|---|---|")
    for name, each in found.items():
        print(f"| {name} | {each['per second']:.0f} | {each['per processor second']:.0f} |")
    values = {"machine": machine(), "tokens": tokens, "texts": found}
    (RESULTS / "yoso_mini_speed.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
