"""`--max-pixels` of every command that reads images."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

LIMIT = "HEADSTART_MAX_PIXELS"
PixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Pixels of an image file, at most; more only for files that you trust.",
        show_default="134217728",
    ),
]


def with_pixel_limit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the option `--max-pixels`, which holds for all threads of this one call."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, max_pixels: int | None = None, **kwargs: Any) -> Any:
        if max_pixels is None:
            return function(*args, **kwargs)
        before = os.environ.get(LIMIT)
        os.environ[LIMIT] = str(max_pixels)
        try:
            return function(*args, **kwargs)
        finally:
            if before is None:
                del os.environ[LIMIT]
            else:
                os.environ[LIMIT] = before

    option = inspect.Parameter(
        "max_pixels", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=PixelsOption
    )
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "max_pixels": PixelsOption}
    return run
