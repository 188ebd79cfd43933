"""transformers' pipelines with our networks, processors and tokenizers as objects."""

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

import headstart  # noqa: E402
from contract.test_models import BEIT, SEG, YOSO  # noqa: E402

TEXTS = ["a cat sat on the mat", "hello world"] * 4


def network(cls, values):
    torch.manual_seed(0)
    made = getattr(headstart, cls)
    return made(made.config_class(**values)).eval()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # those of the other library
@pytest.mark.parametrize(
    "task, cls, key",
    [
        ("image-classification", "BeitForImageClassification", "label"),
        ("image-segmentation", "BeitForSemanticSegmentation", "mask"),
        ("text-classification", "YosoForSequenceClassification", "label"),
        ("token-classification", "YosoForTokenClassification", "entity"),
        ("fill-mask", "YosoForMaskedLM", "token_str"),
    ],
)
def test_tasks_of_the_pages(task, cls, key):
    if cls.startswith("Yoso"):
        tokenizer = headstart.YosoTokenizer.train(TEXTS, vocab_size=280)
        given = {"tokenizer": tokenizer}
        model = network(cls, YOSO | {"vocab_size": len(tokenizer)})
        inputs = "a <mask>" if task == "fill-mask" else "a cat"
    else:
        side = 64 if task == "image-segmentation" else 32
        given = {"image_processor": headstart.BeitImageProcessor(size=side, do_center_crop=False)}
        model = network(cls, SEG if side == 64 else BEIT)
        inputs = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 70, 3), np.uint8))
    answers = transformers.pipeline(task, model=model, **given)(inputs)
    assert answers and key in answers[0]
