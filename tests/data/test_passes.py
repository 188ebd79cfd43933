"""Forward passes of several batches at a time, against `map`."""

from threading import Barrier, get_ident

import pytest
import torch
from torch import nn

from headstart.data.passes import MOST, forward_passes
from headstart.nn.hooks import inputs_of


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_threads_are_divided_among_the_passes(two_threads):
    together = Barrier(MOST, timeout=60)
    torch.set_num_threads(2 * MOST - 1)

    def compute(batch):
        together.wait()
        return torch.get_num_threads()

    counts = list(forward_passes(compute, range(MOST), nn.Linear(1, 1)))
    assert sorted(counts) == [1] + [2] * (MOST - 1)


def test_batches_are_computed_at_a_time_and_come_in_order(two_threads):
    """Two passes wait for each other, which one at a time would do forever."""
    together = Barrier(2, timeout=60)
    network = nn.Linear(3, 2)
    batches = [torch.randn(count, 3) for count in (4, 1, 3, 2, 5, 6)]
    threads = set()

    def compute(batch):
        together.wait()
        threads.add((get_ident(), torch.get_num_threads()))
        with torch.inference_mode():
            return network(batch)

    results = list(forward_passes(compute, iter(batches), network))
    with torch.inference_mode():
        assert all(torch.equal(a, network(b)) for a, b in zip(results, batches, strict=True))
    assert len(threads) == 2 and {count for _, count in threads} == {1}
    assert get_ident() not in {thread for thread, _ in threads}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("batches", "network"),
    [
        ([1], nn.Linear(1, 1)),
        ([1, 2, 3], nn.Linear(1, 1, device="meta")),  # offloaded: its hooks move weights
        ([1, 2, 3], nn.Identity()),  # as a network that an engine runs
    ],
    ids=["one-batch", "not-on-the-cpu", "no-weights"],
)
def test_what_cannot_be_divided_is_computed_by_the_caller_on_all_threads(
    batches, network, two_threads
):
    found = forward_passes(lambda x: (x, get_ident(), torch.get_num_threads()), batches, network)
    assert list(found) == [(batch, get_ident(), 2) for batch in batches]


def test_an_error_in_one_pass_reaches_the_caller(two_threads):
    def compute(batch):
        raise ValueError(f"batch {batch}")

    with pytest.raises(ValueError, match="batch 0"):
        list(forward_passes(compute, range(9), nn.Linear(1, 1)))
    assert torch.get_num_threads() == 2


def test_a_pass_sees_the_inputs_of_a_layer_that_are_its_own(two_threads):
    """Both passes are inside the block while the other's values go through the layer."""
    together = Barrier(2, timeout=60)
    network = nn.Linear(1, 1)

    def compute(value):
        with inputs_of(network) as seen:
            together.wait()
            network(torch.full((1, 1), float(value)))
            together.wait()
        return [each.item() for each in seen]

    assert list(forward_passes(compute, range(6), network)) == [[float(i)] for i in range(6)]
