"""Masked language modeling: guess hidden tokens of running text.

Texts are joined into blocks of `max_length` tokens. In each block 15 % of the tokens are to be
guessed: 80 % of them are shown as the mask token, 10 % as a random token, 10 % as they are (Devlin
    et al. 2019). Training hides other tokens every time, evaluation always the same.
"""

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoModelForMaskedLM
from headstart.data.text_rows import read_plain
from headstart.errors import DataError
from headstart.metrics.classification import wilson
from headstart.tasks.base import Evaluation
from headstart.tasks.text import IGNORE, TextTask

# fraction of tokens to guess; of these, shown as the mask, and as a random token
HIDDEN, MASKED, RANDOM = 0.15, 0.8, 0.1


class MaskedLanguageModeling(TextTask):
    """Running text: a .txt file, or a column of a table."""

    name: ClassVar[str] = "masked-language-modeling"
    headline: ClassVar[str] = "accuracy"
    column_roles: ClassVar[tuple[str, ...]] = ("text",)
    rows = staticmethod(read_plain)
    auto = AutoModelForMaskedLM

    @property
    def splits(self) -> dict[str, int]:
        """See `Task.splits`: texts, and once they are encoded, blocks."""
        return {
            split: len(self.encoded.get(split, rows)) for split, rows in self.data.splits.items()
        }

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`: blocks of `max_length` tokens, the last one shorter."""
        stream: list[int] = []
        for part in self.parts(self.data.splits[split]):
            texts = [row.values["text"] for row in part]
            for ids in self.tokens(texts, add_special_tokens=False)["input_ids"]:
                stream += [*ids, self.tokenizer.sep_token_id]
        size = self.max_length - 2
        if size < 1:
            raise DataError(
                f"max_length={self.max_length} leaves no tokens between the special ones; give at"
                " least 3"
            )
        begin, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [
            {"input_ids": [begin, *stream[i : i + size], end]} for i in range(0, len(stream), size)
        ]

    def hide(
        self, ids: list[int], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the network sees of a block, and the labels.

        The token where it is to be guessed, else -100.
        """
        shown = np.array(ids, dtype=np.int64)
        special = np.isin(shown, self.tokenizer.all_special_ids)
        positions = np.flatnonzero(~special)
        labels = np.full_like(shown, IGNORE)
        if len(positions):
            chosen = rng.permutation(positions)[: max(1, round(HIDDEN * len(positions)))]
            labels[chosen] = shown[chosen]
            kind = rng.random(len(chosen))
            shown[chosen[kind < MASKED]] = self.tokenizer.mask_token_id
            random = chosen[(kind >= MASKED) & (kind < MASKED + RANDOM)]
            shown[random] = self._ordinary[rng.integers(0, len(self._ordinary), len(random))]
        return shown, labels

    @property
    def _ordinary(self) -> NDArray[np.int64]:
        """Every token that is not special."""
        if not hasattr(self, "_ordinary_ids"):
            self._ordinary_ids = np.setdiff1d(
                np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids
            )
        return self._ordinary_ids

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`."""
        shown, labels = self.hide(self.encoded["train"][index]["input_ids"], rng)
        return {"input_ids": torch.from_numpy(shown), "labels": torch.from_numpy(labels)}

    def weight(self, batch: dict[str, Tensor]) -> float:
        """See `Task.weight`: hidden tokens."""
        return float(max(1, int((batch["labels"] != IGNORE).sum())))

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`."""
        hidden = inputs["labels"] != IGNORE
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_at=hidden
        ).logits
        scores, labels = logits.float(), inputs["labels"][hidden]  # (hidden tokens, V)
        return F.cross_entropy(scores, labels, reduction="sum"), {
            "accuracy": (scores.detach().argmax(1) == labels).sum()
        }

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: the tokens that are hidden depend on the block alone."""
        loss, right, count = 0.0, 0, 0
        blocks = self.encoded[split]
        for start in range(0, len(blocks), 8):
            some = range(start, min(start + 8, len(blocks)))
            hidden = [
                self.hide(blocks[i]["input_ids"], np.random.default_rng([0x417, i])) for i in some
            ]
            batch = self.collate(
                [
                    {"input_ids": torch.from_numpy(a), "labels": torch.from_numpy(b)}
                    for a, b in hidden
                ]
            )
            inputs = self.micro(batch, slice(None), device)
            part, measures = self.loss(model, inputs)
            loss, right = loss + float(part), right + int(measures["accuracy"])
            count += int((inputs["labels"] != IGNORE).sum())
        mean = loss / max(1, count)
        metrics = {
            "accuracy": right / max(1, count),
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "hidden_tokens": float(count),
        }
        return Evaluation(split, len(blocks), metrics, wilson(right, count))
