"""Which attention a configuration asks for: exact, or sampled with so many hashes and this seed.

Legend: B texts, L tokens, A heads, K head size. Masks are (B, L) and 1 keeps.
"""

from typing import Any

from torch import Tensor

from headstart.models.yoso.attention import (
    choose_num_hash,
    exact_attention,
    exact_weights,
    sampled_attention,
    sampled_weights,
)
from headstart.models.yoso.config import YosoConfig


def sampling(config: YosoConfig, length: int, layer: int, training: bool) -> dict[str, Any] | None:
    """Arguments of `sampled_attention` for texts of `length` tokens; None for exact attention."""
    if config.use_expectation or length < config.sample_from:
        return None
    num_hash, seed = config.num_hash, config.hash_seed
    if config.hash_error is not None:
        num_hash = choose_num_hash(config.hash_error, length)
    if seed is not None:
        seed = None if training else seed * config.num_hidden_layers + layer
    kinds = {"use_fast_hash": config.use_fast_hash, "lsh_backward": config.lsh_backward}
    return kinds | {"num_hash": num_hash, "seed": seed}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    config: YosoConfig,
    layer: int,
    training: bool,
) -> Tensor:
    """(B, A, L, K): values of the keys that a query (might have) collided with."""
    given: dict[str, Any] = {"hash_code_len": config.hash_code_len, "mask": mask}
    plan = sampling(config, q.shape[2], layer, training)
    if plan is None:
        return exact_attention(q, k, v, **given)
    return sampled_attention(q, k, v, **given, **plan)


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None, config: YosoConfig, layer: int, training: bool
) -> Tensor:
    """(B, A, L, L): how often a query (might have) collided with each key."""
    given: dict[str, Any] = {"hash_code_len": config.hash_code_len, "mask": mask}
    plan = sampling(config, q.shape[2], layer, training)
    if plan is None:
        return exact_weights(q, k, **given)
    return sampled_weights(q, k, **given, **plan)
