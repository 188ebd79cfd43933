"""The image pipeline against slow definitions, Pillow, and every photo and damaged file of the
reference data.
"""

import csv
import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import data_dir
from headstart.errors import InputError
from headstart.images import decode as images
from headstart.images.decode import decode, load_image, orient, webp_size
from headstart.models.beit.image import BeitImageProcessor
from headstart.models.bit.image import BitImageProcessor
from random_images import PROCESSORS, noise


def photo_rows() -> list[dict[str, str]]:
    """Rows of photos.csv (none where the data is absent)."""
    try:
        path = data_dir("photos", "photos.csv")
    except pytest.skip.Exception:
        return []
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


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
        (np.zeros((5, 6, 7), np.uint8), r"shape \(5, 6, 7\) is not an image"),
        (np.zeros(5, np.uint8), r"shape \(5,\) is not an image"),
        (np.zeros((0, 6, 3), np.uint8), "holds no pixels"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), 300), "int64 pixels from 300 to 300"),
        (np.full((4, 5), -1), "from -1"),
        (np.array([["a", "b"]]), "expected integers, bool or floats"),
        (3.5, "float is not an image"),
        ([], "the list is empty"),
        (None, "NoneType is not an image"),
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
