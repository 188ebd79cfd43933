"""Checkpoints: whole or not at all, and a damaged one is never used."""

import json
import shutil

import pytest
import torch

from headstart.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint


def tensors(step):
    return {
        "model/w": torch.full((3, 4), float(step)),
        "optimizer/w/momentum": torch.arange(5) + step,
    }


def test_what_is_saved_comes_back(tmp_path):
    shared = torch.arange(6.0)
    save_checkpoint(
        tmp_path, 7, tensors(7) | {"a": shared, "b": shared, "c": shared.view(2, 3).T}, {"seed": 1}
    )
    found = load_checkpoint(tmp_path)
    assert found.step == 7 and found.state["seed"] == 1 and found.damaged == []
    assert torch.equal(found.tensors["model/w"], torch.full((3, 4), 7.0)) and torch.equal(
        found.tensors["c"], shared.view(2, 3).T
    )


def test_the_last_two_are_kept(tmp_path):
    for step in (5, 10, 100, 1000):
        save_checkpoint(tmp_path, step, tensors(step), {})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00001000"]
    assert load_checkpoint(tmp_path).step == 1000
    save_checkpoint(tmp_path, 1000, tensors(2), {})
    assert load_checkpoint(tmp_path).tensors["model/w"][0, 0] == 2


def truncate(path):
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(path):
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def edit(path):
    values = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(values | {"step": 9}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        edit,
        lambda p: (p / "manifest.json").unlink(),
        lambda p: (p / "state.json").unlink(),
        lambda p: (p / "manifest.json").write_text("{}"),
        lambda p: (p / "manifest.json").write_text("[1]"),
        lambda p: shutil.rmtree(p),
    ],
)
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    save_checkpoint(tmp_path, 5, tensors(5), {})
    save_checkpoint(tmp_path, 10, tensors(10), {})
    damage(tmp_path / "step-00000010")
    found = load_checkpoint(tmp_path)
    assert found.step == 5 and found.tensors["model/w"][0, 0] == 5
    assert all("step-00000010" in each for each in found.damaged)


def test_none_at_all(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 5, tensors(5), {})
    truncate(tmp_path / "step-00000005")
    assert load_checkpoint(tmp_path) is None


def test_a_write_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 5, tensors(5), {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headstart.training.checkpoints.flush_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 10, tensors(10), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert load_checkpoint(tmp_path).step == 5


def test_left_overs_of_a_killed_process_go_away(tmp_path):
    (tmp_path / ".step-00000003").mkdir()
    (tmp_path / ".step-00000003" / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 5, tensors(5), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
