"""What a CvT network is, and the ones that its authors published."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

from headstart.config import BackboneConfig, Compat, config_class
from headstart.config_checks import list_of, one_of
from headstart.errors import ConfigError
from headstart.registry import Published

# Of every layer norm in the authors' code and in transformers, whatever `layer_norm_eps` says in a
# file of theirs.
EPS = 1e-5
ACTIVATIONS = {"authors": "quick_gelu", "transformers": "gelu"}
PER_STAGE = (
    "patch_sizes", "patch_stride", "patch_padding", "num_heads", "depth", "mlp_ratio",
    "attention_drop_rate", "drop_rate",
    "drop_path_rate", "qkv_bias", "cls_token", "qkv_projection_method", "kernel_qkv", "padding_kv",
    "stride_kv", "padding_q", "stride_q",
)  # fmt: skip


def each(*values: Any) -> Any:
    """A field whose default is a list of its own."""
    return field(default_factory=lambda: list(values))


@config_class
class CvtConfig(BackboneConfig):
    """Shape of a CvT network: lists with one entry a stage, of any number of stages. The defaults
    give CvT-13.

    Args:
        num_channels: Channels of an image.
        patch_sizes: Kernel of the convolution that makes a stage's tokens.
        patch_stride: Its stride.
        patch_padding: Its padding.
        embed_dim: Width of a token.
        num_heads: Heads of the attention; divides the width.
        depth: Number of blocks.
        mlp_ratio: Width inside the block's MLP, as a multiple of the token's.
        attention_drop_rate: Dropout of the attention weights.
        drop_rate: Dropout of the tokens, of the attention's output and inside the MLP.
        drop_path_rate: Stochastic depth of the stage's last block; grows evenly from 0 at its
            first, as in the authors' code.
        qkv_bias: Whether the linear maps to queries, keys and values have a bias.
        cls_token: Whether the stage has a class token, as wide as its other tokens. Only the last
            stage's reaches the head.
        qkv_projection_method: What comes before those linear maps: "dw_bn" is a depthwise
            convolution and batch norm, "avg" is average pooling for keys and values and nothing for
            queries, "linear" is nothing.
        kernel_qkv: Kernel of that convolution or pooling.
        padding_kv: Its padding for keys and values.
        stride_kv: Its stride for keys and values.
        padding_q: Its padding for queries.
        stride_q: Its stride for queries; other than 1 the result would not fit the shortcut.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Added to the variance in every layer norm. The authors and transformers use
            1e-5 whatever their config.json says, so files that others wrote are read as 1e-5; here
            the value counts.
        hidden_act: Activation of the MLPs. The published networks were trained with "quick_gelu",
            transformers runs "gelu".
        out_features: Stages that a backbone returns, by name ("stage1", "stage2", …).
        out_indices: The same by number, from 0.

    Example:
        >>> from headstart import CvtConfig
        >>> CvtConfig(depth=[1, 4, 16]).stage_names
        ['stage1', 'stage2', 'stage3']
    """

    model_type: ClassVar[str] = "cvt"
    pools: ClassVar[bool] = True

    num_channels: int = 3
    patch_sizes: list[int] = each(7, 3, 3)
    patch_stride: list[int] = each(4, 2, 2)
    patch_padding: list[int] = each(2, 1, 1)
    embed_dim: list[int] = each(64, 192, 384)
    num_heads: list[int] = each(1, 3, 6)
    depth: list[int] = each(1, 2, 10)
    mlp_ratio: list[float] = each(4.0, 4.0, 4.0)
    attention_drop_rate: list[float] = each(0.0, 0.0, 0.0)
    drop_rate: list[float] = each(0.0, 0.0, 0.0)
    drop_path_rate: list[float] = each(0.0, 0.0, 0.1)
    qkv_bias: list[bool] = each(True, True, True)
    cls_token: list[bool] = each(False, False, True)
    qkv_projection_method: list[str] = each("dw_bn", "dw_bn", "dw_bn")
    kernel_qkv: list[int] = each(3, 3, 3)
    padding_kv: list[int] = each(1, 1, 1)
    stride_kv: list[int] = each(2, 2, 2)
    padding_q: list[int] = each(1, 1, 1)
    stride_q: list[int] = each(1, 1, 1)
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    hidden_act: str | Callable[..., Any] = ACTIVATIONS["authors"]
    out_features: list[str] | None = None
    out_indices: list[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.embed_dim, list | tuple) or not self.embed_dim:
            raise ConfigError(
                f"embed_dim={self.embed_dim!r}; expected a list of widths, one per stage"
            )
        for name in PER_STAGE:
            list_of(name, getattr(self, name), len(self.embed_dim))
            setattr(self, name, list(getattr(self, name)))
        self.embed_dim = list(self.embed_dim)
        counts = (
            "patch_sizes",
            "patch_stride",
            "embed_dim",
            "num_heads",
            "depth",
            "kernel_qkv",
            "stride_kv",
            "stride_q",
        )
        low = [name for name in counts if min(getattr(self, name)) < 1]
        if low or self.num_channels < 1:
            name = low[0] if low else "num_channels"
            raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1")
        for i in range(len(self.embed_dim)):
            self._check_stage(i)
        self.align_stages(self.out_features, self.out_indices)

    def _check_stage(self, i: int) -> None:
        one_of("qkv_projection_method", self.qkv_projection_method[i], ("dw_bn", "avg", "linear"))
        if self.embed_dim[i] % self.num_heads[i]:
            raise ConfigError(
                f"stage {i + 1}: num_heads={self.num_heads[i]} does not divide"
                f" embed_dim={self.embed_dim[i]}"
            )
        if int(self.embed_dim[i] * self.mlp_ratio[i]) < 1:
            raise ConfigError(
                f"stage {i + 1}: mlp_ratio={self.mlp_ratio[i]} of embed_dim={self.embed_dim[i]};"
                " expected a hidden layer of at least 1"
            )
        for name in ("attention_drop_rate", "drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name)[i] < 1:
                raise ConfigError(
                    f"stage {i + 1}: {name}={getattr(self, name)[i]}; expected a probability"
                    " below 1"
                )
        kernel, padding, stride = self.kernel_qkv[i], self.padding_q[i], self.stride_q[i]
        if self.qkv_projection_method[i] == "dw_bn" and (stride != 1 or 2 * padding != kernel - 1):
            raise ConfigError(
                f"stage {i + 1}: queries with kernel_qkv={kernel}, padding_q={padding},"
                f" stride_q={stride} do not have the size of the shortcut that they are added to;"
                " use stride_q=1 and an odd kernel_qkv with padding_q=(kernel_qkv - 1) / 2"
            )

    @property
    def stage_names(self) -> list[str]:
        """Names that `out_features` may use."""
        return [f"stage{i}" for i in range(1, len(self.embed_dim) + 1)]

    @property
    def smallest_image(self) -> int:
        """Height and width in pixels below which a map inside the network would be empty."""
        size = 1
        for i in reversed(range(len(self.embed_dim))):
            if self.qkv_projection_method[i] != "linear":  # of keys and values
                least = self.kernel_qkv[i] - 2 * self.padding_kv[i]
                pools = self.qkv_projection_method[i] == "avg"  # a window may be cut by the edge
                size = max(size, least - (self.stride_kv[i] - 1 if pools else 0))
            least = self.patch_sizes[i] - 2 * self.patch_padding[i]
            size = max(1, (size - 1) * self.patch_stride[i] + least)
        return size

    @classmethod
    def from_published(cls, values: dict[str, Any], compat: Compat) -> dict[str, Any]:
        """The authors' activation or transformers', and the eps that both used."""
        return values | {"hidden_act": ACTIVATIONS[compat], "layer_norm_eps": EPS}

    @property
    def hidden_widths(self) -> list[int]:
        """Width of what is pooled of each hidden state."""
        return list(self.embed_dim)

    def differences(self) -> list[str]:
        """What transformers computes otherwise."""
        out = super().differences()
        if self.hidden_act != ACTIVATIONS["transformers"]:
            out.append(f"the activation is {self.hidden_act} here, exact GELU there")
        if self.layer_norm_eps != EPS:
            out.append(
                f"layer norms add {self.layer_norm_eps:g} to the variance here, {EPS:g} there"
            )
        if set(self.qkv_projection_method) != {"dw_bn"}:
            out.append('only "dw_bn" projections can be built there')
        if any(
            has and width != self.embed_dim[-1]
            for has, width in zip(self.cls_token, self.embed_dim, strict=True)
        ):
            out.append(
                "class tokens before the last stage have the last stage's width there, and cannot"
                " be built"
            )
        return out


def count_parameters(config: CvtConfig) -> int:
    """Weights of a "dw_bn" network with its head; running statistics are not counted."""
    total, before = 0, config.num_channels
    for i, width in enumerate(config.embed_dim):
        inside = int(width * config.mlp_ratio[i])
        block = 4 * width  # two layer norms
        block += 3 * (
            config.kernel_qkv[i] ** 2 * width
            + 2 * width
            + width * width
            + width * config.qkv_bias[i]
        )
        block += width * width + width + 2 * width * inside + inside + width
        # the tokens' convolution and its norm
        total += before * config.patch_sizes[i] ** 2 * width + width + 2 * width
        total += config.depth[i] * block + width * config.cls_token[i]
        before = width
    return total + 2 * before + (before + 1) * config.num_labels


def _published() -> dict[str, Published]:
    small: dict[str, Any] = {"layer_norm_eps": EPS}
    medium = small | {"depth": [1, 4, 16]}
    wide = small | {
        "depth": [2, 2, 20], "embed_dim": [192, 768, 1024], "num_heads": [3, 12, 16],
        "drop_path_rate": [0.0, 0.0, 0.3],
    }  # fmt: skip
    rows = [
        ("CvT-13-224x224-IN-1k", "cvt-13", small, 224, "81.6"),
        ("CvT-21-224x224-IN-1k", "cvt-21", medium, 224, "82.5"),
        ("CvT-13-384x384-IN-1k", "cvt-13-384", small, 384, "83.0"),
        ("CvT-21-384x384-IN-1k", "cvt-21-384", medium, 384, "83.3"),
        ("CvT-13-384x384-IN-22k", "cvt-13-384-22k", small, 384, "83.3"),
        ("CvT-21-384x384-IN-22k", "cvt-21-384-22k", medium, 384, "84.9"),
        ("CvT-w24-384x384-IN-22k", "cvt-w24-384-22k", wide, 384, "87.6"),
    ]
    return {
        name: Published(
            name,
            config,
            hub_id=f"microsoft/{hub}",  # the authors' own addresses are gone
            parameters=count_parameters(CvtConfig.from_dict(config, num_labels=1000)),
            image_size=size,
            result=f"ImageNet top-1 {top1} %",
            labels="imagenet-1k",
        )
        for name, hub, config, size, top1 in rows
    }


# The "22k" networks were pretrained on ImageNet-22k and tuned to the 1,000 classes; a 22k head was
# never released.
PUBLISHED = _published()
