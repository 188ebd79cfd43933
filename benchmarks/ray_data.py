"""How predictions on a Ray cluster of this machine grow with actors and images.

    python benchmarks/ray_data.py [--images 10000 200000] [--actors 1 2 4] [--model bit-mini]
                                  [--folder FOLDER] [--minutes 15]

Images are JPEG files of 96 x 96 pixels in one Parquet file, a thousand different ones. `--model
tiny` is a randomly initialized BiT of 10 classes at 32 pixels: its runs cost reading, decoding and
writing. Each run is a new cluster. CPU time is that of all of Ray's processes and of the one that
drives them; the rate is of wall time, without the start of the cluster and of the actors in the
second column.

After `--minutes` this script ends, and every process of the run in progress by SIGKILL; the next
call with the same `--folder` resumes it. Times are then sums over the pieces. A kept run has one
row for every image. Keeps `benchmarks/results/ray_data.json`.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from headstart import BitConfig, BitForImageClassification, BitImageProcessor
from headstart.data.blocks import BLOCK_ROWS, image_blocks
from headstart.serving.ray import MANIFEST, connected, run_blocks

RESULTS = Path(__file__).parent / "results" / "ray_data.json"
EVERY = 0.5  # seconds between looks at the processes
DIFFERENT = 1000


class Watch:
    """CPU seconds of this process and of all below it, and the largest memory of one of them."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.largest, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                self.seconds[process.pid] = times.user + times.system
                self.largest = max(self.largest, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> tuple[float, float]:
        """CPU seconds, and the largest memory in MB."""
        self._look()
        self.ended.set()
        self.thread.join()
        return sum(self.seconds.values()), self.largest / 2**20


def write_images(file: Path, count: int) -> None:
    """A Parquet file of so many JPEG files."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(min(DIFFERENT, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((96, 96)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    schema = pyarrow.schema([("image", pyarrow.binary())])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, count, DIFFERENT):
            part = images[: count - start]
            writer.write_table(pyarrow.table({"image": part}, schema))


def predict(file: Path, out: Path, actors: int, model: str) -> None:
    """Computes the blocks that are missing; a process of its own, so that it can be killed."""
    logging.disable(logging.WARNING)
    blocks = list(image_blocks([str(file)]))
    options = {"model": model, "batch_size": 32, "workers": 1}
    resume = (out / MANIFEST).exists()
    with connected("local"):
        found = run_blocks("predict", options, blocks, str(out), actors=actors, resume=resume)
    assert not found.errors and not found.failed


def kill_tree(pid: int) -> None:
    """Ends a process and all below it at once."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


def run_piece(file: Path, out: Path, actors: int, model: str, seconds: float | None) -> dict:
    """One piece of a run: its times, memory and blocks."""
    idle = psutil.cpu_times_percent(interval=1.0).idle
    known = set(out.glob("part-*"))
    began = time.time()
    child = multiprocessing.get_context("spawn").Process(
        target=predict, args=(file, out, actors, model)
    )
    child.start()
    watch = Watch()
    child.join(seconds)
    processor, memory = watch.stop()
    if child.exitcode is None:
        kill_tree(child.pid)
    elif child.exitcode:
        raise SystemExit(f"the run failed with {child.exitcode}")
    new = [each for each in out.glob("part-*") if each not in known]
    stamps = sorted(each.stat().st_mtime for each in new)
    steady = stamps[actors:]  # the first block of each actor starts it
    return {
        "seconds": time.time() - began,
        "cpu_seconds": processor,
        "largest_process_mb": memory,
        "steady_blocks": len(steady),
        "steady_seconds": steady[-1] - stamps[actors - 1] if steady else 0.0,
        "idle_before_percent": idle,
    }


def measure(
    file: Path, count: int, actors: int, model: str, seconds: float | None
) -> dict[str, object] | None:
    """One run, or None where its end has not come."""
    name = f"{Path(model).name}-{count}-{actors}"
    out, kept = file.parent / name, file.parent / f"{name}.json"
    pieces = json.loads(kept.read_text()) if kept.exists() else []
    pieces.append(run_piece(file, out, actors, model, seconds))
    kept.write_text(json.dumps(pieces))
    parts = sorted(out.glob("part-*"))
    print(f"{count} images, {actors} actors: {len(parts)} blocks written", flush=True)
    if len(parts) < len(list(image_blocks([str(file)]))):
        return None
    names = [name for part in parts for name in read_names(part)]
    assert len(names) == len(set(names)) == count  # every image exactly once
    total = {key: sum(piece[key] for piece in pieces) for key in pieces[0]}
    steady = total["steady_blocks"] * BLOCK_ROWS / max(total["steady_seconds"], 1e-9)
    return {
        "images": count,
        "actors": actors,
        "seconds": round(total["seconds"], 1),
        "images_per_second": round(count / total["seconds"], 1),
        "steady_images_per_second": round(steady, 1),
        "cpu_seconds": round(total["cpu_seconds"], 1),
        "images_per_cpu_second": round(count / total["cpu_seconds"], 1),
        "largest_process_mb": round(max(piece["largest_process_mb"] for piece in pieces)),
        "idle_before_percent": round(total["idle_before_percent"] / len(pieces), 1),
        "killed_and_resumed": len(pieces) - 1,
    }


def read_names(part: Path) -> list[str]:
    """The inputs that a block has rows of."""
    return pyarrow.parquet.read_table(part, columns=["path"]).column("path").to_pylist()


def tiny_network(folder: Path) -> str:
    """Writes a small randomly initialized network, whose cost hardly counts."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    config = BitConfig(**sizes, num_groups=4, num_labels=10)
    BitForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BitImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--note", default="")
    parser.add_argument("--folder", type=Path, help="where runs are kept; a temporary one")
    parser.add_argument("--minutes", type=float, help="end after so many minutes")
    arguments = parser.parse_args()
    deadline = arguments.minutes and time.monotonic() + 60 * arguments.minutes
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = arguments.model
        if model == "tiny" and not (folder / model).exists():
            tiny_network(folder / model)
        model = str(folder / model) if model == "tiny" else model
        for count in arguments.images:
            file = folder / f"{count}.parquet"
            if not file.exists():
                write_images(file, count)
            for actors in arguments.actors:
                same = {"images": count, "actors": actors, "model": arguments.model}
                if deadline and any(same.items() <= each.items() for each in kept["runs"]):
                    continue  # an earlier call finished it
                left = deadline and deadline - time.monotonic()
                found = measure(file, count, actors, model, left)
                if found is None:
                    return  # the next call resumes it
                found |= {"model": arguments.model, "note": arguments.note}
                print(json.dumps(found), flush=True)
                kept["runs"] = [each for each in kept["runs"] if {k: each[k] for k in same} != same]
                kept["runs"].append(found)
                kept |= {"processors": os.cpu_count(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
                RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
