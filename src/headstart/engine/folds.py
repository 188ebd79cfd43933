"""Works out beforehand what depends on no input.

The model stays plain PyTorch, with the same call and outputs, and does less.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from headstart.errors import ConfigError
from headstart.registry import Family, families, locate


@torch.no_grad()
def fold(
    model: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    lean: bool = False,
    portable: bool = False,
) -> Any:
    """A copy of a network that computes the same with fewer operations; weights that stay as they
    are are shared with it.

    Args:
        model: A network of any family, with any head, in evaluation mode.
        size: Height and width of the images it will mostly see; what depends on them is kept ready.
        lean: Also drop what only a loss, hidden states or attention weights need: the copy is to be
            called without asking for them.
        portable: Use only operators that other engines know.

    Raises:
        ConfigError: Not one of our networks, or one that is in training mode.
    """
    family = check(model)
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    copied = copy.deepcopy(model, cast(dict[int, Any], shared))
    if family.folds:
        locate(family.folds)(copied, size, lean=lean, portable=portable)
    return copied


def check(model: nn.Module) -> Family:
    """The family of a network that can be folded.

    Raises:
        ConfigError: Not one of our networks, or one that is in training mode.
    """
    family = families().get(getattr(getattr(model, "config", None), "model_type", ""))
    if family is None or not hasattr(model, "name_table"):
        raise ConfigError(
            f"{type(model).__name__} is not a PyTorch network of headstart; load one with"
            " from_pretrained"
        )
    if model.training:
        raise ConfigError(
            "the model is in training mode, where weights still change; call model.eval() first"
        )
    return family


def image_size(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images of a call; None for texts."""
    pixels = inputs.get("pixel_values")
    return None if pixels is None else (int(pixels.shape[2]), int(pixels.shape[3]))
