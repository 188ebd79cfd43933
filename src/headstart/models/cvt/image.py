"""CvT's image processor, which published files call ConvNext's.

`crop_pct` says how much of the resized image the crop keeps.
"""

from typing import Any, ClassVar, Self

from headstart.checkpoint.documents import check_kind
from headstart.errors import InputError
from headstart.images.decode import (
    BICUBIC,
    BILINEAR,
    CHANNELS_FIRST,
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)
from headstart.images.processor import BaseImageProcessor, BatchFeature, processor_class

_WARP_FROM = 384  # from this resolution on, images are resized to a square without a crop


@processor_class
class ConvNextImageProcessor(BaseImageProcessor):
    """Turns images into the `pixel_values` of a CvT network.

    Below a resolution of 384 the shorter side is resized to `shortest_edge / crop_pct` and a square
    of `shortest_edge` is cut from the center; from 384 on, the image is resized to that square,
    and `crop_pct` is not used.

    Args:
        do_resize: Whether to resize and crop.
        size: `{"shortest_edge": int}` or an int. Default 384.
        crop_pct: Fraction of the resized image's shorter side that the crop keeps. Default 224/256.
        resample: Filter by Pillow's number: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5
            hamming.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: 1/255 brings 8-bit values to 0..1.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One number per channel, or one for all. Default 0.5.
        image_std: Likewise.

    Example:
        >>> import numpy as np
        >>> from headstart import ConvNextImageProcessor
        >>> processor = ConvNextImageProcessor(size=56)
        >>> processor(np.zeros((90, 120, 3), np.uint8), return_tensors="np").pixel_values.shape
        (1, 3, 56, 56)
    """

    image_processor_type: ClassVar[str] = "ConvNextImageProcessor"
    int_is_square: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {
        "size": {"shortest_edge": 384},
        "crop_pct": 224 / 256,
        "image_mean": IMAGENET_STANDARD_MEAN,
        "image_std": IMAGENET_STANDARD_STD,
    }

    do_resize: bool = True
    size: Any = None
    crop_pct: Any = None
    resample: int = BILINEAR
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Any = None
    image_std: Any = None

    def __post_init__(self) -> None:
        """Brings the fields into the form that files hold, and checks them."""
        super().__post_init__()
        if "shortest_edge" not in self.size:
            raise InputError(f'size={self.size}: expected {{"shortest_edge": int}} or an int')
        check_kind(self.crop_pct, float, "crop_pct", InputError)
        if not 0 < self.crop_pct <= 1:
            raise InputError(f"crop_pct={self.crop_pct}: expected a fraction above 0 and at most 1")

    @property
    def target(self) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
        """Shortest edge or (height, width) to resize to, and (height, width) of the crop."""
        if not self.do_resize:
            return None, None
        edge = self.size["shortest_edge"]
        if edge >= _WARP_FROM:
            return (edge, edge), None
        return int(edge / self.crop_pct), (edge, edge)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: Any = None,
        crop_pct: float | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Any = None,
        image_std: Any = None,
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
            do_resize: As the field, like all up to `image_std`.
            size: As the field.
            crop_pct: As the field.
            resample: As the field.
            do_rescale: As the field.
            rescale_factor: As the field.
            do_normalize: As the field.
            image_mean: As the field.
            image_std: As the field.
            return_tensors: "np", "pt", "tf" or "jax" for one tensor; None for a list of numpy
                arrays.
            data_format: "channels_first", "channels_last", or None for the layout that each image
                came in.
            input_data_format: Layout of arrays: "channels_first", "channels_last", "none" (no
                channel axis), or None to infer it from the shape.
            **kwargs: `do_convert_rgb` (False keeps an image's own number of channels).

        Returns:
            `pixel_values`, float32 of shape (N, C, H, W).

        Raises:
            InputError: An image or an option cannot be used; the message says which.
        """
        processor = self._with(
            do_resize=do_resize,
            size=size,
            crop_pct=crop_pct,
            resample=resample,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            **kwargs,
        )
        return processor._run(images, return_tensors, data_format, input_data_format)

    @classmethod
    def for_published(cls, model: Any, **overrides: Any) -> Self:
        """The authors' own preprocessing of a published model.

        Bicubic, ImageNet's mean and deviation.
        """
        values: dict[str, Any] = {"size": model.image_size, "resample": BICUBIC}
        values |= {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        return cls.from_dict(values, **overrides)


class ConvNextFeatureExtractor(ConvNextImageProcessor):
    """The older name of `ConvNextImageProcessor`.

    Example:
        >>> import numpy as np
        >>> from headstart import ConvNextFeatureExtractor
        >>> extractor = ConvNextFeatureExtractor(size=32)
        >>> extractor(np.zeros((60, 80, 3), np.uint8), return_tensors="np").pixel_values.shape
        (1, 3, 32, 32)
    """
