"""Losses that the networks of several families share.

Shapes: B images or texts, L tokens, H W height and width, V classes.
"""

import torch.nn.functional as F
from torch import Tensor

from headstart.config import PreTrainedConfig
from headstart.errors import InputError


def classification_loss(logits: Tensor, labels: Tensor, config: PreTrainedConfig) -> Tensor:
    """Loss of class scores, its kind given by `config.problem_type` or inferred from the labels.

    Args:
        logits: (B, V).
        labels: (B,) integers: cross-entropy. (B, V) floats: binary cross-entropy. One label (V =
            1): mean squared error.
        config: Gives `num_labels` and `problem_type`.

    Raises:
        InputError: Labels whose type or shape does not fit.
    """
    kind = config.problem_type
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        elif labels.is_floating_point():
            kind = "multi_label_classification"
        else:
            kind = "single_label_classification"
    if kind == "single_label_classification":
        if labels.is_floating_point():
            raise InputError(
                f"labels are {labels.dtype}; single_label_classification expects integers from 0 to"
                f" {config.num_labels - 1}"
            )
        return F.cross_entropy(
            logits.view(-1, config.num_labels), labels.to(logits.device).view(-1).long()
        )
    labels = labels.to(logits.device, logits.dtype)
    if config.num_labels == 1 and kind == "regression":
        logits, labels = logits.squeeze(), labels.squeeze()
    if logits.shape != labels.shape:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; {kind} expects {tuple(logits.shape)}"
        )
    return (
        F.mse_loss(logits, labels)
        if kind == "regression"
        else F.binary_cross_entropy_with_logits(logits, labels)
    )


def mean_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy over the labels that count; 0, not NaN, where none does.

    Args:
        logits: (N, V) or (B, V, H, W).
        labels: (N,) or (B, H, W) integers.
        ignore_index: The label that does not count.
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def token_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of (…, V) against (…) over the labels that are not `ignore_index`.

    0 where there are none.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected {tuple(logits.shape[:-1])}"
        )
    labels = labels.to(logits.device).reshape(-1)
    return mean_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, ignore_index)


def span_loss(start: Tensor, end: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean of the losses of an answer's first and last token.

    Args:
        start: Scores of each token to begin the answer, (B, L).
        end: Scores of each token to end it, (B, L).
        starts: First tokens (B,); those outside the text are left out.
        ends: Last tokens (B,).
    """
    L = start.shape[1]
    first, last = (each.to(start.device).reshape(-1).clamp(0, L) for each in (starts, ends))
    return (token_loss(start, first, L) + token_loss(end, last, L)) / 2  # L is outside, and ignored
