"""Fixtures of these tests."""

import pytest
import torch

from conftest import ROOT
from headstart import YosoConfig, YosoForMaskedLM, YosoTokenizer
from text_runs import sentences, write


@pytest.fixture(scope="session")
def tiny_yoso(tmp_path_factory):
    """A YOSO of a few thousand weights with its tokenizer."""
    folder = tmp_path_factory.mktemp("yoso")
    torch.manual_seed(0)
    tokenizer = YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")
    config = YosoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        hash_code_len=4,
        initializer_range=0.1,
        layer_norm_eps=1e-5,
    )
    YosoForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moods")
    write(folder / "train.tsv", sentences(80), ("text", "label"))
    write(folder / "dev.tsv", sentences(40, seed=1), ("text", "label"))
    return folder
