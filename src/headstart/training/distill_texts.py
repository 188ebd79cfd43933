"""Distillation of texts: a student learns the vectors and hidden states of a teacher.

Teacher and student read the same texts, each with its own tokenizer. Linear maps of the student's
hidden states predict the teacher's, token by token, and of their mean its vector of a text; beside
it the student guesses masked words. The maps are not part of the result.

Letters: B texts, L tokens of the student, D its width, T width of the teacher, N texts of a split.
"""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoModel, AutoModelForMaskedLM
from headstart.data.options import DataOptions
from headstart.data.text_rows import read_any_text
from headstart.data.texts import TextData
from headstart.errors import ConfigError
from headstart.metrics.alignment import linear_cka
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation
from headstart.tasks.masked_language_modeling import MaskedLanguageModeling
from headstart.tasks.text import IGNORE, longest_first
from headstart.training.distill_settings import FUNCTION, TextSettings, teacher_function
from headstart.training.text_teacher import (
    Taught,
    TextTeacher,
    covering,
    mean_of,
    read_text_teacher,
)

MAPS = "distillation_maps"  # module of the student while it is taught
NO_START = -1  # first character of a special token


class TextDistillation(MaskedLanguageModeling):
    """Vectors and hidden states of a teacher for texts; what it leaves reads texts."""

    name: ClassVar[str] = "text-distillation"
    column_roles: ClassVar[tuple[str, ...]] = ("text", "pair", "split", "words", "tags", "answers")
    option_names: ClassVar[tuple[str, ...]] = ("max_error", *TextSettings.names())
    headline: ClassVar[str] = "cka"
    rows = staticmethod(read_any_text)

    def __init__(self, data: TextData, options: DataOptions) -> None:
        super().__init__(data, options)
        self.settings = TextSettings.of(options.extra)
        self.teacher = self._read_teacher()
        self.network: nn.Module | None = None
        self.taught: dict[str, NDArray[np.float32]] = {}  # the teacher's vectors (N, T) by split

    @property
    def auto(self) -> Any:  # type: ignore[override]  # a class variable of the other tasks
        """The network that is trained: with a head only where masked words train it."""
        return AutoModelForMaskedLM if self.settings.mask_weight else AutoModel

    @property
    def result_task(self) -> str:
        """See `Task.result_task`."""
        return "masked-language-modeling"

    def _read_teacher(self) -> TextTeacher:
        function = teacher_function.get()
        if self.settings.teacher == FUNCTION and function is None:
            raise ConfigError(
                "the teacher of this run is a Python function; go on with it in Python:"
                " headstart.distill(function, …, resume=True)"
            )
        return read_text_teacher(self.settings.teacher if function is None else function)

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of the texts, and of the teacher."""
        whole = hashlib.sha256(super().fingerprint.encode())
        whole.update(self.teacher.key.encode())
        return whole.hexdigest()

    def found(self) -> list[str]:
        """See `Task.found`."""
        settings = self.settings
        name = self.teacher.key if settings.teacher == FUNCTION else settings.teacher
        weights = ("vector_weight", "hidden_weight", "mask_weight")
        parts = (f"{each.replace('_', ' ')} {getattr(settings, each):g}" for each in weights)
        return [*super().found(), f"teacher {name}, {', '.join(parts)}"]

    def texts(self, split: str) -> list[str]:
        """The texts of a split."""
        return [row.values["text"] for row in self.data.splits[split]]

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`: the student, with the maps to the teacher."""
        if recipe.lora_rank or recipe.unfreeze:
            raise ConfigError(
                "a distillation trains maps beside the student, which lora_rank and unfreeze would"
                " freeze; leave them out"
            )
        model = super().build(name, recipe, revision=revision)
        config: Any = model.config
        wanted = self.teacher(["a text"], torch.device("cpu"))
        maps = nn.ModuleDict()
        if self.settings.vector_weight:
            maps["vector"] = nn.Linear(config.hidden_size, wanted.vectors.shape[1])
        if self.settings.hidden_weight:
            if wanted.states is None:
                raise ConfigError(
                    "hidden_weight needs a teacher that gives hidden states: a checkpoint, or a"
                    " function that returns (vectors, states, offsets); set it to 0"
                )
            maps["states"] = nn.Linear(config.hidden_size, wanted.states[0].shape[1])
        model.add_module(MAPS, maps)
        self.network = model
        return model

    def new_model(self, name: str, revision: str | None, values: dict[str, Any]) -> nn.Module:
        """See `TextTask.new_model`: perhaps randomly initialized."""
        values = values | {"classifier_pooling": "mean"}  # what the vector is learned for
        if not self.settings.scratch:
            return super().new_model(name, revision, values)
        config = AutoConfig.from_pretrained(name, revision=revision, **values)
        model: nn.Module = self.auto.from_config(config)
        return model

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`: the maps are not the student's."""
        delattr(model, MAPS)

    # Examples -------------------------------------------------------------------------------------

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`: each text by itself."""
        texts = self.texts(split)
        found: list[dict[str, Any]] = []
        for start in range(0, len(texts), 256):
            part = texts[start : start + 256]
            out = self.tokens(
                part, truncation=True, max_length=self.max_length, return_offsets_mapping=True
            )
            for ids, offsets, text in zip(
                out["input_ids"], out["offset_mapping"], part, strict=True
            ):
                starts = [a if b > a else NO_START for a, b in offsets]
                last = max((b for _, b in offsets), default=0)
                found.append({"input_ids": ids, "starts": starts, "cut": bool(text[last:].strip())})
        return found

    def masked(self, split: str, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A text as it is, as it is shown with words hidden, and the hidden words."""
        example = self.encoded[split][index]
        found = {"index": torch.tensor(index)} | {
            key: torch.tensor(example[key]) for key in ("input_ids", "starts")
        }
        if self.settings.mask_weight:
            shown, labels = self.hide(example["input_ids"], rng)
            found |= {"shown": torch.from_numpy(shown), "labels": torch.from_numpy(labels)}
        return found

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`."""
        return self.masked("train", index, rng)

    @property
    def fills(self) -> dict[str, int]:
        """See `TextTask.fills`."""
        pad = self.tokenizer.pad_token_id
        return super().fills | {"shown": pad, "starts": NO_START}

    def weight(self, batch: dict[str, Tensor]) -> float:
        """See `Task.weight`: texts."""
        return float(len(batch["input_ids"]))

    # Training -------------------------------------------------------------------------------------

    def run(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, L, D) of the texts, and scores of the hidden words of masked ones."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if "shown" not in inputs:
            hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden, None
        hidden_words = inputs["labels"] != IGNORE
        out = model(
            input_ids=torch.cat([ids, inputs["shown"]]),
            attention_mask=torch.cat([mask, mask]),
            output_hidden_states=True,
            logits_at=torch.cat([torch.zeros_like(hidden_words), hidden_words]),
        )
        return out.hidden_states[-1][: len(ids)], out.logits

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: squared errors of the vector and the hidden states, and masked words."""
        settings, texts = self.settings, self.texts("train")
        shown = [texts[i] for i in inputs["index"].tolist()]
        taught = self.teacher(shown, inputs["input_ids"].device)
        hidden, logits = self.run(model, inputs)
        assert self.network is not None
        maps = getattr(self.network, MAPS)
        total = hidden.new_zeros((), dtype=torch.float32)
        measures: dict[str, Tensor] = {}
        if settings.vector_weight:
            guess = maps["vector"](mean_of(hidden, inputs["attention_mask"])).float()  # (B, T)
            wanted = F.layer_norm(taught.vectors, taught.vectors.shape[1:])
            measures["vector_error"] = (guess - wanted).square().mean(1).sum()
            total = total + settings.vector_weight * measures["vector_error"]
        if settings.hidden_weight:
            measures["hidden_error"] = _state_error(
                maps["states"](hidden).float(), inputs["starts"], taught
            )
            total = total + settings.hidden_weight * measures["hidden_error"]
        if logits is not None:
            measures["masked_loss"] = _masked_loss(logits.float(), inputs["labels"])
            total = total + settings.mask_weight * measures["masked_loss"]
        return total, {name: value.detach() for name, value in measures.items()}

    # Evaluation -----------------------------------------------------------------------------------

    def _vectors(self, split: str, device: torch.device) -> NDArray[np.float32]:
        """The teacher's vectors (N, T) of a split, computed once."""
        if split not in self.taught:
            texts = self.texts(split)
            parts = [
                self.teacher(texts[start : start + 32], device).vectors.cpu().numpy()
                for start in range(0, len(texts), 32)
            ]
            self.taught[split] = np.concatenate(parts)
        return self.taught[split]

    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """See `Task.subset`."""
        part = super().subset(split, indices)
        part.taught = {}
        return part

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`.

        `details` are the student's vectors (N, D), the mean of its hidden states, and the
        teacher's. The words that are hidden depend on the text alone.
        """
        taught = self._vectors(split, device)
        found: dict[int, NDArray[np.float32]] = {}
        right, count = 0, 0
        encoded = self.encoded[split]
        numbers = longest_first(range(len(taught)), lambda i: len(encoded[i]["input_ids"]))
        for start in range(0, len(numbers), 32):
            some = numbers[start : start + 32]
            examples = [self.masked(split, i, np.random.default_rng([0x417, i])) for i in some]
            inputs = self.micro(self.collate(examples), slice(None), device)
            hidden, logits = self.run(model, inputs)
            means = mean_of(hidden, inputs["attention_mask"]).float().cpu().numpy()
            found |= dict(zip(some, means, strict=True))
            if logits is not None:
                labels = inputs["labels"][inputs["labels"] != IGNORE]
                right += int((logits.argmax(1) == labels).sum())
                count += len(labels)
        vectors = np.stack([found[i] for i in range(len(found))])
        if not np.isfinite(vectors).all():
            raise ConfigError(
                "the student's vectors are not finite numbers: training diverged; try a smaller"
                " --lr"
            )
        metrics = {"cka": linear_cka(vectors, taught)}
        if self.settings.mask_weight:
            metrics["masked_accuracy"] = right / max(1, count)
        return Evaluation(
            split, len(taught), metrics, details={"vectors": vectors, "teacher_vectors": taught}
        )

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`; settings are looked at before the texts."""
        TextSettings.of(options.extra)
        return super().read(path, options)


def _state_error(guesses: Tensor, starts: Tensor, taught: Taught) -> Tensor:
    """Sum over texts of the mean squared error of the teacher's states, each of variance 1.

    Args:
        guesses: (B, L, T).
        starts: First character of each token, (B, L); -1 of special ones and padding.
        taught: States and offsets of the B texts.
    """
    assert taught.states is not None
    assert taught.offsets is not None
    total = guesses.new_zeros(())
    for guess, start, states, offsets in zip(
        guesses, starts, taught.states, taught.offsets, strict=True
    ):
        at = covering(start, offsets)
        seen = at >= 0
        if seen.any():
            wanted = F.layer_norm(states, states.shape[1:])[at[seen]]
            total = total + (guess[seen] - wanted).square().mean()
    return total


def _masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over texts of the mean cross-entropy of their hidden words.

    Args:
        logits: Of the hidden words in reading order, (words, V).
        labels: (B, L); -100 where no word is hidden.
    """
    hidden = labels != IGNORE
    losses = F.cross_entropy(logits, labels[hidden], reduction="none")
    counts = hidden.sum(1, keepdim=True).expand_as(labels)[hidden]
    return (losses / counts).sum()
