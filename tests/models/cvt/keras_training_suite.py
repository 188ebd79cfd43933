"""How the Keras networks train on each backend: `fit`, batches, dropout, mixed precision.

`test_keras.py` runs this file once a backend, in the process of `keras_suite.py`.
"""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from conftest import assert_close
from headstart import TFCvtForImageClassification, TFCvtModel
from headstart.errors import InputError
from keras_networks import BACKEND, gradients, pair, pixels, run, small

# Keras turns torch tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def test_all_kinds_of_labels(tmp_path):
    x = pixels(2, 3, 32, 32)
    for count, labels in [
        (3, np.eye(3, dtype="float32")[:2]),
        (1, np.array([0.5, -1.0], "float32")),
        (3, np.array([2, 1])),
    ]:
        theirs, ours = pair(tmp_path / str(count) / str(labels.ndim), num_labels=count)
        expected = theirs(torch.tensor(x), torch.tensor(labels)).loss
        assert_close(ops.convert_to_numpy(run(ours, x, labels=labels).loss), expected, 1e-5)


@pytest.mark.parametrize("own_loss", [True] if BACKEND == "jax" else [True, False])
def test_fit_evaluate_predict(own_loss):
    """Learns to tell bright images from dark ones; batch norm's statistics move in fit alone."""
    keras.utils.set_random_seed(0)
    model = TFCvtForImageClassification(small(drop_rate=[0.02] * 2, attention_drop_rate=[0.02] * 2))
    labels = np.arange(16) % 3
    x = (0.1 * pixels(16, 3, 32, 32) + (labels - 1)[:, None, None, None]).astype("float32")
    loss = None if own_loss else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    jit = {"jit_compile": True} if BACKEND != "torch" else {}
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"], **jit)
    attention = model.cvt.encoder.stages[0].layers[0].attention.attention
    part = attention.convolution_projection_query.convolution_projection
    statistics = part.normalization.moving_mean
    before = ops.convert_to_numpy(statistics)
    history = model.fit(x, labels, epochs=8, batch_size=8, verbose=0).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    after = ops.convert_to_numpy(statistics)
    assert not np.allclose(before, after)
    # a forward pass under XLA is looked at below; each compilation takes many seconds
    if BACKEND == "tensorflow":
        model.compile(loss=loss, metrics=["accuracy"], jit_compile=False)
    scores = model.evaluate(x, labels, batch_size=8, verbose=0, return_dict=True)
    predicted = model.predict(x, batch_size=8, verbose=0)
    assert predicted.logits.shape == (16, 3)
    assert np.array_equal(after, ops.convert_to_numpy(statistics))
    direct = run(model, x, labels=labels)
    assert_close(predicted.logits, ops.convert_to_numpy(direct.logits), 1e-4)
    assert_close(scores["loss"], ops.convert_to_numpy(direct.loss), 1e-4)
    assert scores["accuracy"] == pytest.approx(
        float((predicted.logits.argmax(-1) == labels).mean())
    )
    if own_loss:
        named = {"pixel_values": x, "labels": labels}
        assert (
            model.evaluate(named, batch_size=8, verbose=0, return_dict=True)["accuracy"]
            == scores["accuracy"]
        )


def test_weights_of_examples_and_classes_count_in_the_networks_own_loss():
    """A weight of zero moves nothing; weights multiply each example's loss, as Keras' own do."""
    labels, x = np.array([0, 1, 2, 1]), pixels(4, 3, 32, 32)
    model = TFCvtForImageClassification(small(1))
    model.compile(keras.optimizers.SGD(0.1))
    kernel = model.classifier.kernel
    before = ops.convert_to_numpy(kernel)
    batch = {"batch_size": 4, "verbose": 0}
    model.fit(x, labels, sample_weight=np.zeros(4, "float32"), **batch)
    assert np.array_equal(ops.convert_to_numpy(kernel), before)
    model.fit(x, labels, class_weight=dict.fromkeys(range(3), 0.0), **batch)
    assert np.array_equal(ops.convert_to_numpy(kernel), before)

    weight = np.array([0.5, 0.0, 2.0, 1.0], "float32")
    logits = ops.convert_to_numpy(run(model, x).logits)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits, weight)
    for inputs, y in ((x, labels), ({"pixel_values": x, "labels": labels}, None)):
        found = model.compute_loss(inputs, y, logits, weight)
        assert_close(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), 1e-5)
    with pytest.raises(InputError, match=r"sample_weight has shape \(4, 3\); .* one weight"):
        model.compute_loss(x, labels, logits, np.ones((4, 3), "float32"))


def test_float_class_numbers_are_refused():
    model = TFCvtForImageClassification(small(1))
    with pytest.raises(InputError, match=r"cast to int"):
        model.compute_loss(None, np.array([0.0, 2.0], "float32"), np.zeros((2, 3), "float32"))


def test_an_error_in_the_first_step_leaves_the_weights():
    """On JAX, Keras empties the variables before a step, which may never come to its end."""
    model = TFCvtForImageClassification(small(1))
    x, labels = pixels(2, 3, 32, 32), np.array([0.0, 2.0], "float32")
    before = ops.convert_to_numpy(model.classifier.kernel)
    model.compile("sgd")
    with pytest.raises(InputError, match=r"cast to int"):
        model.fit(x, labels, verbose=0)
    assert np.array_equal(ops.convert_to_numpy(model.classifier.kernel), before)
    assert np.isfinite(ops.convert_to_numpy(run(model, x).logits)).all()
    model.fit(x, labels.astype(int), verbose=0)
    assert not np.array_equal(ops.convert_to_numpy(model.classifier.kernel), before)


def test_predict_leaves_out_the_loss():
    model = TFCvtForImageClassification(small(1))
    x, labels = pixels(5, 3, 32, 32), np.arange(5) % 3
    expected = model.predict(x, batch_size=2, verbose=0)
    assert list(expected) == ["logits"] and expected.logits.shape == (5, 3)
    found = model.predict({"pixel_values": x, "labels": labels}, batch_size=2, verbose=0)
    assert list(found) == ["logits"]
    assert_close(found.logits, expected.logits, 1e-6)


class Batches(keras.utils.PyDataset):
    """Two batches of images with labels."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return pixels(2, 3, 32, 32, seed=index), np.array([0, 1 + index])


def steady():
    """A small configuration in whose training nothing is random."""
    return small(1, drop_path_rate=[0.0])


def loader():
    """The same batches, from PyTorch."""
    batches = [Batches()[i] for i in range(2)]
    x, y = (torch.tensor(np.concatenate(each)) for each in zip(*batches, strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)


def test_fit_on_every_source_of_batches():
    """The same two batches give the same weights, whatever brings them."""
    sources = {
        "dataset": lambda: Batches(),
        "generator": lambda: (Batches()[i] for i in range(2)),
        "loader": loader,
    }
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x, y = (
            np.concatenate(each) for each in zip(*(Batches()[i] for i in range(2)), strict=True)
        )
        sources["tf.data"] = lambda: tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    start = TFCvtForImageClassification(steady()).get_weights()
    found = {}
    for name, source in sources.items():
        model = TFCvtForImageClassification(steady())
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
        model.fit(source(), shuffle=False, verbose=0, steps_per_epoch=2)
        found[name] = ops.convert_to_numpy(model.classifier.kernel)
    for name, kernel in found.items():
        assert_close(kernel, found["dataset"], 1e-5, name)
    assert not np.allclose(found["dataset"], start[-2])


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes one step a time there")
def test_several_steps_in_one_execution():
    start = TFCvtForImageClassification(steady()).get_weights()
    found = []
    for steps in (1, 2):
        model = TFCvtForImageClassification(steady())
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), steps_per_execution=steps)
        model.fit(Batches(), shuffle=False, verbose=0)
        found.append(ops.convert_to_numpy(model.classifier.kernel))
    assert_close(found[1], found[0], 1e-5)


def test_a_loop_of_ones_own():
    """`train_on_batch`, and a step by the backend's own gradients, do what `fit` does."""
    x, labels = Batches()[0]
    model = TFCvtForImageClassification(steady())
    start = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1))
    model.train_on_batch(x, labels)
    expected = ops.convert_to_numpy(model.classifier.kernel)
    model.set_weights(start)
    step = gradients(model, x, labels, training=True)["classifier.weight"].T
    assert_close(ops.convert_to_numpy(model.classifier.kernel) - 0.1 * step, expected, 1e-5)


def test_dropout_and_batch_statistics_only_in_training():
    model = TFCvtModel(
        small(drop_rate=[0.2] * 2, attention_drop_rate=[0.2] * 2, drop_path_rate=[0.5] * 2)
    )
    x = pixels(4, 3, 32, 32)
    first, second = (
        ops.convert_to_numpy(run(model, x, training=True).last_hidden_state) for _ in range(2)
    )
    assert not np.allclose(first, second, atol=1e-3)
    first, second = (ops.convert_to_numpy(run(model, x).last_hidden_state) for _ in range(2))
    assert np.array_equal(first, second)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    from headstart.nn.keras import DropPath

    layer = DropPath(0.25)
    y = ops.convert_to_numpy(layer(np.ones((4000, 2, 3), "float32"), training=True))
    assert set(np.unique(y).round(4)) == {0.0, np.float32(1 / 0.75).round(4)}
    assert (y == y[:, :1, :1]).all() and abs(y.mean() - 1) < 0.05
    assert np.array_equal(
        ops.convert_to_numpy(layer(np.ones((4, 2, 3), "float32"))), np.ones((4, 2, 3))
    )


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    _, ours = pair(tmp_path, drop_path_rate=[0.0] * 2)
    for stage in ours.cvt.encoder.stages:
        for block in stage.layers:
            for name in ("query", "key", "value"):
                part = getattr(block.attention.attention, f"convolution_projection_{name}")
                part.convolution_projection.normalization.trainable = False
    x = pixels(2, 3, 32, 32)
    assert_close(
        ops.convert_to_numpy(run(ours, x, training=True).logits),
        ops.convert_to_numpy(run(ours, x).logits),
        1e-5,
    )


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16"] if BACKEND == "jax" else ["mixed_bfloat16", "mixed_float16"]
)
def test_mixed_precision(tmp_path, policy):
    _, exact = pair(tmp_path)
    model = TFCvtForImageClassification.from_pretrained(tmp_path, dtype=policy)
    assert model.cvt.encoder.stages[0].layers[
        0
    ].intermediate.dense.compute_dtype == policy.removeprefix("mixed_")
    x = pixels(2, 3, 32, 32)
    out = run(model, x)
    assert keras.backend.standardize_dtype(out.logits.dtype) == "float32"
    assert_close(ops.convert_to_numpy(out.logits), ops.convert_to_numpy(run(exact, x).logits), 5e-2)
    if policy == "mixed_bfloat16":
        model.compile("sgd", metrics=["accuracy"])
        assert np.isfinite(model.fit(x, np.array([0, 1]), verbose=0).history["loss"]).all()
