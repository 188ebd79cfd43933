"""Triton kernels for exact attention, for NVIDIA and AMD GPUs.

gpu_exact.py imports this module where Triton is installed.

Letters as in exact.py. One program computes a tile of rows of the result and goes over the other
side tile by tile, so that no weight is ever written to memory, no sum needs atomics, and results
are the same every time. Products of bfloat16 tiles run on tensor cores with sums in float32;
float32 tiles are multiplied in full precision. Rows of queries and keys have length one already,
and values of masked keys are zero.

All tensors are contiguous and of one type; block sizes are powers of two of at least 16.
"""

# Arguments of kernels have Triton's types, not Python's.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def collision_probability(cosine, tau: tl.constexpr):
    """(1 - arccos(cosine) / pi) ** tau in float32; rounding may have pushed cosines beyond 1.

    arccos(x) / pi is sqrt(1 - x) times a polynomial for x from 0 to 1; the coefficients are those
    of exact.h (benchmarks/yoso_attention.py --fit), within 3e-8 before rounding.
    """
    x = tl.minimum(tl.abs(cosine), 1.0)
    polynomial = 0.499999972 + x * (
        -0.068306465
        + x
        * (
            0.0282773402
            + x * (-0.0156600279 + x * (0.00883720411 + x * (-0.00382079363 + x * 0.000831334389)))
        )
    )
    angle = tl.sqrt(1.0 - x) * polynomial
    base = tl.where(cosine < 0.0, angle, 1.0 - angle)
    power = tl.full(base.shape, 1.0, tl.float32)
    for bit in tl.static_range(31):
        if (tau >> bit) & 1:
            power *= base
        if tau >> (bit + 1):
            base *= base
    return power


@triton.jit
def _offsets(row, first, tokens, size, BLOCK_TOKENS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where tokens from `first` on of head `row` of a tensor (N, tokens, size) are, and which
    exist.
    """
    token, element = first + tl.arange(0, BLOCK_TOKENS), tl.arange(0, BLOCK_SIZE)
    inside = (token[:, None] < tokens) & (element[None, :] < size)
    return (row * tokens + token[:, None]) * size + element[None, :], inside


@triton.jit
def _load(x, row, first, tokens, size, BLOCK_TOKENS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """A tile of x, zero beyond its end."""
    offsets, inside = _offsets(row, first, tokens, size, BLOCK_TOKENS, BLOCK_SIZE)
    return tl.load(x + offsets, mask=inside, other=0.0)


@triton.jit
def _store(x, tile, row, first, tokens, size, BLOCK_TOKENS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Writes a tile to x, in the type of x."""
    offsets, inside = _offsets(row, first, tokens, size, BLOCK_TOKENS, BLOCK_SIZE)
    tl.store(x + offsets, tile, mask=inside)


@triton.jit
def _product(x, y):
    """The matrix product x yᵀ."""
    return tl.dot(x, tl.trans(y), input_precision="ieee")


@triton.jit
def _weighted(weights, x):
    """The matrix product of float32 weights and a tile, in the tile's type, with float32 sums."""
    return tl.dot(weights.to(x.dtype), x, input_precision="ieee")


@triton.jit
def forward_kernel(
    query, key, value, out, queries, keys, size, value_size,
    tau: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """out (N, L, V) = W v for query (N, L, K), key (N, S, K), value (N, S, V)."""
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    row, i = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks * BLOCK_QUERIES
    q = _load(query, row, i, queries, size, BLOCK_QUERIES, BLOCK_SIZE)
    total = tl.zeros((BLOCK_QUERIES, BLOCK_VALUE), tl.float32)
    for j in range(0, keys, BLOCK_KEYS):
        k = _load(key, row, j, keys, size, BLOCK_KEYS, BLOCK_SIZE)
        v = _load(value, row, j, keys, value_size, BLOCK_KEYS, BLOCK_VALUE)
        total += _weighted(collision_probability(_product(q, k), tau), v)
    _store(out, total, row, i, queries, value_size, BLOCK_QUERIES, BLOCK_VALUE)


@triton.jit
def query_gradient_kernel(
    grad, query, key, value, g_query, queries, keys, size, value_size,
    tau: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """g_query (N, L, K) = tau / 2 ((grad vᵀ) ∘ W) k for grad (N, L, V)."""
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    row, i = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks * BLOCK_QUERIES
    q = _load(query, row, i, queries, size, BLOCK_QUERIES, BLOCK_SIZE)
    g = _load(grad, row, i, queries, value_size, BLOCK_QUERIES, BLOCK_VALUE)
    total = tl.zeros((BLOCK_QUERIES, BLOCK_SIZE), tl.float32)
    for j in range(0, keys, BLOCK_KEYS):
        k = _load(key, row, j, keys, size, BLOCK_KEYS, BLOCK_SIZE)
        v = _load(value, row, j, keys, value_size, BLOCK_KEYS, BLOCK_VALUE)
        weights = collision_probability(_product(q, k), tau)
        total += _weighted(_product(g, v) * weights, k)
    _store(g_query, total * (tau / 2), row, i, queries, size, BLOCK_QUERIES, BLOCK_SIZE)


@triton.jit
def key_gradient_kernel(
    grad, query, key, value, g_key, g_value, queries, keys, size, value_size,
    tau: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """g_value (N, S, V) = Wᵀ grad, and g_key (N, S, K) = tau / 2 ((grad vᵀ) ∘ W)ᵀ q."""
    blocks = tl.cdiv(keys, BLOCK_KEYS)
    row, j = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks * BLOCK_KEYS
    k = _load(key, row, j, keys, size, BLOCK_KEYS, BLOCK_SIZE)
    v = _load(value, row, j, keys, value_size, BLOCK_KEYS, BLOCK_VALUE)
    key_total = tl.zeros((BLOCK_KEYS, BLOCK_SIZE), tl.float32)
    value_total = tl.zeros((BLOCK_KEYS, BLOCK_VALUE), tl.float32)
    for i in range(0, queries, BLOCK_QUERIES):
        q = _load(query, row, i, queries, size, BLOCK_QUERIES, BLOCK_SIZE)
        g = _load(grad, row, i, queries, value_size, BLOCK_QUERIES, BLOCK_VALUE)
        weights = collision_probability(_product(k, q), tau)  # rows are keys
        value_total += _weighted(weights, g)
        key_total += _weighted(_product(v, g) * weights, q)
    _store(g_key, key_total * (tau / 2), row, j, keys, size, BLOCK_KEYS, BLOCK_SIZE)
    _store(g_value, value_total, row, j, keys, value_size, BLOCK_KEYS, BLOCK_VALUE)
