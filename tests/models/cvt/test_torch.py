"""CvT against transformers' and the authors' numbers, and against its own definition."""

import pytest
from safetensors.torch import load_file

from conftest import assert_close, golden_cases, golden_dir
from golden_cases import check_case
from headstart import CvtForImageClassification


@pytest.mark.parametrize("case", golden_cases("transformers", "cvt"))
def test_transformers_numbers(case):
    # Without a class token, the tuple of transformers loses its hidden states.
    check_case("cvt", case, tuples="no_cls_mean" not in case)


@pytest.mark.parametrize("case", golden_cases("authors", "cvt"))
def test_authors_numbers(case):
    folder = golden_dir("authors", "cvt", case)
    x, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    model = CvtForImageClassification.from_pretrained(folder / "model.pth", compat="authors")
    out = model(x["x"], labels=x["labels"], output_hidden_states=True)
    for i, hidden in enumerate(out.hidden_states):
        assert_close(hidden, expected[f"stage{i}.x"], 1e-5, f"{case} stage {i}")
    assert_close(out.logits, expected["logits"].reshape(out.logits.shape), 1e-5, f"{case} logits")
    assert_close(out.loss, expected["loss"], 1e-5, f"{case} loss")
    out.loss.backward()
    from headstart.models.cvt.weights import HUB, TO_AUTHORS

    published = TO_AUTHORS.to_theirs(HUB.to_theirs({name: p.grad for name, p in model.named_parameters()}))
    for name, value in load_file(folder / "grads.safetensors").items():
        limit = 1e-4 * max(1e-3, float(value.abs().max()))
        worst = float((published[name] - value).abs().max())
        assert worst <= limit, f"{case} gradient of {name}: differs by {worst:.3g}, allowed {limit:.3g}"
