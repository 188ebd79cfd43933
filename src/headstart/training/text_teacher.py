"""What teaches a student of texts: a checkpoint, or a function of texts.

Letters: B texts, M tokens of the teacher in a text, L of the student, T width of the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.auto import AutoTokenizer
from headstart.errors import ConfigError, InputError
from headstart.features.extract import model_key
from headstart.loading import family_of
from headstart.pipelines.base import refuse_random_weights

PARTS = 3  # of what a function with hidden states returns


@dataclass(frozen=True)
class Taught:
    """What a teacher gives for B texts.

    Args:
        vectors: A vector of each text, (B, T).
        states: Hidden states (M, T) of each text; None where the teacher gives none.
        offsets: First and last character (exclusive) of each of these tokens, (M, 2); equal ones
            are not characters.
    """

    vectors: Tensor
    states: list[Tensor] | None = None
    offsets: list[Tensor] | None = None


@dataclass(frozen=True)
class TextTeacher:
    """A network that gives vectors of texts.

    Args:
        call: Texts and the device → vectors and, where it has them, hidden states.
        key: Identifies the teacher: another key is another teacher.
    """

    call: Callable[[list[str], torch.device], Taught]
    key: str

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> Taught:
        """What the teacher gives, float32 on the device.

        Raises:
            InputError: Not a vector for each text, or states that do not fit their offsets.
        """
        found = self.call(list(texts), device)
        vectors = torch.as_tensor(found.vectors)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise InputError(
                f"the teacher gives {tuple(vectors.shape)} for {len(texts)} texts; expected one"
                " vector for each"
            )
        vectors = vectors.to(device).float()
        if found.states is None or found.offsets is None:
            return Taught(vectors)
        states = [torch.as_tensor(each).to(device).float() for each in found.states]
        offsets = [torch.as_tensor(each).to(device).long() for each in found.offsets]
        if not len(states) == len(offsets) == len(texts):
            raise InputError(
                f"the teacher gives states of {len(states)} and offsets of {len(offsets)} texts;"
                f" expected {len(texts)} of each"
            )
        for state, offset in zip(states, offsets, strict=True):
            if state.ndim != 2 or offset.shape != (len(state), 2):
                raise InputError(
                    f"the teacher gives states {tuple(state.shape)} with offsets"
                    f" {tuple(offset.shape)}; expected (tokens, width) and (tokens, 2)"
                )
        return Taught(vectors, states, offsets)


def read_text_teacher(teacher: str | Path | Callable[[list[str]], Any]) -> TextTeacher:
    """The teacher of that name.

    Args:
        teacher: Result folder or Hub id of a network that reads texts, whose vector of a text is
            the mean of its last hidden states; or a function of a list of texts that returns
            vectors (B, T), or (vectors, states, offsets) as `Taught` has them.

    Raises:
        ConfigError: Not a network of texts, or one without its weights.
    """
    return _of_function(teacher) if callable(teacher) else _of_checkpoint(str(teacher))


def _of_function(function: Callable[[list[str]], Any]) -> TextTeacher:
    """A Python function; a module is set to evaluation."""
    if isinstance(function, nn.Module):
        function.eval()

    def call(texts: list[str], device: torch.device) -> Taught:
        out = function(texts)
        if not isinstance(out, tuple):
            return Taught(out)
        if len(out) != PARTS:
            raise InputError(
                f"the teacher returns {len(out)} values; expected vectors, or (vectors, states,"
                " offsets)"
            )
        return Taught(*out)

    name = getattr(function, "__qualname__", type(function).__qualname__)
    return TextTeacher(call, f"function {name}")


def _of_checkpoint(name: str) -> TextTeacher:
    """A network without its head."""
    family, _ = family_of(name)
    if not family.reads_text:
        raise ConfigError(
            f"{name} reads images, and the student texts; give a teacher that reads texts"
        )
    model = family.load(family.tasks["base"]).from_pretrained(name, optimized=False).eval()
    refuse_random_weights(model, name)
    tokenizer = AutoTokenizer.from_pretrained(name)

    def call(texts: list[str], device: torch.device) -> Taught:
        batch = tokenizer(
            texts, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt"
        )
        offsets = torch.as_tensor(batch.pop("offset_mapping"))  # (B, M, 2)
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        hidden = model.to(device)(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        kept = [row.bool() for row in mask]
        return Taught(
            mean_of(hidden, mask),
            [each[row] for each, row in zip(hidden, kept, strict=True)],
            [each[row.cpu()] for each, row in zip(offsets, kept, strict=True)],
        )

    return TextTeacher(call, model_key(model, {"texts": "mean"}))


def mean_of(x: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, T) of the vectors x (B, M, T) that the mask (B, M) keeps."""
    kept = mask[..., None].to(x.dtype)
    return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def covering(starts: Tensor, offsets: Tensor) -> Tensor:
    """The teacher's token (L,) that covers each character; -1 where none does.

    Args:
        starts: First character of each of the student's tokens, (L,); -1 of special ones.
        offsets: First and last character (exclusive) of the teacher's, (M, 2), in order.
    """
    real = torch.nonzero(offsets[:, 1] > offsets[:, 0])[:, 0]
    if not len(real):
        return torch.full_like(starts, -1)
    begins, ends = offsets[real].T.contiguous()
    at = torch.searchsorted(begins, starts.contiguous(), right=True) - 1  # (L,)
    inside = (starts >= 0) & (at >= 0) & (starts < ends[at.clamp(min=0)])
    return torch.where(inside, real[at.clamp(min=0)], -1)
