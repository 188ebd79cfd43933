"""The documented output classes of every model, for all frameworks.

An output is a dictionary and a dataclass: it is read by attribute (`out.logits`), key
(`out["logits"]`), index (`out[0]`), slice, or as a tuple (`out.to_tuple()`). Fields that are None
are left out of everything but attribute access.

Shapes in the comments: B images or texts, C channels, H W height and width, L tokens, D hidden
size, A heads, V classes or vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

__all__ = [
    "BackboneOutput",
    "BaseModelOutput",
    "BaseModelOutputWithCLSToken",
    "BaseModelOutputWithCrossAttentions",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndNoAttention",
    "BeitModelOutputWithPooling",
    "FlaxBeitModelOutputWithPooling",
    "FlaxMaskedLMOutput",
    "FlaxSequenceClassifierOutput",
    "ImageClassifierOutput",
    "ImageClassifierOutputWithNoAttention",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceModelOutput",
    "QuestionAnsweringModelOutput",
    "SemanticSegmenterOutput",
    "SequenceClassifierOutput",
    "TFBaseModelOutputWithCLSToken",
    "TFImageClassifierOutputWithNoAttention",
    "TokenClassifierOutput",
]

Tensors = tuple[Any, ...]


@dataclass
class ModelOutput(dict[str, Any]):
    """Base of the outputs: a dictionary of the fields that are not None, in the fields' order.

    The first argument may also be a mapping, or (name, value) pairs, of all fields: libraries that
    move or gather outputs rebuild them so.

    Example:
        >>> from headstart.outputs import ImageClassifierOutput
        >>> out = ImageClassifierOutput(logits="scores")
        >>> out.logits, out["logits"], out[0], out.to_tuple(), dict(out)
        ('scores', 'scores', 'scores', ('scores',), {'logits': 'scores'})
    """

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]
        first = getattr(self, names[0]) if names else None
        alone = all(getattr(self, name) is None for name in names[1:])
        if alone and (values := _named_values(first)) is not None:
            unknown = values.keys() - set(names)
            if unknown:
                raise TypeError(f"{type(self).__name__} has no field {min(unknown)!r}")
            object.__setattr__(self, names[0], None)
            for name, value in values.items():
                object.__setattr__(self, name, value)
        self._fill()

    def _fill(self) -> None:
        """Makes the dictionary hold what the fields hold, then what was added by key."""
        added = self._added()
        super().clear()
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                super().__setitem__(f.name, value)
        for key, value in added.items():
            super().__setitem__(key, value)

    def _added(self) -> dict[str, Any]:
        names = {f.name for f in fields(self)}
        return {key: value for key, value in self.items() if key not in names}

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in {f.name for f in fields(self)}:  # as transformers' pipelines do
            super().__setitem__(key, value)
        object.__setattr__(self, key, value)
        self._fill()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in self or value is not None:
            self._fill()

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, f.name) for f in fields(self))
        return type(self), values, None, None, iter(self._added().items())

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"the fields of {type(self).__name__} are fixed; set one to None to leave it out"
        )

    __delitem__ = pop = popitem = update = setdefault = clear = _refuse

    def to_tuple(self) -> Tensors:
        """The fields that are not None, in order."""
        return tuple(self.values())


def _named_values(first: Any) -> dict[str, Any] | None:
    """The fields by name, where an output's first argument holds all of them; else None."""
    if isinstance(first, Mapping):
        return dict(first)
    if isinstance(first, Iterable) and not hasattr(first, "shape") and not isinstance(first, str):
        pairs = list(first)
        if pairs and all(
            isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs
        ):
            return dict(pairs)
    return None


@dataclass
class BaseModelOutput(ModelOutput):
    """An encoder's output.

    Args:
        last_hidden_state: Output of the last layer, (B, L, D).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import BaseModelOutput
        >>> out = BaseModelOutput(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """

    last_hidden_state: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """An encoder's output with one vector for each example.

    Args:
        last_hidden_state: Output of the last layer, (B, L, D).
        pooler_output: One vector for each example, (B, D).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import BaseModelOutputWithPooling
        >>> out = BaseModelOutputWithPooling(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """

    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class BeitModelOutputWithPooling(BaseModelOutputWithPooling):
    """BEiT's output.

    Args:
        last_hidden_state: Output of the last layer, (B, L, D).
        pooler_output: Mean of the patch tokens, normalized; or the class token
            (`use_mean_pooling=False`), (B, D).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import BeitModelOutputWithPooling
        >>> out = BeitModelOutputWithPooling(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """


@dataclass
class FlaxBeitModelOutputWithPooling(BaseModelOutputWithPooling):
    """BEiT's output in Flax.

    Args:
        last_hidden_state: Output of the last layer, (B, L, D).
        pooler_output: Mean of the patch tokens, normalized; or the class token
            (`use_mean_pooling=False`), (B, D).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import FlaxBeitModelOutputWithPooling
        >>> out = FlaxBeitModelOutputWithPooling(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """


@dataclass
class BaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """A convolutional network's output.

    Args:
        last_hidden_state: Feature map of the last stage, (B, C, H, W).
        pooler_output: Mean over the positions, (B, C, 1, 1).
        hidden_states: Output of the stem, then of each stage, (B, C, H, W); None unless requested.

    Example:
        >>> from headstart.outputs import BaseModelOutputWithPoolingAndNoAttention
        >>> out = BaseModelOutputWithPoolingAndNoAttention(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """

    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: Tensors | None = None


@dataclass
class BaseModelOutputWithCLSToken(ModelOutput):
    """CvT's output.

    Args:
        last_hidden_state: Feature map of the last stage, (B, C, H, W).
        cls_token_value: The class token, (B, 1, C); None where the last stage has none.
        hidden_states: Output of each stage; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import BaseModelOutputWithCLSToken
        >>> out = BaseModelOutputWithCLSToken(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """

    last_hidden_state: Any = None
    cls_token_value: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class TFBaseModelOutputWithCLSToken(BaseModelOutputWithCLSToken):
    """CvT's output in Keras.

    Args:
        last_hidden_state: Feature map of the last stage, (B, C, H, W).
        cls_token_value: The class token, (B, 1, C); None where the last stage has none.
        hidden_states: Output of each stage; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import TFBaseModelOutputWithCLSToken
        >>> out = TFBaseModelOutputWithCLSToken(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """


@dataclass
class BaseModelOutputWithCrossAttentions(ModelOutput):
    """YOSO's output.

    Args:
        last_hidden_state: Output of the last layer, (B, L, D).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.
        cross_attentions: Always None: an encoder has no cross-attention.

    Example:
        >>> from headstart.outputs import BaseModelOutputWithCrossAttentions
        >>> out = BaseModelOutputWithCrossAttentions(last_hidden_state="states")
        >>> out.last_hidden_state == out["last_hidden_state"] == out[0], list(out)
        (True, ['last_hidden_state'])
    """

    last_hidden_state: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class BackboneOutput(ModelOutput):
    """Feature maps of the stages that `out_features` names.

    Args:
        feature_maps: A map (B, C, H, W) for each stage.
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import BackboneOutput
        >>> out = BackboneOutput(feature_maps=("map",))
        >>> out.feature_maps == out["feature_maps"] == out[0], list(out)
        (True, ['feature_maps'])
    """

    feature_maps: Tensors | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class ImageClassifierOutputWithNoAttention(ModelOutput):
    """Class scores of images, from a convolutional network.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the classes, (B, V).
        hidden_states: Output of the stem, then of each stage, (B, C, H, W); None unless requested.

    Example:
        >>> from headstart.outputs import ImageClassifierOutputWithNoAttention
        >>> out = ImageClassifierOutputWithNoAttention(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    """Class scores of images, from a transformer.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the classes, (B, V).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import ImageClassifierOutput
        >>> out = ImageClassifierOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class SemanticSegmenterOutput(ModelOutput):
    """Class scores of pixels.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the classes at a quarter of the image's height and width, (B, V, H / 4, W
            / 4).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import SemanticSegmenterOutput
        >>> out = SemanticSegmenterOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """Scores of the vocabulary (or of visual codes) at every position.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the vocabulary, (B, L, V).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import MaskedLMOutput
        >>> out = MaskedLMOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """Class scores of texts.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the classes, (B, V).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import SequenceClassifierOutput
        >>> out = SequenceClassifierOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    """Scores of the choices.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: A score for each choice, (B, choices).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import MultipleChoiceModelOutput
        >>> out = MultipleChoiceModelOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Class scores of tokens.

    Args:
        loss: The loss, a scalar; None without labels.
        logits: Scores of the classes, (B, L, V).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import TokenClassifierOutput
        >>> out = TokenClassifierOutput(logits="scores")
        >>> out.logits == out["logits"] == out[0], list(out)
        (True, ['logits'])
    """

    loss: Any = None
    logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Scores of every token to be the first and the last of the answer.

    Args:
        loss: The loss, a scalar; None without labels.
        start_logits: Scores of the first token, (B, L).
        end_logits: Scores of the last token, (B, L).
        hidden_states: The embeddings, then the output of each layer; None unless requested.
        attentions: Attention weights of each layer, (B, A, L, L); None unless requested.

    Example:
        >>> from headstart.outputs import QuestionAnsweringModelOutput
        >>> out = QuestionAnsweringModelOutput(start_logits="scores")
        >>> out.start_logits == out["start_logits"] == out[0], list(out)
        (True, ['start_logits'])
    """

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


FlaxMaskedLMOutput = MaskedLMOutput
FlaxSequenceClassifierOutput = SequenceClassifierOutput
TFImageClassifierOutputWithNoAttention = ImageClassifierOutputWithNoAttention


def output_classes() -> list[type[ModelOutput]]:
    """Every output class, for a framework that wants them registered as trees of tensors."""

    def below(cls: type[ModelOutput]) -> list[type[ModelOutput]]:
        return [cls] + [each for child in cls.__subclasses__() for each in below(child)]

    return below(ModelOutput)[1:]
