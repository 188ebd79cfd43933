"""BiT against transformers' and the authors' numbers, and against its own definition."""


import pytest
from safetensors.torch import load_file

from conftest import assert_close, golden_cases, golden_dir, read_json
from golden_cases import check_case
from headstart import BitConfig, BitForImageClassification

SMALL = {"embedding_size": 16, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 1, 1], "num_groups": 4}


def small(**values) -> BitConfig:
    return BitConfig(**(SMALL | values))


@pytest.mark.parametrize("case", golden_cases("transformers", "bit"))
def test_transformers_numbers(case):
    check_case("bit", case)


@pytest.mark.parametrize("case", golden_cases("authors", "bit"))
def test_authors_numbers(case):
    folder = golden_dir("authors", "bit", case)
    meta, x = read_json(folder / "meta.json"), load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "outputs.safetensors")
    overrides = {} if meta["num_groups"] == 32 else {"num_groups": meta["num_groups"]}
    model = BitForImageClassification.from_pretrained(folder / "weights.npz", compat="authors", **overrides)
    if meta["zero_head"]:
        torch.nn.init.zeros_(model.classifier.weight), torch.nn.init.zeros_(model.classifier.bias)
    out = model(x["x"], labels=x.get("labels"), output_hidden_states=True)
    for i, name in enumerate(["root", "body.block1", "body.block2", "body.block3", "body.block4"]):
        if name in expected:
            assert_close(out.hidden_states[i], expected[name], 1e-5, f"{case} {name}")
    assert_close(out.logits, expected["logits"], 1e-5, f"{case} logits")
    if (folder / "grads.safetensors").exists() and "loss" in expected:
        assert_close(out.loss, expected["loss"])
