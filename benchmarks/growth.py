"""How the commands and the readers grow: 1,000 to 100,000 images, 10,000 to 1,000,000 rows.

    python benchmarks/growth.py [--images FOLDER] [--sizes 1000 10000 100000]
    python benchmarks/growth.py --sizes --rows 10000 100000 1000000

Every measurement is a process of its own on a terminal that is recorded: wall time, processor time,
peak memory, seconds to the first output, and the longest time without a change on the screen.
Features are cached in a folder that is empty at first, so that "train" computes them, "head fit"
(the same command again) finds them, and "audit" and "embed" have their own.

FOLDER holds class folders of as many images as the largest size; without it images of noise are
made. In the tables of paths "same" names 1,000 files again and again, "own" one file a row; Parquet
holds 1,460 bytes of image in each of a tenth as many rows.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "growth.json"
CLASSES = 200
HEAD = ("images", "what", "wall s", "CPU s", "peak MB", "first s", "silent s")


# Commands -----------------------------------------------------------------------------------------


def recorded(arguments: Sequence[str], environment: dict[str, str], log: Path) -> dict[str, Any]:
    """Runs `headstart` on a terminal of its own; what was shown goes to a log."""
    ours, theirs = pty.openpty()
    began = last = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | environment | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    first, silent = None, 0.0
    with log.open("wb") as file:
        while True:
            ready, _, _ = select.select([ours], [], [], 0.1)
            shown = b""
            if ready:
                try:
                    shown = os.read(ours, 1 << 16)
                except OSError:  # the process has ended
                    break
                if not shown:
                    break
            now = time.perf_counter()
            # the spinner of a bar turns whether anything goes on or not
            if any(each in shown for each in b"0123456789%"):
                first = now - began if first is None else first
                silent, last = max(silent, now - last), now
            file.write(shown)
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 3):  # 3: the data has duplicates
        raise SystemExit(f"headstart {' '.join(arguments)} ended with {code}; see {log}")
    return {
        "wall": round(wall, 1),
        "cpu": round(usage.ru_utime + usage.ru_stime, 1),
        "peak": round(usage.ru_maxrss / 1024),
        "first": round(first or wall, 1),
        "silent": round(max(silent, time.perf_counter() - last), 1),
    }


def subset(images: Path | None, folder: Path, count: int) -> Path:
    """A folder of class folders with so many images, linked from another or made of noise."""
    import numpy as np
    from PIL import Image

    target = folder / "images"
    each = count // CLASSES
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in images.iterdir()) if images else range(CLASSES)
    for name in names:
        (target / str(name)).mkdir(parents=True)
        if images:
            for file in sorted((images / str(name)).iterdir())[: count // len(names)]:
                os.link(file, target / str(name) / file.name)
            continue
        center = rng.integers(0, 256, (8, 8, 3))
        for number in range(each):
            pixels = (center + rng.normal(0, 60, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(target / str(name) / f"{number:06d}.jpg")
    return target


def measure_commands(
    images: Path | None, size: int, only: Sequence[str], scratch: Path
) -> list[dict[str, Any]]:
    """All commands on so many images."""
    found = []
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        data = str(subset(images, folder, size))
        run, first = str(folder / "run"), str(folder / "first")
        train = ("train", data, "--model", "bit-mini", "--tune", "head", "--out")
        commands: dict[str, tuple[str, ...]] = {
            "dry run": (*train, run, "--dry-run"),
            "train": (*train, first),
            "head fit": (*train, run),
            "evaluate": ("evaluate", run, data, "--split", "train"),
            "predict": ("predict", run, data, "--out", str(folder / "p.csv")),
            "embed": ("embed", "bit-mini", data, "--out", str(folder / "e.npz")),
            "audit": ("audit", data),
        }
        for what, arguments in commands.items():
            if only and what not in only:
                continue
            cache = "train" if what == "head fit" else what
            environment = {"HEADSTART_CACHE": str(folder / "cache" / cache)}
            values = recorded(arguments, environment, folder / "log")
            found.append({"images": size, "what": what} | values)
            print("  ".join(f"{value!s:>9}" for value in found[-1].values()), flush=True)
    return found


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
    files = 1000 if kind == "same" else rows
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
    read = time.perf_counter() - wall
    train = data.splits["train"]
    if path.suffix == ".csv":
        distinct(train.images)
    began = time.perf_counter()
    for step in range(100):
        batch_indices(len(train), min(128, len(train)), step, 0)
    steps = (time.perf_counter() - began) / 100
    answer.put((read, time.process_time() - cpu, peak_mb(), before, steps * 1e3))


def measure_tables(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Tables of every kind and size."""
    context = multiprocessing.get_context("spawn")
    found = []
    for kind in ("same", "own", "parquet"):
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
            values = {"read": round(read, 2), "cpu": round(cpu, 2), "peak": round(peak)}
            values |= {"import_mb": round(before), "ms_per_step": round(step, 3)}
            found.append({"table": kind, "rows": rows} | values)
            print("  ".join(f"{value!s:>9}" for value in found[-1].values()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="class folders; without them noise is made")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=[], help="commands, such as train predict")
    parser.add_argument("--scratch", type=Path, help="folder for images and caches")
    parser.add_argument("--loaded", action="store_true", help="note that the machine was busy")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
    entry: dict[str, Any] = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "loaded": options.loaded,
        "images": "noise of 64x64" if options.images is None else options.images.name,
        "commands": [],
        "tables": [],
    }
    saved["runs"].append(entry)

    def save() -> None:
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")

    if options.sizes:
        print("  ".join(f"{name:>9}" for name in HEAD))
    for size in options.sizes:
        entry["commands"] += measure_commands(options.images, size, options.only, options.scratch)
        save()
    if options.rows:
        print("  ".join(f"{name:>9}" for name in ("table", "rows", "read s", "CPU s", "peak MB")))
        entry["tables"] += measure_tables(options.rows)
        save()


if __name__ == "__main__":
    main()
