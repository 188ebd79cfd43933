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
    CvtForImageClassification,
    KerasCvtModel,
    TFCvtForImageClassification,
    TFCvtModel,
)
from headstart.errors import ConfigError, InputError, WeightsError
from headstart.nn.keras import named_variables
from keras_networks import BACKEND, CLASSES, gradients, pair, pixels, run, small

# Keras turns torch tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


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
