"""The two-way name tables."""

import numpy as np
import pytest
import torch

from headstart.checkpoint.names import NameTable, Row
from headstart.errors import WeightsError

TABLE = NameTable(
    prefix="net",
    rows={
        "blocks.{}.{}.weight": "encoder.{}.layer.{}.w",
        "qkv.{}": ("q.{}", "k.{}", "v.{}"),
        "flipped": Row("turned", lambda t: t.T, lambda t: t.T),
        "head.bias": "classifier.1.bias",
    },
    dropped=(r"encoder\.\d+\.index",),
)


def tensors(make):
    shapes = {"blocks.3.12.weight": (2, 5), "qkv.0": (6, 4), "flipped": (3, 2), "head.bias": (7,)}
    return {name: make(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "make",
    [lambda s: np.random.default_rng(0).normal(size=s), lambda s: torch.randn(s)],
    ids=["numpy", "torch"],
)
def test_there_and_back_is_equal(make):
    ours = tensors(make)
    theirs = TABLE.to_theirs(ours)
    assert sorted(theirs) == [
        "classifier.1.bias",
        "encoder.3.layer.12.w",
        "k.0",
        "q.0",
        "turned",
        "v.0",
    ]
    back, missing, unknown = TABLE.to_ours(theirs, list(ours))
    assert not missing and not unknown
    assert all((back[name] == value).all() for name, value in ours.items())


def test_parts_are_stacked_in_the_order_of_the_row():
    ours, _, _ = TABLE.to_ours(
        {"v.1": torch.full((1,), 3.0), "q.1": torch.full((1,), 1.0), "k.1": torch.full((1,), 2.0)},
        ["qkv.1"],
    )
    assert ours["qkv.1"].tolist() == [1.0, 2.0, 3.0]


def test_prefix_is_put_on_for_heads_and_found_or_missed_in_files():
    value = torch.ones(2)
    assert list(TABLE.to_theirs({"net.blocks.0.1.weight": value})) == ["net.encoder.0.layer.1.w"]
    for key in ("net.encoder.0.layer.1.w", "encoder.0.layer.1.w"):
        for ours in ("net.blocks.0.1.weight", "blocks.0.1.weight"):
            found, missing, unknown = TABLE.to_ours({key: value}, [ours])
            assert found[ours] is value and not missing and not unknown


def test_what_does_not_fit_is_listed():
    found, missing, unknown = TABLE.to_ours(
        {"q.0": 1, "encoder.0.index": 2, "stranger": 3, "classifier.1.bias": 4},
        ["qkv.0", "flipped"],
    )
    assert found == {} and missing == ["qkv.0", "flipped"]
    assert unknown == ["stranger"]  # dropped buffers and another network's head are known
    with pytest.raises(WeightsError, match="nameless has no published name"):
        TABLE.to_theirs({"nameless": 1})
