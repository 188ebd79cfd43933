"""Pipelines of texts beside transformers' own, on the same weights.

The same calls give the same.
"""

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

import headstart  # noqa: E402
from conftest import ROOT  # noqa: E402

TEXTS = [
    "The house was seen by Ann Lee, who went on unbelievably far.",
    "We went.",
    "Nobody in the little town of Rome had seen a man so angry; they all said so, and went home.",
]
# Without padding, clipping and with one activation the two compute the same.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "hash_code_len": 4,
    "initializer_range": 0.3,
    "head_act": "gelu",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our pipeline and theirs for a task."""

    def make(task, cls, **values):
        folder = tmp_path_factory.mktemp(task)
        tokenizer = headstart.YosoTokenizer.from_pretrained(ROOT / "tests" / "golden" / "tokenizer")
        torch.manual_seed(0)
        getattr(headstart, cls)(
            headstart.YosoConfig(vocab_size=len(tokenizer), **SMALL, **values)
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        theirs_tokenizer = transformers.RobertaTokenizerFast.from_pretrained(folder)
        theirs_tokenizer.model_input_names = ["input_ids", "attention_mask"]
        model = getattr(transformers, cls).from_pretrained(folder).eval()
        theirs = transformers.pipeline(task, model=model, tokenizer=theirs_tokenizer)
        return headstart.pipeline(task, folder, batch_size=1), theirs

    return make


def assert_same(ours, theirs, path=""):
    """Equal structures; numbers to 1e-4."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), (path, ours, theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), (path, ours, theirs)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(theirs, float | np.floating):
        assert ours == pytest.approx(float(theirs), abs=1e-4), path
    else:
        assert ours == theirs, path


@pytest.mark.peers
def test_text_classification(pair):
    ours, theirs = pair(
        "text-classification",
        "YosoForSequenceClassification",
        id2label={0: "bad", 1: "good", 2: "odd"},
    )
    for inputs, options in (
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS[0], {"top_k": None}),
        (TEXTS, {"top_k": 2}),
        (TEXTS, {"function_to_apply": "sigmoid"}),
        ({"text": TEXTS[0], "text_pair": TEXTS[1]}, {"top_k": None}),
    ):
        wanted = theirs(inputs, **options)
        if isinstance(inputs, dict) and isinstance(wanted, dict):
            wanted = [wanted]
        assert_same(ours(inputs, **options), wanted)


@pytest.mark.peers
def test_fill_mask(pair):
    ours, theirs = pair("fill-mask", "YosoForMaskedLM")
    one, two = "The house was <mask> by a man.", "A <mask> and a <mask> went."
    for inputs, options in (
        (one, {}),
        ([one, one.replace("house", "man")], {"top_k": 3}),
        (two, {"top_k": 2}),
        ([one], {}),
    ):
        wanted = theirs(inputs, **options)
        found = ours(inputs, **options)
        assert_same(
            found if isinstance(wanted[0], list) or not isinstance(inputs, list) else found[0],
            wanted,
        )
    assert_same(ours(one, targets=[" house", " by"]), theirs(one, targets=[" house", " by"]))


@pytest.mark.peers
# the others count a comma to the word before it there
@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_token_classification(pair, strategy):
    ours, theirs = pair(
        "token-classification",
        "YosoForTokenClassification",
        id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"},
    )
    for text in TEXTS:
        wanted = theirs(text, aggregation_strategy=strategy)
        found = ours(text, aggregation_strategy=strategy)
        if strategy == "none":
            assert_same(found, wanted)
        else:  # the words are put together by them, and cut out of the text by us
            keys = ("entity_group", "score", "start", "end")
            assert_same(
                [{key: each[key] for key in keys} for each in found],
                [{key: each[key] for key in keys} for each in wanted],
            )


@pytest.mark.peers
# transformers 4.57 under NumPy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_question_answering(pair):
    if "question-answering" not in transformers.pipelines.SUPPORTED_TASKS:
        pytest.skip("transformers 5 has no question-answering pipeline; 4.57 has")
    ours, theirs = pair("question-answering", "YosoForQuestionAnswering")
    for context, options in (
        (TEXTS[2], {}),
        (TEXTS[0], {"top_k": 3}),
        (TEXTS[2], {"top_k": 2, "max_answer_len": 3}),
    ):
        wanted = theirs(question="Who went?", context=context, **options)
        assert_same(ours(question="Who went?", context=context, **options), wanted)
