"""Locality-sensitive hash codes of queries and keys: which random hyperplanes' positive sides a
vector lies on.

Legend: N rows of heads (texts × heads), L tokens, K head size, M hashes, `tau` = hash_code_len bits
    in a hash, P transforms.

Bit b of hash h of a vector x is `x · projections[:, h * tau + b] > 0`. The projections are either

- dense: Gaussian, (N, K, M * tau), independent of each other; or
- fast: signs, (N, 3, P, D) for D = a power of two: x, padded with zeros to D, goes through `H D3 H
  D2 H D1`, where H is the Hadamard matrix and D1, D2, D3 the random signs. Every such transform
  yields `D // tau` hashes, so P transforms are needed. Bits of one transform are orthogonal instead
  of independent, which lowers the chance of a collision a little.
"""

import torch
from torch import Tensor

from headstart.errors import InputError
from headstart.models.yoso.operators import operator

MAX_HASH_CODE_LEN = 16  # a code fits into 16 bits
_MIN_TRANSFORM = 32  # shorter heads are padded to this, as in the authors' published behavior
_TOKENS_AT_ONCE = 4096  # bounds the projections that are alive while codes are computed


def transform_size(head_size: int, hash_code_len: int) -> int:
    """D, the size of the Hadamard transform.

    A power of two that holds the head and at least one code.
    """
    return max(_MIN_TRANSFORM, 1 << (max(head_size, hash_code_len) - 1).bit_length())


def num_transforms(size: int, hash_code_len: int, num_hash: int) -> int:
    """P, the transforms of one size that are needed for `num_hash` hashes."""
    return -(-num_hash // (size // hash_code_len))


def _shape(
    rows: int, head_size: int, hash_code_len: int, num_hash: int, fast: bool
) -> tuple[int, ...]:
    """The shape of projections of either form."""
    if not fast:
        return rows, head_size, num_hash * hash_code_len
    size = transform_size(head_size, hash_code_len)
    return rows, 3, num_transforms(size, hash_code_len, num_hash), size


def _random(
    shape: tuple[int, ...], fast: bool, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    if not fast:
        return torch.randn(shape, device=device, generator=generator, dtype=torch.float32)
    signs: Tensor = (
        torch.randint(0, 2, shape, device=device, generator=generator, dtype=torch.int8) * 2 - 1
    )
    return signs


def _seeded(
    rows: int, head_size: int, hash_code_len: int, num_hash: int, use_fast_hash: bool, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = _shape(rows, head_size, hash_code_len, num_hash, use_fast_hash)
    return _random(shape, use_fast_hash, torch.device("cpu"), generator)


def _fake_seeded(
    rows: int, head_size: int, hash_code_len: int, num_hash: int, use_fast_hash: bool, seed: int
) -> Tensor:
    # no random numbers here: `rows` is a symbol where the number of texts is left open
    shape = _shape(rows, head_size, hash_code_len, num_hash, use_fast_hash)
    return torch.empty(shape, dtype=torch.int8 if use_fast_hash else torch.float32)


_seeded_projections = operator("yoso_projections", _fake_seeded)(_seeded)


def random_projections(
    rows: int,
    head_size: int,
    *,
    hash_code_len: int,
    num_hash: int,
    use_fast_hash: bool = True,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fresh projections for `rows` = texts × heads, see the head of this file for their two forms.

    Args:
        generator: Source of random numbers, on `device`.
        seed: Gives the same projections on every device, also inside `torch.compile`. Neither:
            PyTorch's own generator.

    Returns:
        Signs as int8 of shape (rows, 3, P, D), or Gaussian numbers as float32 of shape (rows,
        head_size, num_hash * hash_code_len).
    """
    check_hash(hash_code_len, num_hash)
    if generator is not None and seed is not None:
        raise InputError(f"both a generator and seed={seed} were given; give one of them")
    if seed is not None:
        projections: Tensor = _seeded_projections(
            rows, head_size, hash_code_len, num_hash, use_fast_hash, seed
        )
        return projections.to(device)
    return _random(
        _shape(rows, head_size, hash_code_len, num_hash, use_fast_hash),
        use_fast_hash,
        torch.device(device),
        generator,
    )


def check_hash(hash_code_len: int, num_hash: int) -> None:
    """Refuses hashes that cannot be computed."""
    if not 1 <= hash_code_len <= MAX_HASH_CODE_LEN:
        raise InputError(
            f"hash_code_len={hash_code_len}; sampling needs 1 to {MAX_HASH_CODE_LEN} bits"
        )
    if num_hash < 1:
        raise InputError(f"num_hash={num_hash}; sampling needs at least one hash")


def check_projections(
    projections: Tensor, rows: int, head_size: int, hash_code_len: int, num_hash: int
) -> None:
    """Refuses projections whose shape does not fit the queries and keys."""
    shape = tuple(projections.shape)
    if projections.is_floating_point():
        expected = (rows, head_size, num_hash * hash_code_len)
        if shape != expected:
            raise InputError(
                f"dense projections have shape {shape}, expected {expected}: (texts * heads, head"
                " size, bits of all hashes)"
            )
        return
    size = shape[-1] if shape else 0
    fits = size >= max(head_size, hash_code_len) and size & (size - 1) == 0
    signs = (rows, 3, num_transforms(size, hash_code_len, num_hash) if fits else 1, size)
    if not fits or shape != signs:
        wanted = (
            str(signs)
            if fits
            else (
                f"({rows}, 3, P, D) with D a power of two of at least"
                f" {max(head_size, hash_code_len)}"
            )
        )
        raise InputError(
            f"signs of the fast hash have shape {shape}, expected {wanted}: (texts * heads, 3,"
            " transforms, transform size)"
        )


def hadamard(x: Tensor) -> Tensor:
    """The unnormalized Walsh-Hadamard transform of the last dimension, whose size is a power of
    two.
    """
    shape, size = x.shape, x.shape[-1]
    step = 1
    while step < size:
        a, b = x.reshape(*shape[:-1], size // (2 * step), 2, step).unbind(-2)
        x = torch.stack((a + b, a - b), dim=-2).reshape(shape)
        step *= 2
    return x


def dense_projections(
    projections: Tensor, head_size: int, hash_code_len: int, num_hash: int
) -> Tensor:
    """The dense matrix that gives the same codes as the signs of the fast hash: (N, K, M * tau).

    Returned as they are when they are dense already.
    """
    if projections.is_floating_point():
        return projections
    size = projections.shape[-1]
    signs = projections.to(torch.float32)[:, :, :, None]  # (N, 3, P, 1, D)
    # (K, D): what happens to each unit vector
    basis = torch.eye(head_size, size, dtype=torch.float32, device=projections.device)
    for step in range(3):
        basis = hadamard(basis * signs[:, step]) / size**0.5  # (N, P, K, D)
    used = size // hash_code_len * hash_code_len
    columns = basis[..., :used].transpose(1, 2).flatten(2)  # (N, K, P * used)
    return columns[..., : num_hash * hash_code_len].contiguous()  # (N, K, M * tau)


def hash_codes(x: Tensor, projections: Tensor, *, hash_code_len: int, num_hash: int) -> Tensor:
    """Codes 0 … 2**hash_code_len - 1 of every token under every hash.

    Args:
        x: (N, L, K), of any length: only the direction of a vector counts.
        projections: From `random_projections`, either form.

    Returns:
        int32 of shape (N, L, num_hash).
    """
    # (N, K, M * tau)
    directions = dense_projections(projections, x.shape[-1], hash_code_len, num_hash).to(x.dtype)
    bit_values = 2 ** torch.arange(hash_code_len, dtype=torch.int32, device=x.device)
    codes = []
    for some in torch.split(x, _TOKENS_AT_ONCE, dim=1):
        # (N, some, M, tau)
        positive = (some @ directions).view(*some.shape[:-1], num_hash, hash_code_len) > 0
        # (N, some, M)
        codes.append((positive.to(torch.int32) * bit_values).sum(-1, dtype=torch.int32))
    return torch.cat(codes, dim=1)
