"""What networks keep between calls, while other threads use them with other sizes."""

import pytest
import torch

from headstart import BeitConfig, BeitModel, BitConfig, BitModel

BIT = BitModel(BitConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_groups=2)).eval()
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 32,
}
BEIT = BeitModel(BeitConfig(**SIZES, use_relative_position_bias=True)).eval()
BIAS = BEIT.blocks[0].attention.bias
CASES = {
    "filters": (BIT.stem.conv, "_kept", lambda: BIT.stem.conv.standardized()),
    "grid": (BEIT, "_grid", lambda: BEIT.grid(2, 3, torch.device("cpu"))),
    "bias": (BIAS, "_kept", lambda: BIAS(BEIT.grid(2, 3, torch.device("cpu")), torch.float32)),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_is_read_once(case, monkeypatch):
    """Between two reads another thread may have replaced it.

    A call would get what was made for another size.
    """
    module, name, call = CASES[case]
    first, kept, reads = call(), getattr(module, name), []
    watched = type(
        "Watched",
        (type(module),),
        {name: property(lambda self: reads.append(self) or kept, lambda self, value: None)},
    )
    monkeypatch.setattr(module, "__class__", watched)
    assert call() is first and len(reads) == 1
