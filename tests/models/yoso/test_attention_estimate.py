"""Sampled attention as an estimate: its mean, its error, its gradients and its weights."""

import math

import pytest
import torch

from conftest import assert_close
from headstart.errors import InputError
from headstart.models.yoso.attention import (
    choose_num_hash,
    exact_attention,
    measure_num_hash,
    normalize_rows,
    sampled_attention,
    sampled_weights,
    weighted_values,
)
from headstart.models.yoso.exact import exact_sum, exact_sum_backward
from headstart.models.yoso.hashing import random_projections
from headstart.models.yoso.sampled import sampled_sum, sampled_sum_backward
from yoso_networks import tokens


def test_without_gradients_the_same():
    query, key, value = tokens(2, 3, 40, 8)
    mask = torch.ones(2, 40)
    mask[1, 25:] = 0
    for given in (None, mask):
        expected = sampled_attention(
            query, key, value, hash_code_len=5, num_hash=6, seed=0, mask=given
        )
        with torch.no_grad():
            assert_close(
                sampled_attention(
                    query, key, value, hash_code_len=5, num_hash=6, seed=0, mask=given
                ),
                expected,
            )


def mean_over_seeds(query, key, value, fast, tau, num_hash):
    """The mean attention sum over `num_hash` independent hashes of unit vectors, and its standard
    error per pair of tokens.
    """
    projections = random_projections(
        1, query.shape[-1], hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, seed=11
    )
    return sampled_sum(query[None], key[None], value[None], projections, tau, num_hash, True)[0]


@pytest.mark.parametrize("fast", [False, True])
def test_mean_converges_to_the_expectation(fast):
    """With unit vectors as values the sum is the collision frequency of every pair, a binomial
    mean.

    Dense: all 144 frequencies lie within z of the expectation, where a right implementation fails
        with a chance of 1e-6
    (two-sided, 144 comparisons: z = 5.8). Fast: the bias is known; it is low on average and by less
    than 0.01.
    """
    tau, num_hash, size = 5, 40_000, 32
    query, key = (normalize_rows(x[0]) for x in tokens(1, 12, size, number=2))
    key = normalize_rows(key + query * torch.linspace(0, 3, 12)[:, None])  # near and far pairs
    frequency = mean_over_seeds(query, key, torch.eye(12), fast, tau, num_hash)
    expected = exact_sum(
        query[None].double(), key[None].double(), torch.eye(12)[None].double(), tau
    )[0]
    error = (expected * (1 - expected) / num_hash).sqrt()
    if fast:
        assert -0.01 < (frequency - expected).mean() < -0.001
        assert (frequency - expected).abs().max() < 0.03
    else:
        assert ((frequency - expected).abs() / error).max() < 5.8


def test_error_falls_with_the_root_of_the_hashes():
    """Sixteen times the hashes: a quarter of the error, between a third and a fifth."""
    query, key, value = tokens(1, 4, 200, 32)
    key = key + 2 * query
    expected = exact_attention(query, key, value, hash_code_len=6)

    def error(num_hash):
        options = {"hash_code_len": 6, "num_hash": num_hash, "use_fast_hash": False}
        outs = [sampled_attention(query, key, value, seed=s, **options) for s in range(4)]
        return sum((out - expected).norm(dim=-1).mean().item() for out in outs) / 4

    assert 3 < error(16) / error(256) < 5


def clustered(tokens_in_text, seed=0, size=64):
    """Texts whose tokens are near 16 centres, with values that go with them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, 16, size, generator=generator)
    which = torch.randint(0, 16, (tokens_in_text,), generator=generator)
    noise = torch.randn(3, 1, 2, tokens_in_text, size, generator=generator)
    return [
        centres[0, which] + 0.5 * noise[0],
        centres[0, which] + 0.5 * noise[1],
        centres[1, which] + noise[2],
    ]


@pytest.mark.parametrize("length", [200, 1000])
@pytest.mark.parametrize("target", [0.3, 0.1])
def test_chosen_number_of_hashes_meets_the_target(length, target):
    """Both ways of choosing land within a third of the requested error."""
    query, key, value = clustered(length)
    expected = exact_attention(query, key, value, hash_code_len=9)
    for num_hash in (
        choose_num_hash(target, length),
        measure_num_hash(target, query, key, value, hash_code_len=9),
    ):
        out = sampled_attention(query, key, value, hash_code_len=9, num_hash=num_hash, seed=5)
        assert 0.67 * target < (out - expected).norm(dim=-1).mean().item() < 1.33 * target


def test_number_of_hashes_refuses_nonsense():
    with pytest.raises(InputError, match="target_error=0"):
        choose_num_hash(0, 100)
    with pytest.raises(InputError, match="length=0"):
        choose_num_hash(0.1, 0)
    with pytest.raises(InputError, match="target_error=-1"):
        measure_num_hash(-1, *clustered(10), hash_code_len=9)


def test_gradients_converge_to_the_surrogate():
    """With many dense hashes the sampled gradients become those of the expectation."""
    inputs = [normalize_rows(x) for x in tokens(1, 24, 16)]
    grad = tokens(1, 24, 16, seed=1)[0]
    inputs[1] = normalize_rows(inputs[1] + inputs[0])
    projections = random_projections(
        1, 16, hash_code_len=4, num_hash=5_000, use_fast_hash=False, seed=2
    )
    sampled = sampled_sum_backward(grad, *inputs, projections, 4, 5_000)
    for ours, expected in zip(sampled, exact_sum_backward(grad, *inputs, 4), strict=True):
        # about 1 / sqrt(5,000 * collisions) for each pair
        assert ((ours - expected).norm() / expected.norm()).item() < 0.1


def test_refuses_what_does_not_fit():
    query, key, value = tokens(2, 3, 7, 5)
    options = {"hash_code_len": 4, "num_hash": 6}
    for wrong, message in [
        ({"hash_code_len": 17}, "hash_code_len=17; sampling needs 1 to 16 bits"),
        ({"num_hash": 0}, "num_hash=0"),
        ({"seed": 1, "generator": torch.Generator()}, "seed=1"),
        ({"seed": 1, "projections": torch.zeros(6, 5, 24)}, "give one of them"),
        ({"projections": torch.zeros(6, 5, 23)}, r"shape \(6, 5, 23\), expected \(6, 5, 24\)"),
        (
            {"projections": torch.ones(6, 3, 2, 32, dtype=torch.int8)},
            r"shape \(6, 3, 2, 32\), expected \(6, 3, 1, 32\)",
        ),
        ({"projections": torch.ones(6, 3, 1, 24, dtype=torch.int8)}, "power of two of at least 5"),
        ({"projections": torch.ones(6, 3, 1, 4, dtype=torch.int8)}, "power of two of at least 5"),
    ]:
        with pytest.raises(InputError, match=message):
            sampled_attention(query, key, value, **{**options, **wrong})
    assert math.isfinite(sampled_attention(query, key, value, **options).sum())


@pytest.mark.parametrize("use_fast_hash", [True, False])
@pytest.mark.parametrize("lsh_backward", [True, False])
def test_weights_give_the_attention(lsh_backward, use_fast_hash):
    """The weights times the values are the attention, with its gradients; but those of the values
    are then always of the collisions.
    """
    inputs = [x.requires_grad_() for x in tokens(2, 3, 11, 5, dtype=torch.float64)]
    mask = torch.tensor([[1] * 11, [1] * 8 + [0] * 3])
    kinds = {
        "hash_code_len": 4,
        "num_hash": 6,
        "use_fast_hash": use_fast_hash,
        "lsh_backward": lsh_backward,
        "mask": mask,
        "seed": 3,
    }
    weights = sampled_weights(*inputs[:2], **kinds)
    assert weights.shape == (2, 3, 11, 11) and weights.min() == 0 and 0 < weights.max() <= 1
    results = []
    for out in (weighted_values(weights, inputs[2], mask), sampled_attention(*inputs, **kinds)):
        results.append([out, *torch.autograd.grad(out.square()[..., 0].sum(), inputs)])
    compared = slice(None) if lsh_backward else slice(3)
    for plain, ours in zip(*(each[compared] for each in results), strict=True):
        assert_close(ours, plain, 1e-10)


@pytest.mark.parametrize("use_fast_hash", [True, False])
def test_with_a_seed_a_text_does_not_depend_on_its_place(use_fast_hash):
    inputs = tokens(3, 2, 9, 8)
    options = {"hash_code_len": 4, "num_hash": 6, "use_fast_hash": use_fast_hash, "seed": 3}
    together = sampled_attention(*inputs, **options)
    for i in range(3):
        alone = sampled_attention(*(x[i : i + 1] for x in inputs), **options)
        assert torch.equal(together[i : i + 1], alone)
    order = [2, 0, 1]
    assert torch.equal(sampled_attention(*(x[order] for x in inputs), **options), together[order])
    heads = sampled_attention(*(x[:1, :1].expand(1, 2, 9, 8) for x in inputs), **options)
    assert not torch.equal(heads[:, 0], heads[:, 1])  # heads have hashes of their own


# torch's own forward-mode rules are scripts
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize("lsh_backward", [True, False])
def test_transforms_see_the_sampled_gradient(lsh_backward):
    """torch.func and forward-mode differentiation give what backward gives."""
    inputs = tokens(2, 3, 7, 5, dtype=torch.float64)
    tangents = tokens(2, 3, 7, 5, seed=1, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])

    def attend(*inputs):
        return sampled_attention(
            *inputs, hash_code_len=4, num_hash=6, lsh_backward=lsh_backward, mask=mask, seed=3
        )

    def loss(*inputs):
        return attend(*inputs)[..., 0].square().sum()

    expected = torch.autograd.grad(loss(*(x.requires_grad_() for x in inputs)), inputs)
    plain = [x.detach() for x in inputs]
    for ours, theirs in zip(torch.func.grad(loss, (0, 1, 2))(*plain), expected, strict=True):
        assert_close(ours, theirs, 1e-10)
    out, tangent = torch.func.jvp(loss, tuple(plain), tuple(tangents))
    assert_close(out, loss(*plain), 1e-10)
    assert_close(
        tangent, sum((g * t).sum() for g, t in zip(expected, tangents, strict=True)), 1e-10
    )


@pytest.mark.parametrize("lsh_backward", [True, False])
def test_second_derivatives_follow_the_collisions(lsh_backward):
    inputs = [x.requires_grad_() for x in tokens(1, 2, 6, 5, dtype=torch.float64)]
    grad = tokens(1, 2, 6, 5, seed=1, dtype=torch.float64)[0]
    kinds = {"hash_code_len": 3, "num_hash": 6, "lsh_backward": lsh_backward, "seed": 3}
    results = []
    for function in (sampled_attention, plain_attention):
        first = torch.autograd.grad(function(*inputs, **kinds), inputs, grad, create_graph=True)
        total = sum(g.square().sum() for g in first[:2])
        results.append([*first[:2], *torch.autograd.grad(total, inputs[:2])])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, 1e-10)


def plain_attention(query, key, value, **kinds):
    return weighted_values(sampled_weights(query, key, **kinds), value)
