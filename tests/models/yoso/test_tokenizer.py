"""YOSO's tokenizer against transformers' recorded answers, live against transformers where it is
installed, and its own promises.
"""

import importlib.util
import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from conftest import data_dir
from headstart import AutoTokenizer, YosoTokenizer
from headstart.errors import ConfigError, FileFormatError, InputError, NotFoundError
from headstart.models.yoso.config import YosoConfig
from tokenizer_cases import CALLS, FOLDER, PAIRS, TEXTS, answers, fuzzed

CASES = json.loads((FOLDER / "cases.json").read_text())
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.mark.parametrize("i", range(len(CALLS)))
def test_recorded_answers(small, i):
    ours = json.loads(json.dumps(answers(small, CALLS[i])))
    assert ours.keys() == CASES[i].keys()
    for key, value in CASES[i].items():
        assert ours[key] == value, key


@pytest.mark.peers
@needs_transformers
@pytest.mark.parametrize("vocabulary", ["small", "roberta-base"])
def test_equal_to_transformers_on_random_texts(vocabulary):
    from transformers import AddedToken, RobertaTokenizerFast

    folder = FOLDER if vocabulary == "small" else data_dir("tokenizer", "roberta-base")
    ours = YosoTokenizer.from_pretrained(folder)
    # transformers 4 lets the mask take the space before it by itself, 5 only where a file says so.
    values = {
        "clean_up_tokenization_spaces": False,
        "mask_token": AddedToken("<mask>", lstrip=True, special=True),
    }
    plain, spaced = (
        RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=s, **values)
        for s in (False, True)
    )
    texts, rng = fuzzed(400), random.Random(1)
    flags = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    for text in texts:
        assert answers(ours, {"text": text, **flags}) == answers(plain, {"text": text, **flags}), (
            repr(text)
        )
        words = text.split(" ")
        split = {"text": words, "is_split_into_words": True, **flags}
        assert answers(ours, split) == answers(spaced, split), words
    for _ in range(100):
        some = rng.sample(texts, 4)
        call = {
            "text": some[:2],
            "text_pair": some[2:],
            "truncation": "longest_first",
            "max_length": rng.randint(10, 40),
            "padding": rng.choice([True, False, "max_length"]),
            **flags,
        }
        assert answers(ours, call) == answers(plain, call), call
    for call in CALLS:
        theirs = spaced if call.get("is_split_into_words") else plain
        assert json.dumps(answers(ours, call), sort_keys=True) == json.dumps(
            answers(theirs, call), sort_keys=True
        ), call


@pytest.mark.peers
@needs_transformers
def test_transformers_reads_what_we_save(small, tmp_path):
    from transformers import AutoTokenizer as TheirAutoTokenizer

    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(YosoConfig().to_dict()))
    theirs = TheirAutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text)["input_ids"] for text in TEXTS] == [
        small(text)["input_ids"] for text in TEXTS
    ]
    assert theirs.mask_token_id == small.mask_token_id


def test_roberta_vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(data_dir("tokenizer", "roberta-base"))
    assert len(tokenizer) == tokenizer.vocab_size == 50265 and tokenizer.model_max_length == 512
    assert tokenizer("Hello world!")["input_ids"] == [0, 31414, 232, 328, 2]
    assert (
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    ) == (0, 1, 2, 50264)
    # The page's example, word for word: it prints [MASK], which the vocabulary does not have.
    inputs = tokenizer("The capital of France is [MASK].", return_tensors="pt")
    mask_token_index = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]
    assert mask_token_index.tolist() == [6]
    labels = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
    labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)
    assert tokenizer.decode(labels[0, 6]) == " Paris"


def test_mask_alias_keeps_offsets_and_can_be_turned_off(small):
    text = "it is [MASK] here"
    out = small(text, return_offsets_mapping=True)
    at = out.input_ids.index(small.mask_token_id)
    first, last = out.offset_mapping[at]
    assert text[first:last].strip() == "[MASK]"
    literal = YosoTokenizer.from_pretrained(FOLDER, mask_alias=None)
    assert (
        small.mask_token_id not in literal(text).input_ids
        and literal.decode(literal(text).input_ids, True) == text
    )


@pytest.mark.parametrize("text", fuzzed(60, seed=3))
def test_decoding_gives_the_text_back(small, text):
    text = text.replace("<", "(")  # special tokens take spaces with them
    assert small.decode(small(text, add_special_tokens=False).input_ids) == text


def test_offsets_and_words_of_characters(small):
    text = "To Sherlock Holmes she is always"
    out = small([text, "x"], return_offsets_mapping=True)
    for at, (first, last) in enumerate(out["offset_mapping"][0]):
        for char in range(first, last):
            assert out.char_to_token(0, char) == at
            assert out.token_to_chars(0, at) == (first, last)
    word = out.char_to_word(text.index("Holmes"))
    assert text[slice(*out.word_to_chars(word))].strip() == "Holmes"
    begin, end = out.word_to_tokens(0, word)
    assert small.decode(out.input_ids[0][begin:end]).strip() == "Holmes"
    assert out.token_to_word(begin) == word and out.token_to_sequence(0, begin) == 0
    assert out.n_sequences == 1 and out.is_fast and out[0].ids == out.input_ids[0]


@pytest.mark.parametrize("kind", [None, "np", "pt"])
def test_tensors(small, kind):
    out = small(["a cat", "a cat sat down"], padding=True, return_tensors=kind)
    assert (
        type(out.input_ids).__module__.split(".")[0]
        == {None: "builtins", "np": "numpy", "pt": "torch"}[kind]
    )
    if kind:
        assert (
            out["input_ids"].shape == out.attention_mask.shape
            and out.attention_mask[0].sum() < out.attention_mask[1].sum()
        )
        assert str(out.input_ids.dtype).endswith("int64")
    if kind == "pt":
        assert (
            out.to("cpu").word_ids(1)[0] is None and out.to("meta").input_ids.device.type == "meta"
        )


def test_left_padding_and_pad(small):
    left = YosoTokenizer.from_pretrained(FOLDER, padding_side="left", truncation_side="left")
    out = left(["a", "a cat sat"], padding=True)
    assert out.attention_mask[0][0] == 0 and out.attention_mask[0][-1] == 1
    text = "one two three"
    assert left(text, truncation=True, max_length=4).input_ids[1:-1] == small(text).input_ids[-3:-1]
    rows = [small("a"), small("a cat sat")]
    for given in (rows, {"input_ids": [r["input_ids"] for r in rows]}):
        batch = small.pad(given, return_tensors="np", pad_to_multiple_of=4)
        assert batch.input_ids.shape[1] % 4 == 0
        assert np.array_equal(
            batch.attention_mask, (batch.input_ids != small.pad_token_id).astype(int)
        )
    assert small.pad(rows[0], padding="max_length", max_length=9).input_ids[-1] == 1


def test_tokens_and_numbers(small):
    tokens = small.tokenize("To Sherlock<mask>")
    ids = small.convert_tokens_to_ids(tokens)
    assert small.convert_ids_to_tokens(ids) == tokens and ids == small.encode(
        "To Sherlock<mask>", add_special_tokens=False
    )
    assert small.convert_tokens_to_string(tokens).strip() == "To Sherlock<mask>"
    assert small.convert_tokens_to_ids("no such token") == small.unk_token_id == 3
    assert small.convert_ids_to_tokens(
        [0, 5, 2], skip_special_tokens=True
    ) == small.convert_ids_to_tokens([5])
    assert small.all_special_ids == [0, 1, 2, 3, 4]
    assert small.num_special_tokens_to_add() == 2 and small.num_special_tokens_to_add(True) == 4
    assert small.batch_decode(torch.tensor([[0, 5, 2]]), skip_special_tokens=True) == [
        small.decode([5])
    ]
    assert (
        small.decode(small("a , b 's c .").input_ids, True, clean_up_tokenization_spaces=True)
        == "a, b's c."
    )
    assert small.get_vocab()["<mask>"] == 4 and small.special_tokens_map["mask_token"] == "<mask>"


def test_added_tokens(tmp_path):
    tokenizer = YosoTokenizer.from_pretrained(FOLDER)
    before = len(tokenizer)
    assert tokenizer.add_tokens(["headstart", "<ent>"]) == 2 and len(tokenizer) == before + 2
    assert tokenizer.tokenize("xheadstarty") == ["x", "headstart", "y"]
    split = ["a", "<ent>"]
    assert before + 1 in tokenizer(split, is_split_into_words=True).input_ids
    tokenizer.save_pretrained(tmp_path)
    again = YosoTokenizer.from_pretrained(tmp_path)
    assert len(again) == before + 2 and again.tokenize("xheadstarty") == ["x", "headstart", "y"]


@pytest.mark.parametrize(
    "kept",
    [
        ("tokenizer.json", "tokenizer_config.json"),
        ("vocab.json", "merges.txt", "special_tokens_map.json"),
    ],
)
def test_saved_files_are_enough(kept, tmp_path):
    first = YosoTokenizer.from_pretrained(
        FOLDER, model_max_length=4096, add_prefix_space="tokenizer.json" in kept
    )
    first.save_pretrained(tmp_path)
    for path in list(tmp_path.iterdir()):
        if path.name not in kept:
            path.unlink()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(t).input_ids for t in TEXTS] == [first(t).input_ids for t in TEXTS]
    if "tokenizer_config.json" in kept:
        assert again.model_max_length == 4096 and again.add_prefix_space


def test_pickle_and_threads(small):
    again = pickle.loads(pickle.dumps(small))
    calls = [
        {"text": text, "truncation": True, "max_length": 4 + i % 9}
        for i, text in enumerate(TEXTS * 5)
    ]
    expected = [small(**call)["input_ids"] for call in calls]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda call: again(**call)["input_ids"], calls)) == expected
    assert all(len(ids) <= 4 + i % 9 for i, ids in enumerate(expected))


def test_pairs_in_one_list(small):
    assert small(PAIRS).input_ids == small([a for a, _ in PAIRS], [b for _, b in PAIRS]).input_ids
    assert small([]).input_ids == []


@pytest.mark.parametrize(
    "call, message",
    [
        ({"text": 3}, "text is int"),
        ({"text": ["a", 3]}, "text 2 of 2 is int"),
        ({"text": [["a", "b", "c"]]}, "is_split_into_words"),
        ({"text": ["a"], "text_pair": ["b", "c"]}, "1 texts and 2 second texts"),
        ({"text": ["a", "a b c d"], "return_tensors": "pt"}, "padding=True"),
        ({"text": "a", "padding": "longst"}, "padding='longst'"),
        ({"text": "a", "truncation": "first"}, "truncation='first'"),
        ({"text": "a", "truncation": True, "max_length": 2}, "leaves 0 tokens"),
        ({"text": "a", "truncation": True, "max_length": 8, "stride": 6}, "stride=6"),
        (
            {
                "text": "a b c d e f g",
                "text_pair": "b",
                "truncation": "only_second",
                "max_length": 9,
            },
            "raise max_length",
        ),
        ({"text": "a", "truncation": "only_second", "max_length": 9}, "no second texts"),
        ({"text": "a", "return_tensors": "mx"}, "return_tensors='mx'"),
    ],
)
def test_bad_calls(small, call, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        small(**call)


def test_bad_files(tmp_path):
    with pytest.raises(NotFoundError, match="no tokenizer"):
        YosoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="give vocab and merges"):
        YosoTokenizer()
    with pytest.raises(ConfigError, match="no argument masc_token"):
        YosoTokenizer({}, [], masc_token="x")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(FileFormatError, match="'b', which is not in the vocabulary"):
        YosoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(FileFormatError, match="is not JSON"):
        YosoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(FileFormatError, match="does not describe a tokenizer"):
        YosoTokenizer.from_pretrained(tmp_path)
