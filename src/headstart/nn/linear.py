"""A linear map that is fast on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from headstart.nn.kept import traced

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_HAS_ONEDNN = _ONEDNN and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's matrix product may be called directly.

    Plain float32 tensors on a CPU, and the call is neither traced nor transformed.
    """
    return (
        not traced()
        and _HAS_ONEDNN
        and x.is_cpu
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and weight.is_cpu
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch._C._get_mkldnn_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, D) times weight (D', D) transposed, plus bias (D',) → (…, D').

    Of tensors that oneDNN serves where no gradient is recorded.
    """
    if torch.is_grad_enabled():  # the derivative of a derivative
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`product` with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads  # (…, D')
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (N, D')
        return (
            product(grad, weight.t()) if of_x else None,  # (…, D)
            product(x.reshape(-1, x.shape[-1]).t(), rows.t()).t() if of_weight else None,  # (D', D)
            rows.sum(0) if of_bias else None,  # (D',)
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` that runs through oneDNN where that serves.

    X (…, D), weight (D', D), bias (D',) → (…, D').
    """
    if not onednn_serves(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` that runs through oneDNN on CPUs.

    PyTorch hands float32 products to MKL, which uses half of the vector width of CPUs that are not
    Intel's; oneDNN, which PyTorch carries as well, uses all of it. Parameters, results (to
    rounding) and everything else are `nn.Linear`'s.
    """

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """input (…, D) → (…, D'); a bias (D',) given here replaces the layer's own."""
        return linear(input, self.weight, self.bias if bias is None else bias)
