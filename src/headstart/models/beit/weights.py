"""BEiT's files: the authors' names, and tables and positions fitted to a configuration's grid."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint import atomic_write, unwrap
from headstart.checkpoint.names import NameTable, PublishedNames, concatenate, split
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

INDEX_BUFFER = "relative_position_index"  # older files hold it; it follows from the grid
PUBLISHED_NAMES = PublishedNames(
    prefix="beit",
    base=("embeddings", "encoder"),
    extra=(
        *("layernorm", "pooler", "classifier", "lm_head", "decode_head", "auxiliary_head"),
        *("fpn1", "fpn2"),
    ),
    ignored=(INDEX_BUFFER,),
)
Grid = tuple[int, int]  # height and width in patches
PATCHES = "embeddings.patch_embeddings.projection.weight"
_LAYER = "encoder.layer.{}."
_TABLE = "relative_position_bias.relative_position_bias_table"


def both(theirs: str, published: str) -> dict[str, str]:
    """Rows of a module with weight and bias."""
    return {f"{theirs}.{p}": f"{published}.{p}" for p in ("weight", "bias")}


def layer(theirs: str, published: str) -> dict[str, str]:
    """Rows of a module of a block with weight and bias."""
    return both("blocks.{}." + theirs, _LAYER + published)


# The authors' name → the published one, or several that are parts of one matrix.
AUTHORS_ROWS: dict[str, str | tuple[str, ...]] = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    **both("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    "rel_pos_bias.relative_position_bias_table": f"encoder.{_TABLE}",
    **layer("norm1", "layernorm_before"),
    "blocks.{}.attn.qkv.weight": tuple(
        f"{_LAYER}attention.attention.{part}.weight" for part in ("query", "key", "value")
    ),
    "blocks.{}.attn.q_bias": f"{_LAYER}attention.attention.query.bias",
    "blocks.{}.attn.v_bias": f"{_LAYER}attention.attention.value.bias",
    "blocks.{}.attn.relative_position_bias_table": f"{_LAYER}attention.attention.{_TABLE}",
    **layer("attn.proj", "attention.output.dense"),
    "blocks.{}.gamma_1": f"{_LAYER}lambda_1",
    **layer("norm2", "layernorm_after"),
    **layer("mlp.fc1", "intermediate.dense"),
    **layer("mlp.fc2", "output.dense"),
    "blocks.{}.gamma_2": f"{_LAYER}lambda_2",
    **both("norm", "layernorm"),
    **both("fc_norm", "pooler.layernorm"),
    **both("head", "classifier"),
    **both("decode_head.conv_seg", "decode_head.classifier"),
    **both("auxiliary_head.conv_seg", "auxiliary_head.classifier"),
}
# The other names of the pyramid and of the heads are the same on both sides.
_PUBLISHED = NameTable(AUTHORS_ROWS)
_AUTHORS = NameTable(
    {
        part: theirs
        for theirs, row in AUTHORS_ROWS.items()
        for part in ((row,) if isinstance(row, str) else row)
    }
)


def to_published(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Published names → tensors, of the authors'; a name that is neither stays."""
    out: dict[str, Any] = {}
    for name, value in tensors.items():
        row = _PUBLISHED.theirs(name)
        parts = row.parts if row else (name,)
        values = split(value, len(parts)) if len(parts) > 1 else [value]
        out |= dict(zip(parts, values, strict=True))
    return out


def to_authors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' names → tensors, of those of a network's `state_dict()`."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for name, value in tensors.items():
        bare = name.removeprefix("beit.")
        row = _AUTHORS.theirs(bare)
        parts[row.parts[0] if row else bare].append(value)
    return {
        name: concatenate(values) if values[1:] else values[0] for name, values in parts.items()
    }


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
        config: Its configuration, or None to infer it from the shapes. Without relative bias, the
            number of heads cannot be inferred: it is taken as one for each 64 channels, as in every
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
    published = to_published(
        {key: value for key, value in tensors.items() if not key.endswith(INDEX_BUFFER)}
    )
    needed = ("attention.attention.query.weight", "intermediate.dense.weight")
    if PATCHES not in published or not all(_LAYER.format(0) + key in published for key in needed):
        raise WeightsError(
            f"{name} holds no BEiT network: no patches or no blocks found; expected an official"
            " .pth file"
        )
    values = _values(published, grid)
    if config is None:
        known = BeitConfig.from_published(values, compat)
    elif compat != config.compat:
        known = BeitConfig.from_published(config.to_dict(), compat)
    else:
        known = config.to_dict()
    config = BeitConfig.from_dict(known | {"compat": compat}, **overrides)
    for i in range(values["num_hidden_layers"]):
        for part in ("query", "value"):  # networks without these biases have zeros
            linear = f"{_LAYER.format(i)}attention.attention.{part}"
            published.setdefault(f"{linear}.bias", 0 * published[f"{linear}.weight"][:, 0])
    return config, fit_positions(published, config, grid)


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


def _values(published: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """The configuration's values that follow from the shapes."""
    first = _LAYER.format(0)
    depth = len({key.split(".")[2] for key in published if key.startswith("encoder.layer.")})
    patch = published[PATCHES].shape
    size = [grid[0] * patch[2], grid[1] * patch[3]]
    own, shared = f"{first}attention.attention.{_TABLE}", f"encoder.{_TABLE}"
    tables = [published[key] for key in (shared, own) if key in published]
    pools = "pooler.layernorm.weight" in published or "classifier.weight" not in published
    values: dict[str, Any] = {
        "hidden_size": patch[0],
        "num_channels": patch[1],
        "patch_size": patch[2] if patch[2] == patch[3] else [patch[2], patch[3]],
        "image_size": size[0] if size[0] == size[1] else size,
        "num_hidden_layers": depth,
        "num_attention_heads": tables[0].shape[1] if tables else max(1, patch[0] // 64),
        "intermediate_size": published[f"{first}intermediate.dense.weight"].shape[0],
        "use_mask_token": "embeddings.mask_token" in published,
        "use_absolute_position_embeddings": "embeddings.position_embeddings" in published,
        "use_relative_position_bias": own in published,
        "use_shared_relative_position_bias": shared in published,
        "layer_scale_init_value": 0.0,
        "use_mean_pooling": pools,
    }
    if f"{first}lambda_1" in published:
        values["layer_scale_init_value"] = 0.1 if depth < 24 else 1e-5
    if "lm_head.weight" in published:
        values["vocab_size"] = published["lm_head.weight"].shape[0]
    if "classifier.weight" in published:
        values["num_labels"] = published["classifier.weight"].shape[0]
    if "decode_head.classifier.weight" in published:
        labels, channels = published["decode_head.classifier.weight"].shape[:2]
        values |= {"num_labels": labels, "decoder_channels": channels}
        values["use_auxiliary_head"] = "auxiliary_head.classifier.weight" in published
    if values.get("use_auxiliary_head"):
        convs = {k.split(".")[2] for k in published if k.startswith("auxiliary_head.convs.")}
        values["auxiliary_channels"] = published["auxiliary_head.classifier.weight"].shape[1]
        values["auxiliary_num_convs"] = len(convs)
        values["auxiliary_concat_input"] = "auxiliary_head.conv_cat.conv.weight" in published
    return values


def fit_positions(
    tensors: Mapping[str, Any], config: BeitConfig, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Fits published tables and positions to a configuration: another grid of patches, or a table a
    block in place of a shared one.

    Args:
        tensors: The Hub's names → tensors (torch or numpy).
        config: Says the grid and the kind of bias wanted, and how tables are resized.
        grid: The grid that the tensors are made for; where it is None or does not fit, they are
            taken as square.

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
        known = (grid, config.grid)
        if key.endswith(_TABLE):
            old = _made_for(value.shape[0], known, table_rows)
            if old not in (None, config.grid):
                matrices = table_matrices(xp, old, config.grid, config.bias_resize)
                tensors[key] = resize_table(xp, value, *matrices)
        elif key.endswith("position_embeddings"):
            old = _made_for(value.shape[1], known, lambda height, width: 1 + height * width)
            if old not in (None, config.grid):
                tensors[key] = resize_positions(xp, value, old, config.grid)
    return tensors


def _made_for(
    rows: int, known: tuple[Grid | None, ...], count: Callable[[int, int], int]
) -> Grid | None:
    """The grid of `rows` rows: the first known one that has as many, a square one, or None."""
    side = 1
    while count(side, side) < rows:
        side += 1
    candidates = [each for each in (*known, (side, side)) if each and count(*each) == rows]
    return candidates[0] if candidates else None


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

    tensors = to_authors({key: value.cpu() for key, value in model.state_dict().items()})
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
