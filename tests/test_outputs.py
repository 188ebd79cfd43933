"""Named outputs."""

import pytest

from headstart.outputs import BeitModelOutputWithPooling, ImageClassifierOutput, output_classes


def test_access():
    out = ImageClassifierOutput(logits="scores", hidden_states=("a", "b"))
    assert out.logits == out["logits"] == out[0] == "scores"
    assert (
        out.loss is None
        and out.to_tuple() == ("scores", ("a", "b"))
        and out[:1] == ("scores",)
        and out[-1] == ("a", "b")
    )
    assert list(out) == list(out.keys()) == ["logits", "hidden_states"] and len(out) == 2
    assert "logits" in out and "loss" not in out and out.get("loss", 3) == 3
    assert dict(**out) == {"logits": "scores", "hidden_states": ("a", "b")} == dict(out.items())
    out["loss"] = 1.5
    assert out[0] == 1.5 and out.values()
    with pytest.raises(KeyError):
        out["attentions"]


def test_pages_names():
    names = {cls.__name__ for cls in output_classes()}
    assert {
        "BeitModelOutputWithPooling",
        "FlaxBeitModelOutputWithPooling",
        "BaseModelOutputWithCLSToken",
        "SemanticSegmenterOutput",
    } <= names
    assert BeitModelOutputWithPooling("x", "y").to_tuple() == ("x", "y")
