"""Small BEiT networks in Flax."""

import os
import subprocess
import sys

import numpy as np
import torch

from headstart import BeitConfig, BeitForImageClassification

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": [24, 40],
    "patch_size": 8,
    "vocab_size": 17,
    "num_labels": 5,
    "use_relative_position_bias": True,
    "drop_path_rate": 0.0,
}
TWO = {"num_hidden_layers": 2}


def images(height=24, width=40, batch=2):
    return np.random.default_rng(0).standard_normal((batch, 3, height, width), np.float32)


def saved(folder, cls=BeitForImageClassification, **values):
    """A PyTorch network whose weights are all large enough to matter, in a folder."""
    torch.manual_seed(0)
    model = cls(BeitConfig(**(SMALL | values))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
