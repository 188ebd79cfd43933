"""What a tokenizer returns.

Numbers by name, and the way from tokens to words and characters and back.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from tokenizers import Encoding

from headstart.errors import InputError
from headstart.images.processor import BatchFeature, to_framework


class BatchEncoding(BatchFeature):
    """A dict of batches whose keys are attributes too, and which goes into a network as
    `model(**inputs)`.

    Methods that take a number of a text and a number inside it also take the second alone, for the
    first text.

    Args:
        data: Name → lists, arrays or tensors.
        encodings: The library's view of each text, which knows words and characters.

    Example:
        >>> from headstart import YosoTokenizer
        >>> batch = YosoTokenizer.train(["a cat sat", "a cat ran"], vocab_size=280)(["a cat"])
        >>> batch.word_ids(0)[1:-1], batch.char_to_token(0, 0)
        ([0, 1], 1)
    """

    def __init__(
        self, data: Mapping[str, Any] | None = None, encodings: list[Encoding] | None = None
    ) -> None:
        super().__init__(data or {})
        self.__dict__["encodings"] = encodings or []

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return (
            self._encoding(key)
            if isinstance(key, int)
            else {name: value[key] for name, value in self.items()}
        )

    def _encoding(self, index: int) -> Encoding:
        encodings: list[Encoding] = self.__dict__["encodings"]
        if not encodings:
            raise InputError(
                "these inputs were not made by a tokenizer's call, so nothing is known of their"
                " words and characters"
            )
        return encodings[index]

    @property
    def is_fast(self) -> bool:
        """Whether words and characters are known."""
        return bool(self.__dict__["encodings"])

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs."""
        return self._encoding(0).n_sequences if self.is_fast else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a text."""
        return list(self._encoding(batch_index).tokens)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The word that each token is of; None for special tokens."""
        return list(self._encoding(batch_index).word_ids)

    words = word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the first text, 1 of the second, None for special tokens."""
        return list(self._encoding(batch_index).sequence_ids)

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """0 or 1: the text of a pair that a token is of."""
        i, at = _two(batch_or_token_index, token_index)
        return self._encoding(i).token_to_sequence(self._from_end(i, at))

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The word that a token is of."""
        i, at = _two(batch_or_token_index, token_index)
        found = self._encoding(i).token_to_word(self._from_end(i, at))
        return None if found is None else int(found)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> tuple[int, int] | None:
        """First character of a token, and the one after its last."""
        i, at = _two(batch_or_token_index, token_index)
        return self._encoding(i).token_to_chars(self._from_end(i, at))

    def _from_end(self, index: int, at: int) -> int:
        return at + len(self._encoding(index)) if at < 0 else at

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> tuple[int, int] | None:
        """First token of a word, and the one after its last."""
        i, at = _two(batch_or_word_index, word_index)
        return self._encoding(i).word_to_tokens(at, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> tuple[int, int] | None:
        """First character of a word, and the one after its last."""
        i, at = _two(batch_or_word_index, word_index)
        return self._encoding(i).word_to_chars(at, sequence_index)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character is in; None between tokens."""
        i, at = _two(batch_or_char_index, char_index)
        return self._encoding(i).char_to_token(at, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that a character is in."""
        i, at = _two(batch_or_char_index, char_index)
        return self._encoding(i).char_to_word(at, sequence_index)

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> Self:
        """Itself, with arrays or tensors ("np", "pt", "jax", "tf") in place of lists; with
        `prepend_batch_axis` as a batch of one text.

        Raises:
            InputError: Texts of different lengths.
        """
        if tensor_type is None:
            return self
        for key, value in self.items():
            if isinstance(value, int | list):
                value = [value] if prepend_batch_axis else value
                widths = {len(each) for each in _lists(value)}
                if len(widths) > 1:
                    raise InputError(
                        f"{key} have from {min(widths)} to {max(widths)} tokens and cannot be one"
                        " tensor; pass padding=True, and truncation=True for a limit"
                    )
                array = np.asarray(value, np.float32 if _has_float(value) else np.int64)
                self[key] = to_framework(array, tensor_type)
        return self


def _two(first: int, second: int | None) -> tuple[int, int]:
    return (0, first) if second is None else (first, second)


def _lists(value: Any) -> list[list[Any]]:
    """The lists that a list holds."""
    return [each for each in value if isinstance(each, list)] if isinstance(value, list) else []


def _has_float(value: Any) -> bool:
    return (
        any(_has_float(each) for each in value)
        if isinstance(value, list | tuple)
        else isinstance(value, float)
    )


def plain(value: Any) -> Any:
    """Lists of numbers from arrays and tensors of any framework."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.numpy().tolist() if hasattr(value, "numpy") else value


def filled(values: list[int], length: int, value: int, side: str) -> list[int]:
    """A list, padded to a length."""
    more = [value] * (length - len(values))
    return more + list(values) if side == "left" else list(values) + more


def listed_inputs(value: Any, single: bool) -> list[Any] | None:
    """Inputs as a list: the one of a single call or those of a batch; None if not given."""
    if value is None:
        return None
    if single:
        return [value]
    return list(value) if is_list(value) else None


def is_list(value: Any) -> bool:
    """Whether a value holds several texts or words."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def choice(name: str, value: Any, words: Mapping[Any, str], allowed: tuple[str, ...]) -> str:
    """An option that is a boolean or a string; "" is off."""
    if not isinstance(value, str) or value in words:
        if isinstance(value, bool | str | None):
            return words[value]
    elif value in allowed:
        return value
    raise InputError(f"{name}={value!r}; expected True, False, {', '.join(map(repr, allowed))}")
