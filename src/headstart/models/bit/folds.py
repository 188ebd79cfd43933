"""BiT with everything that does not depend on the image worked out beforehand."""

from torch import Tensor, nn

from headstart.models.bit.torch import StandardizedConv2d, standardize
from headstart.nn.folding import parameter, recast


class Convolution(StandardizedConv2d):
    """Convolution whose filters are standardised already; pads as before."""

    def standardized(self) -> Tensor:
        """The filters as they are."""
        return self.weight


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Standardises the filters once and for all. See `headstart.engine.folds.fold`."""
    for module in list(model.modules()):
        if type(module) is StandardizedConv2d:
            recast(module, Convolution, weight=parameter(standardize(module.weight.double(), module.eps).to(module.weight.dtype)))
