"""What goes into a layer, seen from outside a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn


@contextmanager
def inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collects what goes into a layer while the block is open, in passes of this thread alone.

    Args:
        layer: The layer; None collects nothing.
    """
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    thread = get_ident()

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if get_ident() == thread:
            seen.append(arguments[0].detach())

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
