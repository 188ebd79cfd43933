"""`headstart convert`.

Every family, every format, there and back, and nothing left behind by a failure.
"""

import json

import pytest
import torch

from command_line import call
from headstart import BeitForImageClassification, BitForImageClassification
from headstart.engine.convert import best_class, convert, load_any
from headstart.errors import ConfigError, HeadstartError, WeightsError
from tiny_networks import NETWORKS

AUTHORS = {"bit": ".npz", "beit": ".pth", "cvt": ".pth", "yoso": ".pth"}


def saved(family, folder):
    torch.manual_seed(1)
    model = NETWORKS[family]().eval()
    with torch.no_grad():
        # nothing is zero or one that a wrong name could hide behind
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model


def equal(model, source):
    _, other = load_any(source, None, None, {})
    assert type(other) is type(model)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()
    )
    return other


@pytest.mark.parametrize("family", NETWORKS)
def test_there_and_back(family, tmp_path):
    model = saved(family, tmp_path / "mine")
    assert (
        convert(tmp_path / "mine", tmp_path / "bin", format="bin").network == type(model).__name__
    )
    assert (
        sorted(p.suffix for p in (tmp_path / "bin").iterdir() if p.name != "README.md")[0] == ".bin"
    )
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    convert(tmp_path / "bin", tmp_path / "single.safetensors")
    (tmp_path / "config.json").write_text((tmp_path / "mine" / "config.json").read_text())
    equal(model, tmp_path / "single.safetensors")
    convert(tmp_path / "single.safetensors", tmp_path / f"authors{AUTHORS[family]}")
    again = equal(model, tmp_path / f"authors{AUTHORS[family]}")
    assert again.config.num_labels == model.config.num_labels
    convert(tmp_path / f"authors{AUTHORS[family]}", tmp_path / "back", max_shard_size="4KB")
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()
    equal(model, tmp_path / "back")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_of_the_authors_tells_its_family(tmp_path):
    """Without a config.json: 32 groups, which only the published arrangement tells."""
    from headstart import BitConfig

    torch.manual_seed(0)
    model = BitForImageClassification(
        BitConfig(embedding_size=64, hidden_sizes=[256, 512], depths=[1, 1], num_labels=4)
    )
    model.save_pretrained(tmp_path / "mine")
    convert(tmp_path / "mine", tmp_path / "new" / "mine.npz")
    family, again = load_any(tmp_path / "new" / "mine.npz", None, None, {})
    assert family.model_type == "bit" and again.config.compat == "authors"
    convert(tmp_path / "new" / "mine.npz", tmp_path / "theirs", compat="transformers")
    assert (
        BitForImageClassification.from_pretrained(tmp_path / "theirs").config.compat
        == "transformers"
    )
    assert (tmp_path / "theirs" / "preprocessor_config.json").exists()


def test_the_class_follows_from_the_weights():
    model = NETWORKS["beit"]()
    tensors = model.name_table(model.config).to_theirs(model.state_dict())
    from headstart.registry import families

    family = families()["beit"]
    assert best_class(family, model.config, tensors) == "BeitForImageClassification"
    assert (
        best_class(
            family,
            model.config,
            {k: v for k, v in tensors.items() if not k.startswith("classifier")},
        )
        == "BeitModel"
    )


def test_what_cannot_be_written(tmp_path):
    saved("beit", tmp_path / "mine")
    with pytest.raises(
        ConfigError,
        match=r"beit has no \.npz format that its authors read; .* \.pth, \.safetensors, \.bin",
    ):
        convert(tmp_path / "mine", tmp_path / "a.npz")
    with pytest.raises(
        ConfigError, match="exists; choose another name, or replace it with --overwrite"
    ):
        convert(tmp_path / "mine", tmp_path / "mine")
    with pytest.raises(ConfigError, match="format='onnx'"):
        convert(tmp_path / "mine", tmp_path / "a", format="onnx")
    with pytest.raises(ConfigError, match="beit has no class BitModel"):
        convert(tmp_path / "mine", tmp_path / "a", architecture="BitModel")
    (tmp_path / "noise.pth").write_bytes(b"words")
    with pytest.raises(HeadstartError, match=r"noise\.pth"):
        convert(tmp_path / "noise.pth", tmp_path / "a")
    torch.save({"something": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is not a file of the families' authors"):
        convert(tmp_path / "other.pth", tmp_path / "a")
    assert (
        convert(tmp_path / "mine", tmp_path / "mine", overwrite=True, format="bin").kind
        == "folder with bin"
    )
    with pytest.raises(ConfigError, match="holds other things than a model"):
        convert(tmp_path / "mine", tmp_path, overwrite=True)
    assert (tmp_path / "noise.pth").exists()


def test_a_wrong_weight_is_found_and_nothing_stays(tmp_path, monkeypatch):
    saved("bit", tmp_path / "mine")
    table = BitForImageClassification.name_table

    class Spoilt:
        def __init__(self, table):
            self.table = table

        def to_theirs(self, state):
            found = self.table.to_theirs(state)
            return found | {"classifier.1.bias": found["classifier.1.bias"] + 1e-6}

        def __getattr__(self, name):
            return getattr(self.table, name)

    monkeypatch.setattr(
        BitForImageClassification,
        "name_table",
        classmethod(lambda cls, config: Spoilt(table(config))),
    )
    before = sorted(tmp_path.iterdir())
    for target in ("folder", "file.bin", "file.safetensors"):
        with pytest.raises(
            WeightsError, match=r"tensors are not what was written, such as classifier\.1\.bias"
        ):
            convert(tmp_path / "mine", tmp_path / target)
    assert sorted(tmp_path.iterdir()) == before


def test_the_command(tmp_path, capsys):
    model = saved("beit", tmp_path / "mine")
    code, out, err = call(capsys, "convert", tmp_path / "mine", tmp_path / "a.pth")
    assert (
        code == 0
        and "the authors' .pth of a BeitForImageClassification" in out
        and f"{model.num_parameters():,} weights" in out
    ), err
    code, _, err = call(capsys, "convert", tmp_path / "mine", tmp_path / "a.pth")
    assert code == 2 and err.startswith("headstart: ") and "--overwrite" in err
    code, _, err = call(capsys, "convert", "nothing", tmp_path / "b")
    assert code == 2 and "no model is called 'nothing'" in err
    assert isinstance(
        BeitForImageClassification.from_pretrained(tmp_path / "a.pth", config=model.config),
        BeitForImageClassification,
    )


def test_models_says_what_is_cached(tmp_path, capsys, monkeypatch):
    from headstart.loading import cached_file
    from headstart.registry import published_models

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    _, published = published_models()["BiT-M-R50x1"]
    assert cached_file(published) is None
    address = published.url.split("://")[1]
    file = tmp_path / "headstart" / address
    file.parent.mkdir(parents=True)
    with file.open("wb") as stream:
        stream.truncate(published.size or 1)
    assert cached_file(published) == file
    code, out, _ = call(capsys, "models", "--json")
    found = {each["name"]: each for each in map(json.loads, out.splitlines())}
    assert (
        code == 0
        and found["BiT-M-R50x1"]["cached"] == str(file)
        and found["BiT-M-R101x1"]["cached"] is None
    )
    code, out, _ = call(capsys, "models")
    row = next(line.split("\t") for line in out.splitlines() if line.startswith("BiT-M-R50x1\t"))
    assert code == 0 and row[-1] == "yes" and "MB" in row[3]


def test_a_run_is_not_replaced_by_its_model(tmp_path):
    run = tmp_path / "run"
    saved("bit", run)
    (run / "results.json").write_text("{}")
    for source in (run, run / "model.safetensors"):
        with pytest.raises(ConfigError, match="holds a run, whose results"):
            convert(source, run, overwrite=True)
    assert (run / "results.json").exists()
