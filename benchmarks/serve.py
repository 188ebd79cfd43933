"""How many requests does the server answer, how fast, and are the answers the pipeline's?

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/serve.py --seconds 20
    python benchmarks/serve.py --seconds 300 --peer ../transformers-venv/bin/python

8 and 64 clients on loopback send images of 64x64 one after the other. With `--peer`, the Python of
an environment with transformers and FastAPI, a plain server around transformers' pipeline
(`serve_peer.py`) with the same weights is measured too, a minute each in turns. Printed and saved:
throughput, percentiles of the time of an answer, processor time an answer, answers by status,
resident memory, and the network's own rate in batches of 8 in this process, as the limit. Servers
and benchmark take the same variables of OpenMP.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

import headstart

IMAGES = 16
SLICE = 60.0  # seconds of a turn
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serve.json"


def images() -> list[bytes]:
    """PNG files of random pixels."""
    found = []
    for seed in range(IMAGES):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "PNG")
            found.append(file.getvalue())
    return found


def limit(pipe: Any, seconds: float = 5.0) -> tuple[float, float]:
    """What the network alone computes in batches of 8: images a second, milliseconds of processor
    time an image.
    """
    pixels = pipe.image_processor(images()[0], return_tensors="pt")["pixel_values"]
    batch = torch.cat([pixels] * 8)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            pipe.model(pixel_values=batch)
            count += 8
    spent = time.perf_counter() - start
    return count / spent, (time.process_time() - cpu) / count * 1e3


@dataclass
class Server:
    """A server and what was measured of it with some clients.

    Args:
        name: Which one.
        address: Where it listens.
        process: Its process.
        expected: Best label and score of each image.
        tolerance: Of a score.
    """

    name: str
    address: str
    process: psutil.Process
    expected: list[Any]
    tolerance: float
    times: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    wrong: int = 0

    def clear(self) -> None:
        """Forgets what was measured."""
        self.times, self.statuses, self.memory = [], Counter(), []
        self.seconds, self.cpu, self.wrong = 0.0, 0.0, 0

    async def load(self, clients: int, seconds: float) -> None:
        """Sends requests from some clients, and compares every answer."""
        photos, start = images(), time.perf_counter()
        cpu = sum(self.process.cpu_times()[:2])

        async def client(number: int) -> None:
            i = number
            async with httpx.AsyncClient(base_url=self.address, timeout=60) as http:
                while time.perf_counter() - start < seconds:
                    i = (i + 1) % IMAGES
                    begun = time.perf_counter()
                    try:
                        answer = await http.post("/predict", files={"file": photos[i]})
                    except httpx.HTTPError as error:
                        self.statuses[type(error).__name__] += 1
                        continue
                    self.statuses[str(answer.status_code)] += 1
                    if answer.status_code != 200:
                        await asyncio.sleep(0.05)
                        continue
                    self.times.append(time.perf_counter() - begun)
                    best = answer.json()["answers"][0]["predictions"][0]
                    same = best["label"] == self.expected[i]["label"]
                    close = abs(best["score"] - self.expected[i]["score"]) < self.tolerance
                    self.wrong += not (same and close)

        async def watch() -> None:
            while time.perf_counter() - start < seconds:
                self.memory.append(self.process.memory_info().rss / 2**20)
                await asyncio.sleep(min(5.0, seconds))

        await asyncio.gather(watch(), *(client(number) for number in range(clients)))
        self.seconds += time.perf_counter() - start
        self.cpu += sum(self.process.cpu_times()[:2]) - cpu

    def row(self, clients: int, network: tuple[float, float]) -> dict[str, Any]:
        """What was measured."""
        marks = np.percentile(self.times, [50, 95, 99]) * 1e3
        half = len(self.memory) // 2
        return {
            "server": self.name,
            "clients": clients,
            "seconds": round(self.seconds, 1),
            "per_second": round(len(self.times) / self.seconds, 1),
            "network_per_second": round(network[0], 1),
            "ms_p50_p95_p99": [round(float(mark), 1) for mark in marks],
            "cpu_ms_per_answer": round(self.cpu / len(self.times) * 1e3, 2),
            "network_cpu_ms": round(network[1], 2),
            "statuses": dict(self.statuses),
            "wrong_answers": self.wrong,
            "memory_mb_first_middle_last": [
                round(self.memory[i]) for i in (0, half, len(self.memory) - 1)
            ],
        }


@contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[tuple[str, Any]]:
    """A server's address and process while the block is open."""
    process = subprocess.Popen(command, env=os.environ | environment)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def servers(model: str, peer: str | None, folder: str) -> Iterator[list[Server]]:
    """Our server, and the plain one where there is a Python for it."""
    pipe = headstart.pipeline("image-classification", model)
    expected = [pipe(photo, top_k=1)[0] for photo in images()]
    port = free_port()
    command = [sys.executable, "-m", "headstart", "serve", model, "--port", str(port)]
    with running(command, port) as (address, process):
        ours = Server("headstart serve", address, process, expected, 1e-4)
        if peer is None:
            yield [ours]
            return
        pipe.model.save_pretrained(folder)
        pipe.image_processor.save_pretrained(folder)
        port = free_port()
        command = [peer, "-m", "uvicorn", "--app-dir", str(HERE), "serve_peer:app"]
        command += ["--port", str(port), "--log-level", "warning"]
        with running(command, port, MODEL=folder, HF_HUB_OFFLINE="1") as (address, process):
            # its pixels are rounded otherwise
            yield [ours, Server("FastAPI + transformers", address, process, expected, 0.05)]


def main() -> None:
    """Starts the servers, loads them in turns, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--peer", help="Python with transformers, fastapi, uvicorn.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pipe = headstart.pipeline("image-classification", arguments.model)
    rows, began = [], os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        servers(arguments.model, arguments.peer, folder) as found,
    ):
        for clients in arguments.clients:
            for each in found:
                asyncio.run(each.load(clients, min(5.0, arguments.seconds)))  # warm-up
                each.clear()
            network = []
            left = arguments.seconds
            while left > 0:
                network.append(limit(pipe))
                for each in found:
                    asyncio.run(each.load(clients, min(SLICE, left)))
                left -= SLICE
            for each in found:
                rows.append(each.row(clients, tuple(np.mean(network, axis=0))))
                print(rows[-1], flush=True)
    result = {
        "model": arguments.model,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(began, 1), round(os.getloadavg()[0], 1)],
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
