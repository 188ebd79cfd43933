"""The base of the configurations, on BiT's."""

import json
import logging

import pytest
import torch

from headstart import BeitConfig, BitConfig, CvtConfig, PreTrainedConfig
from headstart.config_checks import align_outputs
from headstart.errors import ConfigError

STAGES = ["stem", "stage1", "stage2"]


def test_an_unknown_keyword_warns_once_and_a_file_does_not(tmp_path, caplog):
    assert BitConfig(nonsense=1).nonsense == 1
    assert caplog.messages == ["BitConfig has no value nonsense; it is kept and changes nothing"]
    caplog.clear()
    BitConfig(torch_dtype="float16", pad_token_id=0, gradient_checkpointing=False)
    (tmp_path / "config.json").write_text('{"model_type": "bit", "reshape_last_stage": true}')
    assert BitConfig.from_pretrained(tmp_path).reshape_last_stage is True
    assert not caplog.messages


def test_unknown_keywords_are_kept_and_written_back(tmp_path):
    config = BitConfig(
        depths=[1, 1], hidden_sizes=[128, 256], task_note="mine", finetuning_task="cats"
    )
    assert config.task_note == "mine"
    config.save_pretrained(tmp_path)
    again = BitConfig.from_pretrained(tmp_path)
    assert again == config and again.finetuning_task == "cats"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bit"
    config.task_note, config.added_later = "yours", [1]
    config.save_pretrained(tmp_path)
    again, unused = BitConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, num_labels=3, stranger=1
    )
    assert (again.task_note, again.added_later) == ("yours", [1])
    assert unused == {"stranger": 1}


def test_misspelled_values_are_refused_and_words_of_older_code_are_not_kept(tmp_path):
    """Kept in silence, `num_label=3` would load a head of the checkpoint's size."""
    BitConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no value 'num_label'; did you mean num_labels?"):
        BitConfig.from_pretrained(tmp_path, num_label=3)
    config = BitConfig.from_pretrained(
        tmp_path,
        trust_remote_code=False,
        low_cpu_mem_usage=True,
        attn_implementation="eager",
        palette=[[0, 0, 0]],
    )
    assert (
        config.palette
        and not {"trust_remote_code", "low_cpu_mem_usage", "attn_implementation"}
        & config.to_dict().keys()
    )


def test_labels_follow_each_other():
    assert BitConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = BitConfig(id2label={"0": "cat", "1": "dog", "2": "hen"})
    assert config.num_labels == 3 and config.label2id == {"cat": 0, "dog": 1, "hen": 2}
    assert BitConfig(label2id={"a": 1, "b": 0}).id2label == {1: "a", 0: "b"}
    config.num_labels = 5
    assert len(config.id2label) == 5 and config.label2id["LABEL_4"] == 4
    again = BitConfig.from_dict(
        BitConfig(id2label={0: "cat", 1: "dog", 2: "hen"}).to_dict(), num_labels=4
    )
    assert again.id2label[3] == "LABEL_3"


def test_round_trips():
    config = BitConfig(
        id2label={0: "a", 1: "b", 2: "c"},
        problem_type="regression",
        output_hidden_states=True,
        drop_path_rate=0.25,
    )
    assert BitConfig.from_dict(config.to_dict()) == config
    assert BitConfig.from_dict(json.loads(config.to_json_string())) == config
    assert BitConfig(drop_path_rate=0.5) != config
    assert set(json.loads(BitConfig().to_json_string(use_diff=True))) == {"model_type"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"depths": [3, 4]}, "depths has 2 entries; expected 4"),
        ({"layer_type": "basic"}, "layer_type='basic'"),
        ({"global_padding": "reflect"}, "global_padding='reflect'"),
        ({"num_groups": 33}, "num_groups=33 does not divide"),
        ({"output_stride": 12}, "output_stride=12"),
        ({"compat": "keras"}, "compat='keras'"),
        ({"problem_type": "ranking"}, "problem_type='ranking'"),
        ({"num_labels": -1}, "num_labels=-1"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
)
def test_bad_values_name_themselves(values, message):
    with pytest.raises(ConfigError, match=message):
        BitConfig(**values)


def test_whole_numbers_become_floats_where_those_belong(tmp_path):
    """transformers 5 refuses a config.json that holds 0 for 0.0."""
    CvtConfig(mlp_ratio=[4, 4, 4], initializer_range=1).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    floats = [written["initializer_range"], *written["mlp_ratio"]]
    assert floats == [1, 4, 4, 4] and all(isinstance(each, float) for each in floats)
    assert all(isinstance(each, int) for each in written["depth"])


def test_wrong_family_is_refused():
    with pytest.raises(ConfigError, match="'cvt' model, not 'bit'"):
        BitConfig.from_dict({"model_type": "cvt"})


def test_backbone_stages():
    assert align_outputs(None, None, STAGES) == (["stage2"], [2])
    assert align_outputs(["stem", "stage2"], None, STAGES) == (["stem", "stage2"], [0, 2])
    assert align_outputs(None, [-1], STAGES) == (["stage2"], [-1])
    with pytest.raises(ConfigError, match="order"):
        align_outputs(["stage2", "stem"], None, STAGES)
    with pytest.raises(ConfigError, match="different stages"):
        align_outputs(["stem"], [1], STAGES)
    with pytest.raises(ConfigError, match=r"out_indices=\[7\]"):
        align_outputs(None, [7], STAGES)


def write(folder, **values):
    (folder / "config.json").write_text(json.dumps({"model_type": "bit", **values}))
    return folder


def test_other_stages_than_the_files(tmp_path):
    """A saved configuration holds both names and numbers of its stages.

    One of them given anew decides.
    """
    BitConfig(out_features=["stage4"]).save_pretrained(tmp_path)
    assert BitConfig.from_pretrained(tmp_path, out_features=["stage2", "stage4"]).out_indices == [
        2,
        4,
    ]
    assert BitConfig.from_pretrained(tmp_path, out_indices=[1]).out_features == ["stage1"]
    with pytest.raises(ConfigError, match="name different stages"):
        BitConfig.from_pretrained(tmp_path, out_indices=[1], out_features=["stage2"])


def test_compat_rule(tmp_path, caplog):
    """A folder that transformers wrote keeps its arithmetic.

    The authors' networks and our own folders keep theirs.
    """
    folder = write(tmp_path, transformers_version="4.57.6")
    with caplog.at_level(logging.WARNING, "headstart"):
        config = BitConfig.from_pretrained(folder)
    assert config.compat == "transformers" and config.conv_eps == 1e-8
    assert "compat='authors'" in caplog.text
    assert BitConfig.from_pretrained(folder, compat="authors").conv_eps == 1e-10
    assert BitConfig.from_pretrained(write(tmp_path)).conv_eps == 1e-10
    for name in ("google/bit-50", "/cache/models--google--bit-50/snapshots/abc"):
        assert (
            BitConfig.from_file_values(
                {"model_type": "bit", "transformers_version": "4.2"}, name
            ).conv_eps
            == 1e-10
        )
    values = {"model_type": "bit", "transformers_version": "4.2"}
    assert BitConfig.from_file_values(values, "someone/bit-50-cats").conv_eps == 1e-8


def test_our_folder_keeps_its_arithmetic_until_transformers_writes_it(tmp_path):
    config = BitConfig(conv_eps=1e-6, compat="transformers")
    config.save_pretrained(tmp_path)
    assert BitConfig.from_pretrained(tmp_path).conv_eps == 1e-6
    values = json.loads((tmp_path / "config.json").read_text())
    assert "transformers_version" not in values
    # transformers keeps keys that it does not know, and adds its version: by then the network was
    # trained with its arithmetic.
    values["transformers_version"] = "4.57.6"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert BitConfig.from_pretrained(tmp_path).conv_eps == 1e-8


def test_values_that_v4_code_reads_from_any_configuration(tmp_path):
    config = BitConfig()
    assert config.is_encoder_decoder is False and config.chunk_size_feed_forward == 0
    assert config.architectures is None and config.torch_dtype is None and config.pruned_heads == {}
    assert not {"is_encoder_decoder", "torch_dtype", "pruned_heads"} & config.to_dict().keys()
    config.update({"num_groups": 16, "note": "kept"})
    config.torch_dtype = torch.bfloat16
    difference = config.to_diff_dict()
    assert difference["num_groups"] == 16 and difference["torch_dtype"] == "bfloat16"
    assert "depths" not in difference
    config.to_json_file(tmp_path / "config.json")
    again = BitConfig.from_json_file(tmp_path / "config.json")
    assert again == config and again.torch_dtype is torch.bfloat16 and again.note == "kept"
    values, others = BitConfig.get_config_dict(tmp_path, revision="main", num_labels=3)
    assert values["num_groups"] == 16 and others == {"num_labels": 3}
    assert BitConfig.from_dict(values | {"pruned_heads": {}}).pruned_heads == {}
    with pytest.raises(ConfigError, match="pruned_heads=.*without pruning"):
        BitConfig(pruned_heads={"0": [1]})


def test_a_plain_subclass_in_v4s_style_is_a_configuration(tmp_path):
    class ToyConfig(PreTrainedConfig):
        model_type = "toy"

        def __init__(self, width=8, **kwargs):
            self.width = width
            super().__init__(**kwargs)

    config = ToyConfig(width=4, num_labels=3, extra="kept")
    config.save_pretrained(tmp_path)
    again = ToyConfig.from_pretrained(tmp_path, width=5)
    assert (again.width, again.num_labels, again.extra) == (5, 3, "kept")


@pytest.mark.parametrize(
    "config", [BitConfig(), CvtConfig(), BeitConfig()], ids=["bit", "cvt", "beit"]
)
def test_stages_set_later_have_name_and_number(config):
    names = config.stage_names
    config.out_features = names[:2]
    assert config.out_indices == [0, 1]
    config.out_indices = [-2, len(names) - 1]
    assert config.out_features == names[-2:]
    for name in ("out_features", "out_indices"):
        setattr(config, name, None)
        assert config.out_features == names[-1:]
        assert config.out_indices == [len(names) - 1]
    with pytest.raises(ConfigError, match="out_indices=\\[99\\]"):
        config.out_indices = [99]
    with pytest.raises(ConfigError, match="'stage99'"):
        config.out_features = ["stage99"]
    assert config.out_features == names[-1:]


def test_four_named_stages_are_the_blocks_that_segmentation_reads(tmp_path):
    names = ["stage4", "stage6", "stage8", "stage12"]
    for given in ({"out_features": names}, {"out_features": names, "out_indices": [4, 6, 8, 12]}):
        config = BeitConfig(**given)
        assert config.segmentation_blocks() == [3, 5, 7, 11]
        config.save_pretrained(tmp_path)
        again = BeitConfig.from_pretrained(tmp_path)
        assert again == config
        assert again.segmentation_blocks() == [3, 5, 7, 11]
    config.out_indices = [2, 3, 4, 5]  # numbers are counted as the authors do
    assert config.segmentation_blocks() == [2, 3, 4, 5]
    config.save_pretrained(tmp_path)
    again = BeitConfig.from_pretrained(tmp_path)
    assert again.segmentation_blocks() == [2, 3, 4, 5]
    config.out_features = names
    assert config.segmentation_blocks() == [3, 5, 7, 11]
    other = BeitConfig.from_dict(config.to_dict(), out_features=["stem", *names[:3]])
    assert other.segmentation_blocks() == [-1, 3, 5, 7]
    theirs = BeitConfig.from_dict(config.to_dict(), compat="transformers", out_features=names)
    assert theirs.segmentation_blocks() == [2, 4, 6, 10]
