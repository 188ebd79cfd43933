"""CvT against transformers' and the authors' numbers, and against its own definition."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from conftest import assert_close, golden_cases, golden_dir
from golden_cases import check_case
from headstart import CvtBackbone, CvtConfig, CvtForImageClassification, CvtModel
from headstart.errors import InputError
from headstart.models.cvt.config import PER_STAGE
from headstart.models.cvt.weights import TO_AUTHORS


@pytest.mark.parametrize("case", golden_cases("transformers", "cvt"))
def test_transformers_numbers(case):
    # Without a class token, the tuple of transformers loses its hidden states.
    check_case("cvt", case, tuples="no_cls_mean" not in case)


@pytest.mark.parametrize("case", golden_cases("authors", "cvt"))
def test_authors_numbers(case):
    folder = golden_dir("authors", "cvt", case)
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    model = CvtForImageClassification.from_pretrained(folder / "model.pth", compat="authors")
    out = model(x["x"], labels=x["labels"], output_hidden_states=True)
    for i, hidden in enumerate(out.hidden_states):
        assert_close(hidden, expected[f"stage{i}.x"], 1e-5, f"{case} stage {i}")
    assert_close(out.logits, expected["logits"].reshape(out.logits.shape), 1e-5, f"{case} logits")
    assert_close(out.loss, expected["loss"], 1e-5, f"{case} loss")
    out.loss.backward()
    published = TO_AUTHORS.to_theirs({name: p.grad for name, p in model.named_parameters()})
    for name, value in load_file(folder / "grads.safetensors").items():
        limit = 1e-4 * max(1e-3, float(value.abs().max()))
        worst = float((published[name] - value).abs().max())
        assert worst <= limit, (
            f"{case} gradient of {name}: differs by {worst:.3g}, allowed {limit:.3g}"
        )


SMALL = {
    "embed_dim": [8, 12, 24],
    "num_heads": [1, 3, 4],
    "depth": [1, 2, 3],
    "num_labels": 5,
    "layer_norm_eps": 1e-5,
}


def small(**values) -> CvtConfig:
    return CvtConfig(**(SMALL | values))


def stages(count: int, **values) -> CvtConfig:
    """A configuration of so many stages."""
    base = CvtConfig()
    lists = {name: [getattr(base, name)[min(i, 1)] for i in range(count)] for name in PER_STAGE}
    widths = {
        "embed_dim": [8 * (i + 1) for i in range(count)],
        "num_heads": [i + 1 for i in range(count)],
        "depth": [1] * count,
    }
    return CvtConfig(**(lists | widths | {"num_labels": 3} | values))


def made(cls, config, seed=0):
    """A network whose norms and statistics are not the trivial ones."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
            elif "cls_token" in name or tensor.ndim > 1:
                tensor.normal_(std=0.2)
    return model


def pixels(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_stages_and_any_depth(count):
    config = stages(count, cls_token=[False] * (count - 1) + [True])
    out = made(CvtModel, config)(pixels(2, 3, 40, 56), output_hidden_states=True)
    assert len(out.hidden_states) == count
    assert out.last_hidden_state.shape[:2] == (2, 8 * count) and out.cls_token_value.shape == (
        2,
        1,
        8 * count,
    )


def test_drop_path_grows_layer_by_layer_within_its_stage():
    """transformers gives all ten layers of stage 3 the rate 0.0222."""
    model = CvtModel(
        CvtConfig(drop_path_rate=[0.0, 0.2, 0.1], embed_dim=[8, 8, 8], num_heads=[1, 1, 1])
    )
    rates = [[block.drop_path.rate for block in stage.layers] for stage in model.encoder.stages]
    assert rates[1] == [0.0, 0.2]
    assert rates[2] == pytest.approx([0.1 * i / 9 for i in range(10)])


def test_drop_path_drops_the_branch_and_not_the_shortcut():
    model = made(CvtModel, small(depth=[2, 1, 1], drop_path_rate=[0.999, 0.0, 0.0]))
    block = model.encoder.stages[0].layers[1].train()
    x = pixels(2, 12, 8)
    torch.manual_seed(0)
    assert torch.equal(block(x, 3, 4)[0], x)


def test_each_class_token_has_the_width_of_its_stage():
    model = CvtModel(small(cls_token=[True, True, True]))
    assert [tuple(stage.cls_token.shape) for stage in model.encoder.stages] == [
        (1, 1, 8),
        (1, 1, 12),
        (1, 1, 24),
    ]
    assert model(pixels(1, 3, 32, 48)).cls_token_value.shape == (1, 1, 24)


def test_the_head_without_a_class_token_needs_no_hidden_states():
    model = made(CvtForImageClassification, small(cls_token=[False] * 3))
    out = model(pixels(1, 3, 33, 47))
    tokens = model.cvt(pixels(1, 3, 33, 47)).last_hidden_state.flatten(2).transpose(1, 2)
    assert_close(out.logits, model.classifier(model.layernorm(tokens).mean(1)))
    assert out.hidden_states is None


@pytest.mark.parametrize("method", ["avg", "linear", "dw_bn"])
def test_attention_is_its_definition(method):
    """One head and one pair of tokens at a time, from the projections of the paper."""
    config = small(qkv_projection_method=[method] * 3, stride_kv=[2, 2, 1])
    attention = made(CvtModel, config).encoder.stages[1].layers[0].attention
    x, height, width = pixels(2, 20, 12), 4, 5
    grid = x.transpose(1, 2).reshape(2, 12, height, width)

    def projected(name):
        y = grid
        if method == "avg" and name != "query":
            y = F.avg_pool2d(grid, 3, 2, 1, ceil_mode=True)
        if method == "dw_bn":
            part = getattr(attention.attention, f"convolution_projection_{name}")
            part = part.convolution_projection
            y = part.normalization(part.convolution(grid))
        linear = getattr(attention.attention, f"projection_{name}")
        return y.flatten(2).transpose(1, 2) @ linear.weight.T + linear.bias

    q, k, v = (projected(name) for name in ("query", "key", "value"))
    expected = torch.zeros(2, 20, 12)
    weights = torch.zeros(2, 3, 20, k.shape[1])
    for b in range(2):
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            for i in range(20):
                weights[b, head, i] = torch.softmax(
                    torch.stack([q[b, i, part] @ key[part] for key in k[b]]) * 12**-0.5, 0
                )
                expected[b, i, part] = weights[b, head, i] @ v[b, :, part]
    expected = expected @ attention.output.dense.weight.T + attention.output.dense.bias
    for weigh in (False, True):
        y, ours = attention(x, height, width, weigh)
        assert_close(y, expected, 1e-5)
    assert_close(ours, weights, 1e-5)


def test_output_attentions_are_the_weights_of_every_block():
    model = made(CvtForImageClassification, small())
    x = pixels(2, 3, 48, 32)
    out = model(x, output_attentions=True)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 1, 96, 24)] + 2 * [
        (2, 3, 24, 6)
    ] + 3 * [(2, 4, 7, 3)]
    for each in out.attentions:
        assert_close(each.sum(-1), torch.ones(each.shape[:-1]))
    assert_close(out.logits, model(x).logits, 1e-5)
    assert model(x).get("attentions") is None
    config = small(output_attentions=True)
    assert len(made(CvtModel, config)(x).attentions) == 6


@pytest.mark.parametrize("grad", [False, True])
def test_the_batch_changes_nothing(grad):
    model = made(CvtForImageClassification, small())
    x = pixels(3, 3, 45, 61)
    with torch.set_grad_enabled(grad):
        together = model(x).logits
        assert together.shape == (3, 5)
        for i in range(3):
            assert_close(model(x[i : i + 1]).logits, together[i : i + 1], 1e-5)


def test_evaluation_sees_changed_parameters_and_statistics():
    """Batch norm is folded into the convolution; a change of any of its parts must show."""
    model = made(CvtModel, small())
    x = pixels(1, 3, 32, 32)
    with torch.no_grad():
        convolution = "convolution_projection_value.convolution_projection."
        for name in (
            convolution + "convolution.weight",
            convolution + "normalization.weight",
            convolution + "normalization.bias",
            convolution + "normalization.running_mean",
            convolution + "normalization.running_var",
            "projection_value.weight",
        ):
            before = model(x).last_hidden_state
            part = model.get_submodule("encoder.stages.1.layers.0.attention.attention")
            part.state_dict()[name].data.mul_(1.5)
            assert not torch.allclose(before, model(x).last_hidden_state, rtol=1e-5, atol=1e-6), (
                name
            )


def test_onednn_products_are_the_usual_ones(monkeypatch):
    model = made(CvtForImageClassification, small())
    x = pixels(2, 3, 32, 48)
    with torch.no_grad():
        fast = model(x).logits
        monkeypatch.setattr("headstart.nn.linear._HAS_ONEDNN", False)
        assert_close(model(x).logits, fast, 1e-5)
        monkeypatch.undo()
        assert_close(
            torch.func.vmap(model.classifier)(pixels(4, 3, 24)),
            F.linear(pixels(4, 3, 24), *model.classifier.parameters()),
        )
    assert_close(model(x).logits, fast, 1e-5)


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none():
    model = made(CvtForImageClassification, small(drop_path_rate=[0.0] * 3)).train()
    x, labels = pixels(2, 3, 32, 48), torch.tensor([1, 4])
    model(x, labels=labels).loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    # A shift of all keys shifts all scores alike; and the class token, which the head reads, is no
    # convolved query of the last block.
    query = "2.layers.2.attention.attention.convolution_projection_query.convolution_projection."
    free = (
        "projection_key.bias",
        "convolution_projection_key.convolution_projection.normalization.bias",
        query + "convolution.weight",
        query + "normalization.weight",
        query + "normalization.bias",
    )
    assert not [n for n, g in grads.items() if not g.abs().sum() > 0 and not n.endswith(free)]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(x, labels=labels).loss.backward()
    for name, p in model.named_parameters():
        assert_close(p.grad, grads[name], 1e-5, name)


def test_training_uses_and_updates_batch_statistics():
    model = made(CvtModel, small())
    attention = model.encoder.stages[0].layers[0].attention.attention
    norm = attention.convolution_projection_query.convolution_projection.normalization
    before = norm.running_mean.clone()
    model.train()(pixels(2, 3, 32, 48))
    assert not torch.equal(norm.running_mean, before) and int(norm.num_batches_tracked) == 1
    after = norm.running_mean.clone()
    model.eval()(pixels(2, 3, 32, 48))
    assert torch.equal(norm.running_mean, after)


def test_compiles_without_graph_breaks():
    model = made(CvtForImageClassification, stages(2, cls_token=[False, True]))
    x = pixels(2, 3, 32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(x)[0], model(x)[0], 1e-5)
    compiled(x)[0].sum().backward()


@pytest.mark.filterwarnings(
    "ignore:.*:FutureWarning", "ignore:.*isinstance.treespec:DeprecationWarning"
)
def test_exports_with_dynamic_batch_and_size():
    model = made(CvtForImageClassification, stages(2, cls_token=[False, True]))
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        model, (pixels(2, 3, 48, 64),), dynamic_shapes={"pixel_values": dims}, strict=False
    )
    for shape in [(2, 3, 48, 64), (1, 3, 64, 80), (3, 3, 61, 45)]:
        x = pixels(*shape)
        assert_close(program.module()(x).logits, model(x).logits, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    model = made(CvtForImageClassification, small())
    x = pixels(2, 3, 48, 64)
    exact = model(x).logits
    half = model.to(dtype)(x.to(dtype)).logits
    assert half.dtype == dtype
    assert_close(half.float(), exact, 5e-2)


def test_autocast_runs():
    model = made(CvtForImageClassification, small())
    x = pixels(2, 3, 48, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_close(model(x).logits.float(), model.float()(x).logits.float(), 5e-2)


def test_backbone_gives_the_maps_of_its_stages():
    config = small(out_features=["stage1", "stage3"])
    backbone = made(CvtBackbone, config)
    x = pixels(2, 3, 48, 64)
    out = backbone(x, output_hidden_states=True)
    assert backbone.channels == [8, 24]
    assert [tuple(m.shape) for m in out.feature_maps] == [(2, 8, 12, 16), (2, 24, 3, 4)]
    assert torch.equal(out.feature_maps[0], out.hidden_states[0]) and torch.equal(
        out.feature_maps[1], out.hidden_states[2]
    )
    assert CvtBackbone(small(out_indices=[1])).channels == [12]


def test_tuples_and_flags():
    model = made(CvtForImageClassification, small())
    x, labels = pixels(2, 3, 32, 32), torch.tensor([0, 1])
    assert [type(each) for each in model(x, labels, True, False)] == [
        torch.Tensor,
        torch.Tensor,
        tuple,
    ]
    assert made(CvtModel, small(return_dict=False))(x)[1].shape == (2, 1, 24)
    assert len(made(CvtModel, small(output_hidden_states=True))(x).hidden_states) == 3


def test_bad_inputs_say_what_is_wrong():
    model = made(CvtModel, small())
    with pytest.raises(InputError, match=r"\(2, 1, 32, 32\)"):
        model(pixels(2, 1, 32, 32))
    with pytest.raises(InputError, match=r"\(2, 2\) are too small"):
        model(pixels(1, 3, 2, 2))
    with pytest.raises(InputError, match="no pixel_values"):
        model()
