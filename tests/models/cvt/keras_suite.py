"""What the Keras networks must do on each backend.

`test_keras.py` runs this file once a backend, in a process of its own.
"""

import keras
import numpy as np
import pytest
import torch
from keras import ops
from safetensors.numpy import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json
from headstart import (
    CvtConfig,
    CvtForImageClassification,
    CvtModel,
    KerasCvtModel,
    TFCvtForImageClassification,
    TFCvtModel,
)
from headstart.errors import ConfigError, InputError, WeightsError
from headstart.models.cvt.config import PER_STAGE
from headstart.nn.keras import named_variables

# Keras turns torch tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
BACKEND = keras.backend.backend()
CLASSES = {"CvtModel": TFCvtModel, "CvtForImageClassification": TFCvtForImageClassification}
WIDTHS = {"embed_dim": [8, 12, 16], "num_heads": [1, 3, 2], "depth": [1, 1, 2]}


# JAX compiles for seconds a case, so there it gets the cases that differ most.
JAX_CASES = (
    "TFCvtForImageClassification__single_label",
    "TFCvtModel__no_cls_nonsquare",
    "CvtForImageClassification__train_bn",
    "CvtModel__kernel5_stride1",
    "avg_odd",
    "cls_every_stage",
)


def cases(*parts):
    """The golden cases for this backend."""
    return [case for case in golden_cases(*parts) if BACKEND != "jax" or case in JAX_CASES]


def arrays(out):
    """Every output by name, tuple parts as `name.N`."""
    found = {}
    for key, value in out.items():
        for i, each in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            found[f"{key}.{i}" if i != "" else key] = ops.convert_to_numpy(each)
    return found


def small(count=2, **values):
    """A small configuration of so many stages, the last ones of three."""
    lists = {name: getattr(CvtConfig(), name)[-count:] for name in PER_STAGE} | {
        name: each[-count:] for name, each in WIDTHS.items()
    }
    return CvtConfig(
        **(
            lists
            | {"num_labels": 3, "layer_norm_eps": 1e-5, "patch_stride": [4, 2, 2][:count]}
            | values
        )
    )


def pixels(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pair(tmp_path, cls="CvtForImageClassification", **values):
    """A PyTorch network with trained-looking norms and statistics, and the Keras one with its
    weights.
    """
    torch.manual_seed(0)
    theirs = {"CvtModel": CvtModel, "CvtForImageClassification": CvtForImageClassification}[cls](
        small(**values)
    ).eval()
    with torch.no_grad():
        for tensor in [*theirs.parameters(), *theirs.buffers()]:
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                tensor.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    return theirs, CLASSES[cls].from_pretrained(tmp_path)


COMPILED = {}


def run(model, x, **flags):
    """A call; compiled as a whole on JAX, where compiling each operation alone takes minutes."""
    if BACKEND != "jax":
        return model(x, **flags)
    import jax

    state = [
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    ]
    plain = all(isinstance(value, bool) for value in flags.values())
    key = (id(model), *sorted(flags.items())) if plain else object()
    if key not in COMPILED:  # with the model, so that no other gets its id
        COMPILED[key] = model, jax.jit(lambda a, b, x: model.stateless_call(a, b, x, **flags))
    out, still = COMPILED[key][1](*state, x)
    for variable, value in zip(model.non_trainable_variables, still, strict=True):
        variable.assign(value)
    return out


def gradients(model, x, labels, training=False):
    """Our name → gradient of the loss in PyTorch's layout."""
    table = [
        (key, variable, axes)
        for key, variable, axes in named_variables(model)
        if variable.trainable
    ]
    variables = [variable for _, variable, _ in table]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model(x, labels=labels, training=training).loss
        values = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
    elif BACKEND == "jax":
        import jax

        still = [v.value for v in model.non_trainable_variables]
        order = model.trainable_variables

        def loss_of(values):
            return model.stateless_call(values, still, x, labels=labels, training=training)[0].loss

        found = dict(
            zip(
                (id(v) for v in order),
                jax.jit(jax.grad(loss_of))([v.value for v in order]),
                strict=True,
            )
        )
        values = [found[id(v)] for v in variables]
    else:
        model.zero_grad()
        model(x, labels=labels, training=training).loss.backward()
        values = [
            torch.zeros_like(v.value) if v.value.grad is None else v.value.grad for v in variables
        ]
    out = {}
    for (key, _, axes), value in zip(table, values, strict=True):
        value = np.asarray(ops.convert_to_numpy(value))
        out[key] = value if axes is None else np.transpose(value, np.argsort(axes))
    return out


@pytest.mark.parametrize("file", ["model.safetensors", "tf_model.h5"])
@pytest.mark.parametrize("case", cases("transformers", "tf"))
def test_numbers_of_the_tensorflow_classes(case, file):
    folder = golden_dir("transformers", "tf", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    model = CLASSES[meta["class"].removeprefix("TF")].from_pretrained(folder / file)
    ours = arrays(run(model, inputs, **meta["call"]))
    for name, value in load_file(folder / "outputs.safetensors").items():
        # The original loss is one number an example, ours is their mean, as PyTorch's.
        assert_close(ours[name], value.mean() if name == "loss" else value, 1e-4, f"{case} {name}")


@pytest.mark.parametrize("case", cases("transformers", "cvt"))
def test_numbers_of_the_pytorch_classes(case):
    folder = golden_dir("transformers", "cvt", case)
    meta, inputs = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    model = CLASSES[meta["class"]].from_pretrained(folder)
    ours = arrays(run(model, inputs, **meta["call"], training=meta["mode"] == "train"))
    expected = load_file(folder / "outputs.safetensors")
    state = model.named_arrays() if meta["mode"] == "train" else {}
    for name, value in expected.items():
        if name.startswith("buffer_after."):
            if not name.endswith("num_batches_tracked"):
                assert_close(
                    state[name.removeprefix("buffer_after.")], value, 1e-4, f"{case} {name}"
                )
        else:
            assert_close(ours[name], value, 1e-4, f"{case} {name}")
    if (folder / "grads.safetensors").exists():
        if meta["mode"] == "train":
            # with the statistics of the file
            model = CLASSES[meta["class"]].from_pretrained(folder)
        training = meta["mode"] == "train"
        found = gradients(model, inputs["pixel_values"], inputs["labels"], training)
        for name, value in load_file(folder / "grads.safetensors").items():
            limit = 1e-4 * max(1e-2, float(np.abs(value).max()))
            assert np.abs(found[name] - value).max() <= limit, f"{case} gradient of {name}"


@pytest.mark.parametrize("case", cases("authors", "cvt"))
def test_numbers_of_the_authors(case):
    folder = golden_dir("authors", "cvt", case)
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    model = TFCvtForImageClassification.from_pretrained(folder / "model.pth")
    out = run(model, x["x"], output_hidden_states=True)
    for i, hidden in enumerate(out.hidden_states):
        assert_close(
            ops.convert_to_numpy(hidden), expected[f"stage{i}.x"], 1e-4, f"{case} stage {i}"
        )
    assert_close(
        ops.convert_to_numpy(out.logits),
        expected["logits"].reshape(out.logits.shape),
        1e-4,
        f"{case} logits",
    )


def test_numbers_and_gradients_equal_pytorchs(tmp_path):
    odd = {
        "count": 3,
        "kernel_qkv": [2, 3, 3],
        "padding_kv": [1, 1, 1],
        "stride_kv": [2, 3, 1],
        "cls_token": [True, False, True],
    }
    theirs, ours = pair(tmp_path, qkv_projection_method=["avg", "dw_bn", "linear"], **odd)
    x, labels = pixels(2, 3, 37, 51), np.array([2, 0])
    out = run(ours, x, labels=labels, output_attentions=True)
    expected = theirs(torch.tensor(x), torch.tensor(labels), output_attentions=True)
    assert_close(ops.convert_to_numpy(out.logits), expected.logits, 1e-4)
    for a, b in zip(out.attentions, expected.attentions, strict=True):
        assert_close(ops.convert_to_numpy(a), b, 1e-4)
    expected.loss.backward()
    found = gradients(ours, x, labels)
    for name, p in theirs.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        limit = 1e-4 * max(1e-2, float(grad.abs().max()))
        assert np.abs(found[name] - grad.numpy()).max() <= limit, name


def test_inputs_in_every_form(tmp_path):
    _, model = pair(tmp_path)
    x, labels = pixels(2, 3, 32, 32), np.array([0, 1])
    expected = ops.convert_to_numpy(run(model, x, labels=labels).logits)
    forms = [
        (x,),
        ([x],),
        ((x, labels),),
        ({"pixel_values": x},),
        ({"pixel_values": x, "labels": labels},),
    ]
    for form in forms:
        out = run(model, *form)
        assert_close(ops.convert_to_numpy(out.logits), expected, 1e-5)
        assert ("loss" in out) == (len(form[0]) == 2 and not isinstance(form[0], np.ndarray))
    assert_close(
        ops.convert_to_numpy(run(model, x, return_dict=False, output_hidden_states=True)[0]),
        expected,
        1e-5,
    )
    assert len(run(model, x, output_hidden_states=True).hidden_states) == 2
    with pytest.raises(InputError, match="inputs hold 'pixels'"):
        model({"pixels": x})
    with pytest.raises(InputError, match=r"\(2, 1, 32, 32\)"):
        model(x[:, :1])


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


def test_names_of_layers_and_variables_are_the_published_ones():
    """Equal in every network of a process; each variable has a path of its own."""
    first, second = (TFCvtForImageClassification(small()) for _ in range(2))
    assert [layer.name for layer in first.layers] == ["cvt", "layernorm", "classifier"]
    assert second.get_layer("classifier") is second.classifier
    for model in (first, second):
        for name, variable, _ in named_variables(model):
            layer, _, leaf = variable.path.rpartition("/")
            module, _, token = name.rpartition(".")
            if token == "cls_token":  # a variable of its stage
                assert leaf == "cls_token"
            assert layer == module.replace(".", "_"), variable.path
    paths = [variable.path for variable in first.variables]
    assert len(set(paths)) == len(paths)
    printed = []
    first.summary(print_fn=lambda line, **_: printed.append(line), expand_nested=True)
    assert "classifier" in "".join(printed) and "named_" not in "".join(printed)


def test_h5_files_of_whole_networks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"name that ends in \.keras"):
        TFCvtForImageClassification(small(1)).save(tmp_path / "model.h5")


@pytest.mark.skipif(BACKEND == "torch", reason="Keras needs torch_xla there; refused below")
@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")
@pytest.mark.parametrize("patches", [{}, {"patch_sizes": [7], "patch_padding": [2]}])
def test_exported_models_take_images_of_any_size(patches, tmp_path):
    import tensorflow as tf

    model = TFCvtForImageClassification(small(1, **patches))  # published ones start with 7, 2
    any_size = [keras.InputSpec(shape=(None, 3, None, None), dtype="float32")]
    one_size = [keras.InputSpec(shape=(None, 3, 32, 48), dtype="float32")]
    for number, signature in enumerate([None, any_size, one_size]):
        folder = tmp_path / str(number)
        model.export(folder, verbose=False, input_signature=signature)
        loaded = tf.saved_model.load(str(folder))
        for shape in [(2, 3, 32, 48), *([(1, 3, 61, 45)] if signature is not one_size else [])]:
            found = loaded.serve(tf.constant(pixels(*shape)))
            assert list(found) == ["logits"]
            expected = ops.convert_to_numpy(run(model, pixels(*shape)).logits)
            assert_close(found["logits"].numpy(), expected, 1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="the other backends export")
def test_export_on_pytorch_is_refused(tmp_path):
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow or jax"):
        TFCvtForImageClassification(small(1)).export(tmp_path / "model")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own savers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tensorflows_own_savers(tmp_path):
    import tensorflow as tf

    model = TFCvtForImageClassification(small(1))
    x = pixels(2, 3, 32, 48)
    expected = ops.convert_to_numpy(model(x).logits)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    found = loaded.signatures["serving_default"](tf.constant(x))
    assert_close(found["logits"].numpy(), expected, 1e-5)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    [given], [answer] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    assert_close(interpreter.get_tensor(answer["index"]), expected, 1e-4)


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


def test_a_model_without_head_can_be_part_of_another():
    base = TFCvtModel(small())
    inputs = keras.Input((3, 32, 48))
    outputs = keras.layers.Dense(2)(
        keras.layers.GlobalAveragePooling2D(data_format="channels_first")(
            base(inputs).last_hidden_state
        )
    )
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    model.fit(pixels(4, 3, 32, 48), np.zeros((4, 2), "float32"), verbose=0)
    assert model.predict(pixels(3, 3, 32, 48), verbose=0).shape == (3, 2)


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


def test_keras_files_are_read_back(tmp_path):
    _, model = pair(tmp_path, id2label={0: "ant", 1: "bee", 2: "cat"})
    x = pixels(2, 3, 32, 32)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is TFCvtForImageClassification and again.config == model.config
    assert np.array_equal(
        ops.convert_to_numpy(run(again, x).logits), ops.convert_to_numpy(run(model, x).logits)
    )
    model.save_weights(tmp_path / "model.weights.h5")
    other = TFCvtForImageClassification(model.config)
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(
        ops.convert_to_numpy(run(other, x).logits), ops.convert_to_numpy(run(model, x).logits)
    )


def test_saved_folders_are_read_by_pytorch_and_keras(tmp_path, monkeypatch):
    theirs, ours = pair(tmp_path / "a")
    sent = {}
    monkeypatch.setattr(
        "headstart.hub.push.push_to_hub",
        lambda folder, repo, **hub: sent.update(hub, folder=folder, repo=repo),
    )
    ours.save_pretrained(tmp_path / "b", push_to_hub=True, private=True)
    assert sent == {"folder": tmp_path / "b", "repo": "b", "private": True}
    back = CvtForImageClassification.from_pretrained(tmp_path / "b")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert read_json(tmp_path / "b" / "config.json")["architectures"] == [
        "CvtForImageClassification"
    ]
    assert (
        KerasCvtModel.from_pretrained(tmp_path / "b").config
        == TFCvtModel.from_pretrained(tmp_path / "a").config
    )
    model, info = TFCvtForImageClassification.from_pretrained(
        tmp_path / "b", num_labels=7, output_loading_info=True
    )
    assert (
        tuple(run(model, pixels(1, 3, 32, 32)).logits.shape) == (1, 7)
        and len(info["mismatched_keys"]) == 2
    )
    with pytest.raises(
        WeightsError,
        match=(
            r"missing: cvt.encoder.stages.1.layers.2.attention.attention.convolution_projection_key"
        ),
    ):
        TFCvtForImageClassification.from_pretrained(tmp_path / "b", depth=[1, 3])


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


def test_compiled_by_the_backend(tmp_path):
    _, model = pair(tmp_path)
    x = pixels(2, 3, 32, 48)
    expected = ops.convert_to_numpy(model(x).logits)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        run = tf.function(lambda x: model(x), jit_compile=True)
        assert_close(run(tf.constant(x)).logits.numpy(), expected, 1e-5)
        sizes = tf.function(
            lambda x: model(x).logits, input_signature=[tf.TensorSpec((None, 3, None, None))]
        )
        for shape in [(1, 3, 61, 45), (3, 3, 32, 48)]:
            assert_close(
                sizes(pixels(*shape)).numpy(),
                ops.convert_to_numpy(model(pixels(*shape)).logits),
                1e-5,
            )
    elif BACKEND == "jax":
        import jax

        assert_close(np.asarray(jax.jit(lambda x: model(x))(x).logits), expected, 1e-5)
    else:
        with torch.no_grad():
            assert_close(model(torch.tensor(x)).logits, expected, 1e-5)


def test_documented_arguments(tmp_path):
    _, model = pair(tmp_path / "made")
    model.save_pretrained(save_directory=tmp_path / "model", saved_model=False)
    again = TFCvtForImageClassification.from_pretrained(
        pretrained_model_name_or_path=tmp_path,
        subfolder="model",
        config=tmp_path / "model",
        use_auth_token=False,
        force_download=False,
        from_pt=True,
    )
    again.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(
        tmp_path / "model" / "config.json"
    )
    with pytest.raises(TypeError, match="unexpected keyword 'nonsense'"):
        TFCvtForImageClassification.from_pretrained(tmp_path / "model", nonsense=1)
    for keywords, error in (
        ({"nonsense": 1}, TypeError),
        ({"safe_serialization": False}, ConfigError),
        ({"saved_model": True}, ConfigError),
    ):
        with pytest.raises(error, match=next(iter(keywords))):
            model.save_pretrained(tmp_path / "new", **keywords)
    assert not (tmp_path / "new").exists()
