"""What networks keep between calls, while other threads use them with other sizes."""

import copy
import pickle

import pytest
import torch

from headstart import BeitConfig, BeitModel, BitConfig, BitModel
from headstart.config import PreTrainedConfig
from headstart.nn.kept import Kept
from headstart.nn.torch import PreTrainedModel

BIT = BitModel(BitConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_groups=2)).eval()
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 32,
}
FILTERS = BIT.embedder.convolution
BEIT = BeitModel(BeitConfig(**SIZES, use_relative_position_bias=True)).eval()
BIAS = BEIT.blocks[0].attention.attention["relative_position_bias"]
CASES = {
    "filters": (FILTERS.kept, "entry", lambda: FILTERS.standardized()),
    "grid": (BEIT, "_grid", lambda: BEIT.grid(2, 3, torch.device("cpu"))),
    "bias": (BIAS.kept, "entry", lambda: BIAS(BEIT.grid(2, 3, torch.device("cpu")), torch.float32)),
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


@torch.no_grad()
def test_cached_until_the_weight_the_key_or_the_mode_changes():
    weight, calls = torch.nn.Parameter(torch.arange(40.0)), []
    kept = Kept()

    def value(key=0, training=False):
        return kept(lambda: calls.append(key) or weight * 2, weight, training, key)

    first = value()
    assert value() is first and len(calls) == 1
    assert value(key=1) is not first and value(key=1) is value(key=1) and len(calls) == 2
    weight.add_(1)  # a new version
    assert torch.equal(value(key=1), weight * 2) and len(calls) == 3
    weight.data[0] = 7.0  # which leaves the version as it was
    assert value(key=1)[0] == 14 and len(calls) == 4
    assert value(1, training=True) is not value(1, training=True)
    with torch.enable_grad():
        assert value(1).requires_grad


@torch.no_grad()
def test_large_values_are_not_cached_and_copies_start_empty():
    weight = torch.nn.Parameter(torch.zeros(4))
    small, large = Kept(most_bytes=15), Kept(most_bytes=16)
    assert small(lambda: weight + 1, weight, False) is not small(lambda: weight + 1, weight, False)
    assert large(lambda: weight + 1, weight, False) is large(lambda: weight + 1, weight, False)
    for again in (copy.deepcopy(large), pickle.loads(pickle.dumps(large))):
        assert large.entry is not None and again.entry is None and again.most_bytes == 16


@torch.no_grad()
@pytest.mark.parametrize("mode", [True, False])
def test_a_network_forgets_when_its_mode_is_set(mode):
    """Even where nothing shows that a weight changed, as on a GPU after a write to `.data`."""

    class Network(PreTrainedModel):
        def __init__(self):
            super().__init__(PreTrainedConfig())
            self.part = torch.nn.Linear(2, 2)
            self.part.kept = Kept()

    network = Network()
    part = network.part
    part.kept(lambda: part.weight * 2, part.weight, False)
    assert part.kept.entry is not None
    torch.nn.ModuleList([network]).train(mode)
    assert part.kept.entry is None
