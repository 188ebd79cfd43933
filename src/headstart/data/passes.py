"""Forward passes of several batches at a time.

The threads of one pass wait for each other after every layer, and all of them for a thread whose
processor decodes an image or serves another program meanwhile. Passes of different batches wait for
nobody.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import nn

from headstart.data.cache import parallel

T = TypeVar("T")
U = TypeVar("U")
MOST = 4  # passes at a time: each needs memory for its activations
# values and images of one pass: fewer are mostly overhead, of more the activations leave the cache
VALUES = 8 * 3 * 224 * 224
IMAGES = 64
WAITING = 2  # batches and results that wait, for each of them


def forward_passes(
    function: Callable[[T], U], batches: Iterable[T], model: nn.Module | None
) -> Iterator[U]:
    """`map` of a function that computes with a network, in order, several batches at a time.

    PyTorch's threads are divided among the passes. A single batch, and a network that is not on the
    CPU or whose engine has its own threads, is computed as by `map`.

    Args:
        function: Called from several threads; it sets `torch.inference_mode` itself.
        batches: Its arguments.
        model: The network; None where an engine computes.
    """
    remaining = iter(batches)
    first = list(islice(remaining, 2))
    together = chain(first, remaining)
    passes = passes_of(model)
    if passes == 1 or len(first) < 2:
        yield from map(function, together)
        return
    before = torch.get_num_threads()
    counts = iter([len(range(i, before, passes)) for i in range(passes)])  # in sum `before`

    def start() -> None:
        torch.get_num_threads()  # gives a new thread the number that was set last, by any thread
        torch.set_num_threads(next(counts))

    try:
        yield from parallel(function, together, passes, waiting=WAITING, start=start)
    finally:
        torch.set_num_threads(before)  # of threads that are yet to come


def images_in_a_pass(values: int) -> int:
    """How many images of so many values each are computed together on a CPU."""
    return min(IMAGES, -(-VALUES // values))


def passes_of(model: nn.Module | None) -> int:
    """How many passes of a network are computed at a time."""
    devices = {weight.device.type for weight in model.parameters()} if model is not None else set()
    # processes that share a model exchange its weights in each pass
    if devices != {"cpu"} or torch.distributed.is_initialized():
        return 1
    return min(MOST, torch.get_num_threads())
