"""BEiT's names: ours, the Hub's, and the authors'.

And how tables and positions are fitted to a configuration's grid.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint import atomic_write, unwrap
from headstart.checkpoint.names import NameTable
from headstart.config import Compat
from headstart.errors import WeightsError
from headstart.models.beit.config import BeitConfig
from headstart.models.beit.positions import (
    relative_position_index,
    resize_positions,
    resize_table,
    table_matrices,
    table_rows,
)

PARAMETERS, STATISTICS = (
    ("weight", "bias"),
    ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
)


def both(ours: str, theirs: str) -> dict[str, str]:
    """Rows of a module with weight and bias."""
    return {f"{ours}.{p}": f"{theirs}.{p}" for p in PARAMETERS}


def conv_norm(ours: str, theirs: str) -> dict[str, str]:
    """Rows of a convolution without bias and its batch norm."""
    return {f"{ours}.conv.weight": f"{theirs}.conv.weight"} | {
        f"{ours}.norm.{p}": f"{theirs}.bn.{p}" for p in STATISTICS
    }


_LAYER = "encoder.layer.{}."
_TABLE = "relative_position_bias.relative_position_bias_table"
_HEADS: dict[str, str] = {
    **both("lm_head", "lm_head"),
    **both("pyramid.level_{}.0", "fpn{}.0"),
    **{f"pyramid.level_{{}}.1.{p}": f"fpn{{}}.1.{p}" for p in STATISTICS},
    **both("pyramid.level_{}.3", "fpn{}.3"),
    **conv_norm("decoder.pools.{}", "decode_head.psp_modules.{}.1"),
    **conv_norm("decoder.bottleneck", "decode_head.bottleneck"),
    **conv_norm("decoder.laterals.{}", "decode_head.lateral_convs.{}"),
    **conv_norm("decoder.outs.{}", "decode_head.fpn_convs.{}"),
    **conv_norm("decoder.fusion", "decode_head.fpn_bottleneck"),
    **conv_norm("auxiliary.convs.{}", "auxiliary_head.convs.{}"),
    **conv_norm("auxiliary.fusion", "auxiliary_head.conv_cat"),
}
HUB_ROWS: dict[str, str | tuple[str, ...]] = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "positions": "embeddings.position_embeddings",
    **both("patches", "embeddings.patch_embeddings.projection"),
    "shared_bias.table": f"encoder.{_TABLE}",
    **both("blocks.{}.norm_1", f"{_LAYER}layernorm_before"),
    "blocks.{}.attention.qkv.weight": tuple(
        f"{_LAYER}attention.attention.{part}.weight" for part in ("query", "key", "value")
    ),
    "blocks.{}.attention.query_bias": f"{_LAYER}attention.attention.query.bias",
    "blocks.{}.attention.value_bias": f"{_LAYER}attention.attention.value.bias",
    "blocks.{}.attention.bias.table": f"{_LAYER}attention.attention.{_TABLE}",
    **both("blocks.{}.attention.proj", f"{_LAYER}attention.output.dense"),
    "blocks.{}.lambda_1": f"{_LAYER}lambda_1",
    **both("blocks.{}.norm_2", f"{_LAYER}layernorm_after"),
    **both("blocks.{}.mlp.fc_1", f"{_LAYER}intermediate.dense"),
    **both("blocks.{}.mlp.fc_2", f"{_LAYER}output.dense"),
    "blocks.{}.lambda_2": f"{_LAYER}lambda_2",
    **both("norm", "layernorm"),
    **both("pooler.norm", "pooler.layernorm"),
    **both("classifier", "classifier"),
    **_HEADS,
    **both("decoder.classifier", "decode_head.classifier"),
    **both("auxiliary.classifier", "auxiliary_head.classifier"),
}
AUTHORS_ROWS: dict[str, str] = {
    "cls_token": "cls_token",
    "mask_token": "mask_token",
    "positions": "pos_embed",
    **both("patches", "patch_embed.proj"),
    "shared_bias.table": "rel_pos_bias.relative_position_bias_table",
    **both("blocks.{}.norm_1", "blocks.{}.norm1"),
    "blocks.{}.attention.qkv.weight": "blocks.{}.attn.qkv.weight",
    "blocks.{}.attention.query_bias": "blocks.{}.attn.q_bias",
    "blocks.{}.attention.value_bias": "blocks.{}.attn.v_bias",
    "blocks.{}.attention.bias.table": "blocks.{}.attn.relative_position_bias_table",
    **both("blocks.{}.attention.proj", "blocks.{}.attn.proj"),
    "blocks.{}.lambda_1": "blocks.{}.gamma_1",
    **both("blocks.{}.norm_2", "blocks.{}.norm2"),
    **both("blocks.{}.mlp.fc_1", "blocks.{}.mlp.fc1"),
    **both("blocks.{}.mlp.fc_2", "blocks.{}.mlp.fc2"),
    "blocks.{}.lambda_2": "blocks.{}.gamma_2",
    **both("norm", "norm"),
    **both("pooler.norm", "fc_norm"),
    **both("classifier", "head"),
    **_HEADS,
    **both("decoder.classifier", "decode_head.conv_seg"),
    **both("auxiliary.classifier", "auxiliary_head.conv_seg"),
}
INDEX_BUFFER = "relative_position_index"  # older files hold it; it follows from the grid
HUB = NameTable(HUB_ROWS, dropped=(rf"encoder\..*{INDEX_BUFFER}",), prefix="beit")
AUTHORS = NameTable(AUTHORS_ROWS)
_TO_OURS = [
    (re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)")), ours)
    for ours, theirs in AUTHORS_ROWS.items()
]


def our_name(theirs: str) -> str | None:
    """Our name for one of the authors', or None."""
    for pattern, ours in _TO_OURS:
        if found := pattern.fullmatch(theirs):
            return ours.format(*found.groups())
    return None


def read_authors(
    tensors: Mapping[str, Any],
    name: str,
    config: BeitConfig | None = None,
    *,
    compat: Compat = "authors",
    **overrides: Any,
) -> tuple[BeitConfig, dict[str, Any]]:
    """Reads an official `.pth` (pretraining, fine-tuning, or mmsegmentation's), or a
    `flax_model.msgpack` of transformers' Flax classes.

    Args:
        tensors: As the file holds them, in the wrappers of a training checkpoint or without.
        name: The file's name, for messages.
        config: Its configuration, or None to tell it from the shapes. Without relative bias, the
            number of heads cannot be told: it is taken as one for each 64 channels, as in every
            published file; pass `num_attention_heads` for another.
        compat: Whose arithmetic.
        **overrides: Values of the configuration. With another `image_size`, tables and positions
            are resized; with `use_relative_position_bias=True`, a shared table is copied to every
            block, as the authors do when they fine-tune.

    Returns:
        The configuration, and the Hub's names → tensors.

    Raises:
        WeightsError: No BEiT network in the file, or one in Flax's format without a configuration.
    """
    if any(key.endswith("/kernel") for key in tensors):
        if config is None:
            raise WeightsError(
                f"{name} is a Flax checkpoint; its config.json must lie beside it, or pass config="
            )
        return config, dict(hub_tensor_of_flax(key, value) for key, value in tensors.items())
    tensors = {key.removeprefix("backbone."): value for key, value in unwrap(tensors).items()}
    grid = _grid(tensors, name)
    ours = {
        our_name(key): value for key, value in tensors.items() if not key.endswith(INDEX_BUFFER)
    }
    unknown = sorted(
        key for key in tensors if our_name(key) is None and not key.endswith(INDEX_BUFFER)
    )
    if (
        "patches.weight" not in ours
        or "blocks.0.attention.qkv.weight" not in ours
        or "blocks.0.mlp.fc_1.weight" not in ours
    ):
        raise WeightsError(
            f"{name} holds no BEiT network: no patches or no blocks found; expected an official"
            " .pth file"
        )
    values = _values(ours, grid)
    if config is None:
        config = BeitConfig.from_dict(
            BeitConfig.from_published(values, compat) | {"compat": compat}, **overrides
        )
    else:
        known = (
            BeitConfig.from_published(config.to_dict(), compat)
            if compat != config.compat
            else config.to_dict()
        )
        config = BeitConfig.from_dict(known | {"compat": compat}, **overrides)
    for i in range(values["num_hidden_layers"]):
        for bias in ("query_bias", "value_bias"):  # networks without them have zeros
            weight = ours[f"blocks.{i}.attention.qkv.weight"]
            ours.setdefault(f"blocks.{i}.attention.{bias}", 0 * weight[: weight.shape[1], 0])
    hub = HUB.to_theirs({key: value for key, value in ours.items() if key})
    return config, fit_positions(hub, config, grid) | {key: tensors[key] for key in unknown}


def hub_tensor_of_flax(name: str, value: Any) -> tuple[str, Any]:
    """The Hub's name and layout for an array of a `flax_model.msgpack`, such as
    `beit/encoder/layer/0/output/dense/kernel`.
    """
    *modules, leaf = name.split("/")
    if leaf == "kernel":  # matrices (I, O) → (O, I), filters HWIO → OIHW
        axes = (1, 0) if value.ndim == 2 else (3, 2, 0, 1)
        value = (
            np.ascontiguousarray(value.transpose(axes))
            if isinstance(value, np.ndarray)
            else value.permute(axes).contiguous()
        )
    return ".".join([*modules, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)]), value


def _grid(tensors: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Height and width, in patches, that a file's positions are made for."""
    index = next((value for key, value in tensors.items() if key.endswith(INDEX_BUFFER)), None)
    if index is not None:
        # From one patch to the next, the offset falls by one, and by a row's length where a row of
        # patches ends.
        steps = [int(index[1, j]) - int(index[1, j + 1]) for j in range(1, index.shape[0] - 1)]
        width = next((j + 1 for j, step in enumerate(steps) if step != 1), len(steps) + 1)
        return (index.shape[0] - 1) // width, width
    count = 14 * 14  # of the published networks, where the file does not say
    for key, value in tensors.items():
        if key.endswith("relative_position_bias_table"):
            count = ((round((value.shape[0] - 3) ** 0.5) + 1) // 2) ** 2
        elif key == "pos_embed":
            count = value.shape[1] - 1
    side = round(count**0.5)
    if side * side != count or "cls_token" not in tensors:
        raise WeightsError(
            f"{name} holds no BEiT network of a square grid; expected an official .pth file, or"
            " pass config="
        )
    return side, side


def _values(ours: Mapping[Any, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """The configuration's values that the shapes tell."""
    depth = len({key.split(".")[1] for key in ours if key and key.startswith("blocks.")})
    patch = ours["patches.weight"].shape
    size = [grid[0] * patch[2], grid[1] * patch[3]]
    tables = [
        ours[key] for key in ("shared_bias.table", "blocks.0.attention.bias.table") if key in ours
    ]
    values: dict[str, Any] = {
        "hidden_size": patch[0],
        "num_channels": patch[1],
        "patch_size": patch[2] if patch[2] == patch[3] else [patch[2], patch[3]],
        "image_size": size[0] if size[0] == size[1] else size,
        "num_hidden_layers": depth,
        "num_attention_heads": tables[0].shape[1] if tables else max(1, patch[0] // 64),
        "intermediate_size": ours["blocks.0.mlp.fc_1.weight"].shape[0],
        "use_mask_token": "mask_token" in ours,
        "use_absolute_position_embeddings": "positions" in ours,
        "use_relative_position_bias": "blocks.0.attention.bias.table" in ours,
        "use_shared_relative_position_bias": "shared_bias.table" in ours,
        "layer_scale_init_value": (
            (0.1 if depth < 24 else 1e-5) if "blocks.0.lambda_1" in ours else 0.0
        ),
        "use_mean_pooling": "pooler.norm.weight" in ours or "classifier.weight" not in ours,
    }
    if "lm_head.weight" in ours:
        values["vocab_size"] = ours["lm_head.weight"].shape[0]
    if "classifier.weight" in ours:
        values["num_labels"] = ours["classifier.weight"].shape[0]
    if "decoder.classifier.weight" in ours:
        values["num_labels"], values["decoder_channels"] = ours["decoder.classifier.weight"].shape[
            :2
        ]
        values["use_auxiliary_head"] = "auxiliary.classifier.weight" in ours
    if values.get("use_auxiliary_head"):
        convs = {key.split(".")[2] for key in ours if key and key.startswith("auxiliary.convs.")}
        values |= {
            "auxiliary_channels": ours["auxiliary.classifier.weight"].shape[1],
            "auxiliary_num_convs": len(convs),
        }
        values["auxiliary_concat_input"] = "auxiliary.fusion.conv.weight" in ours
    return values


def fit_positions(
    tensors: Mapping[str, Any], config: BeitConfig, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Fits published tables and positions to a configuration: another grid of patches, or a table a
    block in place of a shared one.

    Args:
        tensors: The Hub's names → tensors (torch or numpy).
        config: Says the grid and the kind of bias wanted, and how tables are resized.
        grid: The grid that the tensors are made for; None takes it as square.

    Returns:
        The tensors, those replaced that did not fit. What cannot be fitted is left for loading to
        complain of.
    """
    tensors = dict(tensors)
    shared = next((key for key in tensors if key.endswith(f"encoder.{_TABLE}")), None)
    layer = f"{_LAYER}attention.attention.{_TABLE}"
    if (
        shared
        and config.use_relative_position_bias
        and not config.use_shared_relative_position_bias
    ):
        prefix = shared.removesuffix(f"encoder.{_TABLE}")
        for i in range(config.num_hidden_layers):
            tensors.setdefault(prefix + layer.format(i), tensors[shared])
        del tensors[shared]
    for key, value in tensors.items():
        xp = np if isinstance(value, np.ndarray) else _torch()
        if key.endswith(_TABLE):
            old = grid or _square(round((value.shape[0] - 3) ** 0.5), value.shape[0] - 3)
            if old and table_rows(*old) == value.shape[0] and old != config.grid:
                tensors[key] = resize_table(
                    xp, value, *table_matrices(xp, old, config.grid, config.bias_resize)
                )
        elif key.endswith("position_embeddings"):
            side = round((value.shape[1] - 1) ** 0.5)
            old = grid or ((side, side) if side * side == value.shape[1] - 1 else None)
            if old and value.shape[1] - 1 != config.grid[0] * config.grid[1]:
                tensors[key] = resize_positions(xp, value, old, config.grid)
    return tensors


def _square(side: int, count: int) -> tuple[int, int] | None:
    """The square grid whose table has `side` offsets an axis, unless the count is of another grid."""
    return ((side + 1) // 2, (side + 1) // 2) if side * side == count and side % 2 else None


def _torch() -> Any:
    import torch

    return torch


def save_pth(model: Any, path: str | Path) -> None:
    """Writes a network as the authors' `.pth`: their names, in `state_dict` for segmentation and in
    `model` for the others.

    Args:
        model: Any of the PyTorch BEiT networks.
        path: The file to write.
    """
    import torch

    state = {
        key.removeprefix("beit."): value.detach().cpu() for key, value in model.state_dict().items()
    }
    tensors = AUTHORS.to_theirs(state)
    for key in [key for key in tensors if key.endswith("relative_position_bias_table")]:
        tensors[key.replace("relative_position_bias_table", INDEX_BUFFER)] = (
            relative_position_index(torch, *model.config.grid)
        )
    segments = any(key.startswith("decode_head.") for key in tensors)
    if segments:
        outer = ("decode_head.", "auxiliary_head.")
        tensors = {
            key if key.startswith(outer) else f"backbone.{key}": value
            for key, value in tensors.items()
        }
    wrapped = {"meta": {}, "state_dict": tensors} if segments else {"model": tensors}
    atomic_write(path, lambda file: torch.save(wrapped, file))
