"""Keywords of `from_pretrained` that say where files come from, as older code gives them too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import ConfigError

HUB_KEYS = ("revision", "cache_dir", "token", "local_files_only")
# True of every load here, whatever they say: files are mapped, resumed and recognized.
IGNORED = (
    *("_fast_init", "_from_auto", "_commit_hash", "resume_download", "weights_only", "mirror"),
    *("low_cpu_mem_usage", "use_safetensors", "from_tf", "from_flax", "from_pt"),
)
# Keyword of older code → what to do instead, where it asks for something.
REFUSED = {
    "force_download": "remove the model from the cache, or pass another cache_dir",
    "trust_remote_code": "code that comes with a checkpoint never runs",
    "proxies": "set the environment variable HTTPS_PROXY",
    "adapter_kwargs": "load adapters with peft",
    "variant": "pass the path of that file",
    "quantization_config": "headstart.optimize makes int8 networks",
    "load_in_8bit": "headstart.optimize makes int8 networks",
    "load_in_4bit": "headstart.optimize makes int8 networks",
    "max_memory": "pass a dictionary as device_map",
    "offload_folder": "weights are mapped from their file",
    "offload_state_dict": "weights are mapped from their file",
    "use_flash_attention_2": "attention goes through scaled_dot_product_attention",
}


def split_hub(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that say where files come from, and the others; older names are translated.

    Raises:
        ConfigError: A keyword that asks for what is not done here.
    """
    given = {key: value for key, value in kwargs.items() if key not in IGNORED}
    if (token := given.pop("use_auth_token", None)) is not None:
        given["token"] = token
    for key, advice in REFUSED.items():
        if value := given.pop(key, None):
            raise ConfigError(f"{key}={value!r:.80} is not supported; {advice}")
    kernel = given.pop("attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise ConfigError(
            f"attn_implementation={kernel!r:.80} is not supported; leave it out:"
            " scaled_dot_product_attention chooses the kernel"
        )
    return {k: v for k, v in given.items() if k in HUB_KEYS}, {
        k: v for k, v in given.items() if k not in HUB_KEYS
    }


def within(name: str | Path, subfolder: str | None) -> str | Path:
    """The checkpoint in a subfolder of a local folder.

    Raises:
        ConfigError: Not a local folder, or the subfolder lies outside of it.
    """
    if not subfolder:
        return name
    folder = Path(name) / subfolder
    if not Path(name).is_dir() or not folder.resolve().is_relative_to(Path(name).resolve()):
        raise ConfigError(
            f"subfolder={subfolder!r} is not inside a local folder {name}; download the model and"
            " pass the path of its subfolder"
        )
    return folder
