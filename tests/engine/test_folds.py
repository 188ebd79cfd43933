"""Folded networks against the reference numbers, and against themselves in every way of calling."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import headstart
from conftest import assert_close, golden_cases, golden_dir, read_json
from golden_cases import flatten, tolerance
from headstart.engine.folds import fold, image_size
from headstart.errors import ConfigError

CASES = [
    (family, case)
    for family in ("bit", "cvt", "beit", "yoso")
    for case in golden_cases("transformers", family)
]
HEADS = [each for each in CASES if "Model__" not in each[1] and "Backbone" not in each[1]]
# whether other engines' operators differ
KINDS = {"yoso": (False, True), "bit": (False, True), "cvt": (False,), "beit": (False,)}
PLAIN = {"output_hidden_states", "output_attentions", "labels", "start_positions", "end_positions"}


def load(family, case):
    folder = golden_dir("transformers", family, case)
    meta = read_json(folder / "meta.json")
    if meta["mode"] == "train":
        pytest.skip("a network in training is not folded")
    model = getattr(headstart, meta["class"]).from_pretrained(folder, compat="transformers")
    return (
        meta,
        model,
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )


@pytest.mark.parametrize(
    "family, case, portable", [(*each, portable) for each in CASES for portable in KINDS[each[0]]]
)
def test_golden_outputs(family, case, portable):
    """Every output, hidden states and losses too."""
    meta, model, inputs, expected = load(family, case)
    folded = fold(model, size=image_size(inputs), portable=portable)
    with torch.no_grad():
        ours = flatten(folded(**inputs, **meta["call"]))
    compared = [
        n
        for n in expected
        if not n.startswith("buffer_after.")
        and not (family == "yoso" and n.startswith("attentions"))
    ]
    for name in compared:
        assert_close(ours[name], expected[name], tolerance(meta, name, 1e-5), f"{case} {name}")
    assert compared


@pytest.mark.parametrize(
    "family, case, portable", [(*each, portable) for each in HEADS for portable in KINDS[each[0]]]
)
def test_lean_heads(family, case, portable):
    """What is left when only the scores are read."""
    meta, model, inputs, expected = load(family, case)
    inputs = {key: value for key, value in inputs.items() if key not in PLAIN}
    folded = fold(model, size=image_size(inputs), lean=True, portable=portable)
    call = {key: value for key, value in meta["call"].items() if key not in PLAIN}
    model.config.output_hidden_states = model.config.output_attentions = False
    with torch.no_grad():
        ours = flatten(folded(**inputs, **call, output_hidden_states=False))
    names = [name for name in expected if "logits" in name]
    for name in names:
        assert_close(ours[name], expected[name], tolerance(meta, name, 1e-5), f"{case} {name}")
    assert names


def test_nothing_is_left_to_fold():
    bit = headstart.BitModel(
        headstart.BitConfig(hidden_sizes=[32, 64], depths=[1, 1], num_groups=4, embedding_size=8)
    ).eval()
    folded = fold(bit)
    assert folded.embedder.convolution.standardized() is folded.embedder.convolution.weight
    cvt = headstart.CvtModel(
        headstart.CvtConfig(embed_dim=[8, 16], num_heads=[1, 2], depth=[1, 1], **two_stages())
    ).eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold(cvt).modules())
    config = headstart.BeitConfig(
        hidden_size=24,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=64,
        num_labels=5,
        patch_size=16,
        out_indices=[0, 1, 2, 3],
        pool_scales=[1, 2],
        use_relative_position_bias=True,
    )
    beit = headstart.BeitForSemanticSegmentation(config).eval()
    lean = fold(beit, size=(64, 96), lean=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lean.modules())
    assert (
        len(lean.beit.blocks) == max(beit.blocks) + 1 < len(beit.beit.blocks) == 6
        and lean.auxiliary_head is None
    )


def two_stages():
    listed = (
        "patch_sizes",
        "patch_stride",
        "patch_padding",
        "mlp_ratio",
        "attention_drop_rate",
        "drop_rate",
        "drop_path_rate",
    )
    listed += (
        "qkv_bias",
        "cls_token",
        "qkv_projection_method",
        "kernel_qkv",
        "padding_kv",
        "stride_kv",
        "padding_q",
        "stride_q",
    )
    default = headstart.CvtConfig()
    return {name: getattr(default, name)[1:] for name in listed}


def test_other_sizes_still_work():
    config = headstart.BeitConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=32,
        patch_size=8,
        use_relative_position_bias=True,
    )
    model = headstart.BeitModel(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "relative_position_bias_table"):
                module.relative_position_bias_table.normal_()
        folded = fold(model, size=(32, 32))
        for size in ((32, 32), (24, 40)):
            x = torch.randn(2, 3, *size)
            assert_close(folded(x).last_hidden_state, model(x).last_hidden_state, 1e-5)


def test_the_original_is_left_alone():
    model = headstart.BeitForImageClassification(
        headstart.BeitConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            image_size=32,
            patch_size=8,
        )
    ).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model, size=(32, 32), lean=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # shared, not copied
    assert (
        folded.beit.blocks[0].intermediate.dense.weight
        is model.beit.blocks[0].intermediate.dense.weight
    )


def test_refusals():
    model = headstart.BitModel(
        headstart.BitConfig(hidden_sizes=[32, 64], depths=[1, 1], num_groups=4, embedding_size=8)
    )
    with pytest.raises(ConfigError, match="training mode"):
        fold(model.train())
    with pytest.raises(ConfigError, match="Linear is not a PyTorch network"):
        fold(nn.Linear(2, 2))
    yoso = headstart.YosoModel(
        headstart.YosoConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            use_expectation=False,
        )
    ).eval()
    with pytest.raises(ConfigError, match="use_expectation=True"):
        fold(yoso, portable=True)
