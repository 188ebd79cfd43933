"""The page on which a person labels the images of a folder.

Images are known by their numbers: no path is ever taken from a request.
"""

import asyncio
import io
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from headstart._version import __version__
from headstart.checkpoint.documents import parse_json, value_of
from headstart.errors import HeadstartError, InputError
from headstart.serving.app import LOOPBACK, page_route, problem
from headstart.serving.labelling import Labelling

MAX_BODY = 10_000  # bytes of a request
SIDE = 1024  # pixels of an image on the page
PAGE = {"/": ("label.html", "text/html"), "/label.js": ("label.js", "text/javascript"),
        "/page.css": ("page.css", "text/css"), "/label.css": ("label.css", "text/css")}  # fmt: skip


def create_label_app(labelling: Labelling) -> FastAPI:
    """The application; one request at a time changes the labels."""
    app = FastAPI(title="headstart label", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    one_at_a_time = asyncio.Lock()

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        return response

    @app.exception_handler(HeadstartError)
    async def known_error(_: Request, error: HeadstartError) -> JSONResponse:
        return problem(422, str(error))

    async def changed(change: Any, *arguments: Any) -> dict[str, Any]:
        """Runs a change in a thread, and gives the state after it with the time that it took."""
        async with one_at_a_time:
            began = time.perf_counter()
            await asyncio.to_thread(change, *arguments)
            seconds = time.perf_counter() - began
            return labelling.state() | {"milliseconds": round(1e3 * seconds, 1)}

    @app.get("/state")
    async def state() -> dict[str, Any]:
        """What is shown."""
        async with one_at_a_time:
            return labelling.state()

    @app.get("/images/{number}")
    async def image(number: int) -> Response:
        """An image as a JPEG of at most 1,024 pixels a side."""
        if not 0 <= number < len(labelling.inputs):
            return problem(404, "no such image")
        return Response(await asyncio.to_thread(_jpeg, labelling, number), media_type="image/jpeg")

    @app.post("/label")
    async def label(request: Request) -> dict[str, Any]:
        """`{"image": 3, "label": "bee", "alike": false}`."""
        body = await read_body(request)
        number, name, alike = (
            value_of(body, key, kind, "the body", InputError)
            for key, kind in (("image", int), ("label", str), ("alike", bool))
        )
        return await changed(labelling.label, number, name, alike)

    @app.post("/skip")
    async def skip(request: Request) -> dict[str, Any]:
        """`{"image": 3}`."""
        body = await read_body(request)
        return await changed(labelling.skip, value_of(body, "image", int, "the body", InputError))

    @app.post("/undo")
    async def undo(request: Request) -> dict[str, Any]:
        """`{}`."""
        await read_body(request)
        return await changed(labelling.undo)

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, page_route(name, kind), include_in_schema=False)
    return app


def _jpeg(labelling: Labelling, number: int) -> bytes:
    image = Image.fromarray(labelling.inputs[number].pixels())
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


async def read_body(request: Request) -> Any:
    """The JSON of a request.

    Other content types, which a page elsewhere could send without being asked, are refused.

    Raises:
        InputError: Not JSON, or too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InputError("send application/json")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise InputError(f"a request has at most {MAX_BODY:,} bytes")
    try:
        return parse_json(data.decode(), "the body", InputError)
    except UnicodeDecodeError as error:
        raise InputError("the body is not UTF-8") from error


def serve_labels(labelling: Labelling, port: int) -> None:
    """Serves the page on this machine until it is stopped."""
    import uvicorn

    app = create_label_app(labelling)
    uvicorn.run(app, host="127.0.0.1", port=port, server_header=False, log_level="warning")
