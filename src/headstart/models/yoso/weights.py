"""YOSO's names: ours, the Hub's, and those of the authors' checkpoints."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.checkpoint import unwrap
from headstart.checkpoint.names import NameTable, Row, concatenate
from headstart.config import Compat
from headstart.errors import ConfigError, WeightsError
from headstart.models.yoso.config import EPS_AUTHORS, EPS_TRANSFORMERS, FIRST_POSITION, YosoConfig


def _both(ours: str, theirs: str | tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
    """The rows of a layer's weight and bias."""
    parts = (theirs,) if isinstance(theirs, str) else theirs
    rows: dict[str, str | tuple[str, ...]] = {}
    for leaf in ("weight", "bias"):
        named = tuple(f"{part}.{leaf}" for part in parts)
        rows[f"{ours}.{leaf}"] = named[0] if isinstance(theirs, str) else named
    return rows


HUB = NameTable(
    prefix="yoso",
    rows={
        "embeddings.words.weight": "embeddings.word_embeddings.weight",
        "embeddings.positions.weight": "embeddings.position_embeddings.weight",
        "embeddings.segments.weight": "embeddings.token_type_embeddings.weight",
        **_both("embeddings.norm", "embeddings.LayerNorm"),
        **_both(
            "blocks.{}.attention.qkv",
            tuple(
                f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")
            ),
        ),
        "blocks.{}.attention.conv.weight": "encoder.layer.{}.attention.self.conv.weight",
        **_both("blocks.{}.attention.proj", "encoder.layer.{}.attention.output.dense"),
        **_both("blocks.{}.norm_1", "encoder.layer.{}.attention.output.LayerNorm"),
        **_both("blocks.{}.mlp.0", "encoder.layer.{}.intermediate.dense"),
        **_both("blocks.{}.mlp.1", "encoder.layer.{}.output.dense"),
        **_both("blocks.{}.norm_2", "encoder.layer.{}.output.LayerNorm"),
        **_both("head.dense", "cls.predictions.transform.dense"),
        **_both("head.norm", "cls.predictions.transform.LayerNorm"),
        "head.bias": "cls.predictions.bias",
        "head.decoder.weight": "cls.predictions.decoder.weight",
        **_both("classifier", "classifier"),
        **_both("classifier.dense", "classifier.dense"),
        **_both("classifier.proj", "classifier.out_proj"),
        **_both("pre_classifier", "pre_classifier"),
        **_both("span", "qa_outputs"),
    },
    dropped=(
        r"embeddings\.position_ids",
        r"embeddings\.token_type_ids",
        r"cls\.predictions\.decoder\.bias",
    ),
)
# Where the scores' matrix is not the embeddings', transformers 5 has two biases and adds the
# decoder's; version 4 has one under both names.
HUB_UNTIED = NameTable(
    rows={
        **HUB.rows,
        "head.bias": Row("cls.predictions.bias", copy="cls.predictions.decoder.bias"),
    },
    dropped=HUB.dropped,
    prefix=HUB.prefix,
)

# A block of the authors' released files; a checkpoint of their training code spells it
# `backbone.backbone.encoders.0` and `ff.0`, `ff.2`.
_BLOCK = "model.transformer_{}."
AUTHORS = NameTable(
    rows={
        "embeddings.words.weight": "model.embeddings.word_embeddings.weight",
        "embeddings.positions.weight": "model.embeddings.position_embeddings.weight",
        "embeddings.segments.weight": "model.embeddings.token_type_embeddings.weight",
        **_both("embeddings.norm", "model.embeddings.norm"),
        **_both("blocks.{}.attention.qkv", tuple(f"{_BLOCK}mha.W_{letter}" for letter in "qkv")),
        "blocks.{}.attention.conv.weight": f"{_BLOCK}mha.attn.conv.weight",
        **_both("blocks.{}.attention.proj", f"{_BLOCK}mha.ff"),
        **_both("blocks.{}.norm_1", f"{_BLOCK}norm1"),
        **_both("blocks.{}.mlp.0", f"{_BLOCK}ff1"),
        **_both("blocks.{}.mlp.1", f"{_BLOCK}ff2"),
        **_both("blocks.{}.norm_2", f"{_BLOCK}norm2"),
        **_both("head.dense", "mlm.dense"),
        **_both("head.norm", "mlm.norm"),
        "head.bias": "mlm.mlm_class.bias",
        "head.decoder.weight": "mlm.mlm_class.weight",
        **_both("classifier.dense", "sen_classifer.dense"),
        **_both("classifier.proj", "sen_classifer.classifer"),
        **_both("span", "qahead"),
    },
    # The first token's summary and its next-sentence classes, in the networks with segments: no
    # class of ours reads them.
    dropped=(r"model\.pooler\.(weight|bias)", r"sen_class\.(weight|bias)"),
)
_TRAINED_BLOCK = re.compile(r"^model\.backbone\.backbone\.encoders\.(\d+)\.")


def _released(name: str) -> str:
    """A name of the authors' training code as their released files spell it."""
    found = _TRAINED_BLOCK.match(name)
    if not found:
        return name
    rest = re.sub(r"^ff\.([02])\.", lambda m: f"ff{int(m[1]) // 2 + 1}.", name[found.end() :])
    return f"model.transformer_{found[1]}.{rest}"


def _trained(name: str) -> str:
    """The way back."""
    found = re.match(r"^model\.transformer_(\d+)\.", name)
    if not found:
        return name
    rest = re.sub(r"^ff([12])\.", lambda m: f"ff.{2 * int(m[1]) - 2}.", name[found.end() :])
    return f"model.backbone.backbone.encoders.{found[1]}.{rest}"


def read_authors(
    tensors: Mapping[str, Any],
    name: str,
    config: YosoConfig | None = None,
    *,
    compat: Compat = "authors",
    **overrides: Any,
) -> tuple[YosoConfig, dict[str, Any]]:
    """Reads a checkpoint of the authors, released or from their training code, of the RoBERTa or
    the BERT kind.

    Args:
        tensors: As the file holds them.
        name: The file's name, for messages.
        config: Its configuration, or None to tell it from the shapes (heads of 64, unless
            `num_attention_heads` is among the overrides).
        compat: Whose arithmetic.
        **overrides: Values of the configuration.

    Returns:
        The configuration, and the Hub's names → tensors.

    Raises:
        WeightsError: No YOSO network that a class here could be.
    """
    bare = unwrap(tensors, ("model_state_dict", "state_dict", "module"))
    theirs = {_released(key): value for key, value in bare.items()}
    if "model.norm.weight" in theirs or any("mlpblock" in key for key in theirs):
        raise WeightsError(
            f"{name} holds a network of the Long Range Arena (norms first, mean pooling), which"
            " none of the YOSO classes is"
        )
    if "model.embeddings.word_embeddings.weight" not in theirs or not any(
        ".mha.W_q." in key for key in theirs
    ):
        raise WeightsError(
            f"{name} holds no YOSO network: no embeddings or no blocks found; expected a checkpoint"
            " of the authors' code"
        )
    ours: dict[str, Any] = {}
    used: set[str] = set()
    for key in theirs:
        for mine, row in _rows_of(key):
            parts = row.parts
            if mine not in ours and all(part in theirs for part in parts):
                ours[mine] = (
                    theirs[parts[0]]
                    if len(parts) == 1
                    else concatenate([theirs[part] for part in parts])
                )
                used.update(parts)
    unknown = sorted(key for key in theirs if key not in used and not AUTHORS.knows(key))
    if unknown:
        raise WeightsError(
            f"{name} has tensors that no YOSO class has a place for: {', '.join(unknown)}"
        )
    if "model.pooler.weight" in theirs:  # the BERT kind counts places from the table's first row
        table = ours["embeddings.positions.weight"]
        ours["embeddings.positions.weight"] = concatenate(
            [table[:1] * 0] * FIRST_POSITION + [table]
        )
    if config is None:
        config = _config_from_shapes(ours, name, compat, overrides)
    prefixed = {
        key if key.split(".")[0] in ("head", "classifier", "span") else f"yoso.{key}": value
        for key, value in ours.items()
    }
    return config, HUB.to_theirs(prefixed)


def _rows_of(theirs: str) -> list[tuple[str, Any]]:
    """Our name that one of the authors' names belongs to, with the row; empty where there is none."""
    number = re.search(r"transformer_(\d+)\.", theirs)
    plain = theirs.replace(f"transformer_{number[1]}.", "transformer_{}.") if number else theirs
    found = []
    for mine, row in AUTHORS.rows.items():
        if plain == row or (isinstance(row, tuple) and plain in row):
            name = mine.format(*([number[1]] if number else []))
            found.append((name, AUTHORS.theirs(name)))
    return found


def _config_from_shapes(
    ours: Mapping[str, Any], name: str, compat: Compat, overrides: Mapping[str, Any]
) -> YosoConfig:
    words, conv = ours["embeddings.words.weight"], ours.get("blocks.0.attention.conv.weight")
    hidden = words.shape[1]
    heads = overrides.get("num_attention_heads") or (
        conv.shape[0] if conv is not None else hidden // 64 if hidden % 64 == 0 else None
    )
    if heads is None:
        raise ConfigError(
            f"{name}: the number of heads cannot be told from a width of {hidden}; pass"
            " num_attention_heads"
        )
    decoder = ours.get("head.decoder.weight")
    values: dict[str, Any] = {
        "vocab_size": words.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": (
            1 + max(int(key.split(".")[1]) for key in ours if key.startswith("blocks."))
        ),
        "num_attention_heads": heads,
        "intermediate_size": ours["blocks.0.mlp.0.weight"].shape[0],
        "max_position_embeddings": ours["embeddings.positions.weight"].shape[0] - FIRST_POSITION,
        "type_vocab_size": ours["embeddings.segments.weight"].shape[0],
        "conv_window": None if conv is None else conv.shape[2],
        "layer_norm_eps": EPS_AUTHORS if compat == "authors" else EPS_TRANSFORMERS,
        "tie_word_embeddings": decoder is None or bool((decoder == words).all()),
        "num_labels": (
            ours["classifier.proj.bias"].shape[0] if "classifier.proj.bias" in ours else 2
        ),
    }
    if compat == "transformers":
        values = YosoConfig.from_published(values, compat)
    return YosoConfig.from_dict(values | {"compat": compat}, **overrides)


def save_authors(model: Any, path: str | Path, released: bool = True) -> None:
    """Writes the network as a checkpoint that the authors' code reads (the RoBERTa kind).

    Args:
        model: Any YOSO network but those for multiple choice and tokens, which the authors do not
            have.
        path: The file to write.
        released: Names as in the released files; False as their training code writes them.

    Raises:
        WeightsError: A tensor has no place there.
    """
    import torch

    state = {
        key.removeprefix("yoso."): value.detach().cpu() for key, value in model.state_dict().items()
    }
    if "head.bias" in state:
        state.setdefault("head.decoder.weight", state["embeddings.words.weight"])
    named = AUTHORS.to_theirs(state)
    torch.save(
        {
            "model_state_dict": {
                key if released else _trained(key): value for key, value in named.items()
            }
        },
        path,
    )
