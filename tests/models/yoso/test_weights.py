"""YOSO's files: the Hub's, the authors', and our own, in both directions."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart
from conftest import assert_close, golden_cases, golden_dir
from headstart import (
    AutoConfig,
    AutoModelForMaskedLM,
    YosoConfig,
    YosoForMaskedLM,
    YosoForMultipleChoice,
    YosoForQuestionAnswering,
    YosoForSequenceClassification,
    YosoModel,
)
from headstart.errors import ConfigError, WeightsError
from headstart.models.yoso.weights import save_authors

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
IDS = torch.tensor([[0, 7, 33, 60, 2]])


def model(cls=YosoForMaskedLM, **values):
    return cls(YosoConfig(**({"vocab_size": 61} | SIZES | values))).eval()


@pytest.mark.parametrize(
    "case", [c for c in golden_cases("transformers", "yoso") if c.startswith("YosoFor")]
)
def test_saved_names_are_the_published_ones(case, tmp_path):
    folder = golden_dir("transformers", "yoso", case)
    cls = getattr(headstart, case.split("__")[0])
    cls.from_pretrained(folder).save_pretrained(tmp_path)
    theirs, ours = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    if "untied" in case:  # transformers 5 wants the decoder's bias by its own name too
        theirs["cls.predictions.decoder.bias"] = theirs["cls.predictions.bias"]
    assert set(theirs) == set(ours)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    written = json.loads((tmp_path / "config.json").read_text())
    for key, value in json.loads((folder / "config.json").read_text()).items():
        if key in written and key not in ("transformers_version", "dtype"):
            assert written[key] == value, key


@pytest.mark.parametrize(
    "case", [c for c in golden_cases("transformers", "yoso") if c.startswith("Yoso")]
)
def test_state_dict_is_what_a_published_file_holds(case):
    """Beside it, the names under which tied tensors appear a second time, as in transformers."""
    folder = golden_dir("transformers", "yoso", case)
    network = getattr(headstart, case.split("__")[0]).from_pretrained(folder)
    theirs = load_file(folder / "model.safetensors")
    ours = network.state_dict()
    again = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(ours) - again == set(theirs) - again
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_wrapper_of_published_names_loads():
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

    first, second = Wrapper(), Wrapper()
    second.load_state_dict(first.state_dict())
    assert_close(second.net(IDS).logits, first.net(IDS).logits, 0.0)
    head = second.net.cls.predictions
    assert head.decoder.weight is second.net.yoso.embeddings.word_embeddings.weight
    assert head.decoder.bias is head.bias
    bare = {key.removeprefix("net."): value for key, value in first.state_dict().items()}
    third = model()
    third.load_state_dict({f"module.{key}": value for key, value in bare.items()})
    assert_close(third(IDS).logits, first.net(IDS).logits, 0.0)


NETWORKS = [
    YosoModel,
    YosoForMaskedLM,
    YosoForMultipleChoice,
    YosoForSequenceClassification,
    YosoForQuestionAnswering,
]


@pytest.mark.parametrize("cls", NETWORKS)
def test_round_trip_is_exact(cls, tmp_path):
    first = model(cls, conv_window=3)
    first.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert again.config == first.config
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())
    assert "padding changes nothing here" in (tmp_path / "README.md").read_text()


def test_of_two_biases_the_decoders_counts(tmp_path):
    """Files of transformers 5 without tied embeddings hold both, and its network adds the
    decoder's.
    """
    first = model(tie_word_embeddings=False)
    first.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.bias"] = torch.zeros(61)
    tensors["cls.predictions.decoder.bias"] = torch.arange(61.0)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    again = YosoForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again.cls.predictions.bias, torch.arange(61.0))
    del tensors["cls.predictions.decoder.bias"]  # as version 4 writes it
    save_file(
        tensors | {"cls.predictions.bias": torch.ones(61)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    assert torch.equal(
        YosoForMaskedLM.from_pretrained(tmp_path).cls.predictions.bias, torch.ones(61)
    )


def test_places_follow_the_version_that_wrote_the_file():
    """transformers 4 drops them under "relative_key"; 5 adds them whatever the value says."""
    for version, kind in (
        ("4.57.6", "relative_key"),
        ("5.0.0", "absolute"),
        ("5.23.0", "absolute"),
    ):
        values = {"position_embedding_type": "relative_key", "transformers_version": version}
        assert YosoConfig.from_file_values(values, "folder").position_embedding_type == kind


@pytest.mark.parametrize("cls", [YosoModel, YosoForMaskedLM])
def test_longer_positions_on_loading(cls, tmp_path, caplog):
    """As `resize_position_embeddings` makes them."""
    first = model()
    first.save_pretrained(tmp_path)
    for length in (100, 7):
        again = cls.from_pretrained(tmp_path, max_position_embeddings=length)
        assert f"positions for 40 tokens are made to serve {length}" in caplog.text
        expected = cls.from_pretrained(tmp_path)
        expected.resize_position_embeddings(length)
        assert again.config.max_position_embeddings == length
        for key, value in expected.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_hub_folder_holds_bin_alone(tmp_path):
    first = model()
    first.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    # As transformers 4.12 wrote it: buffers, and the tied matrix and bias twice.
    tensors["yoso.embeddings.position_ids"] = torch.arange(40)[None] + 2
    tensors["yoso.embeddings.token_type_ids"] = torch.zeros(1, 40, dtype=torch.long)
    tensors["cls.predictions.decoder.weight"] = tensors["yoso.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert_close(again(IDS).logits, first(IDS).logits, 0.0)
    assert_close(
        YosoModel.from_pretrained(tmp_path)(IDS).last_hidden_state,
        first.yoso(IDS).last_hidden_state,
        0.0,
    )


def test_new_head_is_reported(tmp_path, caplog):
    model(YosoModel).save_pretrained(tmp_path)
    new, info = YosoForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert (
        new.classifier.out_proj.weight.shape == (3, 32) and new.classifier.out_proj.weight.std() > 0
    )
    assert sorted(info["missing_keys"]) == [
        f"classifier.{name}.{leaf}" for name in ("dense", "out_proj") for leaf in ("bias", "weight")
    ]
    assert "randomly initialized" in caplog.text


def test_compat_is_resolved_into_plain_values(tmp_path):
    values = YosoConfig(**SIZES).to_dict() | {
        "transformers_version": "4.57.6",
        "hidden_act": "relu",
    }
    for key in ("attend_padding", "head_act", "ignore_head_mask", "compat"):
        values.pop(key)
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert (theirs.compat, theirs.attend_padding, theirs.head_act, theirs.ignore_head_mask) == (
        "transformers",
        True,
        "relu",
        True,
    )
    assert theirs.layer_norm_eps == 1e-12
    authors = YosoConfig.from_pretrained(tmp_path, compat="authors")
    assert (
        authors.attend_padding,
        authors.head_act,
        authors.ignore_head_mask,
        authors.layer_norm_eps,
    ) == (False, "tanh", False, 1e-5)
    published = YosoConfig.from_file_values(values, "uw-madison/yoso-4096")
    assert published.compat == "authors" and not published.attend_padding
    assert (
        YosoConfig.from_file_values(
            values | {"layer_norm_eps": 1e-3}, "uw-madison/yoso-4096"
        ).layer_norm_eps
        == 1e-3
    )
    assert not theirs.differences() and len(authors.differences()) == 3


@pytest.mark.parametrize("released", [True, False])
def test_authors_files_both_ways(released, tmp_path):
    first = model(conv_window=3, layer_norm_eps=1e-5)
    save_authors(first, tmp_path / "a.model", released)
    keys = set(torch.load(tmp_path / "a.model", weights_only=True)["model_state_dict"])
    recorded = golden_dir("authors", "yoso", "mlm_conv_nomask") / (
        "model_released_names.model" if released else "model.model"
    )
    assert keys == set(torch.load(recorded, weights_only=True)["model_state_dict"])
    again = YosoForMaskedLM.from_pretrained(tmp_path / "a.model")
    assert again.config.to_dict() | {"_name_or_path": ""} == first.config.to_dict() | {
        "_name_or_path": ""
    }
    assert_close(again(IDS).logits, first(IDS).logits, 0.0)


def test_authors_files_that_do_not_fit(tmp_path):
    with pytest.raises(WeightsError, match="Long Range Arena"):
        YosoModel.from_pretrained(golden_dir("authors", "yoso", "lra_mean") / "model.model")
    with pytest.raises(ConfigError, match="pass num_attention_heads"):
        YosoModel.from_pretrained(golden_dir("authors", "yoso", "bert_sop") / "model.model")
    torch.save({"model_state_dict": {"model.other": torch.zeros(2)}}, tmp_path / "a.model")
    with pytest.raises(WeightsError, match="no embeddings or no blocks"):
        YosoModel.from_pretrained(tmp_path / "a.model")
    with pytest.raises(WeightsError, match=re.escape("pre_classifier")):
        save_authors(model(YosoForMultipleChoice), tmp_path / "b.model")


def test_untied_head_of_the_authors(tmp_path):
    first = model(tie_word_embeddings=False, conv_window=3, layer_norm_eps=1e-5)
    save_authors(first, tmp_path / "a.model")
    again = YosoForMaskedLM.from_pretrained(tmp_path / "a.model")
    assert not again.config.tie_word_embeddings
    assert_close(again(IDS).logits, first(IDS).logits, 0.0)
