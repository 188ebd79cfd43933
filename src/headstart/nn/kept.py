"""Values computed from weights, cached between calls while nothing can change the weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Kept:
    """One value, the last computed; a copied or pickled module starts without it.

    A module stores it as its attribute `kept`; `forget` empties those of a whole network.
    """

    def __init__(self, most_bytes: float = float("inf")) -> None:
        self.most_bytes = most_bytes  # a larger value is computed each time
        self.entry: tuple[Any, Tensor] | None = None

    def __call__(
        self, make: Callable[[], Tensor], weights: Tensor, training: bool, *key: Any
    ) -> Tensor:
        """`make()`, or what it returned before under the same weights and the same `key`."""
        state = state_of(weights, training)
        if state is None:
            return make()
        entry = self.entry  # read once: another thread may replace it
        if entry is None or entry[0] != (state, key):
            self.entry = entry = None  # the old value is freed first
            value = make()
            if value.numel() * value.element_size() > self.most_bytes:
                return value
            self.entry = entry = ((state, key), value)
        return entry[1]

    def __reduce__(self) -> tuple[type["Kept"], tuple[float]]:
        return Kept, (self.most_bytes,)


def forget(network: nn.Module) -> None:
    """Empties what the modules of a network cache: training is about to change their weights."""
    for module in network.modules():
        if isinstance(kept := vars(module).get("kept"), Kept):
            kept.entry = None


def traced() -> bool:
    """Whether a graph is being made of the call, by torch.compile, torch.export or torch.jit."""
    return torch.compiler.is_compiling() or jit_traced()


def jit_traced() -> bool:
    """Whether torch.jit records the call, as `torch.onnx.export(dynamo=False)` has it do."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def state_of(weight: Tensor, training: bool) -> tuple[Any, ...] | None:
    """A key of a weight's state, or None while the weight may change or is traced.

    The key exists in evaluation without gradients. It changes with the tensor, its version
    (in-place writes) and, on a CPU, the values of a sample of it, since writing to `.data` leaves
    the version alone.
    """
    if training or torch.is_grad_enabled() or traced() or weight.is_inference():
        return None
    step = max(1, weight.numel() // 16)
    sample = weight.detach().flatten()[::step].tolist() if weight.is_cpu else None
    return weight.data_ptr(), weight._version, weight.dtype, weight.device, weight.shape, sample
