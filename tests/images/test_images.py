"""The image pipeline against slow definitions, Pillow, and every photo and damaged file of the
reference data.
"""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from conftest import data_dir
from headstart.errors import FileFormatError, InputError, MissingExtraError
from headstart.images import decode as images
from headstart.images.decode import (
    channel_axis,
    decode,
    load_image,
    orient,
    resize,
    resize_and_crop,
    webp_size,
)
from headstart.images.processor import BatchFeature
from headstart.models.beit.image import BeitImageProcessor
from headstart.models.bit.image import BitImageProcessor
from headstart.models.cvt.image import ConvNextImageProcessor

PROCESSORS = {
    "bit": BitImageProcessor(size=20, crop_size={"height": 16, "width": 18}),
    "beit": BeitImageProcessor(
        size={"height": 15, "width": 21}, crop_size={"height": 13, "width": 17}
    ),
    "convnext": ConvNextImageProcessor(size=14),
}
SIZES = st.integers(1, 60)
pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="earlier Pillow orders the passes in another way",
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """The hardest image: every pixel on its own, half of them at the ends of the range."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels))
    ends = rng.integers(0, 2, pixels.shape) * 255
    return np.where(rng.random(pixels.shape) < 0.5, pixels, ends).astype(np.uint8)


def photo_rows() -> list[dict[str, str]]:
    """Rows of photos.csv (none where the data is absent)."""
    try:
        path = data_dir("photos", "photos.csv")
    except pytest.skip.Exception:
        return []
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


# --------------------------------------------------------------------------------------------------


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
        centre = (i + 0.5) * scale
        weights = [
            weight((x + 0.5 - centre) / wide) if abs(x + 0.5 - centre) <= support * wide else 0.0
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


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "torch_like", "layout"),
    [
        ((20, 30), False, "none"),
        ((20, 30, 3), False, "channels_last"),
        ((3, 20, 30), False, "channels_first"),
        ((1, 20, 30), True, "channels_first"),
        ((3, 20, 3), False, "channels_last"),  # 3 pixels high
        ((3, 20, 3), True, "channels_first"),  # 3 pixels wide
        ((3, 20, 1), False, "channels_last"),
        ((4, 20, 30), False, "channels_first"),
    ],
)
def test_layout_of_an_array(shape: tuple[int, ...], torch_like: bool, layout: str) -> None:
    assert channel_axis(shape, torch_like=torch_like) == layout


def test_an_image_three_pixels_high_keeps_its_height() -> None:
    low = noise(3, 20)
    wanted = BitImageProcessor(size=12, crop_size=12)(
        Image.fromarray(low), return_tensors="np"
    ).pixel_values
    processor = BitImageProcessor(size=12, crop_size=12)
    np.testing.assert_array_equal(processor(low, return_tensors="np").pixel_values, wanted)
    chw = torch.from_numpy(low).permute(2, 0, 1)
    np.testing.assert_array_equal(processor(chw, return_tensors="np").pixel_values, wanted)
    hwc = torch.from_numpy(low)
    np.testing.assert_array_equal(
        processor(hwc, input_data_format="channels_last", return_tensors="np").pixel_values, wanted
    )
    assert processor(low, do_resize=False, do_center_crop=False).pixel_values[0].shape == (3, 3, 20)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(5, 40), st.integers(5, 40), st.sampled_from(sorted(PROCESSORS)), st.integers(0, 9)
)
def test_every_form_of_one_image_gives_the_same(h: int, w: int, name: str, seed: int) -> None:
    processor, image = PROCESSORS[name], noise(h, w, 3, seed)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    wanted = processor(image, return_tensors="np").pixel_values
    chw = np.ascontiguousarray(image.transpose(2, 0, 1))
    same = [
        Image.fromarray(image),
        png.getvalue(),
        io.BytesIO(png.getvalue()),
        chw,
        torch.from_numpy(chw),
        image[None],
        [[image]],
    ]
    same += [
        image.astype(np.int64),
        torch.from_numpy(chw)[None].long(),
        np.asfortranarray(image),
        image[::-1][::-1],
    ]
    for form in same:
        np.testing.assert_array_equal(processor(form, return_tensors="np").pixel_values, wanted)
    for form in (
        image.astype(np.float32),
        torch.from_numpy(chw).double(),
        torch.from_numpy(chw).bfloat16(),
    ):
        ours = processor(form, return_tensors="np").pixel_values
        # floats are not rounded between the passes
        assert np.abs(ours - wanted).max() <= 2.5 / 255 / min(processor.image_std)
    for form in (image / 255.0, (image / 255.0).astype(np.float32)):
        ours = processor(form, do_rescale=False, return_tensors="np").pixel_values
        assert np.abs(ours - wanted).max() <= 2.5 / 255 / min(processor.image_std)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=5),
    st.randoms(),
    st.sampled_from(sorted(PROCESSORS)),
)
def test_a_batch_is_its_images_one_by_one(
    sizes: list[tuple[int, int]], random: object, name: str
) -> None:
    processor = PROCESSORS[name]
    images = [
        noise(h, w, seed=i) if i % 2 else Image.fromarray(noise(h, w, seed=i))
        for i, (h, w) in enumerate(sizes)
    ]
    batch = processor(images, return_tensors="np").pixel_values
    assert batch.dtype == np.float32
    order = list(range(len(sizes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = processor([images[i] for i in order], return_tensors="np").pixel_values
    for i, place in enumerate(order):
        np.testing.assert_array_equal(shuffled[i], batch[place])
        np.testing.assert_array_equal(
            processor(images[place], return_tensors="np").pixel_values[0], batch[place]
        )


@given(SIZES, SIZES)
def test_no_step_returns_the_pixels_themselves(h: int, w: int) -> None:
    image = noise(h, w)
    processor = BitImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    result = processor(
        Image.fromarray(image), return_tensors="np", data_format="channels_last"
    ).pixel_values
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[0], image)
    assert processor(Image.fromarray(image), data_format=None).pixel_values[0].shape == (h, w, 3)


def test_the_callers_arrays_are_not_written_into() -> None:
    image = noise(30, 40)
    for form in (image, image.astype(np.float32), torch.from_numpy(image.copy())):
        before = np.asarray(form).copy()
        for processor in PROCESSORS.values():
            processor(form, do_resize=False, return_tensors="np").pixel_values[:] = 7
        np.testing.assert_array_equal(np.asarray(form), before)


@pytest.mark.parametrize("name", sorted(PROCESSORS))
@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "La",
        "CMYK",
        "YCbCr",
        "HSV",
        "I;16",
        "I",
        "F",
    ],
)
def test_every_mode_becomes_rgb(name: str, mode: str) -> None:
    gray = Image.linear_gradient("L").resize((30, 24))
    image = (
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
        if mode == "I;16"
        else _to_mode(gray, mode)
    )
    assert image.mode == mode
    pixels = decode(image)[0]
    assert pixels.shape == (24, 30, 3)
    if mode not in ("1", "CMYK", "YCbCr", "P"):
        assert np.abs(pixels.astype(int) - np.asarray(gray)[..., None]).max() <= 1
    assert PROCESSORS[name](image, return_tensors="np").pixel_values.shape[:2] == (1, 3)


def _to_mode(gray: Image.Image, mode: str) -> Image.Image:
    steps = {
        "PA": ("P", "PA"),
        "RGBa": ("RGBA", "RGBa"),
        "La": ("LA", "La"),
        "YCbCr": ("RGB", "YCbCr"),
        "HSV": ("RGB", "HSV"),
    }
    for step in steps.get(mode, (mode,)):
        gray = gray.convert(step)
    return gray


def test_alpha_is_dropped_and_grey_repeated() -> None:
    rgba = noise(8, 9, 4)
    np.testing.assert_array_equal(decode(rgba)[0], rgba[..., :3])
    np.testing.assert_array_equal(decode(Image.fromarray(rgba))[0], rgba[..., :3])
    np.testing.assert_array_equal(decode(rgba[..., 0])[0], np.repeat(rgba[..., :1], 3, axis=-1))
    many = noise(8, 9, 7)
    assert decode(many, convert_rgb=False, input_data_format="channels_last")[0].shape == (8, 9, 7)


def test_16_bit_images_are_scaled() -> None:
    values = np.array([[0, 255, 256, 30000, 65535]], np.uint16)
    wanted = [0, 0, 1, 117, 255]
    assert decode(values)[0][0, :, 0].tolist() == wanted
    assert decode(Image.fromarray(values))[0][0, :, 0].tolist() == wanted
    assert decode(np.array([[0, 200]], np.uint16))[0][0, :, 0].tolist() == [0, 200]
    assert decode(np.array([[False, True]]))[0][0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 6, 7), np.uint8), r"shape \(5, 6, 7\) is no image"),
        (np.zeros(5, np.uint8), r"shape \(5,\) is no image"),
        (np.zeros((0, 6, 3), np.uint8), "holds no pixels"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), 300), "int64 pixels from 300 to 300"),
        (np.full((4, 5), -1), "from -1"),
        (np.array([["a", "b"]]), "expected integers, bool or floats"),
        (3.5, "float is no image"),
        ([], "the list is empty"),
        (None, "NoneType is no image"),
        ("no/such/file.jpg", "no/such/file.jpg: no such file"),
        ("https://example.org/cat.jpg", "download it first"),
        (b"not an image", "12 bytes: cannot be read as an image: unknown image format"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BitImageProcessor()(image)


def test_the_bad_one_of_a_list_is_named() -> None:
    with pytest.raises(InputError, match="image 2 of 3: an array of shape"):
        BitImageProcessor()([np.zeros((5, 5)), np.zeros((5, 5, 9)), np.zeros((5, 5))])
    with pytest.raises(InputError, match=r"different shapes \(3, 5, 5\), \(3, 6, 5\)"):
        BitImageProcessor(do_resize=False, do_center_crop=False)(
            [np.zeros((5, 5)), np.zeros((6, 5))], return_tensors="np"
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=.*above 0"),
        ({"size": {"longest_edge": 5}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 5}}, "crop_size="),
        ({"resample": 6}, "resample=6"),
        ({"image_std": [1, 0, 1]}, "deviation of 0"),
        ({"image_mean": [0, 1]}, "image_mean has 2 values and image_std 3"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BitImageProcessor(**values)


def test_bad_words_are_refused() -> None:
    for name in ("return_tensors", "data_format", "input_data_format"):
        with pytest.raises(InputError, match=f"{name}='x': expected one of"):
            BitImageProcessor()(np.zeros((5, 5)), **{name: "x"})
    with pytest.raises(InputError, match="have 2 values, but the image has 3 channels"):
        BitImageProcessor(image_mean=[0.5, 0.5], image_std=0.5)(np.zeros((5, 5)))


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", photo_rows(), ids=lambda row: row["file"])
def test_every_photo(row: dict[str, str]) -> None:
    """Good files equal Pillow's own upright RGB; damaged ones are refused with their name."""
    path = data_dir("photos") / row["file"]
    if row["pillow_load"] != "ok":
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            load_image(path)
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            BeitImageProcessor()([path])
        return
    pixels = load_image(path)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I;16", "F"):  # Pillow would cut these at 255, and 0..1 to black
        values = np.asarray(upright).astype(float)
        wanted = np.repeat(
            (values / 256 if upright.mode == "I;16" else values * 255)[..., None], 3, axis=-1
        )
        assert np.abs(pixels - wanted).max() <= 1
        assert pixels.max() > 200
    else:
        upright = upright.convert("RGBA") if "transparency" in upright.info else upright
        np.testing.assert_array_equal(pixels, np.asarray(upright.convert("RGB")))
    for processor in PROCESSORS.values():
        values = processor(path, return_tensors="np").pixel_values
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(
            processor(path.read_bytes(), return_tensors="np").pixel_values, values
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    pixels = noise(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(decode(image)[0], pixels)  # a PIL image is taken as it is
    np.testing.assert_array_equal(orient(pixels, orientation), wanted)
    np.testing.assert_array_equal(load_image(file.getvalue()), wanted)


@pytest.mark.parametrize("which", ["landscape", "portrait"])
def test_oriented_photos_show_the_same_scene(which: str) -> None:
    first, *others = (
        load_image(data_dir("photos", "good") / f"orient_{which}_{i}.jpg") for i in range(1, 9)
    )
    for other in others:
        assert other.shape == first.shape
        alike = np.corrcoef(first.ravel(), other.ravel())[0, 1]
        assert alike > 0.9  # each has its number painted in, and was compressed anew
        assert alike > np.corrcoef(first.ravel(), other[:, ::-1].ravel())[0, 1] + 0.1


def test_simplejpeg_decodes_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    used = 0
    for path in sorted(data_dir("photos", "good").glob("*.jpg")):
        fast = images.decode_jpeg(path.read_bytes())
        ours = load_image(path)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "simplejpeg", None)
            assert images.decode_jpeg(path.read_bytes()) is None
            np.testing.assert_array_equal(load_image(path), ours)
        used += fast is not None
    assert used > 20


def test_a_lazily_opened_damaged_image_is_refused() -> None:
    path = data_dir("photos", "malformed") / "truncated.jpg"
    with (
        Image.open(path) as image,
        pytest.raises(InputError, match=r"truncated\.jpg: cannot be read"),
    ):
        BitImageProcessor()(image)


# --------------------------------------------------------------------------------------------------


def test_frameworks() -> None:
    processor, image = PROCESSORS["bit"], noise(30, 40)
    wanted = processor(image, return_tensors="np").pixel_values
    tensor = processor(image, return_tensors="pt").pixel_values
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    listed = processor([image, image]).pixel_values
    assert isinstance(listed, list)
    np.testing.assert_array_equal(listed[1], wanted[0])


@pytest.mark.parametrize(
    ("kind", "package", "install"),
    [
        ("jax", "jax", r"'headstart\[flax\]'"),
        pytest.param("tf", "tensorflow", "tensorflow", marks=pytest.mark.slow),
    ],
)
def test_other_frameworks(
    kind: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        patch.setitem(sys.modules, f"{package}.numpy", None)
        with pytest.raises(MissingExtraError, match=f"pip install {install}$"):
            PROCESSORS["bit"](noise(30, 40), return_tensors=kind)
    pytest.importorskip(package)
    batch = PROCESSORS["bit"](noise(30, 40), return_tensors=kind).pixel_values
    assert type(batch).__module__.split(".")[0] in ("jax", "jaxlib", "tensorflow")
    np.testing.assert_array_equal(
        np.asarray(batch), PROCESSORS["bit"](noise(30, 40), return_tensors="np").pixel_values
    )
    again = PROCESSORS["bit"](
        batch,
        do_resize=False,
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
        return_tensors="np",
    )
    np.testing.assert_array_equal(again.pixel_values, np.asarray(batch))


def test_batch_feature_takes_data_and_a_tensor_type_as_v4():
    batch = BatchFeature({"labels": [1, 0, 2]}, "np", extra=[3])
    assert isinstance(batch.labels, np.ndarray) and batch["extra"].tolist() == [3]


def test_batch_feature() -> None:
    batch = BatchFeature(
        pixel_values=torch.zeros(2, 3), labels=torch.zeros(2, dtype=torch.long), sizes=[1, 2]
    )
    assert batch.pixel_values is batch["pixel_values"]
    assert dict(**batch) == batch.data
    half = batch.to("cpu", torch.float16)
    assert (half.pixel_values.dtype, half.labels.dtype, half.sizes) == (
        torch.float16,
        torch.int64,
        [1, 2],
    )
    assert batch.to(dtype=torch.float64).pixel_values.dtype == torch.float64
    with pytest.raises(AttributeError, match="no logits here; there is pixel_values, labels"):
        _ = batch.logits


@pytest.mark.parametrize("make", [BitImageProcessor, BeitImageProcessor, ConvNextImageProcessor])
def test_save_and_load(make: type, tmp_path: Path) -> None:
    processor = make(size=48, resample=0, image_mean=[0.1, 0.2, 0.3], unknown_to_us={"kept": 1})
    processor.save_pretrained(tmp_path / "new")
    again = make.from_pretrained(tmp_path / "new")
    assert again == processor
    assert again.unknown_to_us == {"kept": 1}
    assert make.from_pretrained(tmp_path / "new", resample=2).resample == 2
    assert make.from_pretrained(tmp_path / "new" / "preprocessor_config.json") == processor
    keys = list(json.loads((tmp_path / "new" / "preprocessor_config.json").read_text()))
    assert keys == sorted(keys)  # as transformers writes it
    for broken in ("[]", "{"):
        (tmp_path / "new" / "preprocessor_config.json").write_text(broken)
        with pytest.raises(FileFormatError, match=r"preprocessor_config\.json"):
            make.from_pretrained(tmp_path / "new")


def test_importing_the_processors_does_not_import_torch() -> None:
    code = (
        "import sys, headstart.models.beit.image, headstart.models.cvt.image; print('torch' in"
        " sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_only_listed_formats_are_opened(tmp_path):
    """Pillow starts Ghostscript for an EPS, whatever it is called."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(
        InputError, match=r"a\.png: cannot be read as an image: unknown image format"
    ):
        load_image(path)
    with pytest.raises(InputError, match="/dev/zero is not a regular file"):
        load_image("/dev/zero")


def test_pixels_are_limited_and_the_limit_can_be_raised(monkeypatch):
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    with pytest.raises(InputError, match="has 12000x12000 pixels.*HEADSTART_MAX_PIXELS=144000000"):
        load_image(file.getvalue())
    monkeypatch.setenv("HEADSTART_MAX_PIXELS", "144000000")
    assert load_image(file.getvalue()).shape == (12_000, 12_000, 3)
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's own limit is as it was
    thin = io.BytesIO()
    Image.new("1", (200_000, 2)).save(thin, "PNG")
    with pytest.raises(InputError, match="a side of more than 131,072"):
        load_image(thin.getvalue())


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}])
def test_the_size_of_a_webp_is_known_before_it_is_opened(options):
    file = io.BytesIO()
    Image.new("RGB", (300, 70)).save(file, "WEBP", **options)
    assert webp_size(file.getvalue()) == (300, 70)
    Image.new("RGBA", (300, 70)).save(file := io.BytesIO(), "WEBP", exif=b"Exif\0\0", **options)
    assert webp_size(file.getvalue()) == (300, 70)
