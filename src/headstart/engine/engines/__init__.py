"""The engines that can run a network: a table of them, and which to try."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from headstart.engine.engines.base import PRECISIONS, Engine, Precision
from headstart.errors import ConfigError, MissingExtraError


@dataclass(frozen=True)
class EngineEntry:
    """An engine in the table.

    Args:
        module: Where its `build` and `load` are.
        packages: What it imports; the first is named where one is missing.
        extra: The extra of headstart that installs them, or "".
        precisions: What it can compute in.
        devices: Kinds of devices it runs on; empty for all that PyTorch has.
        hint: What to add where it does not run on a device.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...]
    hint: str = ""

    @property
    def installed(self) -> bool:
        """Whether its packages are here."""
        return all(find_spec(package) is not None for package in self.packages)


ENGINES: dict[str, EngineEntry] = {
    "torch": EngineEntry(
        module="headstart.engine.engines.torch",
        packages=("torch",),
        extra="",
        precisions=("float32", "bfloat16"),
        devices=(),
    ),
    "openvino": EngineEntry(
        module="headstart.engine.engines.openvino",
        packages=("openvino",),
        extra="openvino",
        precisions=PRECISIONS,
        devices=("cpu",),
    ),
    "onnxruntime": EngineEntry(
        module="headstart.engine.engines.onnxruntime",
        packages=("onnxruntime", "onnx", "onnxscript"),
        extra="onnx",
        precisions=("float32", "int8"),
        devices=("cpu", "cuda"),
        hint="; CUDA needs the package onnxruntime-gpu",
    ),
}


def installed(name: str) -> bool:
    """Whether an engine can be used here."""
    return ENGINES[name].installed


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: No such engine.
        MissingExtraError: Its package is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine={name!r}; expected one of {', '.join(ENGINES)}")
    entry = ENGINES[name]
    if not entry.installed:
        raise MissingExtraError(entry.packages[0], entry.extra)
    return import_module(entry.module)


def runs_on(name: str, device: str) -> bool:
    """Whether an engine that is installed can run on a kind of device.

    ONNX Runtime is built for CUDA in a package of its own.
    """
    if name == "onnxruntime" and device == "cuda":
        import onnxruntime as ort

        return "CUDAExecutionProvider" in ort.get_available_providers()
    return device in (ENGINES[name].devices or (device,))


def candidates(name: str | None, precision: Precision, device: str = "cpu") -> list[str]:
    """Engines to try for a precision on a kind of device: the one named, or all that are here.

    Raises:
        ConfigError: None can compute in it, or not there.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}")
    if name is not None:
        engine(name)
        entry = ENGINES[name]
        if precision not in entry.precisions:
            raise ConfigError(
                f"the {name} engine has no {precision}; it has {', '.join(entry.precisions)}"
            )
        if not runs_on(name, device):
            raise ConfigError(
                f"the {name} engine here does not run on {device}, where the model is; move it, or"
                f" leave engine out{entry.hint}"
            )
        return [name]
    usable = [each for each, entry in ENGINES.items() if precision in entry.precisions]
    found = [each for each in usable if installed(each) and runs_on(each, device)]
    if not found:
        more = "try bfloat16, or move the model to the CPU"
        if device == "cpu":
            more = "install one with: pip install 'headstart[openvino]'"
        raise ConfigError(f"no installed engine computes in {precision} on {device}; {more}")
    return found
