"""The optimized model: the call and outputs of the network, with an engine inside.

Saved and loaded as a folder.
"""

import inspect
import json
import logging
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import read_object, value_of
from headstart.engine.capture import Signature
from headstart.engine.engines import ENGINES, engine
from headstart.engine.engines.base import Runner
from headstart.engine.report import Report
from headstart.errors import ConfigError, FileFormatError, HeadstartError, InputError

logger = logging.getLogger("headstart")

FILE, FOLDER, VERSION = "headstart_optimized.json", "engine", 1
MAX_THREADS = 1024  # in a saved folder
# What lies beside a network and is used with it, besides its weights and configuration.
COMPANIONS = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "results.json",
    "confidence.json",
    "unknown.safetensors",
)
# Arguments that change nothing of what an engine computes.
IDLE = ("return_dict", "interpolate_pos_encoding")


class OptimizedModel(nn.Module):
    """A network that an engine runs; `optimize` makes it, `load` reads a saved one.

    Calls that the engine was not made for (labels, hidden states, attention weights, other image
    sizes) go to the network in PyTorch, which a loaded folder reads when it is first needed.
    """

    def __init__(
        self,
        model: nn.Module | None,
        runner: Runner,
        signature: Signature,
        report: Report,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self._network = [model]  # in a list, so that its weights are not counted as ours
        self.runner, self.signature, self.report, self.folder = runner, signature, report, folder
        self.model_class: type[nn.Module] = (
            _class_of(report.model) if model is None else type(model)
        )
        self.fell_back = False  # to PyTorch, for a call that the engine does not take
        self._place = torch.device("cpu") if runner is None else runner.device
        super().train(False)

    @property
    def original(self) -> Any:
        """The network in PyTorch."""
        if self._network[0] is None:
            network = self.model_class.from_pretrained(self.folder, optimized=False)  # type: ignore[attr-defined]
            self._network[0] = network.to(self._place)
        return self._network[0]

    @property
    def engine_files(self) -> list[Path]:
        """The files of a saved engine, which decide its outputs; none before it is saved."""
        if self.folder is None:
            return []
        return [self.folder / FILE, *sorted((self.folder / FOLDER).rglob("*"))]

    @cached_property
    def config(self) -> Any:
        """The network's configuration."""
        if self._network[0] is None:
            return self.model_class.config_class.from_pretrained(self.folder)  # type: ignore[attr-defined]
        return self._network[0].config

    @property
    def main_input_name(self) -> str:
        """Name of the first input."""
        return str(self.model_class.main_input_name)  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Where inputs and outputs are: where the network was when it was optimized."""
        return self.runner.device

    @property
    def fixed_device(self) -> str:
        """The same as text: unlike a network's, it cannot be chosen."""
        return str(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of floating-point inputs and outputs.

        What is computed in is `report.chosen.precision`.
        """
        return torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network: the same arguments, the same named outputs."""
        given = {
            name: value for name, value in self._bind(args, kwargs).items() if value is not None
        }
        named = given.get("return_dict", self.config.use_return_dict)
        if self._is_ours(given):
            inputs = self.signature.prepare(given, self.device)
            if inputs is not None:
                out = self.signature.pack(self.runner(inputs))
                return out if named else out.to_tuple()
        if not self.fell_back:
            self.fell_back = True
            logger.warning(
                "a call that the %s engine was not made for runs in PyTorch",
                self.report.chosen.engine,
            )
        with torch.inference_mode(not wants_gradients(given)):
            return self.original(**given)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = self._parameters_of_call.bind(None, *args, **kwargs)
        except TypeError as error:
            raise InputError(f"{self.model_class.__name__}: {error}") from error
        return {name: value for name, value in bound.arguments.items() if name != "self"}

    @cached_property
    def _parameters_of_call(self) -> inspect.Signature:
        return inspect.signature(self.model_class.forward)

    def _is_ours(self, given: Mapping[str, Any]) -> bool:
        """Whether the engine computes all that a call asks for."""
        if wants_gradients(given):
            return False
        config = self.config
        flags = [
            given.get(flag, getattr(config, flag))
            for flag in ("output_hidden_states", "output_attentions")
        ]
        others = set(given) - {
            *self.signature.inputs,
            *IDLE,
            "output_hidden_states",
            "output_attentions",
        }
        spare = {
            name
            for name in others
            if name in ("attention_mask", "token_type_ids")
            and self._changes_nothing(name, given[name])
        }
        return not any(flags) and others <= spare

    def _changes_nothing(self, name: str, value: Any) -> bool:
        """Whether a mask keeps everything, or all segments are the first."""
        return bool(torch.as_tensor(value).eq(1 if name == "attention_mask" else 0).all())

    def train(self, mode: bool = True) -> "OptimizedModel":
        """Evaluation only.

        Raises:
            ConfigError: Training was requested.
        """
        if mode:
            raise ConfigError(
                "an optimized model cannot be trained; train `model.original`, then optimize that"
            )
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself, which stays where it was optimized.

        Raises:
            ConfigError: Another device.
        """
        device = next(
            (
                each
                for each in (*args, kwargs.get("device"))
                if isinstance(each, str | torch.device)
            ),
            None,
        )
        if device is not None and torch.device(device).type != self.device.type:
            raise ConfigError(
                f"this model was optimized for {self.device}, not {device}; move `model.original`"
                " and optimize it there"
            )
        return self

    def extra_repr(self) -> str:
        """The network, and what runs it."""
        return (
            f"{self.model_class.__name__}, {self.report.chosen.engine},"
            f" {self.report.chosen.precision}"
        )

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes a folder that `from_pretrained`, `pipeline` and `load` read: the network's own
        files, and the engine's.

        Args:
            folder: Made if it does not exist.
            **kwargs: As for the network's `save_pretrained`.
        """
        folder = Path(folder)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        source = Path(getattr(self.config, "name_or_path", "") or ".")
        self.original.save_pretrained(folder, **kwargs)
        for name in COMPANIONS:
            if (
                (source / name).is_file()
                and source.resolve() != folder.resolve()
                and str(source) != "."
            ):
                shutil.copyfile(source / name, folder / name)
        facts = self.runner.save(folder / FOLDER) | {
            "threads": self.report.threads,
            "precision": self.report.chosen.precision,
        }
        facts["device"] = str(self.device)
        values = {
            "version": VERSION,
            "engine": self.report.chosen.engine,
            "signature": self.signature.to_dict(),
            "facts": facts,
        }
        values["report"] = self.report.to_dict()
        atomic_write(folder / FILE, (json.dumps(values, indent=1) + "\n").encode())


def wants_gradients(given: Mapping[str, Any]) -> bool:
    """Whether a call has an input that is differentiated by, which only PyTorch does."""
    tensors = (each for each in given.values() if isinstance(each, torch.Tensor))
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def is_optimized(name: str | Path) -> bool:
    """Whether this is a folder that `OptimizedModel.save_pretrained` wrote."""
    return (Path(name) / FILE).is_file()


def load_as(folder: str | Path, cls: type) -> OptimizedModel | None:
    """The optimized model in a folder where its network is of exactly that class, else None.

    `from_pretrained` of every class finds this function through `headstart.registry`.
    """
    return load(folder) if _read(Path(folder))["report"].get("model") == cls.__name__ else None


def load(folder: str | Path, *, threads: int | None = None) -> OptimizedModel:
    """An optimized model from the folder it was saved in, ready to run.

    Graphs are compiled on this machine; nothing in the folder is run as code.

    Args:
        folder: Where `OptimizedModel.save_pretrained` wrote.
        threads: Threads of a call; default those it was optimized for.

    Raises:
        FileFormatError: Not such a folder, or a damaged one.
        MissingExtraError: The engine is not installed.
    """
    folder = Path(folder)
    values, path = _read(folder), folder / FILE
    signature = Signature.from_dict(values.get("signature"), path)
    report = Report.from_dict(values["report"], path)
    facts = value_of(values, "facts", dict[str, Any], path)
    name = value_of(values, "engine", str, path)
    threads_saved = value_of(facts, "threads", int, path)
    precision = value_of(facts, "precision", str, path)
    if name not in ENGINES or precision not in ENGINES[name].precisions:
        raise FileFormatError(
            f"{path} asks for {name:.40} in {precision:.40}, which is not an engine of this"
            " version; optimize the model again"
        )
    if not 1 <= threads_saved <= MAX_THREADS:
        raise FileFormatError(f"{path} asks for {threads_saved} threads; optimize the model again")
    place = here(str(facts.get("device", "cpu")))
    found = OptimizedModel(None, None, signature, report, folder)  # type: ignore[arg-type]  # next
    found._place = place
    try:
        found.runner = engine(name).load(
            folder / FOLDER, signature, facts, threads or threads_saved, lambda: found.original
        )
    except HeadstartError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{path} is damaged (facts: {error!r}); optimize the model again"
        ) from error
    return found


def here(device: str) -> torch.device:
    """A device of this machine.

    Raises:
        ConfigError: It is not here.
    """
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", device) is None:
        raise FileFormatError(f"the folder was optimized for the device {device[:40]!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"this folder was optimized for {device}, which is not here; from_pretrained(folder,"
            " optimized=False) loads the network"
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise FileFormatError(f"{device!r:.80} is not a device: {error}") from error


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        raise FileFormatError(
            f"{folder} has no {FILE}; headstart.optimize(model).save_pretrained(folder) writes one"
        )
    values = read_object(path, nan=True)
    if values.get("version") != VERSION:
        raise FileFormatError(
            f"{path} is of another version of headstart; optimize the model again"
        )
    value_of(value_of(values, "report", dict[str, Any], path), "model", str, path)
    return values


def _class_of(name: str) -> type[nn.Module]:
    """One of the families' networks by its name."""
    from headstart.registry import families

    for family in families().values():
        if name in family.tasks.values():
            return family.load(name)  # type: ignore[no-any-return]
    raise FileFormatError(f"the folder names {name!r}, which is not a network of headstart")
