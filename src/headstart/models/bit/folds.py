"""BiT with everything that does not depend on the image computed beforehand."""

from torch import Tensor, nn

from headstart.models.bit.torch import StandardizedConv2d, Stem, standardize
from headstart.nn.folding import parameter, recast


class Convolution(StandardizedConv2d):
    """Convolution whose filters are standardized already; pads as before."""

    def standardized(self) -> Tensor:
        """The filters as they are."""
        return self.weight


# ONNX Runtime merges a padding of 0 into the pooling after it, which pads with -inf: a row and a
# column of each map then come out wrong, and logits by about 2e-3. It leaves a padding of any other
# number alone, and this one is 0 to every answer.
NEARLY_ZERO = 1e-30


class PortableStem(Stem):
    """The stem with a padding that no engine mistakes for the pooling's own."""

    def forward(self, x: Tensor, zero: float = NEARLY_ZERO) -> Tensor:
        """x (B, C, H, W) → (B, C, H / 4, W / 4)."""
        return super().forward(x, zero)


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Standardizes the filters once and for all; pads so that every engine understands it.

    See `headstart.engine.folds.fold`.
    """
    for module in list(model.modules()):
        if type(module) is StandardizedConv2d:
            recast(
                module,
                Convolution,
                weight=parameter(
                    standardize(module.weight.double(), module.eps).to(module.weight.dtype)
                ),
            )
        elif portable and type(module) is Stem:
            recast(module, PortableStem)
