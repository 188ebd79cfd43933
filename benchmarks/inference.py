"""How fast is inference of each family, beside its peers, in each precision?

    python benchmarks/inference.py                          # every model, batch 1, float32,
    bfloat16 and int8 python benchmarks/inference.py --models bit-50 --batches 1 8 --seconds 20
    python benchmarks/inference.py --trained bit-mini --calibration train.npz --photos val.npz
    python benchmarks/inference.py --loading --engines torch openvino
    python benchmarks/inference.py --plot                   # prints the table of the docs and draws
    docs/inference.svg

Peers: transformers eager and compiled, timm, and OpenVINO and ONNX Runtime applied to transformers'
    network as a user would. All in one
process, in turns, with the same weights; outputs are compared before timing, and each time is given
as a fraction of the arithmetic limit, the speed of a large matrix product of the same precision in
the same run. Runs add to one table, so that it can be made in parts; a model at a batch is always
measured whole.

The weights are random, so int8 is timed with every layer in int8 and its answers mean nothing.
`--trained` measures int8 as `headstart.optimize` makes it, on a network that was really trained:
how many answers stay, and how fast it is then.
"""

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from timing import RESULTS, interleaved, machine, peak_gflops

import headstart
from headstart.engine import search
from headstart.nn.linear import linear

PLOT = Path(__file__).parents[1] / "docs" / "inference.svg"


@dataclass(frozen=True)
class Case:
    """A network with random weights.

    Class name in both libraries, configuration, GFLOP of one input, and its inputs.
    """

    name: str
    values: dict[str, Any]
    gflop: float
    shape: tuple[int, ...]
    timm: str = ""


CASES = {
    "bit-50": Case(
        "BitForImageClassification", {"num_labels": 1000}, 8.2, (3, 224, 224), "resnetv2_50x1_bit"
    ),
    "cvt-13": Case("CvtForImageClassification", {"num_labels": 1000}, 9.1, (3, 224, 224)),
    "beit-base": Case(
        "BeitForImageClassification",
        {"num_labels": 1000, "use_relative_position_bias": True},
        35.1,
        (3, 224, 224),
        "beit_base_patch16_224",
    ),
    "yoso-512": Case(
        "YosoForSequenceClassification",
        {"num_labels": 2, "vocab_size": 50265, "use_expectation": True},
        96.7,
        (512,),
    ),
    "beit-segmentation-640": Case(
        "BeitForSemanticSegmentation",
        {
            "num_labels": 150,
            "image_size": 640,
            "use_relative_position_bias": True,
            "use_mean_pooling": False,
            "out_indices": [3, 5, 7, 11],
        },
        1930.0,
        (3, 640, 640),
    ),
}


class Plain(torch.nn.Module):
    """A peer's network as a function of one tensor, which exporters like."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.model(x)
        return out if isinstance(out, torch.Tensor) else out.logits


def pair(case: Case) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same network in transformers and here, with the same weights."""
    torch.manual_seed(0)
    theirs = getattr(transformers, case.name)
    peer = theirs(theirs.config_class(**case.values)).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = getattr(headstart, case.name).from_pretrained(folder, compat="transformers")
    return peer, ours


def peers(
    case: Case, peer: torch.nn.Module, x: torch.Tensor, wanted: set[str]
) -> dict[str, Callable[[], Any]]:
    """Ways to run the peer's network that were requested."""
    plain = Plain(peer).eval()
    runs: dict[str, Callable[[], Any]] = {"transformers": lambda: plain(x)}
    if "compile" in wanted:
        compiled = torch.compile(plain)
        runs["transformers + compile"] = lambda: compiled(x)
    if "timm" in wanted and case.timm and importlib.util.find_spec("timm"):
        import timm

        other = timm.create_model(case.timm).eval()
        runs["timm"] = lambda: other(x)
    if "openvino" in wanted:
        import openvino as ov

        graph = ov.convert_model(plain, example_input=x)
        graph.reshape(list(x.shape))
        for name, hint in (("OpenVINO", "f32"), ("OpenVINO bf16", "bf16")):
            config = {
                "INFERENCE_PRECISION_HINT": hint,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            }
            request = ov.compile_model(graph, "CPU", config).create_infer_request()
            runs[f"transformers in {name}"] = lambda request=request: torch.from_numpy(
                request.infer([x.numpy()])[0]
            )
    if "onnxruntime" in wanted:
        import onnxruntime as ort

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                torch.onnx.export(plain, (x,), dynamo=True, input_names=["x"], verbose=False).save(
                    str(path)
                )
            except (
                torch.onnx.OnnxExporterError
            ):  # BEiT of transformers 5.23: a view that the new exporter cannot do
                torch.onnx.export(
                    plain, (x,), str(path), dynamo=False, input_names=["x"], opset_version=17
                )
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = ort.InferenceSession(str(path), options)
        runs["transformers in ONNX Runtime"] = lambda: torch.from_numpy(
            session.run(None, {"x": x.numpy()})[0]
        )
    return runs


def optimised(
    model: torch.nn.Module, x: torch.Tensor, engines: list[str], precisions: list[str]
) -> dict[str, Any]:
    """Our network in each engine and precision that can run it."""
    # of random weights, whose answers are not worth keeping
    from headstart.engine.engines import openvino_int8

    search.AGREEMENT = openvino_int8.AGREEMENT = 0.0
    samples = [
        torch.randn_like(x) if x.is_floating_point() else torch.randint_like(x, 5, 50000)
        for _ in range(8)
    ]
    found = {}
    for precision in precisions:
        for engine in engines:
            name = f"headstart, {engine}, {precision}"
            try:
                data = samples if precision == "int8" else None
                found[name] = headstart.optimize(
                    model,
                    example=x,
                    engine=engine,
                    precision=precision,
                    calibration=data,
                    tolerance=10.0,
                    dynamic=False,
                )
            except headstart.errors.HeadstartError as error:
                print(f"  {name}: {error}")
    return found


def measure(
    key: str, batch: int, arguments: argparse.Namespace, peaks: dict[str, float]
) -> dict[str, Any]:
    """One model at one batch: every contender's times, deviations and shares of the limit."""
    case = CASES[key]
    x = (
        torch.randint(5, 50000, (batch, *case.shape))
        if len(case.shape) == 1
        else torch.randn(batch, *case.shape)
    )
    peer, ours = pair(case)
    runs = peers(case, peer, x, set(arguments.peers))
    runs["headstart, eager"] = lambda: ours(x).logits
    runs |= {
        name: lambda fast=fast: fast(x).logits
        for name, fast in optimised(ours, x, arguments.engines, arguments.precisions).items()
    }
    with torch.inference_mode():
        reference = runs["transformers"]().float()
        outputs = {name: run().float() for name, run in runs.items()}
        times = in_turns(runs, arguments.seconds)
    rows = {}
    base = statistics.median(times["transformers"])
    for name, each in times.items():
        ms, precision = statistics.median(each), precision_of(name)
        rows[name] = {
            "group": group(name),
            "ms": round(ms, 2),
            "min_ms": round(min(each), 2),
            "times_as_fast": round(base / ms, 2),
            "share_of_limit": (
                round(case.gflop * batch / min(each) * 1e3 / peaks[precision], 3)
                if precision in peaks
                else None
            ),
            "deviation": (
                None
                if name == "timm"
                else float(
                    (outputs[name] - reference).abs().max() / reference.abs().max().clamp(min=1)
                )
            ),
        }
        row = rows[name]
        off = "" if row["deviation"] is None else f"{row['deviation']:.1e}"
        share = "" if row["share_of_limit"] is None else f"{row['share_of_limit']:.0%}"
        print(
            f"{key} b{batch:<3} {name:<36} {ms:>10.1f} ms {row['times_as_fast']:>6.2f} x "
            f" {share:>5} of limit  off by {off}",
            flush=True,
        )
    return rows


def group(name: str) -> str:
    """What a contender is compared within."""
    return ("headstart" if name.startswith("headstart") else "peer") + " " + precision_of(name)


def precision_of(name: str) -> str:
    """What a contender computes in."""
    if "int8" in name:
        return "int8"
    return "bfloat16" if "bf" in name else "float32"


def trained(name: str, calibration: Path, photos: Path, seconds: float) -> dict[str, Any]:
    """int8 on a trained network.

    Fraction of answers that stay on photos that the calibration did not see, and times at batch 1
    and 8.
    """
    model = headstart.AutoModelForImageClassification.from_pretrained(name)
    processor = headstart.AutoImageProcessor.from_pretrained(name)
    seen, unseen = (
        processor(list(np.load(file)["images"]), return_tensors="pt")["pixel_values"]
        for file in (calibration, photos)
    )
    fast = {
        precision: headstart.optimize(
            model,
            example=seen[:1],
            engine="openvino",
            precision=precision,
            calibration=[each[None] for each in seen[:512]],
        )
        for precision in ("float32", "bfloat16", "int8")
    }
    found = {}
    with torch.inference_mode():
        wanted = torch.cat([model(each).logits for each in unseen.split(8)])
        times = {}
        for batch in (1, 8):
            x = unseen[:batch]
            runs = {"eager": lambda x=x: model(x)} | {
                precision: lambda each=each, x=x: each(x) for precision, each in fast.items()
            }
            times[batch] = {
                key: statistics.median(each) for key, each in in_turns(runs, seconds, 20).items()
            }
        for precision, each in fast.items():
            logits = torch.cat([each(part).logits for part in unseen.split(8)])
            found[precision] = {
                "computed_in": each.report.chosen.precision,
                "int8_share": each.report.chosen.int8_fraction,
                "ms": {batch: round(row[precision], 3) for batch, row in times.items()},
                "times_as_fast": {
                    batch: round(row["eager"] / row[precision], 2) for batch, row in times.items()
                },
                "agreement": float((logits.argmax(1) == wanted.argmax(1)).float().mean()),
                "photos": len(unseen),
                "mean_deviation": float((logits - wanted).abs().mean() / wanted.abs().max()),
            }
            print(f"{name} {precision}: {found[precision]}", flush=True)
    return found


START = """
import json, sys, time
import torch, headstart
from headstart.engine import load
if sys.argv[2] in ("openvino", "onnxruntime"):
    __import__(sys.argv[2])
begin = time.perf_counter()
fast = load(sys.argv[1], threads=int(sys.argv[3]))
loaded = time.perf_counter()
fast(torch.zeros(1, 3, 224, 224))
called = time.perf_counter()
print(json.dumps({"load_ms": 1e3 * (loaded - begin), "first_call_ms": 1e3 * (called - loaded)}))
"""


def loading(engines: list[str], threads: int, times: int = 5) -> dict[str, Any]:
    """Loading an optimized BiT-50 from its folder in a new process, and the first call.

    Imports are not counted.
    """
    found = {}
    search.SECONDS = 0.0
    for engine in engines:
        model = headstart.BitForImageClassification(headstart.BitConfig(num_labels=1000)).eval()
        with tempfile.TemporaryDirectory() as folder:
            headstart.optimize(model, engine=engine).save_pretrained(folder)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            runs = []
            for _ in range(times):
                command = [sys.executable, "-c", START, folder, engine, str(threads)]
                runs.append(
                    json.loads(
                        subprocess.run(
                            command, capture_output=True, text=True, check=True
                        ).stdout.splitlines()[-1]
                    )
                )
        found[engine] = {
            key: round(statistics.median(each[key] for each in runs)) for key in runs[0]
        } | {"folder_mb": round(size / 1e6)}
        print(f"loading BiT-50, {engine}: {found[engine]}", flush=True)
    return found


def in_turns(
    runs: dict[str, Callable[[], Any]], seconds: float, least: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each contender, in turns of another order each time.

    Threads of one library go on spinning for a while after a call and would slow down the next
    contender, so each waits a little, and calls under a second are made twice: the first one is not
    counted.
    """
    order, times = random.Random(0), {name: [] for name in runs}
    end = time.perf_counter() + seconds
    names = list(runs)
    while time.perf_counter() < end or len(times[names[0]]) < least:
        for name in order.sample(names, len(names)):
            time.sleep(0.02)
            if times[name] and times[name][-1] < 1000:
                runs[name]()
            start = time.perf_counter()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def float32_peak(size: int = 1024) -> float:
    """GFLOP/s of a large float32 product in the faster of PyTorch's two libraries.

    MKL halves the vector width of CPUs not Intel's.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    with torch.inference_mode():
        best = min(interleaved({"product": lambda: linear(a, b)}, 1.0)["product"])
    return max(peak_gflops(), 2 * size**3 / best / 1e6)


def int8_peak(size: int = 1024) -> float:
    """GFLOP/s of a large int8 product."""
    a, b = (
        torch.randint(-127, 127, (size, size), dtype=torch.int8),
        torch.randint(-127, 127, (size, size), dtype=torch.int8),
    )
    return (
        2
        * size**3
        / min(interleaved({"product": lambda: torch._int_mm(a, b)}, 1.0)["product"])
        / 1e6
    )


def markdown(table: dict[str, Any]) -> None:
    """The table of the docs: for each group its fastest contender."""
    groups = (
        "headstart float32",
        "peer float32",
        "headstart bfloat16",
        "peer bfloat16",
        "headstart int8",
    )
    print("| model | transformers | " + " | ".join(groups) + " |\n|---|---|" + "---|" * len(groups))
    for case, rows in table["rows"].items():
        cells = [f"{rows['transformers']['ms']:.0f} ms"]
        for each in groups:
            found = {
                name: row
                for name, row in rows.items()
                if row["group"] == each and "eager" not in name
            }
            if not found:
                cells.append("")
                continue
            name = min(found, key=lambda key: found[key]["ms"])
            label = (
                name.removeprefix("headstart, ")
                .removeprefix("transformers in ")
                .removesuffix(" bf16")
                .split(",")[0]
            )
            share = (
                f", {found[name]['share_of_limit']:.0%}" if found[name]["share_of_limit"] else ""
            )
            cells.append(
                f"{found[name]['ms']:.1f} ms, {found[name]['times_as_fast']:.2f}x{share} ({label})"
            )
        print(f"| {case} | " + " | ".join(cells) + " |")


def plot(table: dict[str, Any]) -> None:
    """Bars of how many times as fast as transformers each contender is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.24 * sum(len(rows) + 1 for rows in table["rows"].values())))
    axes = figure.subplots()
    labels, values, colors = [], [], []
    for case, rows in table["rows"].items():
        for name, row in sorted(rows.items(), key=lambda each: each[1]["times_as_fast"]):
            labels.append(f"{case}: {name}")
            values.append(row["times_as_fast"])
            colors.append("#2a6f97" if name.startswith("headstart") else "#b8b8b8")
    axes.barh(labels, values, color=colors)
    axes.set_xlabel("times as fast as transformers, eager, float32")
    axes.tick_params(labelsize=7)
    axes.axvline(1, color="black", linewidth=0.5)
    figure.tight_layout()
    figure.savefig(PLOT)
    print(f"plotted: {PLOT}")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--engines", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["openvino"],
        help="compile, timm, openvino, onnxruntime; transformers always",
    )
    parser.add_argument("--trained", help="a trained classifier, in place of the models above")
    parser.add_argument(
        "--loading", action="store_true", help="time of loading an optimised BiT-50"
    )
    parser.add_argument(
        "--calibration", type=Path, help="npz with images that int8 is calibrated on"
    )
    parser.add_argument("--photos", type=Path, help="npz with images to count answers on")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    file = RESULTS / "inference.json"
    if arguments.plot:
        markdown(json.loads(file.read_text()))
        plot(json.loads(file.read_text()))
        return
    torch.set_num_threads(arguments.threads)
    search.SECONDS = 1.0  # which engine is fastest is seen here
    warnings.simplefilter("ignore")
    peaks = {
        "float32": float32_peak(),
        "bfloat16": peak_gflops(torch.bfloat16),
        "int8": int8_peak(),
    }
    print({name: f"{value:.0f} GFLOP/s" for name, value in peaks.items()})
    table = (
        json.loads(file.read_text())
        if file.exists()
        else {"title": "Inference", "rows": {}, "limit_gflops": {}, "trained": {}}
    )
    table["machine"] = machine()
    if arguments.trained:
        name = Path(arguments.trained).name
        table["trained"][name] = trained(
            arguments.trained, arguments.calibration, arguments.photos, arguments.seconds
        )
        write(table)
        return
    if arguments.loading:
        table.setdefault("loading", {}).update(loading(arguments.engines, arguments.threads))
        write(table)
        return
    for key in arguments.models:
        for batch in arguments.batches:
            rows = measure(key, batch, arguments, peaks)
            table["rows"][f"{key}, batch {batch}"] = rows
            table["limit_gflops"][f"{key}, batch {batch}"] = {
                name: round(value) for name, value in peaks.items()
            }
            write(table)


def write(table: dict[str, Any]) -> None:
    """Keeps what was measured so far."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inference.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
