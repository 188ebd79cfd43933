"""Calls of the tokenizer as code for version 4 of transformers writes them."""

import pickle

import numpy as np
import pytest
import torch

from headstart import BatchFeature, YosoTokenizer
from headstart.errors import ConfigError, InputError
from tokenizer_cases import FOLDER


def plain_values(out):
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in out.items()}


V4_CALLS = {  # recorded from RobertaTokenizerFast and RobertaTokenizer of transformers 4.57.6
    't.encode_plus("it is cold", "a b", True, "max_length", "longest_first", 12)': {
        "input_ids": [0, 278, 329, 623, 322, 2, 2, 69, 276, 2, 1, 1],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    },
    (
        't.encode_plus("it is cold and warm", max_length=5, truncation=True, '
        "return_special_tokens_mask=True, return_token_type_ids=True)"
    ): {
        "input_ids": [0, 278, 329, 623, 2],
        "token_type_ids": [0, 0, 0, 0, 0],
        "attention_mask": [1, 1, 1, 1, 1],
        "special_tokens_mask": [1, 0, 0, 0, 1],
    },
    (
        't.batch_encode_plus([("it is","b"),("a cat sat there","c d")], padding="max_length", '
        'max_length=16, truncation=True, padding_side="left")'
    ): {
        "input_ids": [
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 278, 329, 2, 2, 70, 2],
            [1, 1, 1, 1, 0, 69, 277, 305, 266, 305, 440, 2, 2, 71, 288, 2],
        ],
        "attention_mask": [
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ],
    },
    't("it is", "b", None, None, False, "max_length", True, 12, 0, False, None, "left")': {
        "input_ids": [1, 1, 1, 1, 1, 1, 1, 1, 1, 278, 329, 70],
        "attention_mask": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    },
    't.encode("it is", "b", False, "max_length", True, 12, 0)': [
        278,
        329,
        70,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
    ],
    (
        "t.prepare_for_model([5,6,7,8,9,10],[11,12,13], truncation=True, max_length=8, "
        "return_token_type_ids=True, return_special_tokens_mask=True)"
    ): {
        "input_ids": [0, 5, 6, 2, 2, 11, 12, 2],
        "token_type_ids": [0, 0, 0, 0, 0, 0, 0, 0],
        "special_tokens_mask": [1, 0, 0, 1, 1, 0, 0, 1],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1],
    },
    (
        't.prepare_for_model([5,6,7,8,9,10],[11,12,13], truncation="only_first", max_length=10, '
        "stride=1, return_overflowing_tokens=True, return_length=True)"
    ): {
        "overflowing_tokens": [7, 8, 9, 10],
        "num_truncated_tokens": 3,
        "input_ids": [0, 5, 6, 7, 2, 2, 11, 12, 13, 2],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        "length": 10,
    },
    (
        't.prepare_for_model([5,6,7],[8,9,10,11,12,13], truncation="only_second", max_length=10, '
        "stride=2, return_overflowing_tokens=True)"
    ): {
        "overflowing_tokens": [9, 10, 11, 12, 13],
        "num_truncated_tokens": 3,
        "input_ids": [0, 5, 6, 7, 2, 2, 8, 9, 10, 2],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    },
    (
        "t.prepare_for_model([5,6,7,8,9,10], truncation=True, max_length=5, "
        "return_overflowing_tokens=True, return_length=True)"
    ): {
        "overflowing_tokens": [8, 9, 10],
        "num_truncated_tokens": 3,
        "input_ids": [0, 5, 6, 7, 2],
        "attention_mask": [1, 1, 1, 1, 1],
        "length": 5,
    },
    't.prepare_for_model([5,6], padding="max_length", max_length=9, pad_to_multiple_of=4)': {
        "input_ids": [0, 5, 6, 2, 1, 1, 1, 1, 1, 1, 1, 1],
        "attention_mask": [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    't.encode_plus("it is cold and warm", None, True, False, True, 5)': {
        "input_ids": [0, 278, 329, 623, 2],
        "attention_mask": [1, 1, 1, 1, 1],
    },
    't.batch_encode_plus(["it is","a cat sat there"], True, True)': {
        "input_ids": [[0, 278, 329, 2, 1, 1, 1, 1], [0, 69, 277, 305, 266, 305, 440, 2]],
        "attention_mask": [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    },
    (
        't.add_special_tokens({"additional_special_tokens": ["<a>"]}), '
        't.add_special_tokens({"additional_special_tokens": ["<b>"]}, False), '
        "t.additional_special_tokens, t.additional_special_tokens_ids"
    ): (1, 1, ["<a>", "<b>"], [700, 701]),
    "t.get_special_tokens_mask([5,6,7]), t.get_special_tokens_mask([5,6,7],[8,9])": (
        [1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 1, 0, 0, 1],
    ),
    (
        "t.build_inputs_with_special_tokens([5,6,7]), "
        "t.build_inputs_with_special_tokens([5,6,7],[8,9])"
    ): ([0, 5, 6, 7, 2], [0, 5, 6, 7, 2, 2, 8, 9, 2]),
    (
        "t.create_token_type_ids_from_sequences([5,6,7]), "
        "t.create_token_type_ids_from_sequences([5,6,7],[8,9])"
    ): ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]),
    "t.prepare_for_model([5,6,7,8,9,10])": {
        "input_ids": [0, 5, 6, 7, 8, 9, 10, 2],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1],
    },
    (
        't.prepare_for_model([5,6], add_special_tokens=False, return_tensors="np", '
        "prepend_batch_axis=True)"
    ): {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]},
    't.pad([{"input_ids":[5,6]},{"input_ids":[5,6,7]}], padding_side="left")': {
        "input_ids": [[1, 5, 6], [5, 6, 7]],
        "attention_mask": [[0, 1, 1], [1, 1, 1]],
    },
    't.pad({"input_ids":[[5,6],[5,6,7]]}, True, None, 8)': {
        "input_ids": [[5, 6, 1, 1, 1, 1, 1, 1], [5, 6, 7, 1, 1, 1, 1, 1]],
        "attention_mask": [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]],
    },
    "t.num_special_tokens_to_add(True)": 4,
    "t.truncate_sequences([1,2,3],[4,5],2)": ([1, 2], [4], []),
}


@pytest.mark.parametrize("call", V4_CALLS)
def test_calls_of_version_4(call):
    tokenizer = YosoTokenizer.from_pretrained(FOLDER)
    out = eval(call, {"t": tokenizer})
    assert (plain_values(out) if hasattr(out, "items") else out) == V4_CALLS[call]


def test_more_special_tokens_are_saved(tmp_path):
    tokenizer = YosoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]}) == 2
    assert tokenizer.add_special_tokens({"pad_token": "<fill>"}) == 1
    tokenizer.save_pretrained(tmp_path)
    again = YosoTokenizer.from_pretrained(tmp_path)
    assert again.additional_special_tokens == ["<a>", "<b>"] and again.pad_token == "<fill>"
    assert again.special_tokens_map == tokenizer.special_tokens_map
    text = "x <a> y"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == "x  y"
    assert pickle.loads(pickle.dumps(again)).additional_special_tokens == ["<a>", "<b>"]


def test_padding_by_another_number(small):
    tokenizer = YosoTokenizer.from_pretrained(FOLDER)
    tokenizer.pad_token_id = 5
    assert tokenizer.pad_token == tokenizer.convert_ids_to_tokens(5) and tokenizer.pad_token_id == 5
    assert tokenizer(["a", "a cat"], padding=True)["input_ids"][0][-1] == 5
    assert small.pad_token_id != 5
    with pytest.raises(InputError, match="pad_token_id=99999"):
        tokenizer.pad_token_id = 99999


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda t: t.add_special_tokens({"end_token": "x"}), ConfigError, "called end_token"),
        (
            lambda t: t.add_special_tokens({"additional_special_tokens": "x"}),
            ConfigError,
            "expected a list",
        ),
        (lambda t: t.batch_encode_plus("abc"), InputError, "is str; expected a list"),
        (lambda t: t("a", text_target="b"), InputError, "text_target"),
        (lambda t: t("a", padding_side="top"), InputError, "padding_side='top'"),
        (
            lambda t: t.prepare_for_model([5], return_offsets_mapping=True),
            InputError,
            "return_offsets_mapping=True",
        ),
        (
            lambda t: t.prepare_for_model([5] * 9, [6], truncation="only_second", max_length=9),
            InputError,
            "would have to take 5 of 1 tokens",
        ),
        (
            lambda t: t.get_special_tokens_mask([0, 2], [2], already_has_special_tokens=True),
            InputError,
            "token_ids_1",
        ),
    ],
)
def test_refused_calls_of_version_4(small, call, error, message):
    with pytest.raises(error, match=message):
        call(small)


def test_batches_move_in_place(small):
    batch = small(["a cat", "a"], padding=True)
    assert batch.convert_to_tensors("pt") is batch and isinstance(batch.input_ids, torch.Tensor)
    assert batch.to("meta") is batch and batch["input_ids"].device.type == "meta"
    one = small("a cat").convert_to_tensors("np", prepend_batch_axis=True)
    assert one.input_ids.shape[0] == 1
    images = BatchFeature({"pixel_values": [np.ones((3, 2, 5), np.float32)] * 2, "n": [1, 2]})
    assert images.convert_to_tensors("pt") is images
    assert images["pixel_values"].shape == (2, 3, 2, 5) and images["n"].tolist() == [1, 2]
    assert images.to(torch.bfloat16) is images
    assert images["pixel_values"].dtype == torch.bfloat16 and images["n"].dtype == torch.int64
    with pytest.raises(InputError, match="pixel_values have different shapes"):
        ragged = {"pixel_values": [np.ones((3, 2, 5)), np.ones((3, 4, 5))]}
        BatchFeature(ragged).convert_to_tensors("pt")
