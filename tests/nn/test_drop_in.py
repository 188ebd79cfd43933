"""Code written around transformers' PyTorch classes.

Wrapping modules, older arguments and methods.
"""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart
from bit_networks import BIT, made
from conftest import assert_close, golden_dir
from headstart import BitConfig, BitForImageClassification, BitModel, CvtForImageClassification
from headstart.errors import ConfigError, WeightsError


class Wrapper(torch.nn.Module):
    """A user's own network around a pretrained one."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.extra = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.extra(self.backbone(x).logits)


@pytest.mark.parametrize("family", ["bit", "cvt"])
def test_state_dict_is_what_a_published_file_holds(family):
    folder = golden_dir("transformers", family)
    seen = 0
    for case in sorted(folder.iterdir()):
        name = case.name.partition("__")[0]
        if not (case / "model.safetensors").exists() or not hasattr(headstart, name):
            continue
        model = getattr(headstart, name).from_pretrained(case)
        published = load_file(case / "model.safetensors")
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in published.items()
        }, case.name
        seen += 1
    assert seen > 5


@pytest.mark.parametrize("lead", ["", "module."])
def test_a_wrapping_module_takes_published_names_as_they_are(lead, tmp_path):
    """What `torch.save(wrapper.state_dict())` wrote with transformers' class inside."""
    case = next(
        each
        for each in sorted(golden_dir("transformers", "cvt").iterdir())
        if each.name.startswith("CvtForImageClassification__")
        and (each / "model.safetensors").exists()
    )
    expected = CvtForImageClassification.from_pretrained(case)
    saved = {f"backbone.{k}": v for k, v in load_file(case / "model.safetensors").items()}
    saved |= {"extra.weight": torch.ones(2, 3), "extra.bias": torch.zeros(2)}
    torch.save({lead + k: v for k, v in saved.items()}, tmp_path / "wrapper.pt")
    wrapper = Wrapper(CvtForImageClassification(expected.config))
    holder = torch.nn.ModuleDict({"module": wrapper}) if lead else wrapper
    holder.load_state_dict(torch.load(tmp_path / "wrapper.pt", weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    assert_close(wrapper.backbone.eval()(x).logits, expected(x).logits, 1e-6)


@pytest.mark.parametrize("lead", ["module.", "backbone.", "_orig_mod.student."])
def test_any_prefix_is_taken_off(lead, folder, caplog):
    published = load_file(folder / "model.safetensors")
    wrapped = {lead + k: v.clone() for k, v in published.items()}
    other = made(1)
    with caplog.at_level(logging.INFO, "headstart"):
        other.load_state_dict(published)
        assert not caplog.records
        other.load_state_dict(wrapped)
    expected = f"state_dict: BitForImageClassification has no prefix {lead!r}"
    assert caplog.messages == [f"{expected}; its tensors are loaded without it"]
    assert torch.equal(other.classifier[1].weight, published["classifier.1.weight"])
    with pytest.raises(RuntimeError, match="unknown.weight"):  # as strict as torch
        other.load_state_dict(wrapped | {"unknown.weight": torch.zeros(1)})
    save_file(wrapped, folder / "model.safetensors")
    caplog.clear()
    loaded = BitForImageClassification.from_pretrained(folder)
    assert [f"has no prefix {lead!r}" in each for each in caplog.messages] == [True]
    assert all(torch.equal(v, published[k]) for k, v in loaded.state_dict().items())


def test_gradients_of_attentions_can_be_retained():
    folder = next(golden_dir("transformers", "cvt").glob("CvtForImageClassification__*"))
    model = CvtForImageClassification.from_pretrained(folder).train()
    out = model(torch.randn(2, 3, 64, 64), output_attentions=True)
    for each in out.attentions:
        each.retain_grad()
    out.logits.sum().backward()
    assert any(each.grad.abs().sum() > 0 for each in out.attentions)


def test_counts_without_embeddings():
    model = headstart.YosoModel(
        headstart.YosoConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=6,
        )
    )  # fmt: skip
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    assert tables and model.num_parameters(exclude_embeddings=True) == (
        model.num_parameters() - tables
    )
    assert model.num_parameters(True, True) == model.num_parameters(only_trainable=True) - tables
    batch = {"input_ids": torch.zeros(2, 5, dtype=torch.long)}
    assert model.estimate_tokens(batch) == 10
    assert model.floating_point_ops(batch) == 60 * model.num_parameters(exclude_embeddings=True)


@pytest.mark.parametrize("every, recomputed", [(None, 3), (2, 2), (3, 1)])
def test_gradient_checkpointing_every_n_layers(every, recomputed, monkeypatch):
    model, calls = made().train(), []
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable(
        every_n_layers=every, gradient_checkpointing_kwargs={"preserve_rng_state": False}
    )
    assert model.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    from headstart.nn import torch as base

    monkeypatch.setattr(
        base,
        "checkpoint",
        lambda block, *args, **kwargs: (
            calls.append(kwargs) or base.nn.Module.__call__(block, *args)
        ),
    )
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x).logits, plain(x).logits)
    assert calls == [{"use_reentrant": False, "preserve_rng_state": False}] * recomputed
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(ConfigError, match="every_n_layers=0"):
        model.gradient_checkpointing_enable(every_n_layers=0)


def test_small_questions(folder):
    model = BitForImageClassification.from_pretrained(folder)
    assert model.num_labels == 3 and model.name_or_path == str(folder)
    assert not model.can_generate() and made().name_or_path == ""
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    assert model.get_output_embeddings() is None
    with pytest.raises(NotImplementedError, match="BitForImageClassification"):
        model.get_input_embeddings()


def test_a_subclass_with_its_own_head_loads_the_base(folder, caplog):
    class Mine(headstart.BitPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bit = BitModel(config)
            self.score = torch.nn.Linear(16, 7)
            self.post_init()

    with caplog.at_level(logging.WARNING, "headstart"):
        model, info = Mine.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == ["score.weight", "score.bias"]
    assert model.randomly_initialized == ("score.bias", "score.weight")
    assert "score.weight" in caplog.text
    assert torch.equal(
        model.bit.embedder.convolution.weight, made().bit.embedder.convolution.weight
    )


def test_extra_tensors_load_with_a_warning_that_lists_them(folder, caplog):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"ema.decay": torch.zeros(1)}, folder / "model.safetensors")
    with caplog.at_level(logging.WARNING, "headstart"):
        _, info = BitForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["unexpected_keys"] == ["ema.decay"] and "ema.decay" in caplog.text
    with pytest.raises(WeightsError, match="unexpected: ema.decay"):
        BitForImageClassification.from_pretrained(folder, strict=True)


@pytest.mark.parametrize("cls", [BitForImageClassification, CvtForImageClassification])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
def test_traced_after_a_call_and_other_images_follow(cls):
    torch.manual_seed(0)
    model = (
        made() if cls is BitForImageClassification else cls(headstart.CvtConfig(depth=[1, 1, 1]))
    )
    model = model.eval()
    x, y = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    model.config.return_dict = False
    with torch.no_grad():
        expected = model(y)[0]
        traced = torch.jit.trace(model, x)
        assert_close(traced(y)[0], expected, 1e-5)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TRACED = {
    "BitForImageClassification": copy.deepcopy(BIT),
    "CvtForImageClassification": headstart.CvtConfig(
        embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 1, 1]
    ),
    "BeitForImageClassification": headstart.BeitConfig(
        **SMALL, intermediate_size=32, image_size=64, use_relative_position_bias=True
    ),
    "YosoForSequenceClassification": headstart.YosoConfig(
        **SMALL, intermediate_size=32, vocab_size=20, max_position_embeddings=8
    ),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("side", [64, 96], ids=["own", "other"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Constant folding")  # of the exporter, with no effect
def test_traced_and_exported_by_tracing(name, side, tmp_path):
    """Whatever was kept by a call before, and with or without gradients."""
    import onnxruntime

    torch.manual_seed(0)
    model = getattr(headstart, name)(TRACED[name]).eval()
    texts = name.startswith("Yoso")
    x, y = (
        torch.randint(2, 20, (2, 8)) if texts else torch.randn(2, 3, 64, side) for _ in range(2)
    )
    axes, graphs = {model.main_input_name: {0: "batch"}}, []
    for _ in range(2):
        torch.onnx.export(
            model, (x,), tmp_path / "a.onnx", dynamo=False, input_names=list(axes),
            output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
        graphs.append((tmp_path / "a.onnx").read_bytes())
        with torch.no_grad():  # what this call keeps must not change the next graph
            expected = model(torch.cat([x, y])).logits
        (logits,) = session.run(["logits"], {model.main_input_name: torch.cat([x, y]).numpy()})
        assert_close(torch.from_numpy(logits), expected, 1e-4)
        traced = torch.jit.trace(model, x, strict=False)  # compares two graphs itself
        assert_close(traced(y)["logits"], expected[2:], 1e-4)
    assert graphs[0] == graphs[1]


def test_initial_values_follow_a_subclass_of_older_code():
    class Constant(BitModel):
        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.constant_(module.weight, 0.5)

    model = Constant(BIT)
    filters = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert filters and all((each == 0.5).all() for each in filters)
    plain = BitModel(BIT)
    plain.apply(lambda m: torch.nn.init.zeros_(m.weight) if hasattr(m, "weight") else None)
    plain.apply(plain._init_weights)
    assert all(m.weight.any() for m in plain.modules() if isinstance(m, torch.nn.Conv2d))


def test_embeddings_are_replaced():
    model = headstart.YosoForMaskedLM(TRACED["YosoForSequenceClassification"])
    table = torch.nn.Embedding(20, 16)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    assert model.get_output_embeddings().weight is table.weight  # tied
    matrix = torch.nn.Linear(16, 20)
    model.set_output_embeddings(matrix)
    assert model.get_output_embeddings() is matrix
    beit = headstart.BeitModel(TRACED["BeitForImageClassification"])
    patches = torch.nn.ModuleDict({"projection": torch.nn.Conv2d(3, 16, 16, 16)})
    beit.set_input_embeddings(patches)
    assert beit.get_input_embeddings() is patches
    assert beit.get_output_embeddings() is None
    with pytest.raises(NotImplementedError, match="BeitModel has no output embeddings"):
        beit.set_output_embeddings(matrix)


def test_heads_are_not_removed():
    beit = headstart.BeitModel(TRACED["BeitForImageClassification"])
    beit.prune_heads({})
    with pytest.raises(ConfigError, match=r"prune_heads\(\{0: \[1\]\}\).*head_mask"):
        beit.prune_heads({0: [1]})


def test_values_that_older_code_reads_from_any_configuration(folders, tmp_path):
    config = BitConfig()
    older = ("pad_token_id", "finetuning_task", "tokenizer_class", "torchscript", "sep_token_id")
    assert not any(getattr(config, name) for name in older)
    assert not {*older} & config.to_dict().keys()
    model = BitForImageClassification.from_pretrained(folders / "bit", finetuning_task="birds")
    assert model.config.finetuning_task == "birds"
    config, unused = headstart.BeitConfig.from_dict(
        {"hidden_size": 24}, return_unused_kwargs=True, other=1
    )
    assert unused == {"other": 1} and config.hidden_size == 24 and not hasattr(config, "other")


def test_from_config_with_a_type():
    model = headstart.AutoModel.from_config(BIT, torch_dtype="bfloat16", hidden_sizes=[8, 8])
    assert model.dtype == torch.bfloat16 and model.config.hidden_sizes == [8, 8]
    with pytest.raises(TypeError, match="'nonsense'"):
        headstart.AutoModel.from_config(BIT, nonsense=1)


def test_vocabularies(folders, tmp_path):
    tokenizer = headstart.YosoTokenizer.from_pretrained(folders / "yoso")
    files = tokenizer.save_vocabulary(tmp_path, filename_prefix="a")
    again = headstart.YosoTokenizer(*files)
    assert again.get_vocab() == tokenizer.get_vocab()
    other = tokenizer.train_new_from_iterator([["a dog", "a dog"], ["a dog"]], 265)
    assert other.decode(other("a dog").input_ids, skip_special_tokens=True) == "a dog"
    assert "dog" in other.get_vocab() or "Ġdog" in other.get_vocab()
    assert {str(t): n for n, t in other.added_tokens_decoder.items()} == other.added_tokens_encoder
    tokenizer.model_max_length = 12
    assert (tokenizer.max_len_single_sentence, tokenizer.max_len_sentences_pair) == (10, 8)
    values, others = headstart.BitImageProcessor.get_image_processor_dict(folders / "bit", a=1)
    assert values["size"] == {"shortest_edge": 40} and others == {"a": 1}


def test_extra_names_are_listed_with_the_prefix_that_they_carry(folder, caplog):
    state = load_file(folder / "model.safetensors")
    extra = {f"teacher.bit.{name}": value.clone() for name, value in list(state.items())[:2]}
    save_file(state | extra, folder / "model.safetensors")
    with caplog.at_level(logging.WARNING, "headstart"):
        BitForImageClassification.from_pretrained(folder)
    assert "(under the prefix 'teacher.bit" in caplog.text
    with pytest.raises(WeightsError, match=r"unexpected \(under the prefix 'teacher\.bit"):
        BitForImageClassification.from_pretrained(folder, strict=True)


def test_whose_arithmetic_is_logged_once_a_folder(tmp_path, caplog):
    made().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"transformers_version": "4.57.6"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING, "headstart"):
        for _ in range(3):
            model = BitForImageClassification.from_pretrained(tmp_path)
            headstart.AutoConfig.from_pretrained(tmp_path)
    assert model.config.compat == "transformers"
    assert caplog.text.count("running its arithmetic") == 1
    assert "`headstart convert --compat authors`" in caplog.text


def test_gradient_checkpointing_in_a_configuration_of_older_code(tmp_path):
    model = BitForImageClassification(BitConfig(**BIT.to_dict(), gradient_checkpointing=True))
    assert model.is_gradient_checkpointing
    model.save_pretrained(tmp_path)
    assert "gradient_checkpointing" not in json.loads((tmp_path / "config.json").read_text())


def test_a_configuration_object_of_another_library(folder):
    class Theirs:
        def to_dict(self):
            values = json.loads((folder / "config.json").read_text())
            return values | {"transformers_version": "4.57.6", "num_labels": 3}

    model = BitForImageClassification.from_pretrained(folder, config=Theirs())
    assert isinstance(model.config, BitConfig) and model.config.compat == "transformers"
