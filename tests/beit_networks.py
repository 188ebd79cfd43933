"""Small BEiT networks."""

import torch
from torch import nn

from headstart import BeitConfig, BeitModel

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": [24, 40],
    "patch_size": 8,
    "vocab_size": 17,
    "num_labels": 5,
    "use_relative_position_bias": True,
    "drop_path_rate": 0.0,
}


def build(cls=BeitModel, **values):
    """A network whose weights are all large enough to matter."""
    torch.manual_seed(0)
    model = cls(BeitConfig(**(SMALL | values))).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(height=24, width=40, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
