"""BEiT in Flax against transformers' Flax and PyTorch classes, and against ours in PyTorch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json
from headstart import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from headstart.errors import ConfigError, InputError, WeightsError

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import jax.numpy as jnp  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

import headstart  # noqa: E402
from headstart import FlaxBeitForImageClassification, FlaxBeitModel  # noqa: E402
from headstart.nn.flax import flax_layout, torch_layout, torch_name  # noqa: E402

HEADS = ("BeitModel", "BeitForMaskedImageModeling", "BeitForImageClassification")
CASES = [
    case
    for case in golden_cases("transformers", "beit")
    if case.startswith(tuple(f"{head}__" for head in HEADS))
]


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """XLA compiles more than it computes here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def strict_ranks():
    """Broadcasting between arrays of different rank is an error."""
    with jax.numpy_rank_promotion("raise"):
        yield


def flatten(value, name=""):
    """Named arrays of an output, tuple parts as `name.N`."""
    if isinstance(value, tuple):
        return {
            k: v for i, each in enumerate(value) for k, v in flatten(each, f"{name}.{i}").items()
        }
    if hasattr(value, "items"):
        return {k: v for key, each in value.items() for k, v in flatten(each, key).items()}
    return {name: value}


def loss_of(config, logits, labels, mask):
    """What the PyTorch classes compute from the labels."""
    if logits.ndim == 3:
        rows = np.nonzero(mask.reshape(-1))[0]
        logits, labels = logits.reshape(-1, logits.shape[-1])[rows], labels.reshape(-1)
    if config.problem_type == "regression" or config.num_labels == 1 and logits.shape[1] == 1:
        return jnp.mean((logits[:, 0] - labels.reshape(-1)) ** 2)
    if labels.ndim == 2:
        return jnp.mean(jax.nn.softplus(logits) - labels * logits)
    return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(len(labels)), labels])


def published(model, tree):
    """A tree of parameters (or gradients) by published names, in PyTorch's layout."""
    flat = {
        torch_name(path): torch_layout(path, np.asarray(value))
        for path, value in flatten_dict(tree).items()
    }
    return model.name_table(model.config).to_theirs(flat)


def jitted(model, *inputs, **call):
    """The network's output, compiled."""
    return jax.jit(lambda params, inputs: model(*inputs, params=params, **call))(
        model.params, inputs
    )


@pytest.mark.parametrize("case", golden_cases("transformers", "flax"))
def test_the_original_flax_classes(case):
    folder = golden_dir("transformers", "flax", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    cls = getattr(headstart, meta["class"])
    model, same = cls.from_pretrained(folder / "flax_model.msgpack"), cls.from_pretrained(folder)
    assert model.config.compat == same.config.compat == "transformers"
    assert jax.tree.all(jax.tree.map(jnp.array_equal, model.params, same.params))
    out = flatten(
        jitted(model, inputs["pixel_values"], inputs.get("bool_masked_pos"), **meta["call"])
    )
    expected = load_file(folder / "outputs.safetensors")
    assert set(out) == set(expected)
    for name, value in expected.items():
        assert_close(out[name], value, 1e-5, f"{case} {name}")


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    folder = golden_dir("transformers", "beit", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    model = getattr(headstart, "Flax" + meta["class"]).from_pretrained(
        folder, compat="transformers"
    )
    labels = inputs.pop("labels", None)
    call = {key: value for key, value in meta["call"].items() if key != "interpolate_pos_encoding"}

    def run(params):
        out = model(**inputs, params=params, **call)
        return (
            0.0
            if labels is None
            else loss_of(model.config, out.logits, labels, inputs.get("bool_masked_pos"))
        ), out

    expected = load_file(folder / "outputs.safetensors")
    grads_file = folder / "grads.safetensors"
    if grads_file.exists():
        (loss, out), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(model.params)
        ours = published(model, grads)
        theirs = load_file(grads_file)
        assert set(theirs) <= set(ours)
        for name, value in theirs.items():
            limit = 1e-4 * max(1e-3, float(np.abs(value).max()))
            assert float(np.abs(ours[name] - value).max()) <= limit, f"gradient of {name}"
    else:
        loss, out = run(model.params)
    out = flatten(out) | ({} if labels is None else {"loss": loss})
    assert set(out) == set(expected)
    for name, value in expected.items():
        noise = meta["noise"].get(name)
        tolerance = (
            1e-4
            if noise is None
            else max(1e-4, 5 * noise["fp32_vs_fp64_max_abs_diff"] / max(1.0, noise["max_abs"]))
        )
        assert_close(out[name], value, tolerance, f"{case} {name}")


# Against the PyTorch class, and through files

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
TWO = {"num_hidden_layers": 2}


def images(height=24, width=40, batch=2):
    return np.random.default_rng(0).standard_normal((batch, 3, height, width), np.float32)


def saved(folder, cls=BeitForImageClassification, **values):
    """A PyTorch network whose weights are all large enough to matter, in a folder."""
    torch.manual_seed(0)
    model = cls(BeitConfig(**(SMALL | values))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """One small network for the tests that do not care which."""
    folder = tmp_path_factory.mktemp("classifier")
    saved(folder, **TWO, use_mask_token=True)
    return FlaxBeitForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("method", ["geometric", "bilinear"])
def test_any_size_as_in_pytorch(tmp_path, method):
    places = {
        "use_shared_relative_position_bias": True,
        "use_absolute_position_embeddings": True,
        "patch_size": [8, 4],
    }
    theirs = saved(
        tmp_path, **places, bias_resize=method, bias_by_width=method == "bilinear", num_channels=4
    )
    ours = FlaxBeitForImageClassification.from_pretrained(tmp_path, from_pt=True)

    def four(*size):
        return images(*size)[:, [0, 1, 2, 0]]

    for size in ((24, 40), (32, 33)):
        with torch.no_grad():
            expected = theirs(torch.from_numpy(four(*size))).logits
        assert_close(jitted(ours, four(*size)).logits, expected, 1e-4, str(size))


def test_a_checkpoint_of_another_resolution_as_in_pytorch(tmp_path):
    saved(tmp_path, image_size=24, use_absolute_position_embeddings=True, **TWO)
    with torch.no_grad():
        expected = BeitForImageClassification.from_pretrained(tmp_path, image_size=[24, 40])(
            torch.from_numpy(images())
        ).logits
    ours = FlaxBeitForImageClassification.from_pretrained(tmp_path, image_size=[24, 40])
    assert_close(jitted(ours, images()).logits, expected, 1e-4)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (BeitModel, {"use_mean_pooling": False, "layer_scale_init_value": 0.0}),
        (
            BeitForMaskedImageModeling,
            {"use_mask_token": True, "use_shared_relative_position_bias": True, "norm_twice": True},
        ),
        (BeitForImageClassification, {"use_absolute_position_embeddings": True}),
        (BeitForImageClassification, {"num_labels": 0}),
    ],
)
def test_what_it_saves_the_pytorch_class_loads(tmp_path, cls, values):
    theirs = saved(tmp_path / "torch", cls, **(TWO | values))
    ours = getattr(headstart, "Flax" + cls.__name__).from_pretrained(tmp_path / "torch")
    assert ours.num_parameters() == theirs.num_parameters()
    ours.save_pretrained(tmp_path / "flax", max_shard_size=20_000)
    again, info = cls.from_pretrained(tmp_path / "flax", output_loading_info=True)
    assert not any(info.values()) and again.config.architectures == [cls.__name__]
    assert all(
        torch.equal(value, theirs.state_dict()[key]) for key, value in again.state_dict().items()
    )
    assert read_json(tmp_path / "flax" / "config.json") == read_json(
        tmp_path / "torch" / "config.json"
    )


def test_saving_other_parameters_in_bfloat16(tmp_path, classifier):
    classifier.save_pretrained(tmp_path, params=classifier.to_bf16(classifier.params))
    exact = classifier.params["classifier"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    again = FlaxBeitForImageClassification.from_pretrained(tmp_path)
    assert {str(each.dtype) for each in jax.tree.leaves(again.params)} == {"bfloat16"}
    kernel = again.to_fp32(again.params)["classifier"]["kernel"]
    assert jnp.array_equal(kernel, exact)
    assert again.dtype == jnp.float32  # computes in float32 all the same
    assert again(images()).logits.dtype == jnp.float32
    assert (
        str(BeitForImageClassification.from_pretrained(tmp_path, dtype="auto").dtype)
        == "torch.bfloat16"
    )


def test_a_new_head_is_randomly_initialized_and_other_gaps_raise(tmp_path, caplog):
    saved(tmp_path / "a", **TWO)
    model, info = FlaxBeitForImageClassification.from_pretrained(
        tmp_path / "a", num_labels=7, output_loading_info=True
    )
    assert (
        model.params["classifier"]["kernel"].shape == (24, 7)
        and float(jnp.std(model.params["classifier"]["kernel"])) > 0.01
    )
    assert {key for key, _, _ in info["mismatched_keys"]} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert "classifier.weight" in caplog.text
    with pytest.raises(
        WeightsError,
        match=(
            r"shape: beit.encoder.layer.0.intermediate.dense.weight is \(40, 24\) in the"
            r" checkpoint, \(48, 24\)"
        ),
    ):
        FlaxBeitForImageClassification.from_pretrained(tmp_path / "a", intermediate_size=48)
    with pytest.raises(
        WeightsError, match=r"missing: beit.encoder.layer.2.layernorm_before.weight"
    ):
        FlaxBeitForImageClassification.from_pretrained(tmp_path / "a", num_hidden_layers=3)
    with pytest.raises(WeightsError, match=r"config.json must lie beside"):
        folder = golden_dir("transformers", "flax", "FlaxBeitModel__rel_per_layer")
        (tmp_path / "flax_model.msgpack").write_bytes((folder / "flax_model.msgpack").read_bytes())
        FlaxBeitModel.from_pretrained(tmp_path / "flax_model.msgpack")


def test_the_pytorch_class_reads_old_flax_files():
    folder = golden_dir("transformers", "flax", "FlaxBeitForImageClassification__cls")
    ours, theirs = (
        BeitForImageClassification.from_pretrained(folder / name)
        for name in ("flax_model.msgpack", "model.safetensors")
    )
    assert all(
        torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items()
    )


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5)])
def test_layouts_are_each_other_s_inverse(shape):
    kernel = np.arange(np.prod(shape)).reshape(shape)
    theirs = torch_layout(("kernel",), kernel)
    assert np.array_equal(flax_layout(("kernel",), theirs), kernel)
    assert theirs.shape == ((5, 4) if len(shape) == 2 else (5, 4, 2, 3))


# The wrapper


def test_initial_values():
    config = BeitConfig(
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        layer_scale_init_value=1e-5,
        use_relative_position_bias=True,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
    )
    model = FlaxBeitModel(config, seed=3)
    flat = {torch_name(path): value for path, value in flatten_dict(model.params).items()}
    for name, std in {
        "embeddings.patch_embeddings.projection.weight": 0.02,
        "embeddings.cls_token": 0.02,
        "embeddings.mask_token": 0.02,
        "embeddings.position_embeddings": 0.02,
        "encoder.layer.0.attention.attention.query.weight": 0.02,
        "encoder.layer.0.attention.output.dense.weight": 0.02 / 2**0.5,
        "encoder.layer.1.output.dense.weight": 0.02 / 2,
        "encoder.layer.1.intermediate.dense.weight": 0.02,
    }.items():
        assert 0.75 * std < float(flat[name].std()) < 1.25 * std, name
    assert all(
        float(value.min()) == float(value.max()) == 1.0
        for name, value in flat.items()
        if "layernorm" in name and name.endswith("weight")
    )
    assert all(not value.any() for name, value in flat.items() if name.endswith(("bias", "table")))
    assert np.allclose(flat["encoder.layer.1.lambda_2"], 1e-5)
    apart = FlaxBeitModel(config, seed=3, _do_init=False)
    with pytest.raises(InputError, match="holds no parameters"):
        apart.params  # noqa: B018
    drawn = model.init_weights(
        jax.random.key(3), params={"embeddings": {"cls_token": jnp.ones((1, 1, 96))}}
    )
    embeddings = model.params["embeddings"]
    assert jnp.array_equal(
        drawn["embeddings"]["position_embeddings"], embeddings["position_embeddings"]
    )
    assert bool((drawn["embeddings"]["cls_token"] == 1).all())
    with pytest.raises(InputError, match="_do_init=False"):
        apart.params = drawn
    with pytest.raises(WeightsError, match="missing: embeddings/mask_token"):
        rest = {key: value for key, value in embeddings.items() if key != "mask_token"}
        model.params = model.params | {"embeddings": rest}
    model.params = drawn
    assert float(model.params["embeddings"]["cls_token"].min()) == 1.0


def test_network_and_parameters_apart(tmp_path):
    saved(tmp_path, **TWO)
    whole = FlaxBeitForImageClassification.from_pretrained(tmp_path)
    model, params = FlaxBeitForImageClassification.from_pretrained(tmp_path, _do_init=False)
    assert jnp.array_equal(model(images(), params=params).logits, whole(images()).logits)


def test_casts_and_masks(classifier):
    half = classifier.to_fp16(classifier.params)
    assert {str(each.dtype) for each in jax.tree.leaves(half)} == {"float16"}
    assert {str(each.dtype) for each in jax.tree.leaves(classifier.params)} == {"float32"}  # a copy
    assert {str(each.dtype) for each in jax.tree.leaves(classifier.to_fp32(half))} == {"float32"}
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" not in jax.tree_util.keystr(path), classifier.params
    )
    mixed = flatten_dict(
        classifier.to_bf16(
            classifier.params | {"step": jnp.zeros((), jnp.int32)}, mask | {"step": True}
        )
    )
    assert mixed[("step",)].dtype == jnp.int32
    assert (
        mixed[("beit", "encoder", "layer", "0", "layernorm_before", "scale")].dtype == jnp.float32
    )
    assert (
        mixed[("beit", "encoder", "layer", "0", "intermediate", "dense", "kernel")].dtype
        == jnp.bfloat16
    )


def test_computing_in_bfloat16_keeps_parameters(tmp_path, classifier):
    classifier.save_pretrained(tmp_path)
    half = FlaxBeitForImageClassification.from_pretrained(tmp_path, dtype="bfloat16")
    assert half.dtype == half.module.dtype == jnp.bfloat16
    out = jitted(half, images(), output_hidden_states=True, output_attentions=True)
    assert {str(each.dtype) for each in jax.tree.leaves(out)} == {"bfloat16"}
    assert {str(each.dtype) for each in jax.tree.leaves(half.params)} == {"float32"}
    assert_close(np.asarray(out.logits, np.float32), classifier(images()).logits, 5e-2)


def test_outputs_and_flags(classifier):
    plain = classifier(images())
    more = classifier(images(), output_hidden_states=True, output_attentions=True)
    assert list(plain) == ["logits"] and list(more) == ["logits", "hidden_states", "attentions"]
    assert_close(plain.logits, more.logits)
    assert len(more.hidden_states) == 3 and len(more.attentions) == 2
    assert_close(more.attentions[1].sum(-1), np.ones((2, 3, 16)))
    logits, states = classifier(images(), output_hidden_states=True, return_dict=False)
    assert jnp.array_equal(logits, plain.logits) and len(states) == 3
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(more)]
    assert paths[:2] == [".logits", ".hidden_states[0]"]
    assert type(jax.tree.map(lambda x: x, more)) is type(more)


def test_wrong_arguments(classifier):
    for pixels, message in [
        (images()[0], r"shape \(3, 24, 40\)"),
        (images().transpose(0, 2, 3, 1), r"expected \(batch, 3"),
        (images().astype(np.uint8), "uint8"),
        (images(4, 40), "smaller than one patch"),
        (None, "no pixel_values"),
    ]:
        with pytest.raises(InputError, match=message):
            classifier(pixels)
    with pytest.raises(
        InputError, match=r"bool_masked_pos has shape \(2, 14\); expected \(2, 15\)"
    ):
        classifier(images(), bool_masked_pos=np.zeros((2, 14), bool))
    with pytest.raises(InputError, match="dropout_rng"):
        FlaxBeitModel(BeitConfig(**SMALL | {"drop_path_rate": 0.1}), _do_init=False)(
            images(), train=True
        )
    with pytest.raises(InputError, match=r"head_mask has shape \(2,\)"):
        classifier(images(), head_mask=np.ones(2))
    without = FlaxBeitModel(BeitConfig(**SMALL), _do_init=False)
    with pytest.raises(InputError, match="no mask token"):
        without(images(), np.zeros((2, 15), bool), params=classifier.params["beit"])
    with pytest.raises(ConfigError, match="takes a BeitConfig"):
        FlaxBeitModel(headstart.CvtConfig())
    with pytest.raises(ConfigError, match="hidden_act='sine'"):
        FlaxBeitModel(BeitConfig(**SMALL | {"hidden_act": "sine"}))


# JAX's transformations


def test_the_module_alone():
    from headstart.models.beit.flax import BeitModule

    module = BeitModule(BeitConfig(**SMALL | TWO))
    pixels = jnp.asarray(images().transpose(0, 2, 3, 1))
    variables = module.init(jax.random.key(0), pixels)
    assert module.apply(variables, pixels).last_hidden_state.shape == (2, 16, 24)


def test_masked_pixels_and_silenced_heads_under_grad(classifier):
    mask = np.zeros((2, 15), np.int32)
    mask[:, 7] = 1  # row 1, column 2
    gradient = jax.jit(jax.grad(lambda x: classifier(x, mask).logits.sum()))(images())
    assert not gradient[:, :, 8:16, 16:24].any() and bool((gradient[:, :, 8:16, 24:32] != 0).all())
    silent = classifier(
        images(), head_mask=np.array([[1, 1, 1], [1, 0, 1]]), output_attentions=True
    )
    assert not silent.attentions[1][:, 1].any() and bool((silent.attentions[1][:, 0] > 0).all())
    assert not jnp.allclose(silent.logits, classifier(images()).logits)


def test_vmap_over_images_and_over_networks(classifier):
    each = jax.jit(jax.vmap(lambda image: classifier(image[None]).logits[0]))(images())
    assert_close(each, classifier(images()).logits, 1e-5)
    two = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), classifier.params)
    many = jax.jit(jax.vmap(lambda params: classifier(images(), params=params)))(two)
    assert many.logits.shape == (2, 2, 5)
    assert_close(
        many.logits[1],
        classifier(images(), params=jax.tree.map(lambda a: 2 * a, classifier.params)).logits,
        1e-4,
    )


def drops(**values):
    """A network with something to drop."""
    model = FlaxBeitForImageClassification(BeitConfig(**SMALL | TWO | values), _do_init=False)
    random = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda a: jnp.asarray(random.normal(0, 0.3, a.shape), jnp.float32), model.params_shape_tree
    )


@pytest.mark.parametrize(
    "name", ["drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"]
)
def test_dropout_only_in_training(name):
    (model, params), pixels = drops(**{name: 0.5}), images(batch=4)
    train = jax.jit(
        lambda key: model(
            pixels, params=params, train=True, dropout_rng=key, output_hidden_states=True
        )
    )
    quiet = jax.jit(
        lambda: model(
            pixels, params=params, dropout_rng=jax.random.key(1), output_hidden_states=True
        )
    )()
    one, again, other = (train(jax.random.key(i)) for i in (1, 1, 2))
    assert jnp.array_equal(one.logits, again.logits) and not jnp.allclose(
        one.logits, other.logits, atol=1e-3
    )
    assert not jnp.allclose(one.logits, quiet.logits, atol=1e-3)
    # the first block's rate is 0; of the second, an image loses a whole branch or keeps all of it,
    # doubled
    if name == "drop_path_rate":
        assert_close(one.hidden_states[1], quiet.hidden_states[1])
        lost = [
            jnp.allclose(o.hidden_states[2][i], o.hidden_states[1][i])
            for o in (one, other)
            for i in range(4)
        ]
        assert any(lost) and not all(lost)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, params = drops(
        num_hidden_layers=1,
        use_shared_relative_position_bias=True,
        attention_probs_dropout_prob=0.1,
    )

    def gradient():  # made anew: JAX remembers programs by their function
        def loss(params):
            return (
                model(images(), params=params, train=True, dropout_rng=jax.random.key(0)).logits
                ** 2
            ).sum()

        return jax.jit(jax.grad(loss))

    plain = gradient()(params)
    model.enable_gradient_checkpointing()
    assert "remat" in str(jax.make_jaxpr(gradient())(params))
    for a, b in zip(jax.tree.leaves(gradient()(params)), jax.tree.leaves(plain), strict=True):
        assert_close(a, b, 1e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
import headstart
from jax.sharding import NamedSharding, PartitionSpec as P
from headstart import BeitConfig, FlaxBeitForImageClassification

config = BeitConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
    image_size=[24, 40], patch_size=8, num_labels=5, use_relative_position_bias=True,
    use_shared_relative_position_bias=True, hidden_dropout_prob=0.3,
)
model = FlaxBeitForImageClassification(config, _do_init=False)
random = np.random.default_rng(0)
def normal(a):
    return jnp.asarray(random.normal(0, 0.3, a.shape), jnp.float32)

params = jax.tree.map(normal, model.params_shape_tree)
pixels = np.random.default_rng(0).standard_normal((4, 3, 24, 40)).astype(np.float32)

def loss(params, pixels):
    out = model(pixels, params=params, train=True, dropout_rng=jax.random.key(0))
    return (out.logits ** 2).mean(), out.logits

step = jax.jit(jax.value_and_grad(loss, has_aux=True))
(_, expected), wanted = step(params, pixels)
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
def put(a, spec):
    return jax.device_put(a, NamedSharding(mesh, spec))

spread = jax.tree.map(put, params, model.partition_specs("model"))
batch = jax.device_put(pixels, NamedSharding(mesh, P("data")))
(_, logits), grads = step(spread, batch)
def query_of(tree):
    return tree["beit"]["encoder"]["layer"]["0"]["attention"]["attention"]["query"]["kernel"]

query = query_of(spread)
assert len(query.sharding.device_set) == 8
assert {s.data.shape for s in query.addressable_shards} == {(32, 8)}
assert {s.data.shape for s in batch.addressable_shards} == {(2, 3, 24, 40)}
def worst(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
assert worst(logits, expected) < 1e-5, worst(logits, expected)
assert max(map(worst, jax.tree.leaves(grads), jax.tree.leaves(wanted))) < 1e-5
assert query_of(grads).sharding.spec == query.sharding.spec

kinds = (jax.sharding.AxisType.Explicit,) * 2
explicit = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
for images, arrays in (
    (jax.device_put(pixels, NamedSharding(explicit, P("data"))), params),
    (pixels, jax.tree.map(
        lambda a, spec: jax.device_put(a, NamedSharding(explicit, spec)), params,
        model.partition_specs("model"),
    )),
):
    for call in (step, lambda params, pixels: model(pixels, params=params)):
        try:
            call(arrays, images)
        except headstart.errors.InputError as error:
            assert "AxisType.Auto" in str(error), error
        else:
            raise AssertionError("an explicit mesh went through")
whole = jax.device_put(pixels, NamedSharding(explicit, P()))
assert worst(model(whole, params=params).logits, model(pixels, params=params).logits) < 1e-5
print("equal")
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_data_and_heads_over_eight_devices():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    assert "equal" in run(SHARDED, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def test_torch_is_not_imported():
    code = (
        "import sys; from headstart import FlaxBeitModel; print([m for m in ('torch', 'tensorflow',"
        " 'keras') if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_documented_arguments(tmp_path, classifier):
    classifier.save_pretrained(save_directory=tmp_path / "model", params=classifier.params)
    again = FlaxBeitForImageClassification.from_pretrained(
        pretrained_model_name_or_path=tmp_path,
        subfolder="model",
        config=tmp_path / "model" / "config.json",
        use_auth_token=False,
        force_download=False,
        from_pt=True,
    )
    again.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(
        tmp_path / "model" / "config.json"
    )
    with pytest.raises(TypeError, match="unexpected keyword 'nonsense'"):
        FlaxBeitForImageClassification.from_pretrained(tmp_path / "model", nonsense=1)
    with pytest.raises(TypeError, match="unexpected keyword 'nonsense'"):
        classifier.save_pretrained(tmp_path, nonsense=1)
    with pytest.raises(ConfigError, match="dtype='int32'"):
        FlaxBeitForImageClassification.from_pretrained(tmp_path / "model", dtype="int32")
    with pytest.raises(ConfigError, match="safe_serialization=False"):
        classifier.save_pretrained(tmp_path, safe_serialization=False)
