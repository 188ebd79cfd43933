"""Building blocks of the PyTorch networks: activations, stochastic depth, norms, padding.

Shapes: B images or texts, C channels, H W height and width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.nn.kept import traced


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 * x), the sigmoid form of Hendrycks & Gimpel 2016."""
    return x * torch.sigmoid(1.702 * x)


def quick_gelu_(x: Tensor) -> Tensor:
    """`quick_gelu`, written over x."""
    return x.mul_((1.702 * x).sigmoid_())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "mish": F.mish,
}


def activation(name: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The activation of that name, or the function itself.

    Raises:
        ConfigError: No activation of that name.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act={name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class DropPath(nn.Module):
    """Stochastic depth.

    Drops the whole branch of an example with probability `rate` in training (Huang et al. 2016).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, …), each example zeroed or scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1.0 - self.rate))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow evenly from 0 at the first of `depth` blocks to `rate` at the last."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def named(**modules: nn.Module) -> nn.ModuleDict:
    """Modules under the names that the published checkpoints give them."""
    return nn.ModuleDict(modules)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` without a crash of torch 2.13: in the backward pass of a channels-last input
    that needs no gradient, as behind a frozen stem.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), the same shape."""
        if (
            torch.is_grad_enabled()
            and x.is_cpu
            and not x.requires_grad
            and self.weight.requires_grad
        ):
            x = x.contiguous()
        return super().forward(x)


def batch_as_channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the memory layout that makes convolutions faster on CPUs, but for a single
    image.
    """
    if x.is_cpu and x.shape[0] > 1 and not traced():
        return x.contiguous(memory_format=torch.channels_last)
    return x


def pad_same(x: Tensor, kernel: int, stride: int, dilation: int = 1, value: float = 0.0) -> Tensor:
    """Zeros (or another value) around x (B, C, H, W) as TensorFlow's "SAME" puts them.

    The odd one goes after.
    """
    pads: list[Any] = []
    for size in (x.shape[-1], x.shape[-2]):
        need = torch.sym_max(  # type: ignore[no-untyped-call]
            (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0
        )
        pads += [need // 2, need - need // 2]
    return F.pad(x, pads, value=value)
