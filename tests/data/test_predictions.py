"""Batch prediction: what is read, tables of results, runs that are cut off and continued."""

import csv
import io
import json
import os
import pickle
import shutil
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from command_line import call
from headstart import pipeline
from headstart.data import inputs as data_inputs
from headstart.data import predictions
from headstart.data.blocks import image_blocks
from headstart.data.cache import parallel
from headstart.data.inputs import ImageInput, image_inputs
from headstart.data.predictions import Prediction, classify, in_batches, once_a_file, unique_stems
from headstart.data.results import ResultTable, remaining
from headstart.data.sources.raw import Lazy
from headstart.errors import InputError
from photo_data import photos, tiny_model  # noqa: F401 - fixtures

COLUMNS = {"path": "text", "label": "text", "probability": "number", "top_k": "scores"}


def row(name):
    return {
        "path": name,
        "label": 'a "b", c',
        "probability": 0.5,
        "top_k": [{"label": "a", "score": 0.5}],
    }


def files_of(photos):  # noqa: F811
    return sorted((photos / "val").rglob("*.png"))


def table_rows(path):
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def test_every_kind_of_input_names_the_same_images(photos, tmp_path, monkeypatch):  # noqa: F811
    files = files_of(photos)
    names = [str(each) for each in files]
    folder = photos / "val"
    (folder / "list.csv").write_text(
        "image\n" + "".join(f"{each.relative_to(folder)}\n" for each in files)
    )
    try:
        assert [each.name for each in image_inputs([folder / "list.csv"])] == names
    finally:
        (folder / "list.csv").unlink()
    assert [each.name for each in image_inputs([folder])] == names
    assert [each.name for each in image_inputs([folder / "**" / "*.png"])] == names
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names) + "\n\n"))
    assert [each.name for each in image_inputs([Path("-")])] == names
    odd = [*names, "a\nb.png"]  # `find -print0`
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{name}\0" for name in odd)))
    assert [each.name for each in image_inputs([Path("-")])] == odd
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for each in files:
            tar.add(each, each.relative_to(folder))
    inside = image_inputs([tmp_path / "all.tar"])
    assert len(inside) == len(files)
    for each, file in zip(inside, files, strict=True):
        assert np.array_equal(each.pixels(), np.asarray(Image.open(file).convert("RGB")))


def test_inputs_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    for words, match in (
        ([], "which images"),
        (["-"], "empty"),
        ([tmp_path / "*.jpg"], "no file matches"),
        ([tmp_path / "a.jpg"], "there is no file"),
    ):
        with pytest.raises(InputError, match=match):
            image_inputs([Path(each) for each in words])


def test_classify_gives_what_the_pipeline_gives(photos, tiny_model, tmp_path):  # noqa: F811
    files = files_of(photos)
    bad = tmp_path / "words.png"
    bad.write_text("words")
    pipe = pipeline("image-classification", tiny_model)
    found = list(classify(pipe, image_inputs([files[0], bad, *files[1:]]), top_k=2, batch_size=3))
    assert "unknown image format" in found.pop(1).error
    expected = pipe([str(each) for each in files], top_k=2)
    for each, labels in zip(found, expected, strict=True):
        assert [one["label"] for one in each.labels] == [one["label"] for one in labels]
        torch.testing.assert_close(
            [one["score"] for one in each.labels], [one["score"] for one in labels]
        )


def test_batches_hold_as_many_pixels_as_eight_large_images():
    def sizes(count, side, batch_size=None):
        inputs = [ImageInput(str(i), Path(str(i))) for i in range(count)]
        ready = [torch.zeros(1, 3, side, side)] * count
        ready[0] = InputError("damaged")
        batches = list(in_batches(inputs, ready, batch_size))
        assert [each.name for batch in batches for each, _ in batch] == [
            str(i) for i in range(count)
        ]
        return [len(batch) for batch in batches]

    assert sizes(30, 224) == [9, 8, 8, 5]  # the first of them is damaged
    assert sizes(70, 128) == [26, 25, 19]
    assert sizes(130, 32) == [64, 64, 2]
    assert sizes(3, 640) == [2, 1]
    assert sizes(8, 224, 3) == [3, 3, 2]
    with pytest.raises(InputError, match="batch_size=0"):
        sizes(2, 8, 0)


def test_parallel_keeps_the_order_and_reads_no_more_than_it_may():
    begun = []

    def numbers():
        for i in range(10_000):
            begun.append(i)
            yield i

    found = parallel(lambda i: i * i, numbers(), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 4]
    assert len(begun) <= 2 * 64 + 3
    found.close()
    assert list(parallel(lambda i: -i, range(500), 3)) == [-i for i in range(500)]


def test_written_images_have_names_of_their_own(tmp_path):
    names = ["a/x.png", "b/x.png", "x_2.png", "c/x.jpg", "c/x.png"]
    inputs = [ImageInput(name, Path(name)) for name in names]
    stems = unique_stems([*inputs, *inputs], tmp_path)
    assert len(set(stems)) == len(names) and stems[0] == tmp_path / "x"
    assert stems[len(names) :] == stems[: len(names)]  # a file has one


@pytest.mark.parametrize(("remembered", "most"), [(1, 1), (30, 3), (1000, 100)])
def test_a_result_is_computed_once_while_it_is_remembered(remembered, most, monkeypatch):
    """Against a list of the last results that occur again."""
    monkeypatch.setattr(predictions, "REMEMBERED", remembered)
    files = np.random.default_rng(0).integers(0, 12, 200).tolist() + [20, 21]
    inputs = [ImageInput(f"row {i}", Path(str(file))) for i, file in enumerate(files)]
    asked = []

    def results(rows):
        asked.extend(rows)
        return (Prediction("", [{"label": files[i]}]) for i in rows)

    found = list(once_a_file(inputs, results, 10))
    assert [each.name for each in found] == [each.name for each in inputs]
    assert [each.labels[0]["label"] for each in found] == files
    recent, expected = [], []
    for i, file in enumerate(files):
        if file not in recent:
            expected.append(i)
        recent = [*(each for each in recent if each != file), file][-most:]
    assert asked == expected


def counted_reads(monkeypatch):
    """Names of the files that are read from now on."""
    read, load = [], data_inputs.load_image

    def load_image(path):
        read.append(path)
        return load(path)

    monkeypatch.setattr(data_inputs, "load_image", load_image)
    return read


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_reads_a_file_of_many_rows_once(
    suffix,
    photos,  # noqa: F811
    tiny_model,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    bad, out = tmp_path / "words.png", tmp_path / f"results{suffix}"
    bad.write_text("words")
    files = [*files_of(photos)[:4], bad]
    order = [0, 1, 0, 2, 4, 1, 0, 3, 4, 2, 0, 3]
    table = tmp_path / "rows.csv"
    table.write_text("".join(["image\n", *(f"{files[i]}\n" for i in order)]))
    words = ("predict", tiny_model, table, "--out", out)
    read = counted_reads(monkeypatch)
    assert call(capsys, *words)[0] == 3
    assert sorted(read) == sorted(files)
    rows = table_rows(out)
    assert [each["path"] for each in rows] == [str(files[i]) for i in order]
    assert [bool(each["error"]) for each in rows] == [i == 4 for i in order]
    for i, each in zip(order, rows, strict=True):
        same = rows[order.index(i)]
        assert each == same
    monkeypatch.setattr(ResultTable, "write", cut_after(5))
    out.unlink()
    (tmp_path / "results.csv.run.json").unlink(missing_ok=True)
    assert call(capsys, *words)[0] == 130
    monkeypatch.undo()
    read = counted_reads(monkeypatch)
    assert call(capsys, *words, "--resume")[0] == 3
    assert sorted(read) == sorted(files)  # each is in the rest
    assert [each["path"] for each in table_rows(out)] == [str(files[i]) for i in order]


def cut_after(rows):
    """`ResultTable.write` of a run that is stopped after so many rows."""
    write, written = ResultTable.write, []

    def cut(self, row):
        if len(written) == rows:
            raise KeyboardInterrupt
        written.append(row)
        write(self, row)

    return cut


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_table_that_was_cut_off_anywhere_is_continued(suffix, cut, tmp_path):
    """Bytes are removed from the end, as where the process or the machine stopped."""
    path, names = tmp_path / f"out{suffix}", [f"é{i}.jpg" for i in range(5)]
    with ResultTable(path, COLUMNS) as table:
        for name in names[:3]:
            table.write(row(name))
    file = path.with_name("out.parquet.jsonl") if suffix == ".parquet" else path
    file.write_bytes(file.read_bytes()[:-cut])
    with ResultTable(path, COLUMNS, resume=True) as table:
        first = remaining(table, names)
        assert first < 3
        for name in names[first:]:
            table.write(row(name))
        table.finish()
    rows = table_rows(path)
    assert [each["path"] for each in rows] == names
    assert {each["label"] for each in rows} == {'a "b", c'}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_finished_table_is_left_alone(tmp_path):
    path = tmp_path / "out.parquet"
    with ResultTable(path, COLUMNS) as table:
        table.write(row("a"))
        table.finish()
    before = path.read_bytes()
    with ResultTable(path, COLUMNS, resume=True) as table:
        assert remaining(table, ["a"]) == 1
        table.finish()
    assert path.read_bytes() == before


def test_tables_that_cannot_be_continued(tmp_path):
    path = tmp_path / "out.csv"
    with ResultTable(path, COLUMNS) as table:
        table.write(row("a"))
    with pytest.raises(InputError, match="exists; continue it with --resume"):
        ResultTable(path, COLUMNS)
    with pytest.raises(InputError, match="its columns are path, label"):
        ResultTable(path, {"path": "text", "mask": "text"}, resume=True)
    with pytest.raises(InputError, match="its row 1 is of a, the input there is b"):
        remaining(ResultTable(path, COLUMNS, resume=True), ["b"])
    with pytest.raises(InputError, match="its row 1 is of a, the input there is missing"):
        remaining(ResultTable(path, COLUMNS, resume=True), [])
    path.write_bytes(path.read_bytes() + b"x,y\n")
    with pytest.raises(InputError, match="line 3: 2 values for 4 columns"):
        ResultTable(path, COLUMNS, resume=True)


FACTS = {"model": "runs/a", "key": "k1", "top": "3"}


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_another_model_or_option_does_not_continue_a_table(suffix, complete, tmp_path):
    path = tmp_path / f"out{suffix}"
    with ResultTable(path, COLUMNS, facts=FACTS) as table:
        table.write(row("a"))
        if complete:
            table.finish()
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    for changed, match in (
        (
            {"model": "runs/b", "key": "k2"},
            "its rows are of runs/a, and this run's model is runs/b",
        ),
        ({"key": "k2"}, "of runs/a with other weights or settings, and this run's model is runs/a"),
        ({"top": "5"}, "its rows were made with top=3, and this run has top=5; give the same"),
    ):
        with pytest.raises(InputError, match=match):
            ResultTable(path, COLUMNS, resume=True, facts=FACTS | changed)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    moved = FACTS | {"model": "elsewhere/a"}
    with ResultTable(path, COLUMNS, resume=True, facts=moved) as table:
        assert remaining(table, ["a"]) == 1


def test_a_table_whose_facts_are_lost_is_not_continued(tmp_path):
    path = tmp_path / "out.csv"
    with ResultTable(path, COLUMNS, facts=FACTS) as table:
        table.write(row("a"))
    beside = tmp_path / "out.csv.run.json"
    assert json.loads(beside.read_text()) == FACTS
    beside.unlink()
    with pytest.raises(InputError, match=r"out.csv.run.json, with the model and the options"):
        ResultTable(path, COLUMNS, resume=True, facts=FACTS)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_notices_another_model_and_other_options(
    suffix,
    photos,  # noqa: F811
    tiny_model,  # noqa: F811
    tmp_path,
    capsys,
):
    model, out = tmp_path / "model", tmp_path / f"results{suffix}"
    shutil.copytree(tiny_model, model)
    words = ("predict", model, *files_of(photos), "--out", out, "--resume")
    assert call(capsys, *words)[0] == 0
    before = out.read_bytes()
    assert call(capsys, *words)[0] == 0 and out.read_bytes() == before
    code, _, err = call(capsys, *words, "--top", 1)
    assert code == 2 and "top" in err and "1; give the same options" in err
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.1.bias"] += 0.5
    save_file(tensors, weights, metadata={"format": "pt"})
    code, _, err = call(capsys, *words)
    assert code == 2 and f"its rows are of {model} with other weights or settings" in err
    assert out.read_bytes() == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_goes_on(suffix, photos, tiny_model, tmp_path, capsys, monkeypatch):  # noqa: F811
    files = files_of(photos)
    bad = tmp_path / "words.png"
    bad.write_text("words")
    out = tmp_path / f"results{suffix}"
    words = ("predict", tiny_model, *files[:5], bad, *files[5:], "--top", 2, "--out", out)
    write = ResultTable.write
    monkeypatch.setattr(ResultTable, "write", cut_after(7))
    assert call(capsys, *words)[0] == 130
    monkeypatch.setattr(ResultTable, "write", write)
    code, _, err = call(capsys, *words)
    assert code == 2 and "--resume" in err
    assert call(capsys, *words, "--resume")[0] in (0, 3)
    rows = table_rows(out)
    assert [each["path"] for each in rows] == [*map(str, files[:5]), str(bad), *map(str, files[5:])]
    assert "unknown image format" in rows.pop(5)["error"]
    whole = pipeline("image-classification", tiny_model)([str(each) for each in files], top_k=2)
    for each, labels in zip(rows, whole, strict=True):
        assert each["label"] == labels[0]["label"]
        assert float(each["probability"]) == pytest.approx(labels[0]["score"], abs=1e-6)
        top = json.loads(each["top_k"]) if suffix == ".csv" else each["top_k"]
        assert [one["label"] for one in top] == [one["label"] for one in labels]


def test_options_of_tables_that_are_refused(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    file = files_of(photos)[0]
    for words, match in (
        (("--out", tmp_path / "folder"), "writes a table"),
        (("--out", tmp_path / "a.csv", "--json"), "choose one"),
        (("--resume",), "--resume continues a table"),
    ):
        code, _, err = call(capsys, "predict", tiny_model, file, *words)
        assert code == 2 and match in err, err


def test_a_folder_is_searched_as_training_does(photos, tiny_model, tmp_path, capsys):  # noqa: F811
    """Linked folders are followed, thumbnails of a drive are not; what is not a file is named."""
    (tmp_path / "d" / "@eaDir").mkdir(parents=True)
    (tmp_path / "d" / "more").symlink_to(photos / "val")
    file = files_of(photos)[0]
    (tmp_path / "d" / "@eaDir" / "thumb.png").write_bytes(file.read_bytes())
    (tmp_path / "d" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "d" / "pipe.png")
    out = tmp_path / "r.jsonl"
    assert call(capsys, "predict", tiny_model, tmp_path / "d", "--out", out)[0] == 3
    rows = {row["path"]: row["error"] for row in table_rows(out)}
    bad = {Path(path).name for path, error in rows.items() if error}
    assert bad == {"lost.png", "pipe.png"} and len(rows) == 2 + len(files_of(photos))
    assert not any("@eaDir" in path for path in rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_two_processes_do_not_write_one_table(suffix, tmp_path):
    path, row = tmp_path / f"r{suffix}", {"path": "a", "label": "x", "probability": 1.0}
    row["top_k"] = []
    with ResultTable(path, COLUMNS) as first:
        first.write(row)
        second = ResultTable(path, COLUMNS, resume=True)
        with pytest.raises(InputError, match=f"another run writes {path}"), second:
            pass
        first.write(row | {"path": "b"})
    with pytest.raises(InputError, match="another run writes"), second:  # rows have come since
        pass
    with ResultTable(path, COLUMNS, resume=True) as third:
        assert third.names == ["a", "b"]
        third.finish()


def test_a_row_that_is_written_in_part_is_an_error(tmp_path):
    row = {"path": "a", "label": "x", "probability": 1.0, "top_k": []}
    with ResultTable(tmp_path / "r.csv", COLUMNS) as table:
        table.write(row)
        out = table.out
        table.out = types.SimpleNamespace(write=lambda data: out.write(data[:4]))
        with pytest.raises(OSError, match="cannot write r.csv"):
            table.write(row | {"path": "b"})
        table.out = out
    assert ResultTable(tmp_path / "r.csv", COLUMNS, resume=True).names == ["a"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--text", "x"], "--text is for texts"),
        (["--long", "cut"], "--long is for texts"),
        (["--question", "who?"], "--question is for texts"),
    ],
)
def test_a_model_of_images_refuses_options_of_texts(
    option,
    message,
    photos,  # noqa: F811
    tiny_model,  # noqa: F811
    capsys,
):
    code, _, err = call(capsys, "predict", tiny_model, photos, *option)
    assert code == 2 and message in err


def test_a_file_of_many_rows_is_painted_once(photos, tmp_path):  # noqa: F811
    files = files_of(photos)[:2]
    inputs = image_inputs([files[0], files[1], files[0]])
    painted = []

    def write(pixels, stem):
        painted.append(stem)
        return {"mask_file": f"{stem}.png", "classes": [{"label": "a", "fraction": 1.0}]}

    config = types.SimpleNamespace(id2label={0: "a"})
    painter = types.SimpleNamespace(write=write, model=types.SimpleNamespace(config=config))
    stems = unique_stems(inputs, tmp_path)
    found = list(predictions.paint(painter, inputs, stems, 1))
    assert painted == stems[:2]
    assert [each.name for each in found] == [each.name for each in inputs]
    assert found[2].files == found[0].files != found[1].files


def test_the_inputs_of_a_table_are_made_when_they_are_used(photos, tmp_path):  # noqa: F811
    """A million rows are not a million objects, and a part of them does not hold the others."""
    files = [str(each) for each in files_of(photos)[:3]] * 2
    (tmp_path / "rows.csv").write_text("\n".join(["image", *files, ""]))
    inputs = image_inputs([tmp_path / "rows.csv"])
    assert isinstance(inputs, Lazy)
    assert [each.name for each in inputs] == files
    assert not hasattr(inputs[0], "__dict__")
    both = image_inputs([tmp_path / "rows.csv", Path(files[0])])
    assert [each.name for each in both] == [*files, files[0]]
    blocks = list(image_blocks([str(tmp_path / "rows.csv")], 4))
    assert [len(pickle.loads(pickle.dumps(each.inputs))) for each in blocks] == [4, 2]
