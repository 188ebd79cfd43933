"""How predictions on a Ray cluster of this machine grow with actors and images.

    python benchmarks/ray_data.py [--images 10000 200000] [--actors 1 2 4] [--model bit-mini]

Images are JPEG files of 96 x 96 pixels in one Parquet file, a thousand different ones. Each run is
a new cluster. CPU time is that of all of Ray's processes and of this one; the rate is of wall time,
without the start of the cluster and of the actors in the second column. Keeps
`benchmarks/results/ray_data.json`.
"""

import argparse
import io
import json
import logging
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
from PIL import Image

from headstart.data.blocks import image_blocks
from headstart.serving.ray import connected, run_blocks

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


def measure(file: Path, count: int, actors: int, model: str, folder: Path) -> dict[str, object]:
    """One run."""
    blocks = list(image_blocks([str(file)]))
    watch = Watch()
    before = psutil.cpu_times_percent(interval=1.0)
    with connected("local"):
        began = time.perf_counter()
        options = {"model": model, "batch_size": 32, "workers": 1}
        out = folder / f"out-{count}-{actors}"
        found = run_blocks("predict", options, blocks, str(out), actors=actors)
        seconds = time.perf_counter() - began
        stamps = sorted(each.stat().st_mtime for each in out.glob("part-*"))
    assert found.rows == count and not found.errors and not found.failed
    processor, memory = watch.stop()
    # the first block of each actor starts it
    steady = (
        (len(stamps) - actors) * count / len(blocks) / max(stamps[-1] - stamps[actors - 1], 1e-9)
    )
    return {
        "images": count,
        "actors": actors,
        "seconds": round(seconds, 1),
        "images_per_second": round(count / seconds, 1),
        "steady_images_per_second": round(steady, 1),
        "cpu_seconds": round(processor, 1),
        "images_per_cpu_second": round(count / processor, 1),
        "largest_process_mb": round(memory),
        "idle_before_percent": round(before.idle, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.images:
            file = Path(folder) / f"{count}.parquet"
            write_images(file, count)
            for actors in arguments.actors:
                found = measure(file, count, actors, arguments.model, Path(folder))
                found |= {"model": arguments.model, "note": arguments.note}
                print(json.dumps(found), flush=True)
                same = {"images": count, "actors": actors, "model": arguments.model}
                kept["runs"] = [each for each in kept["runs"] if {k: each[k] for k in same} != same]
                kept["runs"].append(found)
                kept |= {"processors": os.cpu_count(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
                RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
