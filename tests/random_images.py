"""Random images and the processors that read them."""

import numpy as np
from hypothesis import strategies as st

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


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """The hardest image: every pixel on its own, half of them at the ends of the range."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels))
    ends = rng.integers(0, 2, pixels.shape) * 255
    return np.where(rng.random(pixels.shape) < 0.5, pixels, ends).astype(np.uint8)
