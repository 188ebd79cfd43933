"""Images or texts → features of the last layer, as nested lists or tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from headstart.pipelines.base import ShortRepr, batched, is_one_image, load_both
from headstart.pipelines.texts import TextPipeline


class ImageFeatureExtractionPipeline(ShortRepr):
    """Features of images: the last hidden state, or its pooled vector.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model.
        device: Where to compute.
        model_kwargs: Arguments of `from_pretrained`.
        batch_size: Images in one forward pass.
        pool: Return the pooled vector (C,) of each image in place of the last hidden state.
        return_tensors: Return tensors in place of nested lists.
    """

    task = "image-feature-extraction"

    def __init__(
        self,
        model: Any,
        *,
        image_processor: Any = None,
        device: Any = None,
        model_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        pool: bool = False,
        return_tensors: bool = False,
    ) -> None:
        self.model, self.image_processor = load_both(
            model, "AutoModel", image_processor, device, model_kwargs=model_kwargs
        )
        self.batch_size, self.pool, self.return_tensors = batch_size, pool, return_tensors

    def __call__(
        self, images: Any, pool: bool | None = None, return_tensors: bool | None = None
    ) -> Any:
        """Features of one image, or a list of them for many.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.
            pool: As in the constructor.
            return_tensors: As in the constructor.

        Returns:
            For each image the last hidden state with a batch axis of 1: (1, C, H, W) for BiT and
            CvT, (1, 1 + patches, C) for BEiT; with `pool` the vector (C,).
        """
        one = is_one_image(images)
        pooled = self.pool if pool is None else pool
        found = []
        for batch in batched([images] if one else images, self.batch_size):
            for image in batch:
                pixels = self.image_processor(image, return_tensors="pt")["pixel_values"]
                with torch.inference_mode():
                    out = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
                found.append(self._pooled(out) if pooled else out.last_hidden_state.float().cpu())
        tensors = self.return_tensors if return_tensors is None else return_tensors
        results = found if tensors else [each.tolist() for each in found]
        return results[0] if one else results

    def _pooled(self, out: Any) -> Any:
        """The pooled vector (C,) of one image."""
        if (pooled := out.get("pooler_output")) is not None:
            return pooled.flatten().float().cpu()
        if (token := out.get("cls_token_value")) is not None:
            return token.flatten().float().cpu()
        return out.last_hidden_state.mean((2, 3)).flatten().float().cpu()


class FeatureExtractionPipeline(TextPipeline):
    """Features of texts: the last hidden state of every token."""

    task: ClassVar[str] = "feature-extraction"
    auto_class: ClassVar[str] = "AutoModel"

    def __call__(self, inputs: Any, return_tensors: bool = False) -> Any:
        """Features of one text, or a list of them for many.

        Args:
            inputs: A text, or a list of texts.
            return_tensors: Return tensors in place of nested lists.

        Returns:
            For each text the last hidden state (1, L, D), padding left out.
        """
        one = isinstance(inputs, str)
        found = []
        for texts in batched([inputs] if one else inputs, self.batch_size):
            batch = self.encode(texts)
            hidden = self.run(batch).last_hidden_state.float().cpu()  # (B, L, D)
            lengths = batch["attention_mask"].sum(1).tolist()
            found += [row[None, :length] for row, length in zip(hidden, lengths, strict=True)]
        results = found if return_tensors else [each.tolist() for each in found]
        return results[0] if one else results
