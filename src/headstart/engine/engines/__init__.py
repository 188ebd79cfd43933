"""The engines that can run a network, each in a file of its own behind the same few words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from headstart.engine.capture import Signature
from headstart.errors import ConfigError, MissingExtraError

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")

# Engine → (package it needs, extra that brings it, precisions it can compute in, kinds of devices
# it runs on; none for all)
ENGINES: dict[str, tuple[str, str, tuple[Precision, ...], tuple[str, ...]]] = {
    "torch": ("torch", "", ("float32", "bfloat16"), ()),
    "openvino": ("openvino", "openvino", PRECISIONS, ("cpu",)),
    "onnxruntime": ("onnxruntime", "onnx", ("float32", "int8"), ("cpu", "cuda")),
    "inductor": ("torch", "", ("float32", "bfloat16"), ()),
}
SLOW_TO_BUILD = ("inductor",)  # a minute of compiling: only tried where it is asked for


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


class Runner(Protocol):
    """A network made ready; `device` is where its inputs and outputs are."""

    device: torch.device

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Output tensors of input tensors, both in the order of the signature."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes what `load` needs into an existing folder; returns facts to remember."""


@runtime_checkable
class Streams(Protocol):
    """A runner that can share a batch among streams."""

    def with_streams(self, streams: int) -> Runner:
        """The same network, the images of a batch side by side."""


class Engine(Protocol):
    """What each module of this package offers."""

    def build(self, job: Job) -> Runner:
        """Makes a network ready."""

    def load(
        self, folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
    ) -> Runner:
        """What `Runner.save` wrote; `model()` gives the network in PyTorch."""


def installed(name: str) -> bool:
    """Whether an engine can be used here."""
    needed = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript")}.get(name, (ENGINES[name][0],))
    return all(find_spec(each) is not None for each in needed)


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: No such engine.
        MissingExtraError: Its package is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine={name!r}; expected one of {', '.join(ENGINES)}")
    if not installed(name):
        raise MissingExtraError(ENGINES[name][0], ENGINES[name][1])
    return import_module(f"headstart.engine.engines.{name}_engine")  # type: ignore[return-value]


def runs_on(name: str, device: str) -> bool:
    """Whether an engine that is installed can run on a kind of device.

    ONNX Runtime is built for CUDA in a package of its own.
    """
    if name == "onnxruntime" and device == "cuda":
        import onnxruntime as ort

        return "CUDAExecutionProvider" in ort.get_available_providers()
    return device in (ENGINES[name][3] or (device,))


def candidates(name: str | None, precision: Precision, device: str = "cpu") -> list[str]:
    """Engines to try for a precision on a kind of device: the one named, or all that are here.

    Raises:
        ConfigError: None can compute in it, or not there.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}")
    if name is not None:
        engine(name)
        if precision not in ENGINES[name][2]:
            raise ConfigError(
                f"the {name} engine has no {precision}; it has {', '.join(ENGINES[name][2])}"
            )
        if not runs_on(name, device):
            more = "; CUDA needs the package onnxruntime-gpu" if name == "onnxruntime" else ""
            raise ConfigError(
                f"the {name} engine here does not run on {device}, where the model is; move it, or"
                f" leave engine out{more}"
            )
        return [name]
    usable = [
        each for each in ENGINES if each not in SLOW_TO_BUILD and precision in ENGINES[each][2]
    ]
    found = [each for each in usable if installed(each) and runs_on(each, device)]
    if not found:
        more = (
            "install one with: pip install 'headstart[openvino]'"
            if device == "cpu"
            else "try bfloat16, or move the model to the CPU"
        )
        raise ConfigError(f"no installed engine computes in {precision} on {device}; {more}")
    return found
