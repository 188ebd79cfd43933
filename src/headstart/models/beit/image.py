"""BEiT's image processor: images, and the label maps of semantic segmentation.

Shapes: N images, H height, W width.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from headstart.errors import InputError
from headstart.images.decode import (
    BICUBIC,
    BILINEAR,
    CHANNELS_FIRST,
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    NEAREST,
    Array,
    decode_labels,
    flatten,
    resize_and_crop,
)
from headstart.images.processor import (
    BaseImageProcessor,
    BatchFeature,
    processor_class,
    to_framework,
)

IGNORED_LABEL = 255  # semantic_loss_ignore_index of the published configurations


def reduce_labels(labels: Array) -> Array:
    """Labels one lower, with 0 (ADE20k's "other") as 255, which the loss ignores; 255 stays.

    The caller's array is not touched.
    """
    wide = labels.astype(np.int64)
    return np.where((wide == 0) | (wide == IGNORED_LABEL), IGNORED_LABEL, wide - 1)


@processor_class
class BeitImageProcessor(BaseImageProcessor):
    """Turns images, and label maps with them, into the `pixel_values` and `labels` of a BEiT
    network.

    Label maps are always resized to the nearest label: any other filter would make up classes
    between two neighbors, as transformers does with the default `resample`. Where a map is smaller
    than the crop, 255 ("ignore") surrounds it.

    Args:
        do_resize: Whether to resize.
        size: `{"height": int, "width": int}` or an int for both; `{"shortest_edge": int}` keeps
            proportions. Default 256.
        resample: Filter by Pillow's number: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5
            hamming.
        do_center_crop: Whether to cut `crop_size` from the center; a smaller image is surrounded
            by zeros.
        crop_size: `{"height": int, "width": int}` or an int for both. Default 224.
        rescale_factor: 1/255 brings 8-bit values to 0..1.
        do_rescale: Whether to multiply by `rescale_factor`.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One number per channel, or one for all. Default 0.5.
        image_std: Likewise.
        do_reduce_labels: Whether label 0 means "none of the classes": it becomes 255 and every
            other label one less.

    Example:
        >>> import numpy as np
        >>> from headstart import BeitImageProcessor
        >>> processor = BeitImageProcessor(size=40, crop_size=32, do_reduce_labels=True)
        >>> photo, labels = np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.uint8)
        >>> batch = processor(photo, labels, return_tensors="np")
        >>> batch.pixel_values.shape, batch.labels.shape, int(batch.labels.max())
        ((1, 3, 32, 32), (1, 32, 32), 0)
    """

    image_processor_type: ClassVar[str] = "BeitImageProcessor"
    aliases: ClassVar[dict[str, str]] = {"reduce_labels": "do_reduce_labels"}
    defaults: ClassVar[dict[str, Any]] = {
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": IMAGENET_STANDARD_MEAN,
        "image_std": IMAGENET_STANDARD_STD,
    }

    do_resize: bool = True
    size: Any = None
    resample: int = BICUBIC
    do_center_crop: bool = True
    crop_size: Any = None
    rescale_factor: float = 1 / 255
    do_rescale: bool = True
    do_normalize: bool = True
    image_mean: Any = None
    image_std: Any = None
    do_reduce_labels: bool = False

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        do_resize: bool | None = None,
        size: Any = None,
        resample: int | None = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Any = None,
        image_std: Any = None,
        do_reduce_labels: bool | None = None,
        return_tensors: Any = None,
        data_format: Any = CHANNELS_FIRST,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """A batch of pixels, and of labels where maps are given. What is given here wins over the
        processor's own value, for this call.

        Args:
            images: One image or a list: paths, bytes, PIL images, or arrays and tensors of shape
                (H, W), (H, W, C), (C, H, W), or a batch of them.
            segmentation_maps: One label map per image: paths, bytes, PIL images (a palette image
                gives its indices), or arrays of integers of shape (H, W), or a batch of them.
            do_resize: As the field, like all up to `do_reduce_labels`.
            size: As the field.
            resample: As the field.
            do_center_crop: As the field.
            crop_size: As the field.
            do_rescale: As the field.
            rescale_factor: As the field.
            do_normalize: As the field.
            image_mean: As the field.
            image_std: As the field.
            do_reduce_labels: As the field.
            return_tensors: "np", "pt", "tf" or "jax" for one tensor; None for a list of numpy
                arrays.
            data_format: "channels_first", "channels_last", or None for the layout that each image
                came in.
            input_data_format: Layout of arrays: "channels_first", "channels_last", "none" (no
                channel axis), or None to infer it from the shape.
            **kwargs: Older names of the options above, and `do_convert_rgb` (False keeps a
                image's own number of channels).

        Returns:
            `pixel_values`, float32 of shape (N, C, H, W), and `labels`, int64 of shape (N, H, W).

        Raises:
            InputError: An image, a map or an option cannot be used; the message says which.
        """
        processor = self._with(
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_center_crop=do_center_crop,
            crop_size=crop_size,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            do_reduce_labels=do_reduce_labels,
            **kwargs,
        )
        batch = processor._run(images, return_tensors, data_format, input_data_format)
        if segmentation_maps is not None:
            maps = list(flatten(segmentation_maps, 2))
            if len(maps) != len(batch["pixel_values"]):
                raise InputError(
                    f"{len(maps)} segmentation maps for {len(batch['pixel_values'])} images; give"
                    " one each"
                )
            labels = processor._labels(maps)
            batch["labels"] = (
                labels if return_tensors is None else to_framework(np.stack(labels), return_tensors)
            )
        return batch

    def _labels(self, maps: list[Any]) -> list[Array]:
        """Label maps as int64 of shape (H, W), resized and cropped like their images."""
        ready = []
        for i, each in enumerate(maps):
            try:
                labels = decode_labels(each)  # (H, W)
            except InputError as error:
                raise InputError(f"segmentation map {i + 1} of {len(maps)}: {error}") from error
            labels = reduce_labels(labels) if self.do_reduce_labels else labels.astype(np.int64)
            ready.append(
                resize_and_crop(
                    labels[..., None], *self._geometry(*labels.shape), NEAREST, IGNORED_LABEL
                )[..., 0]
            )  # (H, W)
        return ready

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Any = None
    ) -> list[Any]:
        """The class of every pixel, from the output of `BeitForSemanticSegmentation`.

        Args:
            outputs: Anything with `logits` of shape (N, labels, h, w), by attribute or by key, or
                the logits.
            target_sizes: A (height, width) for each image, as tuples or as a tensor of shape (N,
                2): the logits are resized to them before the choice. None keeps the size of the
                logits.

        Returns:
            One long tensor of shape (height, width) per image.
        """
        from torch.nn.functional import interpolate

        named = isinstance(outputs, Mapping)
        # (N, labels, h, w)
        logits = outputs["logits"] if named else getattr(outputs, "logits", outputs)
        if target_sizes is None:
            return list(logits.argmax(1))  # N × (h, w)
        if len(target_sizes) != len(logits):
            raise InputError(
                f"{len(target_sizes)} target_sizes for {len(logits)} images; give one (height,"
                " width) each"
            )
        sizes = [(int(height), int(width)) for height, width in target_sizes]
        return [
            interpolate(one[None], size=size, mode="bilinear").argmax(1)[0]
            for one, size in zip(logits, sizes, strict=True)
        ]

    @classmethod
    def for_published(cls, model: Any, **overrides: Any) -> Self:
        """The authors' own preprocessing of a published model.

        Classifiers: shorter side at 8/7 of the resolution and a crop from the center (from 384 on
            no margin), bicubic, values in -1..1.
        Segmentation (models with ADE20k's labels): shorter side at the resolution, no crop,
            bilinear, ImageNet's mean and deviation.
        """
        edge = model.image_size
        values: dict[str, Any] = {
            "size": {"shortest_edge": edge if edge >= 384 else edge * 256 // 224},
            "crop_size": edge,
        }
        if model.labels and "ade20k" in model.labels:
            values |= {"do_center_crop": False, "resample": BILINEAR, "do_reduce_labels": True}
            values |= {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        return cls.from_dict(values, **overrides)


class BeitFeatureExtractor(BeitImageProcessor):
    """The older name of `BeitImageProcessor`.

    Example:
        >>> import numpy as np
        >>> from headstart import BeitFeatureExtractor
        >>> extractor = BeitFeatureExtractor(size=40, crop_size=32)
        >>> extractor(np.zeros((60, 80, 3), np.uint8), return_tensors="np").pixel_values.shape
        (1, 3, 32, 32)
    """
