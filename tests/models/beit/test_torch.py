"""BEiT against transformers' and the authors' numbers, and against its own definition."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import assert_close, golden_cases, golden_dir, read_json
from golden_cases import check_case, flatten
from headstart import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from headstart.errors import ConfigError, InputError
from headstart.models.beit import torch as beit_torch
from headstart.models.beit.positions import relative_position_index, table_rows
from headstart.models.beit.torch import RelativeBias

CASES = [
    case
    for case in golden_cases("transformers", "beit")
    if not case.startswith(("BeitForSemantic", "BeitBackbone"))
]
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


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    check_case("beit", case)


# The definition, as slow and plain as possible


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


def normalised(x, weight, bias, eps):
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
        y = normalised(x, layer["layernorm_before.weight"], layer["layernorm_before.bias"], eps)
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
        y = normalised(x, layer["layernorm_after.weight"], layer["layernorm_after.bias"], eps)
        y = y @ layer["intermediate.dense.weight"].T + layer["intermediate.dense.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + layer["lambda_2"] * (
            y @ layer["output.dense.weight"].T + layer["output.dense.bias"]
        )
    pooled = normalised(
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


# Masks


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


# The kept bias


def count_expansions(monkeypatch):
    calls = []
    plain = RelativeBias.expanded
    monkeypatch.setattr(
        RelativeBias, "expanded", lambda self, *args: calls.append(self) or plain(self, *args)
    )
    return calls


@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_the_bias_is_expanded_once(monkeypatch, no_gradients):
    model, calls = build(use_shared_relative_position_bias=True), count_expansions(monkeypatch)
    with no_gradients():
        first = model(images()).last_hidden_state
        assert len(calls) == 4
        assert torch.equal(model(images()).last_hidden_state, first) and len(calls) == 4
    # what was kept is no hindrance to training
    model.train()(images()).last_hidden_state.sum().backward()
    assert len(calls) == 8
    with no_gradients():
        model.eval()(images())
    assert len(calls) == 12


@pytest.mark.parametrize(
    "change", ["in place", "data", "load_state_dict", "another tensor", "double", "another size"]
)
def test_the_cached_bias_notices(change):
    model, x = build(), images()
    with torch.no_grad():
        model(x)
        bias = model.blocks[1].attention.attention.relative_position_bias
        table = bias.relative_position_bias_table
        if change == "in place":
            table.mul_(2.0)
        elif change == "data":
            table.data[0::3] += 1.0
        elif change == "load_state_dict":
            model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
        elif change == "another tensor":
            bias.relative_position_bias_table = nn.Parameter(table * 3)
        elif change == "double":
            model, x = model.double(), x.double()
        else:
            x = images(32, 32)
        kept = model(x).last_hidden_state
    assert_close(kept, model(x).last_hidden_state, 1e-6)  # with gradients nothing is kept


def test_a_large_bias_is_not_cached(monkeypatch):
    monkeypatch.setattr(beit_torch, "KEPT_BYTES", 100)
    model, calls = build(), count_expansions(monkeypatch)
    with torch.no_grad():
        assert torch.equal(model(images()).pooler_output, model(images()).pooler_output)
    assert len(calls) == 6


def test_what_is_cached_is_not_copied_or_saved():
    model = build()
    with torch.no_grad():
        out = model(images()).last_hidden_state
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            bias = again.blocks[0].attention.attention.relative_position_bias
            assert bias.kept.entry is None and again._grid is None
            assert torch.equal(again(images()).last_hidden_state, out)
    assert not [name for name in model.state_dict() if "kept" in name]


# Ways to run


@pytest.mark.parametrize("flags", [{"output_attentions": True}, {"output_hidden_states": True}])
def test_more_outputs_do_not_change_the_others(flags):
    model = build()
    with torch.no_grad():
        plain, more = model(images()), model(images(), **flags)
    assert len(flatten(more)) > len(flatten(plain))
    if more.attentions:  # the product with the weights rounds otherwise than the fused one
        assert_close(plain.last_hidden_state, more.last_hidden_state, 1e-5)
        assert_close(more.attentions[2].sum(-1), torch.ones(2, 3, 16))
    else:
        assert torch.equal(plain.last_hidden_state, more.last_hidden_state)
        assert torch.equal(more.hidden_states[3], plain.last_hidden_state)


def test_attention_weights_are_on_the_path():
    """Their gradient is what moving one weight does to the output."""
    model = build(num_hidden_layers=2, attention_probs_dropout_prob=0.0).double()
    out = model(images().double(), output_attentions=True)
    out.attentions[1].retain_grad()
    out.pooler_output.sum().backward()
    slope = out.attentions[1].grad
    plain, changed = model.blocks[1].attention.split, []

    def moved(change):
        def split(x):
            v = plain(x)
            if len(changed) == 2:  # values: the third product of the block
                # one weight of head 1 more: query 2 reads key 4 so much more
                extra = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
                extra[0, 1, 2, 4] = change
                changed.append(extra @ v)
            else:
                changed.append(None)
            return v

        changed.clear()
        return split

    outputs = []
    for change in (-1e-5, 1e-5):
        attention = model.blocks[1].attention
        attention.split = moved(change)
        dense = attention.output.dense
        hook = dense.register_forward_pre_hook(
            lambda _, args: (args[0] + changed[2].transpose(1, 2).reshape(args[0].shape),)
        )
        with torch.no_grad():
            outputs.append(float(model(images().double()).pooler_output.sum()))
        hook.remove()
        del attention.split
    assert_close(slope[0, 1, 2, 4], torch.tensor((outputs[1] - outputs[0]) / 2e-5).double(), 1e-5)


def test_older_files_hold_an_index_which_is_left_out():
    """In a plain `load_state_dict`, under the prefix of a wrapper of the user's too."""
    model = build(BeitForImageClassification, use_shared_relative_position_bias=True)
    wrapper = nn.ModuleDict({"net": model})
    index = {
        name.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.long)
        for name in wrapper.state_dict()
        if name.endswith("relative_position_bias_table")
    }
    assert len(index) == 4
    assert not [name for name in model.state_dict() if "index" in name]
    torch.manual_seed(1)
    other = BeitForImageClassification(model.config)
    nn.ModuleDict({"net": other}).load_state_dict(wrapper.state_dict() | index)
    assert torch.equal(other.eval()(images()).logits, model(images()).logits)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = build(BeitForImageClassification, use_shared_relative_position_bias=True).train()
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        (
            model.gradient_checkpointing_enable()
            if checkpointing
            else model.gradient_checkpointing_disable()
        )
        model(images(), labels=torch.tensor([0, 4])).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


EVERY_POSITION = {
    "num_hidden_layers": 2,
    "use_absolute_position_embeddings": True,
    "use_shared_relative_position_bias": True,
}


def test_compiled_without_graph_breaks():
    model = build(BeitForImageClassification, **EVERY_POSITION)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in ((24, 40), (32, 32), (16, 48)):
            assert_close(compiled(images(*size)).logits, model(images(*size)).logits)
    loss = compiled(images(), labels=torch.tensor([0, 4])).loss
    assert_close(loss, model(images(), labels=torch.tensor([0, 4])).loss)
    torch.compiler.reset()


def test_exported_with_any_batch_and_size():
    model = build(BeitForImageClassification, **EVERY_POSITION)
    batch, high, wide = (
        torch.export.Dim(name, min=2, max=90) for name in ("batch", "high", "wide")
    )
    shapes = {"pixel_values": {0: batch, 2: 8 * high, 3: 8 * wide}}
    program = torch.export.export(model, (images(32, 48),), dynamic_shapes=shapes).module()
    for size in ((24, 40), (40, 24), (64, 16)):
        assert_close(program(images(*size, batch=3)).logits, model(images(*size, batch=3)).logits)


def test_bfloat16_and_autocast_are_near():
    model = build(BeitForImageClassification, use_shared_relative_position_bias=True)
    with torch.no_grad():
        exact = model(images()).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images()).logits
        small = copy.deepcopy(model).bfloat16()(images()).logits
    assert small.dtype == torch.bfloat16
    assert_close(mixed, exact, 3e-2)
    assert_close(small, exact, 5e-2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(images(), labels=torch.tensor([0, 4])).loss
    loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for n, p in model.named_parameters()
        if "norm." not in n or "pooler" in n
    )


def test_stochastic_depth_and_dropout_only_in_training():
    model = build(drop_path_rate=0.5, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    assert torch.equal(model(images()).last_hidden_state, model(images()).last_hidden_state)
    model.train()
    assert not torch.equal(model(images()).last_hidden_state, model(images()).last_hidden_state)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.25, 0.5]


def test_initial_values():
    config = BeitConfig(
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        use_relative_position_bias=True,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=1e-5,
    )
    model = BeitForMaskedImageModeling(config)
    blocks = model.beit.blocks
    assert_close(blocks[0].attention.attention.query.weight.std(), 0.02, 1e-3)
    assert_close(blocks[1].output.dense.weight.std(), 0.02 / 2, 1e-3)
    assert_close(blocks[0].attention.output.dense.weight.std(), 0.02 / math.sqrt(2), 1e-3)
    attention = blocks[0].attention.attention
    assert not attention.relative_position_bias.relative_position_bias_table.any()
    assert not attention.query.bias.any() and attention.key.bias is None
    assert torch.equal(blocks[1].lambda_2, torch.full((96,), 1e-5))
    embeddings = model.beit.embeddings
    assert embeddings.mask_token.any() and embeddings.position_embeddings.any()
    assert (
        BeitModel(BeitConfig(**(SMALL | {"layer_scale_init_value": 0}))).blocks[0].lambda_1 is None
    )


def test_masked_modelling_with_class_token_pooling_has_one_norm():
    """Two in a row are transformers' (its golden case runs them); the authors have one."""
    model = build(BeitForMaskedImageModeling, use_mean_pooling=False)
    names = [
        name for name, _ in model.named_parameters() if "norm" in name and ".layer." not in name
    ]
    assert names == ["layernorm.weight", "layernorm.bias"]
    folder = golden_dir("transformers", "beit", "BeitForMaskedImageModeling__abs_clspool")
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    ours = BeitForMaskedImageModeling.from_pretrained(folder, compat="authors")
    assert not np.allclose(
        ours(x["pixel_values"], x["bool_masked_pos"]).logits.detach(), expected["logits"], atol=1e-3
    )


# What cannot be


@pytest.mark.parametrize("case", ["wrong_channels", "abs_nonsquare_config", "patch_tuple_rel"])
def test_what_transformers_refuses(case):
    """Other shapes of images and patches work here; what cannot be is said clearly."""
    rows = json.loads((golden_dir("transformers") / "RAISES.json").read_text())
    row = next(each for each in rows if (each["class"], each["case"]) == ("BeitModel", case))
    model = BeitModel(BeitConfig(**row["config"])).eval()
    inputs = {name: torch.randn(*shape) for name, shape in row["input_shapes"].items()}
    if case == "wrong_channels":
        with pytest.raises(InputError, match=r"expected \(batch, 3, height, width\)"):
            model(**inputs)
    else:
        patches = math.prod(model.config.grid)
        assert model(**inputs).last_hidden_state.shape == (
            inputs["pixel_values"].shape[0],
            1 + patches,
            24,
        )


def test_clear_errors():
    with pytest.raises(InputError, match="no mask token; set use_mask_token=True"):
        build()(images(), torch.ones(2, 15))
    with pytest.raises(InputError, match=r"bool_masked_pos has shape \(2, 9\); expected \(2, 15\)"):
        build(use_mask_token=True)(images(), torch.ones(2, 9))
    with pytest.raises(InputError, match=r"images of \(4, 40\) are smaller than one patch"):
        build()(images(4, 40))
    with pytest.raises(ConfigError, match="num_attention_heads=5 does not divide hidden_size=24"):
        BeitConfig(**(SMALL | {"num_attention_heads": 5}))
    with pytest.raises(ConfigError, match="image_size='big'"):
        BeitConfig(image_size="big")
    with pytest.raises(ConfigError, match="smaller than patch_size=16"):
        BeitConfig(image_size=8)
    with pytest.raises(ConfigError, match="bias_resize='nearest'"):
        BeitConfig(bias_resize="nearest")


def test_the_page_of_the_configuration():
    """The seed page's example, and its defaults."""
    configuration = BeitConfig()
    with torch.device("meta"):
        model = BeitModel(configuration)
    assert model.config is configuration
    published = read_json(
        golden_dir("transformers", "beit", "BeitModel__clspool_plain") / "config.json"
    )
    ours = configuration.to_dict()
    assert {key for key in published if key not in ours} == {
        "architectures",
        "dtype",
        "stage_names",
        "transformers_version",
    }
