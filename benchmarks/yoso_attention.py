"""What does YOSO's attention cost, and how accurate is sampling? 12 heads of 64, against softmax
attention and transformers' formula.

    python benchmarks/yoso_attention.py forward     # sampled (32 hashes of 9 bits) and exact beside
    scaled_dot_product_attention python benchmarks/yoso_attention.py training    # forward and
    backward, on random and on clustered tokens python benchmarks/yoso_attention.py exact       #
    beside transformers' formula, 4x512 and 1x4096 (needs transformers) python
    benchmarks/yoso_attention.py accuracy    # error by hashes and length: table, plot,
    docs/yoso-attention.svg python benchmarks/yoso_attention.py fit         # the polynomial for
    arccos in the CPU kernel

Add lengths to the first two (`forward 1024 65536`). Add `--one-thread` on a busy machine: then it
is the CPU time of one thread that counts. Above 16,384 tokens softmax attention is timed on one
head and counted twelve times.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import RESULTS, interleaved, machine, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headstart.models.yoso.attention import exact_attention, sampled_attention

HEADS, SIZE, BITS, HASHES = 12, 64, 9, 32
ONE_HEAD_FROM = 16_385  # tokens from which softmax attention is timed on one head


def random_tokens(length: int, texts: int = 1, heads: int = HEADS) -> list[Tensor]:
    """Queries, keys and values that have nothing to do with each other.

    The hardest case for accuracy, the easiest for time.
    """
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(texts, heads, length, SIZE, generator=generator) for _ in range(3)]


def clustered_tokens(length: int, texts: int = 1, heads: int = HEADS) -> list[Tensor]:
    """Tokens near 16 centres, with values that go with them, as in a trained network.

    Large buckets, small errors.
    """
    generator = torch.Generator().manual_seed(length)
    centres = torch.randn(2, texts, heads, 16, SIZE, generator=generator)
    which = torch.randint(0, 16, (length,), generator=generator)
    noise = torch.randn(3, texts, heads, length, SIZE, generator=generator)
    near, far = centres[0][:, :, which], centres[1][:, :, which]
    return [near + 0.5 * noise[0], near + 0.5 * noise[1], far + noise[2]]


def sampled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return sampled_attention(query, key, value, hash_code_len=BITS, num_hash=HASHES)


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact_attention(query, key, value, hash_code_len=BITS)


def timed(contenders: dict[str, Callable[[], object]], least: int = 3) -> dict[str, list[float]]:
    return interleaved(
        contenders,
        3.0,
        least,
        time.thread_time if torch.get_num_threads() == 1 else time.perf_counter,
    )


def forward(lengths: list[int]) -> None:
    rows = {}
    with torch.no_grad():
        for length in lengths:
            tokens = random_tokens(length)
            heads = 1 if length >= ONE_HEAD_FROM else HEADS
            contenders: dict[str, Callable[[], object]] = {
                "softmax": lambda t=tokens, a=heads: scaled_dot_product_attention(
                    *(x[:, :a] for x in t)
                ),
                "sampled": lambda t=tokens: sampled(*t),
            }
            if length <= 4096:
                contenders["exact"] = lambda t=tokens: exact(*t)
            if length <= 4096:
                rows[f"{length} tokens"] = timed(contenders)
            else:
                # softmax takes seconds: interleaved with it, the others would be timed only once
                least = {"softmax": 1, "sampled": 7}
                rows[f"{length} tokens"] = {
                    name: timed({name: run}, least[name])[name] for name, run in contenders.items()
                }
            rows[f"{length} tokens"]["softmax"] = [
                HEADS // heads * ms for ms in rows[f"{length} tokens"]["softmax"]
            ]
    report(
        "YOSO attention, forward, 1 text, 12 heads of 64, 32 hashes of 9 bits",
        rows,
        "softmax",
        "yoso_attention_forward",
    )


def training(lengths: list[int]) -> None:
    def step(attention: Callable[..., Tensor], tokens: list[Tensor]) -> None:
        inputs = [x.requires_grad_() for x in tokens]
        torch.autograd.grad(attention(*inputs).sum(), inputs)

    rows = {}
    for length in lengths:
        for kind, make in (("random", random_tokens), ("clustered", clustered_tokens)):
            tokens = make(length)
            contenders = {"softmax": scaled_dot_product_attention, "sampled": sampled} | (
                {"exact": exact} if length <= 4096 else {}
            )
            runs = {
                name: lambda a=attention, t=tokens: step(a, t)
                for name, attention in contenders.items()
            }
            rows[f"{length} {kind} tokens"] = timed(runs)
    report(
        "YOSO attention, forward and backward, 1 text, 12 heads of 64",
        rows,
        "softmax",
        "yoso_attention_training",
    )


def beside_transformers() -> None:
    from transformers.models.yoso.modeling_yoso import YosoCumulation

    config = {"hash_code_len": BITS}
    rows = {}
    with torch.no_grad():
        for texts, length in ((4, 512), (1, 4096)):
            query, key, value = (x.flatten(0, 1) for x in random_tokens(length, texts))
            query, key = (torch.nn.functional.normalize(x, dim=-1) for x in (query, key))
            mask = torch.ones(texts * HEADS, length)

            def theirs(
                q: Tensor = query, k: Tensor = key, v: Tensor = value, m: Tensor = mask
            ) -> Tensor:
                return torch.nn.functional.normalize(
                    YosoCumulation.apply(m, m, q, k, v, config), dim=-1
                )

            def ours(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
                return exact(q[None], k[None], v[None])[0]

            print(
                f"{texts}x{length}: differs from transformers by"
                f" {(ours() - theirs()).abs().max():.1e}"
            )
            rows[f"{texts}x{length}"] = timed({"transformers": theirs, "exact": ours})
    report(
        "YOSO attention in expectation, forward, 12 heads of 64",
        rows,
        "transformers",
        "yoso_attention_exact",
    )


def accuracy() -> None:
    """Mean relative error of a normalized row against the expectation, over two seeds and two
    heads.
    """
    hashes = (8, 16, 32, 64, 128, 256)
    table: dict[str, dict[str, list[float]]] = {}
    with torch.no_grad():
        for kind, make in (("clustered", clustered_tokens), ("random", random_tokens)):
            for fast in (True, False):
                rows = table[f"{kind}, {'fast' if fast else 'dense'} hash"] = {}
                for length in (128, 512, 1024, 4096):
                    tokens = make(length, heads=2)
                    expected = exact(*tokens)
                    rows[str(length)] = [error(tokens, expected, number, fast) for number in hashes]
    print("| tokens | " + " | ".join(map(str, hashes)) + " |")
    for name, rows in table.items():
        print(name)
        for length, errors in rows.items():
            print(f"| {length} | " + " | ".join(f"{e:.3f}" for e in errors) + " |")
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "title": "error of sampled attention",
        "machine": machine(),
        "hashes": hashes,
        "rows": table,
    }
    (RESULTS / "yoso_attention_accuracy.json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(hashes, table)


def error(tokens: list[Tensor], expected: Tensor, num_hash: int, fast: bool) -> float:
    outs = [
        sampled_attention(
            *tokens, hash_code_len=BITS, num_hash=num_hash, use_fast_hash=fast, seed=seed
        )
        for seed in (0, 1)
    ]
    return round(sum(float((out - expected).norm(dim=-1).mean()) for out in outs) / len(outs), 4)


def plot(hashes: tuple[int, ...], table: dict[str, dict[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for kind, style in (("clustered", "-"), ("random", ":")):
        for length, errors in table[f"{kind}, fast hash"].items():
            axes.loglog(
                hashes,
                errors,
                style,
                marker="o",
                markersize=3,
                label=f"{int(length):,} tokens, {kind}",
            )
    axes.set(
        xlabel="hashes",
        ylabel="mean relative error of a row",
        title="Sampled against exact attention, 9 bits, fast hash",
    )
    axes.set_xticks(hashes, [str(number) for number in hashes])
    axes.legend(fontsize=7)
    matplotlib.rcParams["svg.hashsalt"] = "headstart"
    figure.savefig(
        Path(__file__).parents[1] / "docs" / "yoso-attention.svg", metadata={"Date": None}
    )


def fit(degree: int = 6, points: int = 4000) -> None:
    """Coefficients of P in arccos(x) / pi = sqrt(1 - x) P(x), 0 <= x <= 1.

    Least squares, reweighted towards the largest errors.
    """
    x = (1 - np.cos(np.pi * (np.arange(points) + 0.5) / points)) / 2
    root = np.sqrt(1 - x)
    powers, target, weights = (
        np.vander(x, degree + 1, increasing=True),
        np.arccos(x) / np.pi / root,
        np.ones(points),
    )
    for _ in range(200):
        coefficients = np.linalg.lstsq(
            powers * (root * weights)[:, None], target * root * weights, rcond=None
        )[0]
        errors = np.abs(powers @ coefficients - target) * root
        weights *= (errors / errors.max() + 1e-3) ** 0.3
    print(f"largest error {errors.max():.2e}:", ", ".join(f"{c:.9g}" for c in coefficients))


if __name__ == "__main__":
    if "--one-thread" in sys.argv:
        sys.argv.remove("--one-thread")
        torch.set_num_threads(1)
    part = sys.argv[1] if len(sys.argv) > 1 else "forward"
    lengths = [int(length) for length in sys.argv[2:]]
    started = time.perf_counter()
    if part == "forward":
        forward(lengths or [128, 512, 1024, 4096, 16_384, 65_536])
    elif part == "training":
        training(lengths or [512, 1024, 4096])
    else:
        {"exact": beside_transformers, "accuracy": accuracy, "fit": fit}[part]()
    print(f"{math.ceil(time.perf_counter() - started)} seconds")
