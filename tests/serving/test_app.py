"""The server over HTTP: answers, limits, tokens, and nothing that is opened by name."""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import ConfigError
from headstart.metrics.calibration import Choice, Confidence

pytest.importorskip("fastapi", reason="needs headstart[serve]")
from starlette.testclient import TestClient  # noqa: E402 - after the check

from headstart.serving import app as serving  # noqa: E402
from headstart.serving.app import Settings, create_app  # noqa: E402


def png(seed=0, side=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*side, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """bit-mini with a report, a card, and a threshold that no answer reaches."""
    folder = tmp_path_factory.mktemp("model")
    headstart.AutoModelForImageClassification.from_pretrained("bit-mini").save_pretrained(folder)
    headstart.AutoImageProcessor.from_pretrained("bit-mini").save_pretrained(folder)
    known = {"max_error": 0.05, "threshold": 0.999}
    choice = Choice(**{field.name: known.get(field.name, 0.0) for field in fields(Choice)})
    Confidence(temperature=1.0, examples=40, choices=[choice], max_error=0.05).write(folder)
    (folder / "report.html").write_text("<h1>The report</h1>")
    return str(folder)


@pytest.fixture
def client(model):
    with TestClient(create_app(Settings(model)), base_url="http://127.0.0.1") as found:
        yield found


def test_answers_are_the_pipelines(client, model):
    photos = [png(seed) for seed in range(3)]
    pipe = headstart.pipeline("image-classification", model)
    files = [("file", (f"../../{i}.png", data)) for i, data in enumerate(photos)]
    encoded = [{"image": base64.b64encode(data).decode()} for data in photos]
    for response in (
        client.post("/predict", files=files),
        client.post("/predict", json={"inputs": encoded}),
        client.post("/predict", json={"inputs": ["data:image/png;base64," + encoded[0]["image"]]}),
    ):
        assert response.status_code == 200, response.text
        for answer, photo in zip(response.json()["answers"], photos, strict=False):
            assert answer["refused"] is True and len(answer["predictions"]) == 1000
            for ours, theirs in zip(answer["predictions"], pipe(photo), strict=False):
                assert ours["label"] == theirs["label"]
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_the_model_its_report_and_a_heat_map(client):
    about = client.get("/model").json()
    assert about["task"] == "image-classification" and len(about["labels"]) == 1000
    assert about["refuses"] and about["report"] and about["limits"]["max_items"] == 32
    report = client.get("/report")
    assert "The report" in report.text and "sandbox" in report.headers["content-security-policy"]
    seen = client.post("/explain", files={"file": png()}).json()
    assert seen["label"] in about["labels"]
    data = base64.b64decode(seen["image"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).size == (50, 40)
    assert client.post("/explain", files=[("file", png())] * 2).status_code == 422


def test_health_metrics_and_schema(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 200
    client.post("/predict", files={"file": png()})
    text = client.get("/metrics").text
    assert 'headstart_requests_total{path="/predict",status="200"} 1.0' in text
    assert {"/predict", "/explain", "/model"} <= set(client.get("/openapi.json").json()["paths"])
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "https://example.org/a.png", "file:///etc/passwd", "", 5, None, {}, []]
)
def test_names_are_never_opened(client, value, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"opened {path}"))
    for inputs in ([value], [{"image": value}], [{"url": value}]):
        response = client.post("/predict", json={"inputs": inputs})
        assert response.status_code == 422 and response.json()["error"].startswith("input 1: ")


def test_wrong_requests_are_one_line(client):
    for options in (
        {"content": b"{"},
        {"content": b"[" * 100_000},
        {"json": {}},
        {"json": {"inputs": []}},
        {"json": {"inputs": [""] * 33}},
        {"files": {"file": b"not an image"}},
        {"files": {"file": png()[:100]}},
        {"content": b"x", "headers": {"content-type": "text/plain"}},
    ):
        options.setdefault(
            "headers", {"content-type": "application/json"} if "content" in options else {}
        )
        response = client.post("/predict", **options)
        assert response.status_code == 422, options
        assert "\n" not in response.json()["error"] and "Traceback" not in response.text
    assert client.post("/predict", files={"file": png()}).status_code == 200


def test_only_listed_formats_are_opened(client, monkeypatch):
    """An EPS, which Pillow gives to Ghostscript, is refused before Pillow looks at it."""
    from PIL import EpsImagePlugin

    opened = []
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda self: opened.append(self))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    response = client.post("/predict", files=[("file", ("photo.png", eps))])
    assert response.status_code == 422 and not opened
    assert "not an image that can be read" in response.text


def test_a_body_of_nested_or_repeated_json_is_one_line(client):
    for body in ('{"inputs": ' + "[" * 5000 + "]" * 5000 + "}", '{"inputs": [], "inputs": [1]}'):
        response = client.post(
            "/predict", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 422 and "the body" in response.text


def test_sizes_are_limited(model):
    settings = Settings(model, max_bytes=20_000, max_pixels=1000)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        large = client.post("/predict", files={"file": bytes(30_000)})
        assert large.status_code == 413 and "at most 20,000 bytes" in large.json()["error"]

        def chunks():
            for _ in range(30):
                yield bytes(1000)

        streamed = client.post(
            "/predict", content=chunks(), headers={"content-type": "application/json"}
        )
        assert streamed.status_code == 413
        many = client.post("/predict", files={"file": png()})
        assert many.status_code == 422 and "2,000 pixels; at most 1,000" in many.json()["error"]


def test_too_many_and_too_slow_are_refused_and_recover(model, monkeypatch):
    settings = Settings(model, queue=2, batch=1, wait_ms=0, timeout=5.0)
    app = create_app(settings)
    slow = serving.Answers.run
    monkeypatch.setattr(
        serving.Answers, "run", lambda self, items: time.sleep(0.3) or slow(self, items)
    )
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        with ThreadPoolExecutor(8) as pool:
            found = list(
                pool.map(lambda i: client.post("/predict", files={"file": png(i)}), range(8))
            )
        codes = sorted(each.status_code for each in found)
        assert set(codes) == {200, 503} and codes.count(200) >= 2
        refused = next(each for each in found if each.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert client.post("/predict", files={"file": png()}).status_code == 200
    with TestClient(
        create_app(replace(settings, timeout=0.1)), base_url="http://127.0.0.1"
    ) as client:
        assert client.post("/predict", files={"file": png()}).status_code == 504


def test_tokens(model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n\nsecond \n")
    settings = Settings(model, token_file=str(tokens))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for path in ("/health", "/ready", "/", "/page.js"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first"}):
            assert client.get("/model", headers=headers).status_code == 401
            response = client.post("/predict", files={"file": png()}, headers=headers)
            assert response.status_code == 401
        for token in ("first", "second"):
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/model", headers=headers).status_code == 200
    tokens.write_text("\n")
    with pytest.raises(ConfigError, match="holds no token"):
        create_app(settings)


def test_other_sites_stay_out(client):
    assert client.get("/model", headers={"host": "evil.example"}).status_code == 400
    response = client.get("/model", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in ("/", "/page.js", "/page.css"):
        response = client.get(path)
        assert "http:" not in response.text and "https:" not in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]


def test_requests_run_together(model, monkeypatch):
    sizes, run = [], serving.Answers.run
    monkeypatch.setattr(
        serving.Answers, "run", lambda self, items: sizes.append(len(items)) or run(self, items)
    )
    settings = Settings(model, wait_ms=500.0, batch=4)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(lambda i: client.post("/predict", files={"file": png(i)}), range(4))
            )
        assert [each.status_code for each in found] == [200] * 4
        assert max(sizes) > 1 and sum(sizes) == 4
        alone = client.post("/predict", files={"file": png(2)}).json()["answers"][0]
        best, other = (each["predictions"][0] for each in (alone, found[2].json()["answers"][0]))
        assert best["label"] == other["label"]
        assert best["score"] == pytest.approx(other["score"], abs=1e-5)
