"""Preprocessing in ONNX against Pillow's filters and our image processors, on odd images."""

import numpy as np
import pytest

import headstart
from headstart.engine.engines import installed
from headstart.errors import ConfigError
from photo_data import ODD_SHAPES, odd_photo, pillow_levels

pytestmark = pytest.mark.skipif(
    not installed("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime"
)


def runner(processor):
    import onnxruntime as ort

    from headstart.engine.preprocessing import preprocessing_graph

    session = ort.InferenceSession(preprocessing_graph(processor).SerializeToString())
    return lambda image: session.run(None, {"image": image})[0]


def levels(processor, pixels):
    """`pixel_values` as gray levels from 0 to 255."""
    mean, std = (
        np.reshape(each, (1, 3, 1, 1)) for each in (processor.image_mean, processor.image_std)
    )
    return (pixels * std + mean) / processor.rescale_factor


PROCESSORS = {
    "bit": headstart.BitImageProcessor(size=64, crop_size=48),
    "bit, padded": headstart.BitImageProcessor(size=40, crop_size=57),
    "bit, authors'": headstart.BitImageProcessor(
        size={"height": 50, "width": 37}, do_center_crop=False
    ),
    "bit, crop alone": headstart.BitImageProcessor(do_resize=False, crop_size=44),
    "cvt": headstart.ConvNextImageProcessor(size=56),
    "cvt, bicubic": headstart.ConvNextImageProcessor(size=56, resample=3),
    "cvt, warped": headstart.ConvNextImageProcessor(size=384),
    "beit": headstart.BeitImageProcessor(size={"shortest_edge": 64}, crop_size=56),
    "beit, square": headstart.BeitImageProcessor(size=64, do_center_crop=False, resample=2),
    "lanczos": headstart.BitImageProcessor(size=64, crop_size=48, resample=1),
    "hamming": headstart.BitImageProcessor(size=64, crop_size=48, resample=5),
    "box": headstart.BitImageProcessor(size=64, crop_size=48, resample=4),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_pillow_and_of_the_processor(name):
    processor = PROCESSORS[name]
    run = runner(processor)
    for shape in ODD_SHAPES:
        image = odd_photo(shape)
        found = levels(processor, run(image))
        own = processor(image if shape[2] > 1 else image[..., 0], return_tensors="np")
        assert np.abs(found - pillow_levels(processor, image)).max() < 1.01, shape
        assert np.abs(found - levels(processor, own["pixel_values"])).max() < 1.01, shape


def test_sizes_that_change_are_refused():
    from headstart.engine.preprocessing import preprocessing_graph

    for processor in (
        headstart.BitImageProcessor(do_center_crop=False),
        headstart.BitImageProcessor(do_resize=False, do_center_crop=False),
    ):
        with pytest.raises(ConfigError, match="another size for every image.*set a crop"):
            preprocessing_graph(processor)


def test_the_nearest_pixel_is_refused():
    from headstart.engine.preprocessing import preprocessing_graph

    with pytest.raises(ConfigError, match="resample=0"):
        preprocessing_graph(headstart.BitImageProcessor(resample=0))
