"""The scripts in examples/ run, as a user would start them, on a few images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import data_dir
from headstart import AutoModelForImageClassification, DalleImageTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments, **env):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark and bright images of two classes, 12 for training and 4 for validation of each."""
    top = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name, least in (("dark", 0), ("bright", 150)):
            (top / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(least, least + 100, (64, 64, 3)).astype("uint8")).save(
                    top / part / name / f"{i}.png"
                )
    return top


@pytest.mark.slow
def test_flax_goes_on_where_it_stopped_and_pytorch_reads_it(folder, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    options = ("--tiny", "--batch", "6", "--rate", "1e-3")
    printed = run("flax_finetune.py", folder, tmp_path, *options, "--epochs", "3", **two_devices)
    assert "2 devices, from step 0" in printed and "epoch 3" in printed
    printed = run("flax_finetune.py", folder, tmp_path, *options, "--epochs", "8", **two_devices)
    assert "from step 12" in printed and "epoch 3:" not in printed and "epoch 8:" in printed
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "accuracy": 1.0,
        "classes": ["bright", "dark"],
    }
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.id2label == {
        0: "bright",
        1: "dark",
    }


@pytest.mark.slow
def test_keras(folder, tmp_path):
    run(
        "keras_finetune.py",
        folder,
        "--model",
        "tiny",
        "--out",
        tmp_path / "model",
        "--epochs",
        "1",
        "--size",
        "64",
        KERAS_BACKEND="jax",
    )
    assert (
        AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.num_labels == 2
    )


@pytest.mark.slow
def test_tokenizer_and_pretraining(tmp_path):
    data = data_dir()
    run(
        "train_dvae.py",
        data / "images" / "cifar100" / "train",
        tmp_path / "dvae",
        "--steps",
        "3",
        "--batch-size",
        "4",
    )
    assert DalleImageTokenizer.from_pretrained(tmp_path / "dvae").vocab_size > 1
    few = (
        "--images",
        "64",
        "--views",
        "1",
        "--steps",
        "2",
        "--shots",
        "2",
        "--tune-steps",
        "2",
        "--rates",
        "1e-3",
    )
    run("beit_pretrain.py", data, tmp_path / "dvae", tmp_path / "beit", *few)
    summary = json.loads((tmp_path / "beit" / "summary.json").read_text())
    assert {
        f"cifar10_accuracy_{start}_{part}"
        for start in ("random", "pretrained")
        for part in ("head", "all")
    } < set(summary)
