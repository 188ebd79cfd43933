"""What saving and loading have in common whatever the framework.

The folder, its card, the list of what does not fit.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.config import PreTrainedConfig
from headstart.errors import ConfigError


def save_network(
    folder: str | Path,
    config: PreTrainedConfig,
    tensors: Mapping[str, Any],
    architecture: str,
    max_shard_size: str | int = "5GB",
    *,
    pickled: bool = False,
) -> None:
    """Writes `config.json`, `model.safetensors` and, where transformers would compute
    something else, a model card, each atomically.

    Args:
        folder: Made if it does not exist.
        config: The network's configuration.
        tensors: Published name → tensor.
        architecture: What config.json calls the network.
        max_shard_size: Above it the weights are split, as "5GB" or a number of bytes.
        pickled: Write one `pytorch_model.bin` of PyTorch tensors instead.
    """
    from headstart.checkpoint import atomic_write, write_tensors

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        import torch

        state = {name: value.contiguous() for name, value in tensors.items()}
        for old in folder.glob("*.safetensors*"):
            old.unlink()
        atomic_write(folder / "pytorch_model.bin", lambda file: torch.save(state, file))
    else:
        write_tensors(folder, tensors, max_shard_size=max_shard_size)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    differences = config.differences()
    if differences and not (folder / "README.md").exists():
        lines = ["---", "library_name: headstart", "---", "", f"# {architecture}", ""]
        lines += ["In transformers this folder computes something else:", ""]
        atomic_write(
            folder / "README.md",
            "\n".join(lines + [f"- {each}" for each in differences] + [""]).encode(),
        )


def misfit_message(
    name: str,
    cls: str,
    missing: Iterable[str],
    unknown: Iterable[str],
    wrong: Iterable[tuple[str, Any, Any]],
) -> str:
    """One readable list of everything that did not fit."""
    lines = [f"{name} does not fit {cls}:"]
    lines += [f"  missing: {each}" for each in sorted(missing)]
    unknown = sorted(unknown)
    lines += [f"  unexpected{under_prefix(unknown)}: {each}" for each in unknown]
    lines += [
        f"  shape: {n} is {theirs} in the checkpoint, {ours} in the network"
        for n, theirs, ours in sorted(wrong)
    ]
    hint = (
        "pass num_labels for a head of another size, or ignore_mismatched_sizes=True to leave such"
        " parameters randomly initialized"
    )
    return "\n".join(lines + ([hint] if any("  shape" in line for line in lines) else []))


def check_format(safe_serialization: bool, saved_model: bool = False) -> None:
    """Refuses formats that networks outside PyTorch are not written in.

    Raises:
        ConfigError: One is wanted.
    """
    if not safe_serialization:
        raise ConfigError(
            "safe_serialization=False is not supported; weights are written as model.safetensors,"
            " which every framework reads here"
        )
    if saved_model:
        raise ConfigError("saved_model=True is not supported; write one with model.export(folder)")


def check_keywords(config_class: type[PreTrainedConfig], overrides: Iterable[str]) -> None:
    """Refuses keywords of `from_pretrained` that the configuration does not know.

    Raises:
        TypeError: There is one.
    """
    known = config_class.value_names()
    if unknown := sorted(set(overrides) - known):
        near = difflib.get_close_matches(unknown[0], known, 1, 0.8)
        raise TypeError(
            f"from_pretrained() got an unexpected keyword {unknown[0]!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )


def read_config(
    config_class: type[PreTrainedConfig], config: Any, hub: Mapping[str, Any], name: str | Path
) -> Any:
    """A configuration that was given as itself, as one of transformers, or as its file, folder or
    Hub id; None stays.
    """
    if config is None or isinstance(config, PreTrainedConfig):
        return config
    if hasattr(config, "to_dict"):  # of transformers
        return config_class.from_file_values(config.to_dict(), str(name))
    return config_class.from_pretrained(config, **hub)


def fresh_message(name: str, fresh: Iterable[str]) -> str:
    """One line that lists the parameters that a checkpoint lacks."""
    return f"{name}: not in the checkpoint, randomly initialized: {', '.join(fresh)}"


def unused_message(name: str, cls: str, unknown: Iterable[str]) -> str:
    """One line that lists the tensors of a checkpoint that a network does not use."""
    unknown = sorted(unknown)
    return f"{name}: not used by {cls}{under_prefix(unknown)}: {', '.join(unknown)}"


def prefix_message(name: str, cls: str, lead: str) -> str:
    """One line about the prefix that all names of a checkpoint have and those of a network lack."""
    return f"{name}: {cls} has no prefix {lead!r}; its tensors are loaded without it"


def under_prefix(names: Sequence[str]) -> str:
    """Says which first words several names have in common, or nothing."""
    words = [name.split(".") for name in names]
    shared = os.path.commonprefix(words)
    prefix = ".".join(shared)
    return f" (under the prefix {prefix!r})" if len(names) > 1 and prefix else ""
