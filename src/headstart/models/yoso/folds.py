"""YOSO without unused outputs, in operators that every engine supports.

Shapes: B texts, L tokens, D hidden size, A heads, K = D // A.
"""

from typing import Any, cast

from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.models.yoso.attention import normalize_rows
from headstart.models.yoso.exact import collision_probability, exact_sum
from headstart.models.yoso.heads import YosoForMultipleChoice, YosoForSequenceClassification
from headstart.models.yoso.torch import Layer, SelfAttention, YosoModel, YosoPreTrainedModel
from headstart.nn.folding import recast


class PortableAttention(SelfAttention):
    """Exact attention written out, for formats that do not have our kernels."""

    def collide(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, A, L, K): values of the keys that a query collides with, in expectation."""
        keep = None if mask is None else mask[:, None, :, None].bool()  # (B, 1, L, 1)
        y = collide(
            q, k, v if keep is None else v.masked_fill(~keep, 0.0), self.config.hash_code_len
        )
        return normalize_rows(y if keep is None else y.masked_fill(~keep, 0.0))


def collide(q: Tensor, k: Tensor, v: Tensor, hash_code_len: int) -> Tensor:
    """Sums of the values by the expected collisions, in operators that every engine supports.

    `exact_sum` written out.
    """
    # (B, A, L, L); tracing has no `.mT`
    similarity = normalize_rows(q) @ normalize_rows(k).transpose(2, 3)
    return collision_probability(similarity, hash_code_len) @ v  # (B, A, L, K)


class FirstTokenLayer(Layer):
    """The last layer where only the first token's vector is read.

    Its query, its branch and its MLP alone.
    """

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D) → (B, 1, D), and None."""
        attention = cast(SelfAttention, self.attention["self"])
        config, first = attention.config, x[:, :1]  # (B, 1, D)
        q = attention.heads(attention.query(first))  # (B, A, 1, K)
        k, v = (attention.heads(project(x)) for project in (attention.key, attention.value))
        # (B, 1, L, 1)
        keep = None if mask is None or config.attend_padding else mask[:, None, :, None].bool()
        seen = v if keep is None else v.masked_fill(~keep, 0.0)  # (B, A, L, K)
        if isinstance(attention, PortableAttention):
            y = collide(q, k, seen, config.hash_code_len)  # (B, A, 1, K)
        else:
            y = exact_sum(normalize_rows(q), normalize_rows(k), seen, config.hash_code_len)
        y = normalize_rows(y if keep is None else y.masked_fill(~keep[:, :, :1], 0.0))
        if attention.conv is not None:
            reach = int(attention.conv.padding[0]) + 1  # tokens in the first one's window
            near = v if mask is None else v * mask[:, None, :, None].to(v.dtype)
            y = y + attention.conv(near[:, :, :reach])[:, :, :1]
        if head_mask is not None:
            y = y * head_mask[:, None, None].to(y.dtype)
        after: Any = self.attention["output"]
        first = after["LayerNorm"](first + after["dense"](y.transpose(1, 2).flatten(2)))
        return self.output["LayerNorm"](first + self.mlp(first)), None  # (B, 1, D)


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Drops the last block's work on tokens that no head reads; writes the attention out. See
    `headstart.engine.folds.fold`.

    Raises:
        ConfigError: Sampled attention, which is random and has no portable form.
    """
    config = cast(YosoPreTrainedModel, model).config
    if portable:
        if not config.use_expectation:
            raise ConfigError(
                "sampled attention exists in PyTorch only; set use_expectation=True, or keep to the"
                " torch engine"
            )
        for module in list(model.modules()):
            if type(module) is SelfAttention:
                recast(module, PortableAttention)
    first_alone = isinstance(model, YosoForMultipleChoice) or (
        isinstance(model, YosoForSequenceClassification) and config.classifier_pooling == "first"
    )
    if lean and config.use_expectation and first_alone:
        layers = cast(nn.ModuleList, cast(YosoModel, model.base_model).encoder["layer"])
        if len(layers):
            recast(layers[-1], FirstTokenLayer)
