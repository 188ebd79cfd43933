"""BiT in PyTorch: ResNet-v2 whose filters are standardised and whose norms are group norms
(Kolesnikov et al. 2020, section 3.1).

Shapes: B images, C channels, H W height and width, V classes.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint.names import NameTable
from headstart.errors import InputError
from headstart.models.bit.config import BitConfig, round_channels
from headstart.models.bit.weights import HUB
from headstart.nn.kept import state_of
from headstart.nn.torch import (
    DropPath,
    PreTrainedModel,
    activation,
    check_pixels,
    classification_loss,
    drop_path_rates,
)
from headstart.outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

NORM_EPS = 1e-5  # of every group norm, in the authors' code and in transformers


def standardize(weight: Tensor, eps: float) -> Tensor:
    """Filters (C_out, C_in, k, k) with mean 0 and variance 1 each (Qiao et al. 2019, equation 2)."""
    # A batch norm that takes the filters for channels is the same formula, in one pass forward and
    # one backward.
    return F.batch_norm(
        weight.reshape(1, weight.shape[0], -1), None, None, training=True, momentum=0.0, eps=eps
    ).view_as(weight)


def pad_same(x: Tensor, kernel: int, stride: int, dilation: int = 1, value: float = 0.0) -> Tensor:
    """Zeros (or another value) around x (B, C, H, W) as TensorFlow's "SAME" puts them.

    The odd one goes after.
    """
    pads: list[Any] = []
    for size in (x.shape[-1], x.shape[-2]):
        need = torch.sym_max(  # type: ignore[no-untyped-call]
            (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0
        )
        pads += [need // 2, need - need // 2]
    return F.pad(x, pads, value=value)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are standardised before use.

    Standardised filters are kept while nothing can change them (see `state_of`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        config: BitConfig,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        same = config.global_padding == "same"
        # At stride 1 and an odd kernel, "SAME" is half the kernel on each side.
        self.pads_same = same and stride > 1 and kernel > 1
        padding = (
            0
            if self.pads_same or config.global_padding == "valid"
            else (stride - 1 + dilation * (kernel - 1)) // 2
        )
        if same and not self.pads_same:
            padding = dilation * (kernel - 1) // 2
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
        self.eps = config.conv_eps
        self._kept: tuple[Any, Tensor] | None = None

    def standardized(self) -> Tensor:
        """The filters as they are used."""
        key = state_of(self.weight, self.training)
        if key is None:
            return standardize(self.weight, self.eps)
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            self._kept = kept = (key, standardize(self.weight, self.eps))
        return kept[1]

    def train(self, mode: bool = True) -> "StandardizedConv2d":
        """Forgets the kept filters: training changes them."""
        self._kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H', W')."""
        if self.pads_same:
            x = pad_same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        return F.conv2d(x, self.standardized(), None, self.stride, self.padding, self.dilation)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class Norm(nn.GroupNorm):
    """Group norm, then the activation (unless `act` is false)."""

    def __init__(self, channels: int, config: BitConfig, act: bool = True) -> None:
        super().__init__(config.num_groups, channels, NORM_EPS)
        self.act = activation(config.hidden_act) if act else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), the same shape."""
        if (
            torch.is_grad_enabled()
            and x.is_cpu
            and not x.requires_grad
            and self.weight.requires_grad
        ):  # behind a frozen stem
            # torch 2.13 crashes in the backward pass of a channels-last input that needs no
            # gradient
            x = x.contiguous()
        x = super().forward(x)
        # The norm's output is ours alone and its backward does not read it, so relu may overwrite
        # it.
        return x if self.act is None else F.relu_(x) if self.act is F.relu else self.act(x)


class Stem(nn.Module):
    """7x7 convolution and pooling: a quarter of the image's height and width."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.conv = StandardizedConv2d(
            config.num_channels, config.stem_channels, 7, config, stride=2
        )
        self.norm = (
            Norm(config.stem_channels, config)
            if config.layer_type == "bottleneck"
            else nn.Identity()
        )
        self.pads_one = config.global_padding != "same"
        self.pads_same = config.embedding_dynamic_padding

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → (B, C, H / 4, W / 4)."""
        x = self.conv(x)  # (B, C, H / 2, W / 2)
        if self.pads_one:
            # zeros, where the pooling of most libraries would pad with -inf
            x = F.pad(x, (1, 1, 1, 1))
        x = self.norm(x)
        if self.pads_same:
            x = pad_same(x, 3, 2)
        return F.max_pool2d(x, 3, 2)  # (B, C, H / 4, W / 4)


class Shortcut(nn.Module):
    """1x1 convolution that gives the shortcut the branch's shape; ResNet-v1 normalises it."""

    def __init__(self, in_channels: int, out_channels: int, config: BitConfig, stride: int) -> None:
        super().__init__()
        self.conv = StandardizedConv2d(in_channels, out_channels, 1, config, stride)
        self.norm = (
            Norm(out_channels, config, act=False)
            if config.layer_type == "bottleneck"
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride)."""
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Bottleneck block: 1x1 narrows to a quarter, 3x3, 1x1 widens; base of the two kinds."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: BitConfig,
        *,
        stride: int,
        dilation: int,
        drop_path: float,
        first: bool,
    ) -> None:
        super().__init__()
        mid = round_channels(out_channels / 4)
        self.conv_1 = StandardizedConv2d(in_channels, mid, 1, config)
        self.conv_2 = StandardizedConv2d(mid, mid, 3, config, stride, dilation)
        self.conv_3 = StandardizedConv2d(mid, out_channels, 1, config)
        preactivation = config.layer_type == "preactivation"
        self.norm_1 = Norm(in_channels if preactivation else mid, config)
        self.norm_2 = Norm(mid, config)
        self.norm_3 = Norm(mid if preactivation else out_channels, config, act=preactivation)
        self.shortcut = Shortcut(in_channels, out_channels, config, stride) if first else None
        self.drop_path = DropPath(drop_path)
        self.crop = dilation if config.global_padding == "valid" else 0
        self.act = activation(config.hidden_act)

    def reduced(self, x: Tensor) -> Tensor:
        """What a shortcut adds: without padding, the pixels under the centres of the 3x3 filters."""
        d = self.crop
        return x[:, :, d:-d, d:-d] if d else x


class PreactivationBlock(Block):
    """Norms come first (He et al. 2016, "Identity mappings").

    X + conv_3(norm_3(conv_2(norm_2(conv_1(norm_1(x)))))).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride)."""
        y = self.norm_1(x)
        shortcut = self.reduced(x) if self.shortcut is None else self.shortcut(self.reduced(y))
        y = self.conv_2(self.norm_2(self.conv_1(y)))
        return self.drop_path(self.conv_3(self.norm_3(y))) + shortcut  # type: ignore[no-any-return]


class BottleneckBlock(Block):
    """Norms follow the convolutions (He et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride)."""
        shortcut = self.reduced(x) if self.shortcut is None else self.shortcut(self.reduced(x))
        y = self.norm_1(self.conv_1(x))
        y = self.norm_2(self.conv_2(y))
        return self.act(self.drop_path(self.norm_3(self.conv_3(y))) + shortcut)


def make_stages(config: BitConfig) -> nn.ModuleList:
    """The stages, each a sequence of blocks; strides beyond `output_stride` become dilations."""
    make = PreactivationBlock if config.layer_type == "preactivation" else BottleneckBlock
    dilates = config.layer_type == "bottleneck" or config.dilate_preactivation
    rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
    stages = nn.ModuleList()
    channels, reached, dilation, before = config.stem_channels, 4, 1, 1
    for i, (out, depth) in enumerate(zip(config.stage_channels, config.depths, strict=True)):
        stride = 1 if i == 0 else 2
        before = dilation  # the first block still sees the map that the stage before it dilated
        if reached >= config.output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        stages.append(
            nn.ModuleList(
                make(
                    channels if j == 0 else out,
                    out,
                    config,
                    stride=stride if j == 0 else 1,
                    dilation=(before if j == 0 else dilation) if dilates else 1,
                    drop_path=next(rates),
                    first=j == 0,
                )
                for j in range(depth)
            )
        )
        channels = out
    return stages


class BitPreTrainedModel(PreTrainedModel):
    """Base of the BiT networks."""

    config_class = BitConfig
    base_model_prefix = "bit"
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    config: BitConfig

    @classmethod
    def name_table(cls, config: BitConfig) -> NameTable:
        """Published names."""
        return HUB

    def init_module(self, module: nn.Module) -> None:
        """He's normal filters, as the authors; norms 1 and 0."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.GroupNorm | nn.Linear):
            module.reset_parameters()


class BitModel(BitPreTrainedModel):
    """BiT without a head.

    Example:
        >>> import torch
        >>> from headstart import BitConfig, BitModel
        >>> model = BitModel(BitConfig(hidden_sizes=[128, 256], depths=[1, 1]))
        >>> model(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape
        torch.Size([1, 256, 8, 8])
    """

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.stem = Stem(config)
        self.stages = make_stages(config)
        last = config.stage_channels[-1]
        self.norm = Norm(last, config) if config.layer_type == "preactivation" else nn.Identity()
        self.post_init()

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """The stem's map and each stage's, (B, C, H, W) each, before the last norm."""
        x = check_pixels(pixel_values, self.config.num_channels)
        if x.is_cpu and x.shape[0] > 1 and not torch.compiler.is_compiling():
            # faster convolutions, but for a single image
            x = x.contiguous(memory_format=torch.channels_last)
        try:
            maps = [self.stem(x)]
            for stage in self.stages:
                x = maps[-1]
                for block in stage:  # type: ignore[attr-defined]
                    x = self.run_block(block, x)
                maps.append(x)
        except RuntimeError as error:
            if self.config.global_padding == "valid" and "size" in str(error):
                size = tuple(pixel_values.shape[-2:])
                raise InputError(
                    f"images of {size} are too small for a network without padding; give larger"
                    " ones"
                ) from error
            raise
        return maps

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Features of images.

        Args:
            pixel_values: (B, C, H, W), as `BitImageProcessor` gives them.
            output_hidden_states: Also return the stem's map and each stage's.
            return_dict: False gives a tuple.

        Returns:
            `last_hidden_state` (B, C, H / 32, W / 32), `pooler_output` (B, C, 1, 1),
            `hidden_states`.
        """
        maps = self.features(pixel_values)
        last = self.norm(maps[-1])  # (B, C, H / 32, W / 32)
        pooled = last.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        return self.finish(
            BaseModelOutputWithPoolingAndNoAttention(last, pooled, hidden), return_dict
        )


class BitForImageClassification(BitPreTrainedModel):
    """BiT with a linear classifier on the mean of the last map."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        self.classifier = (
            nn.Linear(config.stage_channels[-1], config.num_labels)
            if config.num_labels
            else nn.Identity()
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores of the classes.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) integers, (B, V) zeros and ones, or (B,) numbers where `num_labels` is 1.
            output_hidden_states: Also return the stem's map and each stage's.
            return_dict: False gives a tuple.

        Returns:
            `loss` (with labels), `logits` (B, V), `hidden_states`.
        """
        out = self.bit(
            pixel_values, self.wants("output_hidden_states", output_hidden_states), return_dict=True
        )
        logits = self.classifier(out.pooler_output.flatten(1))  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return self.finish(
            ImageClassifierOutputWithNoAttention(loss, logits, out.hidden_states), return_dict
        )


class BitBackbone(BitPreTrainedModel):
    """Maps of the stages that `config.out_features` names, before the last norm."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        widths = [config.stem_channels, *config.stage_channels]
        self.num_features = widths
        self.channels = [
            widths[config.stage_names.index(name)] for name in config.out_features or []
        ]
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Feature maps of images.

        Args:
            pixel_values: (B, C, H, W), as `BitImageProcessor` gives them.
            output_hidden_states: Also return the maps of every stage; None follows the
                configuration.
            return_dict: False returns a tuple.

        Returns:
            `feature_maps`: one (B, channels, height, width) for each of `config.out_features`, in
            their order; `channels` lists their channels. `hidden_states`: the maps of the stem and
            of every stage, where asked for.
        """
        maps = self.bit.features(pixel_values)
        chosen = tuple(
            maps[self.config.stage_names.index(name)] for name in self.config.out_features or []
        )
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        return self.finish(BackboneOutput(chosen, hidden), return_dict)
