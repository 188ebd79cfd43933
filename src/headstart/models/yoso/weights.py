"""YOSO's names: the published ones, and those of the authors' checkpoints."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write, unwrap
from headstart.checkpoint.names import NameTable, PublishedNames, concatenate
from headstart.config import Compat
from headstart.errors import ConfigError, WeightsError
from headstart.models.yoso.config import EPS_AUTHORS, EPS_TRANSFORMERS, FIRST_POSITION, YosoConfig

POSITIONS = "embeddings.position_embeddings.weight"
NAMES = PublishedNames(
    prefix="yoso",
    base=("embeddings", "encoder"),
    extra=("cls", "classifier", "pre_classifier", "qa_outputs"),
    ignored=(r"embeddings\.position_ids", r"embeddings\.token_type_ids"),
)
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


class UntiedNames(PublishedNames):
    """Names where the scores' matrix is not the embeddings'.

    transformers 5 has two biases and adds the decoder's; version 4 has one under both names.
    """

    def to_ours(
        self, tensors: Mapping[str, Any], wanted: Iterable[str]
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        """Picks the tensors of a network; of two biases, the decoder's."""
        found, missing, unknown = super().to_ours(tensors, wanted)
        if _BIAS in found and _DECODER_BIAS in tensors:
            found[_BIAS] = tensors[_DECODER_BIAS]
        return found, missing, unknown

    def to_theirs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors as a file holds them: the bias twice, in memory of its own."""
        theirs = super().to_theirs(tensors)
        if _BIAS in theirs:
            theirs[_DECODER_BIAS] = theirs[_BIAS].clone()
        return theirs


UNTIED = UntiedNames(**vars(NAMES))


def _both(ours: str, theirs: str) -> dict[str, str]:
    """The rows of a layer's weight and bias."""
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}


# Published name → the authors', in their released files; a checkpoint of their training code spells
# a block `backbone.backbone.encoders.0` and its MLP `ff.0`, `ff.2`.
_LAYER, _BLOCK = "encoder.layer.{}.", "model.transformer_{}."
AUTHORS = NameTable(
    rows={
        "embeddings.word_embeddings.weight": "model.embeddings.word_embeddings.weight",
        POSITIONS: "model.embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight": "model.embeddings.token_type_embeddings.weight",
        **_both("embeddings.LayerNorm", "model.embeddings.norm"),
        **_both(f"{_LAYER}attention.self.query", f"{_BLOCK}mha.W_q"),
        **_both(f"{_LAYER}attention.self.key", f"{_BLOCK}mha.W_k"),
        **_both(f"{_LAYER}attention.self.value", f"{_BLOCK}mha.W_v"),
        f"{_LAYER}attention.self.conv.weight": f"{_BLOCK}mha.attn.conv.weight",
        **_both(f"{_LAYER}attention.output.dense", f"{_BLOCK}mha.ff"),
        **_both(f"{_LAYER}attention.output.LayerNorm", f"{_BLOCK}norm1"),
        **_both(f"{_LAYER}intermediate.dense", f"{_BLOCK}ff1"),
        **_both(f"{_LAYER}output.dense", f"{_BLOCK}ff2"),
        **_both(f"{_LAYER}output.LayerNorm", f"{_BLOCK}norm2"),
        **_both("cls.predictions.transform.dense", "mlm.dense"),
        **_both("cls.predictions.transform.LayerNorm", "mlm.norm"),
        "cls.predictions.bias": "mlm.mlm_class.bias",
        "cls.predictions.decoder.weight": "mlm.mlm_class.weight",
        **_both("classifier.dense", "sen_classifer.dense"),
        **_both("classifier.out_proj", "sen_classifer.classifer"),
        **_both("qa_outputs", "qahead"),
    },
    # The first token's summary and its next-sentence classes, in the networks with segments: no
    # class of ours reads them.
    dropped=(r"model\.pooler\.(weight|bias)", r"sen_class\.(weight|bias)"),
)
_NUMBER = re.compile(r"^model\.transformer_(\d+)\.")
_TRAINED_BLOCK = re.compile(r"^model\.backbone\.backbone\.encoders\.(\d+)\.")


def released_name(name: str) -> str:
    """A name of the authors' training code as their released files spell it."""
    found = _TRAINED_BLOCK.match(name)
    if not found:
        return name
    rest = re.sub(r"^ff\.([02])\.", lambda m: f"ff{int(m[1]) // 2 + 1}.", name[found.end() :])
    return f"model.transformer_{found[1]}.{rest}"


def _trained(name: str) -> str:
    """The inverse of `released_name`."""
    found = _NUMBER.match(name)
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
        config: Its configuration, or None to derive it from the shapes (heads of 64, unless
            `num_attention_heads` is among the overrides).
        compat: Whose arithmetic.
        **overrides: Values of the configuration.

    Returns:
        The configuration, and the Hub's names → tensors.

    Raises:
        WeightsError: No YOSO network that a class here could be.
    """
    bare = unwrap(tensors, ("model_state_dict", "state_dict", "module"))
    theirs = {released_name(key): value for key, value in bare.items()}
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
    layers = sorted({int(found[1]) for key in theirs if (found := _NUMBER.match(key))})
    wanted = [name.format(i) for name in AUTHORS.rows for i in (layers if "{}" in name else [0])]
    ours, _, unknown = AUTHORS.to_ours(theirs, wanted)
    if unknown:
        raise WeightsError(f"{name} has tensors that no YOSO class uses: {', '.join(unknown)}")
    if "model.pooler.weight" in theirs:  # the BERT kind counts positions from the table's first row
        table = ours[POSITIONS]
        padded = concatenate([table[:1] * 0] * FIRST_POSITION + [table])
        ours[POSITIONS] = padded
    if config is None:
        config = _config_from_shapes(ours, name, compat, overrides)
    return config, {
        f"yoso.{key}" if key.startswith(NAMES.base) else key: value for key, value in ours.items()
    }


def _config_from_shapes(
    ours: Mapping[str, Any], name: str, compat: Compat, overrides: Mapping[str, Any]
) -> YosoConfig:
    words = ours["embeddings.word_embeddings.weight"]
    conv = ours.get("encoder.layer.0.attention.self.conv.weight")
    hidden = words.shape[1]
    heads = overrides.get("num_attention_heads")
    if not heads and conv is not None:
        heads = conv.shape[0]
    elif not heads and hidden % 64 == 0:
        heads = hidden // 64
    if not heads:
        raise ConfigError(
            f"{name}: the number of heads does not follow from a width of {hidden}; pass"
            " num_attention_heads"
        )
    decoder = ours.get("cls.predictions.decoder.weight")
    positions = ours[POSITIONS].shape[0] - FIRST_POSITION
    values: dict[str, Any] = {
        "vocab_size": words.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": sum(key.endswith("attention.self.query.weight") for key in ours),
        "num_attention_heads": heads,
        "intermediate_size": ours["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": positions,
        "type_vocab_size": ours["embeddings.token_type_embeddings.weight"].shape[0],
        "conv_window": None if conv is None else conv.shape[2],
        "layer_norm_eps": EPS_AUTHORS if compat == "authors" else EPS_TRANSFORMERS,
        "tie_word_embeddings": decoder is None or bool((decoder == words).all()),
        "num_labels": len(ours.get("classifier.out_proj.bias", (0, 1))),
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
        WeightsError: A tensor that the format cannot hold.
    """
    import torch

    state = {
        key.removeprefix("yoso."): value.detach().cpu()
        for key, value in model.state_dict().items()
        if key != _DECODER_BIAS
    }
    named = AUTHORS.to_theirs(state)
    if not released:
        named = {_trained(key): value for key, value in named.items()}
    atomic_write(path, lambda file: torch.save({"model_state_dict": named}, file))
