"""Vocabularies and positions of another size than a YOSO network was trained with.

Legend: D hidden size.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import InputError
from headstart.models.yoso.attention import SAMPLING_PAYS_FROM
from headstart.models.yoso.config import FIRST_POSITION, YosoConfig
from headstart.models.yoso.weights import NAMES, POSITIONS
from headstart.nn.torch import PreTrainedModel

logger = logging.getLogger("headstart")


def resize_positions(table: Tensor, length: int) -> Tensor:
    """A table of positions (FIRST_POSITION + old length, D) for texts of `length` tokens.

    Raises:
        InputError: Less than one token.
    """
    if length < 1:
        raise InputError(f"max_position_embeddings={length}; expected at least 1")
    repeated = torch.arange(length, device=table.device) % (len(table) - FIRST_POSITION)
    return torch.cat([table[:FIRST_POSITION], table[FIRST_POSITION + repeated]])


class Resizable(PreTrainedModel):
    """A network whose vocabulary and longest text can be changed."""

    config: YosoConfig

    @property
    def _base_embeddings(self) -> Any:
        """The embeddings of the network without its head."""
        return self.base_model.embeddings

    def _assign(self, tensors: Mapping[str, Tensor], *args: Any) -> dict[str, list[Any]]:
        """Repeats positions for a configuration of longer texts, before they are assigned."""
        key = (
            f"{NAMES.prefix}.{POSITIONS}" if f"{NAMES.prefix}.{POSITIONS}" in tensors else POSITIONS
        )
        table, length = tensors.get(key), self.config.max_position_embeddings
        if (
            table is not None
            and len(table) > FIRST_POSITION
            and len(table) != length + FIRST_POSITION
        ):
            logger.warning(
                "positions for %d tokens are made to serve %d (max_position_embeddings); a network"
                " should be fine-tuned on texts longer than it has seen",
                len(table) - FIRST_POSITION,
                length,
            )
            tensors = {**tensors, key: resize_positions(table, length)}
        return super()._assign(tensors, *args)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of the tokens' vectors."""
        return self._base_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the table, also that of a head that shares it."""
        self._base_embeddings.word_embeddings = value
        self.tie_weights()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Makes the vocabulary longer or shorter; new tokens get random vectors.

        Args:
            new_num_tokens: Its new size; None keeps it.
            pad_to_multiple_of: Round the size up.

        Returns:
            The table of the tokens' vectors.

        Raises:
            InputError: The padding token would be lost.
        """
        old = self.get_input_embeddings()
        size = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size <= (old.padding_idx or 0):
            raise InputError(
                f"new_num_tokens={size} would drop the padding token {old.padding_idx}"
            )
        if size != old.num_embeddings:
            rows = self.longer(old.weight, size)
            table = nn.Embedding(size, rows.shape[1], padding_idx=old.padding_idx, _weight=rows)
            self.set_input_embeddings(table)
            self.config.vocab_size = size
        return self.get_input_embeddings()

    @torch.no_grad()
    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Makes the longest text longer or shorter.

        Positions beyond the old last one repeat the old ones in order, so that neighbors stay
        neighbors (Beltagy et al. 2020, "Longformer", began so). A network that has never seen so
        long texts should be fine-tuned on some.

        Args:
            new_num_position_embeddings: Tokens of the longest text.

        Raises:
            InputError: Less than one token.
        """
        old = self._base_embeddings.position_embeddings.weight
        rows = resize_positions(old, new_num_position_embeddings)
        table = nn.Embedding(len(rows), rows.shape[1], _weight=rows)
        table.requires_grad_(old.requires_grad)
        self._base_embeddings.position_embeddings = table
        self.config.max_position_embeddings = new_num_position_embeddings

    def read_long_texts(self, length: int, *, sample: bool = True) -> None:
        """Makes ready for texts of `length` tokens: positions are repeated where there are too few,
        and attention is sampled.

        Args:
            length: Tokens of the longest text.
            sample: Whether exact attention, whose time is quadratic, is replaced by the sampled one
                where that is faster: for texts of at least `SAMPLING_PAYS_FROM` tokens.
        """
        if length > self.config.max_position_embeddings:
            self.resize_position_embeddings(length)
        if sample and self.config.use_expectation:
            self.config.use_expectation, self.config.sample_from = False, SAMPLING_PAYS_FROM

    @torch.no_grad()
    def longer(self, old: Tensor, size: int, std: float | None = None) -> Tensor:
        """The first rows of a table, and new ones."""
        new = old.new_empty((size, *old.shape[1:]))
        nn.init.normal_(new, std=self.config.initializer_range if std is None else std)
        new[: len(old)] = old[:size]
        return new


class ResizableScores(Resizable):
    """A network `cls` of which scores the vocabulary: it grows and shrinks with it."""

    cls: nn.ModuleDict

    @property
    def _head(self) -> Any:
        return self.cls["predictions"]

    def tie_weights(self) -> None:
        """Makes the head's two biases one, and its matrix the tokens' vectors where that is so."""
        self._head.decoder.bias = self._head.bias
        if self.config.tie_word_embeddings:
            self._head.decoder.weight = self.get_input_embeddings().weight

    def get_output_embeddings(self) -> nn.Linear:
        """The linear map that scores the vocabulary."""
        return self._head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the linear map."""
        self._head.decoder, self._head.bias = new_embeddings, new_embeddings.bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Also makes the scores longer or shorter.

        See `Resizable.resize_token_embeddings`.
        """
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        head, V = self._head, table.num_embeddings
        if len(head.bias) != V:
            head.bias = nn.Parameter(self.longer(head.bias, V, std=0.0))
            head.decoder.weight = nn.Parameter(self.longer(head.decoder.weight, V))
            head.decoder.out_features = V
            self.tie_weights()
        return table
