"""Data as people have it: system folders, links, two Unicode forms, what pandas writes, and files
that are damaged.
"""

import csv
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from headstart.data.cache import PixelCache, decode, inspect, inspect_all
from headstart.data.examples import distinct
from headstart.data.images import read_images
from headstart.data.interpret import class_names
from headstart.data.labels import MULTI, as_list, class_key, look_alikes
from headstart.data.masks import read_classes, read_pairs
from headstart.data.options import DataOptions
from headstart.data.sources import hub
from headstart.data.sources.raw import Lazy, RawTable, files_below, joined, take
from headstart.data.sources.tables import read_table
from headstart.data.sources.tars import expand
from headstart.data.splits import batch_indices
from headstart.data.text_rows import read_choices, read_questions, read_tagged
from headstart.errors import DataError, HeadstartError
from photo_data import make_class_folders
from source_data import WHOLE, png, truth, write_tar

NFC, NFD = (unicodedata.normalize(form, "Kätzchen") for form in ("NFC", "NFD"))


def test_folders_of_systems_are_not_classes(tmp_path):
    make_class_folders(tmp_path, {"cat": 2, "dog": 2})
    for place in ("@eaDir/cat_0.png", "cat/@eaDir/cat_0.png", "__MACOSX/cat", "dog/__MACOSX"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "thumb.png").write_bytes(png("bird"))
    data = read_images(tmp_path, WHOLE)
    assert data.classes == ["cat", "dog"] and len(data.splits["train"]) == 4
    members = [(f"{kind}/{i}.png", png(kind, i)) for kind in ("bird", "cat") for i in range(2)]
    members += [("__MACOSX/cat/._1.png", b"x"), ("cat/@eaDir/1.png", b"x")]
    assert len(read_images(write_tar(tmp_path / "t.tar", members), WHOLE).splits["train"]) == 4


def test_linked_folders_inside_classes_are_read_once(tmp_path):
    make_class_folders(tmp_path / "p", {"cat": 2, "dog": 2})
    make_class_folders(tmp_path / "store", {"bird": 3})
    (tmp_path / "p" / "cat" / "more").symlink_to(tmp_path / "store" / "bird")
    (tmp_path / "p" / "cat" / "circle").symlink_to(tmp_path / "p" / "cat")
    data = read_images(tmp_path / "p", WHOLE)
    assert np.bincount(data.splits["train"].labels).tolist() == [5, 2]
    assert files_below(tmp_path / "p" / "dog") == [
        str(tmp_path / "p" / "dog" / f"dog_{i}.png") for i in range(2)
    ]


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path):
    make_class_folders(tmp_path / "p", {"dog": 2})
    for name in (NFC, NFD):
        (tmp_path / "p" / name).mkdir()
        (tmp_path / "p" / name / "1.png").write_bytes(png("cat"))
    data = read_images(tmp_path / "p", WHOLE)
    assert data.classes == [NFC, "dog"] and np.bincount(data.splits["train"].labels).tolist() == [
        2,
        2,
    ]
    model = DataOptions(classes=["dog", NFD])
    assert read_images(tmp_path / "p", model).splits["train"].labels.tolist().count(1) == 2
    (tmp_path / f"{NFD}.png").write_bytes(png("cat"))
    assert not isinstance(inspect(tmp_path / f"{NFC}.png"), str), "a table wrote the other form"


def test_digits_of_other_scripts_are_names(tmp_path):
    for name in ("①", "②", "10", "9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png("cat"))
    assert read_images(tmp_path, WHOLE).classes == ["9", "10", "①", "②"]
    assert class_key("9" * 30)[0] == 1
    (tmp_path / "classes.json").write_text('{"②": "b", "①": "a"}')
    assert class_names(tmp_path / "t.csv") == ["b", "a"]


@pytest.mark.parametrize(
    "cell, expected",
    [
        ("['a', 'b']", ["a", "b"]),
        ("['it\\'s', \"b c\"]", ["it's", "b c"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("[]", []),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("{'a', 'b'}", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[1 2]", ["1", "2"]),
        ("[blue]", None),
        ("(see below)", None),
        ("{'a': 1}", None),
        ("(1, 2)", None),
        ("a", None),
        ("[" * 5000 + "]" * 5000, None),
    ],
)
def test_lists_as_pandas_writes_them(cell, expected):
    assert as_list(cell) == expected


def test_a_column_of_lists_written_by_pandas(tmp_path):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = [["1.png", str(["a", "b"])], ["2.png", str(["b"])], ["3.png", str([])]]
        csv.writer(file).writerows([["image", "labels"], *rows])
    data = read_images(tmp_path / "t.csv", WHOLE)
    assert data.kind == MULTI and data.classes == ["a", "b"]
    assert data.splits["train"].labels.tolist() == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    "key, image, label",
    [
        ("batch{b}/{i:05d}.v1", "png", "cls"),
        ("part{b}/{i:05d}", "input.png", "output.cls"),
        ("a.b/{i:05d}.x.y", "jpg.png", "txt"),
        ("{i:05d}", "png", "cls"),
    ],
)
def test_dots_in_keys_of_a_web_dataset(key, image, label, tmp_path):
    members = []
    for i in range(4):
        name = key.format(b=i % 2, i=i)
        members += [
            (f"{name}.{image}", png("cat", i)),
            (f"{name}.{label}", "dog" if i < 2 else "cat"),
        ]
    data = read_images(write_tar(tmp_path / "t.tar", members), WHOLE)
    expected = [("dog" if i < 2 else "cat", png("cat", i)) for i in range(4)]
    assert sorted(truth(data)) == sorted(expected)


def test_versions_of_a_sample_are_samples(tmp_path):
    members = [
        member
        for i, version in enumerate(("v1", "v2"))
        for member in ((f"0.{version}.png", png("cat", i)), (f"0.{version}.cls", version))
    ]
    assert read_images(write_tar(tmp_path / "t.tar", members), WHOLE).classes == ["v1", "v2"]


def test_too_many_shards_are_refused_before_they_are_listed(tmp_path):
    with pytest.raises(DataError, match="more than 100,000 files"):
        expand(tmp_path / "{0..999}{0..999}.tar")
    with pytest.raises(DataError, match="more than 100,000 files"):
        expand(tmp_path / ("{0..9}" * 40 + ".tar"))


def words(path, options=WHOLE):
    return [getattr(row, "values", row) for row in read_tagged(path, options)]


def test_words_of_conll_2003_that_are_numbers(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(
        "1 NN B-NP O\nAnna NN B-NP B-PER\n\n1-0 NN B-NP O\nwin NN B-NP O\n\n2 NN B-NP O\n"
    )
    assert [row["words"] for row in words(file)] == [["1", "Anna"], ["1-0", "win"], ["2"]]
    rows = "1-2\tim\t_\t_\n1\tin\t_\tADP\n2\tdem\t_\tDET\n2.1\tx\t_\tX\n"
    file.write_text(rows + "\n" + rows)
    assert words(file) == 2 * [{"words": ["in", "dem"], "tags": ["ADP", "DET"]}]
    with pytest.raises(DataError, match=r"words=²: columns of a CoNLL file are numbered"):
        words(file, DataOptions(columns={"words": "²"}))


def test_choices_that_are_empty(tmp_path):
    (tmp_path / "t.csv").write_text(
        "question,choice0,choice1,choice2,label\nq,a,b,,1\nq,a,b,c,2\nq,a,,c,2\nq,a,b,,2\n"
    )
    good, whole, hole, outside = read_choices(tmp_path / "t.csv", WHOLE)
    assert good.values["choices"] == ["a", "b"] and whole.values["choices"] == ["a", "b", "c"]
    assert "none empty" in hole.reason and "from 0 to 1" in outside.reason
    (tmp_path / "l.csv").write_text("question,choices,label\nq,\"['a', 'b']\",②\n")
    (row,) = read_choices(tmp_path / "l.csv", WHOLE)
    assert "the label is '②'" in row.reason and "choices" not in row.reason


def test_long_cells_of_a_csv(tmp_path):
    limit = csv.field_size_limit()
    text = "w " * 70_000
    (tmp_path / "t.csv").write_text(f"text,label\n{text},0\n")
    assert read_table(tmp_path / "t.csv").columns["text"] == [text]
    assert csv.field_size_limit() == limit, "a setting of the whole process"


def test_masks_in_jpeg_files(tmp_path):
    for folder, ending in (("images", "png"), ("masks", "jpg")):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 5)).save(tmp_path / folder / f"1.{ending}")
    with pytest.raises(DataError, match="are JPEG files, whose compression changes class numbers"):
        read_pairs(tmp_path, DataOptions())


def test_a_mistyped_folder_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(hub, "reach", lambda *_: pytest.fail("reached the Hub"))
    with pytest.raises(DataError, match="did you mean a path below photos.*hf:photo/train"):
        read_images("photo/train", WHOLE)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_devices_are_not_images(make, tmp_path):
    make(tmp_path / "1.png")
    assert inspect(tmp_path / "1.png") == "not a regular file"
    with pytest.raises(HeadstartError, match="not a regular file"):
        decode(tmp_path / "1.png")
    assert "null" in str(inspect(tmp_path / "a\0b.png")) + "null"


def test_files_that_many_rows_name_are_read_once(tmp_path, monkeypatch):
    make_class_folders(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "cat" / "bad.png").write_bytes(b"x")
    names = ["cat/cat_0.png", "cat/cat_1.png", "dog/dog_0.png", "cat/bad.png"]
    lines = "".join(f"{names[i % 4]},{i % 2}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("image,label\n" + lines)
    examples = read_images(tmp_path / "t.csv", WHOLE).splits["train"]
    first, which = distinct(examples.images)
    assert first.tolist() == [0, 1, 2, 3] and which.tolist() == [0, 1, 2, 3] * 10

    reads, seen = [], []
    import headstart.data.cache as cache

    original = cache.source_bytes
    monkeypatch.setattr(cache, "source_bytes", lambda s: reads.append(s) or original(s))
    found = inspect_all(examples.images, 2, seen.append)
    assert len(reads) == 4 and sum(seen) == 40
    assert found == [inspect(image) for image in examples.images]

    reads.clear()
    pixels = PixelCache(examples, 8, lambda image: image[:8, :8], None)
    bad = pixels.fill(1)
    assert len(reads) == 4 and pixels.pixels.shape == (4, 8, 8, 3)
    assert [i for i, _ in bad] == list(range(3, 40, 4))
    pixels.keep(np.array([4, 2, 1]))
    for row, image in enumerate((0, 2, 1)):
        assert np.array_equal(pixels[row], decode(tmp_path / names[image])[:8, :8])


def test_images_made_when_they_are_read_are_distinguished(tmp_path):
    images = np.arange(4 * 4 * 5, dtype=np.uint8).reshape(4, 4, 5)
    np.savez(tmp_path / "t.npz", images=images, labels=np.arange(4) % 2)
    examples = read_images(tmp_path / "t.npz", WHOLE).splits["train"]
    assert distinct(examples.images)[1].tolist() == [0, 1, 2, 3]
    pixels = PixelCache(examples, 4, lambda image: image[:4, :4], None)
    pixels.fill(1)
    assert [int(pixels[i][0, 0, 0]) for i in range(4)] == images[:, 0, 0].tolist()


def test_why_images_are_decoded_again(tmp_path, monkeypatch):
    import headstart.data.cache as cache

    make_class_folders(tmp_path, {"cat": 2, "dog": 1})
    examples = read_images(tmp_path, WHOLE).splits["train"]
    (tmp_path / "file").write_text("")
    view = lambda image: np.zeros((20_000, 20_000, 3), np.uint8)  # noqa: E731
    monkeypatch.setattr(cache, "CACHE_LIMIT", 1 << 40)
    pixels = PixelCache(examples, 20_000, view, tmp_path / "file" / "train.npy")
    assert pixels.reserve(3) is None and "File exists: every epoch" in pixels.notes[0]
    monkeypatch.setattr(cache, "CACHE_LIMIT", 8 << 30)
    assert PixelCache(examples, 40_000, view, tmp_path / "x.npy").reserve(3) is None


def test_lazy_sequences():
    made = []
    lazy = Lazy(lambda i: made.append(i) or i * i, range(10))
    assert made == [] and lazy[3] == 9 and list(lazy[2:4]) == [4, 9]
    assert list(take(lazy, [5, 1])) == [25, 1] and take(["a", "b"], [1]) == ["b"]
    whole = joined([["a"], [], Lazy(str, [7, 8])])
    assert list(whole) == ["a", "7", "8"] and list(take(whole, [2, 0])) == ["8", "a"]
    table = RawTable("t", {"a": [1, 2], "b": "xy"}, "row", [1, 2])
    assert list(table.rows) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_parquet_stays_in_arrow_memory(tmp_path):
    import pyarrow
    import pyarrow.parquet

    cells = [str(i).encode() * 300 for i in range(300)]
    table = pyarrow.table({"image": cells, "label": [str(i % 2) for i in range(300)]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=70)
    column = read_table(tmp_path / "t.parquet").columns["image"]
    assert len(column) == 300 and list(column) == cells and column[299] == cells[299]
    assert [column[i] for i in (0, 69, 70, 140)] == [cells[i] for i in (0, 69, 70, 140)]
    assert column[3:5] == cells[3:5] and not isinstance(column, list)


def damaged_npz(path, name):
    np.savez(path, images=np.zeros((2, 3, 3), np.uint8), labels=np.array(["a", "b"]))
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    entries[name] = {"images.npy": b"no array", "labels.npy": entries["labels.npy"][:-1] + b"\xff"}[
        name
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)


@pytest.mark.parametrize(
    "name, message",
    [("images.npy", "images is not an array"), ("labels.npy", "labels cannot be read")],
)
def test_damaged_arrays(name, message, tmp_path):
    damaged_npz(tmp_path / "d.npz", name)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "d.npz", WHOLE)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"data": [3]}', "article 1: expected an object with a list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": 1}]}]}', "paragraph 1: expected .* list 'qas'"),
        ('{"data": [{"paragraphs": {}}]}', "article 1: expected"),
        ('{"data": ' + "[" * 500 + "]" * 500 + "}", "nested more than 64 deep"),
    ],
)
def test_damaged_squad_files(text, message, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_questions(tmp_path / "s.json", WHOLE))
    (tmp_path / "s.json").write_text('{"data": [{"paragraphs": [{"qas": [7, {"answers": [3]}]}]}]}')
    assert [type(row).__name__ for row in read_questions(tmp_path / "s.json", WHOLE)] == ["Bad"] * 2


@pytest.mark.parametrize(
    "palette", ["[[0, 0, [1]], [1, 1, 1]]", "[[0, 0, 256], [1, 1, 1]]", "[[0]]", "3"]
)
def test_damaged_palettes(palette, tmp_path):
    (tmp_path / "classes.json").write_text(f'{{"classes": ["a", "b"], "palette": {palette}}}')
    with pytest.raises(DataError, match="palette must hold a color"):
        read_classes(tmp_path / "classes.json")


def test_an_epoch_is_shuffled_once(monkeypatch):
    from headstart.data import splits

    splits.permutation.cache_clear()
    for step in range(20):
        batch_indices(100, 7, step, 0)
    assert splits.permutation.cache_info().misses == 2


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image\tlabel\np/0.png\tcat\np/1.png\tdog\n", "utf-16"),  # Excel's "Unicode text"
        ("image\tlabel\np/0.png\tcat\np/1.png\tdog\n", "utf-8"),
        ("image;label\r\np/0.png;cat\r\np/1.png;dog\r\n;\r\n", "utf-8-sig"),
        ("image,label\np/0.png,cat\u200b\np/1.png,\u00a0dog\n,\n", "utf-8"),
    ],
)
def test_tables_that_spreadsheets_write(text, encoding, tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "p" / f"{i}.png")
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    data = read_images(tmp_path / "t.csv", DataOptions(val_fraction=0.0))
    assert data.classes == ["cat", "dog"] and len(data.splits["train"].labels) == 2


def test_classes_that_may_be_one_class_or_none_are_named():
    assert look_alikes(["cat", "dog"]) == []
    notes = look_alikes(["Cat", "NA", "cat", "dog"])
    assert "letter case alone: Cat, cat" in notes[0] and "class NA" in notes[1]
