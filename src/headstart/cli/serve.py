"""The command `headstart serve`."""

from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.options import DeviceOption, ModelArgument
from headstart.cli.output import JsonOption, emit
from headstart.cli.terminal import print_line
from headstart.errors import ConfigError, MissingExtraError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel="Network")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to listen on.", rich_help_panel="Network")
    ] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File of accepted tokens, one a line; clients send one as Bearer TOKEN.",
            rich_help_panel="Network",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, each with the model.", rich_help_panel="Batching")
    ] = 1,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="Largest number of inputs in one forward pass.", rich_help_panel="Batching"
        ),
    ] = 8,
    wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            max=1000,
            help="Milliseconds to wait for more inputs of a batch.",
            rich_help_panel="Batching",
        ),
    ] = 3.0,
    queue: Annotated[
        int,
        typer.Option(
            min=1,
            help="Largest number of waiting inputs; more are answered with 503.",
            rich_help_panel="Limits",
        ),
    ] = 64,
    max_bytes: Annotated[
        int,
        typer.Option(min=1, help="Largest size of a request in bytes.", rich_help_panel="Limits"),
    ] = 20_000_000,
    max_pixels: Annotated[
        int,
        typer.Option(min=1, help="Largest number of pixels of an image.", rich_help_panel="Limits"),
    ] = 50_000_000,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Longest time of a request in seconds.", rich_help_panel="Limits"
        ),
    ] = 30.0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model over HTTP, with a page to try it.

    Example: [bold]headstart serve runs/photos[/bold]
    """
    try:
        from headstart.serving.app import Settings
        from headstart.serving.app import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    if host not in LOOPBACK and token_file is None:
        raise ConfigError(
            f"--host {host} can be reached from other machines; give --token-file (or listen on"
            " 127.0.0.1, the default)"
        )
    settings = Settings(
        model=model,
        host=host,
        port=port,
        device=device,
        token_file=None if token_file is None else str(token_file),
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        timeout=timeout,
        queue=queue,
        batch=batch,
        wait_ms=wait_ms,
    )
    address = f"http://{host}:{port}/"
    if as_json:
        emit("serve", {"address": address, "model": model})
    else:
        print_line(f"serving {model} on {address} (stop with Ctrl+C)")
    run(settings, workers)
