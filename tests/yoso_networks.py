"""Small YOSO networks, and random values to put into them."""

import torch

from headstart import YosoConfig, YosoModel

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
    "type_vocab_size": 2,
    "hash_code_len": 5,
    "initializer_range": 0.5,
}


def small(cls=YosoModel, **values):
    torch.manual_seed(0)
    return cls(YosoConfig(**(SMALL | values))).eval()


def ids(*shape, seed=0):
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, seed=0, dtype=torch.float32, number=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(number)
    ]
