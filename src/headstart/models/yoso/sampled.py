"""YOSO's attention by sampling: each token meets only the tokens that fall into its hash bucket, so
the cost is linear in L.

Legend: N rows of heads (texts × heads), L query tokens, S key tokens, K head size of queries and
    keys, V head size of values,
M hashes, `tau` = hash_code_len.

With `code_h` the code of hash h (see `hashing.py`), the attention sum of query i is

    out[i] = 1 / M * sum over h of (sum of v[j] over the keys j with code_h(k[j]) == code_h(q[i])).

Its mean over random projections is `W v` of `exact.py`. The gradients are sampled with the same
codes:

    g_v[j] = 1 / M * sum over h and the queries i of j's bucket: g[i]
    g_q[i] = tau / (2 M) * sum over h and the keys j of i's bucket: (g[i] · v[j]) k[j]
    g_k[j] = tau / (2 M) * sum over h and the queries i of j's bucket: (g[i] · v[j]) q[i]

What is here is the definition in plain PyTorch, for every device and for machines without the
kernels of `kernels/`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.models.yoso.exact import (
    exact_sum_backward,
    in_working_precision,
    no_autocast,
    plain_gradients,
    plain_sum,
    with_surrogate,
)
from headstart.models.yoso.hashing import hash_codes
from headstart.models.yoso.kernels import cpu, gpu
from headstart.models.yoso.operators import operator, transformed
from headstart.models.yoso.rows import normalize_rows

_MATRICES_AT_ONCE = 2048  # V × K matrices that are alive in the backward pass


def _codes(x: Tensor, projections: Tensor, hash_code_len: int, num_hash: int) -> Tensor:
    """Codes as (M, N, L) int64, made unique over the rows, so that row n's buckets are n * 2**tau
    and on.
    """
    codes = hash_codes(x, projections, hash_code_len=hash_code_len, num_hash=num_hash)  # (N, L, M)
    first = torch.arange(x.shape[0], device=x.device)[:, None, None] << hash_code_len  # (N, 1, 1)
    return (codes + first).permute(2, 0, 1).contiguous()  # (M, N, L)


def _gather_sums(to_codes: Tensor, from_codes: Tensor, values: Tensor) -> Tensor:
    """The sum of `values` over the buckets of every token on the "to" side: (M, N, L), (M, N, S),
    (N, S, V) → (N, L, V).

    A table is kept only for buckets that hold something, so memory does not depend on the length of
    the codes.
    """
    rows = values.flatten(0, 1)  # (N * S, V)
    out = values.new_zeros(to_codes[0].numel(), values.shape[-1])  # (N * L, V)
    for to_code, from_code in zip(to_codes.flatten(1), from_codes.flatten(1), strict=True):
        in_order, order = from_code.sort(stable=True)
        buckets, counts = torch.unique_consecutive(in_order, return_counts=True)
        table = F.embedding_bag(order, rows, counts.cumsum(0) - counts, mode="sum")  # (buckets, V)
        position = torch.searchsorted(buckets, to_code).clamp_(max=len(buckets) - 1)  # (N * L,)
        hit = buckets[position] == to_code
        out += table[position].mul_(hit[:, None])
    return out.view(*to_codes.shape[1:], values.shape[-1])


def _in_tiles(bucket: Tensor, num_buckets: int, size: int) -> tuple[Tensor, Tensor]:
    """Cuts sorted rows into tiles of at most `size` rows of one bucket each.

    Returns:
        The position of every row among all tiles' positions, and the bucket of every tile.
    """
    counts = torch.bincount(bucket, minlength=num_buckets)
    tiles = (counts + size - 1) // size
    in_bucket = (
        torch.arange(len(bucket), device=bucket.device) - (counts.cumsum(0) - counts)[bucket]
    )
    return (tiles.cumsum(0) - tiles)[bucket] * size + in_bucket, torch.repeat_interleave(tiles)


def _pack(rows: Tensor, positions: Tensor, num_tiles: int, size: int) -> Tensor:
    """Rows (R, D) laid into tiles (num_tiles, size, D), zero where a tile has no row."""
    tiles = rows.new_zeros(num_tiles * size, rows.shape[-1]).index_copy_(0, positions, rows)
    return tiles.view(num_tiles, size, rows.shape[-1])


def _through_buckets(to_code: Tensor, x: Tensor, from_code: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """`out[i]` = sum of `(x[i] · y[j]) z[j]` over the j in i's bucket, for one hash of one head.

    Every bucket goes through its matrix `sum of y[j] z[j]ᵀ`: linear in the tokens however they
    cluster.

    Args:
        to_code: (L,), the bucket of every row of x (L, V).
        from_code: (S,), the bucket of every row of y (S, V) and z (S, K).

    Returns:
        (L, K).
    """
    out = x.new_zeros(x.shape[0], z.shape[1])
    buckets, from_bucket = torch.unique(from_code, return_inverse=True)
    to_bucket = torch.searchsorted(buckets, to_code).clamp_(max=len(buckets) - 1)
    # queries that share a bucket with some key
    met = (buckets[to_bucket] == to_code).nonzero()[:, 0]
    to_sorted, to_order = to_bucket[met].sort()
    to_order, (from_sorted, from_order) = met[to_order], from_bucket.sort()
    size = max(8, -(-len(from_code) // max(1, len(buckets))))
    for low in range(0, len(buckets), _MATRICES_AT_ONCE):
        some = torch.tensor([low, min(low + _MATRICES_AT_ONCE, len(buckets))], device=x.device)
        number = int(some[1] - some[0])
        from_part, to_part = (
            slice(*torch.searchsorted(rows, some).tolist()) for rows in (from_sorted, to_sorted)
        )
        positions, tiles = _in_tiles(from_sorted[from_part] - low, number, size)
        y_tiles, z_tiles = (
            _pack(rows[from_order[from_part]], positions, len(tiles), size) for rows in (y, z)
        )
        matrices = x.new_zeros(number, y.shape[1], z.shape[1]).index_add_(
            0, tiles, y_tiles.mT @ z_tiles
        )  # (number, V, K)
        positions, tiles = _in_tiles(to_sorted[to_part] - low, number, size)
        x_tiles = _pack(x[to_order[to_part]], positions, len(tiles), size)
        out[to_order[to_part]] = (x_tiles @ matrices[tiles]).flatten(0, 1)[positions]
    return out


def sum_over_buckets(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
    lsh_backward: bool,
) -> Tensor:
    """The sampled `W v`, not normalized: query (..., L, K), key (..., S, K), value (..., S, V) →
    (..., L, V).

    Args:
        projections: Either form of `hashing.py`, for N = the product of the leading dimensions.
        lsh_backward: Gradients sampled with the same codes; otherwise the exact surrogate of
            `exact.py`, quadratic in time.
    """
    if cpu.usable(query, key, value):
        return cpu.sampled_forward(query, key, value, projections, hash_code_len, num_hash)
    if gpu.usable(query, key, value):
        return gpu.sampled_forward(query, key, value, projections, hash_code_len, num_hash)
    with no_autocast(query):
        q, k, v = in_working_precision(query, key, value)
        # (M, N, L), (M, N, S)
        q_codes, k_codes = (_codes(x, projections, hash_code_len, num_hash) for x in (q, k))
        out = _gather_sums(q_codes, k_codes, v) / num_hash  # (N, L, V)
    return out.view(*query.shape[:-1], value.shape[-1]).to(value.dtype)


def gradients_over_buckets(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled gradients of `sum_over_buckets` for query, key and value."""
    if cpu.usable(grad, query, key, value):
        return cpu.sampled_backward(grad, query, key, value, projections, hash_code_len, num_hash)
    if gpu.usable(grad, query, key, value):
        return gpu.sampled_backward(grad, query, key, value, projections, hash_code_len, num_hash)
    with no_autocast(query):
        g, q, k, v = in_working_precision(grad, query, key, value)
        # (M, N, L), (M, N, S)
        q_codes, k_codes = (_codes(x, projections, hash_code_len, num_hash) for x in (q, k))
        g_value = _gather_sums(k_codes, q_codes, g) / num_hash  # (N, S, V)
        g_query, g_key = torch.zeros_like(q), torch.zeros_like(k)
        for q_hash, k_hash in zip(q_codes, k_codes, strict=True):
            for n in range(q.shape[0]):
                g_query[n] += _through_buckets(q_hash[n], g[n], k_hash[n], v[n], k[n])
                g_key[n] += _through_buckets(k_hash[n], v[n], q_hash[n], g[n], q[n])
        scale = hash_code_len / (2 * num_hash)
        g_query, g_key = g_query.mul_(scale), g_key.mul_(scale)
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )


def _fake_sum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
    lsh_backward: bool,
) -> Tensor:
    return value.new_empty(*query.shape[:-1], value.shape[-1])


def _fake_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


sampled_sum_backward = operator("yoso_sampled_backward", _fake_gradients)(gradients_over_buckets)


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int, int, bool], output: Tensor
) -> None:
    *tensors, ctx.hash_code_len, ctx.num_hash, ctx.lsh_backward = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, projections = ctx.saved_tensors
    tau, num_hash = ctx.hash_code_len, ctx.num_hash
    if torch.is_grad_enabled():  # the gradient is to be differentiated again
        sampled = ctx.lsh_backward
        met = collisions(query, key, projections, tau, num_hash) if sampled else None
        grads = plain_gradients(grad, query, key, value, tau, met)
    elif ctx.lsh_backward:
        grads = sampled_sum_backward(grad, query, key, value, projections, tau, num_hash)
    else:
        grads = exact_sum_backward(grad, query, key, value, tau)
    return *grads, None, None, None, None


sampled_sum_operator = operator("yoso_sampled", _fake_sum, _save, _backward)(sum_over_buckets)


def sampled_sum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
    lsh_backward: bool,
) -> Tensor:
    """The sampled `W v`; see `sum_over_buckets`."""
    run = plain_sampled_sum if transformed() else sampled_sum_operator
    out: Tensor = run(query, key, value, projections, hash_code_len, num_hash, lsh_backward)
    return out


def plain_sampled_sum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
    lsh_backward: bool,
) -> Tensor:
    """`sum_over_buckets` in ordinary operations, with all weights in memory."""
    with no_autocast(query):
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (query, key, value))
        met = collisions(q, k, projections, hash_code_len, num_hash)  # (..., L, S)
        if lsh_backward:
            out = with_surrogate(met, q @ k.transpose(-2, -1), hash_code_len) @ v  # (..., L, V)
        else:  # the sampled sum, with the exact one's derivatives
            exact = plain_sum(q, k, v, hash_code_len)
            out = (met @ v).detach() + exact - exact.detach()
    return out.to(value.dtype)


def collisions(
    query: Tensor, key: Tensor, projections: Tensor, hash_code_len: int, num_hash: int
) -> Tensor:
    """The fraction of the hashes under which each query meets each key: (..., L, K), (..., S, K) →
    (..., L, S), with no gradient.
    """
    q_codes, k_codes = (
        hash_codes(
            x.detach().reshape(-1, *x.shape[-2:]),
            projections,
            hash_code_len=hash_code_len,
            num_hash=num_hash,
        )
        for x in (query, key)
    )  # (N, L, M), (N, S, M)
    hits = (q_codes[:, :, None, h] == k_codes[:, None, :, h] for h in range(num_hash))
    total = sum(hit.to(query.dtype) for hit in hits)  # (N, L, S)
    return cast(Tensor, total).view(*query.shape[:-1], key.shape[-2]) / num_hash


def rows_over_buckets(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> Tensor:
    """`sum_over_buckets` with every row scaled to length one, for where no gradient is needed.

    Long texts are gone through once less.
    """
    if cpu.usable(query, key, value):
        return cpu.sampled_forward(
            query, key, value, projections, hash_code_len, num_hash, normalize=True
        )
    return normalize_rows(
        sum_over_buckets(query, key, value, projections, hash_code_len, num_hash, True)
    )


def _fake_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> Tensor:
    return value.new_empty(*query.shape[:-1], value.shape[-1])


sampled_rows = operator("yoso_sampled_rows", _fake_rows)(rows_over_buckets)
