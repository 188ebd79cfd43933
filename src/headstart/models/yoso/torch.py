"""YOSO in PyTorch, top to bottom in the order data flows. The heads are in heads.py.

Legend: B texts, L tokens, D hidden size, A heads, K = D // A. Masks are (B, L) and 1 keeps.

Modules and parameters have the names of the published checkpoints.

Source: Zeng, Xiong, Ravi, Acharya, Fung, Singh, "You Only Sample (Almost) Once: Linear Cost
Self-Attention Via Bernoulli Sampling", ICML 2021. The frame around the attention is RoBERTa's (Liu
et al. 2019): norms after each branch, positions counted from 2.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from headstart.checkpoint.names import PublishedNames
from headstart.models.yoso.attention import weighted_values
from headstart.models.yoso.config import FIRST_POSITION, YosoConfig
from headstart.models.yoso.inputs import check_mask, check_tokens, look_up
from headstart.models.yoso.resizing import Resizable
from headstart.models.yoso.sampling import attend, attention_weights
from headstart.models.yoso.weights import NAMES, UNTIED
from headstart.nn.checks import expand_head_mask
from headstart.nn.layers import activation, named
from headstart.nn.linear import Linear
from headstart.outputs import BaseModelOutputWithCrossAttentions

TOKENS_AT_ONCE = 8192  # of texts in inference, in the MLPs


class Embeddings(nn.Module):
    """Sum of the vectors of a token, its position and its segment, normalized."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        D = config.hidden_size
        rows = config.max_position_embeddings + FIRST_POSITION
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(rows, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.LayerNorm = nn.LayerNorm(D, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.absolute = config.position_embedding_type == "absolute"

    def forward(self, x: Tensor, segment_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """x is (B, L, D): the vectors of the tokens."""
        L = x.shape[1]
        if segment_ids is None:
            x = x + self.token_type_embeddings.weight[0]  # (B, L, D)
        else:
            x = x + look_up(self.token_type_embeddings, segment_ids, "token_type_ids")
        if self.absolute and position_ids is None:
            x = x + self.position_embeddings.weight[FIRST_POSITION : L + FIRST_POSITION]
        elif self.absolute and position_ids is not None:
            x = x + look_up(self.position_embeddings, position_ids, "position_ids")
        return self.dropout(self.LayerNorm(x))


class SelfAttention(nn.Module):
    """Attention by hash collisions, exact or sampled, and a convolution over neighbors' values."""

    def __init__(self, config: YosoConfig, layer: int) -> None:
        super().__init__()
        D, A, window = config.hidden_size, config.num_attention_heads, config.conv_window
        self.config, self.layer = config, layer
        self.query, self.key, self.value = (Linear(D, D) for _ in range(3))
        self.conv = None
        if window:
            self.conv = nn.Conv2d(A, A, (window, 1), padding=(window // 2, 0), groups=A, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, A, L, K)."""
        return x.view(*x.shape[:2], self.config.num_attention_heads, -1).transpose(1, 2)

    def collide(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, A, L, K): values of the keys that a query (might have) collided with."""
        return attend(q, k, v, mask, self.config, self.layer, self.training)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The heads' vectors (B, L, D), and the attention weights if wanted; head_mask is (A,)."""
        # 3 × (B, A, L, K)
        q, k, v = (self.heads(project(x)) for project in (self.query, self.key, self.value))
        seen = None if self.config.attend_padding else mask
        weights = None
        if want_weights:
            weights = attention_weights(q, k, seen, self.config, self.layer, self.training)
        # (B, A, L, K)
        y = self.collide(q, k, v, seen) if weights is None else weighted_values(weights, v, seen)
        if self.conv is not None:
            y = y + self.conv(v if mask is None else v * mask[:, None, :, None].to(v.dtype))
        if head_mask is not None:
            y = y * head_mask[:, None, None].to(y.dtype)
        return y.transpose(1, 2).flatten(2), weights  # (B, L, D)


class Layer(nn.Module):
    """Attention and MLP, each followed by a norm."""

    def __init__(self, config: YosoConfig, layer: int) -> None:
        super().__init__()
        D, F, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        output = named(dense=Linear(D, D), LayerNorm=nn.LayerNorm(D, eps))
        self.attention = named(**{"self": SelfAttention(config, layer), "output": output})
        self.intermediate = named(dense=Linear(D, F))
        self.output = named(dense=Linear(F, D), LayerNorm=nn.LayerNorm(D, eps))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.act = activation(config.hidden_act)

    def mlp(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same.

        Very long texts go through in parts, so that the wide vectors between the maps need little
        memory.
        """
        wide, narrow = self.intermediate["dense"], self.output["dense"]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.shape[1] <= TOKENS_AT_ONCE:
            return narrow(self.act(wide(x)))  # (B, L, D)
        # (B, up to TOKENS_AT_ONCE, D) each
        parts = [narrow(self.act(wide(part))) for part in torch.split(x, TOKENS_AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1)  # (B, L, D)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D), mask (B, L), head_mask (A,) → (B, L, D), and weights (B, A, L, L) or
        None.
        """
        y, weights = self.attention["self"](x, mask, head_mask, want_weights)  # (B, L, D)
        after: Any = self.attention["output"]
        x = after["LayerNorm"](x + self.dropout(after["dense"](y)))  # (B, L, D)
        return self.output["LayerNorm"](x + self.dropout(self.mlp(x))), weights


class YosoPreTrainedModel(Resizable):
    """Base of the YOSO networks: initial values, vocabularies and positions of other sizes.

    Args:
        config: Shape of the network, a `YosoConfig`.

    Example:
        >>> from headstart import YosoConfig, YosoModel
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48, max_position_embeddings=64,
        ... )
        >>> model = YosoModel(config)
        >>> model.read_long_texts(1000)
        >>> model.config.max_position_embeddings
        1000
    """

    config_class = YosoConfig
    base_model_prefix = "yoso"
    main_input_name = "input_ids"
    config: YosoConfig

    @classmethod
    def name_table(cls, config: YosoConfig) -> PublishedNames:
        """Names of published files."""
        return NAMES if config.tie_word_embeddings else UNTIED

    def init_module(self, module: nn.Module) -> None:
        """Normal weights of `initializer_range`, biases 0; norms 1 and 0.

        The vector of padding 0.
        """
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
            elif getattr(module, "bias", None) is not None:
                nn.init.zeros_(cast(Tensor, module.bias))
        else:
            super().init_module(module)


class YosoModel(YosoPreTrainedModel):
    """YOSO without a head.

    Args:
        config: Shape of the network.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoModel
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48,
        ... )
        >>> YosoModel(config)(torch.tensor([[0, 31, 7, 2]])).last_hidden_state.shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.encoder = named(layer=layers)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A vector for each token of the texts.

        Args:
            input_ids: (B, L) numbers of tokens, as `YosoTokenizer` gives them.
            attention_mask: (B, L), (B, 1, L) or (B, 1, 1, L), 1 keeps, 0 is padding: it is not
                seen, and its own vectors mean nothing.
            token_type_ids: (B, L) segments; default 0.
            position_ids: (B, L) rows of the position table; a text's first token is at 2.
            head_mask: (A,) or (layers, A), 1 keeps.
            inputs_embeds: (B, L, D) the tokens' vectors, instead of `input_ids`.
            output_attentions: Also return each layer's attention weights. They are collision
                probabilities, or with sampling fractions of collisions: rows do not add up to one.
            output_hidden_states: Also return the embeddings and each layer's vectors.
            return_dict: False gives a tuple.

        Returns:
            `last_hidden_state` (B, L, D), `hidden_states`, `attentions` (B, A, L, L),
            `cross_attentions` (always None).
        """
        x = check_tokens(input_ids, inputs_embeds, self.config)
        if inputs_embeds is None:
            x = look_up(self.embeddings.word_embeddings, x, "input_ids")  # (B, L, D)
        mask = check_mask(attention_mask, x)
        c = self.config
        given = None if c.ignore_head_mask else head_mask
        heads = expand_head_mask(given, c.num_hidden_layers, c.num_attention_heads)
        want_weights = self.wants("output_attentions", output_attentions)
        x = self.embeddings(x, token_type_ids, position_ids)  # (B, L, D)
        want_hidden = self.wants("output_hidden_states", output_hidden_states)
        hidden, weights = [x], []
        for i, layer in enumerate(cast(nn.ModuleList, self.encoder["layer"])):
            head = None if heads is None else heads[i]
            x, seen = self.run_block(layer, x, mask, head, want_weights)
            if want_hidden:
                hidden.append(x)
            if want_weights:
                weights.append(seen)
        out = BaseModelOutputWithCrossAttentions(
            x, tuple(hidden) if want_hidden else None, tuple(weights) if want_weights else None
        )
        return self.finish(out, return_dict)
