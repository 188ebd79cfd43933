"""BEiT's recipes: the paper's numbers for the paper's data, sensible ones for small data."""

import pytest

from headstart import BeitConfig
from headstart.models.beit.recipe import LEAST_RATE, PAPER, paper_recipe, recipe
from headstart.recipe import Facts

BASE, LARGE = (
    {},
    {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
)
IMAGENET = 1_281_167


@pytest.mark.parametrize(
    "shape, masks, expected",
    [
        (
            BASE,
            True,
            {
                "lr": 4e-3,
                "batch_size": 1024,
                "layer_decay": 0.65,
                "drop_path": 0.1,
                "mixup": 0.8,
                "cutmix": 1.0,
            },
        ),
        (
            LARGE,
            True,
            {
                "lr": 1e-3,
                "batch_size": 1024,
                "layer_decay": 0.75,
                "drop_path": 0.2,
                "mixup": 0.8,
                "erasing": 0.25,
            },
        ),
        (
            BASE,
            False,
            {
                "lr": 2e-5,
                "batch_size": 512,
                "layer_decay": 0.85,
                "drop_path": 0.1,
                "mixup": 0.0,
                "weight_decay": 1e-8,
            },
        ),
        (
            LARGE,
            False,
            {
                "lr": 2e-5,
                "batch_size": 512,
                "layer_decay": 0.9,
                "drop_path": 0.4,
                "mixup": 0.0,
                "label_smoothing": 0.1,
            },
        ),
    ],
)
def test_classification_of_imagenet_is_the_papers(shape, masks, expected):
    got = recipe(
        Facts(IMAGENET, 1000, 400, 500, config=BeitConfig(**shape, use_mask_token=masks))
    ).to_dict()
    assert {key: got[key] for key in expected} == expected
    pretraining = 50 if shape else 100
    epochs = pretraining if masks else 30
    assert got["steps"] == -(-epochs * IMAGENET // got["batch_size"])
    warmup = {30: 5, 50: 5, 100: 20}[epochs]
    assert got["warmup_steps"] == round(got["steps"] * warmup / epochs)


def test_what_a_checkpoint_has_learned():
    masked, tuned = BeitConfig(use_mask_token=True), BeitConfig(use_mask_token=True)
    masked.architectures, tuned.architectures = (
        ["BeitForMaskedImageModeling"],
        ["BeitForImageClassification"],
    )
    assert (
        "pretrained" in recipe(Facts(500, config=masked)).name
        and "tuned" in recipe(Facts(500, config=tuned)).name
    )
    assert "tuned" in recipe(Facts(500)).name


def test_segmentation_and_pretraining():
    pixels = recipe(Facts(20_210, 150, task="semantic-segmentation", config=BeitConfig()))
    assert (pixels.steps, pixels.warmup_steps, pixels.batch_size, pixels.lr) == (
        160_000,
        1_500,
        16,
        3e-5,
    )
    assert pixels.schedule == "poly" and pixels.layer_decay == 0.9 and pixels.weight_decay == 0.05
    masks = recipe(
        Facts(14_000_000, task="masked-image-modeling", config=BeitConfig(use_mask_token=True))
    )
    assert (masks.batch_size, masks.lr, masks.clip_grad, masks.drop_path) == (
        2048,
        1.5e-3,
        3.0,
        0.1,
    )


@pytest.mark.parametrize("task", sorted(LEAST_RATE))
@pytest.mark.parametrize("examples", [10, 300, 19_999])
def test_small_data_gets_enough_updates_at_a_rate_that_moves(task, examples):
    got = recipe(Facts(examples, 10, task=task, config=BeitConfig(use_mask_token=True)))
    assert (
        got.steps >= 200
        and got.batch_size <= 64
        and got.lr >= LEAST_RATE[task]
        and got.warmup_steps < got.steps
    )


def test_every_setting_is_a_recipe():
    for task, start, size in PAPER:
        assert paper_recipe(task, start, size) is PAPER[task, start, size]
    assert (
        paper_recipe("semantic-segmentation", "pretrained", "large")
        is PAPER["semantic-segmentation", "tuned", "large"]
    )
