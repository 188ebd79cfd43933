"""Names → classes: the automatic classes where no family's own test looks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import headstart
from conftest import golden_dir
from headstart import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    BitForImageClassification,
    CvtForImageClassification,
)
from headstart.errors import ConfigError, FileFormatError, NotFoundError, OfflineError
from headstart.registry import families


def test_where_files_come_from_is_no_value_of_a_processor(tmp_path):
    plain = AutoImageProcessor.from_pretrained("BiT-M-R50x1")
    assert (
        AutoImageProcessor.from_pretrained("BiT-M-R50x1", local_files_only=True, use_fast=True)
        == plain
    )
    # without a preprocessor_config.json
    BitForImageClassification.from_pretrained("bit-mini").save_pretrained(tmp_path)
    assert (
        AutoImageProcessor.from_pretrained(tmp_path, revision=None, size=48).to_dict()
        == headstart.BitImageProcessor(size=48).to_dict()
    )


def test_a_published_configuration_takes_compat():
    """The configuration alone says what a network loaded with the same words would compute."""
    authors, others = (
        AutoConfig.from_pretrained("CvT-13-224x224-IN-1k", compat=compat)
        for compat in (None, "transformers")
    )
    assert (authors.compat, authors.hidden_act) == ("authors", "quick_gelu")
    assert (others.compat, others.hidden_act) == ("transformers", "gelu")
    assert others.id2label == authors.id2label


def test_the_wrong_kind_of_processor_names_the_right_one(tmp_path):
    with pytest.raises(ConfigError, match="reads images; use AutoImageProcessor"):
        AutoTokenizer.from_pretrained("bit-mini")
    headstart.YosoConfig(
        vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reads texts; use AutoTokenizer"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_a_damaged_processor_file_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"preprocessor_config\.json is not JSON"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_a_file_without_a_configuration_says_what_to_do(tmp_path):
    path = tmp_path / "net.npz"
    path.write_bytes(b"PK")
    with pytest.raises(
        NotFoundError, match=r"net\.npz has no config\.json beside it.*headstart convert"
    ):
        AutoModelForImageClassification.from_pretrained(path)


@pytest.mark.parametrize(
    "load",
    [AutoImageProcessor, AutoConfig, AutoModelForImageClassification, CvtForImageClassification],
)
def test_misspelled_names_are_corrected_without_a_network_too(load, tmp_path):
    with pytest.raises(OfflineError, match="Did you mean microsoft/cvt-13"):
        load.from_pretrained("microsoft/cvt13", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(OfflineError) as caught:
        load.from_pretrained("microsoft/cvt-13", local_files_only=True, cache_dir=tmp_path)
    assert "mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "case", "file"),
    [
        ("CvtModel", "tf/TFCvtModel__default", "tf_model.h5"),
        ("BeitModel", "flax/FlaxBeitModel__rel_per_layer", "flax_model.msgpack"),
    ],
)
def test_a_folder_of_another_framework_alone_is_read(cls, case, file, tmp_path):
    folder = golden_dir("transformers", *case.split("/"))
    for name in ("config.json", file):
        shutil.copy(folder / name, tmp_path)
    mine, theirs = (
        getattr(headstart, cls).from_pretrained(each).state_dict() for each in (tmp_path, folder)
    )
    assert all(
        torch.equal(mine[key], theirs[key])
        for key in theirs
        if not key.endswith("num_batches_tracked")
    )


def everything_that_saves():
    config = headstart.BitConfig(hidden_sizes=[8], depths=[1], embedding_size=8, num_groups=2)
    beit = headstart.BeitConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
    )
    yield config, {"config.json"}
    yield headstart.BitImageProcessor(), {"preprocessor_config.json"}
    yield headstart.YosoTokenizer.train(["a cat"], vocab_size=270), {"tokenizer.json", "vocab.json"}
    yield headstart.BitModel(config), {"config.json", "model.safetensors"}
    yield headstart.FlaxBeitModel(beit), {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_everything_that_saves_is_pushed(monkeypatch, tmp_path):
    sent = []

    def upload(folder, repo_id, **hub):
        sent.append(({path.name for path in Path(folder).iterdir()}, repo_id, hub))
        return "address"

    monkeypatch.setattr("headstart.hub.push.push_to_hub", upload)
    for thing, files in everything_that_saves():
        kind = type(thing).__name__
        assert thing.push_to_hub("me/mine", private=True) == "address"
        thing.save_pretrained(tmp_path / kind, push_to_hub=True, revision="v2")
        thing.save_pretrained(tmp_path / kind)
        there, other = sent
        assert (
            files <= there[0] == other[0]
            and there[1:] == ("me/mine", {"private": True})
            and other[1:] == (kind, {"revision": "v2"})
        )
        sent.clear()


@pytest.mark.parametrize(
    ("missing", "name", "says"),
    [
        ("keras", "TFCvtModel", r"keras is not installed.*'headstart\[keras\]'"),
        (
            "tensorflow",
            "TFCvtModel",
            "pip install tensorflow, or choose another backend, such as KERAS_BACKEND=torch",
        ),
        ("flax", "FlaxBeitModel", r"flax is not installed.*'headstart\[flax\]'"),
    ],
)
def test_a_missing_framework_says_what_to_install(missing, name, says):
    """In a process of its own, where nothing has imported it yet."""
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom headstart import {name}"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert re.search(says, done.stderr.splitlines()[-1]), done.stderr


def test_one_image_is_not_counted():
    processor = AutoImageProcessor.from_pretrained("bit-mini")
    for one, many in (
        ("gone.jpg", ["gone.jpg", "gone.jpg"]),
        (torch.zeros(5), [torch.zeros(3, 4, 4), torch.zeros(5)]),
    ):
        with pytest.raises(headstart.errors.InputError) as caught:
            processor(one)
        assert "1 of 1" not in str(caught.value)
        with pytest.raises(headstart.errors.InputError, match=" of 2: "):
            processor(many)


@pytest.fixture
def families_restored():
    """What a test registers is gone after it."""
    before = dict(families())
    yield
    families().clear()
    families().update(before)


def test_classes_of_ones_own_are_registered(families_restored, tmp_path):
    class ToyConfig(headstart.PretrainedConfig):
        model_type = "toy"

        def __init__(self, width=4, **kwargs):
            self.width = width
            super().__init__(**kwargs)

    class ToyModel(headstart.PreTrainedModel):
        config_class = ToyConfig
        base_model_prefix = "toy"

        def __init__(self, config):
            super().__init__(config)
            self.dense = torch.nn.Linear(config.width, config.width)
            self.post_init()

        def forward(self, x):
            return self.dense(x)

    class ToyImageProcessor(headstart.BitImageProcessor):
        image_processor_type = "ToyImageProcessor"

    with pytest.raises(headstart.errors.ConfigError, match="register its configuration first"):
        headstart.AutoModel.register(ToyConfig, ToyModel)
    with pytest.raises(headstart.errors.ConfigError, match="model_type is 'toy'; expected 'other'"):
        headstart.AutoConfig.register("other", ToyConfig)
    headstart.AutoConfig.register("toy", ToyConfig)
    headstart.AutoModel.register(ToyConfig, ToyModel)
    AutoImageProcessor.register(ToyConfig, ToyImageProcessor)
    model = headstart.AutoModel.from_config(ToyConfig(width=3))
    model.save_pretrained(tmp_path)
    ToyImageProcessor().save_pretrained(tmp_path)
    again = headstart.AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, ToyModel) and torch.equal(again.dense.weight, model.dense.weight)
    assert isinstance(headstart.AutoConfig.from_pretrained(tmp_path), ToyConfig)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ToyImageProcessor
    with pytest.raises(headstart.errors.ConfigError, match="pass exist_ok=True"):
        headstart.AutoModel.register(ToyConfig, ToyModel)
    headstart.AutoModel.register(ToyConfig, ToyModel, exist_ok=True)
