"""CvT's published names, the authors', and those of transformers' TensorFlow classes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint import atomic_write, unwrap
from headstart.checkpoint.names import NameTable, PublishedNames
from headstart.config import Compat
from headstart.errors import WeightsError
from headstart.models.cvt.config import CvtConfig

_NORM = ("weight", "bias")
_QKV = ("query", "key", "value")
_BATCH_NORM = (*_NORM, "running_mean", "running_var", "num_batches_tracked")

PUBLISHED_NAMES = PublishedNames(
    "cvt",
    base=("encoder",),
    extra=("layernorm", "classifier"),
    ignored=("num_batches_tracked",),  # Keras' batch norms have none
)

# The authors' names → the Hub's, of a classifier.
_EMBEDDING = "cvt.encoder.stages.{}.embedding.convolution_embeddings."
_LAYER = "cvt.encoder.stages.{}.layers.{}."
_CONV = "attention.attention.convolution_projection_{}.convolution_projection."
_CONV_PROJ = "stage{}.blocks.{}.attn.conv_proj_"
_AUTHORS = {
    **{f"stage{{}}.patch_embed.proj.{p}": f"{_EMBEDDING}projection.{p}" for p in _NORM},
    **{f"stage{{}}.patch_embed.norm.{p}": f"{_EMBEDDING}normalization.{p}" for p in _NORM},
    "stage{}.cls_token": "cvt.encoder.stages.{}.cls_token",
    **{f"stage{{}}.blocks.{{}}.{theirs}.{p}": f"{_LAYER}{hub}.{p}"
       for theirs, hub in [
           ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
           ("attn.proj", "attention.output.dense"),
           ("attn.proj_q", "attention.attention.projection_query"),
           ("attn.proj_k", "attention.attention.projection_key"),
           ("attn.proj_v", "attention.attention.projection_value"),
           ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
       ] for p in _NORM},
    **{f"{_CONV_PROJ}{q[0]}.conv.weight": f"{_LAYER}{_CONV.format(q)}convolution.weight"
       for q in _QKV},
    **{f"{_CONV_PROJ}{q[0]}.bn.{p}": f"{_LAYER}{_CONV.format(q)}normalization.{p}"
       for q in _QKV for p in _BATCH_NORM},
    **{f"norm.{p}": f"layernorm.{p}" for p in _NORM},
    **{f"head.{p}": f"classifier.{p}" for p in _NORM},
}  # fmt: skip
FROM_AUTHORS = NameTable(_AUTHORS)
TO_AUTHORS = NameTable({hub: theirs for theirs, hub in _AUTHORS.items()})

# Last parts of the TensorFlow classes' names → the Hub's.
_TF_WORDS = {
    "kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias", "cls_token": "cls_token",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


def hub_name_of_tf(name: str) -> str:
    """The Hub's name for an array of a `tf_model.h5`, such as
    `cvt/tf_cvt_model/cvt/encoder/stages.0/…/kernel:0`.
    """
    path = name.removesuffix(":0").split("/")
    if "." in path[-1]:  # class tokens keep their whole name
        return path[-1]
    path[-1] = _TF_WORDS.get(path[-1], path[-1])
    return ".".join(["cvt", *path[path.index("encoder") :]] if "encoder" in path else path[-2:])


def torch_layout(value: Any) -> Any:
    """A kernel of TensorFlow as PyTorch lays it out: filters HWIO → OIHW, matrices transposed.

    The rest as it is.
    """
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    if axes is None:
        return value
    return (
        np.ascontiguousarray(value.transpose(axes))
        if isinstance(value, np.ndarray)
        else value.permute(axes).contiguous()
    )


def read_authors(
    tensors: Mapping[str, Any],
    name: str,
    config: CvtConfig | None = None,
    *,
    compat: Compat = "authors",
    **overrides: Any,
) -> tuple[CvtConfig, dict[str, Any]]:
    """Reads an official `.pth`, or a `tf_model.h5` of transformers' TensorFlow classes.

    Args:
        tensors: As the file holds them.
        name: The file's name, for messages.
        config: Its configuration, or None to infer it from the shapes: heads are then 64 wide,
            strides and paddings the published ones.
        compat: Whose arithmetic.
        **overrides: Values of the configuration.

    Returns:
        The configuration, and the Hub's names → tensors in PyTorch's layout.

    Raises:
        WeightsError: The file holds no CvT network, or names that it does not have.
    """
    if any(key.endswith(":0") for key in tensors):
        hub = {hub_name_of_tf(key): torch_layout(value) for key, value in tensors.items()}
        counts = {
            key.replace("running_mean", "num_batches_tracked"): value
            for key, value in hub.items()
            if key.endswith("running_mean")
        }
        hub |= {key: _zero_like(value) for key, value in counts.items()}
    else:
        tensors = {key.removeprefix("module."): value for key, value in unwrap(tensors).items()}
        strange = sorted(key for key in tensors if FROM_AUTHORS.theirs(key) is None)
        if strange or not tensors:
            raise WeightsError(
                f"{name} is not a CvT checkpoint of the authors: it holds"
                f" {', '.join(strange[:5]) or 'nothing'}"
            )
        hub = FROM_AUTHORS.to_theirs(tensors)
    if config is None:
        config = config_from_shapes(hub, name, compat, overrides)
    return config, hub


def _zero_like(value: Any) -> Any:
    """A zero of the kind that counts batches, in the framework of `value`."""
    return (
        np.zeros((), np.int64)
        if isinstance(value, np.ndarray)
        else value.new_zeros((), dtype=_long())
    )


def _long() -> Any:
    import torch

    return torch.long


def config_from_shapes(
    hub: Mapping[str, Any], name: str, compat: Compat, overrides: Mapping[str, Any]
) -> CvtConfig:
    """The configuration of a network in the published arrangement, inferred from the shapes of its
    tensors.
    """
    count = 1 + max(
        (
            int(found[1])
            for key in hub
            if (found := re.match(r"cvt\.encoder\.stages\.(\d+)\.", key))
        ),
        default=-1,
    )
    values: dict[str, list[Any]] = {}
    for i in range(count):
        stage = f"cvt.encoder.stages.{i}."
        layer = f"{stage}layers.0."
        patches = hub.get(f"{stage}embedding.convolution_embeddings.projection.weight")
        inside = hub.get(f"{layer}intermediate.dense.weight")
        if patches is None or inside is None:
            raise WeightsError(
                f"{name} holds no whole CvT network: stage {i + 1} lacks its tokens or its first"
                " block"
            )
        width, conv = patches.shape[0], hub.get(f"{layer}{_CONV.format('query')}convolution.weight")
        kernel = 3 if conv is None else conv.shape[-1]
        if (width % 64 and "num_heads" not in overrides) or (
            conv is None and "qkv_projection_method" not in overrides
        ):
            raise WeightsError(
                f"{name}: stage {i + 1} ({width} wide, {'no' if conv is None else 'with'}"
                " convolutions before its queries) is not as published; pass config=, or"
                " num_heads= and qkv_projection_method="
            )
        row = {
            "patch_sizes": patches.shape[-1], "patch_stride": 2 if i else 4,
            "patch_padding": 1 if i else 2, "embed_dim": width,
            "num_heads": max(1, width // 64),
            "depth": len({k.split(".")[5] for k in hub if k.startswith(f"{stage}layers.")}),
            "mlp_ratio": inside.shape[0] / width, "attention_drop_rate": 0.0, "drop_rate": 0.0,
            "drop_path_rate": 0.0,
            "qkv_bias": f"{layer}attention.attention.projection_query.bias" in hub,
            "cls_token": f"{stage}cls_token" in hub,
            "qkv_projection_method": "dw_bn", "kernel_qkv": kernel, "padding_kv": kernel // 2,
            "stride_kv": 2,
            "padding_q": kernel // 2, "stride_q": 1,
        }  # fmt: skip
        for key, value in row.items():
            values.setdefault(key, []).append(value)
    if not values:
        raise WeightsError(
            f"{name} holds no CvT network: no stages found; expected an official .pth, or a"
            " tf_model.h5"
        )
    channels = hub["cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight"].shape[
        1
    ]
    labels = len(hub["classifier.bias"]) if "classifier.bias" in hub else 2
    plain = CvtConfig.from_published(
        {**values, "num_channels": channels, "num_labels": labels, "compat": compat}, compat
    )
    return CvtConfig.from_dict(plain, **overrides)


def save_pth(model: Any, path: str | Path) -> None:
    """Writes the network as the authors' `.pth`.

    Args:
        model: A `CvtForImageClassification`.
        path: The file to write.
    """
    import torch

    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    atomic_write(path, lambda file: torch.save(TO_AUTHORS.to_theirs(state), file))
