"""The two-way name tables."""

import numpy as np
import pytest
import torch

from headstart.checkpoint.names import NameTable, PublishedNames, Row
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


PUBLISHED = PublishedNames(
    "net", base=("encoder", "norm"), extra=("head",), ignored=(r"encoder\.\d+\.index",)
)
OWN = ["net.encoder.0.w", "net.norm.w", "head.1.w"]


@pytest.mark.parametrize("lead", ["", "module.", "_orig_mod.net.backbone."])
@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("own", [OWN, [name.removeprefix("net.") for name in OWN]])
def test_published_names_are_found_under_any_prefix(own, prefix, lead):
    spelled = {name: lead + prefix + name.removeprefix("net.") for name in own[:2]}
    tensors = {key: key for key in spelled.values()}
    found, missing, unknown = PUBLISHED.to_ours(tensors, own)
    assert found == spelled and missing == own[2:] and not unknown


def test_of_two_networks_in_a_file_the_one_with_more_names_is_read():
    file = {"ema.encoder.0.w": 1, "model.encoder.0.w": 2, "model.norm.w": 3}
    found, missing, unknown = PUBLISHED.to_ours(file, OWN)
    assert found == {"net.encoder.0.w": 2, "net.norm.w": 3} and missing == ["head.1.w"]
    assert unknown == ["ema.encoder.0.w"]


def test_another_head_and_ignored_buffers_are_known_and_strangers_are_not():
    file = {"net.encoder.0.index": 0, "head.1.w": 1, "net.encoder.0.w2": 2, "stranger": 3}
    assert PUBLISHED.to_ours(file, ["encoder.0.w"]) == (
        {},
        ["encoder.0.w"],
        ["net.encoder.0.w2", "stranger"],
    )
    assert [PUBLISHED.knows(name) for name in file] == [True, True, True, False]


def test_a_shared_tensor_is_written_under_its_first_name():
    shared, other = torch.ones(2), torch.ones(2)
    written = PUBLISHED.to_theirs({"a": shared, "b": other, "c": shared})
    assert list(written) == ["a", "b"] and written["a"] is shared
