"""Long texts read for real: small YOSOs trained with sampled attention beside the same ones trained
in expectation.

    python benchmarks/yoso_long_texts.py all DATA OUT        # DATA holds `lm`, `imdb` and
    `lra_listops`; about an hour of one core python benchmarks/yoso_long_texts.py cost
    # time and memory of one training step, 512 to 4,096 tokens

Every training is a process of its own, so that its processor time is its own too. Both kinds of
attention start from the same weights, see the same batches and take the same steps.

- ListOps: expressions of 500 to 2,000 symbols, as Tay et al. 2021 ("Long Range Arena") define them.
  Training examples are drawn by the script, short ones (10 to 200 symbols) first; the network is
  evaluated on the 200 of DATA's file and on 1,000 drawn ones that are not trained on.
- IMDb, one review of at most 512 tokens: 500 reviews to train on, 250 to judge.
- IMDb, as many reviews of one opinion as fit into 4,096 tokens, joined in random choices: long
  texts whose every part counts a little.
- Each IMDb network has first been a language model (masked tokens, 512 at a time) of the texts in
  DATA, with its own kind of attention.
"""

import argparse
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "yoso_long_texts.json"
KINDS: dict[str, dict[str, Any]] = {
    "expectation": {"use_expectation": True},
    "sampled": {"use_expectation": False, "num_hash": 32},
}
LISTOPS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
}
IMDB = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
}
# Ways to read with a trained network, whichever way it was trained.
READINGS: dict[str, dict[str, Any]] = {"exactly": {"use_expectation": True}} | {
    f"with {hashes} hashes": {"use_expectation": False, "num_hash": hashes}
    for hashes in (32, 128, 512)
}
COMMON = {"hash_code_len": 8, "layer_norm_eps": 1e-5}
VOCABULARY = 4000
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")

Texts = list[tuple[str, str]]  # (text, class)


# Texts --------------------------------------------------------------------------------------------


def expression(rng: random.Random, depth: int) -> tuple[list[str], int]:
    """Symbols and value of a random expression; three of four places hold a digit."""
    if depth >= 10 or (depth > 1 and rng.random() > 0.25):
        digit = rng.randrange(10)
        return [str(digit)], digit
    operator = rng.choice(OPERATORS)
    parts = [expression(rng, depth + 1) for _ in range(rng.randint(2, 10))]
    symbols, values = (
        [operator, *(s for part, _ in parts for s in part), "]"],
        sorted(value for _, value in parts),
    )
    middle = (
        values[(len(values) - 1) // 2]
        if len(values) % 2
        else (values[len(values) // 2 - 1] + values[len(values) // 2]) // 2
    )
    return (
        symbols,
        {"[MIN": values[0], "[MAX": values[-1], "[MED": middle, "[SM": sum(values) % 10}[operator],
    )


def listops(count: int, seed: int, without: set[str], least: int = 501, most: int = 1999) -> Texts:
    """Expressions of so many symbols that are not in `without`."""
    rng, found, seen = random.Random(seed), Texts(), set(without)
    while len(found) < count:
        symbols, value = expression(rng, 1)
        text = " ".join(symbols)
        if least <= len(symbols) <= most and text not in seen:
            seen.add(text)
            found.append((text, str(value)))
    return found


def listops_file(path: Path) -> Texts:
    """The published layout; closing brackets that open nothing tell nothing, and Tay et al.

    Drop them too.
    """
    lines = (
        gzip.decompress(path.read_bytes())
        .decode()
        .replace("( ", "")
        .replace(" )", "")
        .split("\n")[1:]
    )
    return [
        (" ".join(text.split()), label.strip())
        for text, label in (line.split("\t") for line in lines if line)
    ]


def reviews(path: Path) -> Texts:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [
        (" ".join(row["text"].replace("<br />", " ").split()), str(row["label"])) for row in rows
    ]


def joined(rows: Texts, count: int, lengths: dict[str, int], limit: int, seed: int) -> Texts:
    """Texts of as many random reviews of one class as fit into `limit` tokens."""
    rng, found = random.Random(seed), Texts()
    for i in range(count):
        label = ("0", "1")[i % 2]
        mine = [text for text, of in rows if of == label]
        rng.shuffle(mine)
        chosen, room = [], limit
        for text in mine:
            if lengths[text] + 2 > room:
                break
            chosen.append(text)
            room -= lengths[text] + 2
        if chosen:
            found.append((" ".join(chosen), label))
    return found


def write(path: Path, rows: Texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8"
    )


# Training -----------------------------------------------------------------------------------------


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_here(job: dict[str, Any]) -> None:
    """One training in this process; prints its numbers as JSON."""
    import torch

    import headstart
    from headstart.progress import Silent
    from headstart.training.evaluate import evaluate

    class Watch(Silent):
        """Processor time after each step."""

        times: list[float] = []

        def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
            self.times.append(time.process_time())

    torch.set_num_threads(1)
    watch, values = Watch(), {"checkpoint_every": 10**6, **job["values"]}
    result = headstart.train(
        job["data"], model=job["model"], out=job["out"], task=job["task"], progress=watch, **values
    )
    found: dict[str, Any] = {
        "seconds": (
            (watch.times[-1] - watch.times[0]) * len(watch.times) / max(1, len(watch.times) - 1)
        )
    }
    found["steps"], found["metrics"] = result.recipe.steps, result.metrics
    for name, (data, read_as) in job.get("judge", {}).items():
        folder = Path(job["out"])
        if read_as:
            folder = Path(shutil.copytree(folder, f"{folder}_{name}", dirs_exist_ok=True))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps(config | read_as), encoding="utf-8")
        scores = evaluate(folder, data, split="validation")[1]
        found[name] = {
            "accuracy": scores.metrics["accuracy"],
            "interval": scores.interval,
            "examples": scores.examples,
        }
    print(json.dumps(found))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One training in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "job", json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{job['out']} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def network(
    folder: Path, sizes: dict[str, int], tokenizer: Any, kind: str, head: str, **values: Any
) -> Path:
    """A network of random weights, the same for each kind of attention, with its tokenizer."""
    import torch

    import headstart

    torch.manual_seed(0)
    config = headstart.YosoConfig(
        vocab_size=len(tokenizer), **COMMON, **sizes, **KINDS[kind], **values
    )
    getattr(headstart, head)(config).save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    return folder / kind


def bag_of_words(train: Texts, test: Texts) -> float:
    """Accuracy of a logistic regression on weighted words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+", min_df=2)
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    model.fit(*zip(*train, strict=True))
    return float(model.score(*zip(*test, strict=True)))


def by_operator(train: Texts, test: Texts) -> float:
    """Accuracy of the commonest value for the first symbol, which a text's beginning alone gives
    away.
    """
    first = {
        name: Counter(v for text, v in train if text.startswith(name)).most_common(1)[0][0]
        for name in OPERATORS
    }
    return sum(first[text.split(" ", 1)[0]] == value for text, value in test) / len(test)


def say(title: str, kind: str, found: dict[str, Any]) -> None:
    judged = {k: v["accuracy"] for k, v in found.items() if isinstance(v, dict) and "accuracy" in v}
    print(f"{title}, {kind}: {found['seconds']:.0f} s, {judged}", flush=True)


def task_listops(data: Path, out: Path, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    from headstart import YosoTokenizer

    published = listops_file(data / "lra_listops" / "basic_val.tsv.gz")
    test = listops(1000, 1, {text for text, _ in published})
    known = {text for text, _ in (*published, *test)}
    train, short = listops(6000, 0, known), listops(20_000, 2, known, 10, 200)
    for name, rows in (("train", train), ("val", published)):
        write(out / "listops" / f"{name}.tsv", rows)
    for name, rows in (("train", short[500:]), ("val", short[:500])):
        write(out / "listops_short" / f"{name}.tsv", rows)
    for name, rows in (("published", published), ("drawn", test)):
        write(out / "judge" / name / "train.tsv", rows[:20])
        write(out / "judge" / name / "val.tsv", rows)
    tokenizer = YosoTokenizer.train([" " + text for text, _ in train[:500]], vocab_size=300)
    yield (
        "listops baselines, drawn",
        {
            "bag of words": bag_of_words(train[:2000], test),
            "first symbol": by_operator(train, test),
        },
    )
    for kind in KINDS:
        model = network(
            out / "listops_networks",
            LISTOPS,
            tokenizer,
            kind,
            "YosoForSequenceClassification",
            num_labels=10,
        )
        values = {"lr": 1e-3, "max_length": 2048, "eval_every": 10**6}
        for name, count, size in (("listops_short", 2 * steps, 32), ("listops", steps, 16)):
            found = run(
                {
                    "data": str(out / name),
                    "model": str(model),
                    "out": str(out / f"{name}_{kind}"),
                    "task": "text-classification",
                    "values": {
                        "steps": count,
                        "batch_size": size,
                        "micro_batch": size if "short" in name else 8,
                        **values,
                    },
                    "judge": {
                        name: (str(out / "judge" / name), {}) for name in ("published", "drawn")
                    }
                    if name == "listops"
                    else {},
                }
            )
            say(name, kind, found)
            yield f"{name}, {kind}", found
            model, values["lr"] = out / f"{name}_{kind}", 5e-4


def task_imdb(data: Path, out: Path, scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    from headstart import YosoTokenizer

    train, test = reviews(data / "imdb" / "train.jsonl"), reviews(data / "imdb" / "val.jsonl")
    lines = [
        line
        for file in sorted((data / "lm").glob("*.txt"))
        for line in file.read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    lines += [text for text, _ in train] * 2
    tokenizer = YosoTokenizer.train(lines, vocab_size=VOCABULARY)
    random.Random(0).shuffle(lines)
    (out / "lm").mkdir(parents=True, exist_ok=True)
    (out / "lm" / "train.txt").write_text("\n".join(lines[100:]), encoding="utf-8")
    (out / "lm" / "dev.txt").write_text("\n".join(lines[:100]), encoding="utf-8")
    lengths = {
        text: len(ids)
        for text, ids in zip(
            *(lambda t: (t, tokenizer(t)["input_ids"]))([t for t, _ in train + test]), strict=True
        )
    }
    long_train, long_test = (
        joined(rows, n, lengths, 4090, 0) for rows, n in ((train, 800), (test, 300))
    )
    for name, parts in (("imdb_512", (train, test)), ("imdb_4096", (long_train, long_test))):
        for file, rows in zip(("train", "val"), parts, strict=True):
            write(out / name / f"{file}.tsv", rows)
        yield (
            f"{name} baselines",
            {"bag of words": bag_of_words(*parts), "texts": [len(rows) for rows in parts]},
        )
    for kind in KINDS:
        found = run(
            {
                "data": str(out / "lm"),
                "model": str(
                    network(out / "imdb_networks", IMDB, tokenizer, kind, "YosoForMaskedLM")
                ),
                "out": str(out / f"lm_{kind}"),
                "task": "masked-language-modeling",
                "values": {
                    "steps": round(800 * scale),
                    "batch_size": 8,
                    "micro_batch": 8,
                    "lr": 1.5e-3,
                    "max_length": 512,
                    "eval_every": 10**6,
                },
            }
        )
        say("language model", kind, found)
        yield f"language model, {kind}", found
        for name, length, steps, size, lr in (
            ("imdb_512", 512, 240, 16, 5e-4),
            ("imdb_4096", 4096, 200, 8, 1e-3),
        ):
            found = run(
                {
                    "data": str(out / name),
                    "model": str(out / f"lm_{kind}"),
                    "out": str(out / f"{name}_{kind}"),
                    "task": "text-classification",
                    "values": {
                        "steps": round(steps * scale),
                        "batch_size": size,
                        "micro_batch": min(size, 8192 // length),
                        "lr": lr,
                        "max_length": length,
                        "eval_every": 10**6,
                    },
                    "judge": {
                        f"read {way}": (str(out / name), values) for way, values in READINGS.items()
                    },
                }
            )
            say(name, kind, found)
            yield f"{name}, {kind}", found


# Cost ---------------------------------------------------------------------------------------------


def cost_here(kind: str, length: int) -> None:
    """Processor time and memory of training steps with one text.

    "dense" is the expectation with all L x L weights in memory.
    """
    import torch

    from headstart import YosoConfig, YosoForSequenceClassification
    from headstart.models.yoso import torch as networks
    from headstart.models.yoso.attention import exact_attention_plain

    torch.set_num_threads(1)
    values = KINDS["expectation" if kind == "dense" else kind]
    if kind == "dense":
        networks.exact_attention = exact_attention_plain
    model = YosoForSequenceClassification(
        YosoConfig(vocab_size=VOCABULARY, **COMMON, **IMDB, **values)
    )
    ids, labels, mask = (
        torch.randint(5, VOCABULARY, (1, length)),
        torch.zeros(1, dtype=torch.long),
        torch.ones(1, length),
    )
    small = torch.randint(5, VOCABULARY, (1, 16))
    model(small, labels=labels).loss.backward()  # libraries are loaded, gradients exist
    before, times = megabytes(), []
    for _ in range(5):
        start = time.process_time()
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        times.append(1e3 * (time.process_time() - start))
    print(json.dumps({"ms": sorted(times)[len(times) // 2], "megabytes": megabytes() - before}))


def cost() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for length in (512, 1024, 2048, 4096):
        for kind in ("dense", *KINDS):
            call = [sys.executable, __file__, "cost-of", kind, str(length)]
            found = json.loads(
                subprocess.run(call, capture_output=True, text=True, check=True).stdout
            )
            rows[f"{length} tokens, {kind}"] = found
            print(
                f"{length:5} tokens, {kind:12} {found['ms']:7.0f} ms, {found['megabytes']:5.0f} MB",
                flush=True,
            )
    return rows


def keep(part: str, values: dict[str, Any]) -> None:
    """Adds a part to the file of results."""
    RESULTS.parent.mkdir(exist_ok=True)
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    everything.setdefault(part, {}).update(values)
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=("all", "listops", "imdb", "cost", "job", "cost-of"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--scale", type=float, default=1.0, help="Share of the steps.")
    args = parser.parse_args()
    if args.part == "job":
        run_here(json.loads(args.arguments[0]))
    elif args.part == "cost-of":
        cost_here(args.arguments[0], int(args.arguments[1]))
    else:
        if args.part in ("all", "cost"):
            keep("cost of a training step", cost())
        data, out = (Path(p) for p in args.arguments) if args.part != "cost" else (Path(), Path())
        if args.part in ("all", "listops"):
            for name, found in task_listops(data, out, round(600 * args.scale)):
                keep("quality", {name: found})
        if args.part in ("all", "imdb"):
            for name, found in task_imdb(data, out, args.scale):
                keep("quality", {name: found})


if __name__ == "__main__":
    main()
