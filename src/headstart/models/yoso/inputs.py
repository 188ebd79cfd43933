"""The inputs of a YOSO network's call, checked.

Legend: B texts, L tokens, D hidden size, A heads. Masks are (B, L) and 1 keeps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import InputError
from headstart.models.yoso.config import YosoConfig
from headstart.models.yoso.operators import transformed


def look_up(table: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """Rows of a table (B, L, D).

    Raises:
        InputError: Not integers, or a number that has no row (on a CPU; a GPU does not say which).
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex():
        kind = str(ids.dtype) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"{name} are {kind}; expected a tensor of integers, such as a tokenizer returns with"
            ' return_tensors="pt" (floating-point numbers: .long())'
        )
    try:
        rows: Tensor = table(ids)
    except IndexError as error:
        raise InputError(
            f"{name} go from {int(ids.min())} to {int(ids.max())}; expected 0 to"
            f" {table.num_embeddings - 1}"
        ) from error
    return rows


def check_tokens(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, config: YosoConfig
) -> Tensor:
    """The one of the two that a call gives: numbers (B, L) or vectors (B, L, D) of tokens.

    Raises:
        InputError: Both or neither given, another shape, or longer than the network's positions.
    """
    if input_ids is not None and inputs_embeds is not None:
        raise InputError("give input_ids or inputs_embeds; both given")
    if input_ids is not None and not isinstance(input_ids, Tensor):
        raise InputError(
            f"input_ids are a {type(input_ids).__name__}; expected a tensor, such as a tokenizer"
            ' returns with return_tensors="pt"'
        )
    if input_ids is not None:
        given, name, fits = input_ids, "input_ids", input_ids.ndim == 2
        expected = "(texts, tokens)"
    elif inputs_embeds is not None:
        given, name = inputs_embeds, "inputs_embeds"
        fits = given.ndim == 3 and given.shape[2] == config.hidden_size
        expected = f"(texts, tokens, {config.hidden_size})"
    else:
        raise InputError("give input_ids or inputs_embeds; neither given")
    if not fits:
        raise InputError(f"{name} has shape {tuple(given.shape)}; expected {expected}")
    if given.shape[1] > config.max_position_embeddings:
        raise InputError(
            f"texts of {given.shape[1]} tokens are longer than"
            f" max_position_embeddings={config.max_position_embeddings}; truncate them"
            " with tokenizer(…, truncation=True, max_length=…), or make room with"
            " model.read_long_texts(…)"
        )
    return given


def check_mask(given: Any, x: Tensor) -> Tensor | None:
    """The mask of a call on the tokens x (B, L, D), as (B, L).

    Args:
        given: (B, L), (B, 1, L) or (B, 1, 1, L), 1 keeps; a tensor, array or nested list.
        x: The tokens' vectors.

    Raises:
        InputError: Not one number for each token, or numbers to be added to scores.
    """
    if given is None:
        return None
    mask = torch.as_tensor(given, device=x.device)
    texts, tokens, shape = x.shape[0], x.shape[1], tuple(mask.shape)
    if shape in ((texts, 1, tokens), (texts, 1, 1, tokens)):
        mask = mask.reshape(texts, tokens)
    if mask.shape != x.shape[:2]:
        raise InputError(
            f"attention_mask has shape {shape}; expected {(texts, tokens)}: one number for each"
            " token, 1 keeps"
        )
    recorded = torch.compiler.is_compiling() or transformed()  # values are not known there
    if mask.is_floating_point() and not recorded and bool((mask < 0).any()):
        raise InputError(
            f"attention_mask has values down to {float(mask.min()):g}, as masks that are added to"
            " scores; expected 1 for tokens and 0 for padding: pass attention_mask >= 0"
        )
    return mask


def flat_choices(
    given: Sequence[Tensor | None], inputs_embeds: Tensor | None
) -> tuple[int, list[Tensor | None], Tensor | None]:
    """The inputs of a call on questions, a text for each choice.

    Args:
        given: Tokens, mask, segments and positions, (B, C, L) each or None.
        inputs_embeds: The tokens' vectors (B, C, L, D), or None.

    Returns:
        C, the four as (B · C, L), and the vectors as (B · C, L, D).

    Raises:
        InputError: Tokens or vectors have another number of axes.
    """
    first, expected, axes = given[0], "(questions, choices, tokens)", 3
    if inputs_embeds is not None:
        first, expected, axes = inputs_embeds, "(questions, choices, tokens, hidden size)", 4
    if first is not None and first.ndim != axes:
        raise InputError(f"the inputs have shape {tuple(first.shape)}; expected {expected}")
    flat = [None if each is None else torch.as_tensor(each).flatten(0, 1) for each in given]
    embeds = None if inputs_embeds is None else inputs_embeds.flatten(0, 1)
    return 1 if first is None else first.shape[1], flat, embeds


def chosen(x: Tensor, labels: Tensor | None, where: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Vectors (B, L, D) and labels (B, L) at some positions, in reading order.

    Args:
        x: The tokens' vectors.
        labels: One a token.
        where: (B, L), true for the positions; None leaves both as they are.

    Returns:
        (positions, D), (positions,).

    Raises:
        InputError: `where` has another shape.
    """
    if where is None:
        return x, labels
    if where.shape != x.shape[:2]:
        raise InputError(
            f"logits_at has shape {tuple(where.shape)}; expected {tuple(x.shape[:2])}:"
            " true where scores are wanted"
        )
    return x[where.bool()], None if labels is None else labels[where.bool()]
