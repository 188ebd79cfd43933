"""The HTTP application around a model.

Names and contents of what is sent are data: nothing sent is opened as a path or an address.
"""

import asyncio
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.datastructures import UploadFile
from starlette.middleware.trustedhost import TrustedHostMiddleware

from headstart._version import __version__
from headstart.checkpoint.documents import parse_json
from headstart.errors import ConfigError, HeadstartError, InputError
from headstart.serving.answers import Answers
from headstart.serving.batcher import Batcher, Busy

SETTINGS = "HEADSTART_SERVE"  # settings for the processes of several workers, as JSON
LOOPBACK = ("127.0.0.1", "localhost", "::1")
RETRY_AFTER = "1"  # seconds
PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
        "/page.css": ("page.css", "text/css")}  # fmt: skip
# Seconds that a connection may rest between requests. A client that is about to use one that the
# server closes gets an error: 64 clients on a busy machine did in 1 of 1,000 requests after 5.
KEEP_ALIVE = 75
OPEN = ("/health", "/ready", *PAGE)  # paths that need no token
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; media-src 'self' blob:; form-action 'none'; base-uri 'none';"
    " frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;"
    " font-src data:; sandbox allow-scripts"
)


@dataclass(frozen=True)
class Settings:
    """What is served, and its limits.

    Args:
        model: A result folder (optimized or not), Hub id or authors' name.
        host: Address to listen on.
        port: Port to listen on.
        device: Where to compute; default where the model is.
        token_file: File of accepted tokens, one a line; None asks for none.
        max_bytes: Bytes of a request.
        max_pixels: Pixels of an image.
        max_items: Inputs of a request.
        timeout: Seconds that a request may take.
        queue: Inputs that wait or run; more are answered with 503.
        batch: Inputs that go through the network together.
        wait_ms: Milliseconds that an input waits for others.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    device: str | None = None
    token_file: str | None = None
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_items: int = 32
    timeout: float = 30.0
    queue: int = 64
    batch: int = 8
    wait_ms: float = 3.0


def read_tokens(path: str | None) -> list[bytes]:
    """The tokens of a file, one a line.

    Raises:
        ConfigError: The file cannot be read, or holds no token.
    """
    if path is None:
        return []
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the tokens in {path}: {error.strerror}") from error
    tokens = [line.strip() for line in lines if line.strip()]
    if not tokens:
        raise ConfigError(f"{path} holds no token; write one a line")
    return tokens


class Limits:
    """ASGI middleware: tokens, size of the body, number of requests at once, standard headers."""

    def __init__(self, app: Any, settings: Settings, tokens: list[bytes]) -> None:
        self.app, self.settings, self.tokens, self.active = app, settings, tokens, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuses a request, or passes it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        counted = scope["method"] == "POST"
        self.active += counted
        seen = 0

        async def bounded() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.settings.max_bytes:
                raise TooLarge
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self.active -= counted

    def _refusal(self, scope: Any, headers: dict[bytes, bytes]) -> Response | None:
        if self.tokens and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            matches = [hmac.compare_digest(given.strip(), token) for token in self.tokens]
            if kind.lower() != b"bearer" or not any(matches):
                answer = problem(401, "a valid token is needed: Authorization: Bearer TOKEN")
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.settings.max_bytes:
            return problem(413, f"a request has at most {self.settings.max_bytes:,} bytes")
        if scope["method"] == "POST" and self.active >= self.settings.queue:
            return problem(503, "too many requests at once; try again")
        return None


class TooLarge(Exception):
    """A body longer than allowed."""


def problem(status: int, message: str) -> JSONResponse:
    """An error as JSON."""
    headers = {"Retry-After": RETRY_AFTER} if status == 503 else None
    return JSONResponse({"error": message}, status, headers)


def create_app(settings: Settings) -> FastAPI:
    """The application.

    Raises:
        ConfigError: A model that is not served, or unreadable tokens.
    """
    tokens = read_tokens(settings.token_file)
    answers = Answers(settings.model, settings.device, settings.max_pixels)
    batcher = Batcher(
        answers.run, size=settings.batch, wait=settings.wait_ms / 1e3, queue=settings.queue
    )
    ready = False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        batcher.start()
        ready = True
        yield
        ready = False
        await batcher.stop()

    app = FastAPI(
        title="headstart", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Limits, settings=settings, tokens=tokens)
    if settings.host in LOOPBACK:  # a page elsewhere whose name is made to lead here stays out
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    add_measurements(app, settings)
    add_errors(app, settings)
    add_answers(app, settings, answers, batcher)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def is_ready() -> Any:
        """Whether the model is loaded and requests are taken."""
        return {"status": "ready"} if ready else problem(503, "not ready")

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Task, labels, card and limits."""
        limits = {key: getattr(settings, key) for key in ("max_bytes", "max_pixels", "max_items")}
        return answers.describe() | {"limits": limits, "version": __version__}

    @app.get("/report")
    async def report() -> Response:
        """The report of the training."""
        if answers.report is None:
            return problem(404, "this model has no report")
        return HTMLResponse(
            answers.report.read_bytes(), headers={"Content-Security-Policy": REPORT_POLICY}
        )

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, page_route(name, kind), include_in_schema=False)
    return app


def add_measurements(app: FastAPI, settings: Settings) -> None:
    """Counts and times every request, adds the headers of every response, and `/metrics`."""
    registry = CollectorRegistry()
    requests = Counter(
        "headstart_requests_total", "Requests by path and status.", ["path", "status"],
        registry=registry,
    )  # fmt: skip
    seconds = Histogram(
        "headstart_request_seconds", "Seconds of a request.", ["path"], registry=registry
    )

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Any:
        start = time.perf_counter()
        try:
            response = await call_next(request)
        except TooLarge:
            response = problem(413, f"a request has at most {settings.max_bytes:,} bytes")
        known = request.scope.get("route")
        path = getattr(known, "path", "other")
        requests.labels(path, response.status_code).inc()
        seconds.labels(path).observe(time.perf_counter() - start)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        return response

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        source = registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            source = CollectorRegistry()
            multiprocess.MultiProcessCollector(source)
        return Response(generate_latest(source), media_type=CONTENT_TYPE_LATEST)


def add_errors(app: FastAPI, settings: Settings) -> None:
    """What our own errors become: a status and a line of JSON."""

    @app.exception_handler(HeadstartError)
    async def known_error(_: Request, error: HeadstartError) -> JSONResponse:
        return problem(503 if isinstance(error, Busy) else 422, str(error))

    @app.exception_handler(TimeoutError)
    async def too_late(_: Request, error: TimeoutError) -> JSONResponse:
        return problem(504, f"no answer within {settings.timeout:g} seconds")

    @app.exception_handler(TooLarge)
    async def too_large(_: Request, error: TooLarge) -> JSONResponse:
        return problem(413, f"a request has at most {settings.max_bytes:,} bytes")


def add_answers(app: FastAPI, settings: Settings, answers: Answers, batcher: Batcher) -> None:
    """Adds what runs the network: `/predict` and `/explain`."""
    one_at_a_time = asyncio.Lock()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """Answers to one input or many: files as multipart/form-data (`file`), or JSON
        `{"inputs": […]}` of texts or of `{"image": "base64"}`.
        """
        async with asyncio.timeout(settings.timeout):
            items = await read_items(request, answers, settings)
            return {"answers": await batcher.submit(items)}

    @app.post("/explain")
    async def explain(request: Request) -> dict[str, Any]:
        """Where the network looked in one image, as a PNG."""
        async with asyncio.timeout(settings.timeout):
            items = await read_items(request, answers, settings)
            if len(items) != 1:
                raise InputError(f"{len(items)} images; one heat map at a time is made")
            async with one_at_a_time:
                return await asyncio.to_thread(answers.explain, items[0])


def page_route(name: str, kind: str) -> Any:
    """What serves a file of the page."""
    text = files("headstart.serving").joinpath("page", name).read_text("utf-8")

    async def route() -> Response:
        headers = {"Content-Security-Policy": PAGE_POLICY}
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)

    return route


async def read_items(request: Request, answers: Answers, settings: Settings) -> list[Any]:
    """The decoded inputs of a request.

    Raises:
        InputError: Not such a request, or an input that cannot be read; the message counts it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        values: list[Any] = []
        most = settings.max_items
        async with request.form(max_files=most, max_fields=most) as form:
            for key, value in form.multi_items():
                if isinstance(value, UploadFile):
                    values.append(await value.read())
                elif key == "text":
                    values.append(value)
    elif kind == "application/json":
        try:
            text = (await request.body()).decode()
        except UnicodeDecodeError as error:
            raise InputError("the body is not UTF-8") from error
        body = parse_json(text, "the body", InputError)
        # checked next
        values = body.get("inputs") if isinstance(body, dict) else None  # type: ignore[assignment]
        if not isinstance(values, list):
            raise InputError('the body is {"inputs": [...]}')
    else:
        raise InputError("send multipart/form-data or application/json")
    if not 1 <= len(values) <= settings.max_items:
        raise InputError(f"{len(values)} inputs; expected 1 to {settings.max_items}")

    def read(value: Any) -> Any:
        if not isinstance(value, bytes):
            return answers.item(value)
        if answers.is_image:
            return answers.decode(value)
        return answers.item(value.decode("utf-8", "replace"))

    items = []
    for number, value in enumerate(values, start=1):
        try:
            items.append(await asyncio.to_thread(read, value))
        except InputError as error:
            raise InputError(f"input {number}: {error}") from error
    return items


def from_environment() -> FastAPI:
    """The application of a worker process."""
    return create_app(Settings(**json.loads(os.environ[SETTINGS])))


def serve(settings: Settings, workers: int = 1) -> None:
    """Serves until the process is asked to stop; requests that run are answered first.

    Raises:
        ConfigError: A model that is not served, or unreadable tokens.
    """
    import tempfile

    import uvicorn

    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "timeout_graceful_shutdown": int(settings.timeout) + 1,
        "timeout_keep_alive": KEEP_ALIVE,
        "server_header": False,
        "log_level": "warning",
    }
    if workers == 1:
        uvicorn.run(create_app(settings), **options)
        return
    read_tokens(settings.token_file)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ[SETTINGS] = json.dumps(asdict(settings))
        where = "headstart.serving.app:from_environment"
        uvicorn.run(where, factory=True, workers=workers, **options)
