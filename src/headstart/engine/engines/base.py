"""What an engine is given, and what it offers; the engines themselves are one file each beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from headstart.engine.capture import Signature
from headstart.errors import FileFormatError

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Job:
    """What an engine is to run.

    Args:
        model: The network, in evaluation mode.
        signature: Its inputs and outputs.
        example: Tensors of a call.
        dynamic: Axes that may change.
        precision: What to compute in.
        threads: Threads of one call.
        calibration: Calls to measure ranges on, for int8; at least one.
    """

    model: nn.Module
    signature: Signature
    example: Mapping[str, Tensor]
    dynamic: tuple[str, ...]
    precision: Precision
    threads: int
    calibration: Sequence[Mapping[str, Tensor]] = ()

    def arrays(self, most: int) -> list[dict[str, Any]]:
        """At most so many calibration calls, spread over all of them, as NumPy arrays by name."""
        found = []
        for sample in spread(self.calibration, most):
            tensors = self.signature.prepare(sample) or []
            pairs = zip(self.signature.inputs, tensors, strict=True)
            found.append({name: x.contiguous().numpy() for name, x in pairs})
        return found


class Runner(Protocol):
    """A network made ready; `device` is where its inputs and outputs are."""

    device: torch.device

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Output tensors of input tensors, both in the order of the signature."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes what `load` needs into an existing folder; returns facts to remember."""


@runtime_checkable
class Streams(Protocol):
    """A runner that can divide its threads into streams."""

    def with_streams(self, streams: int) -> Runner:
        """The same network with several streams, which run side by side."""


class Engine(Protocol):
    """What each module of this package offers."""

    def build(self, job: Job) -> Runner:
        """Makes a network ready."""

    def load(
        self, folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
    ) -> Runner:
        """What `Runner.save` wrote; `model()` gives the network in PyTorch."""


def spread(calls: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the calls, spread over all of them."""
    return list(calls)[:: max(1, len(calls) // most)][:most]


def saved_file(folder: Path, name: str) -> Path:
    """A file that an engine wrote into its folder.

    Raises:
        FileFormatError: It is missing, or leads out of the folder.
    """
    path = folder / name
    if not path.is_file() or path.is_symlink():
        raise FileFormatError(f"{folder} has no file {name}; optimize the model again")
    return path
