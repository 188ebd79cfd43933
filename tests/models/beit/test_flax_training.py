"""Training BEiT in Flax: gradients, dropout, transformations, and many devices."""

import numpy as np
import pytest

from conftest import assert_close
from flax_networks import SMALL, TWO, images, run
from headstart import BeitConfig

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import jax.numpy as jnp  # noqa: E402

from headstart import FlaxBeitForImageClassification  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiler", "strict_ranks")


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


def test_data_and_heads_over_eight_devices():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    assert "equal" in run(SHARDED, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
