"""Classifiers that read pooled hidden states and mirror images: definition, files, folds."""

import numpy as np
import pytest
import torch

import headstart
from headstart import BeitConfig, BitConfig, CvtConfig, YosoConfig
from headstart.engine.folds import fold
from headstart.errors import ConfigError

BEIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
}
NETWORKS = {
    "Bit": (BitConfig, {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1]}),
    "Cvt": (CvtConfig, {"embed_dim": [8, 16], "depth": [1, 2], "num_heads": [1, 2]}),
    "Beit": (BeitConfig, BEIT),
}


def settings(family):
    config, values = NETWORKS[family]
    if family == "Bit":
        values = values | {"num_groups": 4}
    if family == "Cvt":
        full = CvtConfig().to_dict()
        lists = {
            name: each[-2:]
            for name, each in full.items()
            if isinstance(each, list) and name not in ("out_features", "out_indices")
        }
        values = lists | values | {"cls_token": [False, True]}
    return config, values


def network(family, **values):
    torch.manual_seed(0)
    config, own = settings(family)
    cls = getattr(headstart, f"{family}ForImageClassification")
    model = cls(config(**{**own, "num_labels": 3, **values})).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.05 * torch.randn_like(each))
    return model


def pixels():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def definition(model, x):
    """The mean and the class token of each state, then the usual vector, as from hidden states."""
    plain = model.base_model(x, output_hidden_states=True)
    parts = []
    for index in model.config.pooled_hidden_states:
        state = plain.hidden_states[index]
        if state.ndim == 3:
            parts += [state[:, 0], state[:, 1:].mean(1)]
        elif isinstance(model, headstart.BitForImageClassification):
            parts.append(state.relu().mean((2, 3)))
        else:
            parts.append(state.mean((2, 3)))
    if isinstance(model, headstart.CvtForImageClassification):
        return torch.cat([*parts, model.layernorm(plain.cls_token_value)[:, 0]], 1)
    return torch.cat([*parts, plain.pooler_output.flatten(1)], 1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("family", NETWORKS)
@torch.no_grad()
def test_the_classifier_reads_what_its_configuration_names(family, mirrored):
    model, x = network(family, pooled_hidden_states=[0, 1], average_mirrored=mirrored), pixels()
    read = definition(model, x)
    if mirrored:
        read = (read + definition(model, x.flip(3))) / 2
    torch.testing.assert_close(model(x).logits, model.classifier(read))
    assert "hidden_states" not in model(x)
    assert len(model(x, output_hidden_states=True).hidden_states) >= 2


@pytest.mark.parametrize("family", NETWORKS)
@torch.no_grad()
def test_folder_and_folds_give_the_same_scores(family, tmp_path):
    last = len(network(family).config.hidden_widths) - 1
    model = network(family, pooled_hidden_states=[last], average_mirrored=True)
    expected = model(pixels()).logits
    model.save_pretrained(tmp_path)
    again = headstart.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config.pooled_hidden_states == [last] and again.config.average_mirrored
    torch.testing.assert_close(again(pixels()).logits, expected)
    for lean in (False, True):
        folded = fold(model, size=(32, 48), lean=lean, portable=True)
        torch.testing.assert_close(folded(pixels()).logits, expected, rtol=1e-4, atol=1e-4)
    assert "mirror image" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_engines_give_the_same_scores(engine):
    pytest.importorskip(engine)
    model = network("Bit", pooled_hidden_states=[1, 2], average_mirrored=True)
    with torch.no_grad():
        expected = model(pixels()).logits
    optimized = headstart.optimize(model, example=pixels(), engine=engine)
    found = optimized(pixels()).logits
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)


def test_a_plain_configuration_writes_nothing_new():
    for config, values in map(settings, NETWORKS):
        saved = config(**values).to_dict()
        assert not {"pooled_hidden_states", "average_mirrored"} & set(saved)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match=r"pooled_hidden_states=\[7\]; expected indices from 0"):
        network("Bit", pooled_hidden_states=[7])
    with pytest.raises(ConfigError, match="YosoConfig has no pooled_hidden_states"):
        YosoConfig(pooled_hidden_states=[1])
    with pytest.raises(ConfigError, match="only the PyTorch classes compute"):
        BeitConfig(average_mirrored=True).check_plain_head()
