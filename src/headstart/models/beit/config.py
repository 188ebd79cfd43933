"""What a BEiT network is, and the ones that its authors published."""

import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal, Self

from headstart.config import BackboneConfig, Compat, config_class
from headstart.config_checks import as_label, one_of
from headstart.errors import ConfigError
from headstart.registry import Published

# of every LayerNorm: what the authors train with, what the conversions' configurations say
EPS_AUTHORS, EPS_CONVERTED = 1e-6, 1e-12
MAX_PATCHES = 1 << 18  # of an image: tables of positions are made before any weight is read
Size = int | list[int] | tuple[int, int]


@config_class
class BeitConfig(BackboneConfig):
    """Shape of a BEiT network. The defaults give the base size.

    Args:
        vocab_size: Visual codes that masked image modelling predicts.
        hidden_size: Width of a token.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads of each block; divides `hidden_size`.
        intermediate_size: Width inside the MLP of a block.
        hidden_act: Activation: "gelu", "relu", "selu", "gelu_new", …
        hidden_dropout_prob: Dropout of embeddings and of each branch of a block.
        attention_probs_dropout_prob: Dropout of attention weights.
        initializer_range: Standard deviation of the truncated normal initial values.
        layer_norm_eps: Epsilon of every LayerNorm (the authors train with 1e-6).
        image_size: Height and width of the images that positions are made for, one number or two.
        patch_size: Height and width of a patch, one number or two.
        num_channels: Channels of an image.
        use_mask_token: Whether masked patches have a token.
        use_absolute_position_embeddings: Whether each position has an embedding.
        use_relative_position_bias: Whether each block has a table of biases by relative position.
        use_shared_relative_position_bias: Whether all blocks share one.
        layer_scale_init_value: Initial scale of each branch (0.1 base, 1e-5 large); 0 means no
            layer scale.
        drop_path_rate: Stochastic depth of the last block; grows evenly from 0 at the first.
        use_mean_pooling: Classify the mean of the patches rather than the class token.
        pool_scales: Grids of the pyramid pooling.
        use_auxiliary_head: Whether segmentation trains with a second head.
        auxiliary_loss_weight: Weight of that head's loss.
        auxiliary_channels: Its width.
        auxiliary_num_convs: Its 3x3 convolutions.
        auxiliary_concat_input: Whether its last one also reads its input.
        semantic_loss_ignore_index: Label of pixels that no loss counts.
        out_features: Stages that a backbone returns, by name ("stem", "stage1", …).
        out_indices: The same by number. Four stages also choose the blocks that segmentation
            reads; see `pyramid_blocks`.
        add_fpn: Whether a backbone returns a pyramid of four scales.
        reshape_hidden_states: Whether a backbone returns maps (B, C, H, W) rather than tokens.
        batch_norm_eps: Epsilon of the batch norm of the pyramid.
        pyramid_blocks: Blocks, counted from 0, whose outputs segmentation reads (-1 is the
            embeddings). By default those of the four stages in `out_features`, where they are
            given by name; else the four of `out_indices`, which the authors count from 0; else the
            blocks at a third, half, two thirds and the end.
        pyramid_scale: How much larger than the patches the pyramid's first map is, each next one
            being half as large. By default 2 for patches of 8 pixels, else 4, as the authors do.
        decoder_channels: Width of the segmentation's decoder; default `hidden_size`.
        decoder_dropout: Dropout before its classifiers.
        semantic_loss_mean: "all": the loss is the mean over all pixels, ignored ones too (authors);
            "valid": over the others.
        bias_resize: How bias tables are fitted to another grid: "geometric", cubic on a geometric
            grid (authors), or "bilinear".
        bias_by_width: Read the tables of a grid that is not square as (dx, dy), as transformers
            does.
        norm_twice: With class-token pooling, masked image modelling has two LayerNorms in a row, as
            in transformers.

    Example:
        >>> from headstart import BeitConfig
        >>> BeitConfig(image_size=[224, 320]).grid
        (14, 20)
    """

    model_type: ClassVar[str] = "beit"
    pools: ClassVar[bool] = True

    vocab_size: int = 8192
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[..., Any] = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    pool_scales: list[int] = field(default_factory=lambda: [1, 2, 3, 6])
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    semantic_loss_ignore_index: int = 255
    out_features: list[str] | None = None
    out_indices: list[int] | None = None
    add_fpn: bool = False
    reshape_hidden_states: bool = True
    batch_norm_eps: float = 1e-5
    pyramid_blocks: list[int] | None = None
    pyramid_scale: int | None = None
    decoder_channels: int | None = None
    decoder_dropout: float = 0.1
    semantic_loss_mean: Literal["all", "valid"] = "all"
    bias_resize: Literal["geometric", "bilinear"] = "geometric"
    bias_by_width: bool = False
    norm_twice: bool = False

    def __post_init__(self) -> None:
        counts = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "vocab_size",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} does not divide"
                f" hidden_size={self.hidden_size}"
            )
        for name, (height, width) in (("image_size", self.image), ("patch_size", self.patch)):
            if min(height, width) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}; expected numbers of at least 1")
        if min(self.grid) < 1:
            raise ConfigError(
                f"image_size={self.image_size!r} is smaller than patch_size={self.patch_size!r}"
            )
        if math.prod(self.grid) > MAX_PATCHES:
            raise ConfigError(
                f"image_size={self.image_size!r} with patch_size={self.patch_size!r} makes"
                f" {math.prod(self.grid):,} patches; expected at most {MAX_PATCHES:,}"
            )
        one_of("semantic_loss_mean", self.semantic_loss_mean, ("all", "valid"))
        one_of("bias_resize", self.bias_resize, ("geometric", "bilinear"))
        one_of("pyramid_scale", self.pyramid_scale, (None, 2, 4))
        blocks = self.pyramid_blocks
        self.align_stages(self.out_features, self.out_indices)
        if blocks is not None:
            self.pyramid_blocks = blocks

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the images that positions are made for."""
        return pair("image_size", self.image_size)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return pair("patch_size", self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom and from left to right that positions are made for."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def stage_names(self) -> list[str]:
        """Names that `out_features` may use: the embeddings, then each block."""
        return ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]

    def align_stages(self, features: list[str] | None, indices: list[int] | None) -> None:
        """Also sets the blocks that segmentation reads where four stages are named, or where they
        are numbered as transformers counts.
        """
        super().align_stages(features, indices)
        self.pyramid_blocks = None
        if self.compat == "transformers":
            self.pyramid_blocks = as_transformers_segments(self.out_indices).get("pyramid_blocks")
        elif features is not None and len(features) == 4:
            self.pyramid_blocks = [self.stage_names.index(name) - 1 for name in features]

    def segmentation_blocks(self) -> list[int]:
        """The four blocks, counted from 0, that segmentation reads (-1 is the embeddings).

        Raises:
            ConfigError: Not four, not in order, or a block that does not exist.
        """
        depth, chosen = self.num_hidden_layers, self.pyramid_blocks
        if chosen is None and list(self.out_indices or []) in ([depth], [-1]):
            chosen = [max(0, depth * part // 6 - 1) for part in (2, 3, 4, 6)]
        elif chosen is None:
            chosen = [i + depth if i < 0 else i for i in self.out_indices or []]
        if len(chosen) != 4 or chosen != sorted(chosen):
            raise ConfigError(
                "segmentation reads four blocks, in order; out_indices or pyramid_blocks gives"
                f" {chosen}"
            )
        if not -1 <= chosen[0] <= chosen[3] < depth:
            raise ConfigError(
                f"segmentation cannot read blocks {chosen}: out_indices counts blocks from 0 there,"
                f" so that {depth - 1} is the last"
            )
        return chosen

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Also fits what depends on an override.

        Blocks that segmentation reads, and a bias a block in place of a shared one.
        """
        if overrides.get("return_unused_kwargs"):
            return super().from_dict(values, **overrides)
        if overrides.get("use_relative_position_bias") and not values.get(
            "use_relative_position_bias"
        ):
            overrides.setdefault("use_shared_relative_position_bias", False)
        if {"out_indices", "out_features"} & overrides.keys():
            replaced = ("out_features", "out_indices", "pyramid_blocks")
            values = {k: v for k, v in values.items() if k not in replaced}
            if values.get("compat") == "transformers":
                values |= as_transformers_segments(overrides.get("out_indices"))
        elif values.get("out_indices") is not None and "pyramid_blocks" in values:
            # What `to_dict` wrote has both, and blocks of their own where stages were named.
            values = {k: v for k, v in values.items() if k != "out_features"}
        config = super().from_dict(values, **overrides)
        if {"image_size", "patch_size"} & overrides.keys():
            saved = cls(
                image_size=values.get("image_size", 224), patch_size=values.get("patch_size", 16)
            ).grid
            vars(config)["_saved"] = saved
        return config

    @property
    def saved_grid(self) -> tuple[int, int] | None:
        """The grid that a checkpoint's positions are made for, if known to differ from `grid`."""
        return getattr(self, "_saved", None)

    def to_dict(self) -> dict[str, Any]:
        """Every value as plain data; `from_dict` gives an equal configuration."""
        return {key: value for key, value in super().to_dict().items() if key != "_saved"}

    @classmethod
    def from_published(cls, values: dict[str, Any], compat: Compat) -> dict[str, Any]:
        """The authors' epsilon, pyramid, loss and tables, or transformers'."""
        values = {k: v for k, v in values.items() if k not in (*OURS, "stage_names")}
        values = renumber_labels(values)
        if compat == "authors":
            if values.get("out_indices") is not None:  # transformers writes both
                values.pop("out_features", None)
            if values.get("layer_norm_eps", EPS_CONVERTED) == EPS_CONVERTED:
                values["layer_norm_eps"] = EPS_AUTHORS
            return values
        # Values that change nothing in this network are not worth telling apart.
        values |= as_transformers_segments(values.get("out_indices"))
        if values.get("use_relative_position_bias") or values.get(
            "use_shared_relative_position_bias"
        ):
            height, width = pair("image_size", values.get("image_size", 224))
            values |= {"bias_resize": "bilinear", "bias_by_width": height != width}
        if not values.get("use_mean_pooling", True):
            values["norm_twice"] = True
        return values

    @property
    def hidden_widths(self) -> list[int]:
        """Width of what is pooled of each hidden state."""
        return [2 * self.hidden_size] * (self.num_hidden_layers + 1)

    def differences(self) -> list[str]:
        """What transformers computes otherwise."""
        out = super().differences()
        if self.bias_resize != "bilinear" and (
            self.use_relative_position_bias or self.use_shared_relative_position_bias
        ):
            out.append(
                "for images of another size, bias tables are resized by a cubic spline on a"
                " geometric grid here, bilinearly there"
            )
            if self.grid[0] != self.grid[1]:
                out.append(
                    "the bias tables of this grid, which is not square, are read with height and"
                    " width exchanged there"
                )
        if self.pyramid_blocks is not None or len(self.out_indices or []) == 4:
            blocks, theirs = self.segmentation_blocks(), [i - 2 for i in self.out_indices or []]
            if blocks != theirs:
                out.append(
                    f"segmentation reads the blocks {blocks} here, {theirs} there (counted from 0,"
                    " -1 is the embeddings)"
                )
            if self.decoder_channels not in (None, self.hidden_size):
                out.append("a decoder of another width than the network cannot be built there")
            if self.pyramid_scale == 2 or (self.pyramid_scale is None and self.patch == (8, 8)):
                out.append("the pyramid of patches of 8 pixels cannot be built there")
            if self.semantic_loss_mean == "all":
                out.append(
                    "the segmentation loss is a mean over all pixels here, over pixels that are not"
                    " ignored there"
                )
        return out


# Values that `compat` decides.
OURS = (
    "pyramid_blocks",
    "pyramid_scale",
    "decoder_dropout",
    "semantic_loss_mean",
    "bias_resize",
    "bias_by_width",
    "norm_twice",
)


def as_transformers_segments(out_indices: list[int] | None) -> dict[str, Any]:
    """Our values for transformers' segmentation.

    It keeps hidden state i where i + 1 is listed, and hidden state 0 is the embeddings.
    """
    if len(out_indices or []) != 4:
        return {}
    blocks = [i - 2 for i in out_indices or []]
    return {
        "pyramid_blocks": blocks,
        "semantic_loss_mean": "valid",
        "decoder_dropout": 0.0,
        "pyramid_scale": 4,
    }


def pair(name: str, size: Any) -> tuple[int, int]:
    """Height and width, from one number or two.

    Raises:
        ConfigError: Anything else.
    """
    sizes: tuple[Any, ...] = ()
    if isinstance(size, int):
        sizes = (size, size)
    elif isinstance(size, list | tuple):
        sizes = tuple(size)
    if len(sizes) != 2 or not all(
        isinstance(each, int) and not isinstance(each, bool) for each in sizes
    ):
        raise ConfigError(f"{name}={size!r}; expected a number, or two: height and width")
    return sizes


# Of the 21,843 classes of ImageNet-22k, the authors' heads leave out these two.
LEFT_OUT, CLASSES_22K = (9205, 15027), 21841


def renumber_labels(values: dict[str, Any]) -> dict[str, Any]:
    """Repairs the class names of a converted 22k head, from which two numbers were deleted without
    moving up those that follow.
    """
    names = values.get("id2label") or {}
    if len(names) != CLASSES_22K or not isinstance(names, Mapping):
        return values
    names = {as_label(i): name for i, name in names.items()}
    if set(names) != set(range(CLASSES_22K + len(LEFT_OUT))) - set(LEFT_OUT):
        return values
    moved = dict(enumerate(names[i] for i in sorted(names)))
    return values | {
        "id2label": {str(i): name for i, name in moved.items()},
        "label2id": {name: i for i, name in moved.items()},
    }


ADDRESS = "https://github.com/addf400/files/releases/download/v1.0/"
SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "layer_scale_init_value": 1e-5,
    },
}  # fmt: skip
FINETUNED = {"use_relative_position_bias": True}
PRETRAINED = {"use_shared_relative_position_bias": True, "use_mask_token": True}


def count_parameters(
    config: BeitConfig, task: Literal["pretrained", "classification", "segmentation"]
) -> int:
    """Weights of a network of that configuration, its head included."""
    d, depth, wide = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    table = ((2 * config.grid[0] - 1) * (2 * config.grid[1] - 1) + 3) * config.num_attention_heads
    norms, scales = 4 * d, 2 * d if config.layer_scale_init_value > 0 else 0
    block = norms + scales + 3 * d * d + 2 * d + d * (d + 1) + wide * (d + 1) + d * (wide + 1)
    total = (
        depth * (block + table * config.use_relative_position_bias)
        + table * config.use_shared_relative_position_bias
    )
    # class token, patches and their bias
    total += d * (1 + config.num_channels * config.patch[0] * config.patch[1] + 1)
    total += (
        d * (1 + config.grid[0] * config.grid[1]) * config.use_absolute_position_embeddings
        + d * config.use_mask_token
    )
    if task == "segmentation":
        c, a, n, pools = (
            config.decoder_channels or d,
            config.auxiliary_channels,
            config.num_labels,
            len(config.pool_scales),
        )
        pyramid = 3 * (4 * d * d + d) + 2 * d
        lateral = (
            pools * d * c
            + 9 * (d + pools * c) * c
            + 3 * d * c
            + 3 * 9 * c * c
            + 9 * 4 * c * c
            + 2 * c * (pools + 1 + 3 + 3 + 1)
        )
        return total + pyramid + lateral + n * (c + 1) + 9 * d * a + 2 * a + n * (a + 1)
    return (
        total + 2 * d + (d + 1) * (config.vocab_size if task == "pretrained" else config.num_labels)
    )


def _entry(
    name: str,
    size: str,
    task: Any,
    values: dict[str, Any],
    hub: str | None,
    result: str,
    labels: tuple[str, int] | None,
) -> Published:
    plain = SIZES[size] | {"layer_norm_eps": EPS_AUTHORS} | values
    config = BeitConfig.from_dict(plain, num_labels=labels[1] if labels else 2)
    return Published(
        name, plain, f"{ADDRESS}{name}.pth", hub and f"microsoft/{hub}", "MIT",
        count_parameters(config, task), config.image[0], result, labels[0] if labels else None,
    )  # fmt: skip


def _published() -> dict[str, Published]:
    table: dict[str, Published] = {}

    def add(name: str, *values: Any) -> None:
        table[name] = _entry(name, *values)

    in_22k, in_1k, ade = ("imagenet-22k", CLASSES_22K), ("imagenet-1k", 1000), ("ade20k", 150)
    for size in SIZES:
        name, hub = f"beit_{size}_patch16_224_pt22k", f"beit-{size}-patch16-224-pt22k"
        add(name, size, "pretrained", PRETRAINED, hub, "masked modelling of 8,192 codes", None)
        add(
            f"{name}_ft22k",
            size,
            "classification",
            FINETUNED,
            f"{hub}-ft22k",
            "21,841 classes",
            in_22k,
        )
    for size, pixels, kind, top1, top5 in [
        ("base", 224, "ft1k", 83.7, 96.6), ("base", 224, "ft22kto1k", 85.2, 97.6),
        ("base", 384, "ft22kto1k", 86.8, 98.1),
        ("large", 224, "ft1k", 86.0, 97.6), ("large", 224, "ft22kto1k", 87.4, 98.3),
        ("large", 384, "ft22kto1k", 88.4, 98.6),
        ("large", 512, "ft22kto1k", 88.60, 98.66),
    ]:  # fmt: skip
        result = f"ImageNet top-1 {top1} %, top-5 {top5} %"
        converted = f"beit-{size}-patch16-{pixels}" if kind == "ft22kto1k" else None
        add(
            f"beit_{size}_patch16_{pixels}_pt22k_{kind}",
            size,
            "classification",
            FINETUNED | {"image_size": pixels},
            converted,
            result,
            in_1k,
        )
    for size, blocks, result in [
        ("base", [3, 5, 7, 11], "ADE20K mIoU 53.6 % (multi-scale 54.2 %)"),
        ("large", [7, 11, 15, 23], "ADE20K mIoU 56.7 % (multi-scale 57.0 %)"),
    ]:
        values: dict[str, Any] = FINETUNED | {"image_size": 640, "out_indices": blocks}
        name, converted = (
            f"beit_{size}_patch16_640_pt22k_ft22ktoade20k",
            f"beit-{size}-finetuned-ade-640-640",
        )
        add(name, size, "segmentation", values, converted, result, ade)
    absolute = {"use_absolute_position_embeddings": True, "use_mask_token": True}
    add(
        "beit_base_patch16_224_pt1k_800ep",
        "base",
        "pretrained",
        absolute,
        None,
        "masked modelling of 8,192 codes",
        None,
    )
    return table


PUBLISHED = _published()
