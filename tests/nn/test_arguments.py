"""Arguments of transformers' classes: honored, returned or refused."""

import json

import pytest
import torch

import headstart
from bit_networks import BIT, made
from headstart import BitConfig, BitForImageClassification
from headstart.errors import ConfigError, HubError


def test_without_config_json(folder, tmp_path):
    """What `accelerator.save_model` writes."""
    config = (folder / "config.json").rename(tmp_path / "config.json")
    expected = made().classifier[1].weight
    with pytest.raises((HubError, ConfigError), match=r"config\.json"):
        BitForImageClassification.from_pretrained(folder)
    for given in (BIT, config, tmp_path, str(tmp_path)):
        model = BitForImageClassification.from_pretrained(folder, config=given)
        assert torch.equal(model.classifier[1].weight, expected)


def test_a_pickled_state_dict_beside_a_configuration(tmp_path):
    torch.save(made().state_dict(), tmp_path / "pytorch_model.bin")
    BIT.save_pretrained(tmp_path)
    model = BitForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(model.classifier[1].weight, made().classifier[1].weight)


def test_arguments_by_their_documented_names(folder, tmp_path):
    state = made(1).state_dict()
    named = BitForImageClassification.from_pretrained(
        pretrained_model_name_or_path=folder.parent,
        subfolder="model",
        state_dict=state,
        torch_dtype="auto",
        device_map="auto",
        use_auth_token=False,
        low_cpu_mem_usage=True,
    )
    assert torch.equal(named.classifier[1].weight, state["classifier.1.weight"])
    named.save_pretrained(
        save_directory=tmp_path / "b",
        is_main_process=True,
        state_dict=made(2).state_dict(),
        safe_serialization=False,
    )
    assert sorted(each.name for each in (tmp_path / "b").iterdir() if each.name != "README.md") == [
        "config.json",
        "pytorch_model.bin",
    ]
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    unwanted = {"subfolder", "state_dict", "torch_dtype", "device_map", "use_auth_token", "token"}
    assert not unwanted & set(values)
    again = BitForImageClassification.from_pretrained(tmp_path / "b")
    assert torch.equal(again.classifier[1].weight, made(2).classifier[1].weight)
    named.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"nonsense": 1}, TypeError, "unexpected keyword 'nonsense'"),
        ({"num_label": 3}, TypeError, "did you mean num_labels"),
        ({"variant": "fp16"}, ConfigError, "variant='fp16' is not supported"),
        ({"force_download": True}, ConfigError, "force_download=True is not supported"),
        ({"trust_remote_code": True}, ConfigError, "never runs"),
        ({"subfolder": "../other"}, ConfigError, "not inside a local folder"),
    ],
)
def test_arguments_that_cannot_be_honored_are_refused(keywords, error, message, folder):
    with pytest.raises(error, match=message):
        BitForImageClassification.from_pretrained(folder, **keywords)


def test_save_pretrained_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="'nonsense'"):
        made().save_pretrained(tmp_path, nonsense=1)


IGNORED = {
    "use_auth_token": False,
    "force_download": False,
    "resume_download": True,
    "proxies": None,
    "local_files_only": True,
    "cache_dir": None,
    "token": None,
    "low_cpu_mem_usage": True,
    "trust_remote_code": False,
}
CLASSES = [
    *(("BitConfig", "bit"), ("AutoConfig", "bit"), ("BitImageProcessor", "bit")),
    *(("AutoImageProcessor", "bit"), ("AutoModel", "bit"), ("AutoFeatureExtractor", "bit")),
    *(("YosoTokenizer", "yoso"), ("AutoTokenizer", "yoso")),
]


@pytest.mark.parametrize("name, subfolder", CLASSES)
def test_documented_arguments_of_every_class(name, subfolder, folders, tmp_path):
    made = getattr(headstart, name).from_pretrained(
        pretrained_model_name_or_path=folders, subfolder=subfolder, **IGNORED
    )
    made.save_pretrained(save_directory=tmp_path, push_to_hub=False, token=None)
    for file in tmp_path.glob("*config.json"):
        values = json.loads(file.read_text())
        assert not {*IGNORED, "subfolder", "revision", "push_to_hub"} & set(values), file.name
    again = getattr(headstart, name).from_pretrained(tmp_path)
    assert type(again) is type(made)


@pytest.mark.parametrize("name, subfolder", CLASSES)
@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"force_download": True}, "remove the model from the cache"),
        ({"trust_remote_code": True}, "never runs"),
        ({"proxies": {"https": "localhost:1"}}, "HTTPS_PROXY"),
        ({"subfolder": "../other"}, "not inside a local folder"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation='flash_attention_2'"),
    ],
)
def test_what_no_class_honors_is_refused(name, subfolder, keywords, message, folders):
    with pytest.raises(ConfigError, match=message):
        getattr(headstart, name).from_pretrained(folders / subfolder, **keywords)


@pytest.mark.parametrize("name, subfolder", CLASSES)
def test_saving_and_uploading_refuse_what_they_do_not_know(name, subfolder, folders, tmp_path):
    made = getattr(headstart, name).from_pretrained(folders / subfolder)
    with pytest.raises(TypeError, match=r"save_pretrained\(\) got .*'nonsense'"):
        made.save_pretrained(tmp_path / "new", nonsense=1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError, match=r"push_to_hub\(\) got .*'nonsense'"):
        made.push_to_hub("owner/name", nonsense=1)


def test_keywords_that_are_not_used_are_returned(folders):
    config, unused = BitConfig.from_pretrained(
        folders / "bit", return_unused_kwargs=True, other=1, num_groups=1
    )
    assert unused == {"other": 1} and config.num_groups == 1 and not hasattr(config, "other")
    processor, unused = headstart.BitImageProcessor.from_pretrained(
        folders / "bit", return_unused_kwargs=True, other=1, do_resize=False
    )
    assert unused == {"other": 1} and not processor.do_resize and not hasattr(processor, "other")


def test_an_auto_class_takes_the_configuration_as_a_folder(folders, tmp_path):
    torch.save(made().state_dict(), tmp_path / "pytorch_model.bin")
    for config in (folders / "bit", str(folders / "bit" / "config.json"), BIT):
        model = headstart.AutoModelForImageClassification.from_pretrained(tmp_path, config=config)
        assert torch.equal(model.classifier[1].weight, made().classifier[1].weight)


@pytest.mark.parametrize(
    "name, auto",
    [
        ("BitModel", "AutoModel"),
        ("BitConfig", "AutoConfig"),
        ("BitImageProcessor", "AutoImageProcessor"),
        ("YosoTokenizer", "AutoTokenizer"),
    ],
)
def test_no_code_is_saved(name, auto):
    with pytest.raises(ConfigError, match=f"no code is saved.*{auto}.register where {name}"):
        getattr(headstart, name).register_for_auto_class()


def test_processor_in_a_json_file(tmp_path):
    processor = headstart.BitImageProcessor(size=40)
    processor.to_json_file(tmp_path / "p.json")
    assert headstart.BitImageProcessor.from_json_file(tmp_path / "p.json") == processor


def test_four_channels_stay_where_their_statistics_are_given():
    pixels = torch.randint(0, 256, (40, 50, 4), dtype=torch.uint8).numpy()
    processor = headstart.BitImageProcessor(size=40, crop_size=40)
    values = {"image_mean": [0.0] * 4, "image_std": [1.0] * 4}
    assert processor(pixels, return_tensors="pt", **values).pixel_values.shape == (1, 4, 40, 40)
    assert processor(pixels, return_tensors="pt").pixel_values.shape == (1, 3, 40, 40)
