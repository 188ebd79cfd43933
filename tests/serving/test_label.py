"""Labelling: a table that loses nothing, a head that is the closed form, an annotator."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from chromium import CHROMIUM
from headstart.data.inputs import ImageInput, image_inputs
from headstart.errors import DataError, InputError
from headstart.features.discriminant import Discriminant, Statistics
from photo_data import CLASSES, make_photo

pytest.importorskip("fastapi", reason="needs headstart[serve]")
from starlette.testclient import TestClient  # noqa: E402 - after the check

from headstart.serving.label_app import create_label_app  # noqa: E402
from headstart.serving.labelling import Labelling, LabelTable  # noqa: E402


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def new_labelling(folder, count=40, classes=(), seed=0, distance=2.0):
    """Images that do not exist, around three centres."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    features = (rng.normal(size=(3, 12))[truth] * distance + rng.normal(size=(count, 12))).astype(
        "f4"
    )
    inputs = [ImageInput(str(folder / f"{i}.png"), folder) for i in range(count)]
    table = LabelTable(folder / "labels.csv")
    return Labelling(inputs, features, table, classes), [f"class {each}" for each in truth]


@pytest.mark.parametrize("cut", [1, 3, 7, 12])
def test_a_table_that_was_cut_off_is_taken_up_again(cut, tmp_path):
    path = tmp_path / "l.csv"
    table = LabelTable(path)
    table.add([("a,b.png", 'x "y"')])
    table.add([("é.png", "z"), ("c.png", "z")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = LabelTable(path)
    expected = [("a,b.png", 'x "y"'), ("é.png", "z"), ("c.png", "z")]
    assert again.rows == expected[: 2 if cut < 8 else 1]
    again.add([("d.png", "w")])
    assert rows_of(path)[-1] == ["d.png", "w"]


def test_what_is_taken_back_leaves_the_table(tmp_path):
    table = LabelTable(tmp_path / "l.csv")
    table.add([("a.png", "x")])
    before = table.path.read_bytes()
    table.add([("b.png", "é"), ("c.png", "é")])
    assert table.undo() == [("b.png", "é"), ("c.png", "é")]
    assert table.path.read_bytes() == before and table.rows == [("a.png", "x")]
    table.undo()
    assert table.rows == [] and table.undo() == []
    (tmp_path / "other.csv").write_text("name,age\na,3\n")
    with pytest.raises(DataError, match="expected a table of image and label"):
        LabelTable(tmp_path / "other.csv")


def test_the_head_is_that_of_all_labels(tmp_path):
    """After labels, new classes, undo and resuming: the same as a fit from nothing."""
    found, truth = new_labelling(tmp_path, classes=["class 2"])
    for step in range(25):
        found.label(found.current, truth[found.current])
        if step % 7 == 3:
            wrong = found.current
            found.label(wrong, "another class")
            found.undo()
            assert found.current == wrong and wrong not in found.labels
    again, _ = new_labelling(tmp_path)
    assert again.labels == found.labels and len(found.labels) == 25
    order = sorted(set(truth))
    for each in (found, again):
        numbers = list(each.labels)
        labels = np.array([each.classes.index(each.labels[i]) for i in numbers])
        present = [i for i, label in enumerate(each.classes) if label in order]
        slow = Statistics.of(each.x[numbers], labels, len(each.classes))
        slow = Statistics(slow.counts[present], slow.sums[present], slow.moments)
        expected = Discriminant.from_statistics(slow)
        np.testing.assert_allclose(each.head.weight, expected.weight, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(each.head.bias, expected.bias, rtol=1e-6, atol=1e-9)


def test_the_expected_accuracy_is_that_of_random_images(tmp_path):
    found, truth = new_labelling(tmp_path, count=120, distance=0.7)
    while len(found.tests) < 21:
        found.label(found.current, truth[found.current])
    right = []
    for i in found.tests:  # the definition: a head of the labels that are not of its fold
        fold = found.tests[found.tests.index(i) % 5 :: 5]
        rest = [j for j in found.labels if j not in fold]
        labels = np.array([found.classes.index(truth[j]) for j in rest])
        slow = Discriminant.from_statistics(Statistics.of(found.x[rest], labels, 3))
        best = int((found.x[i] @ slow.weight.T + slow.bias).argmax())
        right.append(found.classes[best] == truth[i])
    expected = found.expected()
    assert expected["examples"] == 21 and 0 < sum(right) < 21
    assert expected["accuracy"] == pytest.approx(np.mean(right))
    low, high = expected["interval"]
    assert low < expected["accuracy"] < high or expected["accuracy"] in (low, high)
    while found.current >= 0:
        found.label(found.current, truth[found.current])
    assert found.state()["image"] is None and found.state()["done"] == 120


def test_near_identical_images_together(tmp_path):
    found, truth = new_labelling(tmp_path)
    image = found.current
    found.unit[[3, 5]] = found.unit[image]
    others = sorted({3, 5} - {image})
    assert found.alike() == others
    found.label(image, "  new   name ", all_alike=True)
    assert {i for i, label in found.labels.items() if label == "new name"} == {image, *others}
    found.undo()
    assert not found.labels and found.current == image
    for wrong, label in ((image + 1, "x"), (image, "  "), (image, "x" * 101)):
        with pytest.raises(InputError):
            found.label(wrong, label)
    found.skip(image)
    assert found.current != image and image not in found.labels


@pytest.fixture
def folder(tmp_path):
    """Photos of three colors, the last two of them equal."""
    made = tmp_path / "photos"
    made.mkdir()
    for number in range(36):
        color = list(CLASSES)[number % 3]
        photo = make_photo(CLASSES[color], number, 40, 30)
        Image.fromarray(photo).save(made / f"{number:02d}_{color}.png")
    (made / "bad.png").write_text("words")
    return made


def test_requests_are_data(folder, tmp_path):
    inputs = [each for each in image_inputs([folder]) if "bad" not in each.name]
    features = np.random.default_rng(0).normal(size=(len(inputs), 8)).astype("f4")
    labelling = Labelling(inputs, features, LabelTable(tmp_path / "l.csv"))
    with TestClient(create_label_app(labelling), base_url="http://localhost") as client:
        state = client.get("/state").json()
        body = {"image": state["image"], "label": "<b>x</b>", "alike": False}
        assert client.get(f"/images/{state['image']}").content[:2] == b"\xff\xd8"
        assert client.get("/images/99").status_code == 404
        assert client.get("/images/..%2F..%2Fetc%2Fpasswd").status_code in (404, 422)
        plain = client.post(
            "/label", content=json.dumps(body), headers={"content-type": "text/plain"}
        )
        assert plain.status_code == 422 and "application/json" in plain.json()["error"]
        for wrong in ({"image": "3"}, {}, [], {**body, "image": -1}, {**body, "label": "x" * 9999}):
            assert client.post("/label", json=wrong).status_code == 422
        assert not labelling.labels
        assert client.post("/label", json=body).json()["done"] == 1
        assert client.post("/undo", json={}).json()["done"] == 0
        assert client.post("/undo", json={}).status_code == 422
        assert (
            client.post("/skip", json={"image": state["image"]}).json()["image"] != state["image"]
        )
        other = client.get("/state", headers={"host": "evil.example"})
        assert other.status_code == 400
        policy = client.get("/").headers["content-security-policy"]
        assert "script-src 'self'" in policy


def serve(folder, out, port):
    command = [sys.executable, "-m", "headstart", "label", str(folder), "--out", str(out)]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/state")
            return process
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def press(page, key):
    page.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
    page.send("Input.dispatchKeyEvent", type="keyUp", key=key)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_table(out, given):
    """The table holds the label of every image of the folder."""
    rows = rows_of(out)
    assert rows[0] == ["image", "label"] and len(rows) == 37
    found = {(out.parent / image).name: label for image, label in rows[1:]}
    assert found == {Path(name).name: label for name, label in given.items()}


def label_image(browser):
    """Gives the image of the page the class in its name, by its key or as a new one."""
    name = browser.run('document.getElementById("file").textContent')
    label = name.removesuffix(".png").rpartition("_")[2]
    shown = browser.run("state.classes.map((each) => each.label)")
    if label in shown:
        press(browser, str(shown.index(label) + 1))
    else:
        press(browser, "n")
        browser.until('document.activeElement.id === "new"')
        browser.send("Input.insertText", text=label)
        browser.run('document.getElementById("new-form").requestSubmit()')
    return name, label


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_an_annotator_labels_a_folder(browser, folder, tmp_path):  # noqa: F811
    """Types classes and keys, takes one back, the server is killed in between: nothing is lost."""
    out, port = tmp_path / "labels.csv", free_port()
    process = serve(folder, out, port)
    given, milliseconds, taken_back = {}, [], {5, 20}
    try:
        browser.size(1100, 800)
        browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until('document.getElementById("file")?.textContent.endsWith(".png")')
        while len(given) < 36:
            if len(given) == 17:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                assert len(rows_of(out)) == 1 + 17
                process = serve(folder, out, port)
                browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/")
                browser.until(
                    'document.getElementById("facts")?.textContent.startsWith("17 of 36")'
                )
            name, label = label_image(browser)
            given[name] = label
            browser.until(f"!busy && state.done === {len(given)}")
            milliseconds.append(browser.run("state.milliseconds"))
            if len(given) in taken_back:
                taken_back.remove(len(given))
                browser.image(f"label-{len(given)}")
                press(browser, "u")
                browser.until(f"!busy && state.done === {len(given) - 1}")
                assert browser.run('document.getElementById("file").textContent') == name
                del given[name]
        browser.until('!document.getElementById("end").hidden')
        browser.size(375, 800)
        assert browser.run("document.documentElement.scrollWidth <= 375")
    finally:
        process.terminate()
        process.wait(60)
    check_table(out, given)
    print(f"update {np.median(milliseconds):.1f} ms")
    result = headstart.train(
        out, model="bit-mini", out=tmp_path / "run", tune="head", val_fraction=0.3, device="cpu"
    )
    assert result.metrics["accuracy"] > 0.8
