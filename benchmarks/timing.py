"""What the benchmarks share.

Contenders interleaved in one process, medians and ratios, a table and a JSON file.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    seconds: float = 10.0,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each contender by `clock`, measured in turns until about `seconds` have
    passed and each ran `least` times.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, run in contenders.items():
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    return times


def peak_gflops(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """GFLOP/s of a large matrix product.

    The arithmetic floor of this machine and this number of threads.
    """
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = min(interleaved({"matmul": lambda: a @ b}, 1.0)["matmul"])
    return 2 * size**3 / best / 1e6


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    names = (
        "torch",
        "transformers",
        "timm",
        "openvino",
        "onnxruntime",
        "jax",
        "keras",
        "tensorflow",
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return {
        "cpu": cpu or platform.processor(),
        "threads": torch.get_num_threads(),
        "date": str(date.today()),
        "versions": found,
    }


def report(
    title: str, rows: Mapping[str, Mapping[str, list[float]]], baseline: str, file: str
) -> None:
    """Prints median milliseconds and how many times as fast as `baseline` each contender is, and
    writes `results/<file>.json`.
    """
    facts = machine()
    print(
        f"# {title}\n{facts['cpu']}, {facts['threads']} threads, {facts['date']},"
        f" {facts['versions']}\n"
    )
    table: dict[str, Any] = {}
    for case, times in rows.items():
        medians = {name: statistics.median(each) for name, each in times.items()}
        table[case] = {
            name: {
                "ms": round(ms, 2),
                "min_ms": round(min(times[name]), 2),
                "times_as_fast": round(medians[baseline] / ms, 2),
            }
            for name, ms in medians.items()
        }
        for name, row in table[case].items():
            print(
                f"{case:<28} {name:<28} {row['ms']:>10.2f} ms   min {row['min_ms']:>10.2f}  "
                f" {row['times_as_fast']:>5.2f} x {baseline}"
            )
    RESULTS.mkdir(exist_ok=True)
    result = {"title": title, "machine": facts, "baseline": baseline, "rows": table}
    (RESULTS / f"{file}.json").write_text(json.dumps(result, indent=1) + "\n")
