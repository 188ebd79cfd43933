"""BEiT in Flax against transformers' Flax and PyTorch classes, and against ours in PyTorch."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json
from flax_networks import SMALL, TWO, images, run, saved
from headstart import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from headstart.errors import ConfigError, InputError, WeightsError

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import jax.numpy as jnp  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

import headstart  # noqa: E402
from headstart import FlaxBeitForImageClassification, FlaxBeitModel  # noqa: E402
from headstart.nn.flax import flax_layout, torch_layout, torch_name  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiler", "strict_ranks")

HEADS = ("BeitModel", "BeitForMaskedImageModeling", "BeitForImageClassification")
CASES = [
    case
    for case in golden_cases("transformers", "beit")
    if case.startswith(tuple(f"{head}__" for head in HEADS))
]


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


def config_with_everything():
    """Of a small network with every parameter that is optional."""
    return BeitConfig(
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


def test_initial_values():
    model = FlaxBeitModel(config_with_everything(), seed=3)
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


def test_parameters_are_initialized_apart_and_given():
    config = config_with_everything()
    model = FlaxBeitModel(config, seed=3)
    apart = FlaxBeitModel(config, seed=3, _do_init=False)
    with pytest.raises(InputError, match="holds no parameters"):
        apart.params  # noqa: B018
    initialized = model.init_weights(
        jax.random.key(3), params={"embeddings": {"cls_token": jnp.ones((1, 1, 96))}}
    )
    embeddings = model.params["embeddings"]
    assert jnp.array_equal(
        initialized["embeddings"]["position_embeddings"], embeddings["position_embeddings"]
    )
    assert bool((initialized["embeddings"]["cls_token"] == 1).all())
    with pytest.raises(InputError, match="_do_init=False"):
        apart.params = initialized
    with pytest.raises(WeightsError, match="missing: embeddings/mask_token"):
        rest = {key: value for key, value in embeddings.items() if key != "mask_token"}
        model.params = model.params | {"embeddings": rest}
    model.params = initialized
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
