"""One vector of a text from those of its tokens.

Legend: B texts, L tokens, D hidden size. Masks are (B, L) and 1 keeps.
"""

import torch
from torch import Tensor

from headstart.errors import InputError
from headstart.models.yoso.inputs import check_mask


def mean_of_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) of the vectors x (B, L, D) that the mask (B, L) keeps."""
    kept = mask[..., None].to(x.dtype)  # (B, L, 1)
    return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def pooled(
    x: Tensor, mask: Tensor | None, input_ids: Tensor | None, kind: str, separator: int
) -> Tensor:
    """The vectors of texts.

    Args:
        x: (B, L, D) vectors of tokens.
        mask: (B, L); None keeps all.
        input_ids: (B, L) tokens; None where they came as vectors.
        kind: See `YosoConfig.classifier_pooling`.
        separator: The token around the texts of a pair.

    Returns:
        (B, D), or (B, 2 D) for pairs.

    Raises:
        InputError: The second text is wanted and cannot be found: tokens came as vectors.
    """
    if kind == "first":
        return x[:, 0]
    seen = check_mask(mask, x)  # (B, L)
    mask = x.new_ones(x.shape[:2]) if seen is None else seen
    mean = mean_of_tokens(x, mask)  # (B, D)
    if kind == "mean":
        return mean
    if input_ids is None:
        raise InputError(
            "classifier_pooling='pair' finds the second text by its separators; give input_ids"
        )
    # separators up to each token (B, L), of <s> a </s> </s> b </s>
    ends = torch.eq(input_ids, separator).cumsum(dim=1)
    first, second = (mean_of_tokens(x, mask * part) for part in (ends == 0, ends > 1))
    return torch.cat([mean, (first - second).abs()], dim=1)  # (B, 2 D)
