"""Image processors: layouts, batches, frameworks, saving."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.errors import FileFormatError, InputError, MissingExtraError
from headstart.images.decode import channel_axis
from headstart.images.processor import BatchFeature
from headstart.models.beit.image import BeitImageProcessor
from headstart.models.bit.image import BitImageProcessor
from headstart.models.cvt.image import ConvNextImageProcessor
from random_images import PROCESSORS, SIZES, noise


@pytest.mark.parametrize(
    ("shape", "torch_like", "layout"),
    [
        ((20, 30), False, "none"),
        ((20, 30, 3), False, "channels_last"),
        ((3, 20, 30), False, "channels_first"),
        ((1, 20, 30), True, "channels_first"),
        ((3, 20, 3), False, "channels_last"),  # 3 pixels high
        ((3, 20, 3), True, "channels_first"),  # 3 pixels wide
        ((3, 20, 1), False, "channels_last"),
        ((4, 20, 30), False, "channels_first"),
    ],
)
def test_layout_of_an_array(shape: tuple[int, ...], torch_like: bool, layout: str) -> None:
    assert channel_axis(shape, torch_like=torch_like) == layout


def test_an_image_three_pixels_high_keeps_its_height() -> None:
    low = noise(3, 20)
    wanted = BitImageProcessor(size=12, crop_size=12)(
        Image.fromarray(low), return_tensors="np"
    ).pixel_values
    processor = BitImageProcessor(size=12, crop_size=12)
    np.testing.assert_array_equal(processor(low, return_tensors="np").pixel_values, wanted)
    chw = torch.from_numpy(low).permute(2, 0, 1)
    np.testing.assert_array_equal(processor(chw, return_tensors="np").pixel_values, wanted)
    hwc = torch.from_numpy(low)
    np.testing.assert_array_equal(
        processor(hwc, input_data_format="channels_last", return_tensors="np").pixel_values, wanted
    )
    assert processor(low, do_resize=False, do_center_crop=False).pixel_values[0].shape == (3, 3, 20)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(5, 40), st.integers(5, 40), st.sampled_from(sorted(PROCESSORS)), st.integers(0, 9)
)
def test_every_form_of_one_image_gives_the_same(h: int, w: int, name: str, seed: int) -> None:
    processor, image = PROCESSORS[name], noise(h, w, 3, seed)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    wanted = processor(image, return_tensors="np").pixel_values
    chw = np.ascontiguousarray(image.transpose(2, 0, 1))
    same = [
        Image.fromarray(image),
        png.getvalue(),
        io.BytesIO(png.getvalue()),
        chw,
        torch.from_numpy(chw),
        image[None],
        [[image]],
    ]
    same += [
        image.astype(np.int64),
        torch.from_numpy(chw)[None].long(),
        np.asfortranarray(image),
        image[::-1][::-1],
    ]
    for form in same:
        np.testing.assert_array_equal(processor(form, return_tensors="np").pixel_values, wanted)
    for form in (
        image.astype(np.float32),
        torch.from_numpy(chw).double(),
        torch.from_numpy(chw).bfloat16(),
    ):
        ours = processor(form, return_tensors="np").pixel_values
        # floats are not rounded between the passes
        assert np.abs(ours - wanted).max() <= 2.5 / 255 / min(processor.image_std)
    for form in (image / 255.0, (image / 255.0).astype(np.float32)):
        ours = processor(form, do_rescale=False, return_tensors="np").pixel_values
        assert np.abs(ours - wanted).max() <= 2.5 / 255 / min(processor.image_std)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=5),
    st.randoms(),
    st.sampled_from(sorted(PROCESSORS)),
)
def test_a_batch_is_its_images_one_by_one(
    sizes: list[tuple[int, int]], random: object, name: str
) -> None:
    processor = PROCESSORS[name]
    images = [
        noise(h, w, seed=i) if i % 2 else Image.fromarray(noise(h, w, seed=i))
        for i, (h, w) in enumerate(sizes)
    ]
    batch = processor(images, return_tensors="np").pixel_values
    assert batch.dtype == np.float32
    order = list(range(len(sizes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = processor([images[i] for i in order], return_tensors="np").pixel_values
    for i, place in enumerate(order):
        np.testing.assert_array_equal(shuffled[i], batch[place])
        np.testing.assert_array_equal(
            processor(images[place], return_tensors="np").pixel_values[0], batch[place]
        )


@given(SIZES, SIZES)
def test_no_step_returns_the_pixels_themselves(h: int, w: int) -> None:
    image = noise(h, w)
    processor = BitImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    result = processor(
        Image.fromarray(image), return_tensors="np", data_format="channels_last"
    ).pixel_values
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[0], image)
    assert processor(Image.fromarray(image), data_format=None).pixel_values[0].shape == (h, w, 3)


def test_the_callers_arrays_are_not_written_into() -> None:
    image = noise(30, 40)
    for form in (image, image.astype(np.float32), torch.from_numpy(image.copy())):
        before = np.asarray(form).copy()
        for processor in PROCESSORS.values():
            processor(form, do_resize=False, return_tensors="np").pixel_values[:] = 7
        np.testing.assert_array_equal(np.asarray(form), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=.*above 0"),
        ({"size": {"longest_edge": 5}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 5}}, "crop_size="),
        ({"resample": 6}, "resample=6"),
        ({"image_std": [1, 0, 1]}, "deviation of 0"),
        ({"image_mean": [0, 1]}, "image_mean has 2 values and image_std 3"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BitImageProcessor(**values)


def test_bad_words_are_refused() -> None:
    for name in ("return_tensors", "data_format", "input_data_format"):
        with pytest.raises(InputError, match=f"{name}='x': expected one of"):
            BitImageProcessor()(np.zeros((5, 5)), **{name: "x"})
    with pytest.raises(InputError, match="have 2 values, but the image has 3 channels"):
        BitImageProcessor(image_mean=[0.5, 0.5], image_std=0.5)(np.zeros((5, 5)))


def test_frameworks() -> None:
    processor, image = PROCESSORS["bit"], noise(30, 40)
    wanted = processor(image, return_tensors="np").pixel_values
    tensor = processor(image, return_tensors="pt").pixel_values
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    listed = processor([image, image]).pixel_values
    assert isinstance(listed, list)
    np.testing.assert_array_equal(listed[1], wanted[0])


@pytest.mark.parametrize(
    ("kind", "package", "install"),
    [
        ("jax", "jax", r"'headstart\[flax\]'"),
        pytest.param("tf", "tensorflow", "tensorflow", marks=pytest.mark.slow),
    ],
)
def test_other_frameworks(
    kind: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        patch.setitem(sys.modules, f"{package}.numpy", None)
        with pytest.raises(MissingExtraError, match=f"pip install {install}$"):
            PROCESSORS["bit"](noise(30, 40), return_tensors=kind)
    pytest.importorskip(package)
    batch = PROCESSORS["bit"](noise(30, 40), return_tensors=kind).pixel_values
    assert type(batch).__module__.split(".")[0] in ("jax", "jaxlib", "tensorflow")
    np.testing.assert_array_equal(
        np.asarray(batch), PROCESSORS["bit"](noise(30, 40), return_tensors="np").pixel_values
    )
    again = PROCESSORS["bit"](
        batch,
        do_resize=False,
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
        return_tensors="np",
    )
    np.testing.assert_array_equal(again.pixel_values, np.asarray(batch))


def test_batch_feature_takes_data_and_a_tensor_type_as_v4():
    batch = BatchFeature({"labels": [1, 0, 2]}, "np", extra=[3])
    assert isinstance(batch.labels, np.ndarray) and batch["extra"].tolist() == [3]


def test_batch_feature() -> None:
    batch = BatchFeature(
        pixel_values=torch.zeros(2, 3), labels=torch.zeros(2, dtype=torch.long), sizes=[1, 2]
    )
    assert batch.pixel_values is batch["pixel_values"]
    assert dict(**batch) == batch.data
    half = batch.to("cpu", torch.float16)
    assert (half.pixel_values.dtype, half.labels.dtype, half.sizes) == (
        torch.float16,
        torch.int64,
        [1, 2],
    )
    assert batch.to(dtype=torch.float64).pixel_values.dtype == torch.float64
    with pytest.raises(AttributeError, match="no logits here; there is pixel_values, labels"):
        _ = batch.logits


@pytest.mark.parametrize("make", [BitImageProcessor, BeitImageProcessor, ConvNextImageProcessor])
def test_save_and_load(make: type, tmp_path: Path) -> None:
    processor = make(size=48, resample=0, image_mean=[0.1, 0.2, 0.3], unknown_to_us={"kept": 1})
    processor.save_pretrained(tmp_path / "new")
    again = make.from_pretrained(tmp_path / "new")
    assert again == processor
    assert again.unknown_to_us == {"kept": 1}
    assert make.from_pretrained(tmp_path / "new", resample=2).resample == 2
    assert make.from_pretrained(tmp_path / "new" / "preprocessor_config.json") == processor
    keys = list(json.loads((tmp_path / "new" / "preprocessor_config.json").read_text()))
    assert keys == sorted(keys)  # as transformers writes it
    for broken in ("[]", "{"):
        (tmp_path / "new" / "preprocessor_config.json").write_text(broken)
        with pytest.raises(FileFormatError, match=r"preprocessor_config\.json"):
            make.from_pretrained(tmp_path / "new")


def test_importing_the_processors_does_not_import_torch() -> None:
    code = (
        "import sys, headstart.models.beit.image, headstart.models.cvt.image; print('torch' in"
        " sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
