"""Fixtures of these tests."""

import pytest

from headstart import YosoTokenizer
from tokenizer_cases import FOLDER


@pytest.fixture(scope="module")
def small():
    return YosoTokenizer.from_pretrained(FOLDER)
