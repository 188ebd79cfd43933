"""What a network looked at: Grad-CAM (Selvaraju et al. 2017) on the last map that the score depends on.

For a transformer the map is made of its patch tokens; the class token has no place in the picture and is left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.images import decode

TINT = np.array([255.0, 120.0, 20.0])  # where the network looked


@dataclass(frozen=True)
class Explanation:
    """What was seen in a picture, and where.

    Args:
        label: The class that is explained.
        score: Its probability.
        heat: (H, W) from 0 to 1, of the size of what the network saw.
        seen: (H, W, 3) uint8, what the network saw.
    """

    label: str
    score: float
    heat: NDArray[np.float32]
    seen: NDArray[np.uint8]

    def overlay(self) -> NDArray[np.uint8]:
        """The picture, dimmed where the network did not look and tinted where it did."""
        heat = self.heat[..., None]  # (H, W, 1)
        mixed = self.seen * (0.35 + 0.65 * heat) * (1 - 0.35 * heat) + 0.35 * heat * TINT
        return np.asarray(mixed.clip(0, 255), dtype=np.uint8)


def heat_map(model: nn.Module, pixel_values: Tensor, label: int) -> NDArray[np.float32]:
    """Where the evidence for a class is, (h, w) from 0 to 1, of one image (1, 3, H, W)."""
    with torch.enable_grad():
        pixels = pixel_values.detach().requires_grad_()  # so that a graph is built even if every weight is frozen
        out = model(pixel_values=pixels, output_hidden_states=True)
        states = list(out.hidden_states)
        slopes = torch.autograd.grad(out.logits[0, label], states, allow_unused=True)
    used = [i for i, slope in enumerate(slopes) if slope is not None and slope.abs().sum() > 0]
    if not used:
        return np.zeros((1, 1), dtype=np.float32)  # a head of zeros has no evidence for anything
    values, slope = as_map(states[used[-1]], pixels), as_map(slopes[used[-1]], pixels)
    evidence = (slope.mean(dim=(1, 2), keepdim=True) * values).sum(0).relu()  # (h, w)
    heat: NDArray[np.float32] = (evidence / evidence.max().clamp(min=1e-12)).detach().cpu().numpy()
    return heat


def as_map(state: Tensor, pixels: Tensor) -> Tensor:
    """A hidden state as (C, h, w): a map (1, C, h, w) as it is, tokens (1, 1 + h·w, C) without the class token in their grid."""
    if state.ndim == 4:
        return state[0].float()
    tokens = state[0, 1:].float()  # (h·w, C)
    ratio = pixels.shape[2] / pixels.shape[3]
    height = round((len(tokens) * ratio) ** 0.5)
    if height == 0 or len(tokens) % height:
        raise ConfigError(f"{len(tokens)} tokens make no grid for a picture of {pixels.shape[3]}x{pixels.shape[2]}")
    return tokens.T.reshape(tokens.shape[1], height, -1)  # (C, h, w)


def explain(model: nn.Module, processor: Any, image: Any, label: str | None = None) -> Explanation:  # noqa: ANN401 - any processor and picture
    """Grad-CAM of one picture.

    Args:
        model: A classifier of images.
        processor: Its processor.
        image: A path, bytes, PIL image or array.
        label: The class to explain; None takes the most probable.

    Raises:
        ConfigError: The model has no such class.
    """
    config: Any = model.config
    if label is not None and label not in config.label2id:
        raise ConfigError(f"the model has no class {label!r}; it has {', '.join(map(str, config.label2id))}")
    pixels, _ = decode(image)
    device = next(model.parameters()).device
    values = processor(pixels, return_tensors="pt")["pixel_values"].to(device)  # (1, 3, H, W)
    seen = processor(pixels, do_rescale=False, do_normalize=False, data_format="channels_last", return_tensors="np")["pixel_values"][0]
    model.eval()
    with torch.no_grad():
        chances = model(pixel_values=values).logits[0].float().softmax(0)
    index = int(chances.argmax()) if label is None else int(config.label2id[label])
    heat = Image.fromarray(heat_map(model, values, index)).resize((seen.shape[1], seen.shape[0]), Image.Resampling.BILINEAR)
    return Explanation(config.id2label[index], float(chances[index]), np.asarray(heat), np.rint(seen).clip(0, 255).astype(np.uint8))
