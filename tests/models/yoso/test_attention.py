"""Exact attention.

Against a definition of one pair at a time, and the properties that the block-wise form must keep.
"""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from conftest import assert_close
from headstart.errors import InputError
from headstart.models.yoso import exact
from headstart.models.yoso.attention import (
    exact_attention,
    exact_attention_plain,
    exact_weights,
    normalize_rows,
)


def tokens(*shape, seed=0, dtype=torch.float32):
    """Random queries, keys and values.

    The heads of a text differ in size so that a swapped axis shows.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


def one_pair_at_a_time(query, key, value, tau, mask):
    """The definition, as slow as possible. Works on nested lists of one head."""
    out = []
    for i, q in enumerate(query):
        row = [0.0] * len(value[0])
        for j, k in enumerate(key):
            if mask[i] and mask[j]:
                cosine = sum(a * b for a, b in zip(q, k, strict=True)) / (
                    math.hypot(*q) * math.hypot(*k)
                )
                weight = (1 - math.acos(max(-1.0, min(1.0, cosine))) / math.pi) ** tau
                row = [r + weight * v for r, v in zip(row, value[j], strict=True)]
        length = math.hypot(*row) or 1.0
        out.append([r / length for r in row])
    return out


@pytest.mark.parametrize("attention", [exact_attention, exact_attention_plain])
@pytest.mark.parametrize("tau", [1, 3, 8, 9])
def test_is_the_definition(attention, tau):
    query, key, value = tokens(2, 3, 7, 5)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    ours = attention(query, key, value, hash_code_len=tau, mask=mask)
    for b in range(2):
        for a in range(3):
            expected = one_pair_at_a_time(
                query[b, a].tolist(),
                key[b, a].tolist(),
                value[b, a].tolist(),
                tau,
                mask[b].tolist(),
            )
            assert_close(ours[b, a], torch.tensor(expected), what=f"text {b}, head {a}")


def test_without_gradients_nothing_changes():
    """There, rows are scaled in place."""
    query, key, value = tokens(2, 3, 7, 5)
    before, expected = value.clone(), exact_attention(query, key, value, hash_code_len=4)
    with torch.no_grad():
        assert torch.equal(exact_attention(query, key, value, hash_code_len=4), expected)
    assert torch.equal(value, before)


def test_weights_give_the_attention():
    query, key, value = tokens(2, 3, 7, 5)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [1] * 7])
    weights = exact_weights(query, key, hash_code_len=4, mask=mask)
    assert weights.shape == (2, 3, 7, 7)
    assert (
        weights[0, :, 2].eq(0).all() and weights[0, :, :, 6].eq(0).all() and weights[1].gt(0).all()
    )
    assert_close(
        F.normalize(weights @ value, dim=-1),
        exact_attention(query, key, value, hash_code_len=4, mask=mask),
    )


@pytest.mark.parametrize("length", [1, 3, 129, 1100])
def test_blocks_agree_with_the_plain_form(length, monkeypatch):
    monkeypatch.setattr(exact.cpu, "usable", lambda *tensors: False)
    monkeypatch.setattr(exact, "BLOCK_ON_CPU", 2**14)  # several blocks of heads, too
    monkeypatch.setattr(exact, "_QUERIES_IN_BLOCK", 48)
    query, key, value = (x.requires_grad_() for x in tokens(2, 2, length, 6, dtype=torch.float64))
    mask = torch.ones(2, length)
    mask[1, length // 2 :] = 0
    grad = tokens(2, 2, length, 6, seed=1, dtype=torch.float64)[0]
    results = []
    for attention in (exact_attention, exact_attention_plain):
        out = attention(query, key, value, hash_code_len=9, mask=mask)
        results.append([out, *torch.autograd.grad(out, (query, key, value), grad)])
    for ours, plain in zip(*results, strict=True):
        assert_close(ours, plain, 1e-10)


def test_float32_gradients_agree_with_float64():
    query, key, value = tokens(1, 3, 70, 16)
    grad = torch.randn(1, 3, 70, 16, generator=torch.Generator().manual_seed(3))
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        results.append(
            torch.autograd.grad(exact_attention(*inputs, hash_code_len=9), inputs, grad.to(dtype))
        )
    for ours, wide in zip(*results, strict=True):
        assert_close(ours, wide, 1e-5)


def test_gradient_is_the_documented_surrogate():
    """tau / 2 * W stands for dW / d(q · k).

    The true derivative is larger everywhere and has a pole at 1.
    """
    cosine = torch.tensor([-0.9, 0.0, 0.5, 0.95], dtype=torch.float64)
    for c in cosine:
        query = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
        key = torch.tensor([[[c, math.sqrt(1 - c * c)]]], dtype=torch.float64)
        exact.exact_sum(query, key, torch.ones(1, 1, 1, dtype=torch.float64), 9).backward()
        weight = (1 - math.acos(c) / math.pi) ** 9
        assert query.grad[0, 0, 0].item() == pytest.approx(9 / 2 * weight * c.item())
        true = 9 * (1 - math.acos(c) / math.pi) ** 8 / (math.pi * math.sqrt(1 - c * c))
        assert 9 / 2 * weight < true


def test_value_gradient_is_a_true_gradient():
    """The sum is linear in the values, and nothing is approximated there."""
    query, key, value = tokens(2, 5, 4, dtype=torch.float64)
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exact.exact_sum(query, key, v, 3), (value,))


def test_equal_query_and_key_are_finite():
    """Rounding takes the product of a unit vector with itself beyond 1, whose arccos is NaN."""
    query, _, value = tokens(2, 4, 64, 16)
    key = query.clone()
    assert (normalize_rows(query).square().sum(-1) > 1).any()
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out = exact_attention(*inputs, hash_code_len=9)
    out.sum().backward()
    assert out.isfinite().all() and all(x.grad.isfinite().all() for x in inputs)


def test_zero_rows_are_safe():
    """A zero row stays zero and gets no gradient, instead of one scaled by 1e12."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    out = normalize_rows(x)
    assert out.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    out.backward(torch.ones(2, 2))
    assert x.grad[1].tolist() == [0.0, 0.0] and x.grad.abs().max() < 1
    inputs = [x.requires_grad_() for x in tokens(2, 1, 3, 4)]
    out = exact_attention(*inputs, hash_code_len=3, mask=torch.zeros(2, 3))
    out.sum().backward()
    assert out.eq(0).all() and all(x.grad.eq(0).all() for x in inputs)


def test_padding_changes_nothing():
    query, key, value = tokens(1, 2, 9, 8)
    alone = exact_attention(query[:, :, :6], key[:, :, :6], value[:, :, :6], hash_code_len=9)
    value[:, :, 6:] = float("nan")  # padding may hold anything
    padded = exact_attention(
        query, key, value, hash_code_len=9, mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0]])
    )
    assert_close(padded[:, :, :6], alone)
    assert padded[:, :, 6:].eq(0).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype, tolerance):
    inputs = [x.requires_grad_() for x in tokens(1, 2, 40, 16, dtype=dtype)]
    out = exact_attention(*inputs, hash_code_len=9)
    assert out.dtype == dtype
    assert_close(out, exact_attention(*(x.double() for x in inputs), hash_code_len=9), tolerance)
    out.sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in inputs)


def test_autocast_keeps_full_precision_inside():
    query, key, value = tokens(1, 2, 40, 16)
    expected = exact_attention(query, key, value, hash_code_len=9)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(exact_attention(query, key, value, hash_code_len=9), expected)
        assert exact_attention(query, key, value.bfloat16(), hash_code_len=9).dtype == torch.float32


def test_inputs_need_not_be_contiguous():
    query, key, value = (x.transpose(1, 2) for x in tokens(2, 7, 3, 5))
    expected = exact_attention(
        query.contiguous(), key.contiguous(), value.contiguous(), hash_code_len=9
    )
    assert_close(exact_attention(query, key, value, hash_code_len=9), expected)


@pytest.mark.slow
def test_compiles_and_exports_whole():
    class Layer(torch.nn.Module):
        def forward(self, query, key, value, mask):
            return exact_attention(query, key, value, hash_code_len=9, mask=mask)

    query, key, value = tokens(2, 2, 10, 8)
    mask = torch.ones(2, 10)
    mask[0, 7:] = 0
    expected = Layer()(query, key, value, mask)
    tokens_dim = torch.export.Dim("tokens", min=2, max=512)
    shapes = ({2: tokens_dim}, {2: tokens_dim}, {2: tokens_dim}, {1: tokens_dim})
    exported = torch.export.export(Layer(), (query, key, value, mask), dynamic_shapes=shapes)
    assert_close(exported.module()(query, key, value, mask), expected)
    assert any("yoso_exact" in str(node.target) for node in exported.graph.nodes)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    query.requires_grad_()
    out = compiled(query, key, value, mask)
    assert_close(out, expected)
    out.sum().backward()
    assert query.grad.abs().sum() > 0


def test_operators_are_well_formed():
    query, key, value = tokens(2, 5, 4)
    torch.library.opcheck(
        exact.exact_sum_operator,
        (query.requires_grad_(), key, value, 3),
        test_utils=["test_schema", "test_faketensor"],
    )
    torch.library.opcheck(
        exact.exact_sum_backward,
        (value, query.detach(), key, value, 3),
        test_utils=["test_schema", "test_faketensor"],
    )


def test_memory_is_linear_in_the_length(monkeypatch):
    """The largest tensor that is alive is a block, not L × L."""
    length = 3000
    query, key, value = tokens(1, 1, length, 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [
                    largest,
                    *(
                        x.numel()
                        for x in torch.utils._pytree.tree_leaves(out)
                        if isinstance(x, torch.Tensor)
                    ),
                ]
            )
            return out

    monkeypatch.setattr(exact.cpu, "usable", lambda *tensors: False)
    with Watch():
        exact.sum_in_blocks(query, key, value, 9)
        exact.gradients_in_blocks(value, query, key, value, 9)
    assert largest <= exact.BLOCK_ON_CPU < length * length / 8


def test_refuses_what_does_not_fit():
    query, key, value = tokens(2, 3, 7, 5)
    with pytest.raises(InputError, match=r"key \(2, 3, 6, 5\)"):
        exact_attention(query, key[:, :, 1:], value, hash_code_len=9)
    with pytest.raises(InputError, match=r"mask has shape \(2, 6\), expected \(2, 7\)"):
        exact_attention(query, key, value, hash_code_len=9, mask=torch.ones(2, 6))
    with pytest.raises(InputError, match="hash_code_len=0"):
        exact_attention(query, key, value, hash_code_len=0)


def tangent_of(function, inputs, tangents):
    with forward_ad.dual_level():
        out = function(*map(forward_ad.make_dual, inputs, tangents))
        return forward_ad.unpack_dual(out).tangent


# torch's own forward-mode rules are scripts
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_transforms_see_the_surrogate_gradient():
    """torch.func and forward-mode differentiation give what backward gives, on the fused form."""
    inputs = tokens(2, 3, 7, 5, dtype=torch.float64)
    tangents = tokens(2, 3, 7, 5, seed=1, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])

    def loss(*inputs):
        return exact_attention(*inputs, hash_code_len=4, mask=mask)[..., 0].square().sum()

    expected = torch.autograd.grad(loss(*(x.requires_grad_() for x in inputs)), inputs)
    plain = [x.detach() for x in inputs]
    for ours, theirs in zip(torch.func.grad(loss, (0, 1, 2))(*plain), expected, strict=True):
        assert_close(ours, theirs, 1e-10)
    directional = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    assert_close(torch.func.jvp(loss, tuple(plain), tuple(tangents))[1], directional, 1e-10)
    assert_close(tangent_of(loss, plain, tangents), directional, 1e-10)
    with torch.no_grad():
        assert_close(tangent_of(loss, plain, tangents), directional, 1e-10)
    each = torch.func.vmap(lambda q, k, v: exact_attention(q, k, v, hash_code_len=4))
    batch = [x[:, None] for x in plain]  # (2, 1, 3, 7, 5)
    assert_close(each(*batch)[:, 0], exact_attention(*plain, hash_code_len=4), 1e-10)


def frozen(inputs, tau):
    """A true function whose derivatives of every order at `inputs` are the surrogate's there."""
    at = [x.detach() for x in inputs]
    at_cosine = normalize_rows(at[0]) @ normalize_rows(at[1]).mT
    weights = (1 - torch.acos(at_cosine) / math.pi) ** tau

    def attend(query, key, value):
        cosine = normalize_rows(query) @ normalize_rows(key).mT
        return F.normalize(weights * torch.exp(tau / 2 * (cosine - at_cosine)) @ value, dim=-1)

    return attend


@pytest.mark.parametrize("attention", [exact_attention, exact_attention_plain])
def test_second_derivatives_follow_the_same_rule(attention):
    inputs = [x.requires_grad_() for x in tokens(1, 2, 6, 5, dtype=torch.float64)]
    grad = tokens(1, 2, 6, 5, seed=1, dtype=torch.float64)[0]
    weights = tokens(1, 2, 6, 5, seed=2, dtype=torch.float64)
    results = []
    for function in (lambda *x: attention(*x, hash_code_len=4), frozen(inputs, 4)):
        first = torch.autograd.grad(function(*inputs), inputs, grad, create_graph=True)
        total = sum((g * w).sum() for g, w in zip(first, weights, strict=True))
        results.append([*first, *torch.autograd.grad(total, inputs)])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, 1e-10)
