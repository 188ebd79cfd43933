"""A linear map that is fast on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's matrix product may be called directly: plain float32 tensors on a CPU, and nobody records or transforms the call."""
    return (
        not torch.compiler.is_compiling()
        and _HAS_ONEDNN
        and not torch.is_grad_enabled()
        and x.is_cpu
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and weight.is_cpu
        and type(x) is Tensor
        and type(weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_mkldnn_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
    )


class Linear(nn.Linear):
    """`nn.Linear` that runs through oneDNN where no gradient is wanted.

    PyTorch hands float32 products to MKL, which uses half of the vector width of CPUs that are not Intel's; oneDNN, which PyTorch carries
    as well, uses all of it. Parameters, results (to rounding) and everything else are `nn.Linear`'s.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input (…, D) → (…, D')."""
        if onednn_serves(input, self.weight):
            return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return F.linear(input, self.weight, self.bias)
