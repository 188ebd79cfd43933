"""From a checkpoint to its family: AutoConfig, AutoModel…, AutoImageProcessor, AutoTokenizer.

A fifth family is one more folder in `headstart.models` and one more word in `FAMILIES`.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from headstart.config import Compat, PreTrainedConfig, read_json, resolve_compat
from headstart.errors import ConfigError, HubError, NotFoundError, OfflineError
from headstart.package_data import EMBEDDED
from headstart.registry import Family, Published

FAMILIES = ("bit", "cvt", "beit", "yoso")


@cache
def families() -> dict[str, Family]:
    """The families by model type."""
    return {name: import_module(f"headstart.models.{name}").FAMILY for name in FAMILIES}


def exports() -> dict[str, str]:
    """Every public class of the families → its module."""
    return {
        name: module for family in families().values() for name, module in family.exports.items()
    }


def zoo() -> dict[str, tuple[Family, Published]]:
    """Every published model by the authors' name."""
    return {
        name: (family, model)
        for family in families().values()
        for name, model in family.published.items()
    }


def find_published(name: str) -> tuple[Family, Published] | None:
    """The published model of that name (letter case, and an ending such as ".npz", do not matter)."""
    if Path(name).exists() or name in EMBEDDED:
        return None
    models = zoo()
    stem = name.removesuffix(".npz").removesuffix(".pth").removesuffix(".h5")
    return models.get(stem) or next(
        (each for key, each in models.items() if key.lower() == stem.lower()), None
    )


def nearest_names(name: str) -> list[str]:
    """Published names and Hub ids that look like the one given."""
    known = list(zoo()) + [m.hub_id for _, m in zoo().values() if m.hub_id]
    lower = {each.lower(): each for each in known}
    return [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]


@contextmanager
def suggesting(name: str | Path) -> Iterator[None]:
    """Adds the nearest known names to the error of a name that is not found."""
    try:
        yield
    except (NotFoundError, OfflineError) as error:
        near = nearest_names(str(name))
        if not near or str(name) in near:
            raise
        raise type(error)(f"{error}. Did you mean {' or '.join(near)}?") from error


def published_config(
    name: str, model_type: str | None = None, compat: Compat | None = None
) -> PreTrainedConfig | None:
    """The configuration of a published model by the authors' name, under `compat` (None.

    The authors'), or None.
    """
    found = find_published(name)
    if found is None or model_type not in (None, found[0].model_type):
        return None
    family, model = found
    labels = {"id2label": read_labels(model.labels)} if model.labels else {}
    config = family.config(**(labels | dict(model.config)))
    if compat is not None:
        config = family.config.from_dict(
            family.config.from_published(config.to_dict(), compat) | {"compat": compat}
        )
    return config  # type: ignore[no-any-return]


def read_labels(name: str) -> dict[int, str]:
    """A list of class names by its name in `package_data/labels`: number → name."""
    import gzip
    from importlib.resources import files

    data = gzip.decompress(
        files("headstart.package_data").joinpath("labels", f"{name}.txt.gz").read_bytes()
    )
    return dict(enumerate(data.decode().splitlines()))


def read_config_file(name: str | Path, **hub: Any) -> dict[str, Any]:
    """Values of a checkpoint's config.json."""
    from headstart.hub.resolve import resolve_file

    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return read_json(path)
    if path.is_file() and not (path.parent / "config.json").is_file():
        raise NotFoundError(
            f"{path} has no config.json beside it; make a folder of it with: headstart convert"
            f" {path} FOLDER"
        )
    with suggesting(name):
        file = resolve_file(str(name), "config.json", **hub)
    assert file is not None  # only an optional file can be missing
    return read_json(file)


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
    from headstart.checkpoint import read_checkpoint

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
    from headstart.hub.resolve import Download, download, resolve_weights

    if published is not None and published.url is not None:
        options = {key: hub[key] for key in ("cache_dir", "local_files_only") if hub.get(key)}
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
    if kind not in families():
        raise ConfigError(f"{name} is a {kind!r} model; headstart has {', '.join(FAMILIES)}")
    return families()[str(kind)], values


def processor_class(family: Family, name: str | Path, text: bool) -> Any:
    """The class of a family's tokenizer (`text`), or of its image processor.

    Raises:
        ConfigError: It has the other one.
    """
    if family.processor.endswith("Tokenizer") != text:
        reads, other = ("images", "AutoImageProcessor") if text else ("texts", "AutoTokenizer")
        raise ConfigError(
            f"{name} is a {family.model_type} model, which reads {reads}; use {other}"
        )
    return family.load(family.processor)


HUB_KEYS = ("revision", "cache_dir", "token", "local_files_only")


def split_hub(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that say where files come from, and the others."""
    return {k: v for k, v in kwargs.items() if k in HUB_KEYS}, {
        k: v for k, v in kwargs.items() if k not in HUB_KEYS
    }


class AutoConfig:
    """The configuration of any checkpoint of the families."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """The configuration of a folder, a config.json, a Hub id or an authors' name.

        See `PreTrainedConfig.from_pretrained`.
        """
        family, _ = family_of(name_or_path, **split_hub(kwargs)[0])
        return family.config.from_pretrained(name_or_path, **kwargs)

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> Any:
        """A configuration by its model type."""
        if model_type not in families():
            raise ConfigError(f"model_type={model_type!r}; expected one of {', '.join(FAMILIES)}")
        return families()[model_type].config(**values)


def check_task(family: Family, task: str) -> None:
    """Refuses a task that a family has no network for."""
    if task not in family.tasks:
        known = [each.model_type for each in families().values() if task in each.tasks]
        raise ConfigError(
            f"{family.model_type} has no network for {task}; families that have: {', '.join(known)}"
        )


class _AutoModel:
    """Base of the automatic classes; `task` is the key of `Family.tasks`."""

    task: ClassVar[str] = "base"

    def __init__(self) -> None:
        raise TypeError(
            f"{type(self).__name__} is not made directly; use from_pretrained(name) or"
            " from_config(config)"
        )

    @classmethod
    def model_class(cls, family: Family) -> Any:
        """The family's network for this task."""
        check_task(family, cls.task)
        return family.load(family.tasks[cls.task])

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """A network with the weights of a checkpoint; see `PreTrainedModel.from_pretrained`."""
        config = kwargs.get("config")
        if config is not None:
            family = families()[config.model_type]
        else:
            family, _ = family_of(name_or_path, **split_hub(kwargs)[0])
        return cls.model_class(family).from_pretrained(name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Any:
        """A network with random weights."""
        return cls.model_class(families()[config.model_type])(config)


class AutoModel(_AutoModel):
    """The network without a head, of any checkpoint.

    `from_pretrained(name)`, or `from_config(config)` with random weights.
    """


class AutoBackbone(_AutoModel):
    """Feature maps (B, channels, height, width) of any image checkpoint, one a stage of
    `out_features`.
    """

    task = "backbone"


class AutoModelForImageClassification(_AutoModel):
    """Classes of images: `logits` (B, classes)."""

    task = "image-classification"


class AutoModelForSemanticSegmentation(_AutoModel):
    """Classes of pixels: `logits` (B, classes, height, width), a quarter of the image's sides."""

    task = "semantic-segmentation"


class AutoModelForMaskedImageModeling(_AutoModel):
    """Visual codes of masked patches: `logits` (B, patches, codes)."""

    task = "masked-image-modeling"


class AutoModelForMaskedLM(_AutoModel):
    """Tokens of masked places: `logits` (B, L, vocabulary)."""

    task = "masked-language-modeling"


class AutoModelForSequenceClassification(_AutoModel):
    """Classes of texts: `logits` (B, classes)."""

    task = "text-classification"


class AutoModelForMultipleChoice(_AutoModel):
    """The right one of several texts: `logits` (B, choices)."""

    task = "multiple-choice"


class AutoModelForTokenClassification(_AutoModel):
    """Classes of tokens: `logits` (B, L, classes)."""

    task = "token-classification"


class AutoModelForQuestionAnswering(_AutoModel):
    """The place of an answer in a text: `start_logits` and `end_logits` (B, L)."""

    task = "question-answering"


class AutoImageProcessor:
    """The image processor of any image checkpoint.

    The class is told by preprocessor_config.json, else by the family.
    """

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """See `BaseImageProcessor.from_pretrained`.

        Raises:
            NotFoundError: No such model.
            ConfigError: The checkpoint's processor is none of the families'.
        """
        from headstart.hub.resolve import resolve_file

        hub, options = split_hub(kwargs)
        found = find_published(str(name_or_path))
        if found is not None:
            return processor_class(found[0], name_or_path, text=False).for_published(
                found[1], **options
            )
        with suggesting(name_or_path):
            path = resolve_file(str(name_or_path), "preprocessor_config.json", optional=True, **hub)
        values = {} if path is None else read_json(path)
        name = (
            values.get("image_processor_type") or values.get("feature_extractor_type") or ""
        ).removesuffix("Fast")
        known = exports()
        if name and name not in known:
            raise ConfigError(
                f"{name_or_path} names {name!r} in preprocessor_config.json; headstart has no such"
                " image processor"
            )
        if name:
            return getattr(import_module(known[name]), name).from_dict(values, **options)
        return processor_class(
            family_of(name_or_path, **hub)[0], name_or_path, text=False
        ).from_dict(values, **options)


AutoFeatureExtractor = AutoImageProcessor


class AutoTokenizer:
    """The tokenizer of any text checkpoint."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """See `YosoTokenizer.from_pretrained`.

        A folder or Hub id with tokenizer.json, or vocab.json and merges.txt.
        """
        try:
            family, _ = family_of(name_or_path, **split_hub(kwargs)[0])
        except NotFoundError:  # a folder that holds a tokenizer alone
            family = next(
                each for each in families().values() if each.processor.endswith("Tokenizer")
            )
        return processor_class(family, name_or_path, text=True).from_pretrained(
            name_or_path, **kwargs
        )
