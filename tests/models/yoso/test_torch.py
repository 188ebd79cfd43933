"""YOSO's networks against transformers' and the authors' numbers, and against their own
promises.
"""

import re

import pytest
import torch

from conftest import assert_close
from headstart import (
    YosoConfig,
    YosoForMaskedLM,
    YosoForMultipleChoice,
    YosoForQuestionAnswering,
    YosoForSequenceClassification,
    YosoForTokenClassification,
    YosoModel,
)
from headstart.errors import ConfigError, InputError
from headstart.models.yoso import resizing, sampling
from yoso_networks import ids, small

HEADS = [
    YosoModel,
    YosoForMaskedLM,
    YosoForSequenceClassification,
    YosoForMultipleChoice,
    YosoForTokenClassification,
    YosoForQuestionAnswering,
]


@pytest.mark.parametrize("conv_window", [None, 3])
@pytest.mark.parametrize("cls", HEADS)
def test_padding_changes_nothing(cls, conv_window):
    model = small(cls, conv_window=conv_window)
    lengths = [7, 4, 1]
    shape = (3, 2, 9) if cls is YosoForMultipleChoice else (3, 9)
    batch = ids(*shape)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, length in enumerate(lengths):
        mask[i, ..., :length] = 1
    out = model(batch, mask)
    for i, length in enumerate(lengths):
        alone = model(batch[i : i + 1, ..., :length])
        for key, value in alone.items():
            ours = out[key][i : i + 1]
            assert_close(
                ours[:, :length] if ours.shape != value.shape else ours,
                value,
                1e-5,
                f"{cls.__name__} {key}",
            )


@pytest.mark.parametrize("cls", HEADS[1:])
def test_every_parameter_gets_a_gradient(cls):
    model = small(cls, conv_window=3).train()
    labels = {
        YosoForMaskedLM: {"labels": ids(2, 8, seed=2)},
        YosoForSequenceClassification: {"labels": torch.tensor([0, 1])},
        YosoForMultipleChoice: {"labels": torch.tensor([1, 0])},
        YosoForTokenClassification: {"labels": torch.tensor([[0, 1, -100, 1, 0, 1, 1, -100]] * 2)},
        YosoForQuestionAnswering: {
            "start_positions": torch.tensor([1, 40]),
            "end_positions": torch.tensor([3, 2]),
        },
    }[cls]
    x = ids(2, 3, 8) if cls is YosoForMultipleChoice else ids(2, 8)
    model(x, **labels).loss.backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert not missing


def test_equal_queries_and_keys_are_finite():
    model = small(hash_code_len=9, initializer_range=0.02).train()
    for layer in model.encoder.layer:
        layer.attention.self.key.load_state_dict(layer.attention.self.query.state_dict())
    out = model(ids(2, 8)).last_hidden_state
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_attentions_are_collision_probabilities():
    model = small(num_hidden_layers=1)
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    x = ids(1, 5)
    out = model(x, mask, output_attentions=True, output_hidden_states=True)
    attention = model.encoder.layer[0].attention.self
    x = out.hidden_states[0]
    q, k, v = (attention.heads(f(x)) for f in (attention.query, attention.key, attention.value))
    for head in range(3):  # one pair at a time
        for i in range(5):
            for j in range(5):
                a, b = q[0, head, i], k[0, head, j]
                p = (1 - torch.acos((a @ b / a.norm() / b.norm()).clamp(-1, 1)) / torch.pi) ** 5
                expected = p if mask[0, i] and mask[0, j] else torch.tensor(0.0)
                assert_close(out.attentions[0][0, head, i, j], expected, 1e-5, f"{head} {i} {j}")
    summed = out.attentions[0] @ v  # (B, A, L, K)
    attended = attention.collide(q, k, v, mask)
    assert_close(attended, torch.nn.functional.normalize(summed, dim=-1), 1e-5)


@pytest.mark.parametrize("use_expectation", [True, False])
def test_attentions_are_on_the_path(use_expectation):
    """Asking for them changes neither outputs nor gradients, and they have gradients themselves."""
    model = small(
        YosoForSequenceClassification, use_expectation=use_expectation, num_hash=4, hash_seed=1,
        conv_window=3,
    )  # fmt: skip
    x, mask = ids(2, 7), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    results = []
    for wanted in (False, True):
        model.zero_grad()
        out = model(x, mask, output_attentions=wanted, labels=torch.tensor([0, 1]))
        for weights in out.attentions or ():
            weights.retain_grad()
        out.loss.backward()
        results.append([out.logits, *(p.grad.clone() for p in model.parameters())])
    for plain, on_path in zip(*results, strict=True):
        assert_close(on_path, plain, 1e-5)
    assert all(weights.grad.abs().sum() > 0 for weights in out.attentions)


def test_head_mask_takes_heads_out():
    model = small(conv_window=3)
    x = ids(2, 6)
    only_first = torch.tensor([1.0, 0.0, 0.0])
    out = model(x, head_mask=only_first).last_hidden_state
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight[:, 8:] = 0.0
    assert_close(out, model(x).last_hidden_state, 1e-6)
    only_last = torch.stack([torch.zeros(3), torch.ones(3)])
    out = model(x, head_mask=only_last, output_hidden_states=True).hidden_states
    layer = model.encoder.layer[0]
    y = layer.attention.output.LayerNorm(out[0] + layer.attention.output.dense.bias)
    assert_close(out[1], layer.output.LayerNorm(y + layer.mlp(y)), 1e-6)


def test_hash_seed_repeats_evaluation_only():
    model = small(use_expectation=False, num_hash=4, hash_seed=3)
    x = ids(2, 12)
    first = model(x).last_hidden_state
    assert torch.equal(first, model(x).last_hidden_state)
    model.config.hash_seed = 4
    assert not torch.equal(first, model(x).last_hidden_state)
    model.config.hash_seed = None
    assert not torch.equal(model(x).last_hidden_state, model(x).last_hidden_state)
    torch.manual_seed(5)
    sampled = model(x).last_hidden_state
    torch.manual_seed(5)
    assert torch.equal(sampled, model(x).last_hidden_state)


def test_with_a_seed_the_same_text_gives_the_same_answer():
    """Wherever it stands in a batch, and whatever pads it."""
    model = small(YosoForSequenceClassification, use_expectation=False, num_hash=4, hash_seed=3)
    x, other = ids(1, 9), ids(1, 9, seed=1)
    alone = model(x).logits
    for batch, place in ((torch.cat([x, other]), 0), (torch.cat([other, other, x]), 2)):
        assert_close(model(batch).logits[place : place + 1], alone, 1e-6)
    padded = torch.cat([x, torch.ones(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 9 + [0] * 4])
    assert_close(model(padded, mask).logits, alone, 1e-6)


@pytest.mark.parametrize("cls", [YosoModel, YosoForTokenClassification])
def test_masks_of_every_form(cls):
    model, x = small(cls, conv_window=3), ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    labels = {} if cls is YosoModel else {"labels": torch.zeros(2, 6, dtype=torch.long)}
    expected = model(x, mask, **labels)
    forms = [mask.bool(), mask.float(), mask[:, None], mask[:, None, None], mask.numpy()]
    for form in [*forms, mask.tolist()]:
        out = model(x, form, **labels)
        for key, value in expected.items():
            assert torch.equal(out[key], value)
    for wrong, message in (
        ((1.0 - mask) * -10000.0, "values down to -10000, as masks that are added to scores"),
        (((1.0 - mask) * torch.finfo(torch.float32).min)[:, None, None], "added to scores"),
        (mask[:, :, None], r"attention_mask has shape (2, 6, 1); expected (2, 6)"),
        (torch.ones(2, 6, 6), r"attention_mask has shape (2, 6, 6)"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            model(x, wrong)


def test_choices_take_masks_as_arrays():
    model, x = small(YosoForMultipleChoice), ids(2, 3, 6)
    mask = torch.ones(2, 3, 6, dtype=torch.long)
    mask[:, :, 4:] = 0
    assert torch.equal(model(x, mask.numpy()).logits, model(x, mask).logits)


def test_hash_error_chooses_the_hashes(monkeypatch):
    """The number of hashes follows from the error that is allowed and the length of the texts."""
    from headstart import choose_num_hash

    model = small(use_expectation=False, hash_error=0.2, num_hash=1).eval()
    used = []
    inner = sampling.sampled_attention
    monkeypatch.setattr(
        sampling,
        "sampled_attention",
        lambda *x, **options: used.append(options["num_hash"]) or inner(*x, **options),
    )
    for length in (9, 30):
        model(ids(1, length))
    layers = model.config.num_hidden_layers
    assert (
        used == [choose_num_hash(0.2, 9)] * layers + [choose_num_hash(0.2, 30)] * layers
        and used[0] > used[-1]
    )
    with pytest.raises(ConfigError, match="hash_error"):
        YosoConfig(hash_error=0.0)


def test_short_texts_stay_exact_where_we_choose(monkeypatch):
    """Who asks for sampling gets it at any length.

    `read_long_texts` samples from the length on where that pays.
    """
    monkeypatch.setattr(resizing, "SAMPLING_PAYS_FROM", 8)
    model = small(num_hash=2)
    exact = [model(ids(1, length)).last_hidden_state for length in (7, 8)]
    model.read_long_texts(20)
    found = [model(ids(1, length)).last_hidden_state for length in (7, 8)]
    assert torch.equal(found[0], exact[0]) and not torch.allclose(found[1], exact[1], atol=1e-2)
    requested = small(num_hash=2, use_expectation=False)
    requested.read_long_texts(20)
    assert not torch.allclose(requested(ids(1, 7)).last_hidden_state, exact[0], atol=1e-2)


def test_sampled_attention_comes_near_the_expectation():
    model = small(hash_seed=0, num_hash=2048, use_fast_hash=False, use_expectation=False)
    x = ids(2, 12)
    sampled = model(x).last_hidden_state
    model.config.use_expectation = True
    assert (sampled - model(x).last_hidden_state).abs().mean().item() < 0.05


def test_relative_positions_are_none_and_reported(caplog):
    model = small(position_embedding_type="relative_key")
    assert "no positions" in caplog.text
    x = ids(1, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(model(x[:, order]).last_hidden_state, model(x).last_hidden_state[:, order], 1e-5)
    absolute = small()
    assert not torch.allclose(
        absolute(x[:, order]).last_hidden_state, absolute(x).last_hidden_state[:, order], atol=1e-2
    )


def test_position_ids_are_rows_of_the_table():
    model = small()
    x = ids(2, 6)
    assert_close(
        model(x, position_ids=torch.arange(2, 8)[None]).last_hidden_state,
        model(x).last_hidden_state,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_resize_token_embeddings(tied):
    model = small(YosoForMaskedLM, tie_word_embeddings=tied)
    x = ids(2, 6)
    before = model(x).logits
    table = model.resize_token_embeddings(70, pad_to_multiple_of=8)
    out = model(x)
    assert table.num_embeddings == model.config.vocab_size == 72 and table.padding_idx == 1
    assert_close(out.logits[..., :61], before)
    model(torch.tensor([[0, 71, 2]]), labels=torch.tensor([[-100, 71, -100]])).loss.backward()
    model.resize_token_embeddings(61)
    assert_close(model(x).logits, before)
    with pytest.raises(InputError, match="new_num_tokens=1 "):
        model.resize_token_embeddings(1)


def test_gradient_checkpointing_changes_nothing():
    model = small(
        YosoForMaskedLM, hidden_dropout_prob=0.0, use_expectation=False, num_hash=4
    ).train()
    x = ids(2, 6)
    results = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        torch.manual_seed(0)
        model.zero_grad()
        model(x, labels=x).loss.backward()
        results.append(model.yoso.encoder.layer[0].attention.self.query.weight.grad.clone())
    assert_close(results[1], results[0], 1e-6)


def test_losses_without_labels_are_zero():
    model = small(YosoForMaskedLM)
    assert model(ids(1, 4), labels=torch.full((1, 4), -100)).loss == 0
    answer = small(YosoForQuestionAnswering)
    outside = torch.tensor([99])
    assert answer(ids(1, 4), start_positions=outside, end_positions=outside).loss == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.tensor([[3, 61]])), "input_ids go from 3 to 61; expected 0 to 60"),
        (lambda m: m(torch.tensor([3, 4])), "input_ids has shape (2,)"),
        (lambda m: m(torch.ones(2, 5)), "input_ids are torch.float32; expected a tensor of int"),
        (lambda m: m([[3, 4]]), "input_ids are a list; expected a tensor"),
        (lambda m: m(ids(2, 5), position_ids=torch.ones(2, 5)), "position_ids are torch.float32"),
        (
            lambda m: m(ids(2, 5), torch.ones(2, 4)),
            "attention_mask has shape (2, 4); expected (2, 5)",
        ),
        (lambda m: m(ids(2, 5), head_mask=torch.ones(4)), "head_mask has shape (4,)"),
        (
            lambda m: m(inputs_embeds=torch.zeros(2, 5, 7)),
            "inputs_embeds has shape (2, 5, 7); expected (texts, tokens, 24)",
        ),
        (
            lambda m: m(ids(2, 5), token_type_ids=torch.full((2, 5), 2)),
            "token_type_ids go from 2 to 2; expected 0 to 1",
        ),
        (lambda m: m(ids(2, 5), position_ids=torch.full((2, 5), 32)), "position_ids go from 32"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(small())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=24"),
        ({"conv_window": 0}, "conv_window=0"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type='rotary'"),
        ({"pad_token_id": 61}, "pad_token_id=61"),
        ({"hash_code_len": 17, "use_expectation": False}, "hash_code_len=17"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5"),
        ({"num_hash": 0}, "num_hash=0"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu'"),
    ],
)
def test_bad_configurations(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        small(**values)


def test_half_precision_and_compile():
    model = small(conv_window=3).bfloat16()
    out = model(ids(2, 6), torch.ones(2, 6, dtype=torch.long)).last_hidden_state
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cls", [YosoModel, *HEADS[1:3], *HEADS[4:]])
def test_traces_serve_other_sizes(cls):
    model = small(cls, conv_window=3)
    x, other = ids(2, 9), ids(3, 6, seed=1)
    mask, whole = torch.ones_like(x), torch.ones_like(other)
    mask[1, 6:] = 0
    traced = torch.jit.trace(model, (x, mask), strict=False)
    for tokens, seen in ((x, mask), (other, whole)):
        found, expected = traced(tokens, seen), model(tokens, seen)
        for key in expected:
            assert_close(found[key], expected[key], 1e-5, key)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exports_to_onnx_by_tracing(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = small(YosoForSequenceClassification, conv_window=3)
    x, other = ids(2, 9), ids(3, 6, seed=1)
    mask, whole = torch.ones_like(x), torch.ones_like(other)
    mask[1, 6:] = 0
    axes = {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask")}
    torch.onnx.export(
        model, (x, mask), tmp_path / "a.onnx", dynamo=False, input_names=list(axes),
        dynamic_axes=axes,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for tokens, seen in ((x, mask), (other, whole)):
        inputs = {"input_ids": tokens.numpy(), "attention_mask": seen.numpy()}
        assert_close(torch.from_numpy(session.run(None, inputs)[0]), model(tokens, seen).logits)


@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_the_classifier_reads_means_of_the_tokens(pooling):
    """By the definition, one text at a time without padding: <s> a a </s> </s> b </s>."""
    model = small(YosoForSequenceClassification, classifier_pooling=pooling, num_labels=3)
    rows = [[0, 7, 8, 2, 2, 9, 2], [0, 5, 2, 2, 6, 7, 2, 1, 1]]
    texts = [([0, 1, 2], [4, 5, 6]), ([0, 1], [3, 4, 5, 6])]  # positions of the two texts
    ids = torch.tensor([row + [1] * (9 - len(row)) for row in rows])
    mask = torch.tensor([[1] * 7 + [0] * 2] * 2)
    logits = model(ids, mask).logits
    for row, (first, second), found in zip(rows, texts, logits, strict=True):
        hidden = model.yoso(torch.tensor([row[:7]])).last_hidden_state[0]
        pooled = hidden.mean(0)
        if pooling == "pair":
            pooled = torch.cat([pooled, (hidden[first].mean(0) - hidden[second].mean(0)).abs()])
        head = model.classifier
        assert_close(found, head.out_proj(torch.tanh(head.dense(pooled))), 1e-5)


def test_a_pair_is_found_by_its_tokens_alone():
    model = small(YosoForSequenceClassification, classifier_pooling="pair")
    with pytest.raises(InputError, match="give input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, model.config.hidden_size))
    with pytest.raises(ConfigError, match="classifier_pooling='max'"):
        YosoConfig(classifier_pooling="max")
    with pytest.raises(ConfigError, match="needs eos_token_id"):
        YosoConfig(classifier_pooling="pair", eos_token_id=None)
