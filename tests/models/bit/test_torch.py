"""BiT against transformers' and the authors' numbers, and against its own definition."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json
from golden_cases import check_case
from headstart import BitBackbone, BitConfig, BitForImageClassification, BitModel
from headstart.errors import ConfigError, InputError
from headstart.models.bit.torch import StandardizedConv2d, standardize
from headstart.nn.layers import pad_same

SMALL = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 2, 1, 1],
    "num_groups": 4,
}


def small(**values) -> BitConfig:
    return BitConfig(**(SMALL | values))


@pytest.mark.parametrize("case", golden_cases("transformers", "bit"))
def test_transformers_numbers(case):
    check_case("bit", case)


@pytest.mark.parametrize("case", golden_cases("authors", "bit"))
def test_authors_numbers(case):
    folder = golden_dir("authors", "bit", case)
    meta, x = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "outputs.safetensors")
    overrides = {} if meta["num_groups"] == 32 else {"num_groups": meta["num_groups"]}
    model = BitForImageClassification.from_pretrained(
        folder / "weights.npz", compat="authors", **overrides
    )
    if meta["zero_head"]:
        torch.nn.init.zeros_(model.classifier[1].weight)
        torch.nn.init.zeros_(model.classifier[1].bias)
    out = model(x["x"], labels=x.get("labels"), output_hidden_states=True)
    for i, name in enumerate(["root", "body.block1", "body.block2", "body.block3", "body.block4"]):
        if name in expected:
            assert_close(out.hidden_states[i], expected[name], 1e-5, f"{case} {name}")
    assert_close(out.logits, expected["logits"], 1e-5, f"{case} logits")
    if (folder / "grads.safetensors").exists() and "loss" in expected:
        assert_close(out.loss, expected["loss"])


def test_standardised_filters_are_the_definition():
    """Each filter on its own, in double precision.

    Minus its mean, over the root of its variance plus eps.
    """
    weight = (
        torch.randn(3, 4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 1e-4
    )
    ours = standardize(weight, 1e-10)
    for filter_, out in zip(weight, ours, strict=True):
        values = filter_.flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        expected = [(v - mean) / (variance + 1e-10) ** 0.5 for v in values]
        torch.testing.assert_close(
            out.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    "size, kernel, stride", [(7, 3, 2), (8, 3, 2), (5, 7, 2), (2, 7, 2), (9, 3, 1)]
)
def test_same_padding_is_tensorflows(size, kernel, stride):
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + kernel - size)
    padded = pad_same(torch.ones(1, 1, size, size + 1), kernel, stride)
    assert padded.shape[2] == size + total
    assert padded[0, 0, :, padded.shape[3] // 2].tolist() == [0.0] * (total // 2) + [1.0] * size + [
        0.0
    ] * (total - total // 2)


class TestKeptFilters:
    """Standardised filters are kept in evaluation and never outlive the weights they came from."""

    def setup_method(self):
        self.conv = StandardizedConv2d(4, 6, 3, small()).eval()
        self.x = torch.randn(1, 4, 8, 8)

    def fresh(self):
        return torch.nn.functional.conv2d(
            self.x, standardize(self.conv.weight, self.conv.eps), padding=1
        )

    @torch.no_grad()
    def test_cached_between_calls(self):
        self.conv(self.x)
        first = self.conv.kept.entry[1]
        self.conv(self.x)
        assert self.conv.kept.entry[1] is first

    @pytest.mark.parametrize(
        "change",
        [
            lambda w: w.mul_(torch.rand(4, 1, 1)),
            lambda w: w.data.copy_(torch.randn(6, 4, 3, 3)),
            lambda w: setattr(w, "data", torch.randn(6, 4, 3, 3)),
        ],
        ids=["in place", "through data", "other data"],
    )
    @torch.no_grad()
    def test_changed_weights_are_noticed(self, change):
        self.conv(self.x)
        change(self.conv.weight)
        assert torch.equal(self.conv(self.x), self.fresh())

    def test_training_and_gradients_do_not_use_them(self):
        with torch.no_grad():
            self.conv(self.x)
        self.conv(self.x).sum().backward()
        assert self.conv.weight.grad is not None

    @torch.no_grad()
    def test_copies_and_moves(self):
        self.conv(self.x)
        twin = copy.deepcopy(self.conv)
        twin.weight.zero_()
        assert torch.equal(twin(self.x), torch.zeros(1, 6, 8, 8))
        assert self.conv.double()(self.x.double()).dtype == torch.float64

    def test_inference_mode(self):
        with torch.inference_mode():
            first = self.conv(self.x)
            second = StandardizedConv2d(4, 6, 3, small()).eval()(self.x)
        assert torch.equal(first, self.fresh()) and second.shape == first.shape


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("layer_type", ["preactivation", "bottleneck"])
def test_output_stride_dilates(layer_type, stride):
    """A dilated network sees, at every `32 / stride`-th place, what the strided one sees.

    Same filters, same receptive field.
    """
    torch.manual_seed(0)
    strided = BitModel(small(depths=[1, 2, 2, 2], layer_type=layer_type)).double().eval()
    dilated = (
        BitModel(small(depths=[1, 2, 2, 2], layer_type=layer_type, output_stride=stride))
        .double()
        .eval()
    )
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    for module in [*strided.modules(), *dilated.modules()]:
        # the statistics of the denser map differ; everything else must not
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda y: y.relu()
    fine, coarse = dilated(x).last_hidden_state, strided(x).last_hidden_state
    step = 32 // stride
    assert fine.shape[-1] == coarse.shape[-1] * step
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-9, atol=1e-9)
    other = (
        BitModel(
            small(
                depths=[1, 2, 2, 2],
                layer_type=layer_type,
                output_stride=stride,
                dilate_preactivation=False,
            )
        )
        .double()
        .eval()
    )
    assert [m.dilation for m in other.modules() if isinstance(m, StandardizedConv2d)] != [
        m.dilation for m in dilated.modules() if isinstance(m, StandardizedConv2d)
    ] or layer_type == "bottleneck"


@pytest.mark.parametrize("layer_type", ["preactivation", "bottleneck"])
def test_width_factor_widens_everything(layer_type):
    model = BitForImageClassification(small(width_factor=2, layer_type=layer_type, num_labels=3))
    assert model.bit.embedder.convolution.weight.shape[0] == 32
    assert model.classifier[1].weight.shape == (3, 128)
    assert model(torch.randn(2, 3, 40, 48)).logits.shape == (2, 3)


@pytest.mark.parametrize("layer_type", ["preactivation", "bottleneck"])
def test_valid_padding_runs_and_crops_the_shortcut(layer_type):
    model = BitModel(small(global_padding="valid", layer_type=layer_type)).eval()
    x = torch.randn(1, 3, 160, 176)
    maps = model(x, output_hidden_states=True).hidden_states
    assert [tuple(m.shape[-2:]) for m in maps] == [(39, 43), (37, 41), (16, 18), (7, 8), (3, 3)]
    # Without padding no pixel outside a window matters: shifting the window by the whole stride
    # shifts the map.
    block = copy.deepcopy(model.encoder.stages[1].layers[0]).double()
    y = torch.randn(1, 16, 15, 17, dtype=torch.float64)
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.GroupNorm)):
        norm.forward = lambda z: z
    torch.testing.assert_close(block(y)[:, :, 1:, 1:], block(y[:, :, 2:, 2:]))
    with pytest.raises(InputError, match=r"\(40, 40\) are too small"):
        model(torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize("act", ["selu", "silu", "gelu_new", torch.nn.functional.elu])
def test_documented_activations(act):
    assert (
        BitModel(small(hidden_act=act))(torch.randn(1, 3, 32, 32))
        .last_hidden_state.isfinite()
        .all()
    )


def test_activations_are_checked():
    with pytest.raises(ConfigError, match="hidden_act='step'; expected one of relu"):
        BitModel(small(hidden_act="step"))


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.zeros(2, 4, 32, 32), r"shape \(2, 4, 32, 32\); expected \(batch, 3"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (None, "no pixel_values"),
    ],
)
def test_bad_pixels(pixels, message):
    with pytest.raises(InputError, match=message):
        BitModel(small())(pixels)


def test_stochastic_depth_grows_and_only_in_training():
    model = BitModel(small(depths=[1, 2, 2, 1], drop_path_rate=0.5))
    rates = [block.drop_path.rate for stage in model.encoder.stages for block in stage.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    x = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], model(x)[0])


def test_backbone_channels_and_order():
    model = BitBackbone(small(out_features=["stem", "stage3"]))
    maps = model(torch.randn(2, 3, 64, 48)).feature_maps
    assert model.channels == [16, 40] and [tuple(m.shape) for m in maps] == [
        (2, 16, 16, 12),
        (2, 40, 4, 3),
    ]


def test_channels_last_path_is_equal():
    """A batch runs in another memory layout than its images alone; the numbers agree."""
    torch.manual_seed(0)
    model = BitModel(small()).eval()
    x = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together = model(x).last_hidden_state
        alone = torch.cat([model(each[None]).last_hidden_state for each in x])
    assert_close(together, alone, 1e-5)
