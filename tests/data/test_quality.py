"""Bad photos: each kind is found where it is made, and real data sets are left alone."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageFilter

from conftest import data_dir
from headstart.data.quality import KINDS, Look, bad_photos, look

SIZE = (300, 220)


def photo(seed: int, width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """Random blobs of several sizes in color, with detail down to the pixel, as photos have."""
    rng = np.random.default_rng(seed)
    values = np.zeros((height, width, 3))
    for cells in (4, 8, 16, 32, 64, 128):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        values += (np.asarray(layer) - 127.5) / cells**0.7
    values *= 50 / values.std()
    return Image.fromarray((values + 128).clip(0, 255).astype(np.uint8))


def kinds(images: list[Image.Image]) -> list[tuple[int, str]]:
    found = bad_photos([look(np.asarray(each.convert("RGB"))) for each in images])
    return [(each.index, each.kind) for each in found]


BAD = {
    "blurred": lambda each: each.filter(ImageFilter.GaussianBlur(5)),
    "dark": lambda each: each.point(lambda value: value // 6),
    "over-exposed": lambda each: each.point(lambda value: min(255, 225 + value // 4)),
    "nearly uniform": lambda each: each.point(lambda value: 100 + value // 100),
    "odd-sized": lambda each: each.resize((45, 33)),
    "odd-shaped": lambda each: each.resize((700, 90)),
    "grayscale": lambda each: each.convert("L"),
}


@pytest.fixture(scope="module")
def good():
    return [photo(seed) for seed in range(24)]


def test_good_photos_have_nothing(good):
    assert kinds(good) == [] and bad_photos([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_nothing_else(good, kind):
    changed = BAD[kind](good[7])
    assert kinds([*good[:7], changed, *good[8:]]) == [(7, kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_is_all_alike_is_left_alone(good, kind):
    """Night shots, X-rays, panoramas: what all images have in common is not a fault of one."""
    assert kinds([BAD[kind](each) for each in good]) == []


@pytest.mark.parametrize("kind", ["blurred", "dark", "over-exposed", "nearly uniform"])
def test_few_images_are_held_to_the_limits_alone(good, kind):
    assert kinds([good[0], good[1], BAD[kind](good[2])]) == [(2, kind)]


def test_a_large_photo_is_evaluated_at_the_size_that_networks_see():
    """Twelve megapixels of a soft lens are sharp at 256 pixels."""
    large = photo(3).resize((3000, 2200), Image.Resampling.BICUBIC)
    assert look(np.asarray(large)).sharpness == pytest.approx(
        look(np.asarray(photo(3))).sharpness, rel=0.35
    )
    found = look(np.asarray(large))
    assert isinstance(found, Look) and (found.width, found.height) == (3000, 2200)


def images_of(tar):
    with tarfile.open(tar) as file:
        for member in file:
            if member.isfile():
                data = file.extractfile(member)
                yield Image.open(io.BytesIO(data.read())).convert("RGB")


@pytest.mark.parametrize("name", ["flowers102/val.tar", "eurosat/val.tar"])
def test_no_false_alarms_on_real_photos(name):
    """Portraits with soft backgrounds, dark forests, lakes without a wave."""
    looks = [look(np.asarray(each)) for each in images_of(data_dir("images") / name)]
    assert [(each.index, each.kind) for each in bad_photos(looks)] == []
