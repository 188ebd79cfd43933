"""A network with its preprocessing in front, and either in operators that every engine knows."""

from typing import Any

import torch
from torch import Tensor, nn

from headstart.engine.folds import fold
from headstart.errors import ConfigError


class Normalized(nn.Module):
    """A network behind its processor's rescaling and normalization; takes pixels from 0 to 255."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        if model.main_input_name != "pixel_values" or processor is None:
            raise ConfigError("normalize=True needs a network of images and its image processor")
        self.model, self.config, self.main_input_name = model, model.config, model.main_input_name
        channels = model.config.num_channels
        factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        mean, deviation = torch.zeros(channels), torch.ones(channels)
        if getattr(processor, "do_normalize", True):
            mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        self.register_buffer("mean", mean.view(-1, 1, 1) / factor)
        self.register_buffer("deviation", deviation.view(-1, 1, 1) / factor)
        self.train(model.training)

    def forward(self, pixel_values: Tensor, **others: Any) -> Any:
        """pixel_values (B, C, H, W), from 0 to 255."""
        return self.model((pixel_values - self.mean) / self.deviation, **others)


def portable(model: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """The folded network in operators that every engine knows."""
    if isinstance(model, Normalized):
        inside = fold(model.model, size=size, lean=True, portable=True)
        outside = Normalized.__new__(Normalized)
        nn.Module.__init__(outside)
        outside.model, outside.config, outside.main_input_name = (
            inside,
            model.config,
            model.main_input_name,
        )
        outside.mean, outside.deviation = model.mean, model.deviation
        return outside.eval()
    return fold(model, size=size, lean=True, portable=True)  # type: ignore[no-any-return]
