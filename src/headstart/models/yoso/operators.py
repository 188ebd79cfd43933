"""Makes a function over tensors an operator of PyTorch, so that compiling and exporting keep it
whole.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from headstart.nn.kept import jit_traced

_LIBRARY: Any = torch.library.Library("headstart", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(
    name: str, fake: Callable[..., Any], setup_context: Any = None, backward: Any = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as `torch.ops.headstart.<name>` for every device, and returns the
    operator.

    `torch.library.custom_op` does the same, but imports PyTorch's compiler at the first call, which
    takes a second.

    Args:
        fake: Returns empty tensors of the right shapes and types.
        setup_context: Keeps what `backward` needs, as for `torch.library.register_autograd`.
        backward: Gradients for the inputs; None makes an operator without gradients.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"headstart::{name}", fake, lib=_LIBRARY)
        if backward is not None:
            torch.library.register_autograd(
                f"headstart::{name}", backward, setup_context=setup_context, lib=_LIBRARY
            )
        registered: Callable[..., Any] = getattr(torch.ops.headstart, name).default
        return registered

    return register


def transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation look at a call, or a trace records it.

    They support ordinary operations, but not our operators: the definitions run instead.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or jit_traced()
    )
