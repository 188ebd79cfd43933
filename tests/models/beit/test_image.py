"""BEiT's image processor against transformers' recorded outputs.

Label maps, where it differs from them on purpose.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from conftest import data_dir, golden_cases, golden_dir, read_json
from headstart.errors import InputError
from headstart.models.beit.image import BeitFeatureExtractor, BeitImageProcessor, reduce_labels
from processor_cases import check_case, image_cases

SEGMENTATION = "BeitImageProcessor__segmentation"


def segmentation_cases() -> list[str]:
    if SEGMENTATION not in golden_cases("processors"):
        return []
    return list(read_json(golden_dir("processors", SEGMENTATION) / "params.json")["cases"])


@pytest.mark.parametrize(("case", "name"), image_cases("BeitImageProcessor"))
def test_equals_transformers(case: str, name: str) -> None:
    check_case(BeitImageProcessor, case, name)


@pytest.mark.parametrize("case", segmentation_cases())
def test_label_maps(case: str) -> None:
    """Equal to transformers where it resizes to the nearest label or not at all.

    Elsewhere it makes labels up, and we do not.
    """
    folder = golden_dir("processors", SEGMENTATION)
    params = read_json(folder / "params.json")
    init, (_, which, kind) = params["cases"][case]["init"], case.split("/")
    with np.load(folder / "maps.npz") as maps, np.load(folder / "outputs.npz") as outputs:
        labels, theirs = maps[which], outputs[case.replace("/", "__")]
    given = {"array": labels, "int64": labels.astype(np.int64), "pil": Image.fromarray(labels)}[
        kind
    ]
    before = labels.copy()
    processor = BeitImageProcessor(**init)
    batch = processor(
        golden_dir("processors", "images") / params["image"], given, return_tensors="np"
    )
    assert np.array_equal(np.asarray(given), before), "the caller's map was written into"
    assert batch.labels.dtype == np.int64
    assert batch.labels.shape == theirs.shape
    allowed = reduce_labels(labels) if processor.do_reduce_labels else labels
    assert set(np.unique(batch.labels)) <= set(np.unique(allowed))
    if init.get("resample") == 0 or not init.get("do_resize", True):
        np.testing.assert_array_equal(batch.labels, theirs)
    elif params["cases"][case]["labels_not_in_the_input_map"]:
        assert not set(np.unique(theirs)) <= set(np.unique(allowed)), (
            "transformers no longer invents labels here"
        )
        nearest = BeitImageProcessor.from_dict(processor.to_dict() | {"resample": 0})(
            np.zeros((*labels.shape, 3), np.uint8), given, return_tensors="np"
        ).labels
        np.testing.assert_array_equal(batch.labels, nearest)


def test_signature_is_the_documented_one() -> None:
    fields = [
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "rescale_factor",
        "do_rescale",
        "do_normalize",
    ]
    assert list(inspect.signature(BeitImageProcessor).parameters) == [
        *fields,
        "image_mean",
        "image_std",
        "do_reduce_labels",
    ]
    call = list(inspect.signature(BeitImageProcessor.preprocess).parameters)
    assert call[:4] == ["self", "images", "segmentation_maps", "do_resize"]
    assert call[7:10] == ["crop_size", "do_rescale", "rescale_factor"]
    assert list(inspect.signature(BeitFeatureExtractor.__call__).parameters) == [
        "self",
        "images",
        "segmentation_maps",
        "kwargs",
    ]


def test_older_names() -> None:
    assert (
        BeitFeatureExtractor.from_dict({"reduce_labels": True, "size": 32}).do_reduce_labels is True
    )
    assert BeitFeatureExtractor().to_dict() == BeitImageProcessor().to_dict()


def test_reduces_every_map_of_a_batch() -> None:
    maps = np.stack([np.full((6, 5), value, np.uint8) for value in (0, 1, 150, 255)])
    processor = BeitImageProcessor(do_resize=False, do_center_crop=False, do_reduce_labels=True)
    labels = processor(np.zeros((4, 6, 5, 3), np.uint8), maps, return_tensors="pt").labels
    assert labels.dtype == torch.int64
    assert [int(each.unique()) for each in labels] == [255, 0, 149, 255]
    assert maps.dtype == np.uint8
    assert maps[2, 0, 0] == 150


@given(st.lists(st.integers(0, 70000), min_size=1, max_size=20))
def test_reduce_labels_is_one_less_or_ignored(labels: list[int]) -> None:
    wanted = [255 if each in (0, 255) else each - 1 for each in labels]
    assert reduce_labels(np.array(labels)).tolist() == wanted


def test_palette_and_16_bit_masks(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 12, (30, 44)).astype(np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(200, 236)))  # colors that are not the indices; sets mode P
    palette.save(tmp_path / "palette.png")
    wide = labels.astype(np.uint16) * 3000
    Image.fromarray(wide).save(tmp_path / "wide.png")
    processor = BeitImageProcessor(do_resize=False, do_center_crop=False)
    photo = np.zeros((30, 44, 3), np.uint8)
    for mask, wanted in (
        (tmp_path / "palette.png", labels),
        (palette, labels),
        (tmp_path / "wide.png", wide),
        (wide, wide),
    ):
        assert np.array_equal(processor(photo, mask).labels[0], wanted)
    for mask in (
        labels[None],
        labels[..., None],
        torch.from_numpy(labels),
        labels.astype(np.float32),
        [labels],
    ):
        assert np.array_equal(processor(photo, mask).labels[0], labels)


def test_bad_maps_are_refused(tmp_path: Path) -> None:
    processor, photo = BeitImageProcessor(size=8, crop_size=8), np.zeros((9, 9, 3), np.uint8)
    Image.new("RGB", (9, 9)).save(tmp_path / "colors.png")
    for mask, message in (
        (tmp_path / "colors.png", "holds colors"),
        (tmp_path / "none.png", "no such"),
        (np.full((9, 9), 0.5), "not integers"),
        (np.full((9, 9), np.nan), "NaN"),
        (np.zeros((2, 9, 9), int), "2 segmentation maps for 1 images"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(photo, mask)


def test_a_small_map_is_surrounded_by_ignored_labels() -> None:
    processor = BeitImageProcessor(do_resize=False, crop_size={"height": 6, "width": 4})
    batch = processor(np.ones((3, 4, 3), np.uint8), np.full((3, 4), 7), return_tensors="np")
    assert batch.labels[0, :, 0].tolist() == [255, 255, 7, 7, 7, 255]
    assert (batch.pixel_values[0, 0, :, 0] == -1).tolist() == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]


def test_post_process() -> None:
    folder = golden_dir("processors", "BeitImageProcessor__post_process")
    inputs, wanted = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    sizes = read_json(folder / "params.json")["target_sizes"]
    outputs = SimpleNamespace(logits=inputs["logits"])
    processor = BeitImageProcessor()
    for target_sizes, name in (
        (None, "native"),
        ([tuple(size) for size in sizes], "resized"),
        (torch.tensor(sizes), "resized"),
    ):
        for i, labels in enumerate(
            processor.post_process_semantic_segmentation(outputs, target_sizes)
        ):
            assert labels.dtype == torch.int64
            assert torch.equal(labels, wanted[f"{name}.{i}"]), (name, i)
    with pytest.raises(ValueError, match="2 target_sizes for 3 images"):
        processor.post_process_semantic_segmentation(outputs, sizes[:2])


def test_real_ade20k_pair() -> None:
    folder = data_dir("segmentation", "ade20k_samples")
    images, masks = sorted((folder / "images").iterdir()), sorted((folder / "masks").iterdir())
    batch = BeitImageProcessor(size=96, do_center_crop=False, do_reduce_labels=True)(
        images, masks, return_tensors="pt"
    )
    assert batch.pixel_values.shape == (3, 3, 96, 96)
    for mask, labels in zip(masks, batch.labels, strict=True):
        with Image.open(mask) as image:
            values = np.unique(np.asarray(image)).tolist()
        assert set(labels.unique().tolist()) <= {
            255 if value == 0 else value - 1 for value in values
        }


def test_authors_preprocessing() -> None:
    classifier = BeitImageProcessor.for_published(
        SimpleNamespace(image_size=224, labels="imagenet-1k")
    )
    assert classifier.resized_size(375, 500) == (256, 341)
    assert classifier.target[1] == (224, 224)
    segmenter = BeitImageProcessor.for_published(SimpleNamespace(image_size=640, labels="ade20k"))
    assert segmenter.resized_size(375, 500) == (640, 853)
    assert segmenter.target[1] is None
    assert segmenter.do_reduce_labels


def test_the_older_name_of_an_option_counts_at_construction():
    labels, image = np.array([[0, 1], [2, 255]], np.uint8), np.zeros((2, 2, 3), np.uint8)
    processor = BeitImageProcessor(do_resize=False, do_center_crop=False, reduce_labels=True)
    assert processor(image, labels, return_tensors="np").labels.tolist() == [[[255, 0], [1, 255]]]


def test_unknown_options_are_kept_with_a_warning(caplog):
    processor = BeitImageProcessor(nonsense=1)
    assert "BeitImageProcessor has no option nonsense; it is kept" in caplog.text
    assert processor.nonsense == 1
    caplog.clear()
    BeitImageProcessor.from_dict({"processor_class": None, "use_fast": False, "size": 8})
    assert not caplog.text


def test_floats_that_are_rescaled_twice_warn(caplog):
    image = np.full((8, 8, 3), 0.5, np.float32)
    processor = BeitImageProcessor(size=8, crop_size=8)
    processor(image, do_rescale=False)
    processor(image * 255)
    assert not caplog.text
    processor([image])
    assert "do_rescale=False" in caplog.text


def test_values_set_after_construction():
    processor = BeitImageProcessor()
    processor.size, processor.crop_size = 16, 12
    assert processor.size == {"height": 16, "width": 16}
    image = np.zeros((30, 20, 3), np.uint8)
    assert processor(image, return_tensors="np").pixel_values.shape == (1, 3, 12, 12)
    with pytest.raises(InputError, match="all above 0"):
        processor.size = 0


def test_single_steps_are_those_of_a_call(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    processor = BeitImageProcessor(size=16, crop_size=12, image_mean=[0.1, 0.2, 0.3])
    cropped = processor.center_crop(processor.resize(image))
    assert processor.resize(image, {"height": 5, "width": 7}).shape == (5, 7, 3)
    wanted = processor(image, return_tensors="np").pixel_values[0]
    for pixels, axes in ((cropped, (2, 0, 1)), (cropped.transpose(2, 0, 1), (0, 1, 2))):
        values = processor.normalize(processor.rescale(pixels))
        np.testing.assert_allclose(values.transpose(axes), wanted, atol=1e-5)
    assert processor.model_input_names == ["pixel_values"]
    processor.to_json_file(tmp_path / "preprocessor_config.json")
    assert BeitImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
