"""The base of the four configurations: what a config.json says, checked, kept and written back.

A family's configuration is a dataclass whose fields are the documented arguments in the documented
order, followed by the few plain values that `compat` is resolved into (see `resolve_compat`).
Keywords that it does not know are kept as attributes and written back.
"""

import difflib
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar, dataclass_transform

from headstart._version import __version__
from headstart.checkpoint.documents import check_kind, check_names, read_object
from headstart.checkpoint.writing import atomic_write
from headstart.config_checks import MOST, align_outputs, as_label, check_values
from headstart.errors import ConfigError, NotFoundError
from headstart.hub.options import split_hub, within
from headstart.hub.push import check_upload, push_saved, upload_saved
from headstart.hub.resolve import resolve_file
from headstart.registry import find_published, read_labels, refuse_saved_code, suggesting

Compat = Literal["authors", "transformers"]
COMPATS = ("authors", "transformers")

# Hub ids that hold conversions of networks which the authors trained.
AUTHORS_IDS = ("google/bit-50", "microsoft/cvt-", "microsoft/beit-", "uw-madison/yoso-4096")

# Values that every configuration has beside its fields.
COMMON = (
    "compat",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "problem_type",
    "id2label",
    "label2id",
    "pooled_hidden_states",
    "average_mirrored",
)
# Values of any configuration that older code reads and sets, and that no network here uses.
OLDER = (
    *("architectures", "is_encoder_decoder", "is_decoder", "add_cross_attention"),
    *("cross_attention_hidden_size", "chunk_size_feed_forward", "tie_word_embeddings"),
    *("torchscript", "tokenizer_class", "prefix", "finetuning_task", "task_specific_params"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id"),
)
# Values that version 4 takes in a constructor and writes to a file; loading and training read some.
UNREAD = (
    *("model_type", "torch_dtype", "dtype", "gradient_checkpointing", "use_cache"),
    *("_name_or_path", "name_or_path", "transformers_version", "headstart_version"),
    *("attn_implementation", "_attn_implementation"),
)
logger = logging.getLogger("headstart")
C = TypeVar("C", bound="PreTrainedConfig")


@dataclass_transform(field_specifiers=(field,))
def config_class(cls: type[C]) -> type[C]:
    """Makes a dataclass of a configuration whose constructor keeps the keywords that are not
    fields.
    """
    cls = dataclass(repr=False, eq=False)(cls)
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    kinds = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
    plain_init: Callable[..., None] = cls.__init__

    @wraps(plain_init)
    def init(self: C, *args: Any, **kwargs: Any) -> None:
        others = {key: kwargs.pop(key) for key in list(kwargs) if key not in names}
        strange = sorted(others.keys() - self.value_names() - set(UNREAD))
        if strange:
            logger.warning(
                "%s has no value %s; it is kept and changes nothing",
                cls.__name__,
                ", ".join(strange),
            )
        self._set_common(others)
        check_values(kinds, {**dict(zip(kinds, args, strict=False)), **kwargs})
        plain_init(self, *args, **kwargs)
        self._set_floats()

    cls.__init__ = init  # type: ignore[assignment, method-assign]
    return cls


class PreTrainedConfig:
    """Base of the configurations: the values that every family has, and their file.

    Every configuration also takes `num_labels` (default 2), `id2label`, `label2id`, `problem_type`
    ("regression", "single_label_classification", "multi_label_classification" or None: inferred
    from the labels), `output_hidden_states`, `output_attentions`, `return_dict`, and `compat`
    ("authors" or "transformers": whose arithmetic the values came from). Those of image networks
    take two more, which `headstart train` sets and no published network has:
    `pooled_hidden_states`, indices of the hidden states that the image classifier reads beside its
    usual vector (their mean over positions, of BiT after the activation, and their class token
    where they have one), and `average_mirrored`, whether what it reads is averaged over the image
    and its mirror image.

    Example:
        >>> from headstart import PreTrainedConfig
        >>> config = PreTrainedConfig(id2label={0: "cat", 1: "dog", 2: "owl"})
        >>> config.num_labels, config.label2id["owl"]
        (3, 2)
    """

    model_type: ClassVar[str] = ""
    is_composition: ClassVar[bool] = False
    attribute_map: ClassVar[dict[str, str]] = {}
    pools: ClassVar[bool] = False  # whether its classifier can read pooled hidden states
    sub_configs: ClassVar[dict[str, Any]] = {}

    # What v4's code reads from any configuration; written to config.json only where it was set.
    architectures: list[str] | None = None
    is_encoder_decoder: bool = False
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0
    cross_attention_hidden_size: int | None = None
    torchscript: bool = False
    tokenizer_class: str | None = None
    prefix: str | None = None
    finetuning_task: str | None = None
    task_specific_params: dict[str, Any] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    sep_token_id: int | None = None
    decoder_start_token_id: int | None = None
    _commit_hash: str | None = None  # read by transformers' pipeline

    def __init__(self, **values: Any) -> None:
        """Takes the values that every configuration has, and keeps the others as attributes.

        Subclasses of our families are dataclasses (see `config_class`); a plain subclass sets its
        own attributes and passes on the rest.
        """
        self._set_common(dict(values))

    def _set_common(self, values: dict[str, Any]) -> None:
        """Takes the keywords that every family has, and keeps the unknown ones as attributes."""
        self.compat: Compat = values.pop("compat", None) or "authors"
        if self.compat not in COMPATS:
            raise ConfigError(f"compat={self.compat!r}; expected one of {', '.join(COMPATS)}")
        self.output_hidden_states = bool(values.pop("output_hidden_states", False))
        self.output_attentions = bool(values.pop("output_attentions", False))
        self.return_dict = bool(values.pop("return_dict", True))
        self.problem_type: str | None = values.pop("problem_type", None)
        kinds = (None, "regression", "single_label_classification", "multi_label_classification")
        if self.problem_type not in kinds:
            raise ConfigError(
                f"problem_type={self.problem_type!r}; expected one of {', '.join(map(str, kinds))}"
            )
        states = values.pop("pooled_hidden_states", None)
        check_kind(states, list[int] | None, "pooled_hidden_states", ConfigError)
        self.pooled_hidden_states: list[int] = list(states or [])
        self.average_mirrored = bool(values.pop("average_mirrored", False))
        if (self.pooled_hidden_states or self.average_mirrored) and not self.pools:
            raise ConfigError(
                f"{type(self).__name__} has no pooled_hidden_states and no average_mirrored; they"
                " belong to image classifiers (BiT, CvT, BEiT)"
            )
        names, ids = values.pop("id2label", None), values.pop("label2id", None)
        count = values.pop("num_labels", None)
        check_kind(count, int | None, "num_labels", ConfigError)
        if count is not None and not 0 <= count <= MOST["num_labels"]:
            most = MOST["num_labels"]
            raise ConfigError(f"num_labels={count!r}; expected an integer from 0 to {most:,}")
        check_kind(names, dict[int | str, Any] | list[Any] | None, "id2label", ConfigError)
        check_kind(ids, dict[Any, int | str] | None, "label2id", ConfigError)
        if names is None:
            self.num_labels = 2 if count is None else count
            if ids is not None and len(ids) == self.num_labels:
                self.id2label = {as_label(i): str(name) for name, i in ids.items()}
                self.label2id = dict(ids)
        else:
            names = names if isinstance(names, Mapping) else dict(enumerate(names))
            self.id2label = {as_label(i): str(name) for i, name in names.items()}
            self.label2id = dict(ids) if ids else {name: i for i, name in self.id2label.items()}
            if count is not None and count != len(self.id2label):
                self.num_labels = count
        values.pop("model_type", None)
        check_names(type(self), values, "a configuration", ConfigError)
        for key, value in values.items():
            setattr(self, key, value)

    def _set_floats(self) -> None:
        """Integers become floats where those belong.

        Transformers 5 refuses a config.json with `0` for `0.0`.
        """
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.type is float and isinstance(value, int):
                setattr(self, f.name, float(value))
            elif f.type == list[float] and isinstance(value, list | tuple):
                setattr(self, f.name, [float(each) for each in value])

    @property
    def num_labels(self) -> int:
        """Number of classes (or of regression targets): the length of `id2label`."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if len(getattr(self, "id2label", ())) != count or "id2label" not in self.__dict__:
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}
            self.label2id = {name: i for i, name in self.id2label.items()}

    @classmethod
    def value_names(cls) -> set[str]:
        """Keywords that this family, or every family, knows."""
        known = {*COMMON, "num_labels", *OLDER}
        if is_dataclass(cls):
            return known | {f.name for f in fields(cls)}
        return known | set(inspect.signature(cls).parameters)

    @property
    def torch_dtype(self) -> Any:
        """Type of the saved weights as a `torch.dtype`, or None where it is not recorded."""
        name = self.__dict__.get("torch_dtype")
        if name is None:
            return None
        import torch

        return getattr(torch, name)

    @torch_dtype.setter
    def torch_dtype(self, dtype: Any) -> None:
        self.__dict__["torch_dtype"] = None if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def pruned_heads(self) -> dict[int, list[int]]:
        """Always empty: attention heads are never removed (`prune_heads` refuses)."""
        return {}

    @pruned_heads.setter
    def pruned_heads(self, heads: Mapping[Any, Any]) -> None:
        if heads:
            raise ConfigError(
                f"pruned_heads={dict(heads)}: networks with removed attention heads are not"
                " supported; load the checkpoint without pruning"
            )

    @property
    def use_return_dict(self) -> bool:
        """Whether models return a named output rather than a tuple."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where the configuration was loaded from, or the empty string."""
        return str(self.__dict__.get("_name_or_path", ""))

    def to_dict(self) -> dict[str, Any]:
        """Every value as plain data; `from_dict` gives an equal configuration."""
        left_out = (*COMMON, "_name_or_path")
        values = {key: value for key, value in vars(self).items() if key not in left_out}
        if self.id2label != {0: "LABEL_0", 1: "LABEL_1"}:
            values |= {
                "id2label": {str(i): name for i, name in self.id2label.items()},
                "label2id": self.label2id,
            }
        flags: dict[str, Any] = {
            "output_hidden_states": False,
            "output_attentions": False,
            "return_dict": True,
            "problem_type": None,
            "pooled_hidden_states": [],
            "average_mirrored": False,
        }
        values |= {
            key: getattr(self, key) for key, usual in flags.items() if getattr(self, key) != usual
        }
        return values | {"compat": self.compat, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the values that equal the defaults."""
        usual = type(self)().to_dict()
        return {
            key: value
            for key, value in self.to_dict().items()
            if key == "model_type" or key not in usual or usual[key] != value
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """`to_dict` as JSON with sorted keys. `use_diff` leaves out what equals the defaults."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Writes `to_json_string` to a file, atomically."""
        atomic_write(Path(json_file_path), self.to_json_string(use_diff).encode())

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """The configuration in a JSON file, with its values as they are (`compat` included)."""
        return cls.from_dict(read_object(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of a checkpoint's config.json, and the keywords that do not say where it is."""
        hub, others = split_hub(kwargs)
        name = within(pretrained_model_name_or_path, others.pop("subfolder", ""))
        return read_config_file(name, **hub), others

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> NoReturn:
        """Refuses: no code is saved with a checkpoint.

        Raises:
            ConfigError: Always; `AutoConfig.register` is the alternative.
        """
        refuse_saved_code(cls.__name__, auto_class)

    def get_text_config(self, decoder: bool = False) -> Self:
        """Itself: no configuration here has parts of its own."""
        return self

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets every value of a mapping as an attribute."""
        for key, value in config_dict.items():
            setattr(self, key, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Builds a configuration from `to_dict`'s values; keywords win over them.

        `return_unused_kwargs=True` returns the keywords that are not values of the configuration
        beside it, rather than keep them in it.

        Raises:
            ConfigError: The values are of another family, or describe no working network; a keyword
                looks like a misspelled one.
        """
        if overrides.pop("return_unused_kwargs", False):
            unused = {k: overrides.pop(k) for k in [*overrides] if k not in cls.value_names()}
            return cls.from_dict(values, **overrides), unused  # type: ignore[return-value]  # as v4
        if "self" in values:
            raise ConfigError("a configuration cannot have a value named 'self'")
        known = cls.value_names()
        for name in overrides.keys() - known - values.keys():
            if near := difflib.get_close_matches(name, known, 1, 0.9):
                raise ConfigError(f"{cls.__name__} has no value {name!r}; did you mean {near[0]}?")
        values = dict(values)
        kind = values.get("model_type")
        if kind and kind != cls.model_type:
            raise ConfigError(
                f"this configuration is of a {kind!r} model, not {cls.model_type!r}; use AutoConfig"
            )
        if "num_labels" in overrides and "id2label" not in overrides:
            if len(values.get("id2label") or {}) != overrides["num_labels"]:
                for name in ("id2label", "label2id"):
                    values.pop(name, None)
        elif "id2label" in overrides:
            for name in ("num_labels", "label2id"):
                values.pop(name, None)
        for given, other in (("out_features", "out_indices"), ("out_indices", "out_features")):
            if given in overrides and other not in overrides:  # the file's may name other stages
                values.pop(other, None)
        named = known | overrides.keys()
        others = {k: values.pop(k) for k in [*values] if is_dataclass(cls) and k not in named}
        check_names(cls, others, "a configuration", ConfigError)
        config = cls(**(values | overrides))
        for key, value in others.items():
            setattr(config, key, value)
        return config

    @classmethod
    def from_published(cls, values: dict[str, Any], compat: Compat) -> dict[str, Any]:
        """Values of a config.json that others wrote, turned into this family's plain values under
        `compat`.
        """
        return values

    def to_published(self, values: dict[str, Any]) -> dict[str, Any]:
        """The inverse.

        Values as transformers reads them (plain values that it has no word for may stay).
        """
        return values

    def differences(self) -> list[str]:
        """Sentences for the model card.

        Where transformers would compute something else from the saved folder.
        """
        out = []
        if self.pooled_hidden_states:
            out.append("the classifier also reads earlier stages here, which cannot be built there")
        if self.average_mirrored:
            out.append("features are averaged over an image and its mirror image here")
        return out

    @property
    def hidden_widths(self) -> list[int]:
        """Width of what is pooled of each hidden state; empty where nothing is."""
        return []

    @property
    def pooled_width(self) -> int:
        """Width of all that the classifier reads beside its usual vector.

        Raises:
            ConfigError: `pooled_hidden_states` names a state that the network does not have.
        """
        widths = self.hidden_widths
        for index in self.pooled_hidden_states:
            if not 0 <= index < len(widths):
                raise ConfigError(
                    f"pooled_hidden_states={self.pooled_hidden_states}; expected indices from 0 to"
                    f" {len(widths) - 1}"
                )
        return sum(widths[index] for index in self.pooled_hidden_states)

    def check_plain_head(self) -> None:
        """Refuses a head that only the PyTorch classes compute.

        Raises:
            ConfigError: The classifier reads pooled hidden states or mirror images.
        """
        if self.pooled_hidden_states or self.average_mirrored:
            raise ConfigError(
                "this classifier reads pooled hidden states or mirror images"
                " (pooled_hidden_states, average_mirrored), which only the PyTorch classes compute;"
                " load it in PyTorch, or train it with --tune full"
            )

    @classmethod
    def from_file_values(
        cls, values: Mapping[str, Any], name: str, compat: Compat | None = None, **overrides: Any
    ) -> Self:
        """A configuration from the values of a config.json, `compat` resolved.

        Args:
            values: The parsed config.json.
            name: The name or path it was requested by; Hub ids of the authors' networks keep the
                authors' arithmetic.
            compat: "authors" or "transformers" to decide; None follows `resolve_compat`.
            **overrides: Values that win over the file's.
        """
        values = dict(values)
        ours = "headstart_version" in values and "transformers_version" not in values
        chosen = resolve_compat(values, name, compat, cls)
        if not ours or chosen != values.get("compat", chosen):
            values = cls.from_published(
                {k: v for k, v in values.items() if k != "headstart_version"}, chosen
            )
        for key in ("headstart_version", "transformers_version"):
            values.pop(key, None)
        config = cls.from_dict(values | {"compat": chosen}, **overrides)
        vars(config)["_name_or_path"] = name
        return config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str = "",
        compat: Compat | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The configuration of a checkpoint.

        Args:
            pretrained_model_name_or_path: A folder, a config.json, a Hub id, or an authors' name.
            subfolder: Where in a local folder config.json lies.
            compat: See `from_file_values`.
            return_unused_kwargs: Return the keywords that are not values of the configuration,
                rather than keep them in it.
            **kwargs: `revision`, `cache_dir`, `token`, `local_files_only`, and values that win over
                the file's.

        Raises:
            NotFoundError: No such model.
            ConfigError: The file does not describe this family, or not a working network.
        """
        hub, kwargs = split_hub(kwargs)
        name = within(pretrained_model_name_or_path, subfolder)
        unused = {}
        if return_unused_kwargs:
            unused = {k: kwargs.pop(k) for k in [*kwargs] if k not in cls.value_names()}
        config = published_config(str(name), cls.model_type, compat)
        if config is not None:
            config = cls.from_dict(config.to_dict(), **kwargs)
        else:
            values = read_config_file(name, **hub)
            config = cls.from_file_values(values, str(name), compat, **kwargs)
        return (config, unused) if return_unused_kwargs else config

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> None:
        """Writes `config.json` into the folder (made if needed), atomically.

        `push_to_hub` also uploads the folder, to `repo_id`.

        Raises:
            TypeError: Another keyword than `token`, `private`, `revision` and `commit_message`.
        """
        check_upload(hub)
        folder = Path(save_directory)
        values = self.to_published(self.to_dict()) | {"headstart_version": __version__}
        values.pop("transformers_version", None)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        atomic_write(folder / "config.json", text.encode())
        upload_saved(folder, push_to_hub, repo_id, hub)

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Uploads `config.json` to "owner/name" and returns its address.

        `hub` holds `token`, `private`, `revision`, `commit_message`.
        """
        return push_saved(self, repo_id, hub)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PreTrainedConfig):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


PretrainedConfig = PreTrainedConfig  # the name in transformers v4


class BackboneConfig(PreTrainedConfig):
    """Base of configurations whose networks give feature maps: `out_features` and `out_indices`
    select the same stages, by name and by number, whichever of them is set.
    """

    out_features: list[str] | None
    out_indices: list[int] | None

    @property
    def stage_names(self) -> list[str]:
        """Names that `out_features` may use."""
        raise NotImplementedError(f"{type(self).__name__} names no stages")

    def align_stages(self, features: list[str] | None, indices: list[int] | None) -> None:
        """Sets both values from either; the last stage where both are None."""
        vars(self)["out_features"], vars(self)["out_indices"] = align_outputs(
            features, indices, self.stage_names
        )

    def __setattr__(self, name: str, value: Any) -> None:
        made = {"out_features", "out_indices"} <= vars(self).keys()
        if made and name == "out_features":
            self.align_stages(value, None)
        elif made and name == "out_indices":
            self.align_stages(None, value)
        else:
            super().__setattr__(name, value)


_ANNOUNCED: set[str] = set()  # checkpoints whose arithmetic this process has logged


def resolve_compat(
    values: Mapping[str, Any], name: str, compat: str | None, cls: type[PreTrainedConfig]
) -> Compat:
    """Whose arithmetic a checkpoint runs with.

    In this order: what the caller chose; what the file says, if we wrote it; the authors', for the
    Hub ids that hold their networks; transformers', for a file that transformers wrote (its
    `transformers_version`), with a line in the log where that changes answers; else the authors'.
    """
    if compat is not None:
        if compat not in COMPATS:
            raise ConfigError(f"compat={compat!r}; expected one of {', '.join(COMPATS)}")
        return compat  # type: ignore[return-value]
    by_transformers = "transformers_version" in values
    if not by_transformers:
        return "transformers" if values.get("compat") == "transformers" else "authors"
    # A snapshot in the Hub cache, given as a folder, is still that Hub model.
    plain = name.replace("\\", "/")
    cached = (
        plain.split("models--")[-1].split("/")[0].replace("--", "/")
        if "models--" in plain
        else plain
    )
    if any(
        cached == each or (each.endswith("-") and cached.startswith(each)) for each in AUTHORS_IDS
    ):
        return "authors"
    free = {k: v for k, v in values.items() if k not in ("headstart_version", "compat")}
    differs = cls.from_published(dict(free), "authors") != cls.from_published(
        dict(free), "transformers"
    )
    if differs and name not in _ANNOUNCED:
        _ANNOUNCED.add(name)
        logger.warning(
            "%s was written by transformers %s: running its arithmetic (compat='transformers');"
            " for the authors' use from_pretrained(…, compat='authors') or"
            " `headstart convert --compat authors`",
            name,
            values["transformers_version"],
        )
    return "transformers"


def read_config_file(name: str | Path, **hub: Any) -> dict[str, Any]:
    """Values of a checkpoint's config.json."""
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return read_object(path)
    if path.is_file() and path.suffix in (".onnx", ".xml", ".pt2"):
        raise NotFoundError(
            f"{path} is an exported program, which its runtime runs; give the folder that it was"
            " exported from (`headstart predict` and `check` run files of `export --full`)"
        )
    if path.is_file() and not (path.parent / "config.json").is_file():
        raise NotFoundError(
            f"{path} has no config.json beside it; make a folder of it with: headstart convert"
            f" {path} FOLDER"
        )
    with suggesting(name):
        file = resolve_file(str(name), "config.json", **hub)
    assert file is not None  # only an optional file can be missing
    return read_object(file)


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
