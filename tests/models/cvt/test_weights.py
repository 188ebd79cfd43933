"""CvT's configuration, names, published models, and files of every kind in both directions."""

import pytest
import torch

from conftest import assert_close, golden_dir
from headstart import CvtConfig, CvtForImageClassification, CvtModel
from headstart.config import published_config
from headstart.errors import ConfigError, WeightsError
from headstart.models.cvt.config import PUBLISHED
from headstart.models.cvt.weights import save_pth

SMALL = {"embed_dim": [8, 12, 24], "num_heads": [1, 3, 4], "depth": [1, 2, 3], "num_labels": 5}
# Counted from the published architectures: weights and biases, without running statistics.
PARAMETERS = {
    "CvT-13-224x224-IN-1k": 19_997_480,
    "CvT-21-224x224-IN-1k": 31_622_696,
    "CvT-13-384x384-IN-1k": 19_997_480,
    "CvT-21-384x384-IN-1k": 31_622_696,
    "CvT-13-384x384-IN-22k": 19_997_480,
    "CvT-21-384x384-IN-22k": 31_622_696,
    "CvT-w24-384x384-IN-22k": 277_196_392,
}


def test_every_published_model_is_pinned():
    assert {name: model.parameters for name, model in PUBLISHED.items()} == PARAMETERS


@pytest.mark.parametrize(
    "name", ["CvT-13-224x224-IN-1k", "CvT-21-384x384-IN-22k", "CvT-w24-384x384-IN-22k"]
)
def test_published_networks_have_their_parameters(name):
    config = published_config(name)
    assert (config.layer_norm_eps, config.hidden_act, config.num_labels) == (
        1e-5,
        "quick_gelu",
        1000,
    )
    with torch.device("meta"):
        assert CvtForImageClassification(config).num_parameters() == PARAMETERS[name]


def test_the_values_of_a_file_follow_compat(tmp_path):
    folder = golden_dir("transformers", "cvt", "CvtModel__ln_eps_small")
    theirs = CvtConfig.from_pretrained(folder)
    assert (theirs.compat, theirs.hidden_act, theirs.layer_norm_eps) == (
        "transformers",
        "gelu",
        1e-5,
    )
    authors = CvtConfig.from_pretrained(folder, compat="authors")
    assert (authors.hidden_act, authors.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert CvtConfig.from_pretrained(folder, layer_norm_eps=1e-3).layer_norm_eps == 1e-3
    # A configuration made in Python is honoured, also after it was saved.
    made = CvtConfig(**SMALL)
    assert (made.layer_norm_eps, made.hidden_act) == (1e-12, "quick_gelu")
    made.save_pretrained(tmp_path)
    assert CvtConfig.from_pretrained(tmp_path) == made
    assert CvtConfig.from_pretrained(tmp_path, compat="transformers").layer_norm_eps == 1e-5


def test_the_eps_of_a_configuration_is_used():
    torch.manual_seed(0)
    model = CvtModel(CvtConfig(**SMALL, layer_norm_eps=1.0)).eval()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 3 + 2 * 6 and all(m.eps == 1.0 for m in norms)


def test_the_card_says_where_transformers_differs():
    assert CvtConfig(**SMALL, hidden_act="gelu", layer_norm_eps=1e-5).differences() == []
    config = CvtConfig(**SMALL, cls_token=[True] * 3, qkv_projection_method=["avg"] * 3)
    assert len(config.differences()) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": [1, 2]}, "depth has 2 entries; expected 3, one per stage"),
        ({"embed_dim": 64}, "embed_dim=64; expected a list of integers"),
        ({"num_heads": [1, 5, 6]}, "stage 2: num_heads=5 does not divide embed_dim=192"),
        (
            {"qkv_projection_method": ["dw_bn", "dw", "dw_bn"]},
            "qkv_projection_method='dw'; expected one of 'dw_bn', 'avg', 'linear'",
        ),
        ({"stride_q": [1, 2, 1]}, "stage 2: queries with kernel_qkv=3, padding_q=1, stride_q=2"),
        ({"padding_q": [0, 1, 1]}, "stage 1: queries with kernel_qkv=3, padding_q=0"),
        ({"drop_path_rate": [0.0, 0.0, 1.0]}, "stage 3: drop_path_rate=1.0"),
        ({"depth": [1, 0, 1]}, r"depth=\[1, 0, 1\]; expected at least 1"),
        (
            {"out_features": ["stem"]},
            "out_features has 'stem'; expected some of stage1, stage2, stage3",
        ),
    ],
)
def test_bad_configurations_say_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        CvtConfig(**values)


def test_saved_folders_are_read_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = CvtForImageClassification(CvtConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path)
    again = CvtForImageClassification.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "exact GELU there" in (tmp_path / "README.md").read_text()


def test_the_base_model_reads_a_classifier_and_the_other_way_round(tmp_path):
    model = CvtForImageClassification(CvtConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path / "head")
    base = CvtModel.from_pretrained(tmp_path / "head")
    x = torch.randn(1, 3, 32, 48)
    assert torch.equal(base(x).cls_token_value, model.cvt(x).cls_token_value)
    base.save_pretrained(tmp_path / "base")
    _, info = CvtForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=7, output_loading_info=True
    )
    assert sorted(info["missing_keys"]) == [
        "classifier.bias",
        "classifier.weight",
        "layernorm.bias",
        "layernorm.weight",
    ]


@pytest.mark.parametrize("method", ["dw_bn", "avg"])
def test_the_authors_files_are_written_and_read(tmp_path, method):
    torch.manual_seed(0)
    config = CvtConfig(
        **SMALL, qkv_projection_method=[method] * 3, cls_token=[True] * 3, layer_norm_eps=1e-5
    )
    model = CvtForImageClassification(config).eval()
    save_pth(model, tmp_path / "model.pth")
    again = CvtForImageClassification.from_pretrained(tmp_path / "model.pth", config=config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    theirs = torch.load(
        golden_dir("authors", "cvt", "cls_every_stage") / "model.pth", weights_only=True
    )
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {k for k in theirs if "conv_proj" not in k} == {
        k for k in written if "conv_proj" not in k
    }
    assert method == "avg" or list(theirs.keys() - written.keys()) == []


def test_a_lone_file_in_the_published_arrangement_needs_no_configuration(tmp_path):
    config = CvtConfig(
        embed_dim=[64, 128, 192],
        num_heads=[1, 2, 3],
        depth=[1, 2, 1],
        mlp_ratio=[4.0, 2.0, 4.0],
        num_labels=7,
    )
    model = CvtForImageClassification(config).eval()
    save_pth(model, tmp_path / "model.pth")
    again = CvtForImageClassification.from_pretrained(tmp_path / "model.pth")
    values = again.config.to_dict()
    assert {k: v for k, v in values.items() if values[k] != getattr(config, k, None)}.keys() <= {
        "layer_norm_eps", "drop_path_rate", "id2label", "label2id", "model_type"
    }  # fmt: skip
    assert again.config.layer_norm_eps == 1e-5
    wrapped = {
        "model": {
            f"module.{k}": v
            for k, v in torch.load(tmp_path / "model.pth", weights_only=True).items()
        },
        "epoch": 3,
    }
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert_close(
        CvtForImageClassification.from_pretrained(tmp_path / "wrapped.pth").classifier.weight,
        model.classifier.weight,
    )


def test_files_that_do_not_fit_say_so(tmp_path):
    model = CvtForImageClassification(CvtConfig(**SMALL))
    save_pth(model, tmp_path / "model.pth")
    with pytest.raises(
        WeightsError,
        match="stage 1 .8 wide, with convolutions before its queries. is not as published",
    ):
        CvtForImageClassification.from_pretrained(tmp_path / "model.pth")
    torch.save({"layer1.0.conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"not a CvT checkpoint of the authors: it holds layer1\.0\.conv\.weight"
    ):
        CvtForImageClassification.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "case", ["TFCvtForImageClassification__single_label", "TFCvtForImageClassification__no_cls"]
)
def test_torch_reads_the_files_of_the_tensorflow_classes(case):
    pytest.importorskip("h5py")
    folder = golden_dir("transformers", "tf", case)
    x = torch.randn(2, 3, 48, 40)
    ours = CvtForImageClassification.from_pretrained(folder / "tf_model.h5")
    assert torch.equal(ours(x).logits, CvtForImageClassification.from_pretrained(folder)(x).logits)
