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

from beit_networks import SMALL, build, images
from conftest import assert_close, golden_cases, golden_dir, read_json
from golden_cases import check_case, flatten
from headstart import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from headstart.errors import ConfigError, InputError
from headstart.models.beit import torch as beit_torch
from headstart.models.beit.torch import RelativeBias

CASES = [
    case
    for case in golden_cases("transformers", "beit")
    if not case.startswith(("BeitForSemantic", "BeitBackbone"))
]


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    check_case("beit", case)


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
    # what was kept is not a hindrance to training
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


@pytest.mark.parametrize("case", ["wrong_channels", "abs_nonsquare_config", "patch_tuple_rel"])
def test_what_transformers_refuses(case):
    """Other shapes of images and patches work here; what cannot be raises a clear error."""
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
    with pytest.raises(ConfigError, match="makes 1,048,576 patches; expected at most 262,144"):
        BeitConfig(image_size=4096, patch_size=4)
    assert BeitConfig(image_size=4096, patch_size=8).grid == (512, 512)
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
