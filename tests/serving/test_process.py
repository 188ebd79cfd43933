"""The server as processes: several workers, counts of all of them, and an orderly end."""

import io
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

httpx = pytest.importorskip("httpx", reason="needs headstart[serve] and httpx")
pytest.importorskip("fastapi", reason="needs headstart[serve]")


@pytest.mark.slow
def test_two_workers_count_together_and_end_when_requested():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "headstart", "serve", "bit-mini", "--port", port]
    server = subprocess.Popen([*command, "--workers", "2"])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.2)
        with io.BytesIO() as file:
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file, "PNG")
            photo = file.getvalue()
        for _ in range(6):  # each connection may reach another worker
            answer = httpx.post(f"{address}/predict", files={"file": photo}, timeout=60)
            assert answer.status_code == 200
        with socket.create_connection(("127.0.0.1", int(port))) as resting:
            request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            resting.sendall(request)
            assert b"200 OK" in b"".join(iter(lambda: resting.recv(1), b"}"))
            time.sleep(6)  # uvicorn would close it after 5
            resting.sendall(request)
            assert resting.recv(15) == b"HTTP/1.1 200 OK"
        metrics = httpx.get(f"{address}/metrics").text
        assert 'headstart_requests_total{path="/predict",status="200"} 6.0' in metrics
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
