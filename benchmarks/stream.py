"""How reading shards grows (`train --stream`): time to the first batch, CPU time and peak memory.

    python benchmarks/stream.py [--rows 10000 100000 1000000]

Images are PNG files of 24 x 24 pixels in ten Parquet files; each size runs in a process of its own
and reads every row once in batches of 500, without decoding.
"""

import argparse
import io
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

FILES, BATCH = 10, 500


def write_shards(folder: Path, rows: int) -> None:
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(100):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
        images.append(out.getvalue())
    for number in range(FILES):
        count = rows // FILES
        table = {
            "image": [images[i % 100] for i in range(count)],
            "label": [f"class {i % 100}" for i in range(count)],
        }
        file = folder / f"train-{number}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), file, row_group_size=10_000)


def peak_mb() -> float:
    """Peak memory of this program alone (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(folder: Path, rows: int, answer: "multiprocessing.Queue[tuple[float, ...]]") -> None:
    from headstart.data.options import DataOptions
    from headstart.recipe import Recipe
    from headstart.tasks.streamed_images import StreamedClassification

    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    task = StreamedClassification.read(folder, DataOptions(extra={"stream": True}))
    recipe = Recipe(batch_size=BATCH)
    task.batch_items(recipe, 0, slice(0, BATCH))
    first = time.perf_counter() - wall
    for step in range(1, rows // BATCH):
        task.batch_items(recipe, step, slice(0, BATCH))
    answer.put((first, time.process_time() - cpu, peak_mb(), before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    context = multiprocessing.get_context("spawn")
    print(f"{'rows':>10}{'first batch s':>15}{'CPU s':>8}{'peak MB':>9}{'import MB':>11}")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            answer = context.Queue()
            writer = context.Process(target=write_shards, args=(Path(folder), rows))
            writer.start()
            writer.join()
            process = context.Process(target=measure, args=(Path(folder), rows, answer))
            process.start()
            first, cpu, peak, before = answer.get()
            process.join()
        print(f"{rows:10}{first:15.2f}{cpu:8.1f}{peak:9.0f}{before:11.0f}", flush=True)


if __name__ == "__main__":
    main()
