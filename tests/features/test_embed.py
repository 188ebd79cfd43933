"""Embeddings: what a vector is, and files of them that are continued."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from command_line import call
from conftest import ROOT
from headstart.data import inputs as data_inputs
from headstart.data.embeddings import embedding_blocks, read_embeddings, read_facts
from headstart.data.inputs import image_inputs
from headstart.data.results import ResultTable, vector_of, vector_text
from headstart.errors import ConfigError, FileFormatError, InputError
from headstart.features.embed import Embedder, write_embeddings
from photo_data import make_photo
from tiny_networks import NETWORKS

SUFFIXES = [".parquet", ".npz"]


@pytest.fixture(scope="module")
def tokenizer():
    return headstart.YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")


def save_text_model(folder, tokenizer, name):
    torch.manual_seed(1)
    config = headstart.YosoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=3,
    )
    network = getattr(headstart, name)(config).eval()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network


def files_of(photos):
    return sorted((photos / "val").rglob("*.png"))


@pytest.mark.parametrize("family", ["bit", "cvt", "beit"])
def test_a_classifier_scores_its_vectors(family, tmp_path):
    """The last layer of the network, applied to the vectors, gives the network's own scores."""
    torch.manual_seed(0)
    network = NETWORKS[family]().eval()
    network.save_pretrained(tmp_path)
    if family == "bit":
        processor = headstart.BitImageProcessor(
            size={"shortest_edge": 32}, do_center_crop=False
        )  # images of different sizes
    else:
        processor = headstart.BeitImageProcessor(
            size={"height": 32, "width": 32}, do_center_crop=False
        )
    processor.save_pretrained(tmp_path)
    images = [make_photo((200, 20, 90), 1, 40, 30), make_photo((0, 90, 9), 2, 30, 50)]
    found = headstart.embed(tmp_path, images, batch_size=2)
    assert found.names == ["image 1", "image 2"] and found.errors == ["", ""]
    layer = network.classifier[1] if family == "bit" else network.classifier
    scores = torch.from_numpy(found.features) @ layer.weight.T + layer.bias
    for image, row in zip(images, scores, strict=True):
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            torch.testing.assert_close(row, network(pixels).logits[0])


def test_a_text_classifier_scores_its_vectors(tokenizer, tmp_path):
    network = save_text_model(tmp_path, tokenizer, "YosoForSequenceClassification")
    texts = ["We went.", "We went home again, and again, and again."]
    found = headstart.embed(tmp_path, texts=texts)
    assert found.contents == texts and found.names == ["text 1", "text 2"]
    layer = network.classifier.out_proj
    scores = torch.from_numpy(found.features) @ layer.weight.T + layer.bias
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = network(batch["input_ids"], batch["attention_mask"]).logits
    torch.testing.assert_close(scores, expected)


def test_another_text_model_gives_means_over_tokens(tokenizer, tmp_path):
    network = save_text_model(tmp_path, tokenizer, "YosoForMaskedLM")
    texts = ["We went.", "We went home again, and again, and again."]
    found = headstart.embed(tmp_path, texts=texts)
    for text, row in zip(texts, found.features, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = network.yoso(ids, torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(torch.from_numpy(row), hidden[0].mean(0), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["BitModel", "CvtModel", "BeitModel"])
def test_a_network_without_classes_gives_the_pipelines_pooled_vectors(name, tmp_path):
    torch.manual_seed(0)
    config = NETWORKS[name.removesuffix("Model").lower()]().config
    getattr(headstart, name)(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    headstart.BeitImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path)
    photo = make_photo((200, 20, 90), 1)
    found = headstart.embed(tmp_path, [photo])
    pool = headstart.pipeline("image-feature-extraction", tmp_path, pool=True)
    np.testing.assert_allclose(found.features[0], pool(photo), rtol=1e-5, atol=1e-6)


def test_the_key_is_of_weights_and_preprocessing(tiny_model, tmp_path):
    key = Embedder(tiny_model).key
    network = headstart.BitForImageClassification.from_pretrained(tiny_model)
    processor = headstart.BitImageProcessor.from_pretrained(tiny_model)

    def key_of(folder):
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
        return Embedder(folder).key

    assert key_of(tmp_path / "same") == key
    with torch.no_grad():
        network.classifier[1].weight += 1
    assert key_of(tmp_path / "head") == key  # the vectors are the same
    processor.image_mean = [0.4] * 3
    other = key_of(tmp_path / "mean")
    with torch.no_grad():
        network.bit.embedder.convolution.weight += 1
    assert len({key, other, key_of(tmp_path / "body")}) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off_is_continued(
    suffix, photos, tiny_model, tmp_path, capsys, monkeypatch
):
    files = files_of(photos)
    bad = tmp_path / "words.png"
    bad.write_text("words")
    given = [*files[:5], bad, *files[5:]]
    out = tmp_path / f"features{suffix}"
    words = ("embed", tiny_model, *given, "--out", out, "--device", "cpu")
    write, written = ResultTable.write, []

    def cut(self, row):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(row)
        write(self, row)

    monkeypatch.setattr(ResultTable, "write", cut)
    code, _, err = call(capsys, *words)
    assert code == 130 and "headstart: interrupted" in err and "with --resume" in err
    monkeypatch.setattr(ResultTable, "write", write)
    with pytest.raises(InputError, match="the run was cut off; continue it with --resume"):
        read_embeddings(out)
    code, _, err = call(capsys, *words)
    assert code == 2 and "--resume" in err
    code, printed, err = call(capsys, *words, "--resume")
    # the bad one was named before, and counts
    assert code == 3 and "13 rows of 24 features, 1 without a vector" in printed
    found = read_embeddings(out)
    assert found.names == [str(each) for each in given]
    assert [i for i, error in enumerate(found.errors) if error] == [5]
    assert "unknown image format" in found.errors[5] and np.isnan(found.features[5]).all()
    expected = headstart.embed(tiny_model, files).features
    np.testing.assert_allclose(np.delete(found.features, 5, 0), expected, rtol=1e-5, atol=1e-6)
    assert not out.with_name(f"{out.name}.jsonl").exists()
    before = out.read_bytes()
    assert call(capsys, *words, "--resume")[0] == 3 and out.read_bytes() == before


def test_a_file_of_many_rows_is_read_once(photos, tiny_model, monkeypatch):
    read, load = [], data_inputs.load_image

    def load_image(path):
        read.append(path)
        return load(path)

    monkeypatch.setattr(data_inputs, "load_image", load_image)
    files = files_of(photos)[:3]
    order = [0, 1, 1, 0, 2, 0]
    found = headstart.embed(tiny_model, [files[i] for i in order])
    assert sorted(read) == sorted(files)
    assert found.names == [str(files[i]) for i in order]
    alone = headstart.embed(tiny_model, files)
    np.testing.assert_allclose(found.features, alone.features[order], atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_model_does_not_continue_a_file(suffix, photos, tiny_model, tmp_path):
    inputs, out = image_inputs(files_of(photos)[:2]), tmp_path / f"features{suffix}"
    write_embeddings(Embedder(tiny_model), inputs, out)
    network = headstart.BitForImageClassification.from_pretrained(tiny_model)
    with torch.no_grad():
        network.bit.embedder.convolution.weight += 1
    network.save_pretrained(tmp_path / "other")
    headstart.BitImageProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="cannot be continued: its rows are of"):
        write_embeddings(Embedder(tmp_path / "other"), inputs, out, resume=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_texts(suffix, tokenizer, tmp_path, capsys):
    save_text_model(tmp_path / "model", tokenizer, "YosoForMaskedLM")
    (tmp_path / "a.txt").write_text("We went.\n\nThey went, é.\n")
    out = tmp_path / f"t{suffix}"
    words = ("--lines", "--text", "We came.", "--out", out, "--device", "cpu")
    assert call(capsys, "embed", tmp_path / "model", tmp_path / "a.txt", *words)[0] == 0
    found, facts = read_embeddings(out), read_facts(out)
    assert found.contents == ["We came.", "We went.", "They went, é."]
    assert (facts.rows, facts.width, facts.names) == (3, 32, "text")
    names = [block.names for block in embedding_blocks(out, vectors=False)]
    assert [name for block in names for name in block] == found.names
    again = ("embed", tmp_path / "model", tmp_path / "a.txt", *words, "--resume")
    assert call(capsys, *again)[0] == 0
    code, _, err = call(capsys, *again, "--long", "cut")
    assert code == 2 and "refuse, and this run has" in err


def test_files_are_what_other_tools_read(tiny_model, tmp_path):
    import pyarrow.parquet

    photo = tmp_path / "a.png"
    Image.fromarray(make_photo((200, 20, 90), 1)).save(photo)
    for name in ("a.parquet", "a.npz"):
        found = headstart.embed(tiny_model, photo, out=tmp_path / name)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["path", "features", "error"]
    assert table.column("features").to_pylist()[0] == pytest.approx(found.features[0].tolist())
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["path"].tolist() == [str(photo)]
        assert np.array_equal(arrays["features"], found.features)
        assert str(arrays["key"]) == found.key


def test_vectors_as_text():
    vector = np.array([0.1, -np.inf, 3e-40], dtype=np.float32)
    assert np.array_equal(vector_of(vector_text(vector)), vector)


def test_what_is_refused(photos, tiny_model, tokenizer, tmp_path):
    file = files_of(photos)[0]
    for arguments, error, match in (
        ({"inputs": []}, InputError, "which images"),
        ({"texts": ["a"]}, InputError, "reads images; texts are for a text model"),
        ({"inputs": [file], "out": tmp_path / "a.csv"}, InputError, "ends in .parquet, .npz"),
        ({"inputs": [file], "resume": True}, ConfigError, "give its name with out="),
    ):
        with pytest.raises(error, match=match):
            headstart.embed(tiny_model, **arguments)
    save_text_model(tmp_path / "text", tokenizer, "YosoForMaskedLM")
    with pytest.raises(InputError, match="reads texts; got ndarray"):
        headstart.embed(tmp_path / "text", [make_photo((0, 0, 0), 1)])
    with pytest.raises(InputError, match="--long cut truncates it"):
        headstart.embed(tmp_path / "text", texts=["word " * 100])
    cut = headstart.embed(tmp_path / "text", texts=["word " * 100], long="cut")
    assert cut.features.shape == (1, 32)
    (tmp_path / "pairs.csv").write_text("text,text_pair\na,b\n")
    with pytest.raises(InputError, match="is a pair of texts"):
        headstart.embed(tmp_path / "text", tmp_path / "pairs.csv")


def test_damaged_files_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    plain = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"]}), plain)
    with pytest.raises(FileFormatError, match="holds path; expected what `headstart embed`"):
        read_embeddings(plain)
    (tmp_path / "cut.parquet").write_bytes(plain.read_bytes()[:-3])
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name in ("cut.parquet", "cut.npz"):
        with pytest.raises(FileFormatError, match="cannot be read as"):
            read_embeddings(tmp_path / name)
    facts = {"model": np.array("m"), "key": np.array("k"), "width": np.array("3")}
    features = np.zeros((2, 3), np.float32)
    names = np.array(["a", "b"])
    for changed, match in (
        ({"features": features.astype(np.float64)}, "features are float64"),
        ({"path": np.array([1, 2])}, "path: expected 2 texts"),
        ({"width": np.array("-3")}, "width is '-3'"),
        ({"path": np.array(["a", "b"], dtype=object)}, "cannot be read as .npz"),
        ({"width": np.array("4")}, "expected float32 of \\(2, 4\\)"),
    ):
        with (tmp_path / "odd.npz").open("wb") as file:
            np.savez(file, **({"path": names, "features": features, **facts} | changed))
        with pytest.raises(FileFormatError, match=match):
            read_embeddings(tmp_path / "odd.npz")
    with (tmp_path / "small.npz").open("wb") as file:
        np.savez_compressed(file, path=names, features=features, **facts)
    with pytest.raises(FileFormatError, match="not compressed"):
        read_embeddings(tmp_path / "small.npz")
    metadata = {b"headstart": json.dumps({"model": "m", "key": "k", "width": "3"}).encode()}
    rows = {"path": ["a", "b"], "features": [[1.0], [2.0]]}
    schema = pyarrow.schema([("path", "string"), ("features", pyarrow.list_(pyarrow.float32()))])
    table = pyarrow.table(rows, schema=schema.with_metadata(metadata))
    pyarrow.parquet.write_table(table, tmp_path / "narrow.parquet")
    with pytest.raises(FileFormatError, match="vectors of different lengths"):
        read_embeddings(tmp_path / "narrow.parquet")
