"""What a BiT network is, and the ones that its authors published."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, Literal, NamedTuple

from headstart.config import BackboneConfig, Compat, config_class
from headstart.config_checks import list_of, one_of
from headstart.errors import ConfigError
from headstart.registry import Published

EPS_AUTHORS, EPS_TRANSFORMERS = 1e-10, 1e-8


class BlockPlan(NamedTuple):
    """Shape of one block of a stage."""

    in_channels: int
    out_channels: int
    stride: int
    dilation: int


@config_class
class BitConfig(BackboneConfig):
    """Shape of a BiT network. The defaults give R50x1.

    Args:
        num_channels: Channels of an image.
        embedding_size: Channels after the stem, before `width_factor`.
        hidden_sizes: Channels after each stage, before `width_factor`.
        depths: Number of blocks of each stage.
        layer_type: "preactivation" is ResNet-v2, as published; "bottleneck" is ResNet-v1.
        hidden_act: Activation: "relu", "gelu", "selu", "gelu_new", …
        global_padding: Padding of the convolutions: None is half the kernel on every side, "same"
            as TensorFlow pads, "valid" none (the shortcut is then cropped to the branch).
        num_groups: Groups of every group norm; divides the channels of every norm.
        drop_path_rate: Stochastic depth of the last block; grows evenly from 0 at the first.
        embedding_dynamic_padding: Whether the stem's pooling pads as TensorFlow does.
        output_stride: 8, 16 or 32: stages beyond it dilate instead of halving the map.
        width_factor: Multiplies every channel count.
        out_features: Stages that a backbone returns, by name ("stem", "stage1", …).
        out_indices: The same by number.
        conv_eps: Added to the variance of a filter when it is standardized (authors 1e-10,
            transformers 1e-8).
        dilate_preactivation: Whether `output_stride` dilates the blocks of "preactivation"
            (transformers only removes the stride).
        widen_stem: Whether `width_factor` widens the stem too, as the authors do.

    Example:
        >>> from headstart import BitConfig
        >>> BitConfig(depths=[3, 4, 23, 3], width_factor=3).stage_channels
        [768, 1536, 3072, 6144]
    """

    model_type: ClassVar[str] = "bit"
    pools: ClassVar[bool] = True

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    depths: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    layer_type: Literal["preactivation", "bottleneck"] = "preactivation"
    hidden_act: str | Callable[..., Any] = "relu"
    global_padding: str | None = None
    num_groups: int = 32
    drop_path_rate: float = 0.0
    embedding_dynamic_padding: bool = False
    output_stride: int = 32
    width_factor: int = 1
    out_features: list[str] | None = None
    out_indices: list[int] | None = None
    conv_eps: float = EPS_AUTHORS
    dilate_preactivation: bool = True
    widen_stem: bool = True

    def __post_init__(self) -> None:
        list_of("depths", self.depths, len(self.hidden_sizes))
        one_of("layer_type", self.layer_type, ("preactivation", "bottleneck"))
        if self.global_padding is not None:
            self.global_padding = str(self.global_padding).lower()
        one_of("global_padding", self.global_padding, (None, "same", "valid"))
        one_of("output_stride", self.output_stride, (4, 8, 16, 32))
        if (
            min(
                [
                    self.num_channels,
                    self.width_factor,
                    self.num_groups,
                    *self.depths,
                    *self.hidden_sizes,
                ]
            )
            < 1
        ):
            raise ConfigError(
                "num_channels, width_factor, num_groups, depths and hidden_sizes must be at least 1"
            )
        narrow = [round_channels(channels / 4) for channels in self.stage_channels]
        for channels in [self.stem_channels, *narrow, *self.stage_channels]:
            if channels % self.num_groups:
                raise ConfigError(
                    f"num_groups={self.num_groups} does not divide {channels} channels, of a stage"
                    " or inside its blocks"
                )
        self.align_stages(self.out_features, self.out_indices)

    @property
    def stage_names(self) -> list[str]:
        """Names that `out_features` may use."""
        return ["stem"] + [f"stage{i}" for i in range(1, len(self.depths) + 1)]

    @property
    def stem_channels(self) -> int:
        """Channels after the stem."""
        return self.embedding_size * (self.width_factor if self.widen_stem else 1)

    @property
    def stage_channels(self) -> list[int]:
        """Channels after each stage."""
        return [round_channels(size * self.width_factor) for size in self.hidden_sizes]

    @property
    def plan(self) -> list[list[BlockPlan]]:
        """The blocks of each stage; strides beyond `output_stride` become dilations."""
        dilates = self.layer_type == "bottleneck" or self.dilate_preactivation
        channels, reached, dilation = self.stem_channels, 4, 1
        stages = []
        for i, (out, depth) in enumerate(zip(self.stage_channels, self.depths, strict=True)):
            stride = 1 if i == 0 else 2
            before = dilation  # the first block still reads the map that the stage before dilated
            if reached >= self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            first = BlockPlan(channels, out, stride, before if dilates else 1)
            other = BlockPlan(out, out, 1, dilation if dilates else 1)
            stages.append([first] + [other] * (depth - 1))
            channels = out
        return stages

    def padding(self, kernel: int, stride: int = 1, dilation: int = 1) -> int | None:
        """Zeros on each side of a convolution's input; None is TensorFlow's "SAME", which depends
        on the input's size.
        """
        reach = dilation * (kernel - 1)
        if self.global_padding == "valid":
            return 0
        if self.global_padding == "same":
            return None if stride > 1 and kernel > 1 else reach // 2
        return (stride - 1 + reach) // 2

    @property
    def smallest_image(self) -> int:
        """Height and width in pixels below which a map inside the network would be empty."""

        def before(size: int, kernel: int, stride: int, dilation: int, padding: int | None) -> int:
            last = (size - 1) * stride + 1
            return last if padding is None else max(1, last + dilation * (kernel - 1) - 2 * padding)

        size = 1
        for block in reversed([block for stage in self.plan for block in stage]):
            padding = self.padding(3, block.stride, block.dilation)
            size = before(size, 3, block.stride, block.dilation, padding)
        size = before(size, 3, 2, 1, None if self.embedding_dynamic_padding else 0)
        size = size if self.global_padding == "same" else max(1, size - 2)  # the stem pads one more
        return before(size, 7, 2, 1, self.padding(7, 2))

    @classmethod
    def from_published(cls, values: dict[str, Any], compat: Compat) -> dict[str, Any]:
        """The authors' epsilon, dilation and stem, or transformers'."""
        values = {
            k: v
            for k, v in values.items()
            if k not in ("stage_names", "conv_eps", "dilate_preactivation", "widen_stem")
        }
        if compat == "transformers":
            values |= {
                "conv_eps": EPS_TRANSFORMERS,
                "dilate_preactivation": False,
                "widen_stem": False,
            }
            # Values that change nothing in this network are not worth telling apart.
            if values.get("output_stride", 32) >= 32:
                values["dilate_preactivation"] = True
            if values.get("width_factor", 1) == 1:
                values["widen_stem"] = True
        return values

    @property
    def hidden_widths(self) -> list[int]:
        """Width of what is pooled of each hidden state."""
        return [self.stem_channels, *self.stage_channels]

    def differences(self) -> list[str]:
        """What transformers computes otherwise."""
        out = super().differences()
        if self.conv_eps != EPS_TRANSFORMERS:
            out.append(
                f"filters are standardized with eps {self.conv_eps:g} here, {EPS_TRANSFORMERS:g}"
                " there"
            )
        if self.width_factor != 1:
            out.append("a width factor above 1 cannot be built there")
        if (
            self.output_stride < 32
            and self.layer_type == "preactivation"
            and self.dilate_preactivation
        ):
            out.append("output_stride dilates here, and only removes strides there")
        return out


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller (as MobileNet's authors round
    widths).
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


ADDRESS = "https://storage.googleapis.com/bit_models/"
# Architecture → depths, width factor, ImageNet top-1 of the ILSVRC2012 model at 448 pixels (480 for
# x4) as timm measures it.
ARCHITECTURES: dict[str, tuple[list[int], int, str]] = {
    "R50x1": ([3, 4, 6, 3], 1, "80.39"),
    "R101x1": ([3, 4, 23, 3], 1, "82.33"),
    "R50x3": ([3, 4, 6, 3], 3, "83.98"),
    "R101x3": ([3, 4, 23, 3], 3, "84.43"),
    "R152x2": ([3, 8, 36, 3], 2, "84.47"),
    "R152x4": ([3, 8, 36, 3], 4, "84.94"),
}
# Classes of the 19 VTAB-1k tasks.
VTAB = {
    "caltech101": 102, "diabetic_retinopathy": 5, "dtd": 47, "oxford_flowers102": 102,
    "oxford_iiit_pet": 37, "resisc45": 45, "sun397": 397,
    "cifar100": 100, "eurosat": 10, "patch_camelyon": 2, "smallnorb-elevation": 9, "svhn": 10,
    "dsprites-orientation": 16,
    "smallnorb-azimuth": 18, "clevr-distance": 6, "clevr-count": 8, "dmlab": 6,
    "kitti-distance": 4, "dsprites-xpos": 16,
}  # fmt: skip


def count_parameters(depths: list[int], width: int, labels: int) -> int:
    """Weights of a published BiT with that many classes.

    Filters have no bias, norms have two vectors.
    """
    total = 7 * 7 * 3 * 64 * width
    before = 64 * width
    for size, depth in zip((256, 512, 1024, 2048), depths, strict=True):
        out, mid = size * width, size * width // 4
        total += before * out  # the projection of the first block's shortcut
        for i in range(depth):
            inside = before if i == 0 else out
            total += inside * mid + 9 * mid * mid + mid * out + 2 * (inside + 2 * mid)
        before = out
    return total + 2 * before + (before + 1) * labels


def _published() -> dict[str, Published]:
    mini = "distilled from EfficientNet-Lite0 (comes with the package)"
    table = {"bit-mini": Published("bit-mini", parameters=2_738_888, image_size=160, result=mini)}

    def add(name: str, path: str, arch: str, classes: int, **more: Any) -> None:
        depths, width, _ = ARCHITECTURES[arch]
        config: dict[str, Any] = {"depths": depths, "width_factor": width}
        if more.get("labels") is None:
            config["num_labels"] = classes
        table[name] = Published(
            name,
            config,
            ADDRESS + path,
            parameters=count_parameters(depths, width, classes),
            **more,
        )

    for arch, (_, _, top1) in ARCHITECTURES.items():
        size = 480 if arch.endswith("x4") else 448
        add(f"BiT-S-{arch}", f"BiT-S-{arch}.npz", arch, 1000, labels="imagenet-1k")
        add(f"BiT-M-{arch}", f"BiT-M-{arch}.npz", arch, 21843, labels="imagenet-21k-goog")
        result = f"ImageNet top-1 {top1} %"
        add(
            f"BiT-M-{arch}-ILSVRC2012",
            f"BiT-M-{arch}-ILSVRC2012.npz",
            arch,
            1000,
            labels="imagenet-1k",
            image_size=size,
            result=result,
        )
    for name, arch, size, result in [
        ("R50x1_224", "R50x1", 224, "ImageNet top-1 82.8 % (distilled)"),
        ("R50x1_160", "R50x1", 160, "ImageNet top-1 80.5 % (distilled)"),
        ("R152x2_T_224", "R152x2", 224, "teacher"),
        ("R152x2_T_384", "R152x2", 384, "teacher"),
    ]:
        add(
            f"BiT-distill-{name}",
            f"distill/{name}.npz",
            arch,
            1000,
            labels="imagenet-1k",
            image_size=size,
            result=result,
        )
    for arch in ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4"):
        for run in range(3):
            for task, classes in VTAB.items():
                name = f"BiT-M-{arch}-run{run}-{task}"
                add(
                    f"vtab/{name}",
                    f"vtab/{name}.npz",
                    arch,
                    classes,
                    image_size=None,
                    result="VTAB-1k",
                )
    return table


PUBLISHED = _published()
