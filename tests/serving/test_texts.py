"""Every served task of texts answers what its pipeline answers."""

import pytest
import torch

import headstart
from conftest import ROOT

pytest.importorskip("fastapi", reason="needs headstart[serve]")
from starlette.testclient import TestClient  # noqa: E402 - after the check

from headstart.serving.answers import plain  # noqa: E402
from headstart.serving.app import Settings, create_app  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CASES = {
    "YosoForSequenceClassification": ("text-classification", ["We went.", "/etc/passwd"]),
    "YosoForTokenClassification": ("token-classification", ["We went.", "/etc/passwd"]),
    "YosoForMaskedLM": ("fill-mask", ["We [MASK] home.", "[MASK] went."]),
    "YosoForQuestionAnswering": (
        "question-answering",
        [{"question": "Who went?", "context": "We went home."}] * 2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_pipelines(name, tmp_path):
    task, inputs = CASES[name]
    tokenizer = headstart.YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")
    torch.manual_seed(1)
    config = headstart.YosoConfig(vocab_size=len(tokenizer), **SMALL)
    getattr(headstart, name)(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = [
        each.replace("[MASK]", tokenizer.mask_token) if isinstance(each, str) else each
        for each in inputs
    ]
    more = {"top_k": None} if task == "text-classification" else {}
    expected = plain(headstart.pipeline(task, tmp_path)(inputs, **more))
    with TestClient(create_app(Settings(str(tmp_path))), base_url="http://localhost") as client:
        assert client.get("/model").json()["task"] == task
        response = client.post("/predict", json={"inputs": inputs})
        assert response.status_code == 200, response.text
        found = [each["predictions"] for each in response.json()["answers"]]
        assert shape(found) == shape(expected)
        assert client.post("/predict", json={"inputs": ["we went " * 200] * 2}).status_code == 422
        assert client.post("/explain", json={"inputs": inputs[:1]}).status_code == 422


def shape(values):
    """Plain values with numbers rounded, as batches of other lengths round otherwise."""
    if isinstance(values, dict):
        return {key: shape(each) for key, each in values.items()}
    if isinstance(values, list):
        return [shape(each) for each in values]
    return round(values, 4) if isinstance(values, float) else values
