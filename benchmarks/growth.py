"""How commands and readers grow: 1,000 to 100,000 images, 1,000 to 1,000,000 rows.

    python benchmarks/growth.py [--images FOLDER] [--sizes 1000 10000 100000]
    python benchmarks/growth.py --sizes --rows 10000 100000 1000000
    python benchmarks/growth.py --source OTHER_CHECKOUT --sizes 1000 10000 --limit 900

Every command is a process of its own on a terminal that is recorded (`--logs` keeps the records).
A row of the table holds

- wall and CPU seconds (on a busy machine only CPU compares well, and of one thread alone: several
  wait for each other at full load; set OMP_NUM_THREADS=1), the load average before the command, and
  the peak resident memory in MB;
- seconds to the first visible output, and the longest time in which the screen did not change
  (the turning of a spinner is no change);
- "over" for a command that was ended at `--limit` CPU seconds, with what it had used by then.

Features are cached in a folder that is empty at first, so that "train head" computes them, "train
head, cached" (the same command again) finds them, and "audit" and "embed" have their own.

FOLDER holds class folders of as many images as the largest size; without it images of noise are
made. In tables of paths "same file" names 1,000 files again and again, "own file" one file a row;
Parquet holds 1,460 bytes of image in each of a tenth as many rows. Texts are 6 to 24 words of two
classes.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "growth.json"
CLASSES = 200
FEW = ("--tune", "full", "--steps", "5", "--batch-size", "64")
HEAD = ("what", "count", "wall s", "CPU s", "peak MB", "first s", "still s", "load", "over")
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
SPINNER = re.compile("[\u2800-\u28ff\\s]+")


# Commands -----------------------------------------------------------------------------------------


@dataclass
class Screen:
    """When a terminal showed something new."""

    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    still: float = 0.0
    last: float = 0.0
    recent: deque[set[str]] = field(default_factory=lambda: deque(maxlen=8))

    def show(self, data: bytes) -> None:
        """Takes what was written to the terminal."""
        text = ESCAPES.sub(b"\n", data).decode("utf-8", "replace")
        lines = {SPINNER.sub(" ", line).strip() for line in re.split(r"[\r\n]", text)} - {""}
        known = set().union(*self.recent)
        self.recent.append(lines)
        if not lines <= known:
            self.change()

    def change(self) -> None:
        """Counts a change, or the end."""
        now = time.perf_counter() - self.began
        self.first = now if self.first is None else self.first
        self.still, self.last = max(self.still, now - self.last), now


def cpu_seconds(process: int) -> float:
    """CPU seconds of a running process (Linux)."""
    values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def recorded(
    arguments: Sequence[str], environment: dict[str, str], log: Path, limit: float
) -> dict[str, Any]:
    """Runs `headstart` on a terminal of its own; what was shown goes to a log."""
    load = os.getloadavg()[0]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | environment | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen, over = Screen(), False
    with log.open("wb") as file:
        while True:
            ready, _, _ = select.select([ours], [], [], 0.5)
            if ready:
                try:
                    shown = os.read(ours, 1 << 16)
                except OSError:  # the process has ended
                    break
                if not shown:
                    break
                screen.show(shown)
                file.write(shown)
            if not over and cpu_seconds(process.pid) > limit:
                over = True
                process.send_signal(signal.SIGKILL)
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - screen.began
    screen.change()
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 3) and not over:  # 3: the data has duplicates
        raise SystemExit(f"headstart {' '.join(arguments)} ended with {code}; see {log}")
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "first_output_s": round(screen.first or wall, 1),
        "longest_still_s": round(screen.still, 1),
        "load": round(load, 1),
        "over": over,
    }


def subset(images: Path | None, target: Path, count: int) -> None:
    """A folder of class folders with so many images, linked from another or made of noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    names = sorted(path.name for path in images.iterdir()) if images else range(CLASSES)
    for name in names:
        (target / str(name)).mkdir(parents=True)
        if images:
            for file in sorted((images / str(name)).iterdir())[: count // len(names)]:
                os.link(file, target / str(name) / file.name)
            continue
        center = rng.integers(0, 256, (8, 8, 3))
        for number in range(count // CLASSES):
            pixels = (center + rng.normal(0, 60, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(target / str(name) / f"{number:06d}.jpg")


def image_commands(
    folder: Path, options: argparse.Namespace, count: int
) -> dict[str, tuple[str, ...]]:
    """What is run on so many images."""
    subset(options.images, folder / "images", count)
    model = options.model
    data, run, head, again = (str(folder / name) for name in ("images", "run", "head", "again"))
    train, tuned = ("train", data, "--model", model, "--out"), ("--tune", "head")
    return {
        "dry run": (*train, head, *tuned, "--dry-run"),
        "train full, 5 steps": (*train, run, *FEW),
        "evaluate": ("evaluate", run, data, "--split", "train"),
        "predict": ("predict", run, data, "--out", str(folder / "p.csv")),
        "embed": ("embed", model, data, "--out", str(folder / "e.npz")),
        "audit": ("audit", data, "--model", model),
        "train head": (*train, head, *tuned),
        "train head, cached": (*train, again, *tuned),
    }


def sentences(rows: int) -> Iterator[tuple[str, str]]:
    """Texts with their labels."""
    import random

    rng = random.Random(0)
    words = [Path(name).stem for name in sys.stdlib_module_names]
    for number in range(rows):
        label = ("poor", "good")[number % 2]
        count = rng.randint(6, 24)
        yield " ".join([*rng.choices(words, k=count), label * rng.randint(0, 1)]), label


def text_commands(folder: Path, _: argparse.Namespace, count: int) -> dict[str, tuple[str, ...]]:
    """What is run on so many texts."""
    with (folder / "t.csv").open("w") as file:
        file.write("text,label\n")
        file.writelines(f"{text},{label}\n" for text, label in sentences(count))
    table, run, out = str(folder / "t.csv"), str(folder / "run"), str(folder / "p.csv")
    train = ("train", table, "--task", "text-classification", "--model", "yoso-mini", "--out")
    return {
        "texts: dry run": (*train, run, "--tune", "full", "--dry-run"),
        "texts: train full, 5 steps": (*train, run, *FEW),
        "texts: predict": ("predict", run, table, "--out", out),
    }


def measure_commands(
    make: Any, count: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """All commands on so many examples."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        logs = options.logs or folder
        logs.mkdir(parents=True, exist_ok=True)
        lost = ""  # the folder of a model that was not finished
        for what, arguments in make(folder, options, count).items():
            if options.only and what not in options.only:
                continue
            if lost in arguments:
                continue
            cache = "train head" if what == "train head, cached" else what
            environment = {
                "HEADSTART_CACHE": str(folder / "cache" / cache),
                "PYTHONPATH": str(options.source / "src"),
            }
            log = logs / f"{what.replace(', ', ' ').replace(': ', ' ').replace(' ', '-')}-{count}"
            values = recorded(arguments, environment, log, options.limit)
            if values["over"] and what.endswith("5 steps"):
                lost = str(folder / "run")
            yield {"what": what, "count": count} | values


# Tables -------------------------------------------------------------------------------------------


def write_table(folder: Path, rows: int, kind: str) -> None:
    """A table of paths, or of bytes."""
    if kind == "parquet":
        import numpy
        import pyarrow
        import pyarrow.parquet

        rng = numpy.random.default_rng(0)
        images = [rng.bytes(1460) for _ in range(rows // 10)]
        table = pyarrow.table(
            {"image": images, "label": [str(i % 200) for i in range(len(images))]}
        )
        pyarrow.parquet.write_table(table, folder / "t.parquet")
        return
    files = 1000 if kind == "same file" else rows
    with (folder / "t.csv").open("w") as file:
        file.write("image,label\n")
        file.writelines(f"images/{i % files:08d}.jpg,class {i % 200}\n" for i in range(rows))


def peak_mb() -> float:
    """Peak memory of this program alone (Linux); getrusage's begins at its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_table(path: Path, answer: "multiprocessing.Queue[tuple[float, ...]]") -> None:
    """Reads a table, and takes the rows of 100 batches."""
    from headstart.data.examples import distinct
    from headstart.data.images import read_images
    from headstart.data.options import DataOptions
    from headstart.data.splits import batch_indices

    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    data = read_images(path, DataOptions())
    train = data.splits["train"]
    if path.suffix == ".csv":
        distinct(train.images)
    read, used = time.perf_counter() - wall, time.process_time() - cpu
    began = time.process_time()
    for step in range(100):
        batch_indices(len(train), min(128, len(train)), step, 0)
    steps = (time.process_time() - began) / 100
    answer.put((read, used, peak_mb(), before, steps * 1e3))


def measure_tables(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Tables of every kind and size."""
    context = multiprocessing.get_context("spawn")
    for kind in ("same file", "own file", "parquet"):
        for rows in sizes:
            with tempfile.TemporaryDirectory() as folder:
                answer = context.Queue()
                # in its own process, whose memory goes with it
                writer = context.Process(target=write_table, args=(Path(folder), rows, kind))
                writer.start()
                writer.join()
                path = Path(folder) / ("t.parquet" if kind == "parquet" else "t.csv")
                process = context.Process(target=measure_table, args=(path, answer))
                process.start()
                read, cpu, peak, before, step = answer.get()
                process.join()
            yield {
                "what": f"read table, {kind}",
                "count": rows // 10 if kind == "parquet" else rows,
                "wall_s": round(read, 2),
                "cpu_s": round(cpu, 2),
                "peak_mb": round(peak),
                "imports_mb": round(before),
                "cpu_ms_per_batch": round(step, 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="class folders; without them noise is made")
    parser.add_argument("--model", default="bit-mini", help="network of the images")
    parser.add_argument("--name", help="what the images are, in the results")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="rows of tables of images")
    parser.add_argument("--texts", type=int, nargs="*", default=[], help="rows of tables of texts")
    parser.add_argument("--only", nargs="*", default=[], help="commands, such as audit")
    parser.add_argument("--scratch", type=Path, help="folder for images and caches")
    parser.add_argument("--logs", type=Path, help="folder for what was shown")
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout whose code is run")
    parser.add_argument("--limit", type=float, default=1e9, help="CPU seconds of one command")
    options = parser.parse_args()
    if {"evaluate", "predict"} & set(options.only):  # of the run that this makes
        options.only.append("train full, 5 steps")
    git = ["git", "-C", str(options.source), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    entry: dict[str, Any] = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "images": options.name or "noise of 64x64",
        "model": Path(options.model).name,
        "rows": [],
    }

    def take(found: Iterator[dict[str, Any]]) -> None:
        """Prints and saves rows as they come; runs at the same time save beside each other."""
        for row in found:
            entry["rows"].append(row)
            print("  ".join(f"{value!s:>9}" for value in row.values()), flush=True)
            saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
            key = {name: value for name, value in entry.items() if name != "rows"}
            same = [run for run in saved["runs"] if key.items() <= run.items()]
            if not same:
                saved["runs"].append(key | {"rows": []})
                same = saved["runs"][-1:]
            same[0]["rows"].append(row)
            RESULTS.write_text(json.dumps(saved, indent=1) + "\n")

    print("  ".join(f"{name:>9}" for name in HEAD))
    for size in options.sizes:
        take(measure_commands(image_commands, size, options))
    for rows in options.texts:
        take(measure_commands(text_commands, rows, options))
    if options.rows:
        take(measure_tables(options.rows))


if __name__ == "__main__":
    main()
