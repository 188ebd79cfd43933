"""A small YOSO from nothing: its own vocabulary, language modelling, then two tasks against a bag
of words.

    python examples/yoso_from_scratch.py DATA OUT [--scale 0.1]

DATA is a folder with `lm/*.txt`, `glue/SST-2`, `imdb` and `lra_listops`. It is minutes of one core,
which is far too little for language: the network learns which tokens are frequent and little more.
Even so, what it has read is worth 7 points on SST-2, where it comes near a bag of words; on ListOps
(800 examples) it learns nothing but the commonest answer. Start from a pretrained network for real
work.

With --scale 1 on one core that was shared with ten other programs:

    language model: 6.1% of the hidden tokens, perplexity 808         (273 s, 400 steps of 16 x 66
    tokens) task                                            YOSO  bag of words
    SST-2, from the language model                 71.0%         73.5%   (261 s)
    SST-2, from nothing                            64.0%         73.5%   (239 s)
    ListOps, 1,024 tokens, from nothing            19.0%         16.5%   (98 s)
"""

import argparse
import gzip
from pathlib import Path

import torch

import headstart
from headstart import YosoConfig, YosoForMaskedLM, YosoTokenizer
from headstart.data.sources.tables import read_table

VOCABULARY = 4000
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
}
# The size of Tay et al. 2021 ("Long Range Arena").
LONG = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
}


def bag_of_words(train: Path, dev: Path, text: str, label: str) -> float:
    """Accuracy of a logistic regression on weighted words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = [read_table(path).rows for path in (train, dev)]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+", min_df=2)
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    model.fit([row[text] for row in parts[0]], [str(row[label]) for row in parts[0]])
    return float(
        model.score([row[text] for row in parts[1]], [str(row[label]) for row in parts[1]])
    )


def prepare(data: Path, out: Path) -> None:
    """Puts the texts where `headstart.train` finds them, and makes tokenizer and network."""
    (out / "lm").mkdir(parents=True, exist_ok=True)
    lines = [
        line
        for file in sorted((data / "lm").glob("*.txt"))
        for line in file.read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    lines += [
        " ".join(row["text"].split()) for row in read_table(data / "imdb" / "train.jsonl").rows
    ]
    (out / "lm" / "train.txt").write_text(
        "\n".join(line for i, line in enumerate(lines) if i % 50), encoding="utf-8"
    )
    (out / "lm" / "dev.txt").write_text("\n".join(lines[::50]), encoding="utf-8")
    (out / "listops").mkdir(exist_ok=True)
    for name in ("train", "val"):
        packed = data / "lra_listops" / f"basic_{name}.tsv.gz"
        # Closing brackets that open nothing tell nothing: Tay et al. 2021 drop them too.
        text = gzip.decompress(packed.read_bytes()).decode().replace("( ", "").replace(" )", "")
        (out / "listops" / f"{name}.tsv").write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    tokenizer = YosoTokenizer.train(lines, vocab_size=VOCABULARY)
    for folder, sizes in (("network", SMALL), ("long_network", LONG)):
        YosoForMaskedLM(
            YosoConfig(vocab_size=VOCABULARY, hash_code_len=8, layer_norm_eps=1e-5, **sizes)
        ).save_pretrained(out / folder)
        tokenizer.save_pretrained(out / folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="Fraction of the steps.")
    args = parser.parse_args()
    prepare(args.data, args.out)

    def train(
        name: str, data: Path, model: str, task: str, steps: int, **values: float
    ) -> dict[str, float]:
        result = headstart.train(
            data,
            model=args.out / model,
            out=args.out / name,
            task=task,
            steps=max(2, round(steps * args.scale)),
            eval_every=10**6,
            checkpoint_every=10**6,
            **values,
        )
        print(
            f"{name}: {result.seconds:.0f} s",
            {key: round(value, 3) for key, value in result.metrics.items()},
            flush=True,
        )
        metrics: dict[str, float] = result.metrics
        return metrics

    lm = train(
        "lm_model",
        args.out / "lm",
        "network",
        "masked-language-modeling",
        400,
        max_length=66,
        lr=2e-3,
        batch_size=16,
    )
    print(
        f"language model: {lm['accuracy']:.1%} of the hidden tokens, perplexity"
        f" {lm['perplexity']:.0f}"
    )
    sst, listops = args.data / "glue" / "SST-2", args.out / "listops"
    rows = [
        ("SST-2, from the language model", sst, "lm_model", 400, {"lr": 5e-4, "max_length": 64}),
        ("SST-2, from nothing", sst, "network", 400, {"lr": 5e-4, "max_length": 64}),
        (
            "ListOps, 1,024 tokens, from nothing",
            listops,
            "long_network",
            80,
            {"lr": 1e-3, "batch_size": 8},
        ),
    ]
    baselines = {
        sst: bag_of_words(sst / "train.tsv", sst / "dev.tsv", "sentence", "label"),
        listops: bag_of_words(listops / "train.tsv", listops / "val.tsv", "Source", "Target"),
    }
    print(f"{'task':45} {'YOSO':>6} {'bag of words':>13}")
    for i, (title, data, model, steps, values) in enumerate(rows):
        found = train(f"task_{i}", data, model, "text-classification", steps, **values)
        print(f"{title:45} {found['accuracy']:6.1%} {baselines[data]:13.1%}", flush=True)


if __name__ == "__main__":
    main()
