"""What saving and loading have in common whatever the framework.

The folder, its card, the list of what does not fit.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headstart.config import PreTrainedConfig


def save_network(
    folder: str | Path,
    config: PreTrainedConfig,
    tensors: Mapping[str, Any],
    architecture: str,
    max_shard_size: str | int = "5GB",
) -> None:
    """Writes `config.json`, `model.safetensors` and, where it has something to tell, a model card,
    each atomically.

    Args:
        folder: Made if it does not exist.
        config: The network's configuration.
        tensors: Published name → tensor.
        architecture: What config.json calls the network.
        max_shard_size: Above it the weights are split, as "5GB" or a number of bytes.
    """
    from headstart.checkpoint import atomic_write, write_tensors

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
        "pass num_labels for a head of another size, or ignore_mismatched_sizes=True to make such"
        " parameters anew"
    )
    return "\n".join(lines + ([hint] if any("  shape" in line for line in lines) else []))
