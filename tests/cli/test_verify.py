"""Planted checkpoints: a right one, and three that are wrong in a way of their own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import BeitImageProcessor
from headstart.checkpoint import read_tensors, write_tensors
from headstart.cli.app import main
from headstart.cli.verify import check, describe, read_expected
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
    entry |= {"first": logits.tolist(), "answer": int(logits.argmax()), "tolerance": 1e-5}
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


def test_the_published_values_are_whole():
    for entry in read_expected()["networks"]:
        assert {"name", "network", "input", "first", "tolerance", "compat", "source"} <= set(entry)
        assert set(entry["compat"]) <= {"authors", "transformers"} and len(entry["first"]) == 3


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
    assert "google/bit-50 (compat=authors): absent" in capsys.readouterr().out
