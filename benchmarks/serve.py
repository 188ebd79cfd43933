"""How many requests does the server answer, how fast, and are the answers the pipeline's?

    python benchmarks/serve.py --clients 8 --seconds 20
    python benchmarks/serve.py --model runs/fast --clients 64 --seconds 300

Clients on loopback send images of 64x64 one after the other. Printed and saved: throughput, the
50th, 95th and 99th percentile of the time of an answer, answers by status, growth of the server's
memory, and the network's own rate in batches of 8 as the limit.
"""

import argparse
import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

import headstart

IMAGES = 16
RESULTS = Path(__file__).parent / "results" / "serve.json"


def images() -> list[bytes]:
    """PNG files of random pixels."""
    found = []
    for seed in range(IMAGES):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "PNG")
            found.append(file.getvalue())
    return found


def limit(pipe: Any, seconds: float = 3.0) -> float:
    """Images a second that the network alone computes, in batches of 8."""
    pixels = pipe.image_processor(images()[0], return_tensors="pt")["pixel_values"]
    batch = torch.cat([pixels] * 8)
    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            pipe.model(pixel_values=batch)
            count += 8
    return count / (time.perf_counter() - start)


async def load(address: str, clients: int, seconds: float, expected: list[Any]) -> dict[str, Any]:
    """Sends requests from some clients, and compares every answer."""
    photos, times, statuses, wrong = images(), [], {}, 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal wrong
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            i = number
            while time.perf_counter() < end:
                i = (i + 1) % IMAGES
                start = time.perf_counter()
                answer = await http.post("/predict", files={"file": photos[i]})
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                if answer.status_code != 200:
                    await asyncio.sleep(0.05)
                    continue
                times.append(time.perf_counter() - start)
                best = answer.json()["answers"][0]["predictions"][0]
                same = best["label"] == expected[i]["label"]
                wrong += not (same and abs(best["score"] - expected[i]["score"]) < 1e-4)

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    spent = time.perf_counter() - start
    marks = np.percentile(times, [50, 95, 99]) * 1e3
    return {
        "clients": clients,
        "seconds": round(spent, 1),
        "per_second": round(len(times) / spent, 1),
        "ms_p50_p95_p99": [round(float(mark), 1) for mark in marks],
        "statuses": statuses,
        "wrong_answers": wrong,
    }


def main() -> None:
    """Starts a server, loads it, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    pipe = headstart.pipeline("image-classification", arguments.model)
    expected = [pipe(photo, top_k=1)[0] for photo in images()]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "headstart", "serve", arguments.model, "--port", str(port)]
    server = subprocess.Popen(command)
    address, rows = f"http://127.0.0.1:{port}", []
    try:
        for _ in range(300):
            try:
                httpx.get(f"{address}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        memory = psutil.Process(server.pid).memory_info
        for clients in arguments.clients:
            asyncio.run(load(address, clients, min(3.0, arguments.seconds), expected))  # warm-up
            before = memory().rss
            row = asyncio.run(load(address, clients, arguments.seconds, expected))
            row["memory_growth_mb"] = round((memory().rss - before) / 2**20, 1)
            rows.append(row)
            print(row, flush=True)
    finally:
        server.terminate()
        server.wait(60)
    found = {
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "network_per_second": round(limit(pipe), 1),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
