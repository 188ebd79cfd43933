"""BiT's image processor: shortest edge, then a crop from the center."""

from typing import Any, ClassVar, Self

from headstart.images.decode import (
    BICUBIC,
    BILINEAR,
    CHANNELS_FIRST,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from headstart.images.processor import BaseImageProcessor, BatchFeature, processor_class


@processor_class
class BitImageProcessor(BaseImageProcessor):
    """Turns images into the `pixel_values` of a BiT network.

    The defaults are those of the published `google/bit-50`. The authors resize to a square without
    a crop and map to -1..1: see `for_published`.

    Args:
        do_resize: Whether to resize.
        size: `{"shortest_edge": int}` keeps proportions, `{"height": int, "width": int}` does not;
            an int is a shortest edge. Default 224.
        resample: Filter by Pillow's number: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5
            hamming.
        do_center_crop: Whether to cut `crop_size` from the center; a smaller image is surrounded
            by zeros.
        crop_size: `{"height": int, "width": int}` or an int for both. Default 224.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: 1/255 brings 8-bit values to 0..1.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One number per channel, or one for all. Default CLIP's.
        image_std: Likewise.
        do_convert_rgb: Whether to give every image three channels; False keeps its own number.

    Example:
        >>> import numpy as np
        >>> from headstart import BitImageProcessor
        >>> processor = BitImageProcessor(size=64, crop_size=48)
        >>> photo = np.zeros((90, 120, 3), np.uint8)  # or a path, a PIL image, a tensor, a list
        >>> processor(photo, return_tensors="np").pixel_values.shape
        (1, 3, 48, 48)
    """

    image_processor_type: ClassVar[str] = "BitImageProcessor"
    int_is_square: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }

    do_resize: bool = True
    size: Any = None
    resample: int = BICUBIC
    do_center_crop: bool = True
    crop_size: Any = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Any = None
    image_std: Any = None
    do_convert_rgb: bool = True

    def preprocess(
        self,
        images: Any,
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
        do_convert_rgb: bool | None = None,
        return_tensors: Any = None,
        data_format: Any = CHANNELS_FIRST,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """A batch of pixels from images. What is given here wins over the processor's own value,
        for this call.

        Args:
            images: One image or a list: paths, bytes, PIL images, or arrays and tensors of shape
                (H, W), (H, W, C), (C, H, W), or a batch of them.
            do_resize: As the field, like all up to `do_convert_rgb`.
            size: As the field.
            resample: As the field.
            do_center_crop: As the field.
            crop_size: As the field.
            do_rescale: As the field.
            rescale_factor: As the field.
            do_normalize: As the field.
            image_mean: As the field.
            image_std: As the field.
            do_convert_rgb: As the field.
            return_tensors: "np", "pt", "tf" or "jax" for one tensor; None for a list of numpy
                arrays.
            data_format: "channels_first", "channels_last", or None for the layout that each image
                came in.
            input_data_format: Layout of arrays: "channels_first", "channels_last", "none" (no
                channel axis), or None to infer it from the shape.
            **kwargs: Older names of the options above.

        Returns:
            `pixel_values`, float32 of shape (N, C, H, W).

        Raises:
            InputError: An image or an option cannot be used; the message says which.
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
            do_convert_rgb=do_convert_rgb,
            **kwargs,
        )
        return processor._run(images, return_tensors, data_format, input_data_format)

    @classmethod
    def for_published(cls, model: Any, **overrides: Any) -> Self:
        """The authors' own preprocessing of a published model.

        A square of its resolution, bilinear, values in -1..1, no crop.
        """
        size = {"height": model.image_size, "width": model.image_size}
        values: dict[str, Any] = {
            "size": size,
            "resample": BILINEAR,
            "do_center_crop": False,
            "image_mean": [0.5] * 3,
        }
        values["image_std"] = values["image_mean"]
        return cls.from_dict(values, **overrides)
