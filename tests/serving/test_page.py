"""The page in a headless Chromium: a dropped file, the camera, an error, the width of a phone.

Chromium is driven through its own debugging pipe, which needs no other package.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    # Chromium is started with fork, which JAX, where another test loaded it, warns of.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
SCREENSHOTS = os.environ.get("HEADSTART_SCREENSHOTS")


class Browser:
    """A page of Chromium, by the DevTools protocol over a pipe (messages end in NUL)."""

    def __init__(self, folder):
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()

        def connect():  # Chromium reads descriptor 3 and writes descriptor 4
            ends = os.dup(to_read), os.dup(to_write)
            os.dup2(ends[0], 3), os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--remote-debugging-pipe",
                "--disable-gpu",
                f"--user-data-dir={folder}",
                "--use-fake-ui-for-media-stream",
                "--disable-dev-shm-usage",
                "--use-fake-device-for-media-stream",
                "--no-first-run",
                "about:blank",
            ],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read), os.close(to_write)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        found = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                data = os.read(self.read, 1 << 16)
                assert data, "Chromium has ended"
                self.buffer += data
            text, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, code):
        answer = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, (code, self.run("document.body.innerText"))
            time.sleep(0.1)

    def size(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def image(self, name):
        import base64

        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        if SCREENSHOTS:
            Path(SCREENSHOTS, f"{name}.png").write_bytes(data)
        return data


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


@pytest.fixture
def browser(tmp_path):
    found = Browser(tmp_path / "profile")
    yield found
    found.process.terminate()
    found.process.wait(30)
    os.close(found.read), os.close(found.write)


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


def test_a_person_uses_the_page(browser, address, tmp_path):
    photo = tmp_path / "photo.png"
    y, x = np.mgrid[:240, :320]
    Image.fromarray(
        np.stack([x * 255 // 320, y * 255 // 240, 128 + 0 * x], -1).astype(np.uint8)
    ).save(photo)
    browser.size(1100, 800)
    browser.send("Page.navigate", url=address)
    browser.until('document.getElementById("facts")?.textContent.includes("100 labels")')
    browser.image("serve-start")

    choose(browser, photo)
    browser.until(ANSWERED)
    assert browser.run("document.activeElement.id") == "verdict"  # a screen reader reads it
    browser.run('document.getElementById("explain").click()')
    browser.until('document.getElementById("heat").naturalWidth > 0')
    browser.image("serve-desktop")

    browser.size(375, 800)
    assert browser.run("document.documentElement.scrollWidth <= 375")
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
