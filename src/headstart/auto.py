"""Auto classes: the class of a family that fits a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from headstart.checkpoint.documents import check_kind, read_object
from headstart.config import PreTrainedConfig
from headstart.errors import ConfigError, NotFoundError
from headstart.hub.options import split_hub, within
from headstart.hub.resolve import resolve_file
from headstart.loading import family_of
from headstart.registry import FAMILIES, Family, families, find_published, register, suggesting


def processor_class(family: Family, name: str | Path, text: bool) -> Any:
    """The class of a family's tokenizer (`text`), or of its image processor.

    Raises:
        ConfigError: It has the other one.
    """
    if family.reads_text != text:
        reads, other = ("images", "AutoImageProcessor") if text else ("texts", "AutoTokenizer")
        raise ConfigError(
            f"{name} is a {family.model_type} model, which reads {reads}; use {other}"
        )
    return family.load(family.processor)


class AutoConfig:
    """The configuration of any checkpoint of the families.

    Example:
        >>> from headstart import AutoConfig
        >>> AutoConfig.from_pretrained("bit-mini").model_type
        'bit'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The configuration of a folder, a config.json, a Hub id or an authors' name.

        See `PreTrainedConfig.from_pretrained`.
        """
        family = family_within(pretrained_model_name_or_path, kwargs)
        return family.config.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> Any:
        """A configuration by its model type."""
        if model_type not in families():
            raise ConfigError(f"model_type={model_type!r}; expected one of {', '.join(FAMILIES)}")
        return families()[model_type].config(**values)

    @classmethod
    def register(
        cls, model_type: str, config: type[PreTrainedConfig], exist_ok: bool = False
    ) -> None:
        """Adds a configuration class of your own, so that the Auto classes know its model type.

        Raises:
            ConfigError: Its `model_type` is another one, or is taken and `exist_ok` is false.
        """
        if config.model_type != model_type:
            raise ConfigError(
                f"{config.__name__}.model_type is {config.model_type!r}; expected {model_type!r}"
            )
        register(model_type, config, exist_ok=exist_ok)


def family_within(name: str | Path, kwargs: Mapping[str, Any]) -> Family:
    """The family of the checkpoint that `from_pretrained(name, **kwargs)` loads."""
    hub, others = split_hub(kwargs)
    return family_of(within(name, others.get("subfolder")), **hub)[0]


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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """A network with the weights of a checkpoint; see `PreTrainedModel.from_pretrained`."""
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig):
            family = families()[config.model_type]
        elif config is not None:
            family, _ = family_of(config, **split_hub(kwargs)[0])
        else:
            family = family_within(pretrained_model_name_or_path, kwargs)
        return cls.model_class(family).from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """A network with randomly initialized weights.

        Args:
            config: The configuration.
            **kwargs: `torch_dtype`, and values that win over the configuration's.
        """
        network = cls.model_class(families()[config.model_type])
        return network._from_config(config, **kwargs) if kwargs else network(config)

    @classmethod
    def register(
        cls, config_class: type[PreTrainedConfig], model_class: type, exist_ok: bool = False
    ) -> None:
        """Adds a network class of your own for this task; its configuration is registered first."""
        register(config_class.model_type, model_class, task=cls.task, exist_ok=exist_ok)


class AutoModel(_AutoModel):
    """The network without a head, of any checkpoint.

    `from_pretrained(name)`, or `from_config(config)` with randomly initialized weights.

    Example:
        >>> from headstart import AutoModel
        >>> type(AutoModel.from_pretrained("bit-mini")).__name__
        'BitModel'
    """


class AutoBackbone(_AutoModel):
    """Feature maps (B, C, H, W) of any image checkpoint, one for each stage of `out_features`.

    Example:
        >>> from headstart import AutoBackbone
        >>> AutoBackbone.from_pretrained("bit-mini").config.out_features
        ['stage4']
    """

    task = "backbone"


class AutoModelForImageClassification(_AutoModel):
    """Image classification: `logits` (B, classes).

    Example:
        >>> from headstart import AutoModelForImageClassification as Auto
        >>> type(Auto.from_pretrained("bit-mini")).__name__
        'BitForImageClassification'
    """

    task = "image-classification"


class AutoModelForSemanticSegmentation(_AutoModel):
    """Semantic segmentation: `logits` (B, classes, H / 4, W / 4).

    Example:
        >>> from headstart import AutoModelForSemanticSegmentation as Auto, BeitConfig
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
        >>> config = BeitConfig(**sizes, out_indices=[0, 1, 2, 3])
        >>> type(Auto.from_config(config)).__name__
        'BeitForSemanticSegmentation'
    """

    task = "semantic-segmentation"


class AutoModelForMaskedImageModeling(_AutoModel):
    """Masked image modeling: `logits` of the visual codes (B, patches, codes).

    Example:
        >>> from headstart import AutoModelForMaskedImageModeling as Auto, BeitConfig
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = BeitConfig(**sizes, use_mask_token=True)
        >>> type(Auto.from_config(config)).__name__
        'BeitForMaskedImageModeling'
    """

    task = "masked-image-modeling"


class AutoModelForMaskedLM(_AutoModel):
    """Masked language modeling: `logits` (B, L, vocabulary).

    Example:
        >>> from headstart import AutoModelForMaskedLM as Auto, YosoConfig
        >>> config = YosoConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
        >>> type(Auto.from_config(config)).__name__
        'YosoForMaskedLM'
    """

    task = "masked-language-modeling"


class AutoModelForSequenceClassification(_AutoModel):
    """Text classification: `logits` (B, classes).

    Example:
        >>> from headstart import AutoModelForSequenceClassification as Auto, YosoConfig
        >>> config = YosoConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
        >>> type(Auto.from_config(config)).__name__
        'YosoForSequenceClassification'
    """

    task = "text-classification"


class AutoModelForMultipleChoice(_AutoModel):
    """Multiple choice: `logits` (B, choices).

    Example:
        >>> from headstart import AutoModelForMultipleChoice as Auto, YosoConfig
        >>> config = YosoConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
        >>> type(Auto.from_config(config)).__name__
        'YosoForMultipleChoice'
    """

    task = "multiple-choice"


class AutoModelForTokenClassification(_AutoModel):
    """Token classification: `logits` (B, L, classes).

    Example:
        >>> from headstart import AutoModelForTokenClassification as Auto, YosoConfig
        >>> config = YosoConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
        >>> type(Auto.from_config(config)).__name__
        'YosoForTokenClassification'
    """

    task = "token-classification"


class AutoModelForQuestionAnswering(_AutoModel):
    """Extractive question answering: `start_logits` and `end_logits` (B, L).

    Example:
        >>> from headstart import AutoModelForQuestionAnswering as Auto, YosoConfig
        >>> config = YosoConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
        >>> type(Auto.from_config(config)).__name__
        'YosoForQuestionAnswering'
    """

    task = "question-answering"


class AutoImageProcessor:
    """The image processor of any image checkpoint.

    The class is the one that preprocessor_config.json names, else the family's.

    Example:
        >>> from headstart import AutoImageProcessor
        >>> type(AutoImageProcessor.from_pretrained("bit-mini")).__name__
        'BitImageProcessor'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """See `BaseImageProcessor.from_pretrained`.

        Raises:
            NotFoundError: No such model.
            ConfigError: The checkpoint's processor is none of the families'.
        """
        hub, options = split_hub(kwargs)
        name_or_path = within(pretrained_model_name_or_path, options.pop("subfolder", ""))
        found = find_published(str(name_or_path))
        if found is not None:
            return processor_class(found[0], name_or_path, text=False).for_published(
                found[1], **options
            )
        with suggesting(name_or_path):
            path = resolve_file(str(name_or_path), "preprocessor_config.json", optional=True, **hub)
        values = {} if path is None else read_object(path)
        for key in ("image_processor_type", "feature_extractor_type"):
            check_kind(values.get(key), str | None, f"{path}: {key!r}")
        name = (
            values.get("image_processor_type") or values.get("feature_extractor_type") or ""
        ).removesuffix("Fast")
        if name:
            for family in families().values():
                if name in family.exports or name in family.classes:
                    return family.load(name).from_dict(values, **options)
            raise ConfigError(
                f"{name_or_path} names {name!r} in preprocessor_config.json; headstart has no such"
                " image processor (AutoImageProcessor.register adds your own)"
            )
        return processor_class(
            family_of(name_or_path, **hub)[0], name_or_path, text=False
        ).from_dict(values, **options)

    @classmethod
    def register(
        cls,
        config_class: type[PreTrainedConfig],
        image_processor_class: type,
        exist_ok: bool = False,
    ) -> None:
        """Adds an image processor class of your own to the family of a configuration.

        Its class variable `image_processor_type` is its name in preprocessor_config.json.
        """
        register(config_class.model_type, image_processor_class, exist_ok=exist_ok)


AutoFeatureExtractor = AutoImageProcessor


class AutoTokenizer:
    """The tokenizer of any text checkpoint.

    Example:
        >>> from headstart import AutoTokenizer
        >>> AutoTokenizer.from_pretrained("uw-madison/yoso-4096")  # doctest: +SKIP
        YosoTokenizer(...)
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """See `YosoTokenizer.from_pretrained`.

        A folder or Hub id with tokenizer.json, or vocab.json and merges.txt.
        """
        try:
            family = family_within(pretrained_model_name_or_path, kwargs)
        except NotFoundError:  # a folder that holds a tokenizer alone
            family = next(each for each in families().values() if each.reads_text)
        name = pretrained_model_name_or_path
        return processor_class(family, name, text=True).from_pretrained(name, **kwargs)

    @classmethod
    def register(
        cls,
        config_class: type[PreTrainedConfig],
        slow_tokenizer_class: type | None = None,
        fast_tokenizer_class: type | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Adds a tokenizer class of your own to the family of a configuration.

        Where both classes are given, the fast one is used.
        """
        tokenizer = fast_tokenizer_class or slow_tokenizer_class
        if tokenizer is None:
            raise ConfigError("no tokenizer class given; pass fast_tokenizer_class")
        register(config_class.model_type, tokenizer, exist_ok=exist_ok)
