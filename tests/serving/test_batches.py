"""Blocks of inputs from any storage, and batches of columns: the rows of predict and embed."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from command_line import call
from headstart import BatchEmbedder, BatchPredictor, embed
from headstart.data.blocks import image_blocks, name_of, text_blocks
from headstart.data.inputs import image_inputs
from headstart.data.storage import file_names, is_uri, read_file, written_whole
from headstart.errors import DataError, InputError
from headstart.serving import ray as by_ray
from photo_data import make_photo

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def encoded(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(make_photo((200, 40 + seed, 90), seed)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def data(tmp_path) -> Path:
    """Eleven images as files, as Parquet in row groups of four, and in a tar."""
    folder = tmp_path / "data"
    (folder / "files").mkdir(parents=True)
    images = [encoded(i) for i in range(11)]
    names = [f"{i:02d}.png" for i in range(11)]
    for name, image in zip(names, images, strict=True):
        (folder / "files" / name).write_bytes(image)
    table = pyarrow.table({"id": list(range(11)), "image": images})
    parquet.write_table(table, folder / "bytes.parquet", row_group_size=4)
    paths = pyarrow.table({"path": [f"files/{name}" for name in names]})
    parquet.write_table(paths, folder / "paths.parquet", row_group_size=4)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name, image in zip(names, images, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
    return folder


def read(blocks) -> list:
    return [each for block in blocks for each in block.read()]


@pytest.mark.parametrize("name", ["files", "bytes.parquet", "paths.parquet", "images.tar"])
@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_blocks_hold_the_inputs_of_predict(name, rows, data):
    expected = image_inputs([data / name])
    blocks = list(image_blocks([str(data / name)], rows))
    assert len(blocks) == -(-11 // rows)
    found = read(blocks)
    assert [each.name for each in found] == [each.name for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.pixels(), theirs.pixels())


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_other_storage_holds_the_same_images(scheme, data):
    """`file://` is read by pyarrow, `memory://` by fsspec."""
    root = data.as_uri() if scheme == "file" else "memory:///data"
    for file in data.rglob("*.*"):
        if scheme == "memory":
            with written_whole(f"{root}/{file.relative_to(data)}") as out:
                out.write(file.read_bytes())
    expected = [each.pixels() for each in image_inputs([data / "files"])]
    for name in ("files", "bytes.parquet", "paths.parquet", "images.tar"):
        found = read(image_blocks([f"{root}/{name}"], 3))
        assert len({name_of(each) for each in found}) == 11
        assert all(each.name.startswith(root) for each in found)
        for ours, theirs in zip(found, expected, strict=True):
            assert np.array_equal(ours.pixels(), theirs)
    everything = read(image_blocks([root], 3))
    assert len(everything) == 44


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    uri = f"{tmp_path.as_uri()}/new/part.bin"
    with pytest.raises(RuntimeError), written_whole(uri) as out:
        out.write(b"half")
        raise RuntimeError
    assert file_names((tmp_path / "new").as_uri()) == []
    with written_whole(uri) as out:
        out.write(b"whole")
    assert read_file(uri) == b"whole" and is_uri(uri)


def test_storage_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no file or folder"):
        list(image_blocks([f"{tmp_path.as_uri()}/none"]))
    with pytest.raises(InputError, match="nowhere"):
        list(image_blocks(["nowhere://bucket/x"]))
    (tmp_path / "x.parquet").write_text("words")
    with pytest.raises(DataError, match=r"x\.parquet is not a Parquet file"):
        list(image_blocks([str(tmp_path / "x.parquet")]))


def test_a_batch_has_the_rows_of_predict(data, tiny_model, tmp_path, capsys):
    (data / "files" / "04.png").write_text("words")
    files = sorted(map(str, (data / "files").iterdir()))
    out = tmp_path / "plain.parquet"
    assert call(capsys, "predict", tiny_model, *files, "--top", 2, "--out", out)[0] == 3
    plain = parquet.read_table(out)
    predict = BatchPredictor(tiny_model, top=2, keep=["id"])
    numbers = np.arange(len(files))
    found = predict({"path": np.array(files, dtype=object), "id": numbers})
    assert found.drop_columns(["id"]).equals(plain.replace_schema_metadata(None), check_metadata=0)
    assert found["id"].to_pylist() == numbers.tolist()
    contents = [Path(name).read_bytes() for name in files]
    assert predict({"id": files, "bytes": contents})["label"].equals(found["label"])
    pixels = np.stack([make_photo((9, 9, 9), i) for i in range(3)])
    assert predict({"item": pixels, "id": "abc"})["path"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(InputError, match="expected bytes, a path or an array"):
        predict({"image": np.zeros((1, 4, 4), np.uint8), "id": ["a"]})
    with pytest.raises(InputError, match="columns other, not 'image'"):
        BatchPredictor(tiny_model)({"other": []})


def test_a_batch_has_the_vectors_of_embed(data, tiny_model):
    files = sorted(map(str, (data / "files").iterdir()))
    found = BatchEmbedder(tiny_model)({"path": files})
    expected = embed(tiny_model, files)
    assert np.array_equal(np.stack(found["features"].to_numpy()), expected.features)
    assert found.column_names == ["path", "features", "error"]


def writer(model, out, **more) -> by_ray.BlockWriter:
    return by_ray.BlockWriter("predict", {"model": str(model), **more}, str(out), {}, 1)


def write(actor, blocks) -> list[dict]:
    import pickle

    numbers = range(len(blocks))
    found = actor({"number": numbers, "block": [pickle.dumps(block) for block in blocks]})
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def test_a_written_block_is_not_computed_again(data, tiny_model, tmp_path, monkeypatch):
    blocks = list(image_blocks([str(data / "files")], 4))
    actor = writer(tiny_model, tmp_path / "out")
    first = write(actor, blocks)
    assert [each["rows"] for each in first] == [4, 4, 3]
    monkeypatch.setattr(actor.batches, "rows", None)
    assert [each["rows"] for each in write(actor, blocks)] == [4, 4, 3]


def test_a_block_that_fails_is_tried_again_and_reported(data, tiny_model, tmp_path, monkeypatch):
    """Storage may recover; a file that is damaged does not. Other blocks are not affected."""
    monkeypatch.setattr(by_ray, "PAUSE", 0.0)
    blocks = list(image_blocks([f"{data.as_uri()}/images.tar", str(data / "files")], 20))
    actor = writer(tiny_model, tmp_path / "out")
    tries = []

    def fails_twice(part):
        tries.append(part)
        if len(tries) < 3:
            raise OSError("the storage is away")

    monkeypatch.setattr(by_ray, "read_part", fails_twice)
    found = write(actor, blocks)
    assert [each["failed"] for each in found] == ["", ""] and len(tries) == 4

    (data / "images.tar").write_bytes(b"no tar" * 500)
    found = write(writer(tiny_model, tmp_path / "other"), blocks)
    assert "images.tar is not a plain (uncompressed) tar" in found[0]["failed"]
    assert found[1]["rows"] == 11 and not found[1]["failed"]
    names = [file.name for file in (tmp_path / "other").iterdir()]
    assert names == ["part-00000001.parquet"]


def test_results_of_other_inputs_are_not_continued(data, tiny_model, tmp_path):
    blocks = list(image_blocks([str(data / "files")], 4))
    out = str(tmp_path / "out")
    by_ray.check_manifest(out, by_ray.manifest_of("predict", {"model": "a"}, blocks), False)
    again = by_ray.manifest_of("predict", {"model": "a", "workers": 2}, blocks)
    by_ray.check_manifest(out, again, True)
    with pytest.raises(InputError, match="holds results; continue them with --resume"):
        by_ray.check_manifest(out, again, False)
    other = by_ray.manifest_of("predict", {"model": "b"}, blocks[:2])
    with pytest.raises(InputError, match="cannot be continued: model, blocks, inputs changed"):
        by_ray.check_manifest(out, other, True)


def test_texts_come_in_blocks(tmp_path):
    table = pyarrow.table({"text": [f"text {i}" for i in range(7)]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    task = "text-classification"
    local = read(text_blocks(task, [str(tmp_path / "t.parquet")], ["one more"], rows=3))
    stored = read(text_blocks(task, [f"{tmp_path.as_uri()}/t.parquet"], rows=3))
    assert [text for _, text in local[1:]] == [text for _, text in stored]
    assert len(local) == 8 and stored[6][0].endswith("t.parquet row 7")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError, match="only Parquet is read"):
        read(text_blocks(task, [f"{tmp_path.as_uri()}/a.txt"]))


def test_what_a_cluster_needs_is_said(tiny_model, data, tmp_path, capsys):
    files, out = str(data / "files"), tmp_path / "out"
    for words, message in [
        (("--actors", 2), "give --ray too"),
        (("--out", "s3://bucket/out"), "URIs are read and written with --ray"),
        (("--ray", "local"), "--out is missing: with --ray it is a folder"),
        (("--ray", "local", "--out", "x.parquet"), "with --ray it is a folder"),
        (("--ray", "local", "--out", out, "--json"), "leave --json out"),
        (("--ray", "local", "--out", out, "--lines"), "reads images, and --lines is for texts"),
    ]:
        code, _, printed = call(capsys, "predict", tiny_model, files, *words)
        assert code == 2 and message in printed, printed


def test_a_cluster_notices_another_model_of_the_same_name(data, tiny_model, tmp_path):
    model, out = tmp_path / "model", str(tmp_path / "out")
    shutil.copytree(tiny_model, model)
    options = {"model": str(model), "top": 2}
    blocks = list(image_blocks([str(data / "files")]))
    by_ray.check_manifest(out, by_ray.manifest_of("predict", options, blocks), resume=False)
    for number, block in enumerate(blocks):
        by_ray.write_block(BatchPredictor(**options), block, by_ray.part_name(out, number))
    found = by_ray.run_blocks("predict", options, blocks, out, resume=True)  # all is there
    assert found.done == len(blocks) and found.rows == 11
    tensors = load_file(model / "model.safetensors")
    tensors["classifier.1.bias"] += 0.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="has other weights or settings than when it was begun"):
        by_ray.run_blocks("predict", options, blocks, out, resume=True)
