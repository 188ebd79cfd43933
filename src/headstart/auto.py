"""Auto classes: the class of a family that fits a checkpoint."""

from pathlib import Path
from typing import Any, ClassVar

from headstart.checkpoint.documents import read_object
from headstart.config import PreTrainedConfig
from headstart.errors import ConfigError, NotFoundError
from headstart.hub.resolve import resolve_file, split_hub
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
        """A network with randomly initialized weights."""
        return cls.model_class(families()[config.model_type])(config)

    @classmethod
    def register(
        cls, config_class: type[PreTrainedConfig], model_class: type, exist_ok: bool = False
    ) -> None:
        """Adds a network class of your own for this task; its configuration is registered first."""
        register(config_class.model_type, model_class, task=cls.task, exist_ok=exist_ok)


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
        hub, options = split_hub(kwargs)
        found = find_published(str(name_or_path))
        if found is not None:
            return processor_class(found[0], name_or_path, text=False).for_published(
                found[1], **options
            )
        with suggesting(name_or_path):
            path = resolve_file(str(name_or_path), "preprocessor_config.json", optional=True, **hub)
        values = {} if path is None else read_object(path)
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
    """The tokenizer of any text checkpoint."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """See `YosoTokenizer.from_pretrained`.

        A folder or Hub id with tokenizer.json, or vocab.json and merges.txt.
        """
        try:
            family, _ = family_of(name_or_path, **split_hub(kwargs)[0])
        except NotFoundError:  # a folder that holds a tokenizer alone
            family = next(each for each in families().values() if each.reads_text)
        return processor_class(family, name_or_path, text=True).from_pretrained(
            name_or_path, **kwargs
        )

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
