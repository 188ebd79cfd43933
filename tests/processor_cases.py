"""Runs the cases of `golden/processors` (transformers 4.57.6 with Pillow 13) through our processor
of the same name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from conftest import golden_cases, golden_dir, read_json

# Where ours is better than the recorded numbers, and why (each has a test of its own in
# test_images.py).
OURS_IS_BETTER = {
    "rgb_height3_20x3.png": "transformers takes an image 3 pixels high for channels-first",
    "i16_40x60.png": "Pillow cuts 16-bit gray at 255 instead of scaling it",
}
GREY_LEVEL = 1.001  # one of 255, and float32's rounding after normalization


def image_cases(processor: str) -> list[tuple[str, str]]:
    """(case, image) of every recorded output or exception of a processor."""
    found = []
    for case in golden_cases("processors"):
        if case.startswith(processor + "__") and not case.endswith(
            ("__segmentation", "__post_process")
        ):
            found += [
                (case, name)
                for name in read_json(golden_dir("processors", case) / "params.json")["images"]
            ]
    return found


def open_input(case: str, name: str) -> Any:
    """The input of a case: an array, or a PIL image as transformers' users pass it."""
    arrays = golden_dir("processors", case) / "arrays.npz"
    if arrays.exists():
        with np.load(arrays) as file:
            return file[name]
    image = Image.open(golden_dir("processors", "images") / name)
    image.load()  # closes the file
    return image


def grey_levels_apart(processor: Any, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference in gray levels of the 8-bit image, before rescaling and
    normalization.
    """
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    std = np.reshape(processor.image_std if processor.do_normalize else [1.0] * 3, (3, 1, 1))
    factor = processor.rescale_factor if processor.do_rescale else 1
    return float(np.abs((ours - theirs) * std / factor).max())


def check_case(make: type, case: str, name: str) -> None:
    """Compares one image of one case.

    What transformers refused must come out finite, or be refused with a reason.
    """
    if int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("recorded with Pillow 13, whose resize orders its passes in another way")
    folder: Path = golden_dir("processors", case)
    params = read_json(folder / "params.json")
    processor = make(**params["init"])
    assert processor.to_dict() == read_json(folder / "preprocessor_config.json")
    assert make.from_pretrained(folder) == processor
    image = open_input(case, name)
    if "raises" in params["images"][name]:
        if params["init"].get("do_convert_rgb", True) or getattr(image, "mode", "") == "P":
            pixels = processor(image, return_tensors="np", **params["call"]).pixel_values
            assert pixels.shape[:2] == (1, 3)
            assert np.isfinite(pixels).all()
        else:
            with pytest.raises(
                ValueError,
                match="image_mean and image_std have 3 values, but the image has [14] channel",
            ):
                processor(image, return_tensors="np", **params["call"])
        return
    ours = processor(image, return_tensors="np", **params["call"]).pixel_values
    with np.load(folder / "outputs.npz") as file:
        theirs = file[name]
    if params["call"].get("data_format") == "channels_last":
        ours, theirs = np.moveaxis(ours, -1, 1), np.moveaxis(theirs, -1, 1)
    if name in OURS_IS_BETTER:
        assert ours.shape != theirs.shape or grey_levels_apart(processor, ours, theirs) > 10, (
            "no longer different: take it off the list"
        )
    else:
        assert grey_levels_apart(processor, ours, theirs) <= GREY_LEVEL
