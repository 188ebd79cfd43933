"""Files with preprocessing, network and answers inside: they answer as the pipeline does."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from command_line import call
from engine_networks import build
from headstart.engine.engines import installed
from headstart.errors import ConfigError, FileFormatError, InputError
from headstart.metrics.calibration import Choice, Confidence
from headstart.nn.hooks import inputs_of
from headstart.pipelines.unknown import Reference, head_of
from photo_data import ODD_SHAPES, odd_photo

pytestmark = pytest.mark.skipif(
    not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime"
)
PROCESSORS = {
    "BitForImageClassification": headstart.BitImageProcessor(size=40, crop_size=32),
    "CvtForImageClassification": headstart.ConvNextImageProcessor(size=32),
    "BeitForImageClassification": headstart.BeitImageProcessor(size=32, do_center_crop=False),
}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def pixels_of(processor):
    images = [odd_photo(shape) for shape in ODD_SHAPES if shape[2] == 3]
    return processor(images, return_tensors="pt")["pixel_values"]


def spread(model, processor):
    """Networks of random weights answer alike for all images: this one does not."""
    head = head_of(model, model.config.num_labels)
    with torch.no_grad():
        logits = model(pixel_values=pixels_of(processor)).logits
        scale = 1 / logits.std(0).mean()
        head.bias.sub_(logits.mean(0)).mul_(scale)
        head.weight.mul_(scale)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A result folder with everything that changes an answer."""
    folder = tmp_path_factory.mktemp("run")
    processor = PROCESSORS["BitForImageClassification"]
    model = spread(build("BitForImageClassification")[0], processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad(), inputs_of(head_of(model, 5)) as seen:
        logits = model(pixel_values=pixels_of(processor)).logits
    threshold = float((logits / 1.7).softmax(1).amax(1).median())
    choice = Choice(max_error=0.05, threshold=threshold, refused=0.1, error=0.01)
    Confidence(temperature=1.7, examples=100, choices=[choice], max_error=0.05).write(folder)
    features, generator = seen[0], torch.Generator().manual_seed(0)
    basis = torch.rand(2, features.shape[1], generator=generator) / features.std()
    centers = (features[:3] - features.mean(0)) @ basis.T
    found = Reference(features.mean(0), basis, centers, torch.zeros(1)).distances_of(features)
    distances = torch.linspace(0, float(found.sort().values[-3]), 39)
    Reference(features.mean(0), basis, centers, distances).write(folder)
    return folder


def compare(file, pipe):
    """A file's answers are the pipeline's, for images of all sizes; returns the answers."""
    rows = []
    for shape in ODD_SHAPES:
        image = odd_photo(shape)
        out = file(image)
        pixels = pipe.pixel_values(image if shape[2] > 1 else image[..., 0])
        scores, p_values = pipe.compared([torch.from_numpy(out["pixel_values"])])
        assert np.abs(out["scores"] - scores.numpy()).max() < 1e-4, shape
        assert np.abs(out["pixel_values"] - pixels.numpy()).max() < 1.01 / 255 / min(
            pipe.image_processor.image_std
        )
        rows.append((out, scores[0], p_values[0]))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_family_answers_as_its_pipeline(name, to, tmp_path):
    from headstart.engine.full_file import FullFile

    processor = PROCESSORS[name]
    model = spread(build(name)[0], processor)
    found = headstart.export(model, tmp_path / "m", to=to, full=True, processor=processor)
    assert found.largest < 0.01 and found.agreement == 1.0 and found.answers == 3
    file = FullFile(tmp_path / f"m{SUFFIXES[to]}")
    pipe = headstart.pipeline("image-classification", model, image_processor=processor)
    rows = compare(file, pipe)
    assert [int(out["label"][0]) for out, _, _ in rows] == [int(row.argmax()) for _, row, _ in rows]
    assert len({int(out["label"][0]) for out, _, _ in rows}) > 1
    assert not any(out["refused"][0] for out, _, _ in rows)
    assert file.labels == list(model.config.id2label.values())


def test_refusals_are_those_of_the_folder(folder, tmp_path, capsys):
    from headstart.engine.full_file import FullFile

    path = tmp_path / "m.onnx"
    code, out, err = call(capsys, "export", folder, "--out", path, "--full", "--json")
    assert code == 0, err
    assert json.loads(out)["deviation"] < 0.01
    file = FullFile(path)
    pipe = headstart.pipeline("image-classification", folder, refuse=True)
    rows = compare(file, pipe)
    refused = [pipe.is_refused(row, p_value) for _, row, p_value in rows]
    assert [bool(out["refused"][0]) for out, _, _ in rows] == refused
    low = [float(row.max()) < pipe.threshold for _, row, _ in rows]
    far = [p_value <= 0.05 for _, _, p_value in rows]
    assert 0 < sum(refused) < len(rows) and any(low) and any(far)
    for out, _, p_value in rows:
        assert abs(float(out["p_value"][0]) - p_value) < 0.026  # a rank of 40
    code, out, _ = call(capsys, "check", path)
    assert code == 0 and "answers as PyTorch did" in out and len(out.splitlines()) == 4


def rewritten(path, change):
    """A file with other metadata."""
    import onnx

    graph = onnx.load(str(path))
    facts = {each.key: each.value for each in graph.metadata_props}
    change(facts)
    onnx.helper.set_model_props(graph, facts)
    onnx.save(graph, str(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "m.onnx"
    model, processor = build("BitForImageClassification")[0], headstart.BitImageProcessor(size=32)
    headstart.export(spread(model, processor), path, full=True, processor=processor)
    return path.read_bytes()


@pytest.mark.parametrize(
    "key, value", [("classes", [1, 0, 2]), ("refused", True), ("scores", [0.9])]
)
def test_check_finds_a_file_that_answers_otherwise(key, value, written, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes(written)

    def change(facts):
        tests = json.loads(facts["tests"])
        old = tests[1][key]
        tests[1][key] = [*value, *old[len(value) :]] if isinstance(value, list) else value
        if key == "classes":
            tests[1][key] = old[::-1]
        facts["tests"] = json.dumps(tests)

    rewritten(tmp_path / "m.onnx", change)
    code, out, _ = call(capsys, "check", tmp_path / "m.onnx", "--json")
    line = json.loads(out)
    assert code == 3 and line["right"] is False
    assert [each["right"] for each in line["images"]] == [True, False, True]


def test_files_without_tests_or_damaged_are_refused(written, tmp_path, capsys):
    from headstart.engine.full_file import FullFile

    path = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="no file"):
        FullFile(path)
    path.write_bytes(written[:5000])
    code, _, err = call(capsys, "info", path)
    assert code == 2 and "is an exported program" in err and "convert" not in err
    with pytest.raises(FileFormatError, match="does not take the file"):
        FullFile(path)
    path.write_bytes(written)
    rewritten(path, lambda facts: facts.pop("headstart.full"))
    with pytest.raises(FileFormatError, match="headstart export MODEL --out FILE --full"):
        FullFile(path)
    answer = {"shape": [1, 1, 1], "pixels": "AA==", "classes": [1], "scores": [1], "refused": True}
    for broken, text in (
        ({}, "tests"),
        ([answer | {"shape": [2, 2, 3]}], "damaged"),
        ([answer | {"classes": [9]}], "other classes"),
    ):
        path.write_bytes(written)
        rewritten(path, lambda facts, broken=broken: facts.update(tests=json.dumps(broken)))
        with pytest.raises(FileFormatError, match=text):
            FullFile(path).check()
    (tmp_path / "m.pt2").write_bytes(b"")
    assert call(capsys, "check", tmp_path / "m.pt2")[0] == 3


def test_predict_takes_a_file(tmp_path, capsys):
    """The rows of a file are those of the folder that it was exported from."""
    from headstart.engine.full import example_images

    model, processor = build("BitForImageClassification")[0], headstart.BitImageProcessor(size=32)
    folder, file, images = tmp_path / "model", tmp_path / "m.onnx", tmp_path / "images"
    spread(model, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    assert call(capsys, "export", folder, "--out", file, "--full")[0] == 0
    images.mkdir()
    for i, image in enumerate(example_images()[:2]):
        Image.fromarray(image).save(images / f"{i}.png")
    (images / "words.png").write_text("words")
    tables = []
    for each in (folder, file):
        out = tmp_path / f"{each.name}.jsonl"
        words = ("predict", each, images, "--top", 2, "--out", out)
        assert call(capsys, *words)[0] == 3  # one image cannot be read
        assert call(capsys, *words, "--resume")[0] == 3
        tables.append([json.loads(line) for line in out.read_text().splitlines()])
    for row, expected in zip(*reversed(tables), strict=True):
        assert [row[key] for key in ("path", "label", "error")] == [
            expected[key] for key in ("path", "label", "error")
        ]
        if not row["error"]:
            assert row["probability"] == pytest.approx(expected["probability"], abs=0.01)
    before = out.read_bytes()
    rewritten(file, lambda facts: facts.update(labels=facts["labels"].replace("LABEL", "KIND")))
    code, _, err = call(capsys, *words, "--resume")
    assert code == 2 and "with other weights or settings" in err and out.read_bytes() == before
    for option, text in (
        (("--max-error", 0.1), "leave --ray, --device and --max-error out"),
        (("--refuse",), "does not say when to refuse"),
    ):
        code, _, err = call(capsys, "predict", file, images, *option)
        assert code == 2 and text in err, err


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_a_file_has_the_conformal_sets_and_refuses_by_p_values(ending, folder, tmp_path, capsys):
    """The threshold is 0: the p-values alone refuse."""
    from headstart.engine.full_file import FullFile

    bare, file = tmp_path / "bare", tmp_path / f"m{ending}"
    shutil.copytree(folder, bare)
    outputs = len(headstart.AutoConfig.from_pretrained(bare).id2label)
    minimums = [0.0] + [1.0] * (outputs - 1)  # the set of every image is that of the first class
    choice = Choice(max_error=0.05, threshold=0.0, refused=0.0, error=0.01)
    Confidence(1.0, 100, [choice], 0.05, 0.9, 0.9, minimums).write(bare)
    assert call(capsys, "export", bare, "--out", file, "--full")[0] == 0
    assert FullFile(file).minimums == minimums and FullFile(file).refuses
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = []
    for model in (bare, file):
        out = tmp_path / f"{model.name}.jsonl"
        call(capsys, "predict", model, tmp_path / "a.png", "--refuse", "--out", out)
        rows.append(json.loads(out.read_text()))
    assert rows[0]["candidates"] == rows[1]["candidates"] and len(rows[1]["candidates"]) == 1
    assert rows[0]["refused"] == rows[1]["refused"]


def test_p_values_without_a_threshold_refuse_nothing(folder, tmp_path, capsys):
    """As of a folder whose training was evaluated on too few examples."""
    bare, file = tmp_path / "bare", tmp_path / "m.onnx"
    shutil.copytree(folder, bare)
    (bare / "confidence.json").unlink()
    assert call(capsys, "export", bare, "--out", file, "--full")[0] == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for model in (bare, file):
        code, _, err = call(capsys, "predict", model, tmp_path / "a.png", "--refuse")
        assert code == 2 and "does not say when" in err, err
        out = tmp_path / f"{model.name}.jsonl"
        assert call(capsys, "predict", model, tmp_path / "a.png", "--out", out)[0] == 0
        assert json.loads(out.read_text())["p_value"] is not None


def test_what_full_cannot_hold_is_refused(tmp_path, capsys):
    bit, processor = build("BitForImageClassification")[0], headstart.BitImageProcessor(size=32)
    segmenter = build("BeitForSemanticSegmentation")[0]
    path = tmp_path / "m.onnx"
    for model, options, text in (
        (bit, {"processor": processor, "to": "torch-export"}, "onnx or openvino"),
        (bit, {}, "needs processor="),
        (bit, {"processor": processor, "normalize": True}, "leave normalize= out"),
        (bit, {"processor": processor, "dynamic": "size"}, "leave dynamic= out"),
        (bit, {"processor": processor, "max_error": 0.02}, "does not say when"),
        (bit, {"processor": processor, "max_error": 2}, "max_error=2; it must be above 0"),
        (bit, {"processor": processor, "max_error": float("nan")}, "max_error=nan; it must be"),
        (bit, {"processor": processor, "tolerance": float("nan")}, "tolerance=nan; expected"),
        (bit, {"processor": processor, "tolerance": -1}, "tolerance=-1; expected a number"),
        (bit, {"processor": processor, "tolerance": 0}, "above the tolerance of 0.0"),
        (segmenter, {"processor": processor}, "image classification"),
    ):
        with pytest.raises(ConfigError, match=text):
            headstart.export(model, tmp_path / "m", full=True, **options)
    with pytest.raises(ConfigError, match="max_error is for full=True"):
        headstart.export(bit, path, processor=processor, max_error=0.02)
    assert not path.exists()
    code, _, err = call(capsys, "export", "bit-mini", "--out", path, "--full", "--size", 64)
    assert code == 2 and "leave --size out" in err
