"""`pipeline`: what goes in, what comes out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from command_line import call
from headstart import (
    AutoImageProcessor,
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessor,
    BitConfig,
    BitForImageClassification,
    BitImageProcessor,
    BitModel,
    pipeline,
)
from headstart.errors import ConfigError, InputError
from headstart.images.decode import open_map
from headstart.pipelines.semantic_segmentation import mask_image
from photo_data import CLASSES, make_photo


@pytest.fixture(scope="module")
def classify(tiny_model):  # noqa: F811
    return pipeline("image-classification", tiny_model)


@pytest.fixture(scope="module")
def expected(tiny_model):  # noqa: F811
    """Probabilities computed step by step."""
    model = BitForImageClassification.from_pretrained(tiny_model)
    processor = AutoImageProcessor.from_pretrained(tiny_model)

    def scores(pixels):
        with torch.no_grad():
            return model(**processor(pixels, return_tensors="pt")).logits.softmax(1)[0]

    return scores


def test_every_kind_of_image_gives_the_same(classify, expected, tmp_path):
    pixels = make_photo(CLASSES["cat"], 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    right = expected(pixels)
    file = tmp_path / "a.png"
    for image in (
        file,
        str(file),
        buffer.getvalue(),
        Image.fromarray(pixels),
        pixels,
        torch.from_numpy(pixels),
    ):
        labels = classify(image, top_k=5)
        assert [each["label"] for each in labels] == [
            f"LABEL_{i}" for i in right.argsort(descending=True).tolist()
        ], type(image)
        assert [each["score"] for each in labels] == pytest.approx(
            right.sort(descending=True).values.tolist(), abs=1e-6
        )
        assert sum(each["score"] for each in labels) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_many_images_keep_their_order(classify, expected, batch_size):
    images = [
        make_photo(color, i, width=20 + 7 * i, height=31)
        for i, color in enumerate([*CLASSES.values(), *CLASSES.values()])
    ]
    found = classify(images, top_k=1, batch_size=batch_size)
    assert len(found) == 6 and all(len(labels) == 1 for labels in found)
    for image, labels in zip(images, found, strict=True):
        right = expected(image)
        assert labels[0]["label"] == f"LABEL_{int(right.argmax())}" and labels[0][
            "score"
        ] == pytest.approx(float(right.max()), abs=1e-5)


def test_a_list_of_one_is_a_list(classify):
    assert isinstance(classify([make_photo(CLASSES["dog"], 0)])[0], list)
    assert classify([]) == []
    assert len(classify(np.stack([make_photo(CLASSES["dog"], i) for i in range(3)]), top_k=2)) == 3
    assert len(classify(make_photo(CLASSES["dog"], 0), top_k=99)) == 5


def test_a_model_object_and_its_processor(tiny_model, classify):  # noqa: F811
    pixels = make_photo(CLASSES["bird"], 3)
    loaded = BitForImageClassification.from_pretrained(tiny_model)
    assert pipeline("image-classification", loaded)(pixels) == classify(pixels)
    bare = BitForImageClassification(
        loaded.config.from_dict(
            {k: v for k, v in loaded.config.to_dict().items() if k != "_name_or_path"}
        )
    )
    with pytest.raises(ConfigError, match="pass image_processor="):
        pipeline("image-classification", bare)
    assert (
        len(
            pipeline(
                "image-classification",
                bare,
                image_processor=AutoImageProcessor.from_pretrained(tiny_model),
            )(pixels)
        )
        == 5
    )


def test_errors(classify, tmp_path):
    with pytest.raises(
        ConfigError,
        match="no pipeline for 'image-clasification'; did you mean image-classification",
    ):
        pipeline("image-clasification", "x")
    with pytest.raises(ConfigError, match="which model"):
        pipeline("image-classification")
    with pytest.raises(InputError, match="top_k=0"):
        classify(make_photo(CLASSES["bird"], 0), top_k=0)
    with pytest.raises(InputError, match="batch_size=0"):
        classify([make_photo(CLASSES["bird"], 0)], batch_size=0)
    (tmp_path / "words.jpg").write_text("words")
    with pytest.raises(InputError, match=r"words\.jpg"):
        classify(tmp_path / "words.jpg")


@pytest.mark.parametrize("count", [3, 256, 400])
def test_masks_hold_the_numbers_of_their_classes(count, tmp_path):
    """A palette has room for 256."""
    classes = np.array([[0, 1, count - 1]])
    mask_image(classes, np.zeros((count, 3), np.uint8)).save(tmp_path / "mask.png")
    assert open_map(tmp_path / "mask.png").tolist() == classes.tolist()


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """A folder that holds a network without a head, and its processor."""
    folder = tmp_path_factory.mktemp("headless")
    torch.manual_seed(0)
    config = BitConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4)
    BitModel(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 24}, crop_size=20).save_pretrained(folder)
    return folder


def test_a_checkpoint_without_the_head_does_not_answer(headless, capsys):
    with pytest.raises(ConfigError, match=r"\(BitModel\) has no trained head.*lacks classifier"):
        pipeline("image-classification", headless)
    image = headless / "image.png"
    Image.fromarray(make_photo((9, 9, 9), 0)).save(image)
    for command in (["predict", headless, image], ["explain", headless, image, "--out", headless]):
        code, out, err = call(capsys, *command)
        assert code == 2 and not out and "has no trained head" in err


def test_arguments_of_transformers_pipelines(tiny_model):
    image = make_photo((9, 9, 9), 0)
    processor = AutoImageProcessor.from_pretrained(tiny_model)
    plain = pipeline("image-classification", tiny_model, device=-1, top_k=2)(image)
    same = {"feature_extractor": processor, "torch_dtype": torch.float32, "framework": "pt"}
    assert pipeline("image-classification", tiny_model, top_k=2, **same)(image) == plain
    assert len(plain) == 2
    half = pipeline("image-classification", tiny_model, torch_dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 and half(image)[0]["score"] < 1
    for wrong, says in (
        ({"tokenizer": processor}, "has no argument 'tokenizer'; it takes image_processor, device"),
        ({"topk": 1}, "has no argument 'topk'"),
        ({"framework": "tf"}, "framework='tf'; pipelines run in PyTorch"),
    ):
        with pytest.raises(ConfigError, match=says):
            pipeline("image-classification", tiny_model, **wrong)


def test_image_features_are_those_of_the_network(headless):
    image = make_photo((90, 9, 9), 3)
    extract = pipeline("image-feature-extraction", headless, return_tensors=True)
    with torch.no_grad():
        out = extract.model(**extract.image_processor(image, return_tensors="pt"))
    assert torch.equal(extract(image), out.last_hidden_state)
    assert torch.equal(extract(image, pool=True), out.pooler_output.flatten())
    found = pipeline("image-feature-extraction", headless)([image, image])
    assert len(found) == 2 and found[0] == found[1] == out.last_hidden_state.tolist()


def test_image_segmentation_gives_a_mask_for_each_class():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = BeitConfig(
        **sizes,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
        out_indices=[0, 1, 2, 3],
        num_labels=3,
        pool_scales=[1],
        use_relative_position_bias=True,
    )
    model = BeitForSemanticSegmentation(config).eval()
    size = {"height": 32, "width": 32}
    processor = BeitImageProcessor(size=size, do_center_crop=False)
    image = np.concatenate([make_photo((200, 9, 9), 3, 32, 16), make_photo((9, 9, 200), 3, 32, 16)])
    masks = pipeline("image-segmentation", model, image_processor=processor)(image)
    classes = pipeline("semantic-segmentation", model, image_processor=processor)(image)["mask"]
    assert [each["label"] for each in masks] == [f"LABEL_{i}" for i in np.unique(classes)]
    for i, each in zip(np.unique(classes), masks, strict=True):
        assert np.array_equal(np.asarray(each["mask"]) == 255, classes == i)
        assert each["mask"].mode == "L" and each["score"] is None


def test_a_loaded_model_takes_the_type_of_a_pipeline():
    """torch_dtype= holds for a model object as it does for a name; "auto" leaves it as it is."""
    model = headstart.BitForImageClassification.from_pretrained("bit-mini", torch_dtype="float32")
    processor = headstart.AutoImageProcessor.from_pretrained("bit-mini")
    pixels = np.zeros((64, 64, 3), np.uint8)
    for dtype, expected in (("auto", torch.float32), (torch.bfloat16, torch.bfloat16)):
        classify = headstart.pipeline(
            "image-classification", model, feature_extractor=processor, torch_dtype=dtype
        )
        assert classify.model.dtype == expected and len(classify(pixels, top_k=2)) == 2
