"""Fixtures of these tests."""

import pytest

import headstart
from bit_networks import made


@pytest.fixture
def folder(tmp_path):
    made().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with an image model in "bit", and one with a tokenizer in "yoso"."""
    root = tmp_path_factory.mktemp("hub")
    made().save_pretrained(root / "bit")
    headstart.BitImageProcessor(size={"shortest_edge": 40}).save_pretrained(root / "bit")
    headstart.YosoTokenizer.train(["a cat"] * 3, vocab_size=265).save_pretrained(root / "yoso")
    return root
