"""What a YOSO network is, and the one that its authors published."""

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from headstart.config import Compat, PreTrainedConfig, config_class
from headstart.config_checks import one_of
from headstart.errors import ConfigError
from headstart.registry import Published

EPS_AUTHORS, EPS_TRANSFORMERS = 1e-5, 1e-12
# Rows of the position table before the first token's: RoBERTa counts from pad_token_id + 1.
FIRST_POSITION = 2
OLDER = ("None", "0", "1", "2", "3", "4")  # first parts of transformers' versions

logger = logging.getLogger("headstart")


@config_class
class YosoConfig(PreTrainedConfig):
    """Shape of a YOSO network. The defaults give the published base model, but for its
    `layer_norm_eps` of 1e-5.

    Args:
        vocab_size: Tokens of the vocabulary.
        hidden_size: Width of the network.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads of each attention; divides `hidden_size`.
        intermediate_size: Width inside the MLP of a block.
        hidden_act: Activation of the MLPs: "gelu", "relu", "selu", "gelu_new", …
        hidden_dropout_prob: Dropout after the embeddings, after each branch and in the heads.
        attention_probs_dropout_prob: Kept for files; no weights exist that could be dropped, and
            no published YOSO drops any.
        max_position_embeddings: Longest text, in tokens.
        type_vocab_size: Kinds of segments.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Added to the variance in every norm (the authors' is 1e-5).
        position_embedding_type: "absolute" adds a learned vector for each position. "relative_key"
            and "relative_key_query" add none, as in transformers: hashed attention has no scores to
            add to. The order is then seen through `conv_window` alone.
        use_expectation: Whether attention is exact, or sampled with hashes.
        hash_code_len: Bits of a hash.
        num_hash: Hashes of sampled attention.
        hash_error: Error that sampled attention may have, as a fraction of a row's length. The
            number of hashes is then chosen for each batch's length (`choose_num_hash`), and
            `num_hash` is not used. None keeps to `num_hash`.
        conv_window: Odd width of a convolution over the values of neighboring tokens, added to
            each head, or None.
        use_fast_hash: Whether sampling hashes with Hadamard transforms, or with Gaussian
            projections (slower, without bias).
        lsh_backward: Whether gradients of sampled attention are sampled too.
        pad_token_id: Token that fills short texts.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        tie_word_embeddings: Whether the masked-language head scores with the word embeddings.
        attend_padding: Whether attention includes padding, as in transformers. The convolution
            never does.
        head_act: Activation of the text classifier (the authors' is "tanh", transformers' is
            `hidden_act`).
        classifier_pooling: What the text classifier reads: "first" is the first token's vector,
            "mean" the mean over the tokens, padding left out, and "pair" that mean beside the
            absolute difference between the means of a text and of its second text.
        ignore_head_mask: Whether `head_mask` changes nothing, as in transformers.
        hash_seed: Seed of the hashes in evaluation mode. Every text then meets the same hashes,
            which differ between heads and layers: its result does not depend on its position in a
            batch, nor on the other texts, unless they pad it to a length for which `hash_error` or
            `sample_from` decide otherwise. None takes new hashes for every text and call from
            PyTorch's generator, as training always does.
        sample_from: Shortest text, in tokens, that `use_expectation=False` samples; attention of
            shorter ones stays exact.

    Example:
        >>> from headstart import YosoConfig
        >>> YosoConfig(use_expectation=False, num_hash=32).hash_code_len
        9
    """

    model_type: ClassVar[str] = "yoso"

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[..., Any] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 4096
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = EPS_TRANSFORMERS
    position_embedding_type: Literal["absolute", "relative_key", "relative_key_query"] = "absolute"
    use_expectation: bool = True
    hash_code_len: int = 9
    num_hash: int = 64
    conv_window: int | None = None
    use_fast_hash: bool = True
    lsh_backward: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    attend_padding: bool = False
    head_act: str | Callable[..., Any] = "tanh"
    classifier_pooling: Literal["first", "mean", "pair"] = "first"
    ignore_head_mask: bool = False
    hash_seed: int | None = None
    hash_error: float | None = None
    sample_from: int = 0

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
        for name in (*sizes, "type_vocab_size", "hash_code_len", "num_hash"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} does not divide"
                f" hidden_size={self.hidden_size}"
            )
        if self.conv_window is not None and (self.conv_window < 1 or self.conv_window % 2 == 0):
            raise ConfigError(
                f"conv_window={self.conv_window}; expected an odd width, with as many neighbors"
                " left as right of a token"
            )
        one_of(
            "position_embedding_type",
            self.position_embedding_type,
            ("absolute", "relative_key", "relative_key_query"),
        )
        one_of("classifier_pooling", self.classifier_pooling, ("first", "mean", "pair"))
        if self.classifier_pooling == "pair" and self.eos_token_id is None:
            raise ConfigError("classifier_pooling='pair' needs eos_token_id, which parts two texts")
        if self.position_embedding_type != "absolute":
            logger.warning(
                "position_embedding_type=%r gives the network no positions; only conv_window"
                " depends on the order of tokens",
                self.position_embedding_type,
            )
        if not self.use_expectation and self.hash_code_len > 16:
            raise ConfigError(
                f"hash_code_len={self.hash_code_len}; sampled attention (use_expectation=False)"
                " takes at most 16 bits"
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id={self.pad_token_id} is not in the vocabulary of {self.vocab_size}"
                " tokens"
            )
        if self.hash_error is not None and not self.hash_error > 0:
            raise ConfigError(
                f"hash_error={self.hash_error}; expected a fraction above 0, such as 0.1"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; expected a fraction from 0 to below 1"
                )

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_published(cls, values: dict[str, Any], compat: Compat) -> dict[str, Any]:
        """The authors' norms, masks and classifier, or transformers'."""
        values = {
            k: v
            for k, v in values.items()
            if k not in ("attend_padding", "head_act", "ignore_head_mask")
        }
        eps = values.get("layer_norm_eps", EPS_TRANSFORMERS)
        if compat == "transformers":
            act = values.get("hidden_act", "gelu")
            # it adds positions whatever this says
            if str(values.get("transformers_version")).partition(".")[0] not in OLDER:
                values["position_embedding_type"] = "absolute"
            return values | {
                "layer_norm_eps": eps,
                "attend_padding": True,
                "head_act": act,
                "ignore_head_mask": True,
            }
        # The conversion of the authors' weights wrote transformers' default; whoever chose another
        # value meant it.
        return values | {"layer_norm_eps": EPS_AUTHORS if eps == EPS_TRANSFORMERS else eps}

    def differences(self) -> list[str]:
        """What transformers computes otherwise."""
        out = []
        if not self.attend_padding:
            out.append(
                "padding changes nothing here; there it is attended, so a text's result depends on"
                " the batch it is in"
            )
        if self.head_act != self.hidden_act:
            out.append(
                f"the text classifier's activation is {self.head_act} here, {self.hidden_act} there"
            )
        if self.classifier_pooling != "first":
            out.append(
                f"the text classifier pools by {self.classifier_pooling!r} here, by the first token"
                " there"
            )
        if not self.ignore_head_mask:
            out.append("head_mask removes heads here, and nothing there")
        if not self.use_expectation:
            out.append("attention is sampled on every device here, and on CUDA alone there")
        return out


def count_parameters(config: YosoConfig) -> int:
    """Weights of a `YosoForMaskedLM` with tied embeddings."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    embeddings = (
        V + config.max_position_embeddings + FIRST_POSITION + config.type_vocab_size
    ) * D + 2 * D
    conv = config.num_attention_heads * (config.conv_window or 0)
    block = 4 * (D * D + D) + conv + 2 * D * F + F + D + 4 * D
    return embeddings + config.num_hidden_layers * block + D * D + D + 2 * D + V


PUBLISHED = {
    "yoso-mini": Published(
        "yoso-mini",
        parameters=4_648_960,
        result="sentence vectors, English (comes with the package)",
    ),
    "yoso-4096": Published(
        name="yoso-4096",
        config={"layer_norm_eps": EPS_AUTHORS},
        hub_id="uw-madison/yoso-4096",
        licence="none stated",
        parameters=127_449_945,
        image_size=None,
        result="masked language model, 4,096 tokens",
    ),
}
