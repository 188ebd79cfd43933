"""What a network looked at.

Networks whose head averages maps or patch tokens: Grad-CAM (Selvaraju et al. 2017) on the last
ones that are fine enough to point at something. Transformers whose head reads a class token, which
has no place in the image: the attention it paid to each patch, as far as it raised the score
(Chefer et al. 2021).
"""

from collections.abc import Iterable, Iterator, Sequence
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
from headstart.pipelines.base import batched

TINT = np.array([255.0, 120.0, 20.0], np.float32)  # where the network looked
FINE = 7  # rows and columns that a map must have to point at something
TOGETHER = 8  # images decoded at a time
PASS_VALUES = 3 * 480 * 480  # of the images of one pass, which needs no more memory than one large


@dataclass(frozen=True)
class Explanation:
    """What a network saw in an image, and where.

    Args:
        label: The class, or the name of the number, that is explained.
        score: Its probability, or the number.
        heat: (H, W) from 0 to 1, of the size of the image; 0 where a crop cut the image off.
        image: (H, W, 3) uint8.
        seen: Height and width of what the network saw.
        shrunk: How many times smaller the network saw the image than it is; 1 at its own size.
    """

    label: str
    score: float
    heat: NDArray[np.float32]
    image: NDArray[np.uint8]
    seen: tuple[int, int]
    shrunk: float

    def overlay(self, longest: int | None = None) -> NDArray[np.uint8]:
        """The image, dimmed where the network did not look and tinted where it did.

        Args:
            longest: Its longer side, at most; None keeps the image's own size.
        """
        image, large = Image.fromarray(self.image), Image.fromarray(self.heat)
        if longest is not None:
            image.thumbnail((longest, longest))
            large = large.resize(image.size, Image.Resampling.BILINEAR)
        heat = np.asarray(large)[..., None]  # (H, W, 1)
        mixed = np.asarray(image) * ((0.35 + 0.65 * heat) * (1 - 0.35 * heat)) + 0.35 * heat * TINT
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


def heat_maps(
    model: nn.Module, pixel_values: Tensor, labels: Sequence[int] | None = None
) -> list[tuple[NDArray[np.float32], Tensor, int]]:
    """Where the evidence for a class is, or what moves a number either way, in images (B, 3, H, W).

    Returns:
        Of each image: the heat (h, w) from 0 to 1, the scores (V,), and which of them it is:
        without `labels` (B,) the highest class, or the first number.
    """
    config: Any = model.config
    numbers = config.problem_type == REGRESSION
    with torch.enable_grad(), _Attention() as attention:
        # so that a graph is built even if every weight is frozen
        pixels = pixel_values.detach().requires_grad_()
        out = model(pixel_values=pixels, output_hidden_states=True)
        if config.average_mirrored:  # the second half of the blocks saw the mirror image
            attention.weights = attention.weights[: len(attention.weights) // 2]
        scores = out.logits.float()  # (B, V)
        highest = [0] * len(scores) if numbers else scores.argmax(1).tolist()
        indices = highest if labels is None else labels
        parts = [_fine(out.hidden_states, pixels), *attention.weights]
        explained = scores[range(len(scores)), indices].sum()  # images do not change each other
        slope, *slopes = torch.autograd.grad(explained, parts, materialize_grads=True)
    place = as_maps(slope, pixels)
    # (B, h, w)
    evidence = (place.mean(dim=(2, 3), keepdim=True) * as_maps(parts[0], pixels)).sum(1)
    evidence = evidence.abs() if numbers else evidence.relu()
    found = []
    for i, index in enumerate(indices):
        each = evidence[i]
        if not place[i].any():
            each = _seen_by_class_token(attention.weights, slopes, pixels)[i]
        heat = each / each.max().clamp(min=1e-12)
        found.append((heat.detach().cpu().numpy(), scores[i].detach(), int(index)))
    return found


def _fine(states: Sequence[Tensor], pixels: Tensor) -> Tensor:
    """The last hidden state with a map of at least `FINE` rows and columns.

    Where there is none, the last of the largest. A network made for large images leaves a map of
    2x2 of a small one, which points at nothing.
    """
    sides = [min(as_maps(state, pixels).shape[2:]) for state in states]
    enough = min(FINE, max(sides))
    return next(s for s, side in zip(states[::-1], sides[::-1], strict=True) if side >= enough)


def _seen_by_class_token(weights: list[Tensor], slopes: list[Tensor], pixels: Tensor) -> Tensor:
    """Attention of the class token to the patches times its gradient, mean over heads and sum over
    the blocks of the last grid, (B, h, w).

    Heads that lower the score are left out, as are, against the paper, ways through other tokens:
    where keys are fewer than queries (CvT) there are none to follow, and on BEiT they change
    little.
    """
    if not weights:
        return torch.zeros(len(pixels), 1, 1)
    keys = weights[-1].shape[-1]
    found = [w * g for w, g in zip(weights, slopes, strict=True) if w.shape[-1] == keys]
    # (B, 1 + h * w)
    rows = torch.stack([each.float().relu().mean(1)[:, 0] for each in found]).sum(0)
    return as_maps(rows[..., None], pixels)[:, 0]


def as_maps(state: Tensor, pixels: Tensor) -> Tensor:
    """A hidden state as (B, C, h, w).

    Maps (B, C, h, w) as they are, tokens (B, 1 + h·w, C) without the class token in their grid.
    """
    if state.ndim == 4:
        return state.float()
    tokens = state[:, 1:].float()  # (B, h·w, C)
    B, L, C = tokens.shape
    ratio = pixels.shape[2] / pixels.shape[3]
    height = round((L * ratio) ** 0.5)
    if height == 0 or L % height:
        raise ConfigError(
            f"{L} tokens make no grid for an image of {pixels.shape[3]}x{pixels.shape[2]}"
        )
    return tokens.transpose(1, 2).reshape(B, C, height, -1)  # (B, C, h, w)


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
    labels = None if label is None else [label]
    return next(explain_several(model, processor, [image], labels, temperature))


def explain_several(
    model: nn.Module,
    processor: Any,
    images: Iterable[Any],
    labels: Sequence[str] | None = None,
    temperature: float = 1.0,
) -> Iterator[Explanation]:
    """What a network looked at in each of several images; `TOGETHER` of them are decoded at a time.

    Args:
        model: See `explain`.
        processor: See `explain`.
        images: Each as in `explain`.
        labels: The class or number to explain of each image; None takes the most probable class,
            or the first number.
        temperature: See `explain`.

    Raises:
        ConfigError: The model has no such class.
    """
    config: Any = model.config
    for label in labels or ():
        if label not in config.label2id:
            raise ConfigError(
                f"the model has no class {label!r}; it has {', '.join(map(str, config.label2id))}"
            )
    indices = None if labels is None else [int(config.label2id[label]) for label in labels]
    decoded = (decode(image)[0] for image in images)  # (H, W, 3)
    done = 0
    for chunk in batched(decoded, TOGETHER):
        chosen = None if indices is None else indices[done : done + len(chunk)]
        yield from _explained(model, processor, chunk, chosen, temperature)
        done += len(chunk)


def _explained(
    model: Any,
    processor: Any,
    images: Sequence[NDArray[np.uint8]],
    indices: Sequence[int] | None,
    temperature: float,
) -> Iterator[Explanation]:
    """Explanations of decoded images; those that the network sees in one size share one pass."""
    config = model.eval().config
    values = [processor(each, return_tensors="pt")["pixel_values"] for each in images]
    same = all(each.shape == values[0].shape for each in values)
    count = max(1, PASS_VALUES // values[0].numel()) if same else 1
    for rows in batched(range(len(images)), count):
        batch = torch.cat([values[i] for i in rows]).to(model.device)
        chosen = None if indices is None else [indices[i] for i in rows]
        for i, (heat, scores, index) in zip(rows, heat_maps(model, batch, chosen), strict=True):
            if config.problem_type == MULTI:
                scores = scores.sigmoid()
            elif config.problem_type != REGRESSION:
                scores = (scores / temperature).softmax(0)
            height, width = batch.shape[2:]
            shape = images[i].shape[:2]
            size = processor.resized_size(*shape)
            yield Explanation(
                config.id2label[index],
                float(scores[index]),
                _over_image(heat, (height, width), size, shape),
                images[i],
                (height, width),
                max(1.0, min(shape[0] / size[0], shape[1] / size[1])),
            )


def _over_image(
    heat: NDArray[np.float32],
    crop: tuple[int, int],
    resized: tuple[int, int],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """The heat of a center crop of the resized image, over the image itself, (H, W)."""
    scale = [large / small for large, small in zip(shape, resized, strict=True)]
    begin = [(r - c) // 2 * f for r, c, f in zip(resized, crop, scale, strict=True)]
    box = [round(begin[0]), round(begin[1])]
    size = [max(1, round(c * f)) for c, f in zip(crop, scale, strict=True)]
    large = Image.fromarray(heat).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    canvas = Image.new("F", (shape[1], shape[0]))
    canvas.paste(large, (box[1], box[0]))
    return np.asarray(canvas)
