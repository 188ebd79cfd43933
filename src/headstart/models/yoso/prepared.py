"""The part of YOSO's tokenizer that works on numbers of tokens, after or without texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from headstart.errors import InputError
from headstart.models.yoso.encoding import BatchEncoding, choice, filled, plain
from headstart.models.yoso.vocabulary import Vocabulary

UNLIMITED = int(1e30)  # what tokenizer_config.json writes for "no limit"
STRATEGIES = ("longest_first", "only_first", "only_second")


class PreparedIds(Vocabulary):
    """Frames, masks, cuts and padding of lists of numbers, in RoBERTa's layout.

    `<s> A </s>`, and `<s> A </s></s> B </s>` for pairs.
    """

    padding_side: str
    truncation_side: str

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Numbers of a text or a pair, with the special tokens around.

        Args:
            token_ids_0: Numbers of the text, without special tokens.
            token_ids_1: Those of the second text of a pair.

        Returns:
            `<s> A </s>`, or `<s> A </s></s> B </s>`.
        """
        cls, sep = self.cls_token_id, self.sep_token_id
        first: list[int] = [cls, *plain(list(token_ids_0)), sep]
        return first if token_ids_1 is None else [*first, sep, *plain(list(token_ids_1)), sep]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The segments of a text or a pair with its special tokens: all 0, as in RoBERTa."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Where special tokens are.

        Args:
            token_ids_0: Numbers of a text.
            token_ids_1: Those of the second text of a pair.
            already_has_special_tokens: Whether the numbers hold special tokens; otherwise the mask
                is of what `build_inputs_with_special_tokens` makes of them.

        Returns:
            1 for special tokens, 0 for others.

        Raises:
            InputError: A pair that has special tokens already.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError(
                    "token_ids_1 with already_has_special_tokens=True; a pair with special tokens"
                    " is one list of numbers: pass it as token_ids_0"
                )
            special = set(self.all_special_ids)
            return [int(number in special) for number in plain(list(token_ids_0))]
        mask = [1, *[0] * len(token_ids_0), 1]
        return mask if token_ids_1 is None else [*mask, 1, *[0] * len(token_ids_1), 1]

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """A text or pair of numbers without its last ones (the first ones, by `truncation_side`).

        Args:
            ids: Numbers of a text.
            pair_ids: Those of the second text of a pair.
            num_tokens_to_remove: How many to take away.
            truncation_strategy: "longest_first" takes from the longer text at each step,
                "only_first" and "only_second" from one of them.
            stride: Numbers before the cut that are among the third result.

        Returns:
            The two, and what was taken from the one text ("longest_first" of a pair: nothing).

        Raises:
            InputError: The text that is to be cut has too few tokens.
        """
        if num_tokens_to_remove <= 0:
            return ids, pair_ids, []
        second = truncation_strategy == "only_second"
        if pair_ids is not None and truncation_strategy == "longest_first":
            cut, cut_pair = list(ids), list(pair_ids)
            for _ in range(num_tokens_to_remove):
                longer = cut_pair if len(cut_pair) >= len(cut) else cut
                longer.pop(0 if self.truncation_side == "left" else -1)
            return cut, cut_pair, []
        whole = pair_ids if second else ids
        if whole is None or len(whole) <= num_tokens_to_remove:
            raise InputError(
                f"truncation={truncation_strategy!r} would have to take {num_tokens_to_remove} of"
                f" {len(whole or [])} tokens; raise max_length or use 'longest_first'"
            )
        keep, window = len(whole) - num_tokens_to_remove, num_tokens_to_remove + stride
        if self.truncation_side == "left":
            rest, taken = whole[-keep:], whole[:window]
        else:
            rest, taken = whole[:keep], whole[-window:]
        return (ids, rest, taken) if second else (rest, pair_ids, taken)

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """The inputs of a network from numbers of tokens without special tokens.

        Args:
            ids: Numbers of a text.
            pair_ids: Those of the second text of a pair.
            add_special_tokens: As all that follows, see `YosoTokenizer.__call__`.
            padding: True, "longest" or "max_length".
            truncation: True or "longest_first", "only_first", "only_second".
            max_length: Tokens at most.
            stride: Tokens before the cut among the overflowing ones.
            pad_to_multiple_of: Round the padded length up.
            padding_side: "right" or "left"; default the tokenizer's.
            return_tensors: "np", "pt", "jax", "tf", or None for lists.
            return_token_type_ids: Also segments.
            return_attention_mask: 1 for tokens, 0 for padding; None is True.
            return_overflowing_tokens: Also what was cut, and how much.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: Refused: numbers have no characters.
            return_length: Also the number of tokens.
            verbose: Takes no effect.
            prepend_batch_axis: Whether tensors get an axis of one text.

        Raises:
            InputError: Lengths that cannot be kept, or offsets.
        """
        if return_offsets_mapping:
            raise InputError("return_offsets_mapping=True; numbers of tokens have no characters")
        first = plain(list(ids))
        second = None if pair_ids is None else plain(list(pair_ids))
        words = {True: "longest_first", False: "", None: "", "do_not_truncate": ""}
        cuts = choice("truncation", truncation, words, STRATEGIES)
        if truncation is None and max_length is not None and not padding:
            cuts = "longest_first"
        frame = self.num_special_tokens_to_add(second is not None) if add_special_tokens else 0
        limit = self.model_max_length if max_length is None else max_length
        excess = len(first) + len(second or ()) + frame - limit
        taken: list[int] = []
        if cuts:
            first, second, taken = self.truncate_sequences(first, second, excess, cuts, stride)
        data: dict[str, Any] = {}
        if return_overflowing_tokens:
            data |= {"overflowing_tokens": taken, "num_truncated_tokens": excess}
        if add_special_tokens:
            data["input_ids"] = self.build_inputs_with_special_tokens(first, second)
            special = self.get_special_tokens_mask(first, second)
        else:
            data["input_ids"] = first + (second or [])
            special = [0] * len(data["input_ids"])
        if return_token_type_ids:
            data["token_type_ids"] = [0] * len(data["input_ids"])
        if return_special_tokens_mask:
            data["special_tokens_mask"] = special
        if return_length:
            data["length"] = len(data["input_ids"])
        batch = self.pad(
            data,
            padding,
            max_length,
            pad_to_multiple_of,
            padding_side,
            return_attention_mask is not False,
        )
        if prepend_batch_axis:
            batch = BatchEncoding({key: [value] for key, value in batch.items()})
        return batch.convert_to_tensors(return_tensors)

    def _side(self, given: str | None) -> str:
        if given not in (None, "right", "left"):
            raise InputError(f"padding_side={given!r}; expected 'right' or 'left'")
        return given or self.padding_side

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """One batch of examples that were encoded before.

        Args:
            encoded_inputs: What a call returned, a dict of lists, or a list of dicts; values of
                unknown names are kept as they are.
            padding: True or "longest", or "max_length".
            max_length: The length of "max_length".
            pad_to_multiple_of: Round the length up.
            padding_side: "right" or "left"; default the tokenizer's.
            return_attention_mask: Make the mask where it is not among the inputs; None is True.
            return_tensors: "np", "pt", "jax", "tf", or None for lists.
            verbose: Takes no effect.
        """
        side, rows = self._side(padding_side), encoded_inputs
        if not isinstance(rows, Mapping):
            rows = {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]}
        data = {key: plain(value) for key, value in rows.items()}
        if "input_ids" not in data:
            raise InputError(f"input_ids are missing; there is {', '.join(data)}")
        single = bool(data["input_ids"]) and isinstance(data["input_ids"][0], int)
        if single:
            data = {key: [value] for key, value in data.items()}
        if return_attention_mask is not False and "attention_mask" not in data:
            data["attention_mask"] = [[1] * len(ids) for ids in data["input_ids"]]
        fills = choice(
            "padding",
            padding,
            {True: "longest", False: "", "do_not_pad": ""},
            ("longest", "max_length"),
        )
        if fills:
            limit = self.model_max_length if max_length is None else max_length
            length = padded_length(
                max(len(ids) for ids in data["input_ids"]), fills, limit, pad_to_multiple_of
            )
            values = {
                "input_ids": self.pad_token_id,
                "attention_mask": 0,
                "token_type_ids": 0,
                "special_tokens_mask": 1,
            }
            for key in values.keys() & data.keys():
                data[key] = [filled(each, length, values[key], side) for each in data[key]]
        if single and return_tensors is None:
            data = {key: value[0] for key, value in data.items()}
        return BatchEncoding(data).convert_to_tensors(return_tensors)


def padded_length(longest: int, fills: str, limit: int, multiple: int | None) -> int:
    """Tokens that a batch is filled to."""
    length = longest if fills == "longest" or limit >= UNLIMITED else limit
    return -(-length // multiple) * multiple if multiple else length
