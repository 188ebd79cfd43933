"""Semantic segmentation with BEiT in PyTorch, and its backbone.

A pyramid of four scales, UPerNet (Xiao et al. 2018) and an FCN head (Long et al. 2015).

Shapes: B images, C channels, H W height and width, h w of a smaller map, D hidden size, V classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError, InputError
from headstart.models.beit.config import BeitConfig
from headstart.models.beit.positions import bilinear_matrix
from headstart.models.beit.torch import BeitModel, BeitPreTrainedModel, Trunk
from headstart.nn.losses import mean_cross_entropy
from headstart.nn.torch import Backbone
from headstart.outputs import BackboneOutput, SemanticSegmenterOutput


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, 1 + h * w, D) as a map (B, D, h, w); the class token is left out."""
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, C, h, w) at another size, bilinear."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def convolve_resized(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """`conv2d(resize(x, size), weight, padding=1)` for 3x3 filters, with the multiplications done
    at the size of x.

    Resizing is linear and acts on each channel alone, so each tap of the filter may be applied
    before it, as a 1x1 convolution; the taps' maps are then resized, shifted to the tap's position
    (zeros come in at the border), and added. Resizing and shifting is one matrix an axis.

    Args:
        x: (B, C, h, w).
        weight: (C_out, C, 3, 3).
        size: H and W.

    Returns:
        (B, C_out, H, W).
    """
    B, C, h, w = x.shape
    H, W = size
    # (B, C_out * dx * dy, h, w)
    taps = F.conv2d(x, weight.permute(0, 3, 2, 1).reshape(-1, C, 1, 1))
    taps = taps.reshape(-1, 3, 3 * h, w)  # (B * C_out, dx, dy * h, w)
    # (3, H, h), (3, W, w)
    rows, columns = (tap_matrices(old, new, taps) for old, new in ((h, H), (w, W)))
    y = rows.transpose(0, 1).reshape(H, 3 * h) @ taps  # (B * C_out, dx, H, w)
    out = y[:, 0] @ columns[0].T  # (B * C_out, H, W)
    for dx in (1, 2):
        out = torch.baddbmm(out, y[:, dx], columns[dx].T.expand(out.shape[0], w, W))
    return out.view(B, -1, H, W)


def tap_matrices(old: int, new: int, like: Tensor) -> Tensor:
    """Bilinear resizing from `old` to `new`, then a shift by the three taps of a filter.

    (3, new, old).
    """
    # (new + 2, old)
    matrix = F.pad(bilinear_matrix(torch, old, new), (0, 0, 1, 1)).to(like.device, like.dtype)
    return torch.stack([matrix[:-2], matrix[1:-1], matrix[2:]])


class ConvNorm(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, before: int, after: int, kernel: int, config: BeitConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(after, config.batch_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H, W)."""
        return F.relu(self.bn(self.conv(x)))

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """The layer on the concatenated maps, resized to the first one's size, (B, C_out, H, W)."""
        first, *others = maps
        weights = torch.split(self.conv.weight, [each.shape[1] for each in maps], 1)
        y = F.conv2d(first, weights[0], self.conv.bias, padding=1)  # (B, C_out, H, W)
        for x, weight in zip(others, weights[1:], strict=True):
            y = y + convolve_resized(x, weight, first.shape[2:])
        return F.relu(self.bn(y))


class Pyramid:
    """The pyramid of a network: its modules `fpn1` … `fpn4`."""

    def add_pyramid(self, config: BeitConfig) -> None:
        """Adds the four modules; the first map is `pyramid_scale` times as large as the patches."""
        D = config.hidden_size
        scale = config.pyramid_scale or (2 if config.patch == (8, 8) else 4)
        twice = nn.Sequential(nn.ConvTranspose2d(D, D, 2, 2))
        levels: list[nn.Module] = [twice, nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)]
        if scale == 4:
            norm = nn.BatchNorm2d(D, config.batch_norm_eps)
            up = [nn.ConvTranspose2d(D, D, 2, 2), norm, nn.GELU(), nn.ConvTranspose2d(D, D, 2, 2)]
            levels = [nn.Sequential(*up), *levels[:3]]
        self.smallest = 8 // scale  # patches a side that the last level needs
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = levels

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w) → four scales, each half the one before.

        Raises:
            InputError: Maps too small to be halved.
        """
        if min(maps[0].shape[2:]) < self.smallest:
            raise InputError(
                f"the pyramid needs {self.smallest} patches a side; images of"
                f" {tuple(maps[0].shape[2:])} patches are too small"
            )
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [level(x) for level, x in zip(levels, maps, strict=True)]


class UPerHead(nn.Module):
    """Classes of pixels from a pyramid.

    Pools the smallest map at several grids, adds each level to the next larger one, and
    classifies all levels together.
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        D, scales = config.hidden_size, config.pool_scales
        C = config.decoder_channels or D
        self.scales = scales
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNorm(D, C, 1, config))
            for scale in scales
        )
        self.bottleneck = ConvNorm(D + len(scales) * C, C, 3, config)
        self.lateral_convs = nn.ModuleList(ConvNorm(D, C, 1, config) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvNorm(C, C, 3, config) for _ in range(3))
        self.fpn_bottleneck = ConvNorm(4 * C, C, 3, config)
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = nn.Conv2d(C, config.num_labels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps of falling size, the first (B, D, H, W) → (B, V, H, W)."""
        if self.training and maps[0].shape[0] == 1 and 1 in self.scales:
            raise InputError("batch norm cannot train on one image; give a batch of two or more")
        pooled = [pool(maps[3]) for pool in self.psp_modules]  # (B, C, scale, scale) each
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        levels.append(self.bottleneck.fuse([maps[3], *pooled]))  # (B, C, H / 8, W / 8)
        for i in (2, 1, 0):
            levels[i] = levels[i] + resize(levels[i + 1], levels[i].shape[2:])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=False)]
        # At half the size, multiplying before resizing saves nothing over the fast algorithms
        # (Winograd's) that 3x3 convolutions have.
        large = torch.cat([outs[0], resize(outs[1], outs[0].shape[2:])], 1)  # (B, 2C, H, W)
        x = self.fpn_bottleneck.fuse([large, outs[2], levels[3]])  # (B, C, H, W)
        return self.classifier(self.dropout(x))  # (B, V, H, W)


class FCNHead(nn.Module):
    """The auxiliary head of training: 3x3 convolutions on the map of the size of the patches."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        D, C, count = config.hidden_size, config.auxiliary_channels, config.auxiliary_num_convs
        width = C if count else D
        self.convs = nn.Sequential(*(ConvNorm(C if i else D, C, 3, config) for i in range(count)))
        self.conv_cat = ConvNorm(D + width, C, 3, config) if config.auxiliary_concat_input else None
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = nn.Conv2d(width if self.conv_cat is None else C, config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, H, W) → (B, V, H, W)."""
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat([x, y], 1))
        return self.classifier(self.dropout(y))


def pixel_loss(logits: Tensor, labels: Tensor, config: BeitConfig) -> Tensor:
    """Cross-entropy of maps (B, V, h, w), resized to the labels (B, H, W).

    See `BeitConfig.semantic_loss_mean`.
    """
    scores, ignored = resize(logits, labels.shape[1:]), config.semantic_loss_ignore_index
    if config.semantic_loss_mean == "all":
        total = F.cross_entropy(scores, labels, ignore_index=ignored, reduction="sum")
        return total / labels.numel()
    return mean_cross_entropy(scores, labels, ignored)


def check_classes(labels: Tensor, config: BeitConfig) -> None:
    """Refuses labels (B, H, W) that are not classes.

    Raises:
        InputError: A label that is neither a class nor the one that is ignored.
    """
    ignored = config.semantic_loss_ignore_index
    wrong = labels[((labels < 0) | (labels >= config.num_labels)) & (labels != ignored)]
    if wrong.numel():
        raise InputError(
            f"{wrong.numel()} pixels have labels that are not classes, such as {int(wrong[0])};"
            f" expected 0 to {config.num_labels - 1}, or {ignored} for pixels that are ignored"
        )


class BeitForSemanticSegmentation(Pyramid, BeitPreTrainedModel):
    """BEiT with UPerNet: scores of the classes of every pixel.

    Blocks after the last one that `config.segmentation_blocks()` names are not run, and the
    auxiliary head only where there are labels.

    Args:
        config: Shape of the network; `num_labels` is the number of classes, and `out_indices`
            selects the four blocks that the pyramid reads.

    Example:
        >>> import torch
        >>> from headstart import BeitConfig, BeitForSemanticSegmentation
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=4,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=64,
        ...     out_indices=[0, 1, 2, 3],
        ...     auxiliary_channels=16,
        ...     num_labels=7,
        ... )
        >>> model = BeitForSemanticSegmentation(config).eval()
        >>> labels = torch.zeros(1, 64, 96, dtype=torch.long)
        >>> out = model(torch.zeros(1, 3, 64, 96), labels=labels)
        >>> out.logits.shape, out.loss.shape  # the scores are at a quarter of the image's size
        (torch.Size([1, 7, 16, 24]), torch.Size([]))
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.blocks = config.segmentation_blocks()
        self.beit = BeitModel(config, add_pooling_layer=False)
        self.add_pyramid(config)
        self.decode_head = UPerHead(config)
        self.auxiliary_head = FCNHead(config) if config.use_auxiliary_head else None
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = True,
    ) -> Any:
        """Scores of the classes of pixels, at the size of the pyramid's first map.

        Args:
            pixel_values: (B, C, H, W), of any size.
            head_mask: (A,) or (blocks, A), 0 silences a head.
            labels: (B, H', W') integers; `config.semantic_loss_ignore_index` is not counted.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            interpolate_pos_encoding: Accepted for callers that pass it; positions always fit the
                image.

        Returns:
            `loss` (with labels), `logits` (B, V, H / 4, W / 4), `hidden_states`, `attentions`; see
            `BeitModel.forward`.

        Raises:
            InputError: Labels of another shape, type or range, or images too small for the
                pyramid; else as `BeitModel.forward`.
        """
        weights, all_states = self.flags(output_attentions, output_hidden_states)
        used = [block + 1 for block in self.blocks]
        keep = self.beit.all_states() if weights or all_states else used
        states, attentions, grid = self.beit.encode(
            pixel_values, head_mask=head_mask, keep=keep, with_attentions=weights
        )
        maps = self.pyramid([as_map(states[i], *grid) for i in used])
        logits = self.decode_head(maps)  # (B, V, H / 4, W / 4)
        loss = None if labels is None else self.loss(logits, maps[2], labels)
        hidden = tuple(states.values()) if all_states else None
        out = SemanticSegmenterOutput(loss, logits, hidden, attentions)
        return self.finish(out, return_dict)

    def loss(self, logits: Tensor, third: Tensor, labels: Tensor) -> Tensor:
        """The decoder's loss, and the weighted one of the auxiliary head on the pyramid's third
        map.

        Raises:
            InputError: Labels of another shape, type or range, or a network of one class.
        """
        if self.config.num_labels < 2:
            raise InputError("num_labels=1; segmentation is trained with two classes or more")
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or labels.is_floating_point():
            raise InputError(
                f"labels are {labels.dtype} {tuple(labels.shape)}; expected integers"
                f" ({logits.shape[0]}, height, width)"
            )
        labels = labels.to(logits.device).long()
        if not torch.compiler.is_compiling():
            check_classes(labels, self.config)
        loss = pixel_loss(logits, labels, self.config)
        if self.auxiliary_head is None:
            return loss
        auxiliary = pixel_loss(self.auxiliary_head(third), labels, self.config)
        return loss + self.config.auxiliary_loss_weight * auxiliary


class BeitBackbone(Pyramid, Backbone, Trunk):
    """Feature maps of the stages that `config.out_features` names.

    Args:
        config: Shape of the network; `out_features` or `out_indices` selects the stages ("stem",
            "stage1", …; the last by default).

    Raises:
        ConfigError: `add_fpn=True` with other than four stages or without maps.

    Example:
        >>> import torch
        >>> from headstart import BeitBackbone, BeitConfig
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ...     out_features=["stage1", "stage2"],
        ... )
        >>> maps = BeitBackbone(config)(torch.zeros(1, 3, 32, 48)).feature_maps
        >>> [tuple(each.shape) for each in maps]
        [(1, 32, 2, 3), (1, 32, 2, 3)]
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.check_pyramid()
        if config.add_fpn:
            self.add_pyramid(config)
        self.post_init()

    def check_pyramid(self) -> None:
        """Raises ConfigError for a pyramid of other than four maps."""
        c, count = self.config, len(self.stages)
        if c.add_fpn and (count != 4 or not c.reshape_hidden_states):
            raise ConfigError(
                f"add_fpn makes a pyramid of four maps; out_features names {count}, as maps or not"
            )

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Feature maps of images (B, C, H, W).

        Args:
            pixel_values: (B, C, H, W), of any size.
            output_hidden_states: Also return the embeddings and the output of each block.
            output_attentions: Also return the attention weights.
            return_dict: False gives a tuple.

        Returns:
            `feature_maps`, (B, D, h, w) each, or tokens (B, L, D) with
            `reshape_hidden_states=False`; `hidden_states`, `attentions`: see `BeitModel.forward`.

        Raises:
            InputError: As `BeitModel.forward`; images too small for the pyramid.
        """
        self.check_pyramid()
        weights, all_states = self.flags(output_attentions, output_hidden_states)
        keep = self.all_states() if weights or all_states else self.stages
        states, attentions, grid = self.encode(pixel_values, keep=keep, with_attentions=weights)
        maps = [states[i] for i in self.stages]
        if self.config.reshape_hidden_states:
            maps = [as_map(tokens, *grid) for tokens in maps]
        if self.config.add_fpn:
            maps = self.pyramid(maps)
        hidden = tuple(states.values()) if all_states else None
        return self.finish(BackboneOutput(tuple(maps), hidden, attentions), return_dict)
