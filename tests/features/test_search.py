"""Search among embeddings and groups of near duplicates, against a loop over pairs."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import headstart
from command_line import call
from headstart.data.embeddings import Embeddings, read_embeddings
from headstart.data.results import EMBEDDING_SUFFIXES, ResultTable, vector_text
from headstart.errors import DataError, InputError
from headstart.features import search
from headstart.features.search import duplicates, nearest, nearest_exactly, query_vector, vector_at


def cosine(a, b):
    """The definition."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def write(path, features, missing=()):
    """A file of embeddings of random vectors."""
    facts = {"model": "m", "key": "k", "width": str(features.shape[1])}
    columns = {"path": "text", "features": "vector", "error": "text"}
    with ResultTable(path, columns, facts=facts, suffixes=EMBEDDING_SUFFIXES) as table:
        for i, row in enumerate(features):
            vector = None if i in missing else vector_text(row)
            error = "unreadable" if i in missing else None
            table.write({"path": f"{i}.png", "features": vector, "error": error})
        table.finish()
    return path


@pytest.mark.parametrize("suffix", EMBEDDING_SUFFIXES)
def test_the_nearest_rows_are_the_definition(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.data.embeddings.ROW_GROUP", 7)  # several blocks
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5)).astype(np.float32)
    features[[3, 17, 29]] = features[8]  # ties are in the order of the rows
    path = write(tmp_path / f"f{suffix}", features, missing=(0, 39))
    query = features[8] + 0.1
    similar = {i: cosine(features[i].tolist(), query.tolist()) for i in range(1, 39)}
    for top in (1, 3, 6, 100):
        found = nearest(path, query, top)
        expected = sorted(similar, key=lambda i: (-round(similar[i], 5), i))[:top]
        assert [each.row for each in found] == expected
        assert [each.name for each in found] == [f"{i}.png" for i in expected]
        for each in found:
            assert each.similarity == pytest.approx(similar[each.row], abs=1e-5)
    with pytest.raises(InputError, match="the query has 4 features, and the rows of .* have 5"):
        nearest(path, query[:4], 1)


def test_rows_by_number(tmp_path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = write(tmp_path / "f.npz", features, missing=(2,))
    assert np.array_equal(vector_at(path, 3), features[3])
    with pytest.raises(DataError, match="row 2 of .* has no vector: unreadable"):
        vector_at(path, 2)
    with pytest.raises(InputError, match=r"no row 4 in .*; give a row from 0 to 3"):
        vector_at(path, 4)


def test_an_index_finds_what_the_exact_search_finds(tmp_path, monkeypatch):
    pytest.importorskip("usearch", reason="needs headstart[search]")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "LARGE", 2000)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 16)).astype(np.float32)
    path = write(tmp_path / "f.npz", features, missing=(5,))
    hits = 0
    for query in rng.normal(size=(20, 16)).astype(np.float32):
        found, exact = nearest(path, query, 10), nearest_exactly(path, query, 10)
        assert nearest(path, query, 10, exact=True) == exact
        similar = {each.row: each.similarity for each in exact}
        for each in found:
            if each.row in similar:
                hits += 1
                assert each.similarity == pytest.approx(similar[each.row], abs=1e-5)
                assert each.name == f"{each.row}.png"
    assert hits >= 190  # of 200
    (index,) = (tmp_path / "cache" / "indexes").iterdir()
    assert nearest(path, features[7], 1)[0].row == 7
    path.unlink()
    write(path, features[::-1])  # another file of the same name: another index
    assert nearest(path, features[7], 1)[0].row == 3000 - 1 - 7
    assert len(list(index.parent.iterdir())) == 2


def slow_groups(features, threshold):
    """The definition of groups, one pair at a time."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(features):
        if np.isnan(row).any():
            continue
        leader = next((j for j in groups if cosine(features[j], row) >= threshold), None)
        if leader is None:
            groups[i] = []
        else:
            groups[leader].append(i)
    return {leader: others for leader, others in groups.items() if others}


def test_groups_of_near_duplicates_are_the_definition(monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 8)  # several blocks
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(9, 6))
    features = (centres[rng.integers(0, 9, 50)] + rng.normal(0, 0.2, (50, 6))).astype(np.float32)
    features[[4, 30]] = np.nan
    names = [f"{i}.png" for i in range(50)]
    found = duplicates(Embeddings(names, features, "m", "k", [""] * 50, []), 0.97)
    expected = slow_groups(features, 0.97)
    assert len(expected) > 5
    assert {each.first.row: [one.row for one in each.others] for each in found} == expected
    for each in found:
        for one in each.others:
            slow = cosine(features[each.first.row], features[one.row])
            assert one.similarity == pytest.approx(slow, abs=1e-5)


@pytest.fixture
def embedded(photos, tiny_model, tmp_path):
    out = tmp_path / "features.parquet"
    headstart.embed(tiny_model, photos / "val", out=out)
    return out


def test_search_by_image_and_by_row(embedded, photos, tmp_path, capsys):
    files = sorted((photos / "val").rglob("*.png"))
    words = ("search", files[4], "--in", embedded, "--top", 3, "--json", "--device", "cpu")
    code, out, _ = call(capsys, *words)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(found) == 3
    assert (found[0]["row"], found[0]["name"]) == (4, str(files[4]))
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    code, out, _ = call(capsys, "search", 4, "--in", embedded, "--top", 2)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [each[2] for each in rows] == [each["name"] for each in found[1:]]
    assert [float(each[0]) for each in rows] == pytest.approx(
        [each["similarity"] for each in found[1:]], abs=1e-3
    )


def test_a_query_of_another_model_is_refused(embedded, photos, tiny_model, tmp_path):
    file = str(next((photos / "val").rglob("*.png")))
    processor = headstart.BitImageProcessor.from_pretrained(tiny_model)
    processor.image_mean = [0.4] * 3
    headstart.BitForImageClassification.from_pretrained(tiny_model).save_pretrained(
        tmp_path / "other"
    )
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="other weights or preprocessing"):
        query_vector(embedded, file, str(tmp_path / "other"))
    assert len(query_vector(embedded, file, str(tiny_model))[0]) == 24


def test_what_search_refuses(embedded, tmp_path, capsys):
    for words, match in (
        ((), "takes a query, or --duplicates"),
        (("3", "--duplicates"), "takes a query, or --duplicates"),
        (("99",), "there is no row 99"),
        ((tmp_path / "a.png",), "no such file"),
    ):
        code, _, err = call(capsys, "search", *words, "--in", embedded)
        assert code == 2 and match in err, err
    code, _, err = call(capsys, "search", "3", "--in", tmp_path / "none.parquet")
    assert code == 2 and "there is no file" in err


def test_pages_are_self_contained_and_escaped(tiny_model, tmp_path, capsys):
    folder = tmp_path / "<b>photos & more"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (30, 24, 3), dtype=np.uint8)
    for name in ("a", "<script>alert(1)</script>".replace("/", "∕")):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(255 - pixels).save(folder / "c.png")
    source, page = tmp_path / "f.npz", tmp_path / "page.html"
    headstart.embed(tiny_model, folder, out=source)
    (folder / "c.png").unlink()
    assert len(read_embeddings(source).names) == 3
    assert call(capsys, "search", folder / "a.png", "--in", source, "--html", page)[0] == 0
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "<b>photos" not in text
    assert "http" not in text and text.count("data:image/jpeg") == 3
    assert "1 images cannot be opened here" in text
    words = ("--duplicates", "--threshold", 0.9999, "--html", page, "--json")
    code, out, _ = call(capsys, "search", "--in", source, *words)
    (group,) = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [each["row"] for each in group["rows"]] == [0, 1]
    assert page.read_text().count("data:image/jpeg") == 2
