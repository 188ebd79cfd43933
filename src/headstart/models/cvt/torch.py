"""CvT in PyTorch: a vision transformer in stages, whose tokens and whose queries, keys and values
come from convolutions (Wu et al. 2021).

Shapes: B images, C channels, H W height and width of a stage's map, L tokens (H * W, and the class
    token first where there is one),
D hidden size, A heads, K = D // A, V classes.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint.names import PublishedNames
from headstart.models.cvt.config import CvtConfig
from headstart.models.cvt.weights import PUBLISHED_NAMES
from headstart.nn.checks import check_pixels
from headstart.nn.kept import traced
from headstart.nn.layers import (
    DropPath,
    activation,
    drop_path_rates,
    named,
    quick_gelu,
    quick_gelu_,
)
from headstart.nn.linear import Linear
from headstart.nn.losses import classification_loss
from headstart.nn.torch import Backbone, PreTrainedModel
from headstart.outputs import (
    BackboneOutput,
    BaseModelOutputWithCLSToken,
    ImageClassifierOutput,
    ImageClassifierOutputWithNoAttention,
    ModelOutput,
)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H * W, D) as a map (B, D, H, W).

    The same memory, which convolutions then read as channels-last.
    """
    return tokens.view(tokens.shape[0], height, width, -1).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """Inverse of `to_map`: a map (B, D, H, W) as tokens (B, H * W, D)."""
    return x.flatten(2).transpose(1, 2)


class Embedding(nn.Module):
    """Convolutional token embedding: a strided convolution, then a layer norm over the channels
    (section 3.1).
    """

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        before, D = [config.num_channels, *config.embed_dim][stage : stage + 2]
        kernel, stride = config.patch_sizes[stage], config.patch_stride[stage]
        self.projection = nn.Conv2d(before, D, kernel, stride, config.patch_padding[stage])
        self.normalization = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """x (B, C, H', W') → tokens (B, H * W, D), H, W."""
        x = self.projection(x)  # (B, D, H, W)
        return self.normalization(to_tokens(x)), x.shape[2], x.shape[3]  # (B, H * W, D)


class DepthwiseConvolution(nn.Module):
    """Depthwise convolution and batch norm, before the linear map to queries, keys or values."""

    def __init__(self, D: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(D, D, kernel, stride, padding, groups=D, bias=False)
        self.normalization: nn.Module = nn.BatchNorm2d(D)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, H, W) → (B, D, H', W')."""
        conv, norm = self.convolution, self.normalization
        if type(norm) is not nn.BatchNorm2d or norm.training or norm.running_mean is None:
            return norm(conv(x))
        # norm(conv(x)) with known statistics is one convolution. Folding costs less than checking
        # whether a cached result is still valid.
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (D,)
        weight = conv.weight * scale[:, None, None, None]
        bias = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=len(scale))


def convolutional_projection(config: CvtConfig, stage: int, query: bool) -> nn.Module:
    """What maps a stage's tokens (B, D, H, W) go through before they become queries, keys or
    values (section 3.2).
    """
    kernel, method = config.kernel_qkv[stage], config.qkv_projection_method[stage]
    stride = config.stride_q[stage] if query else config.stride_kv[stage]
    padding = config.padding_q[stage] if query else config.padding_kv[stage]
    if method == "dw_bn":
        return DepthwiseConvolution(config.embed_dim[stage], kernel, stride, padding)
    if method == "avg" and not query:
        return nn.AvgPool2d(kernel, stride, padding, ceil_mode=True)
    return nn.Identity()


class Attention(nn.Module):
    """Self-attention between the tokens of a stage and a smaller map of them."""

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        D = config.embed_dim[stage]
        self.num_heads = config.num_heads[stage]
        self.cls = int(config.cls_token[stage])
        # The authors scale by the whole width, not by a head's.
        self.scale = D**-0.5
        self.attention = named()
        for name in ("query", "key", "value"):
            convolution = convolutional_projection(config, stage, name == "query")
            self.attention[f"convolution_projection_{name}"] = named(
                convolution_projection=convolution
            )
            self.attention[f"projection_{name}"] = Linear(D, D, bias=config.qkv_bias[stage])
        self.output = named(dense=Linear(D, D))
        self.dropout = config.attention_drop_rate[stage]

    def project(self, name: str, grid: Tensor, cls: Tensor | None) -> Tensor:
        """Queries, keys or values (B, A, L, K) of a map (B, D, H, W) and its class token (B, 1, D),
        which goes through the linear map alone.
        """
        convolve = self.attention[f"convolution_projection_{name}"]["convolution_projection"]  # type: ignore[index]
        y = to_tokens(convolve(grid))  # (B, H' * W', D)
        y = y if cls is None else torch.cat([cls, y], 1)  # (B, L, D)
        return self.heads(self.attention[f"projection_{name}"](y))

    def heads(self, x: Tensor) -> Tensor:
        """x (B, L, D) → (B, A, L, K)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(
        self, x: Tensor, height: int, width: int, weigh: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D) → (B, L, D), and the weights (B, A, L, L') that each token gives to the keys,
        if `weigh`.
        """
        B, L, D = x.shape
        cls, patches = (x[:, :1], x[:, 1:].contiguous()) if self.cls else (None, x)
        grid = to_map(patches, height, width)  # (B, D, H, W)
        q = self.project("query", grid, cls)  # (B, A, L, K)
        k, v = self.project("key", grid, cls), self.project("value", grid, cls)  # (B, A, L', K)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if weigh:
            weights = torch.softmax(q @ k.transpose(2, 3) * self.scale, dim=-1)  # (B, A, L, L')
            y = F.dropout(weights, dropout, self.training) @ v  # (B, A, L, K)
        else:
            # (B, A, L, K)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, L, D)
        return self.output["dense"](y), weights  # (B, L, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: CvtConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        D, eps = config.embed_dim[stage], config.layer_norm_eps
        inside = int(D * config.mlp_ratio[stage])
        self.layernorm_before = nn.LayerNorm(D, eps)
        self.attention = Attention(config, stage)
        self.layernorm_after = nn.LayerNorm(D, eps)
        self.intermediate = named(dense=Linear(D, inside))
        self.output = named(dense=Linear(inside, D))
        self.act = activation(config.hidden_act)
        self.dropout = nn.Dropout(config.drop_rate[stage])
        self.drop_path = DropPath(drop_path)

    def mlp(self, x: Tensor) -> Tensor:
        """x (B, L, D), the same shape."""
        x = self.intermediate["dense"](x)  # (B, L, mlp_ratio * D)
        # Without gradients x is not read again: writing in place saves an allocation
        overwrite = self.act is quick_gelu and not torch.is_grad_enabled() and not traced()
        x = quick_gelu_(x) if overwrite else self.act(x)
        return self.output["dense"](self.dropout(x))  # (B, L, D)

    def forward(
        self, x: Tensor, height: int, width: int, weigh: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D) → (B, L, D), and the attention's weights if `weigh`."""
        y, weights = self.attention(self.layernorm_before(x), height, width, weigh)
        x = x + self.drop_path(self.dropout(y))  # (B, L, D)
        y = self.dropout(self.mlp(self.layernorm_after(x)))
        return x + self.drop_path(y), weights  # (B, L, D)


class Stage(nn.Module):
    """Tokens of a smaller map, and the blocks that work on them."""

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        self.embedding = named(convolution_embeddings=Embedding(config, stage))
        self.cls_token: nn.Parameter | None = None
        if config.cls_token[stage]:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim[stage]))
        self.dropout = nn.Dropout(config.drop_rate[stage])
        rates = drop_path_rates(config.drop_path_rate[stage], config.depth[stage])
        self.layers = nn.ModuleList(Block(config, stage, rate) for rate in rates)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """The map before (B, C, H', W') → tokens (B, L, D) for the blocks, H, W."""
        x, height, width = self.embedding["convolution_embeddings"](x)  # (B, H * W, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)  # (B, 1 + H * W, D)
        return self.dropout(x), height, width


class CvtPreTrainedModel(PreTrainedModel):
    """Base of the CvT networks.

    Args:
        config: The configuration.

    Example:
        >>> from headstart import CvtModel, CvtPreTrainedModel
        >>> issubclass(CvtModel, CvtPreTrainedModel), CvtPreTrainedModel.base_model_prefix
        (True, 'cvt')
    """

    config_class = CvtConfig
    base_model_prefix = "cvt"
    heads: ClassVar[tuple[str, ...]] = ("layernorm", "classifier")
    config: CvtConfig

    @classmethod
    def name_table(cls, config: CvtConfig) -> PublishedNames:
        """What published files of the family may hold."""
        return PUBLISHED_NAMES

    def init_module(self, module: nn.Module) -> None:
        """Truncated normal weights and class tokens, biases 0, norms 1 and 0."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, Stage) and module.cls_token is not None:
            nn.init.trunc_normal_(module.cls_token, std=self.config.initializer_range)


class CvtModel(CvtPreTrainedModel):
    """CvT without a head.

    Args:
        config: What the network is.
        add_pooling_layer: Accepted for older code; CvT has no pooling layer.

    Example:
        >>> import torch
        >>> from headstart import CvtConfig, CvtModel
        >>> model = CvtModel(CvtConfig(depth=[1, 1, 1])).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).last_hidden_state.shape
        torch.Size([1, 384, 4, 6])
    """

    def __init__(self, config: CvtConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        stages = nn.ModuleList(Stage(config, i) for i in range(len(config.embed_dim)))
        self.encoder = named(stages=stages)
        self.smallest_image = config.smallest_image
        self.post_init()

    def features(
        self, pixel_values: Tensor | None, weigh: bool = False
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
        """The map of every stage (B, D, H, W), the last stage's class token (B, 1, D), and every
        block's weights if `weigh`.
        """
        x = check_pixels(pixel_values, self.config.num_channels, self.smallest_image)
        maps: list[Tensor] = []
        attentions: list[Tensor] = []
        cls = None
        for stage in self.encoder["stages"].children():
            tokens, height, width = stage(x)  # (B, L, D)
            for block in stage.layers:  # type: ignore[union-attr]
                # (B, L, D), (B, A, L, L')
                tokens, weights = self.run_block(block, tokens, height, width, weigh)
                attentions += [] if weights is None else [weights]
            has_cls = stage.cls_token is not None
            cls, patches = (tokens[:, :1], tokens[:, 1:]) if has_cls else (None, tokens)
            x = to_map(patches, height, width)  # (B, D, H, W)
            maps.append(x)
        return maps, cls, attentions

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Features of images.

        Args:
            pixel_values: (B, C, H, W), as `ConvNextImageProcessor` gives them.
            output_hidden_states: Also return each stage's map.
            return_dict: False gives a tuple.
            output_attentions: Also return each block's attention weights (B, A, L, L').

        Returns:
            `last_hidden_state` (B, D, H / 16, W / 16), `cls_token_value` (B, 1, D),
            `hidden_states`, `attentions`.
        """
        weigh = self.wants("output_attentions", output_attentions)
        maps, cls, attentions = self.features(pixel_values, weigh)
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        seen = tuple(attentions) if weigh else None
        return self.finish(BaseModelOutputWithCLSToken(maps[-1], cls, hidden, seen), return_dict)


class CvtForImageClassification(CvtPreTrainedModel):
    """CvT with a linear classifier on the class token.

    It is on the mean of the tokens where the last stage has no class token.

    Args:
        config: The configuration; `num_labels` (or `id2label`) is the number of classes.

    Example:
        >>> import torch
        >>> from headstart import CvtConfig, CvtForImageClassification
        >>> model = CvtForImageClassification(CvtConfig(depth=[1, 1, 1], num_labels=5)).eval()
        >>> model(torch.zeros(2, 3, 64, 96)).logits.shape
        torch.Size([2, 5])
    """

    def __init__(self, config: CvtConfig) -> None:
        super().__init__(config)
        self.cvt = CvtModel(config)
        D, labels = config.embed_dim[-1], config.num_labels
        self.layernorm = nn.LayerNorm(D, config.layer_norm_eps)
        self.classifier = Linear(D + config.pooled_width, labels) if labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Scores of the classes.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) integers, (B, V) zeros and ones, or (B,) numbers where `num_labels` is 1.
            output_hidden_states: Also return each stage's map.
            return_dict: False gives a tuple.
            output_attentions: Also return each block's attention weights (B, A, L, L').

        Returns:
            `loss` (with labels), `logits` (B, V), `hidden_states`, and `attentions` if
            requested.
        """
        weigh = self.wants("output_attentions", output_attentions)

        def see(x: Tensor | None) -> tuple[Tensor, Any]:
            maps, cls, attentions = self.cvt.features(x, weigh)
            tokens = to_tokens(maps[-1]) if cls is None else cls  # (B, L, D) or (B, 1, D)
            means = [maps[i].mean((2, 3)) for i in self.config.pooled_hidden_states]
            return torch.cat([*means, self.layernorm(tokens).mean(1)], 1), (maps, attentions)

        pooled, (maps, attentions) = self.read(see, pixel_values)
        logits = self.classifier(pooled)  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        out: ModelOutput = ImageClassifierOutputWithNoAttention(loss, logits, hidden)
        if weigh:
            out = ImageClassifierOutput(loss, logits, hidden, tuple(attentions))
        return self.finish(out, return_dict)


class CvtBackbone(Backbone, CvtPreTrainedModel):
    """Feature maps of the stages that `config.out_features` names.

    Args:
        config: The configuration; `out_features` or `out_indices` choose the stages.

    Example:
        >>> import torch
        >>> from headstart import CvtBackbone, CvtConfig
        >>> model = CvtBackbone(CvtConfig(depth=[1, 1, 1])).eval()
        >>> [tuple(each.shape) for each in model(torch.zeros(1, 3, 64, 96)).feature_maps]
        [(1, 384, 4, 6)]
    """

    def __init__(self, config: CvtConfig) -> None:
        super().__init__(config)
        self.cvt = CvtModel(config)
        self.num_features = list(config.embed_dim)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Feature maps of images.

        Args:
            pixel_values: (B, C, H, W), of any size.
            output_hidden_states: Also return the maps of every stage; None follows the
                configuration.
            return_dict: False returns a tuple.
            output_attentions: Also return the weights of every block's attention, (B, A, L, L')
                with L' keys.

        Returns:
            `feature_maps`: one (B, channels, height, width) for each of `config.out_features`,
            without class tokens; `hidden_states` and `attentions` if requested.
        """
        weigh = self.wants("output_attentions", output_attentions)
        maps, _, attentions = self.cvt.features(pixel_values, weigh)
        chosen = tuple(maps[i] for i in self.stages)
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        seen = tuple(attentions) if weigh else None
        return self.finish(BackboneOutput(chosen, hidden, seen), return_dict)
