"""Triton kernels for sampled attention, for NVIDIA and AMD GPUs. Imported by gpu.py where Triton is
there.

Letters as in sampled.py. R counts pairs of a head and a hash that are worked on together, C = 2 **
tau buckets, T blocks of tokens. Tokens of a pair are sorted by bucket with a counting sort, so that
sums over buckets need no atomics and come out the same every time. All tensors are contiguous;
queries, keys, values, gradients and tables may be bfloat16, sums are kept in float32. Block sizes
are powers of two, at least 16 where a matrix product needs it. Programs are numbered head by head
in the first axis of a grid, so that a head's tables stay in the cache, and because CUDA's other
axes end at 65,535.
"""

# Arguments of kernels have Triton's types, not Python's.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def codes_kernel(
    x,
    directions,
    codes,
    tokens,
    size,
    num_hash,
    first_hash,
    some_hashes,
    tau: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HASHES: tl.constexpr,
):
    """codes (N, some_hashes, L) of x (N, L, K) under directions (N, K, M * tau).

    A matrix product for every bit.
    """
    blocks = tl.cdiv(tokens, BLOCK_TOKENS)
    row, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    element = tl.arange(0, BLOCK_SIZE)
    hashes = tl.program_id(1) * BLOCK_HASHES + tl.arange(0, BLOCK_HASHES)
    x_place = (row.to(tl.int64) * tokens + token[:, None]) * size + element[None, :]
    rows = tl.load(
        x + x_place, mask=(token[:, None] < tokens) & (element[None, :] < size), other=0.0
    ).to(tl.float32)
    code = tl.zeros((BLOCK_TOKENS, BLOCK_HASHES), tl.int32)
    column = (row.to(tl.int64) * size + element[:, None]) * (num_hash * tau) + (
        first_hash + hashes[None, :]
    ) * tau
    inside = (element[:, None] < size) & (hashes[None, :] < some_hashes)
    for bit in range(tau):  # unrolled, it takes ten times as long to compile
        planes = tl.load(directions + column + bit, mask=inside, other=0.0)
        side = tl.dot(rows, planes, input_precision="ieee")  # (BLOCK_TOKENS, BLOCK_HASHES)
        code += (side > 0.0).to(tl.int32) << bit
    position = (row.to(tl.int64) * some_hashes + hashes[None, :]) * tokens + token[:, None]
    tl.store(
        codes + position, code, mask=(token[:, None] < tokens) & (hashes[None, :] < some_hashes)
    )


@triton.jit
def count_kernel(
    codes,
    counts,
    tokens,
    num_blocks,
    buckets,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_BUCKETS: tl.constexpr,
    STEP: tl.constexpr,
):
    """counts (R, C, T) of every code in every block of tokens of codes (R, L)."""
    pair, block = tl.program_id(0), tl.program_id(1)
    bucket = tl.program_id(2) * BLOCK_BUCKETS + tl.arange(0, BLOCK_BUCKETS)
    count = tl.zeros((BLOCK_BUCKETS,), tl.int32)
    for start in range(0, BLOCK_TOKENS, STEP):
        token = block * BLOCK_TOKENS + start + tl.arange(0, STEP)
        code = tl.load(codes + pair.to(tl.int64) * tokens + token, mask=token < tokens, other=-1)
        count += tl.sum((code[None, :] == bucket[:, None]).to(tl.int32), axis=1)
    position = (pair.to(tl.int64) * buckets + bucket) * num_blocks + block
    tl.store(counts + position, count, mask=bucket < buckets)


@triton.jit
def order_kernel(
    codes,
    firsts,
    order,
    tokens,
    num_blocks,
    buckets,
    BLOCK_TOKENS: tl.constexpr,
    STEP: tl.constexpr,
):
    """order (R, L).

    Tokens by bucket, each at its bucket's and block's first position (R, C, T) plus its rank among
    the block's equals.
    """
    pair, block = tl.program_id(0), tl.program_id(1)
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    code = tl.load(codes + pair.to(tl.int64) * tokens + token, mask=token < tokens, other=0)
    rank = tl.zeros((BLOCK_TOKENS,), tl.int32)
    for start in range(0, BLOCK_TOKENS, STEP):
        earlier = block * BLOCK_TOKENS + start + tl.arange(0, STEP)
        other = tl.load(
            codes + pair.to(tl.int64) * tokens + earlier, mask=earlier < tokens, other=-1
        )
        rank += tl.sum(
            ((other[None, :] == code[:, None]) & (earlier[None, :] < token[:, None])).to(tl.int32),
            axis=1,
        )
    first = tl.load(
        firsts + (pair.to(tl.int64) * buckets + code) * num_blocks + block,
        mask=token < tokens,
        other=0,
    )
    tl.store(order + pair.to(tl.int64) * tokens + first + rank, token, mask=token < tokens)


@triton.jit
def bucket_sums_kernel(values, order, starts, tables, some_hashes, tokens, size, buckets,
                       BLOCK_ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr):  # fmt: skip
    """tables (R, C, V): the sum of the value rows (N, S, V) of every bucket."""
    pair, bucket = tl.program_id(0).to(tl.int64) // buckets, tl.program_id(0) % buckets
    row = pair // some_hashes
    element = tl.arange(0, BLOCK_SIZE)
    start = tl.load(starts + pair * (buckets + 1) + bucket)
    end = tl.load(starts + pair * (buckets + 1) + bucket + 1)
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    for at in range(start, end, BLOCK_ROWS):
        position = at + tl.arange(0, BLOCK_ROWS)
        token = tl.load(order + pair * tokens + position, mask=position < end, other=0)
        inside = (position[:, None] < end) & (element[None, :] < size)
        total += tl.sum(
            tl.load(
                values + (row * tokens + token[:, None]) * size + element[None, :],
                mask=inside,
                other=0.0,
            ).to(tl.float32),
            axis=0,
        )
    tl.store(tables + (pair * buckets + bucket) * size + element, total, mask=element < size)


@triton.jit
def gather_kernel(
    tables,
    codes,
    out,
    some_hashes,
    tokens,
    size,
    buckets,
    scale,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """out (N, L, V) += scale * the sum over the hashes of the table rows (R, C, V) that codes (N,
    some_hashes, L) name.
    """
    blocks = tl.cdiv(tokens, BLOCK_TOKENS)
    row, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    element = tl.arange(0, BLOCK_SIZE)
    inside = (token[:, None] < tokens) & (element[None, :] < size)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_SIZE), tl.float32)
    for h in range(some_hashes):
        pair = row * some_hashes + h
        code = tl.load(codes + pair * tokens + token, mask=token < tokens, other=0)
        total += tl.load(
            tables + (pair * buckets + code[:, None]) * size + element[None, :],
            mask=inside,
            other=0.0,
        )
    position = out + (row * tokens + token[:, None]) * size + element[None, :]
    tl.store(position, tl.load(position, mask=inside, other=0.0) + total * scale, mask=inside)


@triton.jit
def _rows(x, row, order, position, end, tokens, size, BLOCK_SIZE: tl.constexpr):
    """Rows (BLOCK_ROWS, BLOCK_SIZE) of x (N, tokens, size) at positions of the sorted order, and
    their addresses' offsets and mask.
    """
    element = tl.arange(0, BLOCK_SIZE)
    token = tl.load(order + position, mask=position < end, other=0)
    inside = (position[:, None] < end) & (element[None, :] < size)
    offsets = (row * tokens + token[:, None]) * size + element[None, :]
    return tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32), offsets, inside


@triton.jit
def through_buckets_kernel(
    x,
    y,
    z,
    out,
    x_order,
    y_order,
    x_starts,
    y_starts,
    h,
    some_hashes,
    x_tokens,
    y_tokens,
    dot_size,
    out_size,
    buckets,
    scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DOT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """out[i] += scale * sum of (x[i] · y[j]) z[j] over the j in i's bucket, for hash h of all
    heads.

    x (N, L, V), y (N, S, V), z (N, S, K), out (N, L, K). Small buckets go pair by pair, large ones
    through the matrix sum of y zᵀ, whichever is less work. In one hash every token is in one
    bucket, so no two programs write to the same row.
    """
    row, bucket = tl.program_id(0).to(tl.int64) // buckets, tl.program_id(0) % buckets
    pair = row * some_hashes + h
    x_start = tl.load(x_starts + pair * (buckets + 1) + bucket)
    x_end = tl.load(x_starts + pair * (buckets + 1) + bucket + 1)
    y_start = tl.load(y_starts + pair * (buckets + 1) + bucket)
    y_end = tl.load(y_starts + pair * (buckets + 1) + bucket + 1)
    x_order += pair * x_tokens
    y_order += pair * y_tokens
    lefts, rights = (x_end - x_start).to(tl.int64), (y_end - y_start).to(tl.int64)
    few = lefts * rights * (dot_size + out_size) <= (lefts + rights) * dot_size * out_size
    lane = tl.arange(0, BLOCK_ROWS)
    if few:
        for i in range(x_start, x_end, BLOCK_ROWS):
            left, _, _ = _rows(x, row, x_order, i + lane, x_end, x_tokens, dot_size, BLOCK_DOT)
            total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
            for j in range(y_start, y_end, BLOCK_ROWS):
                right, _, _ = _rows(y, row, y_order, j + lane, y_end, y_tokens, dot_size, BLOCK_DOT)
                onto, _, _ = _rows(z, row, y_order, j + lane, y_end, y_tokens, out_size, BLOCK_OUT)
                dots = tl.dot(left, tl.trans(right), input_precision="ieee")
                total += tl.dot(dots, onto, input_precision="ieee")
            before, position, inside = _rows(
                out, row, x_order, i + lane, x_end, x_tokens, out_size, BLOCK_OUT
            )
            tl.store(out + position, before + total * scale, mask=inside)
    else:
        matrix = tl.zeros((BLOCK_DOT, BLOCK_OUT), tl.float32)
        for j in range(y_start, y_end, BLOCK_ROWS):
            right, _, _ = _rows(y, row, y_order, j + lane, y_end, y_tokens, dot_size, BLOCK_DOT)
            onto, _, _ = _rows(z, row, y_order, j + lane, y_end, y_tokens, out_size, BLOCK_OUT)
            matrix += tl.dot(tl.trans(right), onto, input_precision="ieee")
        for i in range(x_start, x_end, BLOCK_ROWS):
            left, _, _ = _rows(x, row, x_order, i + lane, x_end, x_tokens, dot_size, BLOCK_DOT)
            before, position, inside = _rows(
                out, row, x_order, i + lane, x_end, x_tokens, out_size, BLOCK_OUT
            )
            tl.store(
                out + position,
                before + tl.dot(left, matrix, input_precision="ieee") * scale,
                mask=inside,
            )
