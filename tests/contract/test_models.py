"""What every PyTorch network promises, checked on every class from one list.

A new class adds a line to `CASES`.
"""

import copy
import json
import logging
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import headstart
from conftest import assert_close
from golden_cases import flatten
from headstart.checkpoint.names import NameTable
from headstart.errors import InputError, WeightsError
from headstart.registry import families

BIT = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 2, 1, 1],
    "num_groups": 4,
    "num_labels": 3,
}
CVT = {
    "embed_dim": [8, 16, 24],
    "num_heads": [1, 2, 4],
    "depth": [1, 2, 3],
    "num_labels": 3,
    "drop_path_rate": [0.0, 0.0, 0.0],
}
BEIT = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "vocab_size": 17,
    "use_relative_position_bias": True,
    "use_mask_token": True,
    "num_labels": 3,
    "drop_path_rate": 0.0,
}
# No pool of one cell: it is a matrix-vector product, whose last bit depends on where in memory a
# loaded file's tensor lies.
SEG = BEIT | {
    "image_size": 64,
    "patch_size": 16,
    "out_indices": [0, 1, 2, 3],
    "pool_scales": [2, 3],
    "auxiliary_channels": 8,
    "decoder_dropout": 0.0,
}
YOSO = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 3,
    "max_position_embeddings": 40,
    "hash_code_len": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def pixels(height=32, width=32, batch=2):
    return {
        "pixel_values": torch.randn(
            batch, 3, height, width, generator=torch.Generator().manual_seed(0)
        )
    }


def tokens(*shape):
    return {
        "input_ids": torch.randint(
            5, 61, shape or (2, 9), generator=torch.Generator().manual_seed(0)
        )
    }


MASK = {"bool_masked_pos": torch.arange(32).view(2, 16) % 3 == 0}
# Class → (configuration, inputs, labels)
CASES = {
    "BitModel": (BIT, pixels(), {}),
    "BitForImageClassification": (BIT, pixels(), {"labels": torch.tensor([0, 2])}),
    "BitBackbone": (BIT | {"out_features": ["stage2", "stage4"]}, pixels(), {}),
    "CvtModel": (CVT, pixels(), {}),
    "CvtForImageClassification": (CVT, pixels(), {"labels": torch.tensor([0, 2])}),
    "CvtBackbone": (CVT | {"out_features": ["stage1", "stage3"]}, pixels(), {}),
    "BeitModel": (BEIT, pixels(), {}),
    "BeitForMaskedImageModeling": (BEIT, pixels() | MASK, {"labels": torch.randint(0, 17, (11,))}),
    "BeitForImageClassification": (BEIT, pixels(), {"labels": torch.tensor([0, 2])}),
    "BeitForSemanticSegmentation": (
        SEG,
        pixels(64, 64),
        {"labels": torch.randint(0, 3, (2, 64, 64))},
    ),
    "BeitBackbone": (BEIT | {"out_features": ["stage1", "stage4"]}, pixels(), {}),
    "YosoModel": (YOSO, tokens(), {}),
    "YosoForMaskedLM": (YOSO, tokens(), {"labels": torch.randint(5, 61, (2, 9))}),
    "YosoForSequenceClassification": (YOSO, tokens(), {"labels": torch.tensor([0, 2])}),
    "YosoForMultipleChoice": (YOSO, tokens(2, 3, 9), {"labels": torch.tensor([0, 2])}),
    "YosoForTokenClassification": (YOSO, tokens(), {"labels": torch.randint(0, 3, (2, 9))}),
    "YosoForQuestionAnswering": (
        YOSO,
        tokens(),
        {"start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([3, 4])},
    ),
}


def build(name, seed=0, **values):
    settings, inputs, labels = CASES[name]
    cls = getattr(headstart, name)
    torch.manual_seed(seed)
    return cls(cls.config_class(**(settings | values))).eval(), inputs, labels


class NoDraws(TorchDispatchMode):
    """Loading a whole file draws no initial values, which would be thrown away (on `meta` a draw
    even imports the compiler).
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten.normal_, torch.ops.aten.uniform_), func
        return func(*args, **(kwargs or {}))


def assert_same(a, b, tolerance=1e-5):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for key in a:
        assert_close(a[key], b[key], tolerance, key)


def test_the_list_is_complete():
    """Every network that a family exports for PyTorch is on the list."""
    exported = {
        n
        for f in families().values()
        for n, m in f.exports.items()
        if m.endswith((".torch", ".segmentation", ".heads"))
    }
    assert {n for n in exported if not n.endswith("PreTrainedModel")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_is_deterministic_and_leaves_the_inputs_alone(name):
    model, inputs, _ = build(name)
    before = copy.deepcopy(inputs)
    assert_same(model(**inputs), model(**inputs), 0.0)
    assert all(torch.equal(before[key], inputs[key]) for key in inputs)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gets_a_gradient(name):
    model, inputs, labels = build(name)
    out = model.train()(**inputs, **labels)
    target = out.loss if labels else sum(t.float().pow(2).mean() for t in flatten(out).values())
    target.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # A backbone's last norm, and a base model's parts that only heads read, are not part of its
    # outputs.
    allowed = (
        ("norm", "pooler", "mask_token")
        if not labels or name.startswith("BeitForMasked")
        else ("mask_token",)
    )
    assert [n for n in idle if not any(word in n for word in allowed)] == []


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_is_bit_equal(name, tmp_path):
    model, inputs, _ = build(name)
    model.save_pretrained(tmp_path)
    with NoDraws():
        again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not again.training and not any(info.values())
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    # products round by where in memory a matrix lies
    assert_same(model(**inputs), again(**inputs), 1e-6)
    assert again.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    by_word = headstart.AutoConfig.from_pretrained(tmp_path)
    assert type(by_word) is type(model.config)


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles_compute_the_same(name):
    """Also after a call in evaluation, which keeps what it can."""
    model, inputs, _ = build(name)
    with torch.no_grad():
        wanted = model(**inputs)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(other(**inputs), wanted, 1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if "pixel_values" in CASES[name][1]])
def test_images_that_are_not_a_tensor_say_what_to_do(name):
    model, inputs, _ = build(name)
    for wrong in (inputs["pixel_values"].numpy(), list(inputs["pixel_values"])):
        with pytest.raises(InputError, match=r'return_tensors="pt"'):
            model(**inputs | {"pixel_values": wrong})


@pytest.mark.parametrize("name", CASES)
def test_state_dict_of_either_names(name):
    model, inputs, _ = build(name)
    other, _, _ = build(name, seed=1)
    other.load_state_dict(model.state_dict())
    assert_same(other(**inputs), model(**inputs), 0.0)
    other, _, _ = build(name, seed=1)
    other.load_state_dict(model.published_tensors())
    assert_same(other(**inputs), model(**inputs), 0.0)


@pytest.mark.parametrize("name", CASES)
def test_named_and_tuple_outputs(name):
    model, inputs, labels = build(name)
    named = model(**inputs, **labels)
    plain = model(**inputs, **labels, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named)
    for key, value in zip(named, plain, strict=True):
        assert_same({key: named[key]}, {key: value}, 0.0)
    assert named[0] is named[next(iter(named))] and named.to_tuple()[0] is named[0]


@pytest.mark.parametrize("name", CASES)
def test_gradient_checkpointing_changes_nothing(name):
    model, inputs, labels = build(name)
    model.train()
    grads = []
    for on in (False, True):
        model.gradient_checkpointing_enable() if on else model.gradient_checkpointing_disable()
        model.zero_grad()
        out = model(**inputs, **labels)
        (
            out.loss if labels else sum(t.float().pow(2).mean() for t in flatten(out).values())
        ).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert_same(grads[0], grads[1], 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16(name):
    model, inputs, _ = build(name)
    exact = flatten(model(**inputs))
    half = flatten(
        model.bfloat16()(
            **{k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        )
    )
    for key, value in half.items():
        assert value.dtype == torch.bfloat16 and value.isfinite().all()
        scale = exact[key].abs().max().clamp(min=1.0)
        assert (value.float() - exact[key]).abs().mean() / scale < 0.05, key


def in_file(table, name):
    """The names in a published file of one of a network's."""
    return table.theirs(name).parts if isinstance(table, NameTable) else (name,)


@pytest.mark.parametrize("name", CASES)
def test_missing_heads_are_randomly_initialized_and_missing_bodies_refused(name, tmp_path, caplog):
    model, inputs, _ = build(name)
    table = model.name_table(model.config)
    state = model.published_tensors()
    model.save_pretrained(tmp_path)
    from safetensors.torch import save_file

    body = next(n for n, _ in model.named_parameters() if not model.is_head(n))
    lost = set(in_file(table, body))
    save_file(
        {k: v.contiguous().clone() for k, v in state.items() if k not in lost},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(WeightsError, match="missing: " + body.replace(".", r"\.")):
        type(model).from_pretrained(tmp_path)
    save_file(
        {k: v.contiguous().clone() for k, v in state.items()} | {"stranger.weight": torch.zeros(2)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(WeightsError, match="unexpected: stranger.weight"):
        type(model).from_pretrained(tmp_path, strict=True)
    heads = {n for n in model.state_dict() if model.is_head(n)}
    kept = {
        k: v.contiguous().clone()
        for k, v in state.items()
        if not any(k in in_file(table, n) for n in heads)
    }
    save_file(kept, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, "headstart"):
        again = type(model).from_pretrained(tmp_path)
    assert all(t.isfinite().all() for t in again.state_dict().values())
    assert ("randomly initialized" in caplog.text) == bool(heads)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_export_with_dynamic_batch_and_size(name):
    model, inputs, _ = build(name)
    if "pixel_values" in inputs:
        shapes = {
            "pixel_values": {
                0: torch.export.Dim.DYNAMIC,
                2: torch.export.Dim.DYNAMIC,
                3: torch.export.Dim.DYNAMIC,
            }
        }
        inputs, other = pixels(128, 96), pixels(64, 160, batch=3)
        if name == "BeitForMaskedImageModeling":  # places to mask follow the grid of patches
            shapes["bool_masked_pos"] = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
            for each in (inputs, other):
                B, _, H, W = each["pixel_values"].shape
                each["bool_masked_pos"] = torch.arange(B * H * W // 64).view(B, -1) % 3 == 0
    else:
        ids = inputs["input_ids"]
        shapes = {
            "input_ids": {0: torch.export.Dim.DYNAMIC, ids.ndim - 1: torch.export.Dim.DYNAMIC}
        }
        other = tokens(3, *ids.shape[1:-1], 14)
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    with torch.no_grad():
        for each in (inputs, other):
            assert_same(program(**each), model(**each), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compile_has_no_graph_break(name):
    """Traced whole by TorchDynamo.

    The generated code is run by eager PyTorch, which is what can differ between machines.
    """
    model, inputs, _ = build(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(**inputs), model(**inputs), 1e-4)
