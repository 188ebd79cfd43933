"""A server that answers with recorded exchanges of the Hub (`tests/hub/exchanges`), header for
header.

An exchange has a method, a path, a status, headers and perhaps a body; `{hub}` and `{cdn}` in
headers stand for this server under two names. Requests for one path get its answers in order, the
last one for good. Whatever was not recorded is answered 599 and kept in `unknown`.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EXCHANGES = Path(__file__).parent / "hub" / "exchanges"


class ReplayServer(ThreadingHTTPServer):
    """`requests` lists (method, path, host, token) of everything that came."""

    daemon_threads = True

    def __init__(self, scenario: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        port = self.server_address[1]
        self.url, self.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.requests: list[tuple[str, str, str, str | None]] = []
        self.unknown: list[str] = []
        self.answers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for each in json.loads((EXCHANGES / f"{scenario}.json").read_text())["exchanges"]:
            for method in each["method"].split("|"):
                self.answers[method, _sorted(each["path"])].append(each)

    def addressed(self, value: str) -> str:
        return value.replace("{hub}", self.url).replace("{cdn}", self.cdn_url)

    def requested(self, method: str, part: str = "") -> list[tuple[str, str, str, str | None]]:
        return [each for each in self.requests if each[0] == method and part in each[1]]


def _sorted(path: str) -> str:
    """A path with the parts of its query in one order."""
    place, _, query = path.partition("?")
    return f"{place}?{'&'.join(sorted(query.split('&')))}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReplayServer

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/agent-harnesses":  # huggingface_hub's own business, once a process
            self.send_error(404)
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        host = "cdn" if self.headers.get("Host", "").startswith("localhost") else "hub"
        self.server.requests.append((self.command, self.path, host, token))
        known = self.server.answers.get((self.command, _sorted(self.path)))
        if not known:
            self.server.unknown.append(f"{self.command} {self.path}")
            self.send_response(599)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        exchange = known.pop(0) if len(known) > 1 else known[0]
        body = self.server.addressed(exchange.get("body", "")).encode()
        self.send_response(exchange["status"])
        for key, value in exchange["headers"].items():
            self.send_header(key, self.server.addressed(value))
        if "Content-Length" not in exchange["headers"]:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = _serve


@contextmanager
def replaying(scenario: str) -> Iterator[ReplayServer]:
    """A server of one scenario for the time of a `with` block."""
    server = ReplayServer(scenario)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
