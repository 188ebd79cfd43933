"""The vocabulary of YOSO's tokenizer: numbers of tokens, their roles, and the text they spell."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from headstart.errors import ConfigError, InputError
from headstart.models.yoso.encoding import plain
from headstart.models.yoso.tokenizer_files import SPECIAL, as_added


class Vocabulary:
    """Tokens, numbers and texts, one from the other."""

    backend_tokenizer: Tokenizer
    model_max_length: int
    bos_token: str
    eos_token: str
    unk_token: str
    sep_token: str
    pad_token: str
    cls_token: str
    mask_token: str
    additional_special_tokens: list[str]
    _words: Tokenizer | None

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Tokens without those that were added."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Token → number, with those that were added."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """Token → number, as `get_vocab()`."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Token → number of the special tokens and of those that were added, by number."""
        found = sorted(self.backend_tokenizer.get_added_tokens_decoder().items())
        return {token.content: number for number, token in found}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """As `get_added_vocab()`."""
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Number → token of the special tokens and of those that were added."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    def __setattr__(self, name: str, value: Any) -> None:
        """`pad_token_id = 5` makes the token of that number the padding token."""
        role = name.removesuffix("_id")
        if role in SPECIAL and role != name:
            token = self.backend_tokenizer.id_to_token(value)
            if token is None:
                raise InputError(
                    f"{name}={value}; the vocabulary has the numbers 0 to {len(self) - 1}"
                )
            name, value = role, token
        super().__setattr__(name, as_added(value, name).content if name in SPECIAL else value)

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role in SPECIAL and role != name:  # pad_token_id, mask_token_id, …
            return self.convert_tokens_to_ids(getattr(self, role))
        raise AttributeError(f"YosoTokenizer has no {name}")

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Role → token; `additional_special_tokens` → a list, where there are some."""
        found: dict[str, Any] = {role: getattr(self, role) for role in SPECIAL}
        more = self.additional_special_tokens
        return found | ({"additional_special_tokens": list(more)} if more else {})

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        roles = [getattr(self, role) for role in SPECIAL]
        return list(dict.fromkeys([*roles, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Their numbers."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Numbers of `additional_special_tokens`."""
        return [self.convert_tokens_to_ids(token) for token in self.additional_special_tokens]

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of the longest text, without the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of the longest pair, without the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def add_tokens(
        self, tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Adds tokens that are never split, and returns how many were new.

        Then resize the network's table.
        """
        listed = [tokens] if isinstance(tokens, str | AddedToken) else list(tokens)
        add = (
            self.backend_tokenizer.add_special_tokens
            if special_tokens
            else self.backend_tokenizer.add_tokens
        )
        self._words = None
        return int(add(listed))

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Gives roles other tokens, adds those that are new, and returns how many were new.

        Then resize the network's table. The frame around texts keeps its tokens.

        Args:
            special_tokens_dict: Role ("pad_token") → token, and "additional_special_tokens" →
                a list of tokens.
            replace_additional_special_tokens: Whether the list replaces the old one.

        Raises:
            ConfigError: A role that does not exist.
        """
        more = "additional_special_tokens"
        unknown = sorted(set(special_tokens_dict) - {*SPECIAL, more})
        if unknown:
            raise ConfigError(
                f"no special tokens are called {', '.join(unknown)}; expected"
                f" {', '.join([*SPECIAL, more])}"
            )
        added: list[AddedToken] = []
        for role, value in special_tokens_dict.items():
            if role != more:
                added.append(as_added(value, role))
                setattr(self, role, added[-1].content)
                continue
            tokens = [as_added(each, "") for each in listed_tokens(value)]
            kept = [] if replace_additional_special_tokens else self.additional_special_tokens
            listed = [*kept, *(token.content for token in tokens)]
            self.additional_special_tokens = list(dict.fromkeys(listed))
            added += tokens
        return self.add_tokens(added, special_tokens=True)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Numbers of tokens, one or a list; unknown ones are `unk_token_id`."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend_tokenizer.token_to_id(tokens)
        return self.backend_tokenizer.token_to_id(self.unk_token) if found is None else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of numbers, one or a list."""
        ids = plain(ids)
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend_tokenizer.id_to_token(i) for i in ids if i not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        return str(self.backend_tokenizer.decoder.decode(list(tokens)))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens around a text, or a pair."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of a list, array or tensor of numbers.

        Args:
            token_ids: Numbers, or one.
            skip_special_tokens: Leave the special ones out.
            clean_up_tokenization_spaces: Also take out spaces before punctuation and contractions.
        """
        ids = plain(token_ids)
        text = self.backend_tokenizer.decode(
            [ids] if isinstance(ids, int) else ids, skip_special_tokens=skip_special_tokens
        )
        if clean_up_tokenization_spaces:
            for end in (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re"):
                text = text.replace(" ' ", "'") if end == "'" else text.replace(f" {end}", end)
        return str(text)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """`decode` of each."""
        return [self.decode(each, skip_special_tokens, **options) for each in sequences]


def listed_tokens(value: Any) -> list[Any]:
    """The tokens of `additional_special_tokens`.

    Raises:
        ConfigError: Not a list of tokens.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigError(f"additional_special_tokens={value!r}; expected a list of tokens")
    return list(value)
