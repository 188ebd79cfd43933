"""Sampled attention.

Hash codes, sums and gradients against recorded numbers, slow definitions and statistics.
"""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from conftest import assert_close, golden_cases, golden_dir, read_json
from headstart.models.yoso import sampled as definition
from headstart.models.yoso.attention import exact_attention, normalize_rows, sampled_attention
from headstart.models.yoso.exact import exact_sum, exact_sum_backward
from headstart.models.yoso.hashing import (
    dense_projections,
    hadamard,
    hash_codes,
    random_projections,
    transform_size,
)
from headstart.models.yoso.sampled import (
    sampled_rows,
    sampled_sum,
    sampled_sum_backward,
    sampled_sum_operator,
)
from yoso_networks import tokens

CASES = [name for name in golden_cases("yoso_lsh") if name.startswith(("fast_", "plain_"))]


def golden(name):
    folder = golden_dir("yoso_lsh", name)
    return (
        read_json(folder / "meta.json"),
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )


def hidden(x, mask):
    return x.masked_fill(mask[:, :, None] == 0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_recorded_codes(name):
    meta, inputs, outputs = golden(name)
    projections = inputs["Dmat"] if "Dmat" in inputs else inputs["rmat"]
    for side in ("query", "key"):
        codes = hash_codes(
            inputs[side],
            projections,
            hash_code_len=meta["hash_code_len"],
            num_hash=meta["num_hash"],
        )
        expected = outputs[f"{side}_hash_code"]
        if "Dmat" in inputs:  # the fast hash's codes of masked tokens were recorded as 0
            codes = codes * inputs[f"{side}_mask"][:, :, None]
        assert torch.equal(codes, expected)


@pytest.mark.parametrize("lsh_backward", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_recorded_sums_and_gradients(name, lsh_backward):
    meta, inputs, outputs = golden(name)
    kind = f"lsh_backward_{str(lsh_backward).lower()}"
    if f"{kind}.grad_query" not in outputs:
        assert not meta["normalised_inputs"]
        return
    projections = inputs["Dmat"] if "Dmat" in inputs else inputs["rmat"]
    tensors = [inputs[side].requires_grad_() for side in ("query", "key", "value")]
    query, key, value = tensors
    out = sampled_sum(
        query,
        key,
        hidden(value, inputs["key_mask"]),
        projections,
        meta["hash_code_len"],
        meta["num_hash"],
        lsh_backward,
    )
    out = hidden(out, inputs["query_mask"])
    assert_close(out, outputs["cumulation"], what="sum")
    for side, grad in zip(
        ("query", "key", "value"),
        torch.autograd.grad(out, tensors, inputs["grad_output"]),
        strict=True,
    ):
        assert_close(grad, outputs[f"{kind}.grad_{side}"], what=f"gradient of the {side}")


@pytest.mark.parametrize("name", CASES)
def test_recorded_expectation(name):
    meta, inputs, outputs = golden(name)
    if "yoso_e_output" not in outputs:
        assert not meta["normalised_inputs"]
        return
    out = exact_sum(
        inputs["query"],
        inputs["key"],
        hidden(inputs["value"], inputs["key_mask"]),
        meta["hash_code_len"],
    )
    assert_close(hidden(out, inputs["query_mask"]), outputs["yoso_e_output"])


def codes_one_bit_at_a_time(x, projections, tau, num_hash):
    """Codes of one head's tokens, by the Hadamard matrix's definition.

    Entry (i, j) is -1 to the number of common bits of i and j.
    """
    out = []
    for token in x.tolist():
        if projections.is_floating_point():
            columns = projections.t().tolist()
            values = [sum(a * b for a, b in zip(token, column, strict=True)) for column in columns]
        else:
            size, values = projections.shape[-1], []
            for part in range(projections.shape[1]):
                y = token + [0.0] * (size - len(token))
                for step in range(3):
                    y = [a * s for a, s in zip(y, projections[step, part].tolist(), strict=True)]
                    y = [
                        sum(y[i] * (-1) ** (i & j).bit_count() for i in range(size))
                        for j in range(size)
                    ]
                values += y[: size // tau * tau]
        out.append(
            [sum((values[h * tau + b] > 0) << b for b in range(tau)) for h in range(num_hash)]
        )
    return torch.tensor(out)


def sums_one_collision_at_a_time(q_codes, k_codes, query, key, value, grad, tau):
    """Sum and gradients of one head, pair by pair and hash by hash."""
    num_hash = q_codes.shape[1]
    out, g_query, g_key, g_value = (
        torch.zeros_like(grad),
        torch.zeros_like(query),
        torch.zeros_like(key),
        torch.zeros_like(value),
    )
    for i in range(len(query)):
        for j in range(len(key)):
            met = (
                sum(
                    int(a == b)
                    for a, b in zip(q_codes[i].tolist(), k_codes[j].tolist(), strict=True)
                )
                / num_hash
            )
            out[i] += met * value[j]
            g_value[j] += met * grad[i]
            g_query[i] += tau / 2 * met * (grad[i] @ value[j]) * key[j]
            g_key[j] += tau / 2 * met * (grad[i] @ value[j]) * query[i]
    return out, g_query, g_key, g_value


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "queries, keys, size, value_size, tau, num_hash",
    [(1, 1, 3, 2, 1, 1), (5, 9, 7, 4, 2, 5), (13, 6, 40, 3, 9, 8), (3, 4, 5, 6, 16, 3)],
)
def test_is_the_definition(fast, queries, keys, size, value_size, tau, num_hash):
    rows = 2
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(rows, n, d, generator=generator)
        for n, d in [(queries, size), (keys, size), (keys, value_size), (queries, value_size)]
    )
    key[:, 0] = query[:, 0] * 3  # at least one collision in every hash
    projections = random_projections(
        rows, size, hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, generator=generator
    )
    out = sampled_sum(query, key, value, projections, tau, num_hash, True)
    grads = sampled_sum_backward(grad, query, key, value, projections, tau, num_hash)
    for n in range(rows):
        q_codes, k_codes = (
            codes_one_bit_at_a_time(x[n], projections[n], tau, num_hash) for x in (query, key)
        )
        assert torch.equal(
            hash_codes(query, projections, hash_code_len=tau, num_hash=num_hash)[n].long(), q_codes
        )
        expected = sums_one_collision_at_a_time(
            q_codes, k_codes, query[n], key[n], value[n], grad[n], tau
        )
        for ours, slow in zip((out[n], *(g[n] for g in grads)), expected, strict=True):
            assert_close(ours, slow)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_hadamard_is_the_matrix_of_common_bits(size):
    matrix = torch.tensor(
        [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    )
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    assert_close(hadamard(x), x @ matrix)


def test_fast_projections_are_orthogonal():
    signs = random_projections(2, 64, hash_code_len=9, num_hash=7, seed=1)
    dense = dense_projections(signs, 64, 9, 7)
    assert_close(dense.mT @ dense, torch.eye(63).expand(2, 63, 63))


@pytest.mark.parametrize(
    "head_size, tau, expected", [(8, 9, 32), (33, 5, 64), (64, 9, 64), (65, 9, 128), (4, 16, 32)]
)
def test_transform_size(head_size, tau, expected):
    assert transform_size(head_size, tau) == expected


def test_a_seed_repeats_and_a_generator_moves_on():
    query, key, value = tokens(2, 2, 30, 8)
    options = {"hash_code_len": 4, "num_hash": 6}
    first, again, other = (
        sampled_attention(query, key, value, seed=s, **options) for s in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = torch.Generator().manual_seed(3)
    first, second = (
        sampled_attention(query, key, value, generator=generator, **options) for _ in range(2)
    )
    assert not torch.equal(first, second)
    assert torch.equal(
        first,
        sampled_attention(query, key, value, generator=torch.Generator().manual_seed(3), **options),
    )
    torch.manual_seed(5)
    fresh = sampled_attention(query, key, value, **options)
    torch.manual_seed(5)
    assert torch.equal(fresh, sampled_attention(query, key, value, **options))
    projections = random_projections(2, 8, seed=3, **options).repeat(2, 1, 1, 1)  # for each text
    assert torch.equal(
        sampled_attention(query, key, value, projections=projections, **options), again
    )


def test_all_tokens_equal():
    """Everybody meets everybody in every hash: the mean of the values, without error."""
    x = torch.randn(8, generator=torch.Generator().manual_seed(0)).expand(1, 2, 11, 8)
    _, _, value = tokens(1, 2, 11, 8)
    inputs = [y.clone().requires_grad_() for y in (x, x, value)]
    out = sampled_attention(*inputs, hash_code_len=9, num_hash=5, seed=0)
    assert_close(out, normalize_rows(value.sum(2, keepdim=True)).expand_as(out))
    out.square().sum().backward()
    assert all(y.grad.isfinite().all() for y in inputs)


def test_one_token():
    query, _, value = tokens(1, 2, 1, 8)
    assert_close(
        sampled_attention(query, query, value, hash_code_len=9, num_hash=5), normalize_rows(value)
    )


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (1, 2, 0, 8)])
def test_no_texts_and_no_tokens(shape):
    sampled = [partial(sampled_attention, num_hash=3, lsh_backward=way) for way in (True, False)]
    for attention in (exact_attention, *sampled):
        inputs = [torch.zeros(shape, requires_grad=True) for _ in range(3)]
        out = attention(*inputs, hash_code_len=4, mask=torch.ones(shape[0], shape[2]))
        out.sum().backward()
        assert out.shape == shape and all(x.grad.shape == shape for x in inputs)


@pytest.mark.parametrize("side", range(3))
def test_what_is_not_a_number_stays_in_its_rows(side, monkeypatch):
    """The kernel and the definition put a NaN query or key into the same bucket, and both pass a
    NaN value on to those that meet it.
    """
    inputs = tokens(1, 1, 40, 8)
    inputs[side][0, 0, 7] = float("nan")
    out = sampled_attention(*inputs, hash_code_len=4, num_hash=5, seed=0)
    assert out.isnan().any() == (side == 2) and not out.isnan().all()
    monkeypatch.setattr(definition.cpu, "usable", lambda *tensors: False)
    expected = sampled_attention(*inputs, hash_code_len=4, num_hash=5, seed=0)
    assert torch.equal(out.isnan(), expected.isnan())
    assert_close(out.nan_to_num(), expected.nan_to_num())


def test_nobody_met_and_everything_masked():
    """Opposite vectors never collide: zero rows, without an exploding gradient."""
    query, _, value = tokens(1, 2, 6, 8)
    x = query[:, :, :1].expand_as(query)
    for key, mask in ((-x, None), (x, torch.zeros(1, 6))):
        inputs = [y.clone().requires_grad_() for y in (x, key, value)]
        out = sampled_attention(*inputs, hash_code_len=9, num_hash=5, mask=mask)
        out.sum().backward()
        assert out.eq(0).all() and all(y.grad.eq(0).all() for y in inputs)


@pytest.mark.parametrize("lsh_backward", [True, False])
def test_padding_changes_nothing(lsh_backward):
    query, key, value = tokens(1, 2, 9, 8)
    options = {"hash_code_len": 3, "num_hash": 5, "seed": 0, "lsh_backward": lsh_backward}
    alone = [x[:, :, :6].clone().requires_grad_() for x in (query, key, value)]
    value[:, :, 6:] = float("nan")  # padding may hold anything
    padded = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = sampled_attention(*alone, **options)
    out = sampled_attention(*padded, mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0]]), **options)
    assert_close(out[:, :, :6], expected)
    assert out[:, :, 6:].eq(0).all()
    direction = tokens(1, 2, 6, 8, seed=1)[0]
    expected.backward(direction)
    out[:, :, :6].backward(direction)
    for ours, theirs in zip(padded, alone, strict=True):
        assert_close(ours.grad[:, :, :6], theirs.grad)
        assert ours.grad[:, :, 6:].eq(0).all()


def test_exact_backward_is_the_expectation_gradient():
    query, key, value = tokens(1, 2, 12, 8)
    inputs = [normalize_rows(x).requires_grad_() for x in (query, key)] + [value.requires_grad_()]
    grad = tokens(1, 2, 12, 8, seed=1)[0]
    projections = random_projections(2, 8, hash_code_len=4, num_hash=3, seed=0)
    ours = torch.autograd.grad(sampled_sum(*inputs, projections, 4, 3, False), inputs, grad)
    for a, b in zip(ours, exact_sum_backward(grad, *inputs, 4), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("clusters", [2, 1000])
def test_time_and_memory_are_linear_in_the_length(clusters, monkeypatch):
    """Of the definition in PyTorch.

    Products and the largest tensor, four times the tokens, in few large buckets and in many small
    ones.
    """
    monkeypatch.setattr(definition.cpu, "usable", lambda *tensors: False)

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.numbers = max(
                [
                    self.numbers,
                    *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)),
                ]
            )
            return out

    def cost(length):
        query, value, grad = tokens(1, length, 8)
        query = query[:, torch.arange(length) % clusters]
        projections = random_projections(1, 8, hash_code_len=6, num_hash=3, seed=0)
        with FlopCounterMode(display=False) as flops, Largest() as seen:
            definition.sum_over_buckets(query, query, value, projections, 6, 3, True)
            definition.gradients_over_buckets(grad, query, query, value, projections, 6, 3)
        return flops.get_total_flops(), seen.numbers

    for long, short in zip(cost(8000), cost(2000), strict=True):
        assert long < 5 * short


def test_value_gradient_is_a_true_gradient():
    """The sum is linear in the values for fixed codes."""
    query, key, value = tokens(2, 5, 4, dtype=torch.float64)
    projections = random_projections(2, 4, hash_code_len=2, num_hash=3, seed=0)
    value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: sampled_sum(query, key, v, projections, 2, 3, True), (value,)
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype, tolerance):
    inputs = [x.requires_grad_() for x in tokens(1, 2, 40, 16, dtype=dtype)]
    options = {"hash_code_len": 5, "num_hash": 6, "seed": 0, "normalize": False}
    out = sampled_attention(*inputs, **options)
    assert out.dtype == dtype
    assert_close(out, sampled_attention(*(x.double() for x in inputs), **options), tolerance)
    out.sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in inputs)


def test_autocast_keeps_full_precision_inside():
    query, key, value = tokens(1, 2, 40, 16)
    options = {"hash_code_len": 5, "num_hash": 6, "seed": 0}
    expected = sampled_attention(query, key, value, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampled_attention(query, key, value, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed, fast", [(None, True), (7, True), (7, False)])
def test_compiles_and_exports_whole(seed, fast):
    class Layer(torch.nn.Module):
        def forward(self, query, key, value):
            return sampled_attention(
                query, key, value, hash_code_len=4, num_hash=6, use_fast_hash=fast, seed=seed
            )

    query, key, value = tokens(2, 2, 10, 8)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    query.requires_grad_()
    out = compiled(query, key, value)
    out.sum().backward()
    assert out.shape == query.shape and query.grad.abs().sum() > 0
    if seed is not None:
        assert_close(out, Layer()(query, key, value))
        open_sizes = {
            0: torch.export.Dim("texts", min=1, max=64),
            2: torch.export.Dim("tokens", min=2, max=512),
        }
        exported = torch.export.export(
            Layer(), (query.detach(), key, value), dynamic_shapes=(open_sizes,) * 3
        )
        assert_close(exported.module()(query, key, value), out)
        others = tokens(5, 2, 23, 8)
        assert_close(exported.module()(*others), Layer()(*others))


def test_operators_are_well_formed():
    query, key, value = tokens(2, 5, 4)
    for fast in (True, False):
        projections = random_projections(
            2, 4, hash_code_len=3, num_hash=2, use_fast_hash=fast, seed=0
        )
        checks = ["test_schema", "test_faketensor"]
        torch.library.opcheck(
            sampled_sum_operator, (query, key, value, projections, 3, 2, True), test_utils=checks
        )
        torch.library.opcheck(
            sampled_sum_backward, (value, query, key, value, projections, 3, 2), test_utils=checks
        )
        torch.library.opcheck(
            sampled_rows, (query, key, value, projections, 3, 2), test_utils=checks
        )
