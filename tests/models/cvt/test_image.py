"""The image processor of CvT's published files against transformers' recorded outputs, and its crop
rule.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from headstart.models.cvt.image import ConvNextFeatureExtractor, ConvNextImageProcessor
from processor_cases import check_case, image_cases


@pytest.mark.parametrize(("case", "name"), image_cases("ConvNextImageProcessor"))
def test_equals_transformers(case: str, name: str) -> None:
    check_case(ConvNextImageProcessor, case, name)


@pytest.mark.parametrize(
    ("edge", "crop_pct", "resized"),
    [
        (28, 0.875, ((32, 38), (28, 28))),
        (25, 0.9, ((27, 32), (25, 25))),
        (384, 0.875, ((384, 384), None)),
    ],
)
def test_crop_keeps_its_share_below_384(edge: int, crop_pct: float, resized: tuple) -> None:
    processor = ConvNextImageProcessor(size=edge, crop_pct=crop_pct)
    assert (processor.resized_size(50, 60), processor.target[1]) == resized


def test_old_file(tmp_path: Path) -> None:
    """The form in which v4.2x wrote it.

    Another key for the class, an int as size, null for the default share.
    """
    old = {
        "crop_pct": None,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "size": 224,
    }
    old |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = ConvNextFeatureExtractor.from_pretrained(tmp_path)
    assert (processor.size, processor.crop_pct, processor.resample) == (
        {"shortest_edge": 224},
        0.875,
        3,
    )
    saved = processor.to_dict()
    assert saved["image_processor_type"] == "ConvNextImageProcessor"
    assert "feature_extractor_type" not in saved
    assert ConvNextImageProcessor.from_pretrained(tmp_path, size=112).size == {"shortest_edge": 112}


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="crop_pct=1.5"):
        ConvNextImageProcessor(crop_pct=1.5)
    with pytest.raises(ValueError, match="expected .*shortest_edge"):
        ConvNextImageProcessor(size={"height": 3, "width": 4})


def test_authors_preprocessing() -> None:
    class Published:
        image_size = 224

    processor = ConvNextImageProcessor.for_published(Published())
    assert processor.resized_size(375, 500) == (256, 341)
    assert processor.target[1] == (224, 224)
    assert processor(np.zeros((1, 1), np.uint8), return_tensors="np").pixel_values.shape == (
        1,
        3,
        224,
        224,
    )
