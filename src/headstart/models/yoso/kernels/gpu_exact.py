"""YOSO's exact attention on a GPU: launches the Triton kernels of gpu_exact_kernels.py.

It runs where `gpu.usable` says so; elsewhere the definitions in PyTorch do.
"""

import torch
from torch import Tensor

from headstart.models.yoso.kernels.gpu import flat, power_of_two

# Rows of the result in one program, and tokens that it takes of the other side at a time, by type
# and by whether the widest rows have more than 64 elements. They fit the shared memory of every
# GPU that the tests compile for, and the registers of sm_90 (ptxas -v reports at most 256 bytes a
# thread that do not); benchmarks/gpu.py times others.
TILES = {
    (torch.bfloat16, False): (128, 64),
    (torch.bfloat16, True): (64, 32),
    (torch.float32, False): (64, 32),
    (torch.float32, True): (32, 32),
}
WARPS, STAGES = 8, 2


def _tensors(*tensors: Tensor) -> list[Tensor]:
    """The tensors as contiguous (N, tokens, size): bfloat16 where all are, otherwise float32.

    float16 would overflow in gradients that a loss scaler has enlarged.
    """
    keep = all(x.dtype == torch.bfloat16 for x in tensors)
    return flat(*tensors, dtype=torch.bfloat16 if keep else torch.float32)


def tiles(dtype: torch.dtype, *sizes: int) -> tuple[int, int]:
    """The tile of the result and that of the other side for rows of these sizes."""
    return TILES[dtype, max(sizes) > 64]


def exact_forward(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    """`sum_in_blocks` of exact.py."""
    from headstart.models.yoso.kernels import gpu_exact_kernels as kernels

    q, k, v = _tensors(query, key, value)
    rows, queries, size = q.shape
    out = v.new_empty(rows, queries, v.shape[2])
    block, other = tiles(q.dtype, size, v.shape[2])
    # Triton launches on the current device
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        kernels.forward_kernel[(rows * -(-queries // block),)](
            q, k, v, out, queries, k.shape[1], size, v.shape[2], hash_code_len,
            BLOCK_QUERIES=block, BLOCK_KEYS=other,
            BLOCK_SIZE=power_of_two(size), BLOCK_VALUE=power_of_two(v.shape[2]),
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out.view(*query.shape[:-1], value.shape[-1]).to(value.dtype)


def exact_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, hash_code_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`gradients_in_blocks` of exact.py."""
    from headstart.models.yoso.kernels import gpu_exact_kernels as kernels

    g, q, k, v = _tensors(grad, query, key, value)
    rows, queries, size = q.shape
    keys, value_size = v.shape[1:]
    g_query, g_key, g_value = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    block, other = tiles(q.dtype, size, value_size)
    sizes = (queries, keys, size, value_size, hash_code_len)
    widths = {"BLOCK_SIZE": power_of_two(size), "BLOCK_VALUE": power_of_two(value_size)}
    widths |= {"num_warps": WARPS, "num_stages": STAGES}
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        kernels.query_gradient_kernel[(rows * -(-queries // block),)](
            g, q, k, v, g_query, *sizes, BLOCK_QUERIES=block, BLOCK_KEYS=other, **widths
        )
        kernels.key_gradient_kernel[(rows * -(-keys // block),)](
            g, q, k, v, g_key, g_value, *sizes, BLOCK_QUERIES=other, BLOCK_KEYS=block, **widths
        )
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )
