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
        """Makes the dictionary hold what the fields hold."""
        super().clear()
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                super().__setitem__(f.name, value)

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in {f.name for f in fields(self)}:
            raise KeyError(f"{type(self).__name__} has no field {key!r}")
        object.__setattr__(self, key, value)
        self._fill()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in self or value is not None:
            self._fill()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"the fields of {type(self).__name__} are fixed; set one to None to leave it out"
        )

    __delitem__ = pop = popitem = update = setdefault = clear = _refuse  # type: ignore[assignment]

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
    """An encoder's output."""

    last_hidden_state: Any = None  # (B, L, D)
    hidden_states: Tensors | None = None  # one a layer, and the embeddings first
    attentions: Tensors | None = None  # one a layer, (B, A, L, L)


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """An encoder's output with one vector an example."""

    last_hidden_state: Any = None  # (B, L, D)
    pooler_output: Any = None  # (B, D)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class BeitModelOutputWithPooling(BaseModelOutputWithPooling):
    """`pooler_output` is the mean of the patch tokens, normalised, or the class token
    (`use_mean_pooling=False`).
    """


@dataclass
class FlaxBeitModelOutputWithPooling(BaseModelOutputWithPooling):
    """The same for Flax."""


@dataclass
class BaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """A convolutional network's output."""

    last_hidden_state: Any = None  # (B, C, H, W)
    pooler_output: Any = None  # (B, C, 1, 1)
    hidden_states: Tensors | None = None  # the stem's output, then one a stage


@dataclass
class BaseModelOutputWithCLSToken(ModelOutput):
    """CvT's output."""

    last_hidden_state: Any = None  # (B, C, H, W)
    cls_token_value: Any = None  # (B, 1, C), or None where the last stage has no class token
    hidden_states: Tensors | None = None  # one a stage
    attentions: Tensors | None = None


@dataclass
class TFBaseModelOutputWithCLSToken(BaseModelOutputWithCLSToken):
    """The same for Keras."""


@dataclass
class BaseModelOutputWithCrossAttentions(ModelOutput):
    """YOSO's output; `cross_attentions` is always None (an encoder has none)."""

    last_hidden_state: Any = None  # (B, L, D)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class BackboneOutput(ModelOutput):
    """Feature maps of the stages that `out_features` names."""

    feature_maps: Tensors | None = None  # each (B, C, H, W)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class ImageClassifierOutputWithNoAttention(ModelOutput):
    """Scores of classes for images, from a convolutional network."""

    loss: Any = None  # ()
    logits: Any = None  # (B, V)
    hidden_states: Tensors | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    """Scores of classes for images, from a transformer."""

    loss: Any = None  # ()
    logits: Any = None  # (B, V)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class SemanticSegmenterOutput(ModelOutput):
    """Scores of classes for pixels, at a quarter of the image's height and width."""

    loss: Any = None  # ()
    logits: Any = None  # (B, V, H, W)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """Scores of the vocabulary (or of visual codes) at every place."""

    loss: Any = None  # ()
    logits: Any = None  # (B, L, V)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """Scores of classes for texts."""

    loss: Any = None  # ()
    logits: Any = None  # (B, V)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    """A score for each choice."""

    loss: Any = None  # ()
    logits: Any = None  # (B, choices)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Scores of classes for tokens."""

    loss: Any = None  # ()
    logits: Any = None  # (B, L, V)
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Scores of every token to be the first and the last of the answer."""

    loss: Any = None  # ()
    start_logits: Any = None  # (B, L)
    end_logits: Any = None  # (B, L)
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
