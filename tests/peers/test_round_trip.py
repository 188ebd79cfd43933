"""Folders that we save load in transformers and the other way round, with equal outputs.

Needs the `peers` extra, 4.57 or 5.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import headstart
from conftest import SHARED, assert_close, data_dir, golden_cases, golden_dir, read_json
from contract.test_models import CASES, build, tokens
from golden_cases import flatten, tolerance

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
FIVE = int(transformers.__version__.split(".")[0]) >= 5

# transformers counts the blocks of the pyramid from 2, so that 0 and 1 name none there.
CHANGES = {"BeitForSemanticSegmentation": {"num_hidden_layers": 6, "out_indices": [2, 3, 4, 5]}}
# What transformers has no class for.
NOT_THERE = ("CvtBackbone",)
PADDED = tokens() | {"attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4])}
# Settings whose arithmetic or file differs from the plain ones: class, values, inputs in place of
# the usual ones.
VARIANTS = {
    "plain": [(name, {}, None) for name in CASES if name not in NOT_THERE],
    "BiT, bottleneck, stride 8": [
        ("BitModel", {"layer_type": "bottleneck", "output_stride": 8}, None)
    ],
    "BiT, stride 16": [("BitForImageClassification", {"output_stride": 16}, None)],
    "BiT, same padding": [
        ("BitBackbone", {"global_padding": "same", "embedding_dynamic_padding": True}, None)
    ],
    "CvT, whole numbers": [
        ("CvtForImageClassification", {"mlp_ratio": [4, 2, 1], "drop_rate": [0, 0, 0]}, None)
    ],
    "BEiT, class token": [("BeitForImageClassification", {"use_mean_pooling": False}, None)],
    "BEiT, positions": [
        (
            "BeitModel",
            {"use_absolute_position_embeddings": True, "use_relative_position_bias": False},
            None,
        )
    ],
    "BEiT, shared bias": [
        (
            "BeitForImageClassification",
            {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
            None,
        )
    ],
    "BEiT, scale of a whole number": [
        ("BeitModel", {"layer_scale_init_value": 1, "drop_path_rate": 0}, None)
    ],
    "BEiT, not square": [
        ("BeitModel", {"image_size": [32, 48]}, {"pixel_values": torch.randn(2, 3, 32, 48)})
    ],
    "BEiT, codes with a class token": [
        ("BeitForMaskedImageModeling", {"use_mean_pooling": False}, None)
    ],
    "YOSO, padding": [("YosoModel", {}, PADDED)],
    "YOSO, padding and convolution": [
        ("YosoForSequenceClassification", {"conv_window": 3}, PADDED)
    ],
    "YOSO, untied": [("YosoForMaskedLM", {"tie_word_embeddings": False}, None)],
    "YOSO, relative places": [("YosoModel", {"position_embedding_type": "relative_key"}, None)],
}
ALL = [
    pytest.param(*each, id=f"{kind}-{each[0]}")
    for kind, several in VARIANTS.items()
    for each in several
]
SWAPPED = (
    "transformers 5 exchanges the last two norms when it loads this class, from folders of its"
    " own too"
)


def randomised(model):
    """Weights none of which is 0 or 1, so that an exchange or a loss of any shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def assert_equal_outputs(ours, theirs, inputs):
    with torch.no_grad():
        ours, theirs = flatten(ours(**inputs)), flatten(dict(theirs(**inputs)))
    for key, value in theirs.items():
        assert_close(ours[key], value, 1e-5, key)


@pytest.mark.parametrize(("name", "values", "inputs"), ALL)
def test_ours_loads_there(name, values, inputs, tmp_path):
    """Built with transformers' arithmetic, saved by us, read by transformers."""
    model, usual, _ = build(name, **(CHANGES.get(name, {}) | values))
    config = model.config.to_dict() | {"transformers_version": transformers.__version__}
    model = randomised(
        type(model)(type(model.config).from_file_values(config, "mine", compat="transformers"))
    )
    model.save_pretrained(tmp_path)
    peer, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    if FIVE and name == "BeitForMaskedImageModeling" and values:
        pytest.skip(SWAPPED)
    assert_equal_outputs(model, peer.eval(), inputs or usual)


@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_THERE])
def test_the_authors_arithmetic_loads_there(name, tmp_path):
    """Networks that transformers would run otherwise load without a complaint too.

    The card says what differs.
    """
    model, _, _ = build(name)
    model.save_pretrained(tmp_path)
    _, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize(("name", "values", "inputs"), ALL)
# 5 writes no .bin
@pytest.mark.parametrize("file", ["model.safetensors"] + ["pytorch_model.bin"] * (not FIVE))
def test_theirs_loads_here(name, values, inputs, file, tmp_path):
    model, usual, _ = build(name)
    peer_class = getattr(transformers, name)
    settings = CASES[name][0] | CHANGES.get(name, {}) | values
    if FIVE:  # it takes no whole number for a float
        settings |= {
            key: float(settings[key]) for key in ("layer_scale_init_value",) if key in settings
        }
        settings |= {
            key: [float(v) for v in settings[key]]
            for key in ("mlp_ratio", "drop_rate")
            if key in settings
        }
    torch.manual_seed(0)
    peer = randomised(peer_class(peer_class.config_class(**settings)))
    peer.save_pretrained(
        tmp_path, **({} if FIVE else {"safe_serialization": file.endswith("safetensors")})
    )
    assert (tmp_path / file).exists()
    again = type(model).from_pretrained(tmp_path)
    assert again.config.compat == "transformers"
    assert_equal_outputs(again, peer, inputs or usual)


def test_shards_both_ways(tmp_path):
    model, inputs, _ = build("BitForImageClassification")
    model.save_pretrained(tmp_path / "ours", max_shard_size=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    peer = transformers.BitForImageClassification.from_pretrained(tmp_path / "ours").eval()
    peer.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert_equal_outputs(
        headstart.BitForImageClassification.from_pretrained(tmp_path / "theirs"), peer, inputs
    )


# Cases of 4.57.6 that transformers 5 does not run, or runs otherwise.
CHANGED_IN_FIVE = {
    "BeitForMaskedImageModeling__abs_clspool": SWAPPED,
    "BeitModel__head_mask_1d": "head_mask is gone",
    "BeitModel__head_mask_2d": "head_mask is gone",
    "BeitModel__layerscale0": "a whole number in config.json is refused",
    "YosoForMaskedLM__mlm_untied_conv": (
        "the decoder's bias is a second tensor, which files of version 4 do not hold"
    ),
    "YosoModel__relative_key": "places are added whatever position_embedding_type says",
}
REFERENCE = [
    (family, case)
    for family in ("bit", "cvt", "beit", "yoso")
    for case in golden_cases("transformers", family)
]


@pytest.mark.parametrize(("family", "case"), REFERENCE)
def test_this_version_computes_what_the_reference_numbers_say(family, case):
    """`compat="transformers"` is 4.57.6's arithmetic.

    Where another version's differs, the list above says so.
    """
    if FIVE and case in CHANGED_IN_FIVE:
        pytest.skip(CHANGED_IN_FIVE[case])
    folder = golden_dir("transformers", family, case)
    meta, expected = read_json(folder / "meta.json"), load_file(folder / "outputs.safetensors")
    if case == "BitModel__act_selu":
        pytest.skip("transformers lacks this activation; the reference patched it in")
    cls = getattr(transformers, meta["class"])
    peer = cls.from_pretrained(folder, attn_implementation="eager" if family == "beit" else None)
    peer.train(meta["mode"] == "train")
    theirs = flatten(dict(peer(**load_file(folder / "inputs.safetensors"), **meta["call"])))
    wanted = {k: v for k, v in expected.items() if not k.startswith("buffer_after.")}
    assert set(wanted) <= set(theirs)
    for name, value in wanted.items():
        assert_close(theirs[name], value, 5 * tolerance(meta, name, 1e-5), f"{case} {name}")


PROCESSORS = {
    "BitImageProcessor": {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 56}},
    "BeitImageProcessor": {"size": {"height": 48, "width": 40}, "do_reduce_labels": True},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 96}, "crop_pct": 0.75},
}


@pytest.mark.parametrize("values", [False, True], ids=["defaults", "values"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_both_ways(name, values, tmp_path):
    """The same pixels, within one gray level before normalization."""
    values = PROCESSORS[name] if values else {}
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    ours = getattr(headstart, name)(**values)
    ours.save_pretrained(tmp_path / "ours")
    # the fast one of 4.57 needs torchvision; 5 falls back by itself
    options = {} if FIVE else {"use_fast": False}
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", **options)
    peer = getattr(transformers, f"{name}Pil" if FIVE else name)(**values)
    peer.save_pretrained(tmp_path / "theirs")
    again = headstart.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert type(again) is type(ours)
    for a, b in ((ours, theirs), (again, peer)):
        mine, other = (
            a(photo, return_tensors="pt").pixel_values,
            b(photo, return_tensors="pt").pixel_values,
        )
        assert mine.shape == other.shape
        assert float((mine - other).abs().max()) <= 1.01 / 255 / min(a.image_std)


TEXTS = ["Hello   world, it's <mask> here.", " leading space", "naïve 数 🙂", ""]


@pytest.mark.parametrize("name", ["AutoTokenizer", "RobertaTokenizer", "RobertaTokenizerFast"])
def test_tokenizers_both_ways(name, tmp_path):
    ours = headstart.AutoTokenizer.from_pretrained(data_dir("tokenizer", "roberta-base"))
    ours.save_pretrained(tmp_path / "ours")
    peer = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    again = headstart.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for other in (peer, again):
        assert other(TEXTS).input_ids == ours(TEXTS).input_ids
        assert (
            other(TEXTS, TEXTS[::-1], padding=True).attention_mask
            == ours(TEXTS, TEXTS[::-1], padding=True).attention_mask
        )
        assert (other.pad_token, other.mask_token, other.model_max_length) == (
            ours.pad_token,
            ours.mask_token,
            ours.model_max_length,
        )


def test_bit_mini_loads_there(tmp_path):
    """The network of the package, as a person would take it along."""
    ours = headstart.BitForImageClassification.from_pretrained("bit-mini")
    ours.save_pretrained(tmp_path)
    peer = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert peer.config.id2label == ours.config.id2label
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "BitForImageClassification"
    ]
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(ours, peer.eval(), {"pixel_values": pixels})


def test_the_reference_networks_were_found():
    if not SHARED.is_dir():
        pytest.skip("the full set of reference numbers is not here")
    assert len(REFERENCE) > 100
