"""YOSO's attention weights in expectation, block by block: never more than one block of the L × L
weights exists.

Legend: N rows of heads (texts × heads), L query tokens, S key tokens, K head size of queries and
    keys, V head size of values.

With unit queries and keys, a hash of `tau` random hyperplanes puts a query and a key into the same
bucket with probability

    W[i, j] = (1 - arccos(q_i · k_j) / pi) ** tau                    (Zeng et al., 2021, "You Only
    Sample (Almost) Once")

and the attention is `W v`. Training uses the paper's lower bound `tau / 2 * W` in place of the
derivative of W with respect to `q_i · k_j`, because the true derivative has a pole where a query
meets an equal key. Derivatives of higher order follow from the same rule.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from headstart.models.yoso.kernels import cpu, gpu, gpu_exact
from headstart.models.yoso.operators import operator, transformed
from headstart.nn.kept import jit_traced

# Weights in one block, over all the heads that are worked on together: what stays in the cache of
# two CPU cores, and enough to fill a GPU.
BLOCK_ON_CPU = 2**18
BLOCK_ON_GPU = 2**25
_QUERIES_IN_BLOCK = 128
_KEYS_IN_BLOCK = 512


def collision_probability(similarity: Tensor, hash_code_len: int) -> Tensor:
    """The weight of each cosine similarity, which rounding may have pushed beyond [-1, 1].

    Any shape.
    """
    angle = torch.acos(similarity.clamp(-1.0, 1.0))
    return integer_power(1.0 - angle / math.pi, hash_code_len)


def with_surrogate(weights: Tensor, cosine: Tensor, hash_code_len: int) -> Tensor:
    """The weights, with `tau / 2` times themselves as their derivative: that of the second order
    is `(tau / 2) ** 2` times them, and so on.
    """
    exported = jit_traced() and torch.onnx.is_in_onnx_export()
    if exported or not (torch.is_grad_enabled() or transformed()):
        return weights
    return weights * torch.exp(hash_code_len / 2 * (cosine - cosine.detach()))


def plain_sum(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    """`sum_in_blocks` in ordinary operations, with all weights in memory."""
    with no_autocast(query):
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (query, key, value))
        cosine = q @ k.transpose(-2, -1)  # (..., L, S)
        weights = collision_probability(cosine.detach(), hash_code_len)
        return (with_surrogate(weights, cosine, hash_code_len) @ v).to(value.dtype)


def plain_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hash_code_len: int,
    met: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gradients_in_blocks` in ordinary operations, which have gradients themselves.

    Args:
        met: (..., L, S), weights to take for the collision probabilities.
    """
    with no_autocast(query):
        tensors = (grad, query, key, value)
        g, q, k, v = (x if x.dtype == torch.float64 else x.float() for x in tensors)
        cosine = q @ k.transpose(-2, -1)  # (..., L, S)
        if met is None:
            met = collision_probability(cosine.detach(), hash_code_len)
        weights = with_surrogate(met, cosine, hash_code_len)
        g_cosine = (g @ v.transpose(-2, -1)) * weights * (hash_code_len / 2)  # (..., L, S)
        g_query, g_key = g_cosine @ k, g_cosine.transpose(-2, -1) @ q
        g_value = weights.transpose(-2, -1) @ g
    return g_query.to(query.dtype), g_key.to(key.dtype), g_value.to(value.dtype)


def integer_power(base: Tensor, exponent: int) -> Tensor:
    """`base ** exponent` for an integer exponent, by squaring.

    Several times faster than `torch.pow`.
    """
    result: Tensor | None = None
    while True:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if not exponent:
            return torch.ones_like(base) if result is None else result
        base = base * base


def in_working_precision(*tensors: Tensor) -> list[Tensor]:
    """The tensors as (N, tokens, size), in float32 at least: half precision is only for storage."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    # -1 would not do for no tokens
    return [x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).to(dtype) for x in tensors]


def _blocks(
    rows: int, queries: int, keys: int, device: torch.device
) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of heads, queries and keys that cover all weights once."""
    budget = BLOCK_ON_CPU if device.type == "cpu" else BLOCK_ON_GPU
    some_keys = max(1, min(keys, _KEYS_IN_BLOCK))
    some_queries = max(1, min(queries, _QUERIES_IN_BLOCK))
    some_rows = max(1, min(rows, budget // (some_keys * some_queries)))
    for row in range(0, rows, some_rows):
        for query in range(0, queries, some_queries):
            for key in range(0, keys, some_keys):
                yield (
                    slice(row, row + some_rows),
                    slice(query, query + some_queries),
                    slice(key, key + some_keys),
                )


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Autocast would turn the matrix products below into bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def sum_in_blocks(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    """`W v`, not normalized.

    Query (..., L, K), key (..., S, K), value (..., S, V) → (..., L, V).
    """
    if cpu.usable(query, key, value):
        return cpu.exact_forward(query, key, value, hash_code_len)
    if gpu.usable(query, key, value):
        return gpu_exact.exact_forward(query, key, value, hash_code_len)
    with no_autocast(query):
        q, k, v = in_working_precision(query, key, value)  # (N, L, K), (N, S, K), (N, S, V)
        out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])  # (N, L, V)
        for n, i, j in _blocks(q.shape[0], q.shape[1], k.shape[1], q.device):
            weights = collision_probability(q[n, i] @ k[n, j].mT, hash_code_len)  # (n, i, j)
            out[n, i] += weights @ v[n, j]
    return out.reshape(*query.shape[:-1], value.shape[-1]).to(value.dtype)


def gradients_in_blocks(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, hash_code_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `sum_in_blocks` for query, key and value, with `tau / 2 * W` as the derivative
    of W.
    """
    if cpu.usable(grad, query, key, value):
        return cpu.exact_backward(grad, query, key, value, hash_code_len)
    if gpu.usable(grad, query, key, value):
        return gpu_exact.exact_backward(grad, query, key, value, hash_code_len)
    with no_autocast(query):
        # (N, L, V), (N, L, K), (N, S, K), (N, S, V)
        g, q, k, v = in_working_precision(grad, query, key, value)
        g_query, g_key, g_value = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for n, i, j in _blocks(q.shape[0], q.shape[1], k.shape[1], q.device):
            weights = collision_probability(q[n, i] @ k[n, j].mT, hash_code_len)  # (n, i, j)
            g_value[n, j] += weights.mT @ g[n, i]
            g_similarity = (g[n, i] @ v[n, j].mT).mul_(weights).mul_(hash_code_len / 2)  # (n, i, j)
            g_query[n, i] += g_similarity @ k[n, j]
            g_key[n, j] += g_similarity.mT @ q[n, i]
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )


def _fake_sum(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    return value.new_empty(*query.shape[:-1], value.shape[-1])


def _fake_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, hash_code_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


exact_sum_backward = operator("yoso_exact_backward", _fake_gradients)(gradients_in_blocks)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    *tensors, ctx.hash_code_len = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value = ctx.saved_tensors
    # recorded, the gradient is to be differentiated again
    gradients = plain_gradients if torch.is_grad_enabled() else exact_sum_backward
    return *gradients(grad, query, key, value, ctx.hash_code_len), None


exact_sum_operator = operator("yoso_exact", _fake_sum, _save, _backward)(sum_in_blocks)


def exact_sum(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    """`W v`, not normalized.

    Query (..., L, K), key (..., S, K), value (..., S, V) → (..., L, V).
    """
    run = plain_sum if transformed() else exact_sum_operator
    return run(query, key, value, hash_code_len)
