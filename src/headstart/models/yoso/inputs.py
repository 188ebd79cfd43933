"""The inputs of a YOSO network's call, checked.

Legend: B texts, L tokens, D hidden size, A heads. Masks are (B, L) and 1 keeps.
"""

from torch import Tensor, nn

from headstart.errors import InputError
from headstart.models.yoso.config import YosoConfig


def look_up(table: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """Rows of a table (B, L, D).

    Raises:
        InputError: A number that has no row (on a CPU; a GPU does not say which).
    """
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


def check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask of a call on the tokens x (B, L, D).

    Raises:
        InputError: Not one number for each token.
    """
    if mask is not None and mask.shape != x.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(x.shape[:2])}: one"
            " number for each token, 1 keeps"
        )
    return mask


def check_heads(head_mask: Tensor | None, config: YosoConfig) -> Tensor | None:
    """The heads to keep (layers, A), or None for all.

    Raises:
        InputError: Another shape.
    """
    if head_mask is None or config.ignore_head_mask:
        return None
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(head_mask.shape) not in (shape, shape[1:]):
        raise InputError(
            f"head_mask has shape {tuple(head_mask.shape)}; expected {shape[1:]} or {shape}:"
            " (layers, heads), 1 keeps"
        )
    return head_mask.expand(shape)
