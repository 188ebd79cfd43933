"""YOSO's attention: exact in expectation, or sampled with hashes at a cost that is linear in the
text's length.

Legend: B texts, A heads, L tokens, K head size, M hashes. Masks are (B, L) and 1 keeps: a masked
    key is met by no query, a masked
query gets zeros.

Both kinds compare unit queries and keys, sum the values by the chance of (or by actual) hash
collisions, and scale every row of every head to length one. `exact_attention` costs L²;
`sampled_attention` costs L · M and is noisy: its error falls as `1 / sqrt(M)`
(docs/yoso-attention.md has the table). Below about 512 tokens the exact one is the better choice.

Source: Zeng, Xiong, Ravi, Acharya, Fung, Singh, "You Only Sample (Almost) Once: Linear Cost
    Self-Attention Via Bernoulli
Sampling", ICML 2021.
"""

import math
from typing import Any

import torch
from torch import Tensor

from headstart.errors import InputError
from headstart.models.yoso.exact import (
    collision_probability,
    exact_sum,
    no_autocast,
    with_surrogate,
)
from headstart.models.yoso.hashing import check_hash, check_projections, random_projections
from headstart.models.yoso.operators import transformed
from headstart.models.yoso.rows import normalize_rows, row_scale
from headstart.models.yoso.sampled import collisions, sampled_rows, sampled_sum

__all__ = [
    "SAMPLING_PAYS_FROM",
    "choose_num_hash",
    "random_projections",
    "exact_attention",
    "exact_attention_plain",
    "exact_weights",
    "measure_num_hash",
    "normalize_rows",
    "sampled_attention",
    "sampled_weights",
    "weighted_values",
]

# Tokens below which `exact_attention` is as fast and has no sampling error.
SAMPLING_PAYS_FROM = 512

# Error of one hash of 9 bits by length, on texts whose tokens form 16 clusters:
# benchmarks/yoso_attention.py --accuracy measures it.
_ERROR_LIMIT, _ERROR_OF_SHORT_TEXTS = 0.4, 7.2


def exact_weights(
    query: Tensor, key: Tensor, *, hash_code_len: int, mask: Tensor | None = None
) -> Tensor:
    """The weights of exact attention, all at once, with the paper's gradient.

    They are collision probabilities, so a row does not add up to one.

    Args:
        query: (B, A, L, K), not normalized.
        key: (B, A, L, K).
        hash_code_len: The power tau of the collision probability of one bit.
        mask: (B, L), 1 keeps.

    Returns:
        (B, A, L, L) from 0 to 1, rows are queries.
    """
    cosine = _similarity(query, key)  # (B, A, L, L)
    weights = collision_probability(cosine.detach(), hash_code_len)
    return _only_seen(with_surrogate(weights, cosine, hash_code_len), mask).to(query.dtype)


def sampled_weights(
    query: Tensor,
    key: Tensor,
    *,
    hash_code_len: int,
    num_hash: int,
    use_fast_hash: bool = True,
    lsh_backward: bool = True,
    mask: Tensor | None = None,
    seed: int | None = None,
    projections: Tensor | None = None,
) -> Tensor:
    """The weights of `sampled_attention`, all at once: the fraction of the hashes under which a
    query meets a key.

    Args:
        query: (B, A, L, K), not normalized.
        key: (B, A, L, K).
        hash_code_len: As all that follows, see `sampled_attention`.
        num_hash: Hashes.
        use_fast_hash: Hadamard transforms, or Gaussian projections.
        lsh_backward: Whether the gradients of queries and keys see the collisions, or their
            probabilities.
        mask: (B, L), 1 keeps.
        seed: Source of the projections.
        projections: Ready-made ones.

    Returns:
        (B, A, L, L) from 0 to 1, rows are queries.
    """
    sizes: dict[str, Any] = {"hash_code_len": hash_code_len, "num_hash": num_hash}
    if projections is None:
        projections = _random(query, use_fast_hash=use_fast_hash, seed=seed, **sizes)
    cosine = _similarity(query, key)  # (B, A, L, L)
    met = collisions(_wide(query), _wide(key), projections, hash_code_len, num_hash)
    if lsh_backward:
        weights = with_surrogate(met, cosine, hash_code_len)
    else:  # the derivative is that of the probabilities
        expected = collision_probability(cosine.detach(), hash_code_len)
        weights = met + with_surrogate(expected, cosine, hash_code_len) - expected
    return _only_seen(weights, mask).to(query.dtype)


def weighted_values(weights: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention of given weights.

    Args:
        weights: (B, A, L, L), rows are queries.
        value: (B, A, L, K).
        mask: (B, L), 1 keeps.

    Returns:
        (B, A, L, K), every row of length one, or zero where it is masked or met no key.
    """
    keep, seen = _hide(mask, value)
    with no_autocast(value):
        y = _wide(weights) @ _wide(seen)  # (B, A, L, K)
    return normalize_rows(y if keep is None else y.masked_fill(~keep, 0.0)).to(value.dtype)


def exact_attention_plain(
    query: Tensor, key: Tensor, value: Tensor, *, hash_code_len: int, mask: Tensor | None = None
) -> Tensor:
    """The definition of `exact_attention`, with all L × L weights in memory and the surrogate
    gradient written out.

    Its operations are ordinary ones, so it can be exported to formats that know nothing of ours.
    `exact_attention` and `sampled_attention` run as such definitions under `torch.func`, in
    forward-mode differentiation, in traces, and for derivatives of higher order.
    """
    weights = exact_weights(query, key, hash_code_len=hash_code_len, mask=mask)
    return weighted_values(weights, value, mask)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: half precision is only for storage."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _similarity(query: Tensor, key: Tensor) -> Tensor:
    """Cosines of queries and keys, (B, A, L, L)."""
    with no_autocast(query):
        return normalize_rows(_wide(query)) @ normalize_rows(_wide(key)).transpose(2, 3)


def _random(
    query: Tensor, seed: int | None, generator: torch.Generator | None = None, **sizes: Any
) -> Tensor:
    """Projections for the heads of `query`; with a seed the same for every text, so that a text's
    result does not depend on its position in a batch.
    """
    texts, heads, _, size = query.shape
    if seed is None:
        return random_projections(
            texts * heads, size, generator=generator, device=query.device, **sizes
        )
    projections = random_projections(
        heads, size, generator=generator, seed=seed, device=query.device, **sizes
    )
    return projections.repeat(texts, *[1] * (projections.dim() - 1))


def _only_seen(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Weights (B, A, L, L) that are zero where the query or the key is masked."""
    if mask is None:
        return weights
    keep = mask[:, None, :, None].bool() & mask[:, None, None, :].bool()  # (B, 1, L, L)
    return weights.masked_fill(~keep, 0.0)


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, *, hash_code_len: int, mask: Tensor | None = None
) -> Tensor:
    """Attention with the expected collisions as weights, never holding more than a block of them.

    Args:
        query: (B, A, L, K), not normalized. float32, float64, or half precision (sums are then kept
            in float32).
        key: (B, A, L, K).
        value: (B, A, L, K).
        hash_code_len: The power tau of the collision probability of one bit.
        mask: (B, L), 1 keeps.

    Returns:
        (B, A, L, K), every row of length one, or zero where it is masked.
    """
    _check(query, key, value, mask)
    if hash_code_len < 1:
        raise InputError(f"hash_code_len={hash_code_len}; expected an integer of at least 1")
    query, key, value = _one_dtype(query, key, value)
    keep, value = _hide(mask, value)
    # (B, A, L, K)
    out = exact_sum(normalize_rows(query), normalize_rows(key), value, hash_code_len)
    return _finish(out, keep)


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    hash_code_len: int,
    num_hash: int,
    use_fast_hash: bool = True,
    lsh_backward: bool = True,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    projections: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Attention over the tokens that fall into the same hash buckets; time and memory are linear in
    L.

    Args:
        query: (B, A, L, K), not normalized. float32, float64, or half precision (sums are then kept
            in float32).
        key: (B, A, L, K).
        value: (B, A, L, K).
        hash_code_len: Bits of a hash, 1 to 16.
        num_hash: Hashes; more are slower and more accurate.
        use_fast_hash: Random signs and Hadamard transforms instead of Gaussian projections: faster,
            slightly biased low.
        lsh_backward: Gradients sampled with the same codes; otherwise the exact surrogate gradient,
            quadratic in time, linear in memory.
        mask: (B, L), 1 keeps.
        generator: Source of the projections, on the queries' device.
        seed: Gives the same projections on every device, at each call and for every text.
        projections: Ready-made ones from `random_projections(B * A, …)`, row `b * A + a` for head a
            of text b. They decide the hash kind.
        normalize: Scales queries and keys to length one. Codes depend on directions only, so this
            is about gradients: without it they are those for the queries and keys as given.

    Returns:
        (B, A, L, K), every row of length one, or zero where it is masked or met no key.
    """
    _check(query, key, value, mask)
    check_hash(hash_code_len, num_hash)
    query, key, value = _one_dtype(query, key, value)
    sizes: dict[str, Any] = {"hash_code_len": hash_code_len, "num_hash": num_hash}
    if projections is None:
        projections = _random(
            query, seed=seed, generator=generator, use_fast_hash=use_fast_hash, **sizes
        )
    elif generator is not None or seed is not None:
        raise InputError("projections were given and a generator or seed too; give one of them")
    rows = query.shape[0] * query.shape[1]
    check_projections(projections, rows, query.shape[-1], hash_code_len, num_hash)
    rows_alone = not (torch.is_grad_enabled() or transformed())
    if normalize and not rows_alone:  # only gradients see the lengths of queries and keys
        query, key = normalize_rows(query), normalize_rows(key)
    keep, value = _hide(mask, value)
    if rows_alone:
        # (B, A, L, K)
        out: Tensor = sampled_rows(query, key, value, projections, hash_code_len, num_hash)
        return out if keep is None else out.masked_fill_(~keep, 0.0)
    # (B, A, L, K)
    out = sampled_sum(query, key, value, projections, hash_code_len, num_hash, lsh_backward)
    return _finish(out, keep)


def choose_num_hash(target_error: float, length: int) -> int:
    """Hashes that bring the mean relative error of an attention row down to `target_error`, for
    texts of `length` tokens.

    A rule of thumb for 9 bits and tokens that form 16 clusters, made without looking at the data.
    What the data needs differs much: at 4,096 tokens and an error of 0.1 the rule gives 27 hashes
    where tight clusters (spread 0.3 of their distance from the origin) need 12, spread 0.6 needs
    37, and 1.0 needs 128. `measure_num_hash` finds the number for given tensors: prefer it where
    a few texts of the kind are at hand.

    Args:
        target_error: Mean distance between sampled and exact rows, which have length one.
        length: Tokens of a text.

    Returns:
        At least 1.

    Raises:
        InputError: An error that is not above 0, or no tokens.

    Example:
        >>> from headstart import choose_num_hash
        >>> choose_num_hash(0.1, 4096)
        27
    """
    if target_error <= 0 or length < 1:
        raise InputError(
            f"target_error={target_error}, length={length}; expected an error above 0 and at least"
            " one token"
        )
    error_of_one_hash = _ERROR_LIMIT + _ERROR_OF_SHORT_TEXTS / math.sqrt(length)
    return max(1, math.ceil((error_of_one_hash / target_error) ** 2))


@torch.no_grad()
def measure_num_hash(
    target_error: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    hash_code_len: int,
    use_fast_hash: bool = True,
    seed: int = 0,
) -> int:
    """Hashes that bring the mean relative error of an attention row down to `target_error` on these
    tensors (B, A, L, K).

    Two samples of 64 hashes differ by sqrt(2) of the error of one, and the error falls with the
    root of the hashes. Linear in L.

    Args:
        target_error: Mean distance between sampled and exact rows, which have length one.
        query: (B, A, L, K), of a layer of the network on typical texts.
        key: (B, A, L, K).
        value: (B, A, L, K).
        hash_code_len: Bits of a hash.
        use_fast_hash: Hadamard transforms, or Gaussian projections.
        seed: Seed of the two samples.

    Returns:
        At least 1.

    Raises:
        InputError: An error that is not above 0, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from headstart import measure_num_hash
        >>> x = torch.ones(1, 2, 20, 8)  # equal tokens meet under every hash
        >>> measure_num_hash(0.1, x, x, x, hash_code_len=9)
        1
    """
    if target_error <= 0:
        raise InputError(f"target_error={target_error}; expected an error above 0")
    tried = 64
    one, other = (
        sampled_attention(
            query,
            key,
            value,
            hash_code_len=hash_code_len,
            num_hash=tried,
            use_fast_hash=use_fast_hash,
            seed=s,
        ).float()
        for s in (seed, seed + 1)
    )
    error = float((one - other).norm(dim=-1).mean()) / math.sqrt(2)
    return max(1, math.ceil(tried * (error / target_error) ** 2))


def _hide(mask: Tensor | None, value: Tensor) -> tuple[Tensor | None, Tensor]:
    """The mask as (B, 1, L, 1), and the values with masked tokens zeroed.

    Their keys then have no effect, forward or backward.
    """
    if mask is None:
        return None, value
    keep = mask[:, None, :, None].bool()  # (B, 1, L, 1)
    return keep, value.masked_fill(~keep, 0.0)


def _finish(out: Tensor, keep: Tensor | None) -> Tensor:
    """The sums without masked rows, scaled to length one.

    In place where no gradient needs them, which matters for long texts.
    """
    if keep is not None:
        out = out.masked_fill(~keep, 0.0)
    if torch.is_grad_enabled() or transformed() or out.dtype in (torch.float16, torch.bfloat16):
        return normalize_rows(out)
    return out.mul_(row_scale(out))


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast the three may arrive in different precisions."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if query.dim() != 4 or query.shape != key.shape or query.shape[:-1] != value.shape[:-1]:
        shapes = ", ".join(
            f"{name} {tuple(x.shape)}"
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        raise InputError(f"{shapes}; expected (texts, heads, tokens, head size) three times")
    if mask is not None and mask.shape != (query.shape[0], query.shape[2]):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}, expected {(query.shape[0], query.shape[2])}:"
            " (texts, tokens)"
        )
