"""Folders that we save load in transformers and the other way round, with equal outputs. Needs the `peers` extra."""

import pytest
import torch

from conftest import assert_close
from contract.test_models import CASES, build
from golden_cases import flatten

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

# transformers counts the blocks of the pyramid from 2, so that 0 and 1 name none there.
CHANGES = {"BeitForSemanticSegmentation": {"num_hidden_layers": 6, "out_indices": [2, 3, 4, 5]}}
# What transformers has no class for.
NOT_THERE = ("CvtBackbone",)


@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_THERE])
def test_ours_loads_there(name, tmp_path):
    """Built with transformers' arithmetic, saved by us, read by transformers."""
    model, inputs, _ = build(name, **CHANGES.get(name, {}))
    config = type(model.config).from_file_values(model.config.to_dict() | {"transformers_version": "4.57.6"}, "mine", compat="transformers")
    model = type(model)(config).eval()
    model.save_pretrained(tmp_path)
    peer, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, theirs = flatten(model(**inputs)), flatten(dict(peer.eval()(**inputs)))
    for key, value in theirs.items():
        assert_close(ours[key], value, 1e-5, key)


@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_THERE])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_theirs_loads_here(name, safe, tmp_path):
    model, inputs, _ = build(name, **CHANGES.get(name, {}))
    peer_class = getattr(transformers, name)
    torch.manual_seed(0)
    settings = CASES[name][0] | CHANGES.get(name, {})
    peer = peer_class(peer_class.config_class(**settings)).eval()
    peer.save_pretrained(tmp_path, safe_serialization=safe)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.compat == "transformers"
    ours, theirs = flatten(again(**inputs)), flatten(dict(peer(**inputs)))
    for key, value in theirs.items():
        assert_close(ours[key], value, 1e-5, key)
