"""Odd photos through an exported file: ONNX Runtime in Python and in a browser answer as PyTorch.

onnxruntime-web is a package of npm: `npm install --prefix build onnxruntime-web`, or the folder of
its `dist` in HEADSTART_ORT_WEB. HEADSTART_ODD_PHOTOS=1000 takes more photos.
"""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from chromium import needs_chromium
from conftest import ROOT, SHARED
from headstart.engine.engines import installed
from photo_data import odd_photo, pillow_levels

COUNT = int(os.environ.get("HEADSTART_ODD_PHOTOS", "60"))
ORT_WEB = Path(
    os.environ.get("HEADSTART_ORT_WEB", ROOT / "build/node_modules/onnxruntime-web/dist")
)
PAGE = """<!doctype html><script src="/ort/ort.wasm.min.js"></script><script>
async function check(count) {
  ort.env.wasm.numThreads = 1
  ort.env.wasm.wasmPaths = "/ort/"
  const session = await ort.InferenceSession.create("/model.onnx")
  const rows = []
  for (let i = 0; i < count; i++) {
    const answer = await fetch(`/image/${i}`)
    const shape = answer.headers.get("X-Shape").split(",").map(Number)
    const data = new Uint8Array(await answer.arrayBuffer())
    const image = new ort.Tensor("uint8", data, shape)
    const out = await session.run({image})
    const expected = new Float32Array(await (await fetch(`/pixels/${i}`)).arrayBuffer())
    const found = out.pixel_values.data
    let largest = 0
    for (let k = 0; k < expected.length; k++) {
      largest = Math.max(largest, Math.abs(expected[k] - found[k]))
    }
    rows.push([Number(out.label.data[0]), largest, Math.max(...out.scores.data)])
  }
  return rows
}
</script>"""


def odd_photos(count):
    """Photographs and noise: tiny, tall, wide, some megapixels, gray, with alpha."""
    files = sorted((SHARED / "data" / "photos" / "good").glob("*.jpg"))
    files += sorted((SHARED / "data" / "images" / "imagenet_samples").glob("*.JPEG"))
    photos = [np.asarray(Image.open(each).convert("RGB")) for each in files]
    generator = np.random.default_rng(0)
    for i in range(count):
        height, width = np.exp(generator.uniform(0, np.log(1200), 2)).astype(int)
        if i % 100 == 0:
            height, width = generator.integers(1500, 2600, 2)
        channels = int(generator.choice([1, 3, 3, 3, 3, 4]))
        shape = (int(height), int(width), channels)
        if not photos or i % 3 == 0 or channels != 3:
            yield odd_photo(shape, i)
            continue
        photo = photos[i % len(photos)]
        part = photo[
            generator.integers(len(photo) // 2) :, generator.integers(photo.shape[1] // 2) :
        ]
        yield np.asarray(Image.fromarray(part).resize((shape[1], shape[0]), reducing_gap=2.0))


def expected_of(pipe, image):
    """The pipeline's class and pixels, and the pixels of Pillow."""
    pixels = pipe.pixel_values(image if image.shape[2] > 1 else image[..., 0])
    scale, shift = pipe.image_processor._scale_and_shift()
    exact = pillow_levels(pipe.image_processor, image) * scale.reshape(1, -1, 1, 1)
    exact += shift.reshape(1, -1, 1, 1)
    return int(pipe.forward([pixels])[0].argmax()), pixels.numpy(), exact.astype(np.float32)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The exported file, its pipeline, images, and what the pipeline answers."""
    path = tmp_path_factory.mktemp("web") / "mini.onnx"
    pipe = headstart.pipeline("image-classification", "bit-mini")
    headstart.export(pipe.model, path, full=True, processor=pipe.image_processor)
    images = list(odd_photos(COUNT))
    return path, pipe, images, [expected_of(pipe, image) for image in images]


def check_answers(name, rows, pipe, answers):
    """Asserts what the file promises: the same classes, and Pillow's pixels within a gray level."""
    levels = 255 * np.array(pipe.image_processor.image_std).min()
    largest = max(difference * levels for _, difference in rows)
    wrong = [i for i, (label, _) in enumerate(rows) if label != answers[i][0]]
    print(f"{name}: {len(rows)} images, {len(wrong)} other classes, pixels within {largest:.3f}")
    assert largest < 1.01
    assert not wrong


needs_onnx = pytest.mark.skipif(
    not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime"
)


@needs_onnx
@pytest.mark.slow
def test_odd_photos_in_python(case):
    from headstart.engine.full_file import FullFile

    path, pipe, images, answers = case
    file, rows, levels = FullFile(path), [], []
    for image, (_, pixels, exact) in zip(images, answers, strict=True):
        out = file(image)
        rows.append((int(out["label"][0]), float(np.abs(out["pixel_values"] - exact).max())))
        gaps = np.abs(out["pixel_values"] - pixels) * 255 * min(pipe.image_processor.image_std)
        levels.append(np.bincount(gaps.round().astype(int).ravel(), minlength=4))
    print("gray levels from the pipeline's pixels:", sum(levels))
    check_answers("onnxruntime", rows, pipe, answers)
    # torch's filters, which the pipeline takes, are two levels from Pillow in rare places
    assert sum(levels)[3:].sum() == 0 and sum(levels)[2] <= 1e-5 * sum(levels).sum()


@pytest.fixture
def address(case):
    """A server of the page, the runtime, the file, the images and the expected pixels."""
    path, _, images, answers = case
    kinds = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - a name of http.server
            kind, shape = "application/octet-stream", ""
            first, _, rest = self.path.strip("/").partition("/")
            if first == "image":
                data = images[int(rest)].tobytes()
                shape = ",".join(map(str, images[int(rest)].shape))
            elif first == "pixels":
                data = answers[int(rest)][2].tobytes()
            elif first == "ort":
                file = ORT_WEB / Path(rest).name
                kind, data = kinds[file.suffix], file.read_bytes()
            elif first == "model.onnx":
                data = path.read_bytes()
            else:
                kind, data = "text/html", PAGE.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Shape", shape)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_onnx
@pytest.mark.skipif(
    not (ORT_WEB / "ort.wasm.min.js").is_file(),
    reason="needs onnxruntime-web: npm install --prefix build onnxruntime-web",
)
class TestBrowser:
    """In headless Chromium."""

    pytestmark = needs_chromium

    def test_odd_photos(self, case, address, browser):
        _, pipe, images, answers = case
        browser.send("Page.navigate", url=address)
        browser.until("typeof ort == 'object' && typeof check == 'function'")
        rows = browser.run(f"check({len(images)}).then(JSON.stringify)")
        found = [(label, difference) for label, difference, _ in json.loads(rows)]
        check_answers("onnxruntime-web", found, pipe, answers)
