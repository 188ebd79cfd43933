"""BiT's published names, and those of the authors' three codebases."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint.names import PublishedNames
from headstart.config import Compat
from headstart.errors import WeightsError
from headstart.models.bit.config import EPS_AUTHORS, EPS_TRANSFORMERS, BitConfig

PUBLISHED_NAMES = PublishedNames("bit", base=("embedder", "encoder", "norm"), extra=("classifier",))

# Name parts of the official .npz and .h5 files (TensorFlow), of bit_jax and of bit_pytorch → the
# Hub's. Blocks and units count from 1.
_WORDS = [
    (r"^(module/|params/|resnet/)+", ""),
    (r"/standardized_conv2d/kernel$|/conv2d/kernel$|/conv/weight$", "/weight"),
    (r"/kernel$|/scale$|/gamma$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/conv2d/bias$|/conv/bias$", "/bias"),
    (r"^(root_block/conv_root|root_block|root)/", "embedder/convolution/"),
    (r"^(group_norm|norm-pre-head|head/gn)/", "norm/"),
    (r"^(head|conv_head|head/conv)/", "classifier/1/"),
    (r"^body/", ""),
    (r"/a/proj/|/conv_proj/|/downsample/|/proj/", "/downsample/conv/"),
    (r"/a/group_norm/", "/norm1/"), (r"/b/group_norm/", "/norm2/"), (r"/c/group_norm/", "/norm3/"),
    (r"/a/", "/conv1/"), (r"/b/", "/conv2/"), (r"/c/", "/conv3/"),
    (r"/gn([123])/", r"/norm\1/"),
]  # fmt: skip


def hub_name(name: str) -> str:
    """The Hub's name for a tensor of an official file of any of the authors' codebases."""
    name = re.sub(r":0$", "", name.replace(".", "/"))
    for old, new in _WORDS:
        name = re.sub(old, new, name)
    if found := re.match(r"block(\d+)/unit(\d+)/", name):
        name = (
            f"encoder/stages/{int(found[1]) - 1}/layers/{int(found[2]) - 1}/{name[found.end() :]}"
        )
    name = name.replace("/", ".")
    return name if name.startswith("classifier") else f"bit.{name}"


def read_authors(
    tensors: Mapping[str, Any],
    name: str,
    config: BitConfig | None = None,
    *,
    compat: Compat = "authors",
    **overrides: Any,
) -> tuple[BitConfig, dict[str, Any]]:
    """Reads an official file: `.npz` or `.h5` (TensorFlow), bit_jax parameters, or a bit_pytorch
    checkpoint.

    Args:
        tensors: As the file holds them.
        name: The file's name, for messages.
        config: Its configuration, or None to infer it from the shapes (norms then have 32 groups,
            as in every published file).
        compat: Whose arithmetic.
        **overrides: Values of the configuration.

    Returns:
        The configuration, and the Hub's names → tensors in PyTorch's layout.
    """
    tensors = {
        key.removeprefix("model.").removeprefix("module."): value for key, value in tensors.items()
    }
    # TensorFlow and JAX keep filters as HWIO
    foreign = any(key.endswith(("kernel", "kernel:0")) for key in tensors)
    hub: dict[str, Any] = {}
    for key, value in tensors.items():
        if not any(
            word in key for word in ("root", "block", "group_norm", "norm-pre-head", "head")
        ):
            continue  # optimizer state, step counters
        target = hub_name(key)
        hub[target] = _as_pytorch(value, foreign, target)
    if config is None:
        config = _config_from_shapes(hub, name, compat, overrides)
    return config, hub


def _as_pytorch(value: Any, foreign: bool, name: str) -> Any:
    """Filters from HWIO, matrices from (in, out), the 1x1 filters of a head as a matrix, and
    vectors without axes of length 1.
    """
    if foreign and value.ndim > 1:
        axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
        value = (
            np.ascontiguousarray(value.transpose(axes))
            if isinstance(value, np.ndarray)
            else value.permute(axes).contiguous()
        )
    if name == "classifier.1.weight":
        return value.reshape(value.shape[:2])
    return value.reshape(-1) if "norm" in name or name.endswith("bias") else value


def _config_from_shapes(
    hub: Mapping[str, Any], name: str, compat: Compat, overrides: Mapping[str, Any]
) -> BitConfig:
    depths: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for key, value in hub.items():
        if found := re.match(r"bit\.encoder\.stages\.(\d+)\.layers\.(\d+)\.conv3\.weight", key):
            stage, unit = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), unit + 1)
            sizes[stage] = value.shape[0]
    stem = hub.get("bit.embedder.convolution.weight")
    if stem is None or not depths:
        raise WeightsError(
            f"{name} holds no BiT network: no stem or no blocks found; expected an official .npz,"
            " .h5 or .pth.tar file"
        )
    published = sizes[0] % 256 == 0 and stem.shape[0] * 4 == sizes[0]
    width = sizes[0] // 256 if published else 1
    values: dict[str, Any] = {
        "num_channels": stem.shape[1],
        "embedding_size": stem.shape[0] // width,
        "hidden_sizes": [sizes[i] // width for i in sorted(sizes)],
        "depths": [depths[i] for i in sorted(depths)],
        "width_factor": width,
        "num_labels": len(hub["classifier.1.bias"]) if "classifier.1.bias" in hub else 2,
        "conv_eps": EPS_AUTHORS if compat == "authors" else EPS_TRANSFORMERS,
        "compat": compat,
    }
    return BitConfig.from_dict(values, **overrides)


def save_npz(model: Any, path: str | Path) -> None:
    """Writes the network as the authors' `.npz` (TensorFlow's names, filters as HWIO).

    Args:
        model: A `BitForImageClassification` of layer type "preactivation".
        path: The file to write.

    Raises:
        WeightsError: The authors' code has no such network.
    """
    from headstart.checkpoint import write_npz

    if model.config.layer_type != "preactivation":
        raise WeightsError(
            f"layer_type={model.config.layer_type!r} cannot be written in the authors' format; only"
            " 'preactivation' has"
        )
    state = {key: value.detach().cpu().float() for key, value in model.state_dict().items()}
    arrays: dict[str, Any] = {}
    for key, value in state.items():
        key = key.removeprefix("bit.")
        if found := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", key):
            rest = key[found.end() :]
            for old, new in _UNIT_WORDS.items():
                rest = rest.replace(old, new)
            key = f"resnet/block{int(found[1]) + 1}/unit{int(found[2]) + 1:02d}/{rest}"
        else:
            key = "resnet/" + _OUTER_WORDS[key]
        if key == "resnet/head/conv2d/kernel":
            value = value[:, :, None, None]
        arrays[key] = (
            np.ascontiguousarray(value.permute(2, 3, 1, 0).numpy())
            if value.ndim == 4
            else value.numpy()
        )
    write_npz(path, arrays)


_UNIT_WORDS = {
    "downsample.conv.weight": "a/proj/standardized_conv2d/kernel",
    **{
        f"conv{i}.weight": f"{u}/standardized_conv2d/kernel"
        for i, u in zip("123", "abc", strict=True)
    },
    **{f"norm{i}.weight": f"{u}/group_norm/gamma" for i, u in zip("123", "abc", strict=True)},
    **{f"norm{i}.bias": f"{u}/group_norm/beta" for i, u in zip("123", "abc", strict=True)},
}
_OUTER_WORDS = {
    "embedder.convolution.weight": "root_block/standardized_conv2d/kernel",
    "norm.weight": "group_norm/gamma",
    "norm.bias": "group_norm/beta",
    "classifier.1.weight": "head/conv2d/kernel",
    "classifier.1.bias": "head/conv2d/bias",
}
