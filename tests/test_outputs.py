"""Named outputs."""

import copy
import pickle

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


def test_outputs_are_rebuilt_from_pairs_and_mappings():
    """As DataParallel (pairs) and accelerate (a mapping) do."""
    out = ImageClassifierOutput(logits="scores", hidden_states=("a", "b"))
    again = type(out)((key, out[key]) for key in out)
    assert isinstance(out, dict) and again == type(out)(dict(out)) == out
    assert again.to_tuple() == ("scores", ("a", "b")) and again.loss is None
    with pytest.raises(TypeError, match="no field 'scores'"):
        ImageClassifierOutput({"scores": 1})


def test_fields_stay_in_order_and_fixed():
    out = ImageClassifierOutput(logits=2)
    out.loss = 1
    assert list(out) == ["loss", "logits"] and dict(out) == {"loss": 1, "logits": 2}
    out["loss"] = None
    assert list(out) == ["logits"]
    with pytest.raises(TypeError, match="fields of ImageClassifierOutput are fixed"):
        out.pop("logits")
    out["score"] = 1  # transformers' pipelines add to an output so
    out.loss = 3
    assert dict(out) == {"loss": 3, "logits": 2, "score": 1} and out.score == 1
    assert pickle.loads(pickle.dumps(out)) == copy.deepcopy(out) == out
