"""Planted checkpoints: a right one, and three that are wrong in a way of their own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from headstart import BeitConfig, BeitImageProcessor, YosoConfig
from headstart.checkpoint import read_tensors, write_tensors
from headstart.cli.app import main
from headstart.cli.verify import check, describe, read_expected
from headstart.registry import find_published
from tiny_networks import NETWORKS


@pytest.fixture
def planted(tmp_path):
    """A small BEiT in a folder, an image, and what the network answers."""
    torch.manual_seed(0)
    network, folder = NETWORKS["beit"]().eval(), tmp_path / "beit"
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    processor = BeitImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor.save_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with torch.inference_mode():
        logits = network(**processor(tmp_path / "a.png", return_tensors="pt")).logits[0]
    entry = {"name": str(folder), "network": "BeitForImageClassification", "input": "image"}
    entry |= {"expected": logits.tolist(), "answer": int(logits.argmax()), "tolerance": 1e-5}
    return folder, tmp_path / "a.png", entry | {"compat": ["authors"], "source": "here"}


def verdicts(planted) -> list[str]:
    _, image, entry = planted
    return [line["verdict"] for line in check(entry, image)]


def test_the_right_checkpoint_is_verified(planted):
    lines = check(planted[2], planted[1])
    assert [line["verdict"] for line in lines] == ["verified", "verified"]
    assert lines[0]["difference"] < 1e-5 and len(lines[0]["sha256"]) == 64
    assert "verified" in describe(lines[0]) and "the other compat" in describe(lines[1])


def test_another_activation_differs(planted):
    config = planted[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    assert verdicts(planted)[0] == "differs"


def test_a_shifted_block_differs(planted):
    weights = planted[0] / "model.safetensors"
    tensors = {name: value.clone() for name, value in read_tensors(weights).items()}
    shifted = {
        name.replace("layer.0.", "layer.x.")
        .replace("layer.1.", "layer.0.")
        .replace(".x.", ".1."): value
        for name, value in tensors.items()
    }
    write_tensors(planted[0], shifted)
    assert verdicts(planted)[0] == "differs"


def test_a_truncated_file_is_unreadable(planted):
    weights = planted[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert verdicts(planted) == ["unreadable", "unreadable"]


def test_what_cannot_be_fetched_is_absent(planted, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = planted[2] | {"name": "nobody/nothing"}
    assert [line["verdict"] for line in check(entry, planted[1])] == ["absent", "absent"]


def test_the_preprocessing_of_the_published_values_is_used(planted):
    folder, image, entry = planted
    other = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "image_mean": [0.1] * 3}
    entry["processor"] = {"image_processor_type": "BeitImageProcessor", **other}
    assert verdicts((folder, image, entry))[0] == "differs"
    del entry["processor"]["image_mean"]
    assert verdicts((folder, image, entry))[0] == "verified"


@pytest.mark.parametrize("network", ["YosoModel", "YosoForMaskedLM"])
def test_a_corner_of_a_text_networks_outputs(network, tmp_path):
    torch.manual_seed(0)
    config = YosoConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16,
    )  # fmt: skip
    model = getattr(headstart, network)(config).eval()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        made = model(torch.arange(7)[None])
    corner = (made.logits if "logits" in made else made.last_hidden_state)[0, :3, :3].tolist()
    entry = {"name": str(tmp_path), "network": network, "input": {"first": 7}, "expected": corner}
    entry |= {"tolerance": 1e-5, "compat": ["authors"], "source": "here"}
    assert check(entry, None)[0]["verdict"] == "verified"
    entry["input"] = [0, 1, 2, 3, 4, 5, 7]
    line = check(entry, None)[0]
    assert line["verdict"] == "differs" and "differs" in describe(line)


def test_masked_image_modeling_is_run_with_all_patches_masked(tmp_path):
    torch.manual_seed(0)
    config = BeitConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, image_size=32, patch_size=16, use_mask_token=True,
    )  # fmt: skip
    model = headstart.BeitForMaskedImageModeling(config).eval()
    model.save_pretrained(tmp_path)
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    processor = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    inputs = BeitImageProcessor(**processor)(tmp_path / "a.png", return_tensors="pt")
    with torch.inference_mode():
        made = model(**inputs, bool_masked_pos=torch.ones(1, 4, dtype=torch.bool))
    entry = {"name": str(tmp_path), "network": "BeitForMaskedImageModeling", "input": "image"}
    entry |= {"processor": {"image_processor_type": "BeitImageProcessor", **processor}}
    entry |= {"masked": 4, "expected": made.logits[0, :3, :3].tolist(), "tolerance": 1e-5}
    entry |= {"compat": ["authors"], "source": "here"}
    assert check(entry, tmp_path / "a.png")[0]["verdict"] == "verified"
    del entry["masked"]
    assert check(entry, tmp_path / "a.png")[0]["verdict"] == "differs"


def test_the_published_values_are_whole():
    """Every value that is known to be published, of a network and an image that we can name."""
    expected = read_expected()
    assert len(expected["networks"]) == 20
    for entry in expected["networks"]:
        needed = {"name", "network", "input", "expected", "tolerance", "compat", "source"}
        assert needed <= set(entry)
        assert set(entry["compat"]) <= {"authors", "transformers"}
        assert torch.tensor(entry["expected"]).shape[-1] == 3
        assert entry.get("image", "cats") in expected["images"]
        assert hasattr(headstart, entry["network"])
        assert "/" in entry["name"] or find_published(entry["name"]) is not None


def test_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "nobody/nothing"])
    assert stopped.value.code == 2 and "no published outputs" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "google/bit-50", "--ledger", str(tmp_path / "l.jsonl")])
    assert stopped.value.code == 3
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["absent", "absent"]
    printed = capsys.readouterr().out
    assert "google/bit-50, BitForImageClassification (compat=authors): absent" in printed
