"""The linear map through oneDNN against `nn.Linear`.

Values, derivatives, and the cases that must not go there.
"""

import pytest
import torch

from conftest import assert_close
from headstart.nn import linear
from headstart.nn.linear import Linear


def pair(bias: bool) -> tuple[Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    ours, usual = Linear(5, 7, bias=bias), torch.nn.Linear(5, 7, bias=bias)
    usual.load_state_dict(ours.state_dict())
    return ours, usual


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_values_and_gradients(bias, shape):
    ours, usual = pair(bias)
    x = torch.randn(*shape, requires_grad=True)
    with torch.no_grad():
        assert_close(ours(x), usual(x), 1e-6)
    found = torch.autograd.grad(ours(x).square().sum(), [x, *ours.parameters()])
    expected = torch.autograd.grad(usual(x).square().sum(), [x, *usual.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-5)


def test_slices_and_frozen_parameters():
    ours, usual = pair(True)
    x = torch.randn(4, 3, 10)[..., ::2]
    assert_close(ours(x), usual(x), 1e-6)
    ours.weight.requires_grad_(False)
    ours(x).sum().backward()
    assert ours.weight.grad is None and ours.bias.grad is not None


def test_second_derivatives():
    ours, usual = pair(True)
    x = torch.randn(3, 5, requires_grad=True)

    def second(layer):
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), [x, layer.weight])

    for a, b in zip(second(ours), second(usual), strict=True):
        assert_close(a, b, 1e-5)


# torch itself, at the first dual tensor
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_what_traces_transforms_or_casts_takes_the_usual_way(monkeypatch):
    """None of these knows oneDNN's product; each would raise or lose its effect."""
    ours, usual = pair(True)
    x = torch.randn(4, 5)
    assert_close(torch.func.vmap(ours)(x), usual(x), 1e-6)
    assert_close(torch.func.jacrev(ours)(x[0]), usual.weight, 1e-6)
    with torch.autograd.forward_ad.dual_level():
        out = ours(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    assert ours.double()(x.double()).dtype == torch.float64
    monkeypatch.setattr(linear, "product", None)
    assert ours(x.double()).shape == (4, 7)
    with torch.device("meta"):
        assert Linear(5, 7)(torch.zeros(2, 5)).shape == (2, 7)


def test_memory_of_the_caller_is_left_alone():
    ours, _ = pair(True)
    x, weight = torch.randn(4, 5), ours.weight.detach().clone()
    kept = x.clone()
    ours(x).sum().backward()
    assert torch.equal(x, kept) and torch.equal(ours.weight, weight)
