"""YOSO's tokenizer: byte-level BPE in RoBERTa's layout, by the `tokenizers` library."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, cast

import numpy as np
from tokenizers import (
    AddedToken,
    Encoding,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from headstart.errors import ConfigError, InputError, NotFoundError
from headstart.models.yoso.encoding import BatchEncoding, choice, is_list, listed_inputs
from headstart.models.yoso.prepared import STRATEGIES, UNLIMITED, PreparedIds, padded_length
from headstart.models.yoso.tokenizer_files import (
    SPECIAL,
    added_values,
    as_added,
    bpe,
    pre_tokenizer_type,
    read_settings,
    read_tokenizer,
)
from headstart.models.yoso.vocabulary import listed_tokens

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


class YosoTokenizer(PreparedIds):
    """Turns texts into the `input_ids` and `attention_mask` of a YOSO network, and back.

    Args:
        vocab: `vocab.json`, or its contents: token → number.
        merges: `merges.txt`, or its contents: pairs of tokens, the first merged first.
        tokenizer: A ready `tokenizers.Tokenizer` instead of the two.
        model_max_length: Tokens of the longest text, for `truncation=True` without `max_length`.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
        add_prefix_space: Whether a text's first word is split as one inside a text. Words that come
            split always are.
        mask_alias: Also read as the mask token, as the published examples write it. None takes it
            literally.
        name_or_path: Where it came from.
        additional_special_tokens: Further tokens that are never split and that
            `skip_special_tokens` leaves out.
        **special: `bos_token`, `eos_token`, `unk_token`, `sep_token`, `pad_token`, `cls_token`,
            `mask_token`.

    Example:
        >>> from headstart import YosoTokenizer
        >>> tokenizer = YosoTokenizer.train(["a cat sat", "a cat ran"], vocab_size=280)
        >>> batch = tokenizer(["a cat", "a cat sat"], padding=True, return_tensors="np")
        >>> batch.input_ids.shape, tokenizer.decode(batch.input_ids[0], skip_special_tokens=True)
        ((2, 7), 'a cat')
    """

    is_fast: ClassVar[bool] = True
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab: str | Path | Mapping[str, int] | None = None,
        merges: str | Path | Sequence[tuple[str, str]] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        model_max_length: int | None = None,
        padding_side: Literal["right", "left"] = "right",
        truncation_side: Literal["right", "left"] = "right",
        add_prefix_space: bool = False,
        mask_alias: str | None = "[MASK]",
        name_or_path: str = "",
        additional_special_tokens: Sequence[str | Mapping[str, Any] | AddedToken] = (),
        **special: str | Mapping[str, Any] | AddedToken,
    ) -> None:
        unknown = sorted(set(special) - set(SPECIAL))
        if unknown:
            raise ConfigError(
                f"YosoTokenizer has no argument {', '.join(unknown)}; special tokens are"
                f" {', '.join(SPECIAL)}"
            )
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("right", "left"):
                raise ConfigError(f"{name}={side!r}; expected 'right' or 'left'")
        limit = UNLIMITED if model_max_length is None else model_max_length
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
            raise ConfigError(f"model_max_length={limit!r:.80}; expected a number above 0")
        # the library counts in 64 bits, and nothing is as long as that
        self.model_max_length = int(limit) if limit < 1 << 31 else UNLIMITED
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.add_prefix_space, self.mask_alias, self.name_or_path = (
            add_prefix_space,
            mask_alias,
            str(name_or_path),
        )
        tokens = [as_added(special.get(role, token), role) for role, token in SPECIAL.items()]
        for role, added in zip(SPECIAL, tokens, strict=True):
            setattr(self, role, added.content)
        self.backend_tokenizer = tokenizer if tokenizer is not None else bpe(vocab, merges)
        self._is_bytes = pre_tokenizer_type(self.backend_tokenizer) in ("ByteLevel", None)
        more = [as_added(each, "") for each in listed_tokens(additional_special_tokens)]
        self.additional_special_tokens = [each.content for each in more]
        self.backend_tokenizer.add_special_tokens([*tokens, *more])
        if self._is_bytes:
            self._set_space(self.backend_tokenizer, add_prefix_space)
        self._lock = threading.Lock()  # the library keeps the truncation of a call as state
        self._words: Tokenizer | None = None

    def _set_space(self, tokenizer: Tokenizer, add_prefix_space: bool) -> None:
        """RoBERTa's frame around byte-level pieces.

        `<s> A </s>`, and `<s> A </s></s> B </s>` for pairs.
        """
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        sep, cls = (
            (token, cast(int, tokenizer.token_to_id(token)))
            for token in (self.sep_token, self.cls_token)
        )
        tokenizer.post_processor = processors.RobertaProcessing(
            sep, cls, add_prefix_space=add_prefix_space, trim_offsets=True
        )

    def _backend(self, words: bool) -> Tokenizer:
        """The library's tokenizer; the one for words that come split puts a space before each."""
        if not words or self.add_prefix_space or not self._is_bytes:
            return self.backend_tokenizer
        if self._words is None:
            other = Tokenizer(self.backend_tokenizer.model)
            for _, token in sorted(self.backend_tokenizer.get_added_tokens_decoder().items()):
                (other.add_special_tokens if token.special else other.add_tokens)([token])
            self._set_space(other, True)
            self._words = other
        return self._words

    # Loading and saving

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoTokenizer") -> NoReturn:
        """Refuses: no code is saved with a tokenizer.

        Raises:
            ConfigError: Always; `AutoTokenizer.register` is the alternative.
        """
        from headstart.registry import refuse_saved_code

        refuse_saved_code(cls.__name__, auto_class)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 8000, min_frequency: int = 2, **values: Any
    ) -> Self:
        """A tokenizer for the vocabulary of these texts.

        Args:
            texts: Any number of texts, read once.
            vocab_size: Tokens at most, the 256 bytes and 5 special tokens included.
            min_frequency: How often a pair must occur to be merged.
            **values: Arguments of the constructor.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(dict.fromkeys(SPECIAL.values())),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        made = json.loads(tokenizer.to_str())["model"]
        return cls(made["vocab"], [tuple(pair) for pair in made["merges"]], **values)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """The tokenizer of a folder or Hub id: `tokenizer.json`, or `vocab.json` and `merges.txt`.

        Args:
            pretrained_model_name_or_path: A folder, a Hub id, or an authors' name.
            revision: Branch, tag or commit on the Hub.
            subfolder: Where in a local folder the files lie.
            cache_dir: Where downloads are kept.
            token: Token of the Hub.
            local_files_only: Take only what is on disk.
            **overrides: Arguments of the constructor that win over the files'.

        Raises:
            NotFoundError: No such model, or it has no tokenizer of this kind.
            FileFormatError: A file is damaged.
        """
        from headstart.hub.options import split_hub, within
        from headstart.hub.resolve import resolve_file
        from headstart.registry import find_published

        older, overrides = split_hub(overrides)
        where = str(within(pretrained_model_name_or_path, subfolder))
        found = find_published(where)
        name = found[1].hub_id if found and found[1].hub_id else where
        hub: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
        } | older
        files = {file: resolve_file(name, file, optional=True, **hub) for file in FILES}
        settings = read_settings(
            files["tokenizer_config.json"], files["special_tokens_map.json"]
        ) | {"name_or_path": name}
        values = {
            key: value
            for key, value in (settings | overrides).items()
            if key not in ("use_fast", "tokenizer_type")
        }
        if files["tokenizer.json"]:
            ready, space = read_tokenizer(files["tokenizer.json"])
            return cls(tokenizer=ready, **({"add_prefix_space": space} | values))
        if not (files["vocab.json"] and files["merges.txt"]):
            raise NotFoundError(
                f"{name} has no tokenizer that can be read here; looked for tokenizer.json, or"
                " vocab.json and merges.txt"
            )
        return cls(files["vocab.json"], files["merges.txt"], **values)

    def save_pretrained(
        self,
        save_directory: str | Path,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> tuple[str, ...]:
        """Writes the files that `from_pretrained`, and transformers' RobertaTokenizer, read;
        returns their paths.

        `legacy_format` takes no effect: the files of both formats are written. `push_to_hub` also
        uploads the folder, to `repo_id` (default the folder's name); `hub` as for the method of
        that name.

        Raises:
            TypeError: Another keyword.
            ConfigError: A `filename_prefix`.
        """
        from headstart.checkpoint import atomic_write
        from headstart.hub.push import check_upload, upload_saved

        check_upload(hub)
        if filename_prefix:
            raise ConfigError(
                f"filename_prefix={filename_prefix!r} is not supported: from_pretrained looks for"
                " the plain names; save to a folder of its own"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = json.loads(self.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        flags = {
            t.content: added_values(t)
            for t in self.backend_tokenizer.get_added_tokens_decoder().values()
        }
        config = {
            "tokenizer_class": "RobertaTokenizer" if self._is_bytes else "PreTrainedTokenizerFast",
            "model_max_length": self.model_max_length,
            "add_prefix_space": self.add_prefix_space,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
            **self.special_tokens_map,
        }
        texts = {
            "tokenizer.json": json.dumps(state, ensure_ascii=False),
            "tokenizer_config.json": json.dumps(config, indent=2),
            "special_tokens_map.json": json.dumps(
                {
                    role: flags.get(token, token) if isinstance(token, str) else token
                    for role, token in self.special_tokens_map.items()
                },
                indent=2,
            ),
        }
        texts |= self._vocabulary()
        for file, text in texts.items():
            atomic_write(folder / file, text.encode())
        upload_saved(folder, push_to_hub, repo_id, hub)
        return tuple(str(folder / file) for file in texts)

    def save_vocabulary(
        self, save_directory: str | Path, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `vocab.json` and `merges.txt` into a folder and returns their paths.

        Raises:
            ConfigError: A tokenizer of another kind than byte-level BPE, which has no such files.
        """
        from headstart.checkpoint import atomic_write

        lead = f"{filename_prefix}-" if filename_prefix else ""
        texts = self._vocabulary()
        if not texts:
            raise ConfigError(
                "this tokenizer has no vocab.json and merges.txt; use save_pretrained"
            )
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        paths = [Path(save_directory) / f"{lead}{file}" for file in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            atomic_write(path, text.encode())
        return tuple(map(str, paths))

    def _vocabulary(self) -> dict[str, str]:
        """Contents of `vocab.json` and `merges.txt`; nothing of a tokenizer without merges."""
        model = json.loads(self.backend_tokenizer.to_str())["model"]
        if model["type"] != "BPE":
            return {}
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *pairs, ""]),
        }

    def train_new_from_iterator(
        self, text_iterator: Iterable[str | list[str]], vocab_size: int, **values: Any
    ) -> Self:
        """A tokenizer of the same settings for the vocabulary of other texts.

        Args:
            text_iterator: Texts, or lists of texts.
            vocab_size: As for `train`.
            **values: As for `train`.
        """
        texts = (t for each in text_iterator for t in ([each] if isinstance(each, str) else each))
        names = ("model_max_length", "padding_side", "truncation_side", "add_prefix_space")
        own = {name: getattr(self, name) for name in names} | dict(self.special_tokens_map)
        return type(self).train(texts, vocab_size, **(own | values))

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Uploads the files to "owner/name" and returns their address.

        `hub` holds `token`, `private`, `revision`, `commit_message`.
        """
        from headstart.hub.push import push_saved

        return push_saved(self, repo_id, hub)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False
    ) -> list[str]:
        """The tokens of a text, as strings."""
        return list(self(text, pair, add_special_tokens=add_special_tokens).tokens())

    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """The `input_ids` of a call; see `__call__`."""
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            padding_side=padding_side,
            return_tensors=return_tensors,
            **options,
        )["input_ids"]

    def encode_plus(
        self, text: Any, text_pair: Any = None, *args: Any, **options: Any
    ) -> BatchEncoding:
        """Numbers of the tokens of one text or pair; the arguments of `__call__` without the
        targets, in its order.
        """
        return self(text, text_pair, None, None, *args, **options)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Any, *args: Any, **options: Any
    ) -> BatchEncoding:
        """Numbers of the tokens of several texts or pairs; the arguments of `__call__` from
        `add_special_tokens` on, in its order.

        Raises:
            InputError: Not a list.
        """
        if not is_list(batch_text_or_text_pairs):
            kind = type(batch_text_or_text_pairs).__name__
            raise InputError(f"batch_text_or_text_pairs is {kind}; expected a list of texts")
        return self(batch_text_or_text_pairs, None, None, None, *args, **options)

    # From texts to numbers

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        text_target: None = None,
        text_pair_target: None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
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
    ) -> BatchEncoding:
        """Numbers of the tokens of texts.

        Args:
            text: A text, a list of texts, or a list of pairs; with `is_split_into_words` a list of
                words, or a list of those.
            text_pair: Second texts, of the same form.
            text_target: Refused: YOSO has no decoder that would be given targets.
            text_pair_target: Refused likewise.
            add_special_tokens: Whether to put `<s>` and `</s>` around.
            padding: True or "longest" fills all to the longest, "max_length" to `max_length`.
            truncation: True or "longest_first", "only_first", "only_second"; None truncates if
                `max_length` is given and nothing is padded.
            max_length: Tokens at most, special ones included; default the tokenizer's
                `model_max_length`.
            stride: Tokens that a further part of a long text repeats, with
                `return_overflowing_tokens`.
            is_split_into_words: Whether texts come as lists of words.
            pad_to_multiple_of: Round the padded length up.
            padding_side: "right" or "left"; default the tokenizer's.
            return_tensors: "np", "pt", "jax", "tf", or None for lists.
            return_token_type_ids: Also segments (all 0, as in RoBERTa).
            return_attention_mask: 1 for tokens, 0 for padding; None is True.
            return_overflowing_tokens: Return every part of a long text, and
                `overflow_to_sample_mapping`: which text it is of.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: First and last character of each token.
            return_length: Also the number of tokens.
            verbose: Takes no effect; kept for calls written for other tokenizers.

        Raises:
            InputError: Not texts, or lengths that cannot be kept.
        """
        if text_target is not None or text_pair_target is not None:
            raise InputError(
                "text_target is for networks that write texts; encode labels by a call of their own"
            )
        side = self._side(padding_side)
        batch, single, pair = self._batch(text, text_pair, is_split_into_words)
        fills = choice(
            "padding",
            padding,
            {True: "longest", False: "", None: "", "do_not_pad": ""},
            ("longest", "max_length"),
        )
        cuts = choice(
            "truncation",
            truncation,
            {True: "longest_first", False: "", None: "", "do_not_truncate": ""},
            STRATEGIES,
        )
        if truncation is None and max_length is not None and not fills:
            cuts = "longest_first"
        limit = self.model_max_length if max_length is None else max_length
        backend = self._backend(is_split_into_words)
        truncates = None
        if cuts and limit < UNLIMITED:
            self._check_limit(
                backend, batch, cuts, limit, stride, pair, add_special_tokens, is_split_into_words
            )
            truncates = {"max_length": limit, "stride": stride, "strategy": cuts}
        encoded = self._encode(backend, batch, is_split_into_words, add_special_tokens, truncates)
        parts = [
            [each, *(each.overflowing if return_overflowing_tokens else [])] for each in encoded
        ]
        encodings = [part for each in parts for part in each]
        if fills:
            length = padded_length(
                max(len(each) for each in encodings), fills, limit, pad_to_multiple_of
            )
            for each in encodings:
                each.pad(length, direction=side, pad_id=self.pad_token_id, pad_token=self.pad_token)
        data: dict[str, Any] = {"input_ids": [each.ids for each in encodings]}
        for wanted, key, name in (
            (return_token_type_ids, "token_type_ids", "type_ids"),
            (return_attention_mask is not False, "attention_mask", "attention_mask"),
            (return_special_tokens_mask, "special_tokens_mask", "special_tokens_mask"),
            (return_offsets_mapping, "offset_mapping", "offsets"),
        ):
            if wanted:
                data[key] = [getattr(each, name) for each in encodings]
        if return_length:
            data["length"] = [len(each) for each in encodings]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, each in enumerate(parts) for _ in each]
        elif single and return_tensors is None:
            data = {key: value[0] for key, value in data.items()}
        return BatchEncoding(data, encodings).convert_to_tensors(return_tensors)

    def _encode(
        self,
        backend: Tokenizer,
        batch: list[Any],
        split: bool,
        special: bool,
        truncation: dict[str, Any] | None = None,
    ) -> list[Encoding]:
        """The library's encodings of a batch, truncated by those arguments of the library."""
        with self._lock:
            if truncation:
                backend.enable_truncation(**truncation, direction=self.truncation_side)
            else:
                backend.no_truncation()
            return list(
                backend.encode_batch(batch, is_pretokenized=split, add_special_tokens=special)
            )

    def _batch(self, text: Any, text_pair: Any, split: bool) -> tuple[list[Any], bool, bool]:
        """What the library takes: a list of texts or of pairs; whether one was given.

        Whether they are pairs.
        """
        alias = (
            self.mask_alias
            if self.mask_alias and self.backend_tokenizer.token_to_id(self.mask_alias) is None
            else None
        )

        def one(value: Any) -> bool:
            return isinstance(value, str) or (
                split and is_list(value) and all(isinstance(word, str) for word in value)
            )

        def read(value: Any) -> Any:
            if not alias:
                return value
            return (
                value.replace(alias, self.mask_token)
                if isinstance(value, str)
                else [read(word) for word in value]
            )

        single = one(text) and not (
            split
            and is_list(text)
            and not text
            and is_list(text_pair)
            and text_pair
            and not one(text_pair)
        )
        firsts = listed_inputs(text, single)
        if firsts is None:
            raise InputError(
                f"text is {type(text).__name__}; expected a text, or a list of texts"
                + (" split into words" if split else "")
            )
        seconds = listed_inputs(text_pair, single)
        if (
            text_pair is None
            and not split
            and firsts
            and all(is_list(p) and len(p) == 2 and all(map(one, p)) for p in firsts)
        ):
            firsts, seconds = [p[0] for p in firsts], [p[1] for p in firsts]
        if text_pair is not None and (seconds is None or len(seconds) != len(firsts)):
            raise InputError(
                f"{len(firsts)} texts and {0 if seconds is None else len(seconds)} second texts;"
                " give one for each"
            )
        for i, each in enumerate((*firsts, *(seconds or []))):
            if not one(each):
                expected = (
                    "a list of words"
                    if split
                    else "a text (pass is_split_into_words=True for lists of words)"
                )
                raise InputError(
                    f"text {i % max(1, len(firsts)) + 1} of {len(firsts)} is {type(each).__name__};"
                    f" expected {expected}"
                )
        if seconds is None:
            return [read(each) for each in firsts], single, False
        return [(read(a), read(b)) for a, b in zip(firsts, seconds, strict=True)], single, True

    def _check_limit(
        self,
        backend: Tokenizer,
        batch: list[Any],
        cuts: str,
        limit: int,
        stride: int,
        pair: bool,
        special: bool,
        split: bool,
    ) -> None:
        """Raises InputError where texts cannot be cut to `limit`."""
        free = limit - (backend.num_special_tokens_to_add(pair) if special else 0)
        if free <= 0 or stride >= free:
            left = f"max_length={limit} leaves {max(0, free)} tokens beside the special ones"
            raise InputError(f"{left}; stride={stride} must be smaller")
        if cuts == "only_second" and not pair:
            raise InputError("truncation='only_second', but there are no second texts")
        if pair and cuts != "longest_first":
            others = [each[0 if cuts == "only_second" else 1] for each in batch]
            lengths = [len(each) for each in self._encode(backend, others, split, special=False)]
            if max(lengths, default=0) + stride >= free:
                i = int(np.argmax(lengths))
                other = "first" if cuts == "only_second" else "second"
                raise InputError(
                    f"pair {i + 1} of {len(batch)}: its {other} text has {lengths[i]} tokens, which"
                    f" leaves no tokens in max_length={limit}; raise max_length, lower stride, or"
                    " truncate with 'longest_first'"
                )

    def __repr__(self) -> str:
        return (
            f"YosoTokenizer({self.name_or_path!r}, {len(self)} tokens,"
            f" model_max_length={self.model_max_length})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_lock", "_words")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._words = threading.Lock(), None
