"""Does `headstart predict` on 1,000 photos take more than decoding and the network?

    OMP_NUM_THREADS=1 python benchmarks/predict.py

JPEG files of 375 to 500 pixels a side are written once. In turns of 100 images: reading alone
(decode and preprocess, one thread), the network alone in batches of 8, and `classify`, which
`headstart predict` runs, with every row written to a CSV. Printed and saved: processor time of each
and wall time; where reading and network overlap on two cores, the wall time is below their sum.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import headstart
from headstart.data.inputs import ImageInput, image_inputs
from headstart.data.predictions import classify, columns_of, row_of
from headstart.data.results import ResultTable

TURN = 100
BATCH = 8
RESULTS = Path(__file__).parent / "results" / "predict.json"


def write_photos(folder: Path, count: int) -> list[ImageInput]:
    """JPEG files of soft shapes and noise, as large as photographs of data sets."""
    generator = np.random.default_rng(0)
    for i in range(count):
        width, height = (int(n) for n in generator.integers(375, 501, 2))
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noise = generator.integers(-12, 13, soft.shape)
        pixels = np.clip(soft + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg", quality=90)
    return image_inputs([folder])


def spent(function: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a function returns, and its processor and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = function()
    return found, np.array([time.process_time() - cpu, time.perf_counter() - wall])


def network(pipe: Any, parts: Sequence[torch.Tensor]) -> None:
    with torch.inference_mode():
        for i in range(0, len(parts), BATCH):
            pipe.model(pixel_values=torch.cat(list(parts[i : i + BATCH]))).logits.softmax(1)


def predict(pipe: Any, inputs: Sequence[ImageInput], table: Path) -> None:
    columns = columns_of("image-classification", pipe.kind, [])
    with ResultTable(table, columns) as rows:
        for each in classify(pipe, inputs, top_k=3, batch_size=BATCH):
            rows.write(row_of(each, columns, table.parent, pipe.kind))
        rows.finish()


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pipe = headstart.pipeline("image-classification", arguments.model)
    times = {name: np.zeros(2) for name in ("reading", "network", "predict")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        inputs = write_photos(folder / "photos", arguments.images)
        predict(pipe, inputs[:20], folder / "warm.csv")
        for first in range(0, len(inputs), TURN):
            turn = inputs[first : first + TURN]
            parts, seconds = spent(lambda t=turn: [pipe.pixel_values(each.pixels()) for each in t])
            times["reading"] += seconds
            times["network"] += spent(lambda p=parts: network(pipe, p))[1]
            table = folder / f"{first}.csv"
            times["predict"] += spent(lambda t=turn, f=table: predict(pipe, t, f))[1]
    cpu = {name: float(value[0]) for name, value in times.items()}
    wall = {name: float(value[1]) for name, value in times.items()}
    found = {
        "model": arguments.model,
        "images": arguments.images,
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "wall_seconds": {name: round(value, 2) for name, value in wall.items()},
        "cpu_ratio": round(cpu["predict"] / (cpu["reading"] + cpu["network"]), 3),
        "wall_ratio": round(wall["predict"] / (wall["reading"] + wall["network"]), 3),
    }
    print(json.dumps(found, indent=1))
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
