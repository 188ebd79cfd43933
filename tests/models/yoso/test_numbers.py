"""YOSO's networks against transformers' and the authors' numbers."""

from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import headstart
from conftest import SHARED, assert_close, golden_cases, golden_dir, read_json
from golden_cases import check_case
from headstart import (
    YosoConfig,
    YosoForMaskedLM,
    YosoForQuestionAnswering,
    YosoForSequenceClassification,
)
from headstart.errors import ConfigError, InputError
from headstart.models.yoso import sampling
from headstart.models.yoso.config import PUBLISHED, count_parameters
from headstart.models.yoso.weights import AUTHORS, released_name
from yoso_networks import ids, small


@pytest.mark.parametrize("case", golden_cases("transformers", "yoso"))
def test_transformers_numbers(case):
    # recorded are context vectors, not weights
    check_case("yoso", case, skip=("attentions",), tuples=False)


def test_tuples_are_in_the_documented_order():
    out = small(YosoForMaskedLM)(
        ids(2, 5),
        labels=ids(2, 5),
        output_hidden_states=True,
        output_attentions=True,
        return_dict=False,
    )
    loss, logits, hidden, weights = out
    assert (
        loss.ndim == 0
        and logits.shape == (2, 5, 61)
        and len(hidden) == 3
        and [w.shape for w in weights] == [(2, 3, 5, 5)] * 2
    )
    last, hidden = small()(ids(2, 5), output_hidden_states=True, return_dict=False)
    assert last is hidden[-1]


MLM = [case for case in golden_cases("authors", "yoso") if case.startswith("mlm")]


def authors_case(case, cls, file="model.model", **values):
    folder = golden_dir("authors", "yoso", case)
    model = cls.from_pretrained(folder / file, compat="authors", **values)
    tensors = [load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs", "grads")]
    return model, *tensors


def check_authors_gradients(model, grads):
    found = {
        key.removeprefix("yoso."): p.grad
        for key, p in model.named_parameters()
        if p.grad is not None
    }
    theirs = AUTHORS.to_theirs(found)
    for name, value in grads.items():
        ours = theirs[released_name(name)]
        # padding's own vector is not trained here, as in transformers; nothing reads it
        if name.endswith("word_embeddings.weight"):
            ours, value = (torch.cat([g[:1], g[2:]]) for g in (ours, value))
        assert_close(ours, value, 1e-4, f"gradient of {name}")


@pytest.mark.parametrize("file", ["model.model", "model_released_names.model"])
@pytest.mark.parametrize("case", MLM)
def test_authors_numbers(case, file):
    model, inputs, outputs, grads = authors_case(case, YosoForMaskedLM, file)
    mask = inputs.get("sentence_mask")
    out = model(inputs["input_ids"], mask, labels=inputs["labels"], output_hidden_states=True)
    keep = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    for i, name in enumerate(["embeddings", "encoders.0", "encoders.1"]):
        assert_close(out.hidden_states[i][keep == 1], outputs[name][keep == 1], 1e-5, name)
    assert_close(out.logits[keep == 1], outputs["mlm_scores"][keep == 1], 1e-5, "logits")
    assert_close(out.loss, outputs["loss"], 1e-5, "loss")
    out.loss.backward()
    check_authors_gradients(model, grads)


def test_authors_question_answering():
    model, inputs, outputs, grads = authors_case("qa", YosoForQuestionAnswering)
    out = model(
        inputs["input_ids"],
        inputs["sentence_mask"],
        start_positions=inputs["start_positions"],
        end_positions=inputs["end_positions"],
    )
    keep = inputs["sentence_mask"] == 1
    assert_close(out.start_logits[keep], outputs["start_logits"][keep])
    assert_close(out.end_logits[keep], outputs["end_logits"][keep])
    assert_close(out.loss, outputs["loss"], 1e-5)
    out.loss.backward()
    check_authors_gradients(model, grads)


def test_authors_text_classification():
    model, inputs, outputs, grads = authors_case(
        "seqcls", YosoForSequenceClassification, num_labels=3
    )
    # the authors' own call passes no mask on
    out = model(inputs["input_ids"], labels=inputs["labels"])
    assert_close(out.logits, outputs["sent_scores"])
    assert_close(out.loss, outputs["loss"])
    out.loss.backward()
    check_authors_gradients(model, grads)


def test_authors_network_with_segments():
    model, inputs, outputs, _ = authors_case("bert_sop", YosoForMaskedLM, num_attention_heads=4)
    out = model(inputs["masked_sentence"], inputs["sentence_mask"], inputs["segment_ids"])
    places = inputs["mask_pos_ids"].long()[:, :, None].expand(-1, -1, 61)
    assert_close(out.logits.gather(1, places), outputs["mlm_scores"])


@pytest.mark.parametrize(
    "case", [case for case in golden_cases("yoso_lsh") if case.startswith("model_")]
)
def test_sampled_numbers(case):
    folder = golden_dir("yoso_lsh", case)
    model = YosoForSequenceClassification.from_pretrained(folder, compat="transformers")
    model.train("train" in case)
    inputs, outputs, grads = (
        load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs", "grads")
    )
    projections = [inputs.pop(f"Dmat.{i}") for i in range(2)]
    sampled = sampling.sampled_attention

    def recorded(*args, **kwargs):
        return sampled(*args, **(kwargs | {"projections": projections.pop(0)}))

    with mock.patch.object(sampling, "sampled_attention", recorded):
        out = model(**inputs)
    assert_close(out.logits, outputs["logits"], 1e-5)
    assert_close(out.loss, outputs["loss"], 1e-5)
    if model.training:
        out.loss.backward()
        published = model.name_table(model.config).to_theirs(
            {n: p.grad for n, p in model.named_parameters()}
        )
        for name, value in grads.items():
            if value.abs().max() < 1e3:
                assert_close(published[name], value, 1e-4, name)
            else:  # a row that met no key: the recorded gradient exploded, ours may not
                assert published[name].abs().max() < 10.0, name


RAISES = SHARED / "golden" / "transformers" / "RAISES.json"
REJECTED = (
    [case for case in read_json(RAISES) if case["class"].startswith("Yoso")]
    if RAISES.exists()
    else []
)
MESSAGES = {
    "conv_even": "conv_window=4",
    "both_inputs": "both given",
    "no_inputs": "neither given",
    "too_long": "41 tokens",
}


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case["case"])
def test_what_transformers_rejects(case):
    def call():
        model = getattr(headstart, case["class"])(YosoConfig(**case["config"])).eval()
        inputs = {
            k: torch.zeros(s, dtype=torch.long if k == "input_ids" else torch.float)
            for k, s in case["input_shapes"].items()
        }
        return model(**inputs)

    if case["case"] == "sampling_cpu":  # works here
        assert torch.isfinite(call().last_hidden_state).all()
        return
    with pytest.raises((ConfigError, InputError), match=MESSAGES[case["case"]]):
        call()


def test_published_parameters():
    config = YosoConfig(**PUBLISHED["yoso-4096"].config)
    with torch.device("meta"):
        model = YosoForMaskedLM(config)
    assert (
        model.num_parameters()
        == PUBLISHED["yoso-4096"].parameters
        == count_parameters(config)
        == 127_449_945
    )
