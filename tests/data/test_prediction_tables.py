"""`predict --out` for models of every task and every kind of input: what the pipelines answer."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from command_line import call
from conftest import ROOT
from data.test_predictions import files_of, table_rows
from headstart import pipeline
from headstart.data.results import csv_cell

SUFFIXES = [".csv", ".jsonl", ".parquet"]
TEXTS = {
    "YosoForSequenceClassification": "text-classification",
    "YosoForTokenClassification": "token-classification",
    "YosoForMaskedLM": "fill-mask",
    "YosoForQuestionAnswering": "question-answering",
}


def cell(value, suffix):
    """A cell of a list as the list."""
    return json.loads(value) if isinstance(value, str) and suffix != ".jsonl" else value


def save_classifier(folder, **settings):
    torch.manual_seed(3)
    config = headstart.BitConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4, **settings
    )
    headstart.BitForImageClassification(config).save_pretrained(folder)
    size = {"height": 20, "width": 20}
    headstart.BitImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_labels(suffix, photos, tmp_path, capsys):
    names = {0: "striped", 1: "small", 2: "wet"}
    kind = "multi_label_classification"
    model = save_classifier(tmp_path / "m", id2label=names, problem_type=kind)
    files, out = files_of(photos), tmp_path / f"r{suffix}"
    words = ("--threshold", 0.5, "--out", out)
    assert call(capsys, "predict", model, *files, *words)[0] == 0
    rows = table_rows(out)
    assert list(rows[0]) == ["path", "labels", "refused", "error"]
    expected = pipeline("image-classification", model)([str(each) for each in files])
    assert {len(each) for each in expected} - {0, 3}, "the labels should differ"
    for row, labels in zip(rows, expected, strict=True):
        found = cell(row["labels"], suffix)
        assert [each["label"] for each in found] == [each["label"] for each in labels]
        scores = [each["score"] for each in labels]
        assert [each["score"] for each in found] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_regression_targets(suffix, photos, tmp_path, capsys):
    names = {0: "height", 1: "weight"}
    model = save_classifier(tmp_path / "m", id2label=names, problem_type="regression")
    bad = tmp_path / "bad.png"
    bad.write_text("words")
    files, out = [*files_of(photos)[:3], bad], tmp_path / f"r{suffix}"
    assert call(capsys, "predict", model, *files, "--out", out)[0] == 3
    rows = table_rows(out)
    assert list(rows[0]) == ["path", "height", "weight", "error"]
    lost = rows.pop()
    assert lost["height"] in (None, "") and "unknown image format" in lost["error"]
    expected = pipeline("image-classification", model)([str(each) for each in files[:3]])
    for row, values in zip(rows, expected, strict=True):
        for each in values:
            assert float(row[each["label"]]) == pytest.approx(each["score"], abs=1e-5)


def test_a_target_called_as_a_column_is_refused(photos, tmp_path, capsys):
    names = {0: "path", 1: "weight"}
    model = save_classifier(tmp_path / "m", id2label=names, problem_type="regression")
    words = ("predict", model, files_of(photos)[0], "--out", tmp_path / "r.csv")
    code, _, err = call(capsys, *words)
    assert code == 2 and "called 'path', as a column is" in err


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        (" @SUM(A1)", "' @SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("+1 up", "'+1 up"),
        ("-1.5", "-1.5"),
        ("-1.5|2e-3", "-1.5|2e-3"),
        ("-", "-"),
        ("a=b", "a=b"),
        ("x\x1b[31my\u202e", "x[31my"),
    ],
)
def test_cells_are_no_formulas_and_no_escapes(text, written):
    assert csv_cell(text) == written


def test_a_table_of_odd_names_goes_on(photos, tmp_path, capsys, monkeypatch):
    """Resuming knows names that CSV holds in another form; JSON lines hold them as they are."""
    model = save_classifier(tmp_path / "m", id2label={0: "=1+1", 1: "+a"})
    monkeypatch.chdir(tmp_path)
    names = ["=a.png", "b\x1b[1m.png", "@c.png"]
    for name, file in zip(names, files_of(photos), strict=False):
        (tmp_path / name).write_bytes(file.read_bytes())
    for out in ("r.csv", "r.jsonl"):
        assert call(capsys, "predict", model, *names[:2], "--out", out)[0] == 0
        assert call(capsys, "predict", model, *names, "--out", out, "--resume")[0] == 0
        rows = table_rows(tmp_path / out)
        exact = out == "r.jsonl"
        assert [row["path"] for row in rows] == [n if exact else csv_cell(n) for n in names]
        assert all((row["label"][0] == "'") != exact for row in rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_segmentation(suffix, photos, tmp_path, capsys):
    torch.manual_seed(0)
    config = headstart.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=16,
        use_relative_position_bias=True,
        out_indices=[0, 1, 2, 3],
        id2label={0: "sky", 1: "sea", 2: "sand"},
        pool_scales=[1, 2],
        auxiliary_channels=16,
    )
    headstart.BeitForSemanticSegmentation(config).save_pretrained(tmp_path / "m")
    size = {"height": 32, "width": 32}
    headstart.BeitImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path / "m")
    files, out = files_of(photos)[:3], tmp_path / "results" / f"r{suffix}"
    assert call(capsys, "predict", tmp_path / "m", *files, "--out", out)[0] == 0
    rows = table_rows(out)
    assert list(rows[0]) == ["path", "mask", "overlay", "classes", "error"]
    segment = pipeline("semantic-segmentation", tmp_path / "m")
    assert len({row["mask"] for row in rows}) == 3
    for row, file in zip(rows, files, strict=True):
        assert row["path"] == str(file)
        expected = segment.write(file, tmp_path / "expected" / file.stem)
        for name in ("mask", "overlay"):
            found, other = out.parent / row[name], expected[f"{name}_file"]
            with Image.open(found) as ours, Image.open(other) as theirs:
                assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        fractions = {each["label"]: each["fraction"] for each in expected["classes"]}
        classes = {each["label"]: each["score"] for each in cell(row["classes"], suffix)}
        assert classes == pytest.approx(fractions) and sum(fractions.values()) == pytest.approx(1)


def check_text_row(row, text, run, suffix):
    """Compares a row of the table with what the pipeline gives for its text."""
    task = run.task
    if task == "text-classification":
        expected = run(text, top_k=2)
        assert row["label"] == expected[0]["label"]
        assert float(row["probability"]) == pytest.approx(expected[0]["score"], abs=1e-4)
        found = cell(row["top_k"], suffix)
        assert [each["label"] for each in found] == [each["label"] for each in expected]
    elif task == "fill-mask":
        expected = run(text, top_k=2)
        (found,) = cell(row["masks"], suffix)
        assert [each["token_str"] for each in found] == [each["token_str"] for each in expected]
    elif task == "token-classification":
        expected = run(text, aggregation_strategy="simple")
        found = cell(row["spans"], suffix)
        keys = ("start", "end")
        assert [[each[key] for key in keys] for each in found] == [
            [each[key] for key in keys] for each in expected
        ]
        assert [each["label"] for each in found] == [each["entity_group"] for each in expected]
    else:
        expected = run(question="Who?", context=text, top_k=2)
        assert (row["answer"] or "") == expected[0]["answer"]
        assert (int(row["start"]), int(row["end"])) == (expected[0]["start"], expected[0]["end"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, suffix, tmp_path, capsys):
    tokenizer = headstart.YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")
    torch.manual_seed(1)
    config = headstart.YosoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model, task, out = tmp_path / "m", TEXTS[name], tmp_path / f"r{suffix}"
    getattr(headstart, name)(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    mask = f"{tokenizer.mask_token} " if task == "fill-mask" else ""
    texts = [f"{mask}We went.", f"{mask}They went home, é."]
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    requested = ("--question", "Who?") if task == "question-answering" else ()
    words = ("predict", model, tmp_path / "t.txt", "--lines", *requested, "--out", out, "--top", 2)
    assert call(capsys, *words)[0] == 0
    rows = table_rows(out)
    assert [row["text"] for row in rows] == [f"{tmp_path / 't.txt'} line {i}" for i in (1, 2)]
    run = pipeline(task, model)
    for row, text in zip(rows, texts, strict=True):
        check_text_row(row, text, run, suffix)


def test_every_kind_of_input_makes_the_same_rows(photos, tiny_model, tmp_path, capsys, monkeypatch):
    folder, files = photos / "val", files_of(photos)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for each in files:
            tar.add(each, each.relative_to(folder))
    lines = "".join(f"{each}\n" for each in files)
    for name, text in (
        ("list.csv", f"path,note\n{lines.replace(chr(10), ',x' + chr(10))}"),
        ("list.jsonl", "".join(f"{json.dumps({'image': str(each)})}\n" for each in files)),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    found = {}
    for number, given in enumerate(
        (folder, folder / "*" / "*.png", "-", tmp_path / "all.tar", tmp_path / "list.csv",
         tmp_path / "list.jsonl")
    ):  # fmt: skip
        out = tmp_path / f"{number}.jsonl"
        assert call(capsys, "predict", tiny_model, given, "--out", out)[0] == 0
        found[str(given)] = table_rows(out)
    names = [str(each) for each in files]
    (first, *others) = found.values()
    assert [row["path"] for row in first] == names
    for given, rows in found.items():
        if not given.endswith(".tar"):
            assert [row["path"] for row in rows] == names
        for row, expected in zip(rows, first, strict=True):
            assert row["label"] == expected["label"]
            assert row["probability"] == pytest.approx(expected["probability"], abs=1e-6)
    assert len({row["path"] for row in found[str(tmp_path / "all.tar")]}) == len(files)
