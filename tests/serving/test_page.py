"""The page in a headless Chromium: a dropped file, the camera, an error, the width of a phone."""

import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from chromium import needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "headstart", "serve", "bit-mini", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    where = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try:
            urllib.request.urlopen(where + "ready")
            break
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.2)
    yield where
    process.terminate()
    assert process.wait(60) in (0, -15)  # a request to stop is a normal end


def choose(browser, path):
    """Puts a file into the page's input, as a person does with its dialog."""
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


DROP = """(async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 64; canvas.height = 48;
  const context = canvas.getContext("2d");
  context.fillStyle = "#3366cc"; context.fillRect(0, 0, 64, 48);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "a<b>.png", { type: "image/png" }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
  return true;
})()"""
ANSWERED = (
    'document.querySelectorAll("#bars li").length === 8 &&'
    ' !document.getElementById("result").hidden'
)


ONE_LINE = """[...document.querySelectorAll("#bars span:last-child")].every((each) => {
  const range = document.createRange();
  range.selectNodeContents(each);
  return range.getClientRects().length === 1;
})"""


def gradient(path):
    """A file with an image whose color changes over its width and height."""
    y, x = np.mgrid[:240, :320]
    pixels = np.stack([x * 255 // 320, y * 255 // 240, 128 + 0 * x], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_a_person_uses_the_page(browser, address, tmp_path):
    photo = gradient(tmp_path / "photo.png")
    browser.size(1100, 800)
    browser.send("Page.navigate", url=address)
    browser.until('document.getElementById("facts")?.textContent.includes("1000 labels")')
    browser.image("serve-start")

    choose(browser, photo)
    browser.until(ANSWERED)
    assert browser.run("document.activeElement.id") == "verdict"  # a screen reader reads it
    browser.run('document.getElementById("explain").click()')
    browser.until('document.getElementById("heat").naturalWidth > 0')
    browser.image("serve-desktop")

    browser.size(375, 800)
    assert browser.run("document.documentElement.scrollWidth <= 375")
    assert browser.run(ONE_LINE)  # beside a long label too
    browser.image("serve-phone")

    browser.run('document.getElementById("bars").replaceChildren()')
    browser.run(DROP)
    browser.until(ANSWERED)

    browser.run('document.getElementById("bars").replaceChildren()')
    browser.run('document.getElementById("camera").click()')
    browser.until('document.getElementById("video").videoWidth > 0')
    browser.run('document.getElementById("shoot").click()')
    browser.until(ANSWERED)
    assert browser.run('document.getElementById("camera-box").hidden')

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    choose(browser, broken)
    browser.until('!document.getElementById("error").hidden')
    assert "not an image" in browser.run('document.getElementById("error").textContent')
    assert browser.run('document.getElementById("error").getAttribute("role")') == "alert"
    browser.image("serve-error")
    check_events(browser, address)


def check_events(browser, address):
    """Nothing was requested from elsewhere, and no script failed."""
    urls = [
        each["params"]["request"]["url"]
        for each in browser.events
        if each.get("method") == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith((address, "data:", "blob:")) for url in urls)
    problems = [
        each
        for each in browser.events
        if each.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert not problems
