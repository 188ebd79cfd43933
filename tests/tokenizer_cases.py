"""Texts and calls on which our tokenizer must agree with transformers' RobertaTokenizerFast.

`python tests/tokenizer_cases.py` (with transformers installed) records its answers in
`tests/golden/tokenizer/cases.json`.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "golden" / "tokenizer"
TEXTS = [
    "Hello world!",
    "  two  spaces\tand\nlines ",
    "",
    " ",
    "a",
    "don't they've I'm we'll HE'S",
    "café naïve coöperate",
    "日本語のテキスト。",
    "emoji 👩‍👩‍👧 and 🇩🇪 flags",
    "The capital of France is <mask>.",
    "a <mask>b <mask> </s> <s>x<pad><unk>",
    "x=1; y[2]{3}(4) #!$%^&*_+|~`",
    "1234567890 3.14 1,000",
    "\u00a0nbsp\u2003em\u200bzero",
    "ﬁ ligature Å Å",
    "tab\tend\t",
    "UPPER lower MiXeD",
    "e\u0301 combining",
    "\x00\x7f",
    (
        "To Sherlock Holmes she is always THE woman. I have seldom heard him mention her under any"
        " other name."
    ),
]
PAIRS = [
    ("Who is she?", "The woman."),
    ("", "b"),
    ("a", ""),
    (" space", " space "),
    (TEXTS[-1], TEXTS[7]),
]
WORDS = [
    ["Hello", "world", "!"],
    ["-LRB-", "日本", "don't", "<mask>"],
    ["a"],
    ["", "b"],
    [" x", "y "],
]
FLAGS = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
}
LONG = ["one two three four five six seven eight nine ten eleven twelve", "short one"]
CALLS = [
    {"text": TEXTS, **FLAGS},
    {"text": TEXTS, "add_special_tokens": False, **FLAGS},
    {"text": TEXTS, "padding": True, "pad_to_multiple_of": 8},
    {"text": [a for a, _ in PAIRS], "text_pair": [b for _, b in PAIRS], "padding": True, **FLAGS},
    {"text": LONG, "truncation": True, "max_length": 8, "padding": "max_length", **FLAGS},
    {
        "text": LONG,
        "truncation": True,
        "max_length": 8,
        "stride": 2,
        "return_overflowing_tokens": True,
        **FLAGS,
    },
    {
        "text": ["Who?", "Where is it?"],
        "text_pair": LONG,
        "truncation": "only_second",
        "max_length": 14,
        "stride": 3,
        "return_overflowing_tokens": True,
        "padding": True,
        **FLAGS,
    },
    {
        "text": LONG,
        "text_pair": ["b b b b b b b b b b b b", "c"],
        "truncation": "longest_first",
        "max_length": 12,
        **FLAGS,
    },
    {"text": LONG, "text_pair": ["b b", "c"], "truncation": "only_first", "max_length": 12},
    {"text": WORDS, "is_split_into_words": True, **FLAGS},
    {"text": WORDS[0], "is_split_into_words": True, "truncation": True, "max_length": 4},
    {"text": "one text", **FLAGS},
    {"text": "one text", "text_pair": "and another", **FLAGS},
]


def answers(tokenizer, call):
    """Everything that a call tells, as plain data."""
    out = tokenizer(**call)
    data = json.loads(json.dumps({key: out[key] for key in out}))
    rows = (
        len(out["input_ids"]) if out["input_ids"] and isinstance(out["input_ids"][0], list) else 1
    )
    ids = (
        data["input_ids"]
        if rows > 1 or isinstance(data["input_ids"][0], list)
        else [data["input_ids"]]
    )
    return data | {
        "word_ids": [out.word_ids(i) for i in range(rows)],
        "sequence_ids": [out.sequence_ids(i) for i in range(rows)],
        "decoded": [tokenizer.decode(each) for each in ids],
        "plain": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
    }


def fuzzed(count, seed=0):
    """Random texts of letters, signs, spaces, other scripts and special tokens."""
    rng = random.Random(seed)
    pieces = [
        *"abcdefghij XYZ 0189 .,;:!?'\"-()[]<>/\\\t\n",
        " ",
        "  ",
        "the ",
        "ing",
        "'s",
        "<mask>",
        "</s>",
        "<pad>",
    ]
    pieces += ["é", "ß", "Ж", "中", "🎉", "\u200d", "ا"]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 60))) for _ in range(count)]


def record():
    """Writes what transformers answers."""
    from transformers import RobertaTokenizerFast

    files = {"vocab_file": str(FOLDER / "vocab.json"), "merges_file": str(FOLDER / "merges.txt")}
    plain = RobertaTokenizerFast(**files, clean_up_tokenization_spaces=False)
    spaced = RobertaTokenizerFast(
        **files, clean_up_tokenization_spaces=False, add_prefix_space=True
    )
    cases = [answers(spaced if call.get("is_split_into_words") else plain, call) for call in CALLS]
    (FOLDER / "cases.json").write_text(json.dumps(cases, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    record()
