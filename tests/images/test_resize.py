"""Resizing against its definition, Pillow, and photographs."""

import math

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import data_dir
from headstart.errors import InputError
from headstart.images.decode import load_image, resize, resize_and_crop
from headstart.models.bit.image import BitImageProcessor
from random_images import SIZES, noise

pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="earlier Pillow orders the passes in another way",
)


def sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def cubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


FILTERS = {  # number: weight at a distance, largest distance
    1: (lambda x: sinc(x) * sinc(x / 3) if abs(x) < 3 else 0.0, 3.0),
    2: (lambda x: max(0.0, 1 - abs(x)), 1.0),
    3: (cubic, 2.0),
    4: (lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0, 0.5),
    5: (lambda x: sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0, 1.0),
}


def slow_line(line: list[float], new: int, resample: int) -> list[float]:
    """One row or column, pixel by pixel.

    Each new pixel is the weighted mean of those under the filter, widened when the line shrinks.
    """
    weight, support = FILTERS[resample]
    scale = len(line) / new
    wide = max(scale, 1.0)
    result = []
    for i in range(new):
        center = (i + 0.5) * scale
        weights = [
            weight((x + 0.5 - center) / wide) if abs(x + 0.5 - center) <= support * wide else 0.0
            for x in range(len(line))
        ]
        value = sum(w * v for w, v in zip(weights, line, strict=True)) / sum(weights)
        result.append(min(255.0, max(0.0, value)))
    return result


def slow_resize(
    pixels: np.ndarray, height: int, width: int, resample: int, *, rounded: bool
) -> np.ndarray:
    """A resize by definition, (H, W) floats.

    One pass per axis, each cut to 0..255 and, for 8-bit images, rounded.
    """

    def columns(rows: np.ndarray) -> np.ndarray:
        lines = np.array([slow_line(list(row), width, resample) for row in rows])
        return np.floor(lines + 0.5) if rounded else lines

    def rows(columns: np.ndarray) -> np.ndarray:
        lines = np.array([slow_line(list(column), height, resample) for column in columns.T]).T
        return np.floor(lines + 0.5) if rounded else lines

    old = pixels.shape
    vertical_first = height < old[0] and old[0] - height > 2 * (old[1] - width)
    return columns(rows(pixels)) if vertical_first else rows(columns(pixels))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(0, 99),
)
def test_resize_equals_its_definition(
    h: int, w: int, height: int, width: int, resample: int, seed: int
) -> None:
    image = noise(h, w, 1, seed)
    wanted = slow_resize(image[..., 0].astype(float), height, width, resample, rounded=True)
    assert np.abs(resize(image, (height, width), resample)[..., 0] - wanted).max() <= 1
    floats = resize(image.astype(np.float32), (height, width), resample)[..., 0]
    wanted = slow_resize(image[..., 0].astype(float), height, width, resample, rounded=False)
    assert np.abs(floats - wanted).max() <= 0.01


@pytest.mark.parametrize(("old", "new"), [(6, 2), (6, 3), (3, 9), (5, 10)])
def test_box_is_a_mean_of_blocks_or_a_repeat(old: int, new: int) -> None:
    image = noise(old, old, 1)
    if new < old:
        n = old // new
        wanted = np.floor(image.reshape(new, n, old).mean(1) + 0.5)
        one_way = resize(image, (new, old), 4)[..., 0]
        assert np.abs(one_way - wanted).max() <= 1
    else:
        np.testing.assert_array_equal(
            resize(image, (new, old), 4)[..., 0], np.repeat(image[..., 0], new // old, axis=0)
        )


@given(SIZES, SIZES, SIZES, SIZES)
def test_nearest_shows_the_pixel_under_the_centre(h: int, w: int, height: int, width: int) -> None:
    labels = np.arange(h * w).reshape(h, w, 1) * 1000
    result = resize(labels, (height, width), 0)[..., 0]
    y, x = (
        [(2 * i + 1) * h / (2 * height) for i in range(height)],
        [(2 * i + 1) * w / (2 * width) for i in range(width)],
    )
    for i in range(height):
        for j in range(width):
            # on an edge, rounding decides between two neighbors
            if y[i] % 1 > 1e-9 and x[j] % 1 > 1e-9:
                assert result[i, j] == labels[int(y[i]), int(x[j]), 0]
    theirs = Image.fromarray(labels[..., 0].astype(np.int32)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    np.testing.assert_array_equal(result, np.asarray(theirs))


@pillow_13
# on noise, one value in some millions is two levels off
@settings(max_examples=150, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 5), st.integers(0, 99))
def test_resize_equals_pillow(
    h: int, w: int, height: int, width: int, resample: int, seed: int
) -> None:
    image = noise(h, w, 3, seed)
    theirs = np.asarray(
        Image.fromarray(image).resize((width, height), Image.Resampling(resample))
    ).astype(int)
    assert np.abs(resize(image, (height, width), resample) - theirs).max() <= 1


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    SIZES,
    SIZES,
    SIZES,
    SIZES,
    st.integers(0, 5),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([np.uint8, np.float32]),
)
def test_a_window_is_a_part_of_the_whole(
    data: st.DataObject,
    h: int,
    w: int,
    height: int,
    width: int,
    resample: int,
    channels: int,
    dtype: type,
) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    image = noise(h, w, channels).astype(dtype)
    whole = resize(image, (height, width), resample)
    part = resize(image, (height, width), resample, (top, left, rows, columns))
    assert part.dtype == image.dtype
    assert np.abs(part.astype(float) - whole[top : top + rows, left : left + columns]).max() <= 1


@pillow_13
def test_fast_resize_of_photographs_equals_pillow() -> None:
    """The paths of nearly every photo: 8 bits, shrunk much or little."""
    for name in ("flower.jpg", "strip_wide.jpg", "orient_portrait_1.jpg"):
        photo = load_image(data_dir("photos", "good") / name)
        for resample in (2, 3):
            for size in (
                (photo.shape[0] * 3 // 4, photo.shape[1] * 2 // 3),
                (photo.shape[0] * 3 // 5, photo.shape[1] // 2),
            ):
                theirs = np.asarray(
                    Image.fromarray(photo).resize(size[::-1], Image.Resampling(resample))
                ).astype(int)
                assert np.abs(resize(photo, size, resample) - theirs).max() <= 1


def test_a_strip_does_not_fill_the_memory() -> None:
    strip = np.zeros((1, 50_000, 3), np.uint8)
    assert resize_and_crop(strip, (224, 224 * 50_000), (224, 224)).shape == (224, 224, 3)
    with pytest.raises(InputError, match="too much memory"):
        BitImageProcessor(do_center_crop=False)(strip)


@given(SIZES, SIZES, SIZES, SIZES)
def test_centre_crop_by_definition(h: int, w: int, rows: int, columns: int) -> None:
    image = noise(h, w, 1) | 1  # never the fill value
    result = resize_and_crop(image, None, (rows, columns))
    for i in range(rows):
        for j in range(columns):
            y, x = i + (h - rows) // 2, j + (w - columns) // 2
            assert result[i, j, 0] == (image[y, x, 0] if 0 <= y < h and 0 <= x < w else 0)
