"""PyTorch as an engine.

The folded network, its matrices and filters laid out for oneDNN where it computes in float32 on a
CPU.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.engine.capture import Program, Signature
from headstart.engine.engines.base import Job
from headstart.engine.folds import fold
from headstart.nn.linear import onednn_serves


class PackedLinear(nn.Module):
    """A linear map whose matrix is laid out for oneDNN once.

    Used in inference on a CPU, in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, D')."""
        if not onednn_serves(x, self.weight):
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(
                self.weight.detach(), x.numel() // x.shape[-1]
            )
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")  # type: ignore[no-any-return]


def pack(model: nn.Module) -> None:
    """Replaces the linear maps of a network that computes in float32 on a CPU."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if (
                isinstance(child, nn.Linear)
                and child.weight.dtype is torch.float32
                and child.weight.is_cpu
            ):
                setattr(module, name, PackedLinear(child))


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Sets the number of PyTorch's threads for a call."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchRunner:
    """A folded network, called without gradients."""

    def __init__(
        self, model: nn.Module, signature: Signature, precision: str, threads: int
    ) -> None:
        self.threads = threads
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        if precision == "bfloat16":
            # the weights that it shares with the original stay as they are
            model = copy.deepcopy(model).bfloat16()
        else:
            pack(model)
        self.program = Program(model, signature.inputs)
        self.device = next(iter(model.parameters())).device

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs in float32."""
        with torch.inference_mode(), on_threads(self.threads):
            cast = [x.to(self.dtype) if x.is_floating_point() else x for x in inputs]
            return [out.float() if out.is_floating_point() else out for out in self.program(*cast)]

    def save(self, folder: Path) -> dict[str, Any]:
        """Nothing: the network's own files are enough."""
        return {}


def build(job: Job) -> TorchRunner:
    """The folded network."""
    return make(job.model, job.signature, job.precision, job.threads)


def make(model: nn.Module, signature: Signature, precision: str, threads: int) -> TorchRunner:
    """The folded network, for the images of a signature."""
    return TorchRunner(fold(model, size=signature.size, lean=True), signature, precision, threads)


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> TorchRunner:
    """The network of the folder, folded again."""
    return make(model(), signature, str(facts["precision"]), threads)
