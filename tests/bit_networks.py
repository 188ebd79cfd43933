"""A small BiT."""

import torch

from headstart import BitConfig, BitForImageClassification

BIT = BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_groups=2, num_labels=3)


def made(seed=0, cls=BitForImageClassification):
    torch.manual_seed(seed)
    return cls(BIT).eval()
