"""From any file of the families to any other.

The Hub's folders, safetensors or `.bin`, and the authors' own; checked after writing.
"""

import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from headstart.auto import AutoImageProcessor, AutoTokenizer
from headstart.checkpoint import atomic_write, read_checkpoint, write_tensors
from headstart.config import Compat
from headstart.errors import ConfigError, HeadstartError, WeightsError
from headstart.loading import family_of, load_checkpoint
from headstart.pipelines.base import RESULTS
from headstart.registry import Family, families, find_published, locate

BIN = "pytorch_model.bin"
# weights are equal to the bit; outputs may be rounded otherwise where memory lies otherwise
TOLERANCE = 1e-5
Format = Literal["safetensors", "bin"]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        path: Folder or file.
        network: Class of the network.
        weights: How many numbers it holds.
        kind: What was written, in words.
    """

    path: Path
    network: str
    weights: int
    kind: str


def convert(
    source: str | Path,
    target: str | Path,
    *,
    format: Format = "safetensors",
    compat: Compat | None = None,
    architecture: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    **hub: Any,
) -> Converted:
    """Writes a checkpoint in another format, reads it again, and compares every weight and the
    outputs.

    Args:
        source: A folder, a file of any format, a Hub id, or an authors' name.
        target: A folder (as the Hub's), or a file: `.safetensors` or `.bin` with the Hub's names,
            or the authors' `.npz` (BiT) or `.pth`.
        format: Of the weights in a folder.
        compat: Whose arithmetic the network is to run: "authors" or "transformers"; None keeps what
            it runs now.
        architecture: Class of the network, such as "BitForImageClassification"; None is the one
            that the weights are of.
        max_shard_size: Above it the weights in a folder are split.
        overwrite: Whether something at the target may be replaced.
        **hub: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        ConfigError: No such format for this family, or something is at the target already.
        HubError: The source could not be found.
        WeightsError: What was written is not what was read. Then nothing is left at the target.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists; choose another name, or replace it with --overwrite")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise ConfigError(
            f"{target} holds other things than a model, which are not deleted; choose another name"
        )
    if (target / RESULTS).is_file():
        raise ConfigError(
            f"{target} holds a run, whose results and report would be lost; choose another name"
        )
    if format not in ("safetensors", "bin"):
        raise ConfigError(f"format={format!r}; expected safetensors or bin")
    family, network = load_any(source, compat, architecture, hub)
    writer, kind = writer_of(target, family)
    # takes its place once it is checked
    draft = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        if writer is None:
            kind = f"folder with {format}"
            _write_folder(source, draft, family, network, format, max_shard_size, hub)
        else:
            draft.parent.mkdir(parents=True, exist_ok=True)
            writer(network, draft)
        check(network, draft, is_folder=writer is None)
        if target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)
    return Converted(
        target, type(network).__name__, sum(p.numel() for p in network.parameters()), kind
    )


def load_any(
    source: str | Path, compat: Compat | None, architecture: str | None, hub: Mapping[str, Any]
) -> tuple[Family, Any]:
    """The family of a checkpoint and its network, whatever the file and the head."""
    path = Path(source)
    known = (
        find_published(str(source)) is not None
        or not path.is_file()
        or (path.parent / "config.json").is_file()
    )
    values: dict[str, Any] = {}
    if known:
        family, values = family_of(
            source, **{key: value for key, value in hub.items() if value is not None}
        )
    else:
        family = family_of_file(path)
    config, tensors = load_checkpoint(source, family.config, None, compat, {}, hub)
    named = [architecture] if architecture else values.get("architectures") or []
    classes = [name for name in named if name in family.tasks.values()]
    if architecture and not classes:
        raise ConfigError(
            f"{family.model_type} has no class {architecture}; it has"
            f" {', '.join(dict.fromkeys(family.tasks.values()))}"
        )
    name = classes[0] if classes else best_class(family, config, tensors)
    extra = {} if compat is None else {"compat": compat}
    return family, family.load(name).from_pretrained(source, **extra, **hub)


def family_of_file(path: Path) -> Family:
    """The family of a file of the authors without a configuration, inferred from its names."""
    tensors, reasons = read_checkpoint(path, "torch"), []
    for family in families().values():
        try:
            if family.read_authors is not None:
                family.read_authors(tensors, path.name, None, compat="authors")
                return family
        except (HeadstartError, KeyError, IndexError) as error:
            reasons.append(f"{family.model_type}: {str(error).splitlines()[0]}")
    lines = "\n".join(f"  {reason}" for reason in reasons)
    raise WeightsError(
        f"{path} is not a file of the families' authors, and there is no config.json beside"
        f" it:\n{lines}"
    )


def best_class(family: Family, config: Any, tensors: Mapping[str, Any]) -> str:
    """The network of the family that uses the most of these tensors and lacks none."""
    best, most = "", -1
    for name in dict.fromkeys(each for task, each in family.tasks.items() if task != "backbone"):
        with suppress(ConfigError), torch.device("meta"):
            network = family.load(name)(config)
            own = dict(network.named_parameters()) | {
                n: b for n, b in network.named_buffers() if n in network.state_dict()
            }
            found, missing, _ = network.name_table(config).to_ours(tensors, own)
            if not missing and len(found) > most:
                best, most = name, len(found)
    return best or family.tasks["base"]


def writer_of(target: Path, family: Family) -> tuple[Callable[[Any, Path], None] | None, str]:
    """What writes a file of this ending, and how that is called; None for a folder.

    Raises:
        ConfigError: The family has no such format.
    """
    if not target.suffix or target.is_dir():
        return None, ""
    own = {
        ".safetensors": (_write_safetensors, "safetensors file"),
        ".bin": (_write_bin, "PyTorch file"),
    }
    if target.suffix in own:
        return own[target.suffix]
    if target.suffix not in family.writers:
        if target.suffix not in (".npz", ".pth", ".pt", ".h5", ".msgpack"):
            return None, ""  # a folder whose name has a dot
        known = ", ".join([*family.writers, *own])
        raise ConfigError(
            f"{family.model_type} has no {target.suffix} format that its authors read; give a"
            f" folder, or a file ending in {known}"
        )
    return locate(family.writers[target.suffix]), f"the authors' {target.suffix}"


def _write_safetensors(network: Any, path: Path) -> None:
    with_folder = path.with_name(path.name + ".parts")
    try:
        (file,) = write_tensors(with_folder, network.published_tensors(), max_shard_size="1TB")
        file.replace(path)
    finally:
        shutil.rmtree(with_folder, ignore_errors=True)


def _write_bin(network: Any, path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in network.published_tensors().items()}
    atomic_write(path, lambda file: torch.save(tensors, file))


def _write_folder(
    source: str | Path,
    folder: Path,
    family: Family,
    network: Any,
    format: Format,
    max_shard_size: int | str,
    hub: Mapping[str, Any],
) -> None:
    """Weights, configuration, card, and the processor or tokenizer where the source has one."""
    network.save_pretrained(folder, max_shard_size=max_shard_size)
    if format == "bin":
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        _write_bin(network, folder / BIN)
    text = family.reads_text
    with suppress(HeadstartError):  # a file of the authors has none
        processor = (AutoTokenizer if text else AutoImageProcessor).from_pretrained(source, **hub)
        processor.save_pretrained(folder)
    if not text and not (folder / "preprocessor_config.json").exists():
        family.load(family.processor)().save_pretrained(folder)


def check(network: Any, path: Path, is_folder: bool) -> None:
    """Compares a network with what was written of it.

    Raises:
        WeightsError: A weight or an output differs.
    """
    known = {} if is_folder else {"config": network.config}
    again = type(network).from_pretrained(path, **known)
    mine, theirs = network.state_dict(), again.state_dict()
    differing = [
        name for name in mine if name not in theirs or not torch.equal(mine[name], theirs[name])
    ]
    if differing:
        raise WeightsError(
            f"{path.name}: {len(differing)} tensors are not what was written, such as"
            f" {differing[0]}"
        )
    ours, other = (_output(each) for each in (network, again))
    if not torch.allclose(ours, other, rtol=0, atol=TOLERANCE * max(1.0, float(ours.abs().max()))):
        raise WeightsError(
            f"{path.name}: outputs differ by {(ours - other).abs().max():.1e} from the network's;"
            " its configuration was lost"
        )


@torch.no_grad()
def _output(network: Any) -> torch.Tensor:
    from headstart.engine.capture import make_example

    torch.manual_seed(0)  # YOSO's hashes
    out = nn.Module.eval(network)(**make_example(network))
    return next(value for value in out.to_tuple() if isinstance(value, torch.Tensor))
