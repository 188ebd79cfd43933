"""BEiT's segmentation and backbone against transformers' and the authors' numbers, and against
their own definition.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import assert_close, golden_cases, golden_dir
from golden_cases import check_case, flatten
from headstart import BeitBackbone, BeitConfig, BeitForSemanticSegmentation
from headstart.errors import ConfigError, InputError
from headstart.models.beit.segmentation import convolve_resized, pixel_loss

CASES = [
    case
    for case in golden_cases("transformers", "beit")
    if case.startswith(("BeitForSemantic", "BeitBackbone"))
]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": [64, 96],
    "patch_size": 16,
    "num_labels": 6,
    "auxiliary_channels": 8,
    "use_relative_position_bias": True,
    "drop_path_rate": 0.0,
    "pool_scales": [1, 2, 3],
    "out_indices": [0, 1, 2, 3],
}


def build(cls=BeitForSemanticSegmentation, **values):
    """A network whose weights are all large enough to matter."""
    torch.manual_seed(0)
    model = cls(BeitConfig(**(SMALL | values))).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model


def images(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    # the decoder's sums are reordered
    check_case("beit", case, 1e-5 if case.startswith("BeitBackbone") else 1e-4)


# The definition


@pytest.mark.parametrize(
    "size, wanted",
    [((3, 5), (6, 10)), ((2, 3), (8, 12)), ((3, 4), (7, 9)), ((1, 1), (4, 5)), ((6, 6), (4, 3))],
)
def test_convolution_and_resizing_change_places(size, wanted):
    x, weight = (
        torch.randn(2, 4, *size, dtype=torch.float64),
        torch.randn(5, 4, 3, 3, dtype=torch.float64),
    )
    slow = F.conv2d(
        F.interpolate(x, size=wanted, mode="bilinear", align_corners=False), weight, padding=1
    )
    # PyTorch resizes with float32 weights
    assert_close(convolve_resized(x, weight, wanted), slow, 1e-6)


def slow_decoder(head, maps):
    """UPerNet as the paper draws it: resize, concatenate, convolve."""

    def resize(x, like):
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    def conv(unit, x):
        y = F.conv2d(x, unit.conv.weight, padding=unit.conv.padding)
        return F.batch_norm(
            y, unit.bn.running_mean, unit.bn.running_var, unit.bn.weight, unit.bn.bias, eps=1e-5
        ).relu()

    last = maps[3]
    pools = [
        resize(conv(unit[1], F.adaptive_avg_pool2d(last, scale)), last)
        for unit, scale in zip(head.psp_modules, head.scales, strict=True)
    ]
    levels = [conv(unit, x) for unit, x in zip(head.lateral_convs, maps[:3], strict=True)] + [
        conv(head.bottleneck, torch.cat([last, *pools], 1))
    ]
    for i in (3, 2, 1):
        levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1])
    outs = [conv(unit, x) for unit, x in zip(head.fpn_convs, levels[:3], strict=True)] + [levels[3]]
    x = conv(head.fpn_bottleneck, torch.cat([resize(each, outs[0]) for each in outs], 1))
    return F.conv2d(x, head.classifier.weight, head.classifier.bias)


@pytest.mark.parametrize("decoder_channels", [None, 20])
def test_the_decoder_is_its_definition(decoder_channels):
    model = build(decoder_channels=decoder_channels).double()
    maps = [
        torch.randn(2, 16, *size, dtype=torch.float64)
        for size in ((20, 28), (10, 14), (5, 7), (2, 3))
    ]
    assert_close(model.decode_head(maps), slow_decoder(model.decode_head, maps), 1e-6)


def test_the_pyramid_of_large_patches():
    model = build()
    maps = [torch.randn(2, 16, 5, 7) for _ in range(4)]
    first, second, third, fourth = model.pyramid(maps)
    up = model.fpn1
    assert_close(first, up[3](F.gelu(up[1](up[0](maps[0])))))
    assert first.shape == (2, 16, 20, 28) and second.shape == (2, 16, 10, 14)
    assert torch.equal(third, maps[2]) and torch.equal(fourth, F.max_pool2d(maps[3], 2))


def test_the_pyramid_of_patches_of_eight_pixels():
    """The authors start it at twice the patches, so that all maps are at the same scales of the
    image.
    """
    model = build(patch_size=8)
    maps = [torch.randn(2, 16, 8, 12) for _ in range(4)]
    out = model.pyramid(maps)
    assert_close(out[0], model.fpn1[0](maps[0]))
    assert (
        torch.equal(out[1], maps[1])
        and torch.equal(out[2], F.max_pool2d(maps[2], 2))
        and torch.equal(out[3], F.max_pool2d(maps[3], 4))
    )
    assert model(images()).logits.shape == (2, 6, 16, 24)
    names = set(model.state_dict())
    assert {name for name in names if name.startswith("fpn")} == {"fpn1.0.weight", "fpn1.0.bias"}
    assert build(patch_size=8, pyramid_scale=4)(images()).logits.shape == (2, 6, 32, 48)


# Losses


def test_both_means_of_the_loss():
    logits, labels = torch.randn(2, 6, 8, 12), torch.randint(0, 6, (2, 32, 48))
    labels[:, :7] = 255
    scores = F.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
    valid = F.cross_entropy(scores, labels, ignore_index=255)
    assert_close(pixel_loss(logits, labels, BeitConfig(semantic_loss_mean="valid")), valid)
    assert_close(pixel_loss(logits, labels, BeitConfig(semantic_loss_mean="all")), valid * 25 / 32)
    for mean in ("valid", "all"):
        assert (
            float(
                pixel_loss(
                    logits, torch.full_like(labels, 255), BeitConfig(semantic_loss_mean=mean)
                )
            )
            == 0.0
        )


def test_the_auxiliary_loss_is_weighted():
    model, labels = build(decoder_dropout=0.0), torch.randint(0, 6, (2, 64, 96))
    losses = []
    for weight in (0.0, 0.5, 1.0):
        model.config.auxiliary_loss_weight = weight
        losses.append(model(images(), labels=labels).loss.detach())
    assert_close(losses[2] - losses[0], 2 * (losses[1] - losses[0]), 1e-5)
    assert float(losses[2]) > float(losses[0])
    assert_close(
        build(use_auxiliary_head=False)(images(), labels=labels).logits.shape,
        torch.tensor([2, 6, 16, 24]),
    )


# What is not computed


def called(model):
    """Names of the modules that a forward pass calls."""
    names = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: names.append(name))
    return names


def test_blocks_after_the_last_one_and_the_auxiliary_head_are_not_run():
    model = build()
    names = called(model)
    plain = model(images())
    assert (
        "beit.encoder.layer.3" in names
        and "beit.encoder.layer.4" not in names
        and "auxiliary_head" not in names
    )
    model(images(), labels=torch.zeros(2, 64, 96, dtype=torch.long))
    assert "auxiliary_head" in names and "beit.encoder.layer.4" not in names
    out = model(images(), output_hidden_states=True, output_attentions=True)
    assert (
        "beit.encoder.layer.4" in names and len(out.hidden_states) == 6 and len(out.attentions) == 5
    )
    # the product with the weights rounds otherwise than the fused one
    assert_close(out.logits, plain.logits, 1e-5)
    states = model(images(), output_hidden_states=True)
    assert torch.equal(states.logits, plain.logits)


# Sizes, and ways to run


@pytest.mark.parametrize("height, width", [(64, 96), (96, 64), (48, 80), (33, 47), (160, 32)])
def test_images_of_any_size(height, width):
    model = build(use_absolute_position_embeddings=True)
    out = model(images(height, width), labels=torch.zeros(2, height, width, dtype=torch.long))
    assert out.logits.shape == (2, 6, height // 16 * 4, width // 16 * 4) and out.loss.isfinite()


def test_bfloat16_and_checkpointing():
    model = build(batch_norm_eps=1e-3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = model(images()).logits
    assert_close(mixed, model(images()).logits, 5e-2)
    labels, grads = torch.randint(0, 6, (2, 64, 96)), []
    model.config.decoder_dropout = 0.0
    model.decode_head.dropout.p = model.auxiliary_head.dropout.p = 0.0
    for checkpointing in (False, True):
        model.train().zero_grad()
        (
            model.gradient_checkpointing_enable()
            if checkpointing
            else model.gradient_checkpointing_disable()
        )
        model(images(), labels=labels).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(value, grads[1][name]) for name, value in grads[0].items()) and grads[0]


def test_the_backbone_runs_only_what_it_returns():
    model = build(BeitBackbone, out_indices=[1, 3])
    names = called(model)
    out = model(images(48, 80))
    assert "encoder.layer.2" in names and "encoder.layer.3" not in names
    assert [tuple(each.shape) for each in out.feature_maps] == [(2, 16, 3, 5)] * 2
    assert model.channels == [16, 16]
    everything = model(images(48, 80), output_hidden_states=True)
    assert torch.equal(everything.feature_maps[1], out.feature_maps[1])
    assert_close(
        everything.hidden_states[3][:, 1:].transpose(1, 2).reshape(2, 16, 3, 5),
        out.feature_maps[1],
        0.0,
    )


# What cannot be


@pytest.mark.parametrize("case", ["nonsquare_image", "bigger_image", "image_tuple", "out_indices3"])
def test_what_transformers_refuses(case):
    rows = json.loads((golden_dir("transformers") / "RAISES.json").read_text())
    row = next(
        each
        for each in rows
        if (each["class"], each["case"]) == ("BeitForSemanticSegmentation", case)
    )
    # counted as the authors do
    values = row["config"] | ({"out_indices": [0, 1, 2, 3]} if case != "out_indices3" else {})
    if case == "out_indices3":
        with pytest.raises(
            ConfigError,
            match=r"reads four blocks, in order; out_indices or pyramid_blocks gives \[1, 2, 3\]",
        ):
            BeitForSemanticSegmentation(BeitConfig(**values))
        return
    shape = row["input_shapes"]["pixel_values"]
    out = BeitForSemanticSegmentation(BeitConfig(**values)).eval()(torch.randn(*shape))
    assert out.logits.shape == (shape[0], 6, shape[2] // 4, shape[3] // 4)


def test_a_backbone_with_a_pyramid_needs_no_epsilon():
    maps = build(BeitBackbone, out_indices=[0, 1, 2, 4], add_fpn=True)(images()).feature_maps
    assert [tuple(each.shape[2:]) for each in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with pytest.raises(ConfigError, match="out_features names 2"):
        build(BeitBackbone, out_indices=[0, 1], add_fpn=True)


def test_clear_errors():
    with pytest.raises(
        ConfigError,
        match=(
            r"cannot read blocks \[1, 2, 3, 5\]: out_indices counts blocks from 0 there, so that 4"
            r" is the last"
        ),
    ):
        build(out_indices=[1, 2, 3, 5])
    model = build()
    with pytest.raises(
        InputError, match=r"the pyramid needs 2 patches a side; images of \(1, 6\) patches"
    ):
        model(images(16, 96))
    with pytest.raises(
        InputError,
        match=r"labels are torch.int64 \(2, 1, 64, 96\); expected integers \(2, height, width\)",
    ):
        model(images(), labels=torch.zeros(2, 1, 64, 96, dtype=torch.long))
    with pytest.raises(InputError, match="batch of two or more"):
        model.train()(images(batch=1))
    labels = torch.zeros(2, 64, 96, dtype=torch.long)
    labels[1, 3, 4], labels[0, 0, 0] = 9, 255
    with pytest.raises(
        InputError, match=r"1 pixels have labels that are not classes, such as 9;.*5"
    ):
        model(images(), labels=labels)
    with pytest.raises(InputError, match="num_labels=1"):
        build(num_labels=1)(images(), labels=torch.zeros(2, 64, 96, dtype=torch.long))


@pytest.mark.parametrize(
    "depth, blocks",
    [(12, [3, 5, 7, 11]), (24, [7, 11, 15, 23]), (4, [0, 1, 1, 3]), (1, [0, 0, 0, 0])],
)
def test_blocks_where_the_configuration_names_none(depth, blocks):
    """At a third, half, two thirds and the end: the authors' choice for both sizes."""
    assert BeitConfig(num_hidden_layers=depth).segmentation_blocks() == blocks


def test_saved_folders_say_what_transformers_would_compute(tmp_path):
    model = build(decoder_channels=20)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for sentence in (
        "reads the blocks [0, 1, 2, 3] here, [-2, -1, 0, 1] there",
        "decoder of another width",
        "height and width exchanged",
    ):
        assert sentence in card
    again = BeitForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config == model.config and again.blocks == [0, 1, 2, 3]
    for a, b in zip(
        flatten(model(images())).values(), flatten(again(images())).values(), strict=True
    ):
        assert_close(a, b, 1e-6)


def test_other_blocks_on_request(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    assert BeitForSemanticSegmentation.from_pretrained(
        tmp_path, out_indices=[1, 2, 3, 4]
    ).blocks == [1, 2, 3, 4]
    assert BeitForSemanticSegmentation.from_pretrained(
        tmp_path, pyramid_blocks=[-1, 0, 2, 4]
    ).blocks == [-1, 0, 2, 4]
