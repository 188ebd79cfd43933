"""Segmentation of an image in windows, and the colors that show it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headstart.pipelines.semantic_segmentation import class_colors, class_scores, overlay, starts
from scenes import COLORS, scene


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_everything(length, window, stride):
    stride = min(stride, window)
    places = starts(length, window, stride)
    covered = np.zeros(length, bool)
    for place in places:
        assert place >= 0 and (place + window <= length or len(places) == 1)
        covered[place : place + window] = True
    assert covered.all() and (length > window or places == [0]) and len(set(places)) == len(places)


class Local(nn.Module):
    """A network whose answer at a pixel depends on that pixel alone, so that windows may not change
    it; it counts what it sees.
    """

    def __init__(self, patch=(1, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        self.config = type("Config", (), {"patch": patch, "num_labels": 4})()
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        return type(
            "Out", (), {"logits": torch.einsum("vc,bchw->bvhw", self.weight, pixel_values)}
        )()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.integers(2, 50), st.integers(2, 60), st.integers(2, 60))
def test_windows_change_nothing_where_context_does_not_matter(height, width, rows, columns):
    pixels = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * width))
    model = Local()
    with torch.no_grad():
        whole, windows = class_scores(model, pixels), class_scores(model, pixels, (rows, columns))
    assert whole.shape == (4, height, width)
    torch.testing.assert_close(windows, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width", [(40, 56), (17, 33), (32, 32), (9, 31)])
def test_one_window_is_the_whole(tiny_beit, height, width):
    from headstart import BeitForSemanticSegmentation

    torch.manual_seed(1)
    model = BeitForSemanticSegmentation.from_pretrained(tiny_beit, num_labels=3)
    pixels = torch.randn(3, height, width)
    with torch.no_grad():
        whole = class_scores(model, pixels)
        assert torch.equal(class_scores(model, pixels, (max(40, height), max(56, width))), whole)
        assert whole.shape == (3, height, width)
        if max(height, width) > 32:
            assert not torch.allclose(class_scores(model, pixels, (32, 32)), whole)


def test_sides_are_filled_up_to_whole_patches():
    model = Local((16, 16))
    with torch.no_grad():
        scores = class_scores(model, torch.ones(3, 70, 99))
    assert model.seen == [(1, 3, 80, 112)] and scores.shape == (4, 70, 99)


def test_overlay_leaves_unlabelled_pixels():
    image, classes = scene(0)
    painted = overlay(image, classes, COLORS, 1.0)
    assert np.array_equal(painted[-1], image[-1]) and np.array_equal(
        painted[:-1], COLORS[classes[:-1]]
    )


def test_made_up_colors_differ():
    config = type("Config", (), {"num_labels": 150})()
    colors = class_colors(config).astype(int)
    assert len({tuple(c) for c in colors.tolist()}) == 150
    near = np.abs(colors[:12, None] - colors[None, :12]).sum(-1) + 1000 * np.eye(12)
    assert near.min() > 60
