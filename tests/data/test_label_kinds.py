"""Kinds of labels in tables: one, several, numbers, and what is refused."""

import json

import numpy as np
import pytest

from headstart.data.images import read_images
from headstart.data.labels import MULTI, REGRESSION, SINGLE, kind_named, kind_of, look_alikes
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError
from headstart.tasks.text_classification import TextClassification
from source_data import WHOLE, table


@pytest.mark.parametrize(
    "cells, several, kind",
    [
        (["a", "b"], False, SINGLE),
        (["1", "2"], False, SINGLE),
        ([1, 2], False, SINGLE),
        (["1", "2.5"], False, REGRESSION),
        ([0.5, 1], False, REGRESSION),
        (["0.5", "x"], False, SINGLE),
        (["a|b", "a"], False, MULTI),
        (["a;b", "b;c"], False, MULTI),
        (["Paris; France", "Rome; Italy"], False, SINGLE),
        (["Paris; France", "Rome; Italy"], True, MULTI),
        (["a", "b"], True, SINGLE),
        ([["a"], []], False, MULTI),
        (['["a"]', "[]"], False, MULTI),
        ([(1, 0), (0, 1)], False, SINGLE),
        ([(1, 1), (0, 1)], False, MULTI),
        ([("0", "true"), ("0", "0")], False, MULTI),
        ([(1.5, 0), (0, 1)], False, REGRESSION),
    ],
)
def test_labels_tell_their_kind(cells, several, kind):
    assert (
        kind_of([cell if isinstance(cell, tuple) else (cell,) for cell in cells], several=several)
        == kind
    )


def test_names_of_kinds():
    assert kind_named("multi-label") == kind_named("multi_label_classification") == MULTI
    assert kind_named("single") == SINGLE and kind_named("regression") == REGRESSION
    for wrong in ("", "label", "class"):
        with pytest.raises(ConfigError, match="problem_type"):
            kind_named(wrong)


def test_tables_of_several_labels(tmp_path):
    """Lists, text with separators and columns of 0 and 1 are the same labels."""
    rows = [("1.png", ["sea", "sun"]), ("2.png", []), ("3.png", ["sun"])]
    lists = "".join(json.dumps({"image": name, "labels": labels}) + "\n" for name, labels in rows)
    marked = "image,tags\n" + "".join(f"{name},{' | '.join(labels)}\n" for name, labels in rows)
    hot = "image,id,sea,sun\n" + "".join(
        f"{name},{i},{int('sea' in labels)},{int('sun' in labels)}\n"
        for i, (name, labels) in enumerate(rows)
    )
    for text, name in (
        (lists, "t.jsonl"),
        (marked, "t.csv"),
        (marked.replace(" | ", ";"), "t.csv"),
        (hot, "t.csv"),
    ):
        data = read_images(table(tmp_path, text, name), WHOLE)
        assert data.kind == MULTI and data.classes == ["sea", "sun"], text
        assert (
            data.splits["train"].labels.tolist() == [[1, 1], [0, 0], [0, 1]]
            and data.splits["train"].labels.dtype == np.float32
        )
    requested = DataOptions(val_fraction=0.0, columns={"labels": "sun,sea"})
    assert read_images(table(tmp_path, hot), requested).splits["train"].labels.tolist() == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]
    one = "image,sea,sun\n1.png,1,0\n2.png,0,1\n"
    data = read_images(table(tmp_path, one), WHOLE)
    assert data.kind == SINGLE and data.splits["train"].labels.tolist() == [0, 1]
    model = DataOptions(classes=["sun", "sea"], problem_type=MULTI)
    assert read_images(table(tmp_path, hot), model).splits["train"].labels.tolist() == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]


def test_tables_of_numbers(tmp_path):
    data = read_images(table(tmp_path, "image,age\n1.png,3\n2.png,4.5\n"), WHOLE)
    assert (
        data.kind == REGRESSION
        and data.classes == ["age"]
        and data.splits["train"].labels.tolist() == [[3], [4.5]]
    )
    whole = "image,label\n1.png,3\n2.png,4\n"
    assert read_images(table(tmp_path, whole), WHOLE).kind == SINGLE
    assert (
        read_images(
            table(tmp_path, whole), DataOptions(val_fraction=0.0, problem_type=REGRESSION)
        ).kind
        == REGRESSION
    )
    two = "image,x,y\n1.png,3,1\n2.png,4.5,2\n"
    data = read_images(
        table(tmp_path, two), DataOptions(val_fraction=0.0, columns={"label": "x,y"})
    )
    assert data.classes == ["x", "y"] and data.splits["train"].labels.tolist() == [[3, 1], [4.5, 2]]
    ages = "image,label\n" + "".join(f"{i}.png,{i % 60}\n" for i in range(70))
    assert any(
        "--problem-type regression" in note
        for note in read_images(table(tmp_path, ages), WHOLE).notes
    )


@pytest.mark.parametrize(
    "text, kind, message",
    [
        (
            "image,label\n1.png,3\n2.png,x\n",
            REGRESSION,
            r"t\.csv line 3: label is 'x'; expected a number",
        ),
        ("image,label\n1.png,3\n2.png,inf\n", REGRESSION, r"t\.csv line 3: label is 'inf'"),
        ("image,label\n1.png,3\n2.png,\n", REGRESSION, r"t\.csv line 3: label is ''"),
        ("image,label\n1.png,\n2.png,\n", MULTI, "has no classes"),
        (
            "image,a,b\n1.png,1,0\n2.png,0,0\n",
            SINGLE,
            r"t\.csv line 3: 0 of the columns a, b are 1",
        ),
        (
            "image,u,v\n1.png,3,1.5\n2.png,4.5,2\n",
            None,
            "which column holds the label.*image, u, v",
        ),
    ],
)
def test_wrong_labels(text, kind, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_images(table(tmp_path, text), DataOptions(val_fraction=0.0, problem_type=kind))


@pytest.mark.parametrize(
    "cell", ["['a', 'b", "a', 'b']", '("a", "b"', "['a' 'b", '["a", "b"', "{'a', 'b'"]
)
def test_a_list_whose_end_is_missing(tmp_path, cell):
    whole = "['a', 'b']"
    for other in (whole, "a"):  # several classes each, one class each
        file = tmp_path / "t.jsonl"
        rows = [{"image": "1.png", "label": other}, {"image": "2.png", "label": cell}]
        file.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match=r"t\.jsonl line 2: label is .* ends like a list"):
            read_images(file, WHOLE)
        rows = [{"text": row["image"], "label": row["label"]} for row in rows]
        file.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match=r"t\.jsonl line 2: the label is .* ends like a list"):
            TextClassification.read(file, WHOLE)


def test_one_bracket_is_a_cut_list_among_lists_only(tmp_path):
    with pytest.raises(DataError, match="line 3: label is '\\[0, 1', which begins or ends like"):
        read_images(table(tmp_path, 'image,label\n1.png,"[0, 2]"\n2.png,"[0, 1"\n'), WHOLE)
    names = 'image,label\n1.png,[other]\n2.png,(none)\n3.png,dog [1\n4.png,5"\n'
    found = read_images(table(tmp_path, names), WHOLE).classes
    assert found == ["(none)", '5"', "[other]", "dog [1"]


@pytest.mark.parametrize("cells", [("3,5", "4"), ("-1.234,5", "2,25"), ("0,5", "1.5")])
def test_decimal_commas(tmp_path, cells):
    text = "image;label\n" + "".join(f"{i}.png;{cells[i % 2]}\n" for i in range(4))
    notes = read_images(table(tmp_path, text), WHOLE).notes
    assert any("look like numbers with decimal commas" in note for note in notes)
    numbers = DataOptions(val_fraction=0.0, problem_type=REGRESSION)
    with pytest.raises(DataError, match="expected a number with a decimal point"):
        read_images(table(tmp_path, text), numbers)
    assert look_alikes(["a", "3,5"]) == look_alikes(["1", "2"]) == []
