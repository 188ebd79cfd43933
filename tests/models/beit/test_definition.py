"""BEiT against its definition, written as slowly and plainly as possible."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from beit_networks import build, images
from conftest import assert_close
from headstart import BeitForMaskedImageModeling
from headstart.errors import InputError
from headstart.models.beit.positions import relative_position_index, table_rows


def index_one_pair_at_a_time(height, width):
    # None is the class token
    cells = [None] + [(y, x) for y in range(height) for x in range(width)]
    offsets = [(dy, dx) for dy in range(1 - height, height) for dx in range(1 - width, width)]

    def row(query, key):
        if query is None or key is None:
            kinds = {(True, False): 0, (False, True): 1, (True, True): 2}
            return len(offsets) + kinds[query is None, key is None]
        return offsets.index((query[0] - key[0], query[1] - key[1]))

    return torch.tensor([[row(query, key) for key in cells] for query in cells])


# a square would hide swapped axes
@pytest.mark.parametrize("height, width", [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
def test_relative_position_index_is_the_definition(height, width):
    slow = index_one_pair_at_a_time(height, width)
    assert torch.equal(relative_position_index(torch, height, width), slow)
    assert np.array_equal(relative_position_index(np, height, width), slow.numpy())
    assert int(slow.max()) == table_rows(height, width) - 1


def normalized(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + eps
    ).sqrt() * weight + bias


def slow_beit(model, pixels, height, width):
    """The whole network, one head and one patch at a time, from its published tensors."""
    t = model.state_dict()
    c = model.config
    D, K, p, eps = (
        c.hidden_size,
        c.hidden_size // c.num_attention_heads,
        c.patch[0],
        c.layer_norm_eps,
    )
    filters = t["embeddings.patch_embeddings.projection.weight"].reshape(D, -1)
    patches = [
        pixels[:, y * p : (y + 1) * p, x * p : (x + 1) * p].reshape(-1)
        for y in range(height)
        for x in range(width)
    ]
    patches = [
        filters @ patch + t["embeddings.patch_embeddings.projection.bias"] for patch in patches
    ]
    x = torch.stack([t["embeddings.cls_token"][0, 0], *patches])
    index, attentions = index_one_pair_at_a_time(height, width), []
    for i in range(c.num_hidden_layers):
        layer = {
            k.removeprefix(f"encoder.layer.{i}."): v
            for k, v in t.items()
            if k.startswith(f"encoder.layer.{i}.")
        }
        y = normalized(x, layer["layernorm_before.weight"], layer["layernorm_before.bias"], eps)
        q = (
            y @ layer["attention.attention.query.weight"].T
            + layer["attention.attention.query.bias"]
        )
        k = y @ layer["attention.attention.key.weight"].T
        v = (
            y @ layer["attention.attention.value.weight"].T
            + layer["attention.attention.value.bias"]
        )
        heads, weights = [], []
        for head in range(c.num_attention_heads):
            part = slice(head * K, (head + 1) * K)
            bias = layer["attention.attention.relative_position_bias.relative_position_bias_table"][
                :, head
            ][index]
            weights.append((q[:, part] @ k[:, part].T / math.sqrt(K) + bias).softmax(-1))
            heads.append(weights[-1] @ v[:, part])
        attentions.append(torch.stack(weights))
        y = (
            torch.cat(heads, -1) @ layer["attention.output.dense.weight"].T
            + layer["attention.output.dense.bias"]
        )
        x = x + layer["lambda_1"] * y
        y = normalized(x, layer["layernorm_after.weight"], layer["layernorm_after.bias"], eps)
        y = y @ layer["intermediate.dense.weight"].T + layer["intermediate.dense.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + layer["lambda_2"] * (
            y @ layer["output.dense.weight"].T + layer["output.dense.bias"]
        )
    pooled = normalized(
        x[1:].mean(0), t["pooler.layernorm.weight"], t["pooler.layernorm.bias"], eps
    )
    return x, pooled, attentions


@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_network_is_its_definition(with_gradients):
    model, pixels = build().double(), images().double()
    with torch.set_grad_enabled(with_gradients):
        out = model(pixels, output_attentions=True)
    for i in range(2):
        last, pooled, attentions = slow_beit(model, pixels[i], 3, 5)
        assert_close(out.last_hidden_state[i], last, 1e-10)
        assert_close(out.pooler_output[i], pooled, 1e-10)
        for ours, theirs in zip(out.attentions, attentions, strict=True):
            assert_close(ours[i], theirs, 1e-10)


def test_pixels_under_masked_patches_change_nothing():
    """Not even where they are not numbers."""
    model = build(
        BeitForMaskedImageModeling, use_mask_token=True, use_absolute_position_embeddings=True
    )
    mask = torch.zeros(2, 15, dtype=torch.bool)
    mask[0, [0, 7, 14]] = mask[1, [3]] = True
    pixels = images()
    hidden = mask.view(2, 1, 3, 5).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(pixels)
    for junk in (1e4, float("nan"), float("inf")):
        assert torch.equal(
            model(pixels, mask).logits, model(pixels.masked_fill(hidden, junk), mask).logits
        )
    assert not torch.equal(model(pixels, mask).logits, model(pixels).logits)
    visible = pixels.clone()
    visible[0, :, 0, 9] += 1.0  # patch 1 of the first image is not masked
    assert not torch.equal(model(pixels, mask).logits[0], model(visible, mask).logits[0])


def test_masked_pixels_get_no_gradient():
    model = build(BeitForMaskedImageModeling, use_mask_token=True)
    pixels, mask = images().requires_grad_(), torch.zeros(2, 3, 5, dtype=torch.int64)
    mask[:, 1, 2] = 1
    model(pixels, mask).logits.square().sum().backward()
    assert float(pixels.grad[:, :, 8:16, 16:24].abs().max()) == 0.0
    assert float(pixels.grad[:, :, 8:16, 24:32].abs().min()) > 0.0


def test_labels_of_all_patches_or_of_the_masked_ones():
    model = build(BeitForMaskedImageModeling, use_mask_token=True)
    mask, codes = torch.rand(2, 15) > 0.5, torch.randint(0, 17, (2, 15))
    flat = model(images(), mask, labels=codes[mask]).loss
    assert_close(model(images(), mask, labels=codes).loss, flat)
    assert_close(model(images(), mask.long(), labels=codes[mask]).loss, flat)
    assert_close(flat, nn.functional.cross_entropy(model(images(), mask).logits[mask], codes[mask]))
    unmasked = nn.functional.cross_entropy(model(images()).logits.flatten(0, 1), codes.flatten())
    assert_close(model(images(), labels=codes).loss, unmasked)
    with pytest.raises(InputError, match=r"labels have shape \(3,\)"):
        model(images(), mask, labels=torch.zeros(3, dtype=torch.long))


def test_labels_in_the_grid_of_patches_and_an_empty_mask():
    model = build(BeitForMaskedImageModeling, use_mask_token=True)
    mask, codes = torch.rand(2, 3, 5) > 0.5, torch.randint(0, 17, (2, 3, 5))
    wanted = model(images(), mask, labels=codes.flatten(1)).loss
    assert torch.equal(model(images(), mask, labels=codes).loss, wanted)
    for labels in (codes, codes[torch.zeros_like(mask)]):  # of all patches, of none
        loss = model(images(), torch.zeros_like(mask), labels=labels).loss
        assert loss.requires_grad and float(loss.detach()) == 0.0


def test_a_silenced_head_adds_nothing():
    model, mask = build(), torch.ones(3, 3)
    mask[1, 2] = 0.0
    out = model(images(), head_mask=mask, output_attentions=True)
    assert bool((out.attentions[1][:, 2] == 0.0).all()) and bool(
        (out.attentions[1][:, 1] > 0.0).all()
    )
    other = copy.deepcopy(model)
    # what the third head of the second block is multiplied by
    other.blocks[1].attention.output.dense.weight.data[:, 16:] = 0.0
    assert_close(out.last_hidden_state, other(images()).last_hidden_state)
    assert_close(
        model(images(), head_mask=torch.ones(3)).last_hidden_state,
        model(images()).last_hidden_state,
        0.0,
    )
    with pytest.raises(InputError, match=r"head_mask has shape \(2,\)"):
        model(images(), head_mask=torch.ones(2))
