"""What the folds of the families share.

Replacing a batch norm by its scale and shift, and a module's class by another.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", nn.Conv2d, nn.ConvTranspose2d)


def recast(module: nn.Module, kind: type[M], **values: Any) -> M:
    """Makes a module one of another class, with the same state and some more."""
    module.__class__ = kind
    for name, value in values.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value, persistent=False)
        else:
            setattr(module, name, value)
    return cast(M, module)


def parameter(value: Tensor) -> nn.Parameter:
    """A weight that is not trained."""
    return nn.Parameter(value.detach(), requires_grad=False)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm of known statistics as `scale * x + shift`, (C,) each.

    Computed in float64, as it is done once.
    """
    assert (
        isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and norm.running_var is not None
    )
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def convolution(old: C, weight: Tensor, bias: Tensor) -> C:
    """A convolution like another one, with other filters and a bias."""
    transposed = isinstance(old, nn.ConvTranspose2d)
    with torch.device("meta"):
        new = type(old)(
            weight.shape[0] if transposed else old.in_channels,
            weight.shape[1] if transposed else weight.shape[0],
            old.kernel_size,  # type: ignore[arg-type]  # a tuple of two, typed as of any length
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            groups=old.groups,
            dilation=old.dilation,  # type: ignore[arg-type]
        )
    new.weight = parameter(weight.to(old.weight.dtype))
    new.bias = parameter(bias.to(old.weight.dtype))
    return new.train(old.training)


def with_norm(conv: C, norm: nn.Module) -> C:
    """The convolution that does what a convolution and the batch norm after it do."""
    scale, shift = scale_and_shift(norm)
    axis = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    return convolution(conv, conv.weight.double() * scale.view(axis), bias)
