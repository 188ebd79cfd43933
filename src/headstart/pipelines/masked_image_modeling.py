"""What a network pretrained on masked images imagines behind a mask: two views of an image, codes
of the masked patches, and the image they stand for.

Letters: H W sides of an image, S side of what the network sees, h w sides of the grid of patches
    and of the map of codes, V codes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headstart.errors import ConfigError, InputError
from headstart.images.decode import LANCZOS, decode, resize
from headstart.models.beit.image_tokenizer import DalleImageTokenizer
from headstart.models.beit.masking import blockwise_mask
from headstart.pipelines.base import ShortRepr, is_one_image, load_both

TOKENIZER_FOLDER = "image_tokenizer"  # inside the folder of a pretrained network
GRAY = 128

Pixels = NDArray[np.uint8]


def network_view(image: Pixels, size: tuple[int, int], resample: int) -> Pixels:
    """What the network sees of an image (H, W, 3): stretched to its size."""
    return np.ascontiguousarray(resize(image, size, resample))


def tokenizer_view(image: Pixels, grid: tuple[int, int]) -> Pixels:
    """What the tokenizer sees of the same image.

    8 pixels a patch (112 for 14 patches), lanczos.
    """
    stride: int = DalleImageTokenizer.stride
    return np.ascontiguousarray(resize(image, (grid[0] * stride, grid[1] * stride), LANCZOS))


def normalized(images: Tensor, processor: Any) -> Tensor:
    """Values as the network wants them, of uint8 (B, 3, H, W)."""
    mean, std = (
        torch.tensor(v, device=images.device).view(3, 1, 1)
        for v in (processor.image_mean, processor.image_std)
    )
    values: Tensor = images.float() * processor.rescale_factor
    return (values - mean) / std if processor.do_normalize else values


def as_tensor(images: Iterable[Pixels], device: torch.device | str = "cpu") -> Tensor:
    """Images (H, W, 3) of one size as uint8 (B, 3, H, W)."""
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).to(device)


def codes_of(
    tokenizer: Any, images: Iterable[Pixels], device: torch.device | str = "cpu"
) -> Tensor:
    """Codes (B, h, w) of tokenizer views."""
    codes: Tensor = tokenizer.encode(as_tensor(images, device).float() / 255)
    return codes


@torch.no_grad()
def guess_codes(model: nn.Module, pixel_values: Tensor, mask: Tensor) -> Tensor:
    """The likeliest code of every patch, (B, h, w), where the mask (B, h, w) hides some."""
    # (B, h * w, V)
    logits = model(pixel_values=pixel_values, bool_masked_pos=mask.flatten(1)).logits
    best: Tensor = logits.argmax(-1).view(mask.shape)
    return best


def panels(
    image: Pixels, mask: NDArray[np.bool_], true: Tensor, guessed: Tensor, tokenizer: Any
) -> list[Pixels]:
    """Images to compare: the original, what the mask leaves of it, and (where the tokenizer can
    paint) the image of visible and guessed codes, and that of the true codes.

    Args:
        image: (H, W, 3).
        mask: (h, w).
        true: Codes (h, w).
        guessed: Codes (h, w); only those of masked patches are used.
        tokenizer: Of these codes.
    """
    height, width = image.shape[:2]
    # (H, W, 1)
    hidden = resize(mask.astype(np.uint8)[..., None], (height, width), Image.Resampling.NEAREST)
    shown = [image, np.where(hidden.astype(bool), GRAY, image).astype(np.uint8)]
    if tokenizer.decoder is None:
        return shown
    # (2, h, w)
    both = torch.stack([torch.where(torch.from_numpy(mask).to(true.device), guessed, true), true])
    # (2, 8h, 8w, 3)
    painted = (tokenizer.decode(both) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return shown + [resize(each, (height, width)) for each in painted]


def load_tokenizer(folder: str | Path, config: Any) -> Any:
    """The tokenizer that a pretrained network's folder names or holds.

    Raises:
        ConfigError: It does neither.
    """
    inside = Path(folder) / TOKENIZER_FOLDER
    if inside.is_dir():
        return DalleImageTokenizer.from_pretrained(inside)
    name = str(getattr(config, "image_tokenizer", ""))
    if name not in DalleImageTokenizer.published:
        raise ConfigError(
            f"{folder} has no folder {TOKENIZER_FOLDER} with the tokenizer it was pretrained with;"
            " name one with tokenizer="
        )
    return DalleImageTokenizer.from_pretrained(name)


class MaskedImageModelingPipeline(ShortRepr):
    """Hides blocks of an image and paints what the network expects there.

    Args:
        model: A folder that `headstart train --task masked-image-modeling` made, a Hub id, an
            authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model.
        tokenizer: Tokenizer of the codes; default the one beside the model.
        device: Where to compute.
        seed: Decides the masks.
    """

    task = "masked-image-modeling"

    def __init__(
        self,
        model: Any,
        *,
        image_processor: Any = None,
        tokenizer: Any = None,
        device: Any = None,
        seed: int = 0,
    ) -> None:
        self.model, self.image_processor = load_both(
            model, "AutoModelForMaskedImageModeling", image_processor, device
        )
        self.device = self.model.device
        tokenizer = tokenizer or load_tokenizer(self.model.config.name_or_path, self.model.config)
        self.tokenizer, self.seed = tokenizer.to(self.device).eval(), seed

    def __call__(self, images: Any) -> Any:
        """Panels of one image, or a list of them for many.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.

        Returns:
            `{"panels": [image, masked, reconstruction, codes], "mask": (h, w), "codes": (h, w),
            "guessed": (h, w), "accuracy": float}`.
        """
        return next(self.stream([images])) if is_one_image(images) else list(self.stream(images))

    @torch.no_grad()
    def stream(self, images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """As `__call__` for many images, one at a time."""
        config = self.model.config
        for number, image in enumerate(images):
            pixels = np.asarray(decode(image)[0], dtype=np.uint8)
            view = network_view(pixels, config.image, self.image_processor.resample)  # (S, S, 3)
            # (1, h, w)
            true = codes_of(self.tokenizer, [tokenizer_view(pixels, config.grid)], self.device)
            mask = blockwise_mask(
                config.grid[0], config.grid[1], np.random.default_rng([self.seed, number])
            )
            if not mask.any():
                raise InputError(f"a grid of {config.grid} patches is too small to be masked")
            hidden = torch.from_numpy(mask)[None].to(self.device)
            guessed = guess_codes(
                self.model, normalized(as_tensor([view], self.device), self.image_processor), hidden
            )
            right = float((guessed == true)[hidden].float().mean())
            shown = panels(view, mask, true[0], guessed[0], self.tokenizer)
            yield {
                "panels": shown,
                "mask": mask,
                "codes": true[0].cpu(),
                "guessed": guessed[0].cpu(),
                "accuracy": right,
            }

    def write(self, image: Any, stem: Path) -> dict[str, Any]:
        """Writes `STEM_reconstruction.png`, the panels side by side, and gives its name and how
        many masked codes were guessed.
        """
        found = self(image)
        stem.parent.mkdir(parents=True, exist_ok=True)
        file = stem.with_name(f"{stem.name}_reconstruction.png")
        white = np.full((found["panels"][0].shape[0], 6, 3), 255, np.uint8)
        parts = [part for panel in found["panels"] for part in (panel, white)][:-1]
        Image.fromarray(np.concatenate(parts, axis=1)).save(file)
        return {
            "classes": [{"label": "masked codes guessed", "fraction": found["accuracy"]}],
            "reconstruction_file": str(file),
        }
