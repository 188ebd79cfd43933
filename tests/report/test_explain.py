"""What a network looked at: Grad-CAM on maps and averaged tokens, attention of a class token.

Classes, several labels and numbers.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from headstart import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    BeitImageProcessor,
    CvtConfig,
    CvtForImageClassification,
    pipeline,
)
from headstart.cli.app import main
from headstart.data.labels import MULTI, REGRESSION
from headstart.errors import ConfigError
from headstart.report.explain import as_maps, explain, explain_several, heat_maps
from headstart.tasks.image_classification import head_of
from photo_data import CLASSES

SMALL = {"steps": 40, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}


def patch(color, top=2, left=11):
    """A patch of a color in a gray image."""
    image = np.full((20, 20, 3), 110, np.uint8)
    image[top : top + 7, left : left + 7] = color
    return image


def tiny_beit(**values):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "image_size": 24,
    }
    torch.manual_seed(0)
    return BeitForImageClassification(
        BeitConfig(
            **sizes,
            patch_size=4,
            num_labels=3,
            initializer_range=0.3,
            layer_scale_init_value=1.0,
            **values,
        )
    ).eval()


@pytest.mark.parametrize("kind", [None, REGRESSION])
def test_heat_is_the_definition(tiny_model, kind):
    """Against the formula with gradients taken by hand from the last map on."""
    model = AutoModelForImageClassification.from_pretrained(tiny_model, problem_type=kind).eval()
    pixels = torch.randn(1, 3, 56, 64, generator=torch.Generator().manual_seed(0))
    last = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1].detach()

    def score(values):
        pooled = model.bit.norm(values).mean((2, 3))
        return head_of(model)(pooled)[0, 2]

    slope = torch.autograd.functional.jacobian(score, last)
    expected = (slope.mean((2, 3), keepdim=True) * last).sum(1)[0]
    assert expected.min() < 0 < expected.max()
    expected = expected.relu() if kind is None else expected.abs()
    heat, scores, index = heat_maps(model, pixels, [2])[0]
    np.testing.assert_allclose(heat, (expected / expected.max()).detach().numpy(), atol=1e-4)
    torch.testing.assert_close(scores, model(pixel_values=pixels).logits[0].detach())
    assert heat.shape == (7, 8) and index == 2


def test_the_map_is_fine_enough_to_point(tiny_model):
    """A small image leaves coarse last maps: an earlier one is taken, the largest if none will do.

    Maps of the tiny network have a quarter, and from the last stage on an eighth, of the pixels.
    """
    model = AutoModelForImageClassification.from_pretrained(tiny_model).eval()
    for sides, expected in (((56, 56), (7, 7)), ((40, 48), (10, 12)), ((20, 28), (5, 7))):
        assert heat_maps(model, torch.randn(1, 3, *sides))[0][0].shape == expected


def test_heat_lies_over_the_image_itself(tiny_model):
    """The overlay has the image's size; what the crop cut off is not lit."""
    model = AutoModelForImageClassification.from_pretrained(tiny_model)
    processor = AutoImageProcessor.from_pretrained(
        tiny_model, size=24, crop_size=20, do_center_crop=True
    )
    found = explain(model, processor, np.full((240, 480, 3), 110, np.uint8))
    assert found.heat.shape == (240, 480) and found.overlay().shape == (240, 480, 3)
    assert found.seen == (20, 20) and found.shrunk == 10
    # 20 of 24 rows and 20 of 48 columns, from the center
    assert found.heat[20:220, 140:340].any()
    assert not found.heat[:19].any() and not found.heat[:, :139].any()
    assert not found.heat[221:].any() and not found.heat[:, 341:].any()
    assert found.overlay(60).shape == (30, 60, 3)


@pytest.mark.parametrize(
    "values",
    [{"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}, {}],
)
def test_attention_of_a_class_token_is_the_definition(values):
    """By finite differences.

    Each weight of the attention is changed by itself, and what that does to the score is its
    gradient.
    """
    model = tiny_beit(use_mean_pooling=False, **values).double()
    pixels = torch.randn(
        1, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    with torch.no_grad():
        weights = model(pixel_values=pixels, output_attentions=True).attentions  # 3 x (1, 2, 7, 7)
    expected = torch.zeros(6, dtype=torch.float64)
    for block, whole in zip(model.beit.blocks, weights, strict=True):
        for head, key in np.ndindex(2, 7):
            scores = []
            for change in (-1e-4, 1e-4):

                def changed(
                    x,
                    *rest,
                    attention=block.attention,
                    head=head,
                    key=key,
                    change=change,
                    whole=whole,
                ):
                    _, _, v = attention.heads(x)
                    moved = whole.clone()
                    moved[0, head, 0, key] += change
                    return attention.output.dense(
                        (moved @ v).transpose(1, 2).reshape(x.shape)
                    ), None

                with pytest.MonkeyPatch.context() as patched, torch.no_grad():
                    patched.setattr(block.attention, "forward", changed)
                    scores.append(float(model(pixel_values=pixels).logits[0, 1]))
            if key:
                expected[key - 1] += (
                    max(0.0, float(whole[0, head, 0, key]) * (scores[1] - scores[0]) / 2e-4) / 2
                )
    heat, _, _ = heat_maps(model, pixels, [1])[0]
    assert heat.shape == (2, 3) and expected.max() > 0
    np.testing.assert_allclose(heat.ravel(), expected / expected.max(), atol=1e-3)


def test_it_looks_at_what_decides(photos, tiny_model, tmp_path):
    """A network tuned to tell red, green and blue is shown a red patch in a gray image."""
    out = headstart.train(photos, model=tiny_model, out=tmp_path / "run", **SMALL).folder
    image = patch((230, 30, 30))
    found = explain(
        AutoModelForImageClassification.from_pretrained(out),
        AutoImageProcessor.from_pretrained(out),
        image,
        "bird",
    )
    assert (
        found.label == "bird"
        and found.heat.shape == (20, 20)
        and found.heat.min() >= 0
        and found.heat.max() <= 1
    )
    assert found.heat[2:9, 11:18].mean() > 1.5 * found.heat[11:, :9].mean()
    assert found.overlay().shape == (20, 20, 3) and np.array_equal(found.image, image)


def write_patches(tmp_path, kind):
    """A table of images with one or two patches; the number is how large the red one is."""
    rng, lines = np.random.default_rng(0), ["image,label"]
    for i in range(40):
        chosen = rng.permutation(list(CLASSES))[: 1 + i % 2]
        places, side = rng.permutation(4), int(rng.integers(2, 9))
        pixels = np.full((20, 20, 3), 110.0)
        for name, place in zip(chosen, places, strict=False):
            top, left = 10 * (place // 2), 10 * (place % 2)
            size = side if kind == REGRESSION else 8
            pixels[top : top + size, left : left + size] = CLASSES[
                "bird" if kind == REGRESSION else name
            ]
        Image.fromarray(
            (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        ).save(tmp_path / f"{i}.png")
        lines.append(
            f"{i}.png,{side * side * (1 + i % 2) + 0.5 if kind == REGRESSION else '|'.join(chosen)}"
        )
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


@pytest.mark.parametrize("kind", [MULTI, REGRESSION])
def test_several_labels_and_numbers_have_heat_too(tiny_model, tmp_path, kind, capsys):
    """The report and the command show where."""
    table = write_patches(tmp_path, kind)
    out = headstart.train(
        table, model=tiny_model, out=tmp_path / "run", problem_type=kind, **SMALL
    ).folder
    page = (out / "report.html").read_text()
    assert page.count("Below each: bright where") == 1 and page.count('alt=""><img') >= 1
    Image.fromarray(patch(CLASSES["bird"])).save(tmp_path / "p.png")
    label = "label" if kind == REGRESSION else "bird"
    with pytest.raises(SystemExit) as end:
        photo, seen = str(tmp_path / "p.png"), str(tmp_path / "seen")
        main(["explain", str(out), photo, "--out", seen, "--label", label])
    assert end.value.code == 0
    model, processor = (
        AutoModelForImageClassification.from_pretrained(out),
        AutoImageProcessor.from_pretrained(out),
    )
    found = explain(model, processor, tmp_path / "p.png", label)
    assert found.heat[2:9, 11:18].mean() > 1.5 * found.heat[11:, :9].mean()
    printed = {
        each["label"]: each["score"]
        for each in pipeline("image-classification", out)(tmp_path / "p.png", top_k=3)
    }
    assert found.score == pytest.approx(printed[label], rel=1e-5)
    shown = f"{label} {found.score:.4g}" if kind == REGRESSION else f"{label} {found.score:.1%}"
    assert shown in " ".join(capsys.readouterr().out.split())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen" / "0001_p.png")), found.overlay())


@pytest.mark.parametrize("mean", [True, False])
def test_images_explained_together_are_those_explained_alone(tiny_model, mean, monkeypatch):
    """Of one size, of several, and more than are decoded at a time or fit into one pass; each for
    a class of its own.
    """
    monkeypatch.setattr("headstart.report.explain.PASS_VALUES", 3 * 3 * 24 * 24)
    beit = tiny_beit(use_relative_position_bias=True, use_mean_pooling=mean)
    bit = AutoModelForImageClassification.from_pretrained(tiny_model).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (30, 40, 3), dtype=np.uint8) for _ in range(11)]
    images[9] = images[9][:20]
    squares = BeitImageProcessor(size=24, do_center_crop=False)
    for model, processor in (
        (bit, AutoImageProcessor.from_pretrained(tiny_model)),
        (beit, squares),
    ):
        names = list(model.config.id2label.values())
        labels = [names[i % 3] for i in range(11)]
        together = explain_several(model, processor, iter(images), labels)
        for image, label, found in zip(images, labels, together, strict=True):
            alone = explain(model, processor, image, label)
            assert found.label == label and np.array_equal(found.image, image)
            assert found.score == pytest.approx(alone.score, rel=1e-4)
            np.testing.assert_allclose(found.heat, alone.heat, atol=1e-4)
        most = [found.label for found in explain_several(model, processor, images)]
        assert most == [explain(model, processor, image).label for image in images]


def test_tokens_have_places():
    processor, image = (
        BeitImageProcessor(size=24, do_center_crop=False),
        Image.new("RGB", (40, 30), (200, 30, 60)),
    )
    for mean in (True, False):
        found = explain(
            tiny_beit(use_relative_position_bias=True, use_mean_pooling=mean), processor, image
        )
        assert (
            found.heat.shape == (30, 40)
            and np.isfinite(found.heat).all()
            and found.heat.max() > 0.5
        )
    tokens = torch.arange(1 + 2 * 3).float().view(1, 7, 1)
    assert torch.equal(
        as_maps(tokens, torch.zeros(1, 3, 4, 6)), torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])
    )
    cvt = CvtForImageClassification(
        CvtConfig(embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 1, 2], num_labels=3)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    heat, _, _ = heat_maps(cvt, torch.randn(1, 3, 128, 192, generator=generator), [0])[0]
    # keys of the last stage, two to each side fewer than its tokens
    assert heat.shape == (4, 6) and heat.max() == 1
    # a last map of 4x6 points at nothing: the stage before
    heat, _, _ = heat_maps(cvt, torch.randn(1, 3, 64, 96, generator=generator), [0])[0]
    assert heat.shape == (8, 12) and heat.max() == 1


def test_errors(tiny_model):
    model = AutoModelForImageClassification.from_pretrained(tiny_model)
    processor = AutoImageProcessor.from_pretrained(tiny_model)
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ConfigError, match="no class 'wing'"):
        explain(model, processor, image, "wing")
    torch.nn.init.zeros_(head_of(model).weight)
    assert explain(model, processor, image).heat.max() == 0
