"""BEiT in Flax against transformers' Flax and PyTorch classes, and against ours in PyTorch."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import jax.numpy as jnp  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

import headstart  # noqa: E402
from headstart.nn.flax import our_name, torch_layout  # noqa: E402

HEADS = ("BeitModel", "BeitForMaskedImageModeling", "BeitForImageClassification")
CASES = [case for case in golden_cases("transformers", "beit") if case.startswith(tuple(f"{head}__" for head in HEADS))]


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
        return {k: v for i, each in enumerate(value) for k, v in flatten(each, f"{name}.{i}").items()}
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
    flat = {our_name(path): torch_layout(path, np.asarray(value)) for path, value in flatten_dict(tree).items()}
    return model.name_table(model.config).to_theirs(flat)


@pytest.mark.parametrize("case", golden_cases("transformers", "flax"))
@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
def test_the_original_flax_classes(case, file):
    folder = golden_dir("transformers", "flax", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    model = getattr(headstart, meta["class"]).from_pretrained(folder / file)
    assert model.config.compat == "transformers"
    out = flatten(jax.jit(lambda params, inputs: model(**inputs, params=params, **meta["call"]))(model.params, inputs))
    expected = load_file(folder / "outputs.safetensors")
    assert set(out) == set(expected)
    for name, value in expected.items():
        assert_close(out[name], value, 1e-5, f"{case} {name}")


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    folder = golden_dir("transformers", "beit", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    model = getattr(headstart, "Flax" + meta["class"]).from_pretrained(folder, compat="transformers")
    labels = inputs.pop("labels", None)
    call = {key: value for key, value in meta["call"].items() if key != "interpolate_pos_encoding"}

    def run(params):
        out = model(**inputs, params=params, **call)
        return (0.0 if labels is None else loss_of(model.config, out.logits, labels, inputs.get("bool_masked_pos"))), out

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
        tolerance = 1e-4 if noise is None else max(1e-4, 5 * noise["fp32_vs_fp64_max_abs_diff"] / max(1.0, noise["max_abs"]))
        assert_close(out[name], value, tolerance, f"{case} {name}")
