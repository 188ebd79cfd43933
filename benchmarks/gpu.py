"""Is every kernel right on this GPU, and how fast is everything beside its peers?

    python benchmarks/gpu.py                        # at most eight minutes, results/gpu.json
    python benchmarks/gpu.py --sections kernels tiles
    python benchmarks/gpu.py --cpu                  # no GPU: every path but CUDA's events, tiny

It needs torch, triton, transformers and timm, and a network for nothing. Sections:

- kernels: every Triton kernel against the definition in float64.
- attention: 12 heads of 64 in bfloat16: sampled (32 hashes of 9 bits) and exact attention beside
  FlashAttention (`scaled_dot_product_attention`) at 1k to 256k tokens, forward and with backward.
- exact: exact attention beside transformers' formula.
- tiles: the kernel of exact attention with other tiles and warps, for tuning.
- networks: forward at batch 1 and 128 and a training step in bfloat16, eager, then compiled, beside
  transformers and timm. Weights are random, and the same in transformers.
- train: `headstart train` in a process of its own.

Every section has a part of the time. A measurement that fails or is cut off is a row that names the
fault; the others go on. Contenders of a case run in turns in one process; times are medians of
CUDA's events, memory is what a run allocates beyond what lived before.
"""

import argparse
import contextlib
import importlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import RESULTS, machine
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import headstart
from headstart.models.yoso import exact, sampled
from headstart.models.yoso.attention import exact_attention, sampled_attention
from headstart.models.yoso.hashing import random_projections
from headstart.models.yoso.kernels import gpu, gpu_exact
from headstart.models.yoso.rows import normalize_rows

Row = dict[str, Any]
BITS, HASHES = 9, 32
# Part of the time that a section may take; what one leaves, the next ones have.
PARTS = {
    "kernels": 0.17,  # most of it compiles
    "attention": 0.18,
    "exact": 0.07,
    "tiles": 0.1,
    "networks": 0.36,
    "train": 0.12,
}


class OutOfTimeError(Exception):
    """A section's time is up."""


@dataclass
class Bench:
    """Where measurements run, until when, and what they found."""

    device: str
    small: bool
    seconds: float  # of one case
    rows: list[Row] = field(default_factory=list)
    section: str = ""

    def add(self, case: str, name: str, **values: Any) -> None:
        """Prints a row and keeps it."""
        self.rows.append({"section": self.section, "case": case, "name": name, **values})
        shown = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
        print(f"{self.section:<10} {case:<34} {name:<26} {shown}", flush=True)

    def fault(self, case: str, name: str, error: BaseException) -> None:
        """A row for what failed."""
        first = (str(error).strip().splitlines() or [""])[0]
        self.add(case, name, fault=f"{type(error).__name__}: {first}"[:200])

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compiled(self, model: torch.nn.Module) -> Any:
        """By Inductor; the small run only goes through the capture."""
        backend = "eager" if self.small else "inductor"
        return torch.compile(model, dynamic=False, backend=backend)

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """One call, by CUDA's events or by the clock."""
        if self.device != "cuda":
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def memory(self, run: Callable[[], Any]) -> float | None:
        """MB that a call allocates beyond what lives."""
        if self.device != "cuda":
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def compare(self, case: str, contenders: dict[str, Callable[[], Any]], base: str) -> None:
        """Times the contenders in turns; each row has the speed-up over `base`."""
        times: dict[str, list[float]] = {}
        memory = {}
        for name, run in contenders.items():
            try:
                run()  # compiles
                memory[name] = self.memory(run)
                times[name] = []
            except OutOfTimeError:
                raise
            except Exception as error:  # a fault of a peer or of the memory must not end the rest
                self.fault(case, name, error)
                if self.device == "cuda":
                    torch.cuda.empty_cache()
        end = time.perf_counter() + self.seconds
        while times and (time.perf_counter() < end or len(next(iter(times.values()))) < 3):
            for name in list(times):
                try:
                    times[name].append(self.milliseconds(contenders[name]))
                except OutOfTimeError:
                    raise
                except Exception as error:
                    self.fault(case, name, error)
                    del times[name]
        medians = {name: statistics.median(each) for name, each in times.items() if each}
        for name, ms in medians.items():
            faster = medians[base] / ms if base in medians else None
            self.add(case, name, ms=ms, min_ms=min(times[name]), speed_up=faster, mb=memory[name])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the block after that time, also out of a compilation."""

    def stop(number: int, frame: Any) -> None:
        raise OutOfTimeError(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Kernels.


def tokens(
    bench: Bench, length: int, heads: int, dtype: torch.dtype, size: int = 64
) -> list[Tensor]:
    """Queries, keys, values and gradients near 16 centers, as in a trained network."""
    source: Any = {"generator": torch.Generator(bench.device).manual_seed(length)}
    source["device"] = bench.device
    centers = torch.randn(2, 1, heads, 16, size, **source)
    which = torch.randint(0, 16, (length,), **source)
    near, far = centers[0][:, :, which], centers[1][:, :, which]

    def noisy(center: Tensor | float, scale: float) -> Tensor:
        noise = torch.randn(1, heads, length, size, **source)
        return (center + scale * noise).to(dtype)

    return [noisy(near, 0.5), noisy(near, 0.5), noisy(far, 1.0), noisy(0.0, 1.0)]


def kernels(bench: Bench) -> None:
    """Errors relative to the largest value; of sampled attention, the part of rows that differ,
    because a bit within rounding of zero may fall either way.
    """
    length = 70 if bench.small else 1999
    for dtype, allowed, sizes in (
        (torch.float32, 1e-3, (64, 100)),
        (torch.bfloat16, 3e-2, (64, 128)),
        (torch.float16, 1e-2, (64,)),
    ):
        for size in (8,) if bench.small else sizes:
            case = f"{str(dtype)[6:]}, heads of {size}"
            given = tokens(bench, length, 3, dtype, size)
            query, key = normalize_rows(given[0]), normalize_rows(given[1])
            inputs = [query, key, given[2]]
            wide = [x.double() for x in (given[3], *inputs)]
            runs_on = "Triton" if gpu.usable(*inputs) else "no Triton"
            try:
                pairs = zip(
                    [
                        exact.sum_in_blocks(*inputs, BITS),
                        *exact.gradients_in_blocks(given[3], *inputs, BITS),
                    ],
                    [exact.sum_in_blocks(*wide[1:], BITS), *exact.gradients_in_blocks(*wide, BITS)],
                    strict=True,
                )
                for name, (ours, right) in zip(("forward", "dq", "dk", "dv"), pairs, strict=True):
                    error = float((ours.double() - right).abs().max() / right.abs().max())
                    right_too = error < allowed
                    bench.add(case, f"exact {name}", error=error, right=right_too, by=runs_on)
            except OutOfTimeError:
                raise
            except Exception as error:
                bench.fault(case, "exact", error)
            try:
                projections = random_projections(
                    3, size, hash_code_len=BITS, num_hash=8, seed=0, device=bench.device
                )
                hashed = (projections, BITS, 8)
                pairs = zip(
                    [
                        sampled.sum_over_buckets(*inputs, *hashed, True),
                        *sampled.gradients_over_buckets(given[3], *inputs, *hashed),
                    ],
                    [
                        sampled.sum_over_buckets(*wide[1:], *hashed, True),
                        *sampled.gradients_over_buckets(*wide, *hashed),
                    ],
                    strict=True,
                )
                for name, (ours, right) in zip(("forward", "dq", "dk", "dv"), pairs, strict=True):
                    off = (ours.double() - right).abs().amax(-1) > allowed * right.abs().max()
                    part = float(off.double().mean())
                    bench.add(case, f"sampled {name}", rows_off=part, right=part < 0.02, by=runs_on)
            except OutOfTimeError:
                raise
            except Exception as error:
                bench.fault(case, "sampled", error)


# Attention.


def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.device.type != "cuda":
        return scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value)


def sampled_run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return sampled_attention(query, key, value, hash_code_len=BITS, num_hash=HASHES)


def exact_run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact_attention(query, key, value, hash_code_len=BITS)


def both_ways(
    attend: Callable[..., Tensor], given: list[Tensor]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The forward pass, and forward and backward."""
    inputs = [x.clone().requires_grad_() for x in given[:3]]

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(*given[:3])

    def training() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*inputs), inputs, given[3])

    return forward, training


def attention(bench: Bench) -> None:
    lengths = (64, 128) if bench.small else (1024, 4096, 16_384, 65_536, 262_144)
    for length in lengths:
        given = tokens(bench, length, 2 if bench.small else 12, torch.bfloat16)
        contenders = {"FlashAttention": flash, "headstart, sampled": sampled_run}
        if length <= 65_536:
            contenders["headstart, exact"] = exact_run
        ways = {name: both_ways(attend, given) for name, attend in contenders.items()}
        for number, way in enumerate(("forward", "forward and backward")):
            runs = {name: each[number] for name, each in ways.items()}
            bench.compare(f"{length:,} tokens, {way}", runs, "FlashAttention")


def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Exact attention as transformers computes it, with its own gradient."""
    from transformers.models.yoso.modeling_yoso import YosoCumulation

    flat = [x.flatten(0, 1) for x in (normalize_rows(query), normalize_rows(key), value)]
    keep = torch.ones(flat[0].shape[:2], device=query.device, dtype=query.dtype)
    out = YosoCumulation.apply(keep, keep, *flat, {"hash_code_len": BITS})
    return torch.nn.functional.normalize(out.view(value.shape), p=2, dim=-1)


def exact_beside_transformers(bench: Bench) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for texts, length in ((1, 64),) if bench.small else ((4, 512), (1, 4096), (8, 4096)):
            given = tokens(bench, length, texts * (2 if bench.small else 12), dtype)
            ways = {
                "transformers": both_ways(formula, given),
                "headstart": both_ways(exact_run, given),
            }
            for number, way in enumerate(("forward", "forward and backward")):
                case = f"{str(dtype)[6:]}, {texts} x {length}, {way}"
                runs = {name: each[number] for name, each in ways.items()}
                bench.compare(case, runs, "transformers")


def tiles(bench: Bench) -> None:
    """Forward and backward of exact attention with other tiles; the first is what is used."""
    import triton  # noqa: F401  # the fault's row then names what is missing

    length, options = (
        (40, ((32, 32),)) if bench.small else (4096, ((128, 128), (64, 64), (128, 32)))
    )
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value, grad = tokens(bench, length, 1 if bench.small else 12, dtype)
        inputs = (normalize_rows(query), normalize_rows(key), value, BITS)
        used = (gpu_exact.TILES[dtype, False], gpu_exact.WARPS, gpu_exact.STAGES)
        others = [(pair, warps, 2) for pair in options for warps in (4, 8)]
        for tile, warps, depth in [used, (used[0], used[1], 3), *others]:
            case = f"{str(dtype)[6:]}, {tile[0]} x {tile[1]}, {warps} warps, {depth} stages"
            runs = {
                "forward": partial(gpu_exact.exact_forward, *inputs),
                "backward": partial(gpu_exact.exact_backward, grad, *inputs),
            }
            with using_tiles(dtype, tile, warps, depth):
                bench.compare(case, runs, "forward")


@contextlib.contextmanager
def using_tiles(
    dtype: torch.dtype, tile: tuple[int, int], warps: int, stages: int
) -> Iterator[None]:
    before = gpu_exact.TILES[dtype, False], gpu_exact.WARPS, gpu_exact.STAGES
    gpu_exact.TILES[dtype, False], gpu_exact.WARPS, gpu_exact.STAGES = tile, warps, stages
    try:
        yield
    finally:
        gpu_exact.TILES[dtype, False], gpu_exact.WARPS, gpu_exact.STAGES = before


# Networks.


@dataclass(frozen=True)
class Case:
    """A network: its class in both libraries, its configuration, the shape of an input, the batch
    of a training step, and its name in timm.
    """

    network: str
    values: dict[str, Any]
    shape: tuple[int, ...]
    training_batch: int
    timm: str = ""


YOSO = {"num_labels": 2, "vocab_size": 50265, "use_expectation": True}
BEIT = {"use_relative_position_bias": True}
NETWORKS = {
    "BiT-50": Case(
        "BitForImageClassification", {"num_labels": 1000}, (3, 224, 224), 64, "resnetv2_50x1_bit"
    ),
    "BEiT-base": Case(
        "BeitForImageClassification",
        {"num_labels": 1000, **BEIT},
        (3, 224, 224),
        64,
        "beit_base_patch16_224",
    ),
    "CvT-13": Case("CvtForImageClassification", {"num_labels": 1000}, (3, 224, 224), 64),
    "BEiT segmentation 640": Case(
        "BeitForSemanticSegmentation",
        {
            "num_labels": 150,
            "image_size": 640,
            "use_mean_pooling": False,
            "out_indices": [3, 5, 7, 11],
            **BEIT,
        },
        (3, 640, 640),
        4,
    ),
    "YOSO 512": Case("YosoForSequenceClassification", YOSO, (512,), 32),
    "YOSO 4,096": Case(
        "YosoForSequenceClassification", {**YOSO, "max_position_embeddings": 4096}, (4096,), 4
    ),
}
SMALL_BEIT = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SMALL = {
    "BiT": Case(
        "BitForImageClassification",
        {"num_labels": 3, "hidden_sizes": [128, 128], "depths": [1, 1], "embedding_size": 32},
        (3, 32, 32),
        2,
        "test_resnet",
    ),
    "BEiT segmentation": Case(
        "BeitForSemanticSegmentation",
        {
            "num_labels": 3,
            "image_size": 64,
            "use_mean_pooling": False,
            "out_indices": [2, 3, 4, 5],
            **BEIT,
            **SMALL_BEIT,
        },
        (3, 64, 64),
        2,
    ),
    "YOSO": Case("YosoForSequenceClassification", {**YOSO, **SMALL_BEIT}, (20,), 2),
}


class Plain(torch.nn.Module):
    """A network as a function of one tensor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out if isinstance(out, Tensor) else out.logits


def built(case: Case) -> dict[str, Callable[[], torch.nn.Module]]:
    """How each library makes the network. Ours comes from the folder that transformers wrote, with
    its weights and its arithmetic, where transformers is installed.
    """
    folder = tempfile.TemporaryDirectory()

    def theirs() -> torch.nn.Module:
        import transformers
        from transformers.models.yoso import modeling_yoso

        modeling_yoso.is_ninja_available = lambda: False  # exact attention needs no compilation
        network = getattr(transformers, case.network)
        model = network(network.config_class(**case.values))
        model.save_pretrained(folder.name)
        return Plain(model)

    def ours() -> torch.nn.Module:
        network = getattr(headstart, case.network)
        if Path(folder.name, "config.json").exists():
            return Plain(network.from_pretrained(folder.name, compat="transformers"))
        return Plain(network(network.config_class(**case.values)))

    def timms() -> torch.nn.Module:
        import timm

        return Plain(timm.create_model(case.timm))

    return {"transformers": theirs, "headstart": ours} | ({"timm": timms} if case.timm else {})


def example(bench: Bench, case: Case, batch: int) -> Tensor:
    if len(case.shape) == 1:
        return torch.randint(5, 50_000, (batch, *case.shape), device=bench.device)
    return torch.randn(batch, *case.shape, device=bench.device)


def networks(bench: Bench) -> None:
    """First everything eager, then compiled while there is time."""
    torch.manual_seed(0)
    cases = SMALL if bench.small else NETWORKS
    for compiled in (False, True):
        for name, case in cases.items():
            models = {}
            for library, build in built(case).items():
                try:
                    models[library] = build().to(bench.device)
                except OutOfTimeError:
                    raise
                except Exception as error:  # a peer that is not installed
                    bench.fault(name, library, error)
            batches = (1, 2) if bench.small else (1, 128)
            for batch in batches:
                forward(bench, name, case, batch, models, compiled)
            training(bench, name, case, models, compiled)


def forward(
    bench: Bench,
    name: str,
    case: Case,
    batch: int,
    models: dict[str, torch.nn.Module],
    compiled: bool,
) -> None:
    x = example(bench, case, batch)
    x = x.bfloat16() if x.is_floating_point() else x
    runs: dict[str, Callable[[], Any]] = {}
    for library, model in models.items():
        fast = model.eval().to(torch.bfloat16)
        run = bench.compiled(fast) if compiled else fast
        runs[library] = lambda run=run: run(x)
    kind = "compiled" if compiled else "eager"
    with torch.no_grad():
        if not compiled and {"transformers", "headstart"} <= runs.keys():
            try:
                ours, right = (runs[each]().float() for each in ("headstart", "transformers"))
                scale = right.abs().max().clamp(min=1e-6)
                difference = float((ours - right).abs().max() / scale)
                bench.add(f"{name}, batch {batch}", "headstart", difference=difference)
            except OutOfTimeError:
                raise
            except Exception as error:
                bench.fault(f"{name}, batch {batch}", "difference", error)
        bench.compare(f"{name}, batch {batch}, {kind}", runs, base_of(runs))


def training(
    bench: Bench, name: str, case: Case, models: dict[str, torch.nn.Module], compiled: bool
) -> None:
    """A step of SGD under autocast, with float32 weights."""
    x = example(bench, case, case.training_batch)
    runs = {}
    for library, model in models.items():
        model.train().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        run = bench.compiled(model) if compiled else model

        def step(run: Any = run, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.autocast(bench.device, dtype=torch.bfloat16):
                loss = run(x).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        runs[library] = step
    kind = "compiled" if compiled else "eager"
    case_name = f"{name}, training step of {case.training_batch}, {kind}"
    bench.compare(case_name, runs, base_of(runs))


def base_of(runs: dict[str, Any]) -> str:
    return "transformers" if "transformers" in runs else next(iter(runs), "")


# Training.


def train(bench: Bench) -> None:
    """`headstart train` on photos that are made here: bright and dark noise."""
    classes, photos, side = (2, 6, 32) if bench.small else (4, 64, 256)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(classes):
            place = Path(folder, "photos", f"class{number}")
            place.mkdir(parents=True)
            for photo in range(photos):
                low = 40 * number
                pixels = random.integers(low, low + 60, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{photo}.png")
        command = [sys.executable, "-m", "headstart", "train", f"{folder}/photos"]
        command += ["--out", f"{folder}/run", "--model", "bit-mini", "--device", bench.device]
        command += ["--tune", "full", "--set", f"steps={2 if bench.small else 50}"]
        command += [] if bench.small else ["--precision", "bf16"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-300:].replace("\n", " "))
        facts = json.loads(Path(folder, "run", "results.json").read_text())
        values = {"seconds": seconds, "training_seconds": facts["seconds"]}
        bench.add("bit-mini, full", "headstart train", **values, device=facts["device"])


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "kernels": kernels,
    "attention": attention,
    "exact": exact_beside_transformers,
    "tiles": tiles,
    "networks": networks,
    "train": train,
}


def load_peers() -> None:
    """Imports the peers, which takes a while, before any section's time begins."""
    for module in ("transformers", "transformers.models.yoso.modeling_yoso", "timm"):
        with contextlib.suppress(ImportError):  # a row of the table will name it
            importlib.import_module(module)


def card() -> dict[str, Any]:
    """The GPU, and what the numbers were measured with."""
    facts = machine()
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        facts["gpu"] = {"name": found.name, "gb": found.total_memory / 1e9}
        facts["cuda"] = torch.version.cuda or torch.version.hip
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=460.0, help="of everything together")
    parser.add_argument("--case-seconds", type=float, default=0.5, help="of one comparison")
    parser.add_argument("--cpu", action="store_true", help="a small run without a GPU")
    parser.add_argument("--out", type=Path, help="JSON; default results/gpu.json, none with --cpu")
    arguments = parser.parse_args()
    if not arguments.cpu and not torch.cuda.is_available():
        parser.error("no GPU; --cpu runs everything small")
    if arguments.cpu:
        torch.set_num_threads(1)
    bench = Bench(
        "cpu" if arguments.cpu else "cuda",
        arguments.cpu,
        0.0 if arguments.cpu else arguments.case_seconds,
    )
    out = arguments.out or (None if arguments.cpu else RESULTS / "gpu.json")
    begun = time.monotonic()
    load_peers()
    facts, end = card(), begun + arguments.seconds
    print(json.dumps(facts), flush=True)
    for number, section in enumerate(arguments.sections):
        rest = sum(PARTS[each] for each in arguments.sections[number:])
        bench.section = section
        start = time.monotonic()
        try:
            with limited((end - start) * PARTS[section] / rest):
                SECTIONS[section](bench)
        except Exception as error:
            bench.fault(section, "the rest of the section", error)
        bench.add(section, "section", seconds=time.monotonic() - start)
        if out is not None:  # after every section: a machine may be taken away
            out.write_text(json.dumps({"machine": facts, "rows": bench.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
