"""What YOSO's tokenizer reads and writes: vocabularies, merges, special tokens, settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from headstart.checkpoint.documents import check_kind, read_object, read_text, value_of
from headstart.errors import ConfigError, FileFormatError

# Role → token, in the order of RoBERTa's vocabulary.
SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
MAX_VOCABULARY = 1 << 27  # the library makes a table up to the largest number
SETTINGS: dict[str, Any] = {
    "model_max_length": int | float,
    "padding_side": str,
    "truncation_side": str,
    "add_prefix_space": bool,
    "additional_special_tokens": list,
    **dict.fromkeys(SPECIAL, str | dict),
}


def bpe(vocab: Any, merges: Any) -> Tokenizer:
    """The library's tokenizer of a vocabulary and its merges, given as files or contents."""
    if vocab is None or merges is None:
        raise ConfigError(
            "give vocab and merges, or a ready tokenizer; YosoTokenizer.from_pretrained(folder)"
            " reads them from files"
        )
    if isinstance(vocab, str | Path):
        path = Path(vocab)
        vocab = read_object(path)
        check_kind(vocab, dict[str, int], f"{path}: the vocabulary")
        if any(not 0 <= number < MAX_VOCABULARY for number in vocab.values()):
            raise FileFormatError(f"{path} numbers tokens outside 0 to {MAX_VOCABULARY - 1}")
    if isinstance(merges, str | Path):
        path = Path(merges)
        lines = [
            line for line in read_text(path).split("\n") if line and not line.startswith("#version")
        ]
        merges = [tuple(line.split(" ")) for line in lines]
        wrong = next((i for i, pair in enumerate(merges) if len(pair) != 2), None)
        if wrong is not None:
            raise FileFormatError(f"{path}: {lines[wrong]!r:.80} is not a pair of tokens")
    unknown = next((part for a, b in merges for part in (a, b, a + b) if part not in vocab), None)
    if unknown is not None:
        raise FileFormatError(
            f"the merges have {unknown!r:.80}, which is not in the vocabulary; the two are of"
            " different tokenizers"
        )
    return Tokenizer(
        models.BPE(
            dict(vocab),
            list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )


def read_tokenizer(path: Path) -> tuple[Tokenizer, bool]:
    """The library's tokenizer in a tokenizer.json, and whether it splits a text's first word as one
    inside a text.

    Raises:
        FileFormatError: The file describes none.
    """
    space = read_object(path).get("pre_tokenizer") or {}
    check_kind(space, dict[str, Any], f"{path}: 'pre_tokenizer'")
    try:
        return Tokenizer.from_file(str(path)), bool(space.get("add_prefix_space", False))
    except BaseException as error:
        # The library raises plain exceptions, and its own kind where Rust panics.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise FileFormatError(f"{path} does not describe a tokenizer: {error}") from error


def read_settings(config: Path | None, special: Path | None) -> dict[str, Any]:
    """Arguments of the constructor from tokenizer_config.json and special_tokens_map.json."""
    values: dict[str, Any] = {}
    for path in (special, config):  # the newer file wins
        if path is not None:
            found = read_object(path)
            listed = found.get("added_tokens_decoder") or {}
            check_kind(listed, dict[str, dict[str, Any]], f"{path}: 'added_tokens_decoder'")
            flags = {value_of(each, "content", str, path): each for each in listed.values()}
            for key, kind in SETTINGS.items():
                check_kind(found.get(key), kind | None, f"{path}: {key!r}")
            for key, value in found.items():
                if (
                    key in SPECIAL
                    and value is not None
                    and not (isinstance(value, str) and key in values)
                ):
                    values[key] = flags.get(value, value) if isinstance(value, str) else value
                elif key in SETTINGS and key not in SPECIAL and value is not None:
                    values[key] = value
    return values


def as_added(value: Any, role: str) -> AddedToken:
    """A special token from its text, or from the object that files hold."""
    if isinstance(value, AddedToken):
        return value
    if value == "" or (isinstance(value, Mapping) and value.get("content") == ""):
        raise ConfigError(f"{role} is empty; expected a text")
    if isinstance(value, Mapping):
        flags = {
            key: bool(value[key])
            for key in ("single_word", "lstrip", "rstrip", "normalized")
            if key in value
        }
        content = value_of(value, "content", str, role, ConfigError)
        return AddedToken(content, special=True, **flags)
    if not isinstance(value, str):
        raise ConfigError(f"{role}={value!r:.80}; expected a text")
    # a mask takes the space before it
    return AddedToken(value, special=True, lstrip=role == "mask_token", normalized=False)


def added_values(token: AddedToken) -> dict[str, Any]:
    """A special token as files hold it."""
    return {
        key: getattr(token, key)
        for key in ("content", "single_word", "lstrip", "rstrip", "normalized")
    }


def pre_tokenizer_type(tokenizer: Tokenizer) -> str | None:
    """The word for how texts are cut before merging, None where they are not."""
    if tokenizer.pre_tokenizer is None:
        return None
    return str(json.loads(tokenizer.pre_tokenizer.__getstate__())["type"])
