"""From a name or path to a configuration and published tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from headstart.checkpoint import read_checkpoint
from headstart.config import (
    Compat,
    PreTrainedConfig,
    published_config,
    read_config_file,
    resolve_compat,
)
from headstart.errors import ConfigError, HubError
from headstart.hub.resolve import resolve_weights
from headstart.registry import FAMILIES, Family, Published, families, find_published, suggesting


def load_checkpoint(
    name: str | Path,
    config_class: type[PreTrainedConfig],
    config: PreTrainedConfig | None,
    compat: Compat | None,
    overrides: Mapping[str, Any],
    hub: Mapping[str, Any],
    framework: Literal["torch", "numpy"] = "torch",
    formats: tuple[str, ...] = ("safetensors", "bin", "h5", "msgpack"),
) -> tuple[Any, dict[str, Any]]:
    """Configuration and published tensors of a checkpoint of any kind.

    Args:
        name: A folder, a file of any format, a Hub id, or an authors' name.
        config_class: The family's configuration.
        config: One to use instead of the checkpoint's.
        compat: Whose arithmetic; None follows `resolve_compat`.
        overrides: Values that win over the checkpoint's.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`.
        framework: "torch" or "numpy" tensors.
        formats: Kinds of files to look for in a folder or on the Hub, best first.

    Returns:
        The configuration, and published name → tensor.
    """
    family = families()[config_class.model_type]
    found = find_published(str(name)) if not hub.get("revision") else None
    if found is not None and found[0] is not family:
        raise ConfigError(
            f"{name} is a {found[0].model_type} model; load it with a class of that family, or with"
            " AutoModel"
        )
    # the authors' address is gone; a conversion is on the Hub
    if found is not None and found[1].url is None:
        return load_checkpoint(
            found[1].hub_id or "", config_class, config, compat, overrides, hub, framework, formats
        )
    path = weights_file(name, found[1] if found else None, hub, formats)
    tensors = read_checkpoint(path, framework)
    known = family.load(family.tasks["base"]).name_table(config or family.config()).knows
    # Some names may be the same on both sides.
    by_authors = family.read_authors is not None and 2 * sum(map(known, tensors)) < len(tensors)
    if config is not None:
        config = config_class.from_dict(config.to_dict(), **overrides) if overrides else config
    elif found is not None:
        values = published_config(str(name), compat=compat).to_dict()  # type: ignore[union-attr]
        config = config_class.from_dict(values, **overrides)
    elif not Path(name).is_file() or (path.parent / "config.json").is_file():
        values = read_config_file(name, **hub)
        kind = values.get("model_type", config_class.model_type)
        if kind != config_class.model_type:
            raise ConfigError(
                f"{name} is a {kind!r} model; load it with a class of that family, or with"
                " AutoModel"
            )
        # A file of the authors runs their mathematics, whoever wrote the config.json beside it;
        # these two are of transformers.
        theirs = by_authors and path.name not in ("tf_model.h5", "flax_model.msgpack")
        config = config_class.from_file_values(
            values, str(name), compat or ("authors" if theirs else None), **overrides
        )
    if by_authors and family.read_authors is not None:
        chosen = (
            config.compat
            if config is not None
            else resolve_compat({}, str(name), compat, config_class)
        )
        config, tensors = family.read_authors(
            tensors, str(name), config, compat=chosen, **({} if config is not None else overrides)
        )
    if config is None:
        raise ConfigError(
            f"{name} has no config.json beside it; pass config=, or put the file in a folder with"
            " its config.json"
        )
    return config, tensors


def weights_file(
    name: str | Path, published: Published | None, hub: Mapping[str, Any], formats: tuple[str, ...]
) -> Path:
    """The file that holds a checkpoint's weights, or the index of its shards, downloaded if need
    be.
    """
    if published is not None and published.url is not None:
        options = {key: hub[key] for key in ("cache_dir", "local_files_only") if hub.get(key)}
        from headstart.hub.download import Download, download

        return download(Download(published.url, published.size, published.sha256), **options)
    if Path(name).is_file():
        return Path(name)
    with suggesting(name):
        return resolve_weights(str(name), formats=formats, **hub)


def cached_file(model: Published) -> Path | None:
    """The weights of a published model where they are on this machine already.

    None where they would be downloaded.
    """
    if model.url is None and model.hub_id is None:
        return None
    name, where = (model.name, model) if model.url is not None else (str(model.hub_id), None)
    try:
        return weights_file(name, where, {"local_files_only": True}, ("safetensors", "bin"))
    except HubError:
        return None


def family_of(name: str | Path, **hub: Any) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint, and the values of its config.json (empty for an authors' name or
    file).
    """
    found = find_published(str(name))
    if found is not None:
        return found[0], {}
    values = read_config_file(name, **hub)
    kind = values.get("model_type")
    if not isinstance(kind, str | None) or kind not in families():
        raise ConfigError(f"{name} is a {kind!r:.80} model; headstart has {', '.join(FAMILIES)}")
    return families()[str(kind)], values
