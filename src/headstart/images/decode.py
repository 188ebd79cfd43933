"""The one image pipeline under every processor: decode, orient, convert, resize, crop, rescale,
normalize.

Shapes: N images, H height, W width, C channels. Between decoding and the last step every image is
    one array of shape (H, W, C).

What counts as an image, and how it is read:

- A path, bytes or an open binary file is decoded here, and turned upright by its EXIF orientation.
  A PIL image is taken as it is: whoever holds pixels has already decided
  (`PIL.ImageOps.exif_transpose` turns it).
- Alpha is dropped, not blended; palettes become their colors; CMYK and 16-bit become 8-bit RGB;
  float images hold 0..1 or 0..255.
- An array is uint8 or integers 0..255, or uint16 up to 65535 (a 16-bit image when any value
  exceeds 255), or bool, or float.
- Without `input_data_format` the axis of 1, 3 or 4 entries holds the channels. When the first and
  the last axis both qualify (an image 3 pixels high or wide), a torch tensor is (C, H, W) and
  every other array is (H, W, C), the custom of their libraries.
"""

import io
import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from headstart.checkpoint.documents import read_bytes
from headstart.errors import InputError

Array = NDArray[Any]

# PIL.Image.Resampling, by the numbers that preprocessor_config.json holds.
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)

IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_STANDARD_MEAN = IMAGENET_STANDARD_STD = (0.5, 0.5, 0.5)
OPENAI_CLIP_MEAN, OPENAI_CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)

CHANNELS_FIRST, CHANNELS_LAST, NO_CHANNELS = "channels_first", "channels_last", "none"

_ORIENTATION_TAG = 0x0112  # EXIF 2.3, table 4
# 200 MB of RGB: more is a mistake in `size`, or an image one pixel thin
_MAX_RESIZED_PIXELS = 2**26

MAX_FILE = 1 << 30  # bytes
MAX_PIXELS, MAX_SIDE = 1 << 27, 1 << 17  # of an image file, unless HEADSTART_MAX_PIXELS says more
# The only formats that are opened, whatever a file is called: others start programs (EPS) or are
# not photographs. HEIF needs a plugin of Pillow that the user registers.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF",
)  # fmt: skip
# Pillow's modules that read them; it would import those of thirty others too.
PLUGINS = ("Jpeg", "Mpo", "Png", "WebP", "Bmp", "Gif", "Tiff", "Avif", "Jpeg2K", "Ppm")
_opening = threading.Lock()

# What Pillow's decoders raise for damaged files, over all formats; `Warning` because a program may
# turn warnings into errors.
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
)
DAMAGE += (struct.error, zlib.error, Warning)


# --------------------------------------------------------------------------------------------------


def load_image(source: Any, *, convert_rgb: bool = True) -> Array:
    """The upright pixels of an image file, uint8 of shape (H, W, 3).

    Args:
        source: A path, the bytes of a file, or an open binary file.
        convert_rgb: False keeps the file's own number of channels (1 gray, 2 gray and alpha, 3, or
            4).

    Raises:
        InputError: The file is missing, damaged, too large to be an image, or in a format that
            Pillow cannot read; the message names it.
    """
    data, name = _read(source)
    try:
        with open_image(data) as image:
            pixels = decode_jpeg(data) if image.format == "JPEG" and image.mode == "RGB" else None
            if pixels is None:
                image.load()
                pixels = pil_to_array(image, convert_rgb=convert_rgb)
            # after load(): Pillow turns TIFF files itself, and clears the tag
            return orient(pixels, orientation(image))
    except DAMAGE as error:
        raise InputError(f"{name}: cannot be read as an image: {damage_text(error)}") from error


def open_map(source: Any) -> Array:
    """The upright label map of a file, shape (H, W).

    Palette files give their indices, 16-bit files their 16-bit values.
    """
    data, name = _read(source)
    try:
        with open_image(data) as image:
            image.load()
            return orient(pil_to_labels(image), orientation(image))
    except DAMAGE as error:
        raise InputError(f"{name}: cannot be read as a label map: {damage_text(error)}") from error


def is_file(source: Any) -> bool:
    """Whether an argument names or holds a file, instead of pixels."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(
        source, "read"
    )


def _read(source: Any) -> tuple[bytes, str]:
    """The bytes of a file and the name that errors give it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), f"{len(source)} bytes"
    if not hasattr(source, "read"):
        hint = "; download it first" if str(source).startswith(("http:", "https:")) else ""
        try:
            return read_bytes(source, MAX_FILE, InputError), str(source)
        except InputError as error:
            raise InputError(f"{error}{hint}") from error
    name = str(getattr(source, "name", "the open file"))
    try:
        data = source.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error
    if len(data) > MAX_FILE:
        raise InputError(f"{name} has more than {MAX_FILE:,} bytes; that much is not read")
    return data, name


def open_image(data: bytes) -> Image.Image:
    """An image file of a listed format, its pixels not yet decoded.

    This is the only place that opens an image. Pillow's own limit of pixels, which warns without
    naming the file and cannot be raised for one call, is replaced by ours.

    Raises:
        InputError: More pixels than 2^27 (or the number in HEADSTART_MAX_PIXELS), or a side of more
            than 2^17.
        OSError: And whatever else Pillow raises for a damaged file.
    """
    if not data:
        raise OSError("the file is empty")
    if data[:4] == b"RIFF":  # Pillow allocates the canvas of a WebP when it opens it
        _check_size(*webp_size(data))
    with _opening:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = before
    _check_size(*image.size)
    return image


def _formats() -> list[str]:
    if "MPO" not in Image.OPEN:
        for name in PLUGINS:
            with suppress(ImportError):  # a Pillow without that format
                import_module(f"PIL.{name}ImagePlugin")
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(width: int, height: int) -> None:
    text = os.environ.get("HEADSTART_MAX_PIXELS", "")
    limit = int(text) if text.isascii() and text.isdigit() else MAX_PIXELS
    if width * height > limit:
        raise InputError(
            f"has {width}x{height} pixels, at most {limit:,} are read; if you trust the file, pass"
            f" --max-pixels {width * height} or set HEADSTART_MAX_PIXELS={width * height}"
        )
    if max(width, height) > MAX_SIDE:
        raise InputError(
            f"has {width}x{height} pixels; a side of more than {MAX_SIDE:,} is not read"
        )


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP's first chunk: https://developers.google.com/speed/webp/docs."""
    if data[12:16] == b"VP8X":
        sides = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        sides = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        sides = (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return sides


def damage_text(error: BaseException) -> str:
    """What a decoder said, without the address of the buffer that it names."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "unknown image format" if isinstance(error, UnidentifiedImageError) else text


def decode_jpeg(data: bytes) -> Array | None:
    """Pixels from simplejpeg where it is installed: the same libjpeg-turbo as Pillow's, without
    Pillow's copy of the pixels.

    None where it is not installed or complains about the file: Pillow then decides what the file is
    worth.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        return np.asarray(
            simplejpeg.decode_jpeg(
                data, colorspace="RGB", fastdct=False, fastupsample=False, strict=True
            )
        )
    except ValueError:
        return None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a file, 1 (upright) where it has none or a damaged one."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def orient(pixels: Array, orientation: int) -> Array:
    """Turns (H, W, ...) pixels upright; `orientation` is EXIF's number, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (W, H, ...)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


# --------------------------------------------------------------------------------------------------


def pil_to_array(image: Image.Image, *, convert_rgb: bool = True) -> Array:
    """The 8-bit pixels of a PIL image of any mode, shape (H, W, C); C is 3 when `convert_rgb`."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _channels(_eight_bit(np.asarray(image))[..., None], convert_rgb)  # (H, W, C)
    if image.mode in ("P", "PA"):
        # straight to RGB, Pillow warns about transparent entries
        image = image.convert("RGBA").convert("RGB")
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # premultiplied alpha becomes plain
    if convert_rgb and image.mode != "RGB":
        image = image.convert("RGB")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]  # (H, W, C)


def _eight_bit(values: Array) -> Array:
    """Gray values of a float, 16-bit or 32-bit image as uint8."""
    if values.dtype.kind == "f":
        low, high = _float_range(values)
        if low >= 0 and high <= 1:
            values = values * 255
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if values.dtype.itemsize == 2 or values.max() > 255:
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"values from {values.min()} to {values.max()}: an image of integers holds 0..255"
                " or 0..65535"
            )
        return (values >> 8).astype(np.uint8)
    return values.astype(np.uint8)


def _float_range(values: Array) -> tuple[float, float]:
    """Smallest and largest value.

    Refuses NaN and infinities, which would spread over the image when it is resized.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("holds NaN or infinite values; pixels must be finite numbers")
    return low, high


def _channels(pixels: Array, convert_rgb: bool) -> Array:
    """(H, W, C) with three channels if `convert_rgb`: gray is repeated, alpha is dropped."""
    count = pixels.shape[-1]
    if not convert_rgb or count == 3:
        return pixels
    if count in (1, 2):
        return np.repeat(pixels[..., :1], 3, axis=-1)  # (H, W, 3)
    if count == 4:
        return pixels[..., :3]  # (H, W, 3)
    raise InputError(
        f"has {count} channels; images have 1, 3 or 4 (set do_convert_rgb=False to keep other"
        " counts)"
    )


def channel_axis(shape: Sequence[int], *, torch_like: bool = False) -> str:
    """The layout of an array of pixels, by the rule at the top of this file.

    Raises:
        InputError: No axis can hold channels.
    """
    if len(shape) == 2:
        return NO_CHANNELS
    if len(shape) == 3:
        first, last = shape[0] in (1, 3, 4), shape[-1] in (1, 3, 4)
        if first or last:
            return CHANNELS_FIRST if first and (torch_like or not last) else CHANNELS_LAST
    raise InputError(
        f"an array of shape {tuple(shape)} is not an image: expected (H, W), (H, W, C) or (C, H, W)"
        ' with 1, 3 or 4 channels; say which with input_data_format="channels_first",'
        ' "channels_last" or "none"'
    )


def is_torch(value: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> Array:
    """A numpy array from a numpy, torch, JAX or TensorFlow array; bfloat16 becomes float32."""
    if is_torch(value):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() and value.element_size() == 2 else value
    array = np.asarray(value)
    # "V": the bfloat16 of JAX, which numpy does not know
    if array.dtype.kind == "V" or array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind not in "buif":
        raise InputError(
            f"an array of {array.dtype} is not an image: expected integers, bool or floats"
        )
    return array


def decode(
    image: Any, *, convert_rgb: bool = True, input_data_format: str | None = None
) -> tuple[Array, str]:
    """Pixels of shape (H, W, C) from anything that is one image, and the layout that it came in.

    The pixels are uint8, or float32 when a float array was given. They may share memory with the
    caller's: never write into them.
    """
    if is_file(image):
        return load_image(image, convert_rgb=convert_rgb), CHANNELS_LAST
    if isinstance(image, Image.Image):
        try:
            return pil_to_array(image, convert_rgb=convert_rgb), CHANNELS_LAST
        except InputError:
            raise
        except DAMAGE as error:  # an image opened lazily is decoded only now
            raise InputError(
                f"{getattr(image, 'filename', '') or 'a PIL image'}: cannot be read as an image:"
                f" {damage_text(error)}"
            ) from error
    array = to_numpy(image)
    layout = input_data_format or channel_axis(array.shape, torch_like=is_torch(image))
    if array.ndim != (2 if layout == NO_CHANNELS else 3):
        raise InputError(f'an array of shape {array.shape} cannot be input_data_format="{layout}"')
    if layout == NO_CHANNELS:
        array = array[..., None]  # (H, W, 1)
    elif layout == CHANNELS_FIRST:
        array = array.transpose(1, 2, 0)  # (H, W, C)
    if 0 in array.shape:
        raise InputError(f"an array of shape {array.shape} holds no pixels")
    if array.dtype.kind == "f":
        _float_range(array)
        array = array.astype(np.float32, copy=False)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        array = _integers(array)
    return _channels(array, convert_rgb), layout


def _integers(array: Array) -> Array:
    """An integer array as uint8."""
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _eight_bit(array)
    raise InputError(
        f"{array.dtype} pixels from {low} to {high}: integers hold 0..255 (16-bit images are"
        " uint16 arrays)"
    )


def flatten(images: Any, ndim: int = 3) -> Iterator[Any]:
    """The single images of one image, a batch array, or a nested list of them.

    `ndim` is the most axes of one image: 3, or 2 for label maps and images without a channel
    axis (then (H, W, 1) is one too).
    """
    if is_file(images) or isinstance(images, Image.Image):
        yield images
    elif isinstance(images, list | tuple):
        for image in images:
            yield from flatten(image, ndim)
    elif hasattr(images, "shape") and hasattr(images, "__array__"):
        if len(images.shape) <= ndim or (len(images.shape) == 3 and images.shape[-1] == 1):
            yield images
        else:
            for i in range(images.shape[0]):  # one axis of the batch at a time
                yield from flatten(images[i], ndim)
    else:
        raise InputError(
            f"{type(images).__name__} is not an image: expected a path, bytes, a PIL image, an"
            " array or tensor of numpy, torch, JAX or TensorFlow, or a list of them"
        )


# --------------------------------------------------------------------------------------------------


def pil_to_labels(image: Image.Image) -> Array:
    """The labels of a PIL image, shape (H, W); of a palette image its indices, not its colors."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    labels = np.asarray(image)
    if labels.ndim != 2:
        raise InputError(
            f"a label map of mode {image.mode} holds colors; expected one label per pixel (modes"
            " L, P, I;16 or I)"
        )
    return labels


def decode_labels(labels: Any) -> Array:
    """The labels of one map, integers of shape (H, W), from a file, a PIL image or an array of
    shape (H, W), (1, H, W) or (H, W, 1).
    """
    if is_file(labels):
        array = open_map(labels)
    elif isinstance(labels, Image.Image):
        array = pil_to_labels(labels)
    else:
        array = to_numpy(labels)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]  # (H, W)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"a label map of shape {array.shape}: expected (H, W), one label per pixel"
        )
    if array.dtype.kind == "f":
        _float_range(array)
        if not np.array_equal(np.rint(array), array):
            raise InputError("a label map of floats that are not integers")
        array = array.astype(np.int64)
    return array


# --------------------------------------------------------------------------------------------------


def resize(
    image: Array,
    size: tuple[int, int],
    resample: int = BICUBIC,
    window: tuple[int, int, int, int] | None = None,
) -> Array:
    """An (H, W, C) image at another size, within 1/255 of Pillow's antialiased filters.

    Args:
        image: uint8 or float32. Floats are not rounded to 8 bits on the way; what a filter
            overshoots is cut to 0..1 or 0..255, whichever held the image.
        size: Height and width of the whole result.
        resample: Pillow's number of the filter, 0 to 5.
        window: Top, left, height and width of the part of the result to compute; None means all of
            it.
    """
    old, (height, width) = image.shape[:2], size
    top, left, rows, columns = window or (0, 0, height, width)
    if rows * columns > _MAX_RESIZED_PIXELS:
        raise InputError(
            f"resizing {old[1]}x{old[0]} pixels to {width}x{height} would need too much memory; set"
            " a crop or another size"
        )
    if old == size:
        return image[top : top + rows, left : left + columns]
    if resample == NEAREST:
        y, x = _nearest(old[0], height), _nearest(old[1], width)
        return image[y[top : top + rows, None], x[left : left + columns]]  # (rows, columns, C)
    # The order of the passes shows, because each is rounded and cut to 0..255: on noise by 30 gray
    # levels. This is the rule of Pillow 13.
    vertical_first = height < old[0] and old[0] - height > 2 * (old[1] - width)
    first, second = (0, 1) if vertical_first else (1, 0)
    spans = {0: (height, top, rows), 1: (width, left, columns)}
    # The fast second pass computes a whole axis, which must not be a strip of millions; torch fails
    # on results of one pixel.
    if (
        image.dtype == np.uint8
        and resample in (BILINEAR, BICUBIC)
        and height * width > 1
        and spans[second][0] <= 4 * spans[second][2]
    ):
        return _resize_torch(image, first, spans, resample)
    for axis in (first, second):
        image = _resize_axis(image, axis, *spans[axis], resample)
    return image


def _nearest(old: int, new: int) -> Array:
    """Which of `old` pixels each of `new` pixels shows.

    Pillow does the rounding, so ties fall as they do there.
    """
    line = Image.fromarray(np.arange(old, dtype=np.int32)[None]).resize(
        (new, 1), Image.Resampling.NEAREST
    )
    return np.asarray(line).reshape(new)


def _resize_torch(
    image: Array, first: int, spans: dict[int, tuple[int, int, int]], resample: int
) -> Array:
    """Bilinear and bicubic of 8-bit images by torch's vectorised filters, which have Pillow's
    coefficients in 16 instead of 22 bits.

    That rounds one value in 300 the other way in the first pass; where bicubic's second pass meets
    several of those, a value can end two gray levels from Pillow. Of 90 million values of
    photographs that shrank by less than `_EXACT_UNTIL`, 99 did; of 30 million that shrank by more,
    3. Below it the first pass is therefore exact, as products with a banded matrix, which halves
    the speed. Bilinear needs none of
    this: its coefficients are never negative.
    """
    import torch
    from torch.nn.functional import interpolate

    if not image.flags.writeable or min(image.strides) < 0:
        image = image.copy()  # torch takes neither a read-only array (Pillow's) nor a flipped one
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (C, H, W)
    if first == 0:
        pixels = pixels.transpose(1, 2)  # (C, W, H): the axis of the first pass is the last
    second = 1 - first
    new, start, count = spans[first]
    shrinks = min(pixels.shape[2] / new, pixels.shape[1] / spans[second][0])
    if (
        resample == BICUBIC
        and shrinks < _EXACT_UNTIL
        and new != pixels.shape[2]
        and spans[second][0] != pixels.shape[1]
    ):
        bands = _bands(pixels.shape[2], new, start, count)
        low, high = bands[0][0], bands[-1][1]
        # (C * lines, pixels that are needed)
        lines = pixels[:, :, low:high].float().reshape(-1, high - low)
        result = torch.empty(len(lines), count)
        for begin, end, at, weights in bands:
            torch.mm(
                lines[:, begin - low : end - low],
                weights,
                out=result[:, at : at + weights.shape[1]],
            )
        # (C, lines, count); to() rounds down
        pixels = result.add_(0.5).clamp_(0, 255).to(torch.uint8).view(*pixels.shape[:2], count)
        new, start = count, 0
    size = (spans[second][0], new)
    if tuple(pixels.shape[1:]) != size:
        mode = "bilinear" if resample == BILINEAR else "bicubic"
        # (C, second, first)
        pixels = interpolate(pixels[None], size=size, mode=mode, antialias=True)[0]
    pixels = pixels[
        :, spans[second][1] : spans[second][1] + spans[second][2], start : start + count
    ]
    # (rows, columns, C)
    resized: Array = (pixels.permute(1, 2, 0) if first == 1 else pixels.permute(2, 1, 0)).numpy()
    return resized


_EXACT_UNTIL = 1.6
_COEFFICIENT_BITS = 22  # of Pillow's filters for 8-bit pixels
# results per product: narrow enough to leave out most zeros, wide enough for a fast product
_BAND = 16


@lru_cache(maxsize=64)
def _bands(old: int, new: int, start: int, count: int) -> list[tuple[int, int, int, Any]]:
    """The bicubic filter that resizes `old` pixels to entries `start` to `start + count` of `new`,
    in bands of `_BAND` results.

    Returns:
        First and last (exclusive) pixel that a band reads, its first result, and its weights, a
        float tensor of shape (pixels, results).
    """
    import torch

    scale = old / new
    wide = max(scale, 1.0)  # the filter spans 2 * wide pixels to either side
    center = (np.arange(start, start + count) + 0.5) * scale
    low = np.maximum((center - 2 * wide + 0.5).astype(int), 0)
    high = np.minimum((center + 2 * wide + 0.5).astype(int), old)
    at = low[:, None] + np.arange((high - low).max())  # (count, taps): pixels under the filter
    x = np.abs((at - center[:, None] + 0.5) / wide)
    weights = np.where(
        x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)
    )  # Keys, a = -0.5
    weights *= at < high[:, None]
    weights /= weights.sum(1, keepdims=True)
    weights = np.rint(weights * 2**_COEFFICIENT_BITS) / 2**_COEFFICIENT_BITS
    bands = []
    for i in range(0, count, _BAND):
        begin, end, results = int(low[i]), int(high[i : i + _BAND].max()), len(low[i : i + _BAND])
        # with room for the taps past `high`, which are zero
        band = np.zeros((end - begin + at.shape[1], results), np.float32)
        np.put_along_axis(
            band, (at[i : i + _BAND] - begin).T, weights[i : i + _BAND].T.astype(np.float32), axis=0
        )
        bands.append((begin, end, i, torch.from_numpy(band[: end - begin].copy())))
    return bands


def _resize_axis(image: Array, axis: int, new: int, start: int, count: int, resample: int) -> Array:
    """Entries `start` to `start + count` of one axis resized to `new`, by Pillow."""
    old = image.shape[axis]
    if new == old:
        return image[start : start + count] if axis == 0 else image[:, start : start + count]
    # its weights jump at the edges of pixels, where the rounding of a window would decide
    if resample == BOX and count != new:
        image = _resize_axis(image, axis, new, 0, new, resample)
        return image[start : start + count] if axis == 0 else image[:, start : start + count]
    low, high = start * old / new, min((start + count) * old / new, old)
    height, width = image.shape[:2]
    size, box = (
        ((width, count), (0, low, width, high))
        if axis == 0
        else ((count, height), (low, 0, high, height))
    )
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(
            Image.fromarray(np.ascontiguousarray(image)).resize(
                size, Image.Resampling(resample), box
            )
        )
    # Plane by plane: Pillow has no images of floats with channels, and would weigh a fourth channel
    # as alpha.
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])]
    resized = np.stack(
        [np.asarray(plane.resize(size, Image.Resampling(resample), box)) for plane in planes],
        axis=-1,
    )
    if image.dtype != np.uint8 and image.min() >= 0 and image.max() <= 255:
        resized = resized.clip(0, 1 if image.max() <= 1 else 255)
    return resized


def resize_and_crop(
    image: Array,
    size: tuple[int, int] | None,
    crop: tuple[int, int] | None,
    resample: int = BICUBIC,
    fill: int = 0,
) -> Array:
    """Resizes (H, W, C) to `size`, then cuts `crop` from the center.

    `fill` surrounds a smaller image. None leaves a step out.
    """
    height, width = size or (image.shape[0], image.shape[1])
    rows, columns = crop or (height, width)
    top, left = (height - rows) // 2, (width - columns) // 2  # negative: that much is added before
    window = (max(top, 0), max(left, 0), min(rows, height), min(columns, width))
    if rows * columns > _MAX_RESIZED_PIXELS:
        raise InputError(f"a crop of {columns}x{rows} pixels would need too much memory")
    # (min(rows, height), min(columns, width), C)
    image = resize(image, (height, width), resample, window)
    if image.shape[:2] == (rows, columns):
        return image
    canvas = np.full((rows, columns, image.shape[2]), fill, image.dtype)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas


def shortest_edge_size(height: int, width: int, edge: int) -> tuple[int, int]:
    """Height and width with the shorter side at `edge` and the same proportions.

    The longer side is rounded down, as published.
    """
    if width <= height:
        return max(edge, int(edge * height / width)), edge
    return edge, max(edge, int(edge * width / height))


def normalize(image: Array, scale: Array, shift: Array, out: Array) -> None:
    """Writes `image * scale + shift` into `out`, one pass each.

    Shapes broadcast, so `out` may be (C, H, W) of a transposed image.
    """
    np.multiply(image, scale, out=out, casting="unsafe")
    np.add(out, shift, out=out)
