"""How reading a table grows: wall time, CPU time and peak memory at 10,000 to 1,000,000 rows.

    python benchmarks/growth.py [--rows 10000 100000 1000000]

Each size runs in a process of its own. "same" names 1,000 files again and again, "own" one file a
row; Parquet holds 1,460 bytes of image in each of a tenth as many rows.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path


def write_table(folder: Path, rows: int, kind: str) -> None:
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


def measure(path: Path, answer: "multiprocessing.Queue[tuple[float, ...]]") -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    rows_of = parser.parse_args().rows
    context = multiprocessing.get_context("spawn")
    print(
        f"{'table':8}{'rows':>10}{'read s':>9}{'CPU s':>8}{'peak MB':>9}{'import MB':>11}"
        f"{'ms/step':>9}"
    )
    for kind in ("same", "own", "parquet"):
        for rows in rows_of:
            with tempfile.TemporaryDirectory() as folder:
                answer = context.Queue()
                # in its own process, whose memory goes with it
                writer = context.Process(target=write_table, args=(Path(folder), rows, kind))
                writer.start()
                writer.join()
                path = Path(folder) / ("t.parquet" if kind == "parquet" else "t.csv")
                process = context.Process(target=measure, args=(path, answer))
                process.start()
                read, cpu, peak, before, step = answer.get()
                process.join()
            line = f"{read:9.2f}{cpu:8.2f}{peak:9.0f}{before:11.0f}{step:9.3f}"
            print(f"{kind:8}{rows:10}{line}", flush=True)


if __name__ == "__main__":
    main()
