"""YOSO in PyTorch, top to bottom in the order data flows. What is put on top of it is in heads.py.

Legend: B texts, L tokens, D hidden size, A heads, K = D // A. Masks are (B, L) and 1 keeps.

Source: Zeng, Xiong, Ravi, Acharya, Fung, Singh, "You Only Sample (Almost) Once: Linear Cost
    Self-Attention Via Bernoulli
Sampling", ICML 2021. The frame around the attention is RoBERTa's (Liu et al. 2019): norms after
each branch, places counted from 2.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from headstart.checkpoint.names import NameTable
from headstart.errors import InputError
from headstart.models.yoso.attention import (
    SAMPLING_PAYS_FROM,
    choose_num_hash,
    exact_attention,
    exact_weights,
    sampled_attention,
)
from headstart.models.yoso.config import FIRST_POSITION, YosoConfig
from headstart.models.yoso.weights import HUB, HUB_UNTIED
from headstart.nn.linear import Linear
from headstart.nn.torch import PreTrainedModel, activation
from headstart.outputs import BaseModelOutputWithCrossAttentions

TOKENS_AT_ONCE = 8192  # of texts in inference, in the MLPs


class Embeddings(nn.Module):
    """Sum of the vectors of a token, its place and its segment, normalised."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings + FIRST_POSITION, D)
        self.segments = nn.Embedding(config.type_vocab_size, D)
        self.norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.absolute = config.position_embedding_type == "absolute"

    def forward(self, x: Tensor, segment_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """x is (B, L, D): the vectors of the tokens."""
        L = x.shape[1]
        segments = (
            self.segments.weight[0]
            if segment_ids is None
            else look_up(self.segments, segment_ids, "token_type_ids")
        )
        x = x + segments  # (B, L, D)
        if self.absolute and position_ids is None:
            x = x + self.positions.weight[FIRST_POSITION : L + FIRST_POSITION]
        elif self.absolute:
            x = x + look_up(self.positions, position_ids, "position_ids")
        return cast(Tensor, self.dropout(self.norm(x)))


def look_up(table: nn.Embedding, ids: Tensor | None, name: str) -> Tensor:
    """Rows of a table (B, L, D).

    Raises:
        InputError: A number that has no row (on a CPU; a GPU does not say which).
    """
    assert ids is not None
    try:
        return cast(Tensor, table(ids))
    except IndexError as error:
        raise InputError(
            f"{name} go from {int(ids.min())} to {int(ids.max())}; expected 0 to"
            f" {table.num_embeddings - 1}"
        ) from error


class Attention(nn.Module):
    """Attention by hash collisions, exact or sampled, and a convolution over neighbours' values
    where there is one.
    """

    def __init__(self, config: YosoConfig, layer: int) -> None:
        super().__init__()
        D, A = config.hidden_size, config.num_attention_heads
        self.num_heads, self.layer = A, layer
        self.config = config
        self.qkv = Linear(D, 3 * D)
        window = config.conv_window
        self.conv = (
            nn.Conv2d(A, A, (window, 1), padding=(window // 2, 0), groups=A, bias=False)
            if window
            else None
        )
        self.proj = Linear(D, D)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, A, L, K) each."""
        B, L, D = x.shape
        q, k, v = (
            self.qkv(x).view(B, L, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        )  # 3 × (B, A, L, K)
        return q, k, v

    def collide(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, A, L, K): values of the keys that a query (might have) collided with."""
        config = self.config
        if config.use_expectation or q.shape[2] < config.sample_from:
            return exact_attention(q, k, v, hash_code_len=config.hash_code_len, mask=mask)
        fixed = config.hash_seed is not None and not self.training
        num_hash = (
            config.num_hash
            if config.hash_error is None
            else choose_num_hash(config.hash_error, q.shape[2])
        )
        return sampled_attention(
            q, k, v,
            hash_code_len=config.hash_code_len, num_hash=num_hash, use_fast_hash=config.use_fast_hash,
            lsh_backward=config.lsh_backward, mask=mask,
            seed=cast(int, config.hash_seed) * config.num_hidden_layers + self.layer if fixed else None,
        )  # fmt: skip

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The (expected) attention weights, (B, A, L, L)."""
        q, k, _ = self.heads(x)
        return exact_weights(
            q,
            k,
            hash_code_len=self.config.hash_code_len,
            mask=None if self.config.attend_padding else mask,
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> Tensor:
        """head_mask is (A,), 1 keeps."""
        B, L, D = x.shape
        q, k, v = self.heads(x)  # 3 × (B, A, L, K)
        y = self.collide(q, k, v, None if self.config.attend_padding else mask)  # (B, A, L, K)
        if self.conv is not None:
            y = y + self.conv(v if mask is None else v * mask[:, None, :, None].to(v.dtype))
        if head_mask is not None:
            y = y * head_mask[:, None, None].to(y.dtype)
        return cast(Tensor, self.proj(y.transpose(1, 2).reshape(B, L, D)))  # (B, L, D)


class Mlp(nn.Sequential):
    """Two linear maps with an activation between."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: Any) -> None:
        super().__init__(
            Linear(hidden_size, intermediate_size), Linear(intermediate_size, hidden_size)
        )
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same.

        Very long texts go through in parts, so that the wide vectors between the maps need little
        memory.
        """
        L = x.shape[1]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or L <= TOKENS_AT_ONCE:
            return cast(Tensor, self[1](self.act(self[0](x))))  # (B, L, D)
        # (B, up to TOKENS_AT_ONCE, D) each
        parts = [self[1](self.act(self[0](part))) for part in torch.split(x, TOKENS_AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1)  # (B, L, D)


class Block(nn.Module):
    """Attention and MLP, each followed by a norm."""

    def __init__(self, config: YosoConfig, layer: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.attention = Attention(config, layer)
        self.norm_1 = nn.LayerNorm(D, config.layer_norm_eps)
        self.mlp = Mlp(D, config.intermediate_size, config.hidden_act)
        self.norm_2 = nn.LayerNorm(D, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, L, D), mask (B, L), head_mask (A,)."""
        x = self.norm_1(x + self.dropout(self.attention(x, mask, head_mask)))  # (B, L, D)
        return cast(Tensor, self.norm_2(x + self.dropout(self.mlp(x))))  # (B, L, D)


class YosoPreTrainedModel(PreTrainedModel):
    """Base of the YOSO networks."""

    config_class = YosoConfig
    base_model_prefix = "yoso"
    main_input_name = "input_ids"
    config: YosoConfig

    @classmethod
    def name_table(cls, config: YosoConfig) -> NameTable:
        """Published names."""
        return HUB if config.tie_word_embeddings else HUB_UNTIED

    def init_module(self, module: nn.Module) -> None:
        """Normal weights of `initializer_range`, biases 0; norms 1 and 0; the vector of padding 0."""
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
            elif getattr(module, "bias", None) is not None:
                nn.init.zeros_(cast(Tensor, module.bias))
        else:
            super().init_module(module)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of the tokens' vectors."""
        return cast(YosoModel, self.base_model).embeddings.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Puts another table in its place."""
        cast(YosoModel, self.base_model).embeddings.words = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Makes the vocabulary longer or shorter; new tokens get random vectors.

        Args:
            new_num_tokens: Its new size; None keeps it.
            pad_to_multiple_of: Round the size up.

        Returns:
            The table of the tokens' vectors.
        """
        old = self.get_input_embeddings()
        size = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size <= (old.padding_idx or 0):
            raise InputError(
                f"new_num_tokens={size} would drop the padding token {old.padding_idx}"
            )
        if size != old.num_embeddings:
            table = nn.Embedding(
                size,
                old.embedding_dim,
                padding_idx=old.padding_idx,
                _weight=self.longer(old.weight, size),
            )
            self.set_input_embeddings(table)
            self.config.vocab_size = size
        return self.get_input_embeddings()

    @torch.no_grad()
    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Makes the longest text longer or shorter.

        Places beyond the old last one repeat the old ones in order, so that neighbours stay
        neighbours (Beltagy et al. 2020, "Longformer", began so). A network that has never seen so
        long texts should be tuned on some.

        Args:
            new_num_position_embeddings: Tokens of the longest text.
        """
        length = new_num_position_embeddings
        if length < 1:
            raise InputError(f"new_num_position_embeddings={length}; expected at least 1")
        # (FIRST_POSITION + old length, D)
        old = cast(YosoModel, self.base_model).embeddings.positions.weight
        places = (
            torch.arange(length, device=old.device) % (len(old) - FIRST_POSITION) + FIRST_POSITION
        )  # (length,)
        rows = torch.cat([old[:FIRST_POSITION], old[places]])  # (FIRST_POSITION + length, D)
        table = nn.Embedding(len(rows), rows.shape[1], _weight=rows).requires_grad_(
            old.requires_grad
        )
        cast(YosoModel, self.base_model).embeddings.positions = table
        self.config.max_position_embeddings = length

    def read_long_texts(self, length: int, *, sample: bool = True) -> None:
        """Makes ready for texts of `length` tokens: positions are repeated where there are too few,
        and attention is sampled.

        Args:
            length: Tokens of the longest text.
            sample: Whether exact attention, whose time is quadratic, is replaced by the sampled one
                where that is faster: for texts of at least `SAMPLING_PAYS_FROM` tokens.
        """
        if length > self.config.max_position_embeddings:
            self.resize_position_embeddings(length)
        if sample and self.config.use_expectation:
            self.config.use_expectation, self.config.sample_from = False, SAMPLING_PAYS_FROM

    @torch.no_grad()
    def longer(self, old: Tensor, size: int, std: float | None = None) -> Tensor:
        """The first rows of a table, and new ones."""
        new = old.new_empty((size, *old.shape[1:]))
        nn.init.normal_(new, std=self.config.initializer_range if std is None else std)
        new[: len(old)] = old[:size]
        return new


class YosoModel(YosoPreTrainedModel):
    """YOSO without a head.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoModel
        >>> model = YosoModel(YosoConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48))
        >>> model(torch.tensor([[0, 31, 7, 2]])).last_hidden_state.shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
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
            attention_mask: (B, L), 1 keeps, 0 is padding: it is not seen, and its own vectors mean
                nothing.
            token_type_ids: (B, L) segments; default 0.
            position_ids: (B, L) rows of the position table; a text's first token is at 2.
            head_mask: (A,) or (layers, A), 1 keeps.
            inputs_embeds: (B, L, D) the tokens' vectors, in place of `input_ids`.
            output_attentions: Also return each layer's attention weights. They are collision
                probabilities: rows do not add up to one.
            output_hidden_states: Also return the embeddings and each layer's vectors.
            return_dict: False gives a tuple.

        Returns:
            `last_hidden_state` (B, L, D), `hidden_states`, `attentions` (B, A, L, L),
            `cross_attentions` (always None).
        """
        x = self.token_vectors(input_ids, inputs_embeds)  # (B, L, D)
        mask = check_mask(attention_mask, x)
        heads = check_heads(head_mask, self.config)
        x = self.embeddings(x, token_type_ids, position_ids)
        want_hidden = self.wants("output_hidden_states", output_hidden_states)
        want_weights = self.wants("output_attentions", output_attentions)
        hidden, weights = [x], []
        for i, block in enumerate(self.blocks):
            if want_weights:
                weights.append(cast(Block, block).attention.weights(x, mask))
            x = self.run_block(block, x, mask, None if heads is None else heads[i])
            if want_hidden:
                hidden.append(x)
        out = BaseModelOutputWithCrossAttentions(
            x, tuple(hidden) if want_hidden else None, tuple(weights) if want_weights else None
        )
        return self.finish(out, return_dict)

    def token_vectors(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """The tokens' vectors (B, L, D), looked up or given.

        Raises:
            InputError: Both or none given, another shape, or longer than the network's positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise InputError(f"give input_ids or inputs_embeds; {got} given")
        given, name, axes = (
            (input_ids, "input_ids", 2)
            if inputs_embeds is None
            else (inputs_embeds, "inputs_embeds", 3)
        )
        assert given is not None
        if given.ndim != axes or (axes == 3 and given.shape[2] != self.config.hidden_size):
            expected = (
                "(texts, tokens)" if axes == 2 else f"(texts, tokens, {self.config.hidden_size})"
            )
            raise InputError(f"{name} has shape {tuple(given.shape)}; expected {expected}")
        if given.shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"texts of {given.shape[1]} tokens are longer than"
                f" max_position_embeddings={self.config.max_position_embeddings}; truncate them"
                " with tokenizer(…, truncation=True, max_length=…), or make room with"
                " model.read_long_texts(…)"
            )
        return given if axes == 3 else look_up(self.embeddings.words, given, "input_ids")


def check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask of a call.

    Raises:
        InputError: Not one number for each token.
    """
    if mask is not None and mask.shape != x.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(x.shape[:2])}: one"
            " number for each token, 1 keeps"
        )
    return mask


def check_heads(head_mask: Tensor | None, config: YosoConfig) -> Tensor | None:
    """The heads to keep (layers, A), or None for all.

    Raises:
        InputError: Another shape.
    """
    if head_mask is None or config.ignore_head_mask:
        return None
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(head_mask.shape) not in (shape, shape[1:]):
        raise InputError(
            f"head_mask has shape {tuple(head_mask.shape)}; expected {shape[1:]} or {shape}:"
            " (layers, heads), 1 keeps"
        )
    return head_mask.expand(shape)
