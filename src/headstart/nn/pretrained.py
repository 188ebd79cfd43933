"""What saving and loading have in common whatever the framework.

The folder, its card, the list of what does not fit.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headstart.config import WITHOUT_EFFECT, PreTrainedConfig
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
    config.architectures = [architecture]  # type: ignore[attr-defined]
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
    lines += [f"  unexpected: {each}" for each in sorted(unknown)]
    lines += [
        f"  shape: {n} is {theirs} in the checkpoint, {ours} in the network"
        for n, theirs, ours in sorted(wrong)
    ]
    hint = (
        "pass num_labels for a head of another size, or ignore_mismatched_sizes=True to leave such"
        " parameters randomly initialized"
    )
    return "\n".join(lines + ([hint] if any("  shape" in line for line in lines) else []))


HUB_KEYWORDS = ("token", "private", "revision", "commit_message")


def check_hub_keywords(hub: Mapping[str, Any]) -> None:
    """Refuses unknown keywords of saving.

    Raises:
        TypeError: There is one.
    """
    if unknown := sorted(set(hub) - set(HUB_KEYWORDS)):
        raise TypeError(
            f"save_pretrained() got an unexpected keyword {unknown[0]!r}; expected some of"
            f" {', '.join(HUB_KEYWORDS)}"
        )


def check_keywords(
    config_class: type[PreTrainedConfig], overrides: dict[str, Any], hub: dict[str, Any]
) -> None:
    """Moves older names of arguments to where they belong, and refuses unsupported ones.

    Args:
        config_class: The family's configuration.
        overrides: Keywords that `from_pretrained` has no argument for; changed in place.
        hub: Where files come from; changed in place.

    Raises:
        TypeError: A keyword that is neither an argument nor a configuration value.
        ConfigError: A keyword whose effect is not supported.
    """
    if (token := overrides.pop("use_auth_token", None)) is not None:
        hub["token"] = token
    if overrides.pop("force_download", False):
        raise ConfigError(
            "force_download=True is not supported; remove the model from the cache"
            " (huggingface-cli delete-cache), or pass another cache_dir"
        )
    if overrides.pop("trust_remote_code", False):
        raise ConfigError("trust_remote_code=True: code that comes with a checkpoint never runs")
    for key in IGNORED:
        overrides.pop(key, None)
    known = config_class.value_names() | set(WITHOUT_EFFECT)
    if unknown := sorted(set(overrides) - known):
        near = difflib.get_close_matches(unknown[0], known, 1, 0.8)
        raise TypeError(
            f"from_pretrained() got an unexpected keyword {unknown[0]!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )


# These describe what every load does here, whatever their values.
IGNORED = ("_fast_init", "_from_auto", "_commit_hash", "resume_download", "weights_only")


def within(name: str | Path, subfolder: str) -> str | Path:
    """The checkpoint in a subfolder of a local folder.

    Raises:
        ConfigError: Not a local folder, or the subfolder lies outside of it.
    """
    if not subfolder:
        return name
    folder = Path(name) / subfolder
    if not Path(name).is_dir() or not folder.resolve().is_relative_to(Path(name).resolve()):
        raise ConfigError(
            f"subfolder={subfolder!r} is not inside a local folder {name}; download the model and"
            " pass the path of its subfolder"
        )
    return folder


def read_config(config_class: type[PreTrainedConfig], config: Any, hub: Mapping[str, Any]) -> Any:
    """A configuration that was given as itself, or as its file, folder or Hub id; None stays."""
    if config is None or isinstance(config, PreTrainedConfig):
        return config
    return config_class.from_pretrained(config, **hub)


def fresh_message(name: str, fresh: Iterable[str]) -> str:
    """One line that lists the parameters that a checkpoint lacks."""
    return f"{name}: not in the checkpoint, randomly initialized: {', '.join(fresh)}"


def unused_message(name: str, cls: str, unknown: Iterable[str]) -> str:
    """One line that lists the tensors of a checkpoint that a network does not use."""
    unknown = sorted(unknown)
    return f"{name}: not used by {cls}: {', '.join(unknown)}"
