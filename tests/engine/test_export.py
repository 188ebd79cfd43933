"""Exported files run without headstart, say what they are, and give PyTorch's outputs."""

import json

import pytest
import torch

import headstart
from command_line import call
from conftest import assert_close
from engine_networks import build, pixels
from headstart.engine.engines import installed
from headstart.engine.exporting import SUFFIXES, with_suffix
from headstart.errors import ConfigError, InputError

needs_onnx = pytest.mark.skipif(
    not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime"
)
needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="needs openvino")
NAMES = (
    "BitForImageClassification",
    "CvtForImageClassification",
    "BeitForImageClassification",
    "YosoForSequenceClassification",
)


@needs_openvino
@pytest.mark.parametrize("name", NAMES)
def test_openvino(name, tmp_path):
    import openvino as ov

    model, inputs = build(name)
    deviation = headstart.export(model, tmp_path / "model", to="openvino", example=inputs)
    assert deviation.largest < 1e-4 and deviation.agreement == 1.0
    graph = ov.Core().read_model(str(tmp_path / "model.xml"))
    assert [port.any_name for port in graph.inputs] == list(inputs) and graph.outputs[
        0
    ].any_name == "logits"
    assert graph.inputs[0].partial_shape[0].is_dynamic
    assert json.loads(graph.get_rt_info(["headstart", "labels"]).astype(str))[1] == "LABEL_1"


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1::2])  # the engine's tests export the others
def test_onnx(name, tmp_path):
    import onnx
    import onnxruntime as ort

    model, inputs = build(name)
    deviation = headstart.export(model, tmp_path / "model.onnx", example=inputs)
    assert deviation.largest < 1e-4
    found = onnx.load(str(tmp_path / "model.onnx"))
    facts = {each.key: each.value for each in found.metadata_props}
    assert json.loads(facts["labels"])[1] == "LABEL_1" and facts["headstart.model"] == name
    assert next(each.version for each in found.opset_import if not each.domain) == 20
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    more = {key: torch.cat([value] * 3) for key, value in inputs.items()}
    with torch.no_grad():
        expected = model(**more).logits
    assert_close(
        session.run(["logits"], {key: value.numpy() for key, value in more.items()})[0],
        expected,
        1e-4,
    )


@needs_onnx
@pytest.mark.parametrize("padding", [None, "same"])
def test_onnx_runtime_pads_the_stem_of_bit_with_zeros(padding, tmp_path):
    """It used to merge the padding into the pooling, which pads with -inf.

    Logits were off by 2e-3 in BiT-50.
    """
    model, inputs = build(
        "BitForImageClassification",
        global_padding=padding,
        embedding_dynamic_padding=padding is not None,
    )
    with torch.no_grad():
        model.bit.embedder.convolution.weight.neg_()
    assert (
        headstart.export(model, tmp_path / "model.onnx", example=inputs, tolerance=1e-5).largest
        <= 1e-5
    )


@pytest.mark.parametrize("name", NAMES[:1])
def test_torch_export(name, tmp_path):
    model, inputs = build(name)
    assert (
        headstart.export(model, tmp_path / "model", to="torch-export", example=inputs).largest
        < 1e-4
    )
    texts = {"labels": "", "outputs": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=texts).module()
    assert json.loads(texts["labels"])[2] == "LABEL_2" and json.loads(texts["outputs"]) == [
        "logits"
    ]
    each = pixels(batch=5)
    with torch.no_grad():
        assert_close(program(each["pixel_values"])[0], model(**each).logits, 1e-4)


# The exporters take minutes for the authors' way of fitting bias tables in deep networks: one
# network of one block has it.
SIZED = {
    "BitForImageClassification": {},
    # whose last keys and values are a single patch at 32 pixels
    "CvtForImageClassification": {"depth": [1, 1, 1]},
    "BeitForImageClassification": {"num_hidden_layers": 1},
    "BeitForSemanticSegmentation": {
        "bias_resize": "bilinear",
        "use_auxiliary_head": False,
        "pool_scales": [1],
    },
    "BeitForMaskedImageModeling": {"num_hidden_layers": 1, "bias_resize": "bilinear"},
}


@needs_openvino
@pytest.mark.parametrize("name", SIZED)
def test_openvino_at_any_size(name, tmp_path):
    """The check after writing runs an image that is larger and not square.

    Here is one more size.
    """
    import openvino as ov

    model, inputs = build(name, **SIZED[name])
    assert (
        headstart.export(
            model, tmp_path / "model", to="openvino", example=inputs, dynamic="batch,size"
        ).largest
        < 1e-4
    )
    if "Masked" in name:
        return
    each = torch.randn(1, 3, 112, 80)
    with torch.no_grad():
        expected = model(each).logits
    compiled = ov.Core().compile_model(
        str(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert_close(compiled([each.numpy()])["logits"], expected, 1e-4)


@needs_onnx
def test_onnx_at_any_size(tmp_path):
    model, inputs = build("CvtForImageClassification", depth=[1, 1, 1])
    assert (
        headstart.export(model, tmp_path / "model", example=inputs, dynamic="batch,size").largest
        < 1e-4
    )


def test_torch_export_at_sizes_of_more_than_one_patch(tmp_path):
    """Its guards make maps of a single patch another program.

    The file that refuses its own example is removed.
    """
    model, inputs = build("CvtForImageClassification", depth=[1, 1, 1])
    with pytest.raises(
        ConfigError,
        match=r"no inputs of \[\(2, 3, 32, 32\)\].*give a larger example or a fixed size",
    ):
        headstart.export(
            model, tmp_path / "model", to="torch-export", example=inputs, dynamic="batch,size"
        )
    assert not list(tmp_path.iterdir())
    assert (
        headstart.export(
            model, tmp_path / "model", to="torch-export", example=pixels(48), dynamic="batch,size"
        ).largest
        < 1e-4
    )


@needs_onnx
def test_the_opset_is_chosen(tmp_path):
    import onnx

    model, inputs = build("YosoForSequenceClassification", num_hidden_layers=1)
    for wrong in (17, 99):
        with pytest.raises(ConfigError, match=f"opset={wrong}; expected 18 to"):
            headstart.export(model, tmp_path / "model.onnx", example=inputs, opset=wrong)
    headstart.export(model, tmp_path / "model.onnx", example=inputs, opset=21)
    assert (
        next(
            each.version
            for each in onnx.load(str(tmp_path / "model.onnx")).opset_import
            if not each.domain
        )
        == 21
    )


def test_normalisation_inside(tmp_path):
    model, _ = build("BitForImageClassification")
    processor = headstart.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    raw = torch.randint(0, 256, (2, 3, 32, 32)).float()
    mean, deviation = (
        torch.tensor(each).view(3, 1, 1) for each in (processor.image_mean, processor.image_std)
    )
    with torch.no_grad():
        expected = model((raw / 255 - mean) / deviation).logits

    def export(to):
        path = tmp_path / f"model{SUFFIXES[to]}"
        headstart.export(model, path, to=to, example=pixels(), processor=processor, normalize=True)
        return path

    names = ("preprocessing", "preprocessing.inside")
    texts = dict.fromkeys(names, "")
    assert_close(
        torch.export.load(export("torch-export"), extra_files=texts).module()(raw)[0],
        expected,
        1e-4,
    )
    check_preprocessing(texts, processor)
    if installed("openvino"):
        import openvino as ov

        graph = ov.Core().read_model(str(export("openvino")))
        assert_close(
            ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([raw.numpy()])[
                "logits"
            ],
            expected,
            1e-4,
        )
        check_preprocessing(
            {key: graph.get_rt_info(["headstart", key]).astype(str) for key in names}, processor
        )
    if installed("onnxruntime"):
        import onnxruntime as ort

        session = ort.InferenceSession(str(export("onnx")))
        assert_close(session.run(["logits"], {"pixel_values": raw.numpy()})[0], expected, 1e-4)
        check_preprocessing(session.get_modelmeta().custom_metadata_map, processor)


def check_preprocessing(facts, processor):
    """Metadata that say what an image processor does, and how much of it is in the program."""
    assert facts["preprocessing.inside"] == "rescale, normalize"
    assert json.loads(facts["preprocessing"])["image_mean"] == list(processor.image_mean)


def test_refusals(tmp_path):
    model, inputs = build("BitForImageClassification")
    with pytest.raises(ConfigError, match="to='tflite'"):
        headstart.export(model, tmp_path / "model", to="tflite")
    with pytest.raises(ConfigError, match="its image processor"):
        headstart.export(model, tmp_path / "model", normalize=True)
    with pytest.raises(InputError, match="takes tensors named"):
        headstart.export(model, tmp_path / "model", example={"input_ids": torch.zeros(1, 2)})
    if installed("openvino"):
        with pytest.raises(ConfigError, match="differs from PyTorch by"):
            headstart.export(
                model, tmp_path / "model", to="openvino", example=inputs, tolerance=0.0
            )
        assert not list(tmp_path.iterdir())


def test_names_of_files(tmp_path, capsys):
    """Endings decide the format on the command line; nothing that is there is overwritten."""
    model, inputs = build("BitForImageClassification")
    (tmp_path / "folder.pt2").mkdir()
    for name, to, text in (
        ("m.xml", "onnx", "is named as a file of openvino, and to='onnx'"),
        ("m.ONNX", "torch-export", "is named as a file of onnx"),
        ("folder.pt2", "torch-export", "is a folder; expected the name of a file"),
    ):
        with pytest.raises(ConfigError, match=text):
            headstart.export(model, tmp_path / name, to=to, example=inputs)
    assert with_suffix(tmp_path / "m.v2", "onnx").name == "m.v2.onnx"
    assert with_suffix(tmp_path / "m.PT2", "torch-export").name == "m.pt2"
    file = tmp_path / "m.pt2"
    words = ("export", "bit-mini", "--out", file, "--size", 64)
    code, out, err = call(capsys, *words)
    assert code == 0 and f"{file}: largest deviation" in out, err
    before = file.read_bytes()
    code, _, err = call(capsys, *words)
    assert code == 2 and f"{file} exists; choose another name, or give --overwrite" in err
    assert file.read_bytes() == before
    file.write_bytes(b"old")
    assert call(capsys, *words, "--overwrite")[0] == 0 and file.stat().st_size == len(before)
    code, _, err = call(capsys, *words, "--to", "onnx", "--overwrite")
    assert code == 2 and "--to torch-export" in err
    again = file.read_bytes()
    code, _, err = call(capsys, *words, "--overwrite", "--tolerance", 0)
    assert code == 2 and "m.pt2 differs from PyTorch" in err and "it was not kept" in err
    assert file.read_bytes() == again and sorted(tmp_path.glob(".*")) == []


def test_openvino_on_a_full_disk_is_an_error_of_the_disk(tmp_path, monkeypatch):
    from headstart.engine.engines.openvino import save_graph

    def full(*arguments, **options):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.save_model", full)
    with pytest.raises(OSError, match="cannot write a.xml"):
        save_graph(None, tmp_path / "a.xml")
