"""Small BEiT networks in Flax."""

import os
import subprocess
import sys

import numpy as np
import torch

from beit_networks import SMALL
from headstart import BeitConfig, BeitForImageClassification

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
