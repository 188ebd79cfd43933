"""The documented output classes of every model, for all frameworks.

An output is read by attribute (`out.logits`), key (`out["logits"]`), index (`out[0]`), slice, or as
a tuple (`out.to_tuple()`). Fields that are None are left out of everything but attribute access.
Iterating gives the keys, as a mapping does.

Shapes in the comments: B images or texts, C channels, H W height and width, L tokens, D hidden
size, A heads, V classes or vocabulary.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any

Tensors = tuple[Any, ...]


@dataclass
class ModelOutput:
    """Base of the outputs: a dataclass that also reads as a mapping and as a tuple."""

    def _present(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None
        }

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, key: object) -> bool:
        return key in self._present()

    def keys(self) -> KeysView[str]:
        """Names of the fields that are not None."""
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        """Values of the fields that are not None."""
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        """Name and value of the fields that are not None."""
        return self._present().items()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field, or `default` where it is None or does not exist."""
        return self._present().get(key, default)

    def to_tuple(self) -> Tensors:
        """The fields that are not None, in order."""
        return tuple(self._present().values())


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
