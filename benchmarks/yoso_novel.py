"""A novel through `headstart predict`: how long does it take, and how much memory?

    python benchmarks/yoso_novel.py NOVEL.txt TOKENIZER [--layers 4 --width 512] [TOKENS …]

A masked-language YOSO (random weights; by default the paper's small size) of 4,096 positions reads
the first 25,000, 50,000 and 100,000 tokens of the novel with one word hidden, `--long extend`:
positions are repeated, attention is sampled with 32 hashes. Each run is the command line in a
process of its own; memory is the largest the process ever held, less what it held for a text of
five tokens.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import RESULTS, machine

import headstart


def predict(model: Path, text: Path) -> dict[str, float]:
    """Processor seconds and megabytes of a call."""
    program = "import resource, sys; from headstart.cli.app import main\n"
    program += "try: main(sys.argv[1:])\nfinally: print(resource.getrusage(0).ru_maxrss)"
    call = ["predict", str(model), str(text), "--long", "extend", "--set", "num_hash=32", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *call], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result, memory = done.stdout.splitlines()
    assert len(json.loads(result)["masks"][0]) == 3
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "megabytes": round(int(memory) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("novel", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("tokens", type=int, nargs="*", default=[25_000, 50_000, 100_000])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    tokenizer = headstart.YosoTokenizer.from_pretrained(args.tokenizer)
    sizes = {
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
    }
    config = headstart.YosoConfig(
        vocab_size=len(tokenizer), intermediate_size=4 * args.width, **sizes
    )
    words = args.novel.read_text(encoding="utf-8").split(" ")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        model, text = Path(folder) / "model", Path(folder) / "text.txt"
        headstart.YosoForMaskedLM(config).save_pretrained(model)
        tokenizer.save_pretrained(model)
        text.write_text("It was <mask>.", encoding="utf-8")
        short = predict(model, text)
        for tokens in args.tokens:
            share = tokens / len(tokenizer(" ".join(words))["input_ids"])
            part = words[: round(share * len(words))]
            part[len(part) // 2] = "<mask>"
            text.write_text(" ".join(part), encoding="utf-8")
            count, found = len(tokenizer(" ".join(part))["input_ids"]), predict(model, text)
            found = {
                "tokens": count,
                "seconds": found["seconds"] - short["seconds"],
                "megabytes": found["megabytes"] - short["megabytes"],
            }
            rows[f"{count} tokens"] = found
            each = 1024 * found["megabytes"] / count
            print(
                f"{count:7,} tokens: {found['seconds']:6.1f} s of processor time,"
                f" {found['megabytes']:5.0f} MB more, {each:.1f} kB a token"
            )
    facts = {
        "title": "a novel through headstart predict",
        "machine": machine(),
        "network": sizes,
        "start": short,
        "rows": rows,
    }
    (RESULTS / "yoso_novel.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
