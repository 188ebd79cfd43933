"""What a network looked at.

Networks whose head averages maps or patch tokens: Grad-CAM (Selvaraju et al. 2017) on the last
ones. Transformers whose head reads a class token, which has no place in the image: the attention
it paid to each patch, as far as it raised the score (Chefer et al. 2021).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headstart.data.labels import MULTI, REGRESSION
from headstart.errors import ConfigError
from headstart.images.decode import decode

TINT = np.array([255.0, 120.0, 20.0])  # where the network looked


@dataclass(frozen=True)
class Explanation:
    """What was seen in an image, and where.

    Args:
        label: The class, or the name of the number, that is explained.
        score: Its probability, or the number.
        heat: (H, W) from 0 to 1, of the size of what the network saw.
        seen: (H, W, 3) uint8, what the network saw.
    """

    label: str
    score: float
    heat: NDArray[np.float32]
    seen: NDArray[np.uint8]

    def overlay(self) -> NDArray[np.uint8]:
        """The image, dimmed where the network did not look and tinted where it did."""
        heat = self.heat[..., None]  # (H, W, 1)
        mixed = self.seen * (0.35 + 0.65 * heat) * (1 - 0.35 * heat) + 0.35 * heat * TINT
        return np.asarray(mixed.clip(0, 255), dtype=np.uint8)


class _Attention(TorchFunctionMode):
    """Inside the block attention goes step by step, and its `weights`, (B, A, L, L') of each block,
    are kept to take gradients of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._stepwise(*args, **(kwargs or {}))

    def _stepwise(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout_p: float = 0.0,
        *,
        scale: float | None = None,
    ) -> Tensor:
        # (B, A, L, L')
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        self.weights.append((scores if bias is None else scores + bias).softmax(-1))
        return self.weights[-1] @ v  # (B, A, L, K)


def heat_map(
    model: nn.Module, pixel_values: Tensor, label: int | None = None
) -> tuple[NDArray[np.float32], Tensor, int]:
    """Where the evidence for a class is, or what moves a number either way, of one image (1, 3, H,
    W).

    Returns:
        The heat (h, w) from 0 to 1, the scores (V,), and which of them it is: without `label` the
        highest class, or the first number.
    """
    config: Any = model.config
    numbers = config.problem_type == REGRESSION
    with torch.enable_grad(), _Attention() as attention:
        # so that a graph is built even if every weight is frozen
        pixels = pixel_values.detach().requires_grad_()
        out = model(pixel_values=pixels, output_hidden_states=True)
        scores = out.logits[0].float()  # (V,)
        highest = 0 if numbers else int(scores.argmax())
        index = highest if label is None else label
        parts = [out.hidden_states[-1], *attention.weights]
        slope, *slopes = torch.autograd.grad(scores[index], parts, materialize_grads=True)
    place = as_map(slope, pixels)
    if place.any():
        # (h, w)
        evidence = (place.mean(dim=(1, 2), keepdim=True) * as_map(parts[0], pixels)).sum(0)
        evidence = evidence.abs() if numbers else evidence.relu()
    else:
        evidence = _seen_by_class_token(attention.weights, slopes, pixels)
    heat: NDArray[np.float32] = (evidence / evidence.max().clamp(min=1e-12)).detach().cpu().numpy()
    return heat, scores.detach(), index


def _seen_by_class_token(weights: list[Tensor], slopes: list[Tensor], pixels: Tensor) -> Tensor:
    """Attention of the class token to the patches times its gradient, mean over heads and sum over
    the blocks of the last grid, (h, w).

    Heads that lower the score are left out, as are, against the paper, ways through other tokens:
    where keys are fewer than queries (CvT) there are none to follow, and on BEiT they change
    little.
    """
    if not weights:
        return torch.zeros(1, 1)
    keys = weights[-1].shape[-1]
    found = [w * g for w, g in zip(weights, slopes, strict=True) if w.shape[-1] == keys]
    # (1, 1 + h * w)
    rows = torch.stack([each.float().relu().mean(1)[:, 0] for each in found]).sum(0)
    return as_map(rows[..., None], pixels)[0]


def as_map(state: Tensor, pixels: Tensor) -> Tensor:
    """A hidden state as (C, h, w).

    A map (1, C, h, w) as it is, tokens (1, 1 + h·w, C) without the class token in their grid.
    """
    if state.ndim == 4:
        return state[0].float()
    tokens = state[0, 1:].float()  # (h·w, C)
    ratio = pixels.shape[2] / pixels.shape[3]
    height = round((len(tokens) * ratio) ** 0.5)
    if height == 0 or len(tokens) % height:
        raise ConfigError(
            f"{len(tokens)} tokens make no grid for an image of {pixels.shape[3]}x{pixels.shape[2]}"
        )
    return tokens.T.reshape(tokens.shape[1], height, -1)  # (C, h, w)


def explain(
    model: nn.Module, processor: Any, image: Any, label: str | None = None, temperature: float = 1.0
) -> Explanation:
    """What a network looked at in one image.

    Args:
        model: A classifier of images, of one class or several each, or a model of numbers.
        processor: Its processor.
        image: A path, bytes, PIL image or array.
        label: The class or number to explain; None takes the most probable class, or the first
            number.
        temperature: What the scores of a model of one class each are divided by.

    Raises:
        ConfigError: The model has no such class.
    """
    config: Any = model.config
    if label is not None and label not in config.label2id:
        raise ConfigError(
            f"the model has no class {label!r}; it has {', '.join(map(str, config.label2id))}"
        )
    pixels, _ = decode(image)
    device: Any = model.device
    values = processor(pixels, return_tensors="pt")["pixel_values"].to(device)  # (1, 3, H, W)
    seen = processor(
        pixels,
        do_rescale=False,
        do_normalize=False,
        data_format="channels_last",
        return_tensors="np",
    )["pixel_values"][0]
    heat, scores, index = heat_map(
        model.eval(), values, None if label is None else int(config.label2id[label])
    )
    if config.problem_type != REGRESSION:
        scores = (
            scores.sigmoid() if config.problem_type == MULTI else (scores / temperature).softmax(0)
        )
    large = Image.fromarray(heat).resize((seen.shape[1], seen.shape[0]), Image.Resampling.BILINEAR)
    return Explanation(
        config.id2label[index],
        float(scores[index]),
        np.asarray(large),
        np.rint(seen).clip(0, 255).astype(np.uint8),
    )
