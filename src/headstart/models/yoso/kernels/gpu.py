"""YOSO's sampled attention on a GPU: launches the Triton kernels of gpu_kernels.py.

Heads and hashes are worked on in groups, so that the memory beyond inputs and outputs is bounded.
Where Triton is not installed, for float64, and for heads wider than `WIDEST`, the definitions in
PyTorch run.
"""

import functools
import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.models.yoso.hashing import dense_projections

_GROUP_BYTES = 2**28  # tables, codes and orders that are alive at once
_BLOCK_TOKENS = 512  # tokens that one program sorts
# a bucket's matrix of wider heads does not fit a processor's shared memory (64 KiB on AMD's, 99
# KiB and more on NVIDIA's)
WIDEST = 128
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported; PyTorch's GPU builds bring it along."""
    return importlib.util.find_spec("triton") is not None


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors; "cuda" is also what PyTorch calls AMD's GPUs."""
    fits = all(
        x.device.type == "cuda" and x.dtype in _DTYPES and x.shape[-1] <= WIDEST and x.numel()
        for x in tensors
    )
    return fits and has_triton()


class _Side(NamedTuple):
    """Tokens of a group of heads under a group of hashes.

    Codes and order (rows, hashes, tokens), starts (rows, hashes, C + 1).
    """

    codes: Tensor
    order: Tensor
    starts: Tensor


def power_of_two(size: int) -> int:
    """The block size for a dimension: a power of two of at least 16, which matrix products need."""
    return max(16, 1 << (size - 1).bit_length())


def one_side(
    x: Tensor, directions: Tensor, first_hash: int, some_hashes: int, num_hash: int, tau: int
) -> _Side:
    """Hashes x (rows, tokens, K) and sorts the tokens by bucket."""
    from headstart.models.yoso.kernels import gpu_kernels as kernels

    rows, tokens, size = x.shape
    blocks, buckets = -(-tokens // _BLOCK_TOKENS), 1 << tau
    codes = torch.empty(rows, some_hashes, tokens, dtype=torch.int32, device=x.device)
    grid = (rows * -(-tokens // 64), -(-some_hashes // 16))
    kernels.codes_kernel[grid](
        x, directions, codes, tokens, size, num_hash, first_hash, some_hashes, tau,
        BLOCK_TOKENS=64, BLOCK_SIZE=power_of_two(size), BLOCK_HASHES=16,
    )  # fmt: skip
    pairs, some_buckets = rows * some_hashes, min(buckets, 128)
    counts = torch.empty(pairs, buckets * blocks, dtype=torch.int32, device=x.device)  # of (C, T)
    kernels.count_kernel[(pairs, blocks, buckets // some_buckets)](
        codes,
        counts,
        tokens,
        blocks,
        buckets,
        BLOCK_TOKENS=_BLOCK_TOKENS,
        BLOCK_BUCKETS=some_buckets,
        STEP=64,
    )
    ends = counts.cumsum(1, dtype=torch.int32)
    order = torch.empty(rows, some_hashes, tokens, dtype=torch.int32, device=x.device)
    kernels.order_kernel[(pairs, blocks)](
        codes, ends - counts, order, tokens, blocks, buckets, BLOCK_TOKENS=_BLOCK_TOKENS, STEP=32
    )
    starts = (
        torch.nn.functional.pad(ends[:, blocks - 1 :: blocks], (1, 0))
        .view(rows, some_hashes, buckets + 1)
        .contiguous()
    )
    return _Side(codes, order, starts)


def _sum_over_buckets(to: _Side, come: _Side, values: Tensor, out: Tensor, scale: float) -> None:
    """out (rows, L, V) += scale * the sum over the hashes of the values (rows, S, V) in each
    token's buckets.

    Tables have the type of the values: bfloat16 ones are half as much to read, and what rounding
    adds is far below the error of sampling (docs/yoso-attention.md). Sums are kept in float32.
    """
    from headstart.models.yoso.kernels import gpu_kernels as kernels

    rows, tokens, size = values.shape
    hashes, buckets = come.codes.shape[1], come.starts.shape[2] - 1
    tables = values.new_empty(rows * hashes, buckets, size)
    kernels.bucket_sums_kernel[(rows * hashes * buckets,)](
        values,
        come.order,
        come.starts,
        tables,
        hashes,
        tokens,
        size,
        buckets,
        BLOCK_ROWS=16,
        BLOCK_SIZE=power_of_two(size),
    )
    grid = (rows * -(-out.shape[1] // 32),)
    kernels.gather_kernel[grid](
        tables,
        to.codes,
        out,
        hashes,
        out.shape[1],
        size,
        buckets,
        scale,
        BLOCK_TOKENS=32,
        BLOCK_SIZE=power_of_two(size),
    )


def _through_buckets(
    to: _Side, come: _Side, x: Tensor, y: Tensor, z: Tensor, out: Tensor, scale: float
) -> None:
    """out[i] += scale * the sum of (x[i] · y[j]) z[j] over the hashes and the j in i's bucket."""
    from headstart.models.yoso.kernels import gpu_kernels as kernels

    buckets, hashes = to.starts.shape[2] - 1, to.codes.shape[1]
    for h in range(hashes):
        kernels.through_buckets_kernel[(x.shape[0] * buckets,)](
            x,
            y,
            z,
            out,
            to.order,
            come.order,
            to.starts,
            come.starts,
            h,
            hashes,
            x.shape[1],
            y.shape[1],
            x.shape[2],
            z.shape[2],
            buckets,
            scale,
            BLOCK_ROWS=16,
            BLOCK_DOT=power_of_two(x.shape[2]),
            BLOCK_OUT=power_of_two(z.shape[2]),
        )


def _groups(rows: int, num_hash: int, bytes_of_a_pair: int) -> Iterator[tuple[slice, int, int]]:
    """Groups of heads, with their first hash and number of hashes, that keep within the bound on
    memory.
    """
    pairs = max(1, _GROUP_BYTES // bytes_of_a_pair)
    some_rows = min(rows, pairs)
    some_hashes = min(num_hash, pairs // some_rows)
    for row in range(0, rows, some_rows):
        for h in range(0, num_hash, some_hashes):
            yield slice(row, row + some_rows), h, min(some_hashes, num_hash - h)


def _bytes_of_a_pair(queries: int, keys: int, size: int, hash_code_len: int) -> int:
    blocks = -(-max(queries, keys) // _BLOCK_TOKENS)
    return 4 * ((1 << hash_code_len) * (size + 3 * blocks + 2) + 2 * (queries + keys))


def flat(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors as contiguous (N, tokens, size): of the given type, or each bfloat16 if it is and
    float32 otherwise.
    """
    return [
        x.detach()
        .reshape(-1, *x.shape[-2:])
        .to(dtype or (x.dtype if x.dtype == torch.bfloat16 else torch.float32))
        .contiguous()
        for x in tensors
    ]


def sampled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> Tensor:
    """`sampled_sum` of sampled.py."""
    q, k, v = flat(query, key, value)
    directions = (
        dense_projections(projections, q.shape[-1], hash_code_len, num_hash).float().contiguous()
    )
    out = q.new_zeros(*q.shape[:2], v.shape[2], dtype=torch.float32)
    # Triton launches on the current device
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        for n, first, some in _groups(
            q.shape[0],
            num_hash,
            _bytes_of_a_pair(q.shape[1], k.shape[1], v.shape[2], hash_code_len),
        ):
            q_side, k_side = (
                one_side(x[n], directions[n], first, some, num_hash, hash_code_len) for x in (q, k)
            )
            _sum_over_buckets(q_side, k_side, v[n], out[n], 1 / num_hash)
    return out.view(*query.shape[:-1], value.shape[-1]).to(value.dtype)


def sampled_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sampled_sum_backward` of sampled.py."""
    g, q, k, v = flat(grad, query, key, value)
    directions = (
        dense_projections(projections, q.shape[-1], hash_code_len, num_hash).float().contiguous()
    )
    g_query, g_key, g_value = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    scale = hash_code_len / (2 * num_hash)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        for n, first, some in _groups(
            q.shape[0],
            num_hash,
            _bytes_of_a_pair(q.shape[1], k.shape[1], v.shape[2], hash_code_len),
        ):
            q_side, k_side = (
                one_side(x[n], directions[n], first, some, num_hash, hash_code_len) for x in (q, k)
            )
            _sum_over_buckets(k_side, q_side, g[n], g_value[n], 1 / num_hash)
            _through_buckets(q_side, k_side, g[n], v[n], k[n], g_query[n], scale)
            _through_buckets(k_side, q_side, v[n], g[n], q[n], g_key[n], scale)
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )
