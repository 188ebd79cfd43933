"""Training sets the side of every family's image processor, which then makes images of that
side.
"""

import numpy as np
import pytest

import headstart
from headstart.tasks.image_classification import processor_side, set_processor_side


@pytest.mark.parametrize(
    "name", ["BitImageProcessor", "BeitImageProcessor", "ConvNextImageProcessor"]
)
def test_images_have_the_side_that_was_set(name):
    processor = getattr(headstart, name)()
    set_processor_side(processor, 40)
    assert processor_side(processor) == 40
    assert processor(np.zeros((50, 70, 3), np.uint8), return_tensors="np")[
        "pixel_values"
    ].shape == (1, 3, 40, 40)
