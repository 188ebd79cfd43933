"""BiT's image processor against transformers' recorded outputs, and what only it has."""

import inspect

import numpy as np
import pytest

from conftest import golden_dir
from headstart.models.bit.image import BitImageProcessor
from processor_cases import check_case, image_cases

DOCUMENTED = [
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
]
DOCUMENTED += ["image_mean", "image_std", "do_convert_rgb"]


@pytest.mark.parametrize(("case", "name"), image_cases("BitImageProcessor"))
def test_equals_transformers(case: str, name: str) -> None:
    check_case(BitImageProcessor, case, name)


def test_signature_is_the_documented_one() -> None:
    assert list(inspect.signature(BitImageProcessor).parameters) == DOCUMENTED
    assert list(inspect.signature(BitImageProcessor.preprocess).parameters) == [
        "self",
        "images",
        *DOCUMENTED,
        "return_tensors",
        "data_format",
        "input_data_format",
        "kwargs",
    ]
    assert BitImageProcessor(False, 32).size == {"shortest_edge": 32}


def test_documented_defaults() -> None:
    values = BitImageProcessor().to_dict()
    assert (values["size"], values["crop_size"], values["resample"]) == (
        {"shortest_edge": 224},
        {"height": 224, "width": 224},
        3,
    )
    assert values["rescale_factor"] == 1 / 255
    assert values["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert all(values[name] is True for name in values if name.startswith("do_"))


def test_convert_rgb_false_keeps_the_channels() -> None:
    gray = golden_dir("processors", "images") / "l_portrait_50x73.png"
    processor = BitImageProcessor(
        do_convert_rgb=False, image_mean=[0.5], image_std=[0.25], crop_size=16
    )
    one = processor(gray, return_tensors="np").pixel_values
    assert one.shape == (1, 1, 16, 16)
    three = processor(
        gray, return_tensors="np", do_convert_rgb=True, image_mean=0.5, image_std=0.25
    ).pixel_values
    np.testing.assert_array_equal(three, np.repeat(one, 3, axis=1))


def test_overrides_last_for_one_call() -> None:
    processor = BitImageProcessor(size=40, crop_size=32)
    photo = np.zeros((50, 60, 3), np.uint8)
    other = processor(
        photo, size={"height": 20, "width": 24}, do_center_crop=False, return_tensors="np"
    )
    assert other.pixel_values.shape == (1, 3, 20, 24)
    assert processor(photo, return_tensors="np").pixel_values.shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="no option do_resise"):
        processor(photo, do_resise=False)


def test_authors_preprocessing() -> None:
    class Published:
        image_size = 48

    photo = np.zeros((40, 70, 3), np.uint8)
    photo[:, 35:] = 255
    pixels = BitImageProcessor.for_published(Published())(photo, return_tensors="np").pixel_values
    assert pixels.shape == (1, 3, 48, 48)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert (pixels[..., :20] == -1).all()
