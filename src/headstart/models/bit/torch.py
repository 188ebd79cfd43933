"""BiT in PyTorch: ResNet-v2 whose filters are standardized and whose norms are group norms
(Kolesnikov et al. 2020, section 3.1).

Shapes: B images, C channels, H W height and width, V classes.
"""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint.names import PublishedNames
from headstart.models.bit.config import BitConfig, BlockPlan, round_channels
from headstart.models.bit.weights import PUBLISHED_NAMES
from headstart.nn.checks import check_pixels
from headstart.nn.kept import Kept, jit_traced
from headstart.nn.layers import (
    DropPath,
    GroupNorm,
    activation,
    batch_as_channels_last,
    drop_path_rates,
    named,
    pad_same,
)
from headstart.nn.losses import classification_loss
from headstart.nn.torch import Backbone, PreTrainedModel
from headstart.outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

NORM_EPS = 1e-5  # of every group norm, in the authors' code and in transformers


def standardize(weight: Tensor, eps: float) -> Tensor:
    """Filters (C_out, C_in, k, k) with mean 0 and variance 1 each (Qiao et al.

    2019, equation 2).
    """
    if jit_traced():  # few programs that read ONNX know a batch norm in training mode
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        return (weight - mean) * (variance + eps).rsqrt()
    # A batch norm that takes the filters for channels is the same formula, in one pass forward and
    # one backward.
    return F.batch_norm(
        weight.reshape(1, weight.shape[0], -1), None, None, training=True, momentum=0.0, eps=eps
    ).view_as(weight)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are standardized before use."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        config: BitConfig,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        padding = config.padding(kernel, stride, dilation)
        super().__init__(
            in_channels, out_channels, kernel, stride, padding or 0, dilation, bias=False
        )
        self.pads_same = padding is None
        self.eps = config.conv_eps
        self.kept = Kept()

    def standardized(self) -> Tensor:
        """The filters as they are used."""
        return self.kept(lambda: standardize(self.weight, self.eps), self.weight, self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H', W')."""
        if self.pads_same:
            x = pad_same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        return F.conv2d(x, self.standardized(), None, self.stride, self.padding, self.dilation)


class Norm(GroupNorm):
    """Group norm, then the activation (unless `act` is false)."""

    def __init__(self, channels: int, config: BitConfig, act: bool = True) -> None:
        super().__init__(config.num_groups, channels, NORM_EPS)
        self.act = activation(config.hidden_act) if act else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), the same shape."""
        x = super().forward(x)
        if self.act is None:
            return x
        # The norm's output is ours alone and its backward does not read it: relu may overwrite it.
        return F.relu_(x) if self.act is F.relu else self.act(x)


class Stem(nn.Module):
    """7x7 convolution and pooling: a quarter of the image's height and width."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        width = config.stem_channels
        self.convolution = StandardizedConv2d(config.num_channels, width, 7, config, stride=2)
        self.norm = Norm(width, config) if config.layer_type == "bottleneck" else nn.Identity()
        self.pads_one = config.global_padding != "same"
        self.pads_same = config.embedding_dynamic_padding

    def forward(self, x: Tensor, zero: float = 0.0) -> Tensor:
        """x (B, C, H, W) → (B, C, H / 4, W / 4); `zero` is the value that pads the pooling."""
        x = self.convolution(x)  # (B, C, H / 2, W / 2)
        if self.pads_one:
            # zeros, where the pooling of most libraries would pad with -inf
            x = F.pad(x, (1, 1, 1, 1), value=zero)
        x = self.norm(x)
        if self.pads_same:
            x = pad_same(x, 3, 2, value=zero)
        return F.max_pool2d(x, 3, 2)  # (B, C, H / 4, W / 4)


class Block(nn.Module):
    """Bottleneck block: 1x1 narrows to a quarter, 3x3, 1x1 widens; base of the two kinds."""

    def __init__(self, plan: BlockPlan, config: BitConfig, drop_path: float, first: bool) -> None:
        super().__init__()
        channels, out, stride, dilation = plan
        mid, preactivation = round_channels(out / 4), config.layer_type == "preactivation"
        self.conv1 = StandardizedConv2d(channels, mid, 1, config)
        self.conv2 = StandardizedConv2d(mid, mid, 3, config, stride, dilation)
        self.conv3 = StandardizedConv2d(mid, out, 1, config)
        self.norm1 = Norm(channels if preactivation else mid, config)
        self.norm2 = Norm(mid, config)
        self.norm3 = Norm(mid if preactivation else out, config, act=preactivation)
        self.downsample: nn.Module | None = None
        if first:  # the shortcut takes the branch's shape; ResNet-v1 normalizes it
            parts = OrderedDict[str, nn.Module](
                conv=StandardizedConv2d(channels, out, 1, config, stride)
            )
            if not preactivation:
                parts["norm"] = Norm(out, config, act=False)
            self.downsample = nn.Sequential(parts)
        self.drop_path = DropPath(drop_path)
        self.crop = dilation if config.global_padding == "valid" else 0
        self.act = activation(config.hidden_act)

    def shortcut(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride), as the branch has it: without
        padding, the pixels under the centers of the 3x3 filters.
        """
        d = self.crop
        x = x[:, :, d:-d, d:-d] if d else x
        return x if self.downsample is None else self.downsample(x)


class PreactivationBlock(Block):
    """Norms come first (He et al. 2016, "Identity mappings")."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride)."""
        y = self.norm1(x)
        shortcut = self.shortcut(x if self.downsample is None else y)
        y = self.conv2(self.norm2(self.conv1(y)))
        return self.drop_path(self.conv3(self.norm3(y))) + shortcut


class BottleneckBlock(Block):
    """Norms follow the convolutions (He et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(y))
        return self.act(self.drop_path(self.norm3(self.conv3(y))) + self.shortcut(x))


def make_stages(config: BitConfig) -> nn.ModuleList:
    """The stages, each with its blocks under `layers`."""
    make = PreactivationBlock if config.layer_type == "preactivation" else BottleneckBlock
    rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
    return nn.ModuleList(
        named(
            layers=nn.ModuleList(
                make(plan, config, drop_path=next(rates), first=i == 0)
                for i, plan in enumerate(stage)
            )
        )
        for stage in config.plan
    )


class BitPreTrainedModel(PreTrainedModel):
    """Base of the BiT networks.

    Args:
        config: The configuration.

    Example:
        >>> from headstart import BitModel, BitPreTrainedModel
        >>> issubclass(BitModel, BitPreTrainedModel), BitPreTrainedModel.base_model_prefix
        (True, 'bit')
    """

    config_class = BitConfig
    base_model_prefix = "bit"
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    config: BitConfig

    @classmethod
    def name_table(cls, config: BitConfig) -> PublishedNames:
        """What published files of the family may hold."""
        return PUBLISHED_NAMES

    def init_module(self, module: nn.Module) -> None:
        """He's normal filters, as the authors; norms 1 and 0."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.GroupNorm | nn.Linear):
            module.reset_parameters()


class BitModel(BitPreTrainedModel):
    """BiT without a head.

    Args:
        config: Shape of the network.

    Example:
        >>> import torch
        >>> from headstart import BitConfig, BitModel
        >>> model = BitModel(BitConfig(hidden_sizes=[128, 256], depths=[1, 1]))
        >>> model(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape
        torch.Size([1, 256, 8, 8])
    """

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.embedder = Stem(config)
        self.encoder = named(stages=make_stages(config))
        last = config.stage_channels[-1]
        self.norm = Norm(last, config) if config.layer_type == "preactivation" else nn.Identity()
        self.smallest_image = config.smallest_image
        self.post_init()

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """The stem's map and each stage's, (B, C, H, W) each, before the last norm."""
        x = check_pixels(pixel_values, self.config.num_channels, self.smallest_image)
        maps = [self.embedder(batch_as_channels_last(x))]
        for stage in self.encoder["stages"].children():
            x = maps[-1]
            for block in stage["layers"]:  # type: ignore[index]
                x = self.run_block(block, x)
            maps.append(x)
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
    """BiT with a linear classifier on the mean of the last feature map.

    Args:
        config: The configuration; `num_labels` (or `id2label`) is the number of classes.

    Example:
        >>> import torch
        >>> from headstart import BitForImageClassification
        >>> model = BitForImageClassification.from_pretrained("bit-mini")
        >>> out = model(torch.zeros(2, 3, 64, 64), labels=torch.tensor([3, 5]))
        >>> out.logits.shape == (2, model.config.num_labels), out.loss.ndim
        (True, 0)
    """

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        width, labels = config.stage_channels[-1] + config.pooled_width, config.num_labels
        head = nn.Linear(width, labels) if labels else nn.Identity()
        self.classifier = nn.Sequential(nn.Flatten(), head)
        self.act = activation(config.hidden_act)
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
        hidden, states = (
            self.wants("output_hidden_states", output_hidden_states),
            self.config.pooled_hidden_states,
        )

        def see(x: Tensor | None) -> tuple[Tensor, Any]:
            out = self.bit(x, hidden or bool(states), return_dict=True)
            means = [self.act(out.hidden_states[i]).mean((2, 3)) for i in states]
            return torch.cat([*means, out.pooler_output.flatten(1)], 1), out  # (B, D)

        pooled, out = self.read(see, pixel_values)
        logits = self.classifier(pooled)  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return self.finish(
            ImageClassifierOutputWithNoAttention(
                loss, logits, out.hidden_states if hidden else None
            ),
            return_dict,
        )


class BitBackbone(Backbone, BitPreTrainedModel):
    """Feature maps of the stages that `config.out_features` names, before the last norm.

    Args:
        config: The configuration; `out_features` or `out_indices` choose the stages.

    Example:
        >>> import torch
        >>> from headstart import BitBackbone, BitConfig
        >>> config = BitConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4)
        >>> out = BitBackbone(config)(torch.zeros(1, 3, 64, 64))
        >>> [tuple(each.shape) for each in out.feature_maps]
        [(1, 24, 8, 8)]
    """

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        self.num_features = [config.stem_channels, *config.stage_channels]
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
            of every stage, if requested.
        """
        maps = self.bit.features(pixel_values)
        chosen = tuple(maps[i] for i in self.stages)
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        return self.finish(BackboneOutput(chosen, hidden), return_dict)
