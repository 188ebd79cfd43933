"""BEiT's files: the authors' formats read and written, resizing, the table of published models."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.interpolate import RectBivariateSpline, make_interp_spline

from conftest import assert_close, data_dir, golden_cases, golden_dir, read_json
from headstart import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
)
from headstart.checkpoint import read_checkpoint
from headstart.config import published_config
from headstart.errors import WeightsError
from headstart.models.beit import positions
from headstart.models.beit.config import PUBLISHED, renumber_labels
from headstart.models.beit.weights import read_authors, save_pth, to_authors
from headstart.registry import published_models

FINETUNE = [case for case in golden_cases("authors", "beit") if case.startswith("finetune")]
PRETRAIN = [case for case in golden_cases("authors", "beit") if case.startswith("pretrain")]
SEGMENT = [case for case in golden_cases("authors", "beit") if case.startswith("segmentation")]


def check_gradients(model, folder, case):
    state = {
        n.removeprefix("beit."): p.grad if p.grad is not None else torch.zeros_like(p)
        for n, p in model.named_parameters()
    }
    published = to_authors(state)
    for name, value in load_file(folder / "grads.safetensors").items():
        limit = 1e-4 * max(1e-3, float(value.abs().max()))
        worst = float((published[name.removeprefix("backbone.")] - value).abs().max())
        assert worst <= limit, (
            f"{case} gradient of {name}: differs by {worst:.3g}, allowed {limit:.3g}"
        )


@pytest.mark.parametrize("case", FINETUNE)
def test_authors_classification(case):
    folder = golden_dir("authors", "beit", case)
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    heads = read_json(folder / "kwargs.json")["num_heads"]
    model = BeitForImageClassification.from_pretrained(
        folder / "model.pth", num_attention_heads=heads
    )
    assert model.config.layer_norm_eps == 1e-6
    out = model(x["x"], labels=x["labels"], output_hidden_states=True)
    for i in range(3):
        assert_close(out.hidden_states[i + 1], expected[f"blocks.{i}"], 1e-5, f"{case} block {i}")
    assert_close(model.beit(x["x"]).pooler_output, expected["features"], 1e-5, case)
    assert_close(out.logits, expected["logits"], 1e-5, case)
    assert_close(out.loss, expected["loss"], 1e-5, case)
    out.loss.backward()
    check_gradients(model, folder, case)


@pytest.mark.parametrize("case", PRETRAIN)
def test_authors_masked_modelling(case):
    folder = golden_dir("authors", "beit", case)
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    heads = read_json(folder / "kwargs.json")["num_heads"]
    model = BeitForMaskedImageModeling.from_pretrained(
        folder / "model.pth", num_attention_heads=heads
    )
    out = model(x["x"], x["bool_masked_pos"], labels=x["labels"])
    features = model.layernorm(model.beit(x["x"], x["bool_masked_pos"]).last_hidden_state)
    assert_close(features, expected["features"], 1e-5, case)
    assert_close(out.logits, expected["logits_all"], 1e-5, case)
    assert_close(out.logits[x["bool_masked_pos"]], expected["logits_masked"], 1e-5, case)
    assert_close(out.loss, expected["loss"], 1e-5, case)
    out.loss.backward()
    check_gradients(model, folder, case)


def load_segmentation(case):
    folder = golden_dir("authors", "beit", case)
    blocks = read_json(folder / "kwargs.json")["backbone"]["out_indices"]
    return folder, BeitForSemanticSegmentation.from_pretrained(
        folder / "model.pth", out_indices=blocks
    )


@pytest.mark.parametrize("case", SEGMENT)
def test_authors_segmentation(case):
    folder, model = load_segmentation(case)
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    states, _, grid = model.beit.encode(x["x"], keep=model.beit.all_states())
    from headstart.models.beit.segmentation import as_map, pixel_loss, resize

    maps = model.pyramid([as_map(states[block + 1], *grid) for block in model.blocks])
    for i, each in enumerate(maps):
        assert_close(each, expected[f"backbone.{i}"], 1e-5, f"{case} level {i}")
    out = model(x["x"], labels=x["gt_semantic_seg"])
    assert_close(out.logits, expected["logits"], 1e-4, case)
    assert_close(model.auxiliary_head(maps[2]), expected["auxiliary_logits"], 1e-5, case)
    assert_close(
        pixel_loss(out.logits, x["gt_semantic_seg"], model.config),
        expected["decode.loss_seg"],
        1e-5,
        case,
    )
    assert_close(out.loss, expected["decode.loss_seg"] + expected["aux.loss_seg"], 1e-5, case)
    classes = resize(out.logits, x["x"].shape[2:]).argmax(1)
    assert float((classes != expected["segmentation"]).float().mean()) == 0.0
    out.loss.backward()
    check_gradients(model, folder, case)


def test_transformers_reads_other_blocks_and_another_mean():
    """Both sides of the rule.

    The same file under compat="transformers" gives other classes for many pixels.
    """
    folder, model = load_segmentation("segmentation")
    x, expected = (
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )
    other = BeitForSemanticSegmentation.from_pretrained(
        folder / "model.pth", out_indices=[1, 2, 4, 5], compat="transformers"
    )
    assert (model.blocks, other.blocks) == ([1, 2, 4, 5], [-1, 0, 2, 3])
    assert other.config.layer_norm_eps == 1e-12
    measured = read_json(folder / "meta.json")["transformers"]
    theirs = other(x["x"]).logits
    assert_close(
        (theirs - expected["logits"]).abs().max(),
        measured["eps=1e-12, same out_indices numbers (as the hub configs have)"],
        1e-4,
    )
    # With the blocks moved to the authors', only the mean of the loss is left.
    moved = BeitForSemanticSegmentation.from_pretrained(
        folder / "model.pth",
        out_indices=[1, 2, 4, 5],
        pyramid_blocks=[1, 2, 4, 5],
        compat="transformers",
    )
    losses = measured["eps=1e-12, loss transformers vs authors (shifted)"]
    assert_close(moved(x["x"], labels=x["gt_semantic_seg"]).loss, losses[0], 1e-5)
    assert_close(model(x["x"], labels=x["gt_semantic_seg"]).loss, losses[1], 1e-5)


@pytest.mark.parametrize(
    "case", [case for case in golden_cases("authors", "beit") if case.startswith("transfer")]
)
def test_authors_transfer_to_another_resolution(case):
    folder = golden_dir("authors", "beit", case)
    kwargs, expected = read_json(folder / "kwargs.json"), load_file(folder / "outputs.safetensors")
    model = BeitModel.from_pretrained(
        folder / "source.pth", image_size=kwargs["img_size"], use_relative_position_bias=True
    )
    published = to_authors(model.state_dict())
    for name, value in expected.items():
        if name.startswith("converted."):
            assert_close(published[name.removeprefix("converted.")], value, 1e-5, f"{case} {name}")
    out = model(load_file(folder / "inputs.safetensors")["x"], output_hidden_states=True)
    for i in range(2):
        assert_close(out.hidden_states[i + 1], expected[f"blocks.{i}"], 1e-5, f"{case} block {i}")


def test_another_image_size_at_run_time_is_the_transfer():
    """A network whose tables were not resized computes for a larger image what the resized one
    does.
    """
    folder = golden_dir("authors", "beit", "transfer_pt_resize_abs")
    x = load_file(folder / "inputs.safetensors")["x"]
    out = BeitModel.from_pretrained(folder / "source.pth")(x, output_hidden_states=True)
    resized = BeitModel.from_pretrained(folder / "source.pth", image_size=56)(
        x, output_hidden_states=True
    )
    assert_close(out.last_hidden_state, resized.last_hidden_state, 1e-5)
    assert_close(out.last_hidden_state, load_file(folder / "outputs.safetensors")["blocks.1"], 1e-5)


@pytest.mark.parametrize(
    "kind, case",
    [("model", "finetune_nonsquare"), ("model", "pretrain_shared"), ("state_dict", "segmentation")],
)
def test_written_back_as_the_authors_do(kind, case, tmp_path):
    path = golden_dir("authors", "beit", case) / "model.pth"
    cls = {
        "f": BeitForImageClassification,
        "p": BeitForMaskedImageModeling,
        "s": BeitForSemanticSegmentation,
    }[case[0]]
    model = cls.from_pretrained(path)
    save_pth(model, tmp_path / "again.pth")
    theirs, ours = (
        torch.load(path, weights_only=True)[kind],
        torch.load(tmp_path / "again.pth", weights_only=True)[kind],
    )
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = cls.from_pretrained(tmp_path / "again.pth")
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )
    assert again.config == model.config


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"module": s},
        lambda s: {"model": s, "optimizer": {"x": torch.ones(2)}, "epoch": 3},
    ],
)
@pytest.mark.parametrize("case", ["finetune_rel", "segmentation"])
def test_every_wrapper(wrap, case, tmp_path):
    path = golden_dir("authors", "beit", case) / "model.pth"
    inner = next(
        v for k, v in torch.load(path, weights_only=True).items() if k in ("model", "state_dict")
    )
    torch.save(wrap(inner), tmp_path / "wrapped.pth")
    cls = BeitForImageClassification if case == "finetune_rel" else BeitForSemanticSegmentation
    plain, wrapped = cls.from_pretrained(path), cls.from_pretrained(tmp_path / "wrapped.pth")
    assert all(
        torch.equal(value, wrapped.state_dict()[key]) for key, value in plain.state_dict().items()
    )


def test_arrays_are_read_as_tensors_are():
    """For other frameworks: the same, without PyTorch's tensors."""
    path = golden_dir("authors", "beit", "transfer_pt_resize_abs") / "source.pth"
    values = {"image_size": 56, "use_relative_position_bias": True}
    config, tensors = read_authors(read_checkpoint(path), path.name, **values)
    same, arrays = read_authors(read_checkpoint(path, "numpy"), path.name, **values)
    assert config == same and set(tensors) == set(arrays)
    assert all(isinstance(arrays[key], np.ndarray) for key in arrays)
    for key, value in tensors.items():
        assert_close(arrays[key], value, 1e-6, key)


def test_foreign_tensors_are_listed(tmp_path):
    torch.save(
        {
            "model": {
                "cls_token": torch.zeros(1, 1, 4),
                "patch_embed.proj.weight": torch.zeros(4, 3, 2, 2),
                "odd": torch.ones(1),
            }
        },
        tmp_path / "x.pth",
    )
    with pytest.raises(WeightsError, match="blocks"):
        BeitModel.from_pretrained(tmp_path / "x.pth")


def test_a_published_folder_is_fitted_to_another_size_and_to_a_table_a_block(tmp_path):
    """What the authors do with their files works from a Hub folder too."""
    folder = golden_dir("authors", "beit", "transfer_pt_resize_abs")
    BeitForMaskedImageModeling.from_pretrained(folder / "source.pth").save_pretrained(tmp_path)
    model = BeitForImageClassification.from_pretrained(
        tmp_path, num_labels=4, image_size=56, use_relative_position_bias=True
    )
    assert not model.config.use_shared_relative_position_bias
    expected = load_file(folder / "outputs.safetensors")
    for i in range(2):
        table = expected[f"converted.blocks.{i}.attn.relative_position_bias_table"]
        bias = model.beit.blocks[i].attention.attention.relative_position_bias
        assert_close(bias.relative_position_bias_table, table, 1e-5)
    assert_close(model.beit.embeddings.position_embeddings, expected["converted.pos_embed"], 1e-5)


@pytest.mark.parametrize("kind", ["use_relative_position_bias", "use_absolute_position_embeddings"])
def test_a_folder_of_a_grid_that_is_not_square_is_fitted(kind, tmp_path):
    """Its configuration says for which grid its positions are made."""
    values = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    config = BeitConfig(image_size=[24, 40], intermediate_size=8, **values, **{kind: True})
    model = BeitModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    # at run time the same is done; (40, 24) has as many patches
    for size in ([48, 56], [40, 24]):
        again = BeitModel.from_pretrained(tmp_path, image_size=size)
        assert again.config.image_size == size and "_saved" not in again.config.to_dict()
        x = torch.randn(1, 3, *size)
        assert_close(again(x).last_hidden_state, model(x).last_hidden_state, 1e-4)


# Resizing, against scipy and PyTorch


def geometric_points(old, new):
    """The authors' grid, one number at a time."""
    low, high, count = 1.01, 1.5, old // 2
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**i for i in range(count)) > new // 2 else (q, high)
    right = [sum(q**i for i in range(n)) for n in range(1, count + 1)]
    return [-each for each in reversed(right)] + [0.0] + right


@pytest.mark.parametrize("old, new", [(7, 11), (27, 47), (27, 79), (11, 5)])
def test_geometric_resizing_is_a_cubic_spline(old, new):
    values = np.random.default_rng(0).normal(size=(old, old, 2))
    points, wanted = geometric_points(old, new), np.arange(new) - new // 2
    ours = positions.resize_grid(np, values, *[positions.geometric_matrix(np, old, new)] * 2)
    for channel in range(2):
        theirs = RectBivariateSpline(points, points, values[:, :, channel])(
            wanted.clip(points[0], points[-1]), wanted.clip(points[0], points[-1])
        )
        assert_close(ours[:, :, channel], theirs, 1e-6)
    line = make_interp_spline(points, values[:, 0, 0], k=3)(wanted.clip(points[0], points[-1]))
    assert_close(positions.geometric_matrix(np, old, new) @ values[:, 0, 0], line, 1e-6)


@pytest.mark.parametrize("old, new", [(1, 5), (3, 9), (9, 3), (5, 1), (5, 5), (3, 3)])
def test_geometric_resizing_of_small_grids_keeps_constants(old, new):
    matrix = positions.geometric_matrix(np, old, new)
    assert matrix.shape == (new, old)
    assert_close(matrix.sum(1), np.ones(new), 1e-9)
    if old == new:
        assert_close(matrix, np.eye(old), 1e-9)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("old, new", [((3, 5), (7, 4)), ((6, 2), (3, 2)), ((1, 4), (3, 9))])
def test_other_resizing_is_pytorchs(method, old, new):
    values = torch.randn(*old, 3, dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(
        values.permute(2, 0, 1)[None], size=new, mode=method, align_corners=False
    )
    for xp, each in ((torch, values), (np, values.numpy())):
        matrices = [positions.MATRICES[method](xp, *sizes) for sizes in zip(old, new, strict=True)]
        assert_close(positions.resize_grid(xp, each, *matrices), theirs[0].permute(1, 2, 0), 1e-6)


# Published models

PARAMETERS = {
    "beit_base_patch16_224_pt22k": 91965776,
    "beit_large_patch16_224_pt22k": 311534016,
    "beit_base_patch16_224_pt22k_ft22k": 102557713,
    "beit_large_patch16_224_pt22k_ft22k": 325792593,
    "beit_base_patch16_224_pt22k_ft1k": 86530984,
    "beit_base_patch16_224_pt22k_ft22kto1k": 86530984,
    "beit_base_patch16_384_pt22k_ft22kto1k": 86744104,
    "beit_large_patch16_224_pt22k_ft1k": 304430568,
    "beit_large_patch16_224_pt22k_ft22kto1k": 304430568,
    "beit_large_patch16_384_pt22k_ft22kto1k": 304998888,
    "beit_large_patch16_512_pt22k_ft22kto1k": 305674728,
    "beit_base_patch16_640_pt22k_ft22ktoade20k": 163407980,
    "beit_large_patch16_640_pt22k_ft22ktoade20k": 441271084,
    "beit_base_patch16_224_pt1k_800ep": 92108288,
}


def test_every_published_model_is_pinned():
    assert {name: model.parameters for name, model in PUBLISHED.items()} == PARAMETERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_that_many_parameters(name):
    config = published_config(name)
    cls = BeitForImageClassification
    if name.endswith("ade20k"):
        cls = BeitForSemanticSegmentation
    elif name.endswith(("pt22k", "800ep")):
        cls = BeitForMaskedImageModeling
    with torch.device("meta"):
        model = cls(config)
    assert model.num_parameters() == PARAMETERS[name]
    assert PUBLISHED[name].url.endswith(f"/{name}.pth")
    assert config.image == (PUBLISHED[name].image_size,) * 2
    assert config.layer_norm_eps == 1e-6 and config.compat == "authors"


def test_names_of_published_heads():
    config = published_config("beit_base_patch16_224_pt22k_ft22k")
    assert (config.num_labels, config.id2label[2397]) == (21841, "tabby, tabby cat")
    assert (
        published_config("beit_base_patch16_384_pt22k_ft22kto1k").id2label[281]
        == "tabby, tabby cat"
    )
    ade = published_config("beit_large_patch16_640_pt22k_ft22ktoade20k")
    assert (ade.num_labels, ade.segmentation_blocks()) == (150, [7, 11, 15, 23])


def test_class_names_that_were_not_renumbered_are_repaired(tmp_path):
    right = json.loads(data_dir("labels", "imagenet-22k-21841-id2label.json").read_text())
    before = json.loads(data_dir("labels", "imagenet-21k-goog-21843-id2label.json").read_text())
    gaps = {key: name for key, name in before.items() if key not in ("9205", "15027")}
    assert list(gaps.values()) == list(right.values())
    values = {
        "model_type": "beit",
        "transformers_version": "4.11.0",
        "id2label": gaps,
        "label2id": {n: int(i) for i, n in gaps.items()},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    for compat in ("authors", "transformers"):
        config = BeitConfig.from_pretrained(tmp_path, compat=compat)
        assert config.id2label == {int(i): name for i, name in right.items()}
        assert config.label2id[right["21840"]] == 21840
    assert renumber_labels({"id2label": right})["id2label"] == right
    few = {"id2label": {"0": "a", "2": "b"}}
    assert renumber_labels(few) == few


def test_hub_ids_of_the_authors_run_the_authors_arithmetic(tmp_path, caplog):
    model = BeitForSemanticSegmentation(
        BeitConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=64,
            out_indices=[0, 1, 2, 3],
        )
    )
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    published = {
        k: v
        for k, v in values.items()
        if k in BeitConfig().to_dict()
        and k not in ("compat", "pyramid_blocks", "semantic_loss_mean")
    }
    published |= {"transformers_version": "4.57.6", "layer_norm_eps": 1e-12}
    hub = BeitConfig.from_file_values(published, "microsoft/beit-base-finetuned-ade-640-640")
    assert (hub.layer_norm_eps, hub.segmentation_blocks(), hub.semantic_loss_mean) == (
        1e-6,
        [0, 1, 2, 3],
        "all",
    )
    own = BeitConfig.from_file_values(published, "someone/beit-ade")
    assert (own.layer_norm_eps, own.segmentation_blocks, own.semantic_loss_mean) != (
        1e-6,
        [0, 1, 2, 3],
        "all",
    )
    assert (own.layer_norm_eps, own.pyramid_blocks, own.semantic_loss_mean) == (
        1e-12,
        [-2, -1, 0, 1],
        "valid",
    )
    assert "compat='transformers'" in caplog.text


def test_old_files_hold_an_index_that_is_not_needed(tmp_path):
    folder = golden_dir("transformers", "beit", "BeitModel__rel_per_layer")
    tensors = load_file(folder / "model.safetensors")
    layer = "encoder.layer.0.attention.attention.relative_position_bias."
    tensors[f"{layer}relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    x = load_file(folder / "inputs.safetensors")["pixel_values"]
    ours = BeitModel.from_pretrained(tmp_path, compat="transformers")(x).last_hidden_state
    assert_close(ours, load_file(folder / "outputs.safetensors")["last_hidden_state"])


def test_the_table_lists_beit():
    assert set(PARAMETERS) <= set(published_models())
