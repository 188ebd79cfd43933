"""BiT's files.

The authors' three formats read, the official one written back, and the published models.
"""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import assert_close, data_dir, golden_dir, read_json
from headstart import AutoConfig, BitConfig, BitForImageClassification, BitModel
from headstart.config import PreTrainedConfig
from headstart.errors import ConfigError, WeightsError
from headstart.models.bit.config import ARCHITECTURES, PUBLISHED
from headstart.models.bit.weights import save_npz
from headstart.registry import find_published, nearest_names, published_models

CASE = ("authors", "bit", "tiny_g4")


def expected():
    folder = golden_dir(*CASE)
    return (
        load_file(folder / "inputs.safetensors")["x"],
        load_file(folder / "outputs.safetensors")["logits"],
    )


@pytest.mark.parametrize("file", ["weights.npz", "jax_params.npz", "bit.pth.tar"])
def test_every_format_of_the_authors(file, tmp_path):
    """TensorFlow's names, bit_jax's, and a bit_pytorch checkpoint.

    The same network, inferred from the shapes alone.
    """
    path = tmp_path / file
    path.write_bytes((golden_dir(*CASE) / file).read_bytes())
    model = BitForImageClassification.from_pretrained(path, num_groups=4)
    x, logits = expected()
    assert_close(model(x).logits, logits)
    assert (
        model.config.depths == [1, 2, 1, 1]
        and model.config.num_labels == 5
        and model.config.compat == "authors"
    )


def test_tensorflow_2_names(tmp_path):
    """The .h5 files of the same networks name the same tensors with ":0".

    H5py is what reads them.
    """
    h5py = pytest.importorskip("h5py")
    arrays = np.load(golden_dir(*CASE) / "weights.npz")
    path = tmp_path / "BiT-M-mine.h5"
    with h5py.File(path, "w") as file:
        for key in arrays:
            file[f"{key}:0"] = arrays[key]
    x, logits = expected()
    assert_close(BitForImageClassification.from_pretrained(path, num_groups=4)(x).logits, logits)


def test_npz_is_written_back(tmp_path):
    source = golden_dir(*CASE) / "weights.npz"
    model = BitForImageClassification.from_pretrained(source, num_groups=4)
    save_npz(model, tmp_path / "again.npz")
    ours, theirs = np.load(tmp_path / "again.npz"), np.load(source)
    assert sorted(ours) == sorted(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(WeightsError, match="bottleneck"):
        save_npz(
            BitForImageClassification(
                BitConfig(layer_type="bottleneck", hidden_sizes=[32], depths=[1], num_groups=8)
            ),
            tmp_path / "no.npz",
        )


def test_converted_to_a_hub_folder(tmp_path):
    model = BitForImageClassification.from_pretrained(
        golden_dir(*CASE) / "weights.npz", num_groups=4
    )
    model.save_pretrained(tmp_path)
    x, logits = expected()
    assert_close(BitForImageClassification.from_pretrained(tmp_path)(x).logits, logits)
    assert "standardized with eps 1e-10 here" in (tmp_path / "README.md").read_text()


def test_body_alone_and_another_head():
    source = golden_dir(*CASE) / "weights.npz"
    x, _ = expected()
    assert BitModel.from_pretrained(source, num_groups=4)(x).pooler_output.shape == (2, 256, 1, 1)
    model, info = BitForImageClassification.from_pretrained(
        source, num_groups=4, num_labels=11, output_loading_info=True
    )
    assert model(x).logits.shape == (2, 11)
    assert [name for name, _, _ in info["mismatched_keys"]] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]


def test_another_networks_file_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"block1/unit01/a": np.zeros(3)})
    with pytest.raises(WeightsError, match="no stem or no blocks"):
        BitForImageClassification.from_pretrained(tmp_path / "x.npz")


# Weights of the ILSVRC2012 models, in millions, as their authors' table and timm print them.
MILLIONS = {
    "R50x1": 25.55,
    "R101x1": 44.54,
    "R50x3": 217.32,
    "R152x2": 236.34,
    "R101x3": 387.93,
    "R152x4": 936.53,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_counts(arch):
    for name, labels in [(f"BiT-M-{arch}", 21843), (f"BiT-M-{arch}-ILSVRC2012", 1000)]:
        published = PUBLISHED[name]
        config = BitConfig.from_pretrained(name)
        assert config.num_labels == labels
        with torch.device("meta"):
            assert BitForImageClassification(config).num_parameters() == published.parameters
    assert PUBLISHED[f"BiT-M-{arch}-ILSVRC2012"].parameters / 1e6 == pytest.approx(
        MILLIONS[arch], abs=0.006
    )


def test_the_zoo_has_every_published_file():
    plain = [name for name in PUBLISHED if name.startswith("BiT-") and "distill" not in name]
    assert len(plain) == 6 * 3 and len([n for n in PUBLISHED if n.startswith("vtab/")]) == 285
    assert len(PUBLISHED) == 18 + 285 + 4 + 1
    addresses = [m.url for name, m in PUBLISHED.items() if name != "bit-mini"]
    assert all(
        url.startswith("https://storage.googleapis.com/bit_models/") and url.endswith(".npz")
        for url in addresses
    )
    assert PUBLISHED["BiT-M-R50x1"].url.endswith("/BiT-M-R50x1.npz")


def test_names_are_found_and_suggested():
    assert find_published("bit-m-r50X1.npz")[1].name == "BiT-M-R50x1"
    assert find_published("BiT-M-R50x9") is None
    assert "BiT-M-R50x1" in nearest_names("BiT-M-R50x9")
    assert isinstance(AutoConfig.from_pretrained("BiT-M-R101x3"), PreTrainedConfig)
    assert set(PUBLISHED) <= set(published_models())


def test_class_names_of_the_published_heads():
    config = BitConfig.from_pretrained("BiT-M-R50x1-ILSVRC2012")
    assert config.id2label[207] == "golden retriever"
    # BEiT's list of 21,841 is another
    assert len(BitConfig.from_pretrained("BiT-M-R50x1").id2label) == 21843
    assert BitConfig.from_pretrained("vtab/BiT-M-R50x1-run0-svhn").num_labels == 10


def test_wrong_family(tmp_path):
    BitConfig(depths=[1], hidden_sizes=[32], num_groups=8).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"bit"', '"cvt"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="'cvt' model"):
        BitConfig.from_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == "cvt"


@pytest.mark.parametrize("compat, eps", [(None, 1e-10), ("authors", 1e-10), ("transformers", 1e-8)])
def test_an_authors_name_is_downloaded(compat, eps, monkeypatch, tmp_path):
    """The address, the configuration and the file go together.

    `compat` decides whose arithmetic.
    """
    file = tmp_path / "R50x1.npz"
    requested = []
    monkeypatch.setattr(
        "headstart.hub.download.download",
        lambda source, **options: requested.append(source.url) or file,
    )
    torch.manual_seed(0)
    save_npz(BitForImageClassification(BitConfig(num_labels=1000)), file)
    model = BitForImageClassification.from_pretrained("BiT-M-R50x1-ILSVRC2012", compat=compat)
    assert requested == ["https://storage.googleapis.com/bit_models/BiT-M-R50x1-ILSVRC2012.npz"]
    assert model.config.conv_eps == eps and model.config.id2label[0] == "tench, Tinca tinca"


def test_bit_mini_comes_with_the_package():
    """Small, complete, of the size that is published; tells ants from bees in photos, and names
    what it learned from.
    """
    import headstart
    from headstart.package_data import embedded_folder

    model = BitForImageClassification.from_pretrained("bit-mini")
    assert (
        model.num_parameters() == PUBLISHED["bit-mini"].parameters and model.dtype == torch.float32
    )
    assert sum(f.stat().st_size for f in embedded_folder("bit-mini").iterdir()) < 6_000_000
    process = headstart.AutoImageProcessor.from_pretrained("bit-mini")

    def logits(paths):
        images = [Image.open(path).convert("RGB") for path in paths]
        with torch.no_grad():
            return model(process(images, return_tensors="pt").pixel_values).logits

    bee, ant = 309, 310
    assert (model.config.id2label[bee], model.config.id2label[ant][:3]) == ("bee", "ant")
    for name, other, same in (("ants", bee, ant), ("bees", ant, bee)):
        found = logits(sorted(data_dir("images", "hymenoptera", "val", name).glob("*.jpg")))
        assert (found[:, same] > found[:, other]).float().mean() > 0.6
    folder = data_dir("images", "imagenet_samples", "labels.csv").parent
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = logits([folder / row["file"] for row in rows]).topk(5).indices
    right = [
        int(row["imagenet1k_index"]) in each for row, each in zip(rows, best.tolist(), strict=True)
    ]
    assert sum(right) >= 10
