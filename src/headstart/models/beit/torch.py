"""BEiT in PyTorch: a vision transformer with relative position bias and layer scale.

Source: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers". Modules and parameters
are named as in the published checkpoints.

Shapes: B images, C channels, H W height and width, h w patches from top to bottom and from left to
right, L = 1 + h * w tokens (the class token first), D hidden size, A heads, K = D // A, V classes
or visual codes.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint.names import PublishedNames
from headstart.errors import InputError
from headstart.models.beit.config import BeitConfig
from headstart.models.beit.positions import (
    relative_position_index,
    resize_positions,
    resize_table,
    table_matrices,
    table_rows,
)
from headstart.models.beit.weights import INDEX_BUFFER, PUBLISHED_NAMES, fit_positions
from headstart.nn.checks import check_pixels, expand_head_mask
from headstart.nn.kept import Kept, jit_traced, traced
from headstart.nn.layers import DropPath, activation, drop_path_rates, named
from headstart.nn.linear import Linear
from headstart.nn.losses import classification_loss, mean_cross_entropy
from headstart.nn.torch import PreTrainedModel
from headstart.outputs import BeitModelOutputWithPooling, ImageClassifierOutput, MaskedLMOutput

# A larger bias is computed each time; BEiT-large at 640 pixels has 1.6e8 bytes per block.
KEPT_BYTES = 2**28


class Grid(NamedTuple):
    """Positions of the tokens of a batch.

    Fields:
        height: Patches from top to bottom.
        width: Patches from left to right.
        rows: Each pair's row of the bias table, (L, L).
        fit: What fits the table to this grid (see `resize_table`), or None where it does.
    """

    height: int
    width: int
    rows: Tensor
    fit: tuple[Tensor, Tensor] | None


class RelativeBias(nn.Module):
    """A learned bias of attention scores by relative position, one for each head."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        table = torch.zeros(table_rows(*config.grid), config.num_attention_heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.kept = Kept(KEPT_BYTES)

    def expanded(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The bias of every pair of tokens, (1, A, L, L)."""
        table: Tensor = self.relative_position_bias_table  # (rows, A)
        if grid.fit is not None:
            table = resize_table(torch, table, *grid.fit)
        bias = table.t().contiguous().index_select(1, grid.rows.flatten())  # (A, L * L)
        return bias.view(1, -1, *grid.rows.shape).to(dtype)  # (1, A, L, L)

    def forward(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The bias (1, A, L, L) that is added to the scores, in the type of queries and keys."""
        table, key = self.relative_position_bias_table, (grid.height, grid.width, dtype)
        return self.kept(lambda: self.expanded(grid, dtype), table, self.training, *key)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Leaves out the index that older files hold: it follows from the grid."""
        state_dict.pop(prefix + INDEX_BUFFER, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Attention(nn.Module):
    """Self-attention. Queries and values have a bias, keys have none, as in the authors' code."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.attention = named(query=Linear(D, D), key=Linear(D, D, bias=False), value=Linear(D, D))
        if config.use_relative_position_bias:
            self.attention["relative_position_bias"] = RelativeBias(config)
        self.output = named(dense=Linear(D, D))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, L, D), each (B, A, L, K)."""
        q, k, v = (self.attention[name](x) for name in ("query", "key", "value"))  # 3 × (B, L, D)
        return self.split(q), self.split(k), self.split(v)

    def split(self, x: Tensor) -> Tensor:
        """x (B, L, D) → (B, A, L, K)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def score_bias(
        self, grid: Grid | None, shared: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores, (1, A, L, L), or None."""
        bias = None if shared is None else shared.to(dtype)
        if grid is None or "relative_position_bias" not in self.attention:
            return bias
        own: Tensor = self.attention["relative_position_bias"](grid, dtype)
        return own if bias is None else own + bias

    def forward(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Mixes tokens.

        Args:
            x: (B, L, D).
            grid: Positions of the tokens; None without relative bias.
            shared: Bias of all blocks, (1, A, L, L).
            head_mask: (A, 1, 1), 0 silences a head.
            need_weights: Also return the weights, which are then on the path of the gradient.

        Returns:
            (B, L, D); the attention weights (B, A, L, L) after the softmax, before dropout.
        """
        q, k, v = self.heads(x)  # 3 × (B, A, L, K)
        bias, weights = self.score_bias(grid, shared, q.dtype), None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, A, L, L)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            if head_mask is not None:
                weights = weights * head_mask
            y = F.dropout(weights, self.dropout, self.training) @ v  # (B, A, L, K)
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, bias, dropout)  # (B, A, L, K)
            if head_mask is not None:
                y = y * head_mask
        return self.output["dense"](y.transpose(1, 2).reshape(x.shape)), weights


class Block(nn.Module):
    """Pre-norm block; the learned vectors `lambda_1` and `lambda_2` scale its two branches."""

    lambda_1: nn.Parameter | None
    lambda_2: nn.Parameter | None

    def __init__(self, config: BeitConfig, number: int, drop_path: float) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.scale = config.layer_scale_init_value  # 0: no layer scale
        for name in ("lambda_1", "lambda_2"):
            value = nn.Parameter(torch.full((D,), float(self.scale))) if self.scale > 0 else None
            self.register_parameter(name, value)
        self.attention = Attention(config)
        self.intermediate = named(dense=Linear(D, config.intermediate_size))
        self.output = named(dense=Linear(config.intermediate_size, D))
        self.layernorm_before = nn.LayerNorm(D, eps)
        self.layernorm_after = nn.LayerNorm(D, eps)
        self.act = activation(config.hidden_act)
        self.dropout = config.hidden_dropout_prob
        self.drop_path = DropPath(drop_path)
        # The authors divide the last matrices of the two branches so that depth does not add up at
        # the start.
        for last in (self.attention.output["dense"], self.output["dense"]):
            last.shrink = (2 * (number + 1)) ** -0.5

    def mlp(self, x: Tensor) -> Tensor:
        """x (B, L, D), the same shape."""
        return self.output["dense"](self.act(self.intermediate["dense"](x)))

    def add(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """x plus the scaled branch, both (B, L, D)."""
        if self.training and (self.dropout or self.drop_path.rate):
            branch = F.dropout(branch, self.dropout)
            branch = branch if scale is None else scale * branch
            return x + self.drop_path(branch)
        return x + branch if scale is None else torch.addcmul(x, scale, branch)

    def forward(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D), the same shape, and the attention weights; see `Attention.forward`."""
        y, weights = self.attention(
            self.layernorm_before(x), grid, shared, head_mask, need_weights
        )  # (B, L, D)
        x = self.add(x, y, self.lambda_1)
        return self.add(x, self.mlp(self.layernorm_after(x)), self.lambda_2), weights


class Embeddings(nn.Module):
    """Tokens of images: the class token, patches or the mask token, and their positions."""

    mask_token: nn.Parameter | None
    position_embeddings: nn.Parameter | None

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_size
        tokens = 1 + config.grid[0] * config.grid[1]
        mask = nn.Parameter(torch.zeros(1, 1, D)) if config.use_mask_token else None
        absolute = config.use_absolute_position_embeddings
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.register_parameter("mask_token", mask)
        projection = nn.Conv2d(config.num_channels, D, config.patch, config.patch)
        self.patch_embeddings = named(projection=projection)
        positions = nn.Parameter(torch.zeros(1, tokens, D)) if absolute else None
        self.register_parameter("position_embeddings", positions)

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """Patches x (B, N, D), replaced by the mask token where the mask (B, N) is true.

        Raises:
            InputError: No mask token, or a mask of another shape.
        """
        if self.mask_token is None:
            raise InputError(
                "bool_masked_pos is given, but the network has no mask token; set"
                " use_mask_token=True in its configuration"
            )
        if mask.flatten(1).shape != x.shape[:2]:
            raise InputError(
                f"bool_masked_pos has shape {tuple(mask.shape)}; expected {tuple(x.shape[:2])}, one"
                " for each patch"
            )
        hidden = mask.flatten(1).to(x.device).bool()  # (B, N)
        return torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)

    def is_own_grid(self, height: int, width: int) -> bool:
        """Whether positions are made for this grid.

        A symbolic size is not compared: the exported program would be bound to the answer.
        """
        known = isinstance(height, int) and isinstance(width, int)
        return known and (height, width) == self.config.grid

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None
    ) -> tuple[Tensor, int, int]:
        """Tokens (B, L, D) of images (B, C, H, W), and the height and width of the grid."""
        patch, projection = self.config.patch, self.patch_embeddings["projection"]
        height, width = pixel_values.shape[2] // patch[0], pixel_values.shape[3] // patch[1]
        if jit_traced():  # a program of one size
            height, width = int(height), int(width)
        if height < 1 or width < 1:
            size = tuple(pixel_values.shape[2:])
            raise InputError(f"images of {size} are smaller than one patch of {patch}")
        x = projection(pixel_values.to(self.cls_token.dtype)).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            x = self.masked(x, bool_masked_pos)  # (B, h * w, D)
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)  # (B, L, D)
        positions: Tensor | None = self.position_embeddings
        if positions is not None and not self.is_own_grid(height, width):
            positions = resize_positions(torch, positions, self.config.grid, (height, width))
        if positions is not None:
            x = x + positions
        return F.dropout(x, self.config.hidden_dropout_prob, self.training), height, width


class BeitPreTrainedModel(PreTrainedModel):
    """Base of the BEiT networks: initialization, and tables fitted to another resolution.

    Args:
        config: Shape of the network, a `BeitConfig`.

    Example:
        >>> from headstart import BeitForImageClassification, BeitPreTrainedModel
        >>> issubclass(BeitForImageClassification, BeitPreTrainedModel)
        True
        >>> BeitPreTrainedModel.base_model_prefix
        'beit'
    """

    config_class = BeitConfig
    base_model_prefix = "beit"
    heads: ClassVar[tuple[str, ...]] = (
        *("pooler", "beit.pooler", "layernorm", "beit.layernorm"),
        *("embeddings.mask_token", "beit.embeddings.mask_token", "classifier", "lm_head"),
        *("fpn1", "fpn2", "decode_head", "auxiliary_head"),
    )
    config: BeitConfig

    @classmethod
    def name_table(cls, config: BeitConfig) -> PublishedNames:
        """Published names."""
        return PUBLISHED_NAMES

    def init_module(self, module: nn.Module) -> None:
        """Initializes as the authors do.

        Truncated normal matrices and tokens, norms 1 and 0, tables and biases 0.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.trunc_normal_(module.weight, std=std)
            module.weight.mul_(getattr(module, "shrink", 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, RelativeBias):
            nn.init.zeros_(module.relative_position_bias_table)
        elif isinstance(module, Block):
            for scale in module.parameters(recurse=False):
                nn.init.constant_(scale, module.scale)
        elif isinstance(module, Embeddings):
            for token in module.parameters(recurse=False):
                nn.init.trunc_normal_(token, std=std)

    def flags(
        self, output_attentions: bool | None, output_hidden_states: bool | None
    ) -> tuple[bool, bool]:
        """Whether attention weights and hidden states are wanted."""
        states = self.wants("output_hidden_states", output_hidden_states)
        return self.wants("output_attentions", output_attentions), states

    def _assign(self, tensors: Mapping[str, Tensor], *args: Any) -> dict[str, list[Any]]:
        """Fits tables and positions of another resolution before they are assigned."""
        fitted = fit_positions(tensors, self.config, self.config.saved_grid)
        return super()._assign(fitted, *args)


class Trunk(BeitPreTrainedModel):
    """Embeddings and blocks: the part that every BEiT network has."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = named()
        if config.use_shared_relative_position_bias:
            self.encoder["relative_position_bias"] = RelativeBias(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.encoder["layer"] = nn.ModuleList(Block(config, i, r) for i, r in enumerate(rates))
        self._grid: tuple[Any, Grid] | None = None

    def grid(self, height: int, width: int, device: torch.device) -> Grid | None:
        """What relative bias needs to know of a grid of patches; None without it.

        The last one is cached.
        """
        c = self.config
        if not (c.use_relative_position_bias or c.use_shared_relative_position_bias):
            return None
        if traced():
            return self.make_grid(height, width, device)
        key = (height, width, device)
        kept = self._grid  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            with torch.inference_mode(False):  # training uses what is cached, too
                self._grid = kept = (key, self.make_grid(height, width, device))
        return kept[1]

    def make_grid(self, height: int, width: int, device: torch.device) -> Grid:
        """What `grid` caches."""
        c, fit = self.config, None
        # NumPy's arrays are constants of a traced program, whatever was kept before.
        xp = numpy if jit_traced() else torch
        if c.bias_by_width or not self.embeddings.is_own_grid(height, width):
            tables = table_matrices(xp, c.grid, (height, width), c.bias_resize, c.bias_by_width)
            fit = torch.as_tensor(tables[0]), torch.as_tensor(tables[1])
        where = {} if jit_traced() else {"device": device}
        rows = torch.as_tensor(relative_position_index(xp, height, width, **where))  # (L, L)
        return Grid(height, width, rows.to(device).int(), fit)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grid": None}

    def encode(
        self,
        pixel_values: Tensor | None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        *,
        keep: Collection[int],
        with_attentions: bool = False,
    ) -> tuple[dict[int, Tensor], tuple[Tensor, ...] | None, tuple[int, int]]:
        """Hidden states of images.

        Args:
            pixel_values: (B, C, H, W).
            bool_masked_pos: (B, h * w), True where a patch is replaced by the mask token.
            head_mask: (A,) or (blocks, A), 0 silences a head.
            keep: Which states to return: 0 is the embeddings, i the output of the i-th block.
                Blocks after the last one are not run.
            with_attentions: Also return the attention weights.

        Returns:
            Number → (B, L, D); attention weights, (B, A, L, L) a block, or None; height and width
            of the grid of patches.
        """
        pixel_values = check_pixels(pixel_values, self.config.num_channels)
        x, height, width = self.embeddings(pixel_values, bool_masked_pos)
        grid, shared = self.grid(height, width, x.device), None
        if grid is not None and "relative_position_bias" in self.encoder:
            shared = self.encoder["relative_position_bias"](grid, x.dtype)  # (1, A, L, L)
        c = self.config
        heads = expand_head_mask(head_mask, c.num_hidden_layers, c.num_attention_heads)
        if heads is not None:
            heads = heads.to(x.device, x.dtype)[..., None, None]  # (blocks, A, 1, 1)
        states, attentions = {0: x} if 0 in keep else {}, []
        for i, block in enumerate(self.blocks[: max(keep)], 1):
            mask = None if heads is None else heads[i - 1]  # (A, 1, 1)
            x, weights = self.run_block(block, x, grid, shared, mask, with_attentions)
            attentions.append(weights)
            if i in keep:
                states[i] = x
        return states, tuple(attentions) if with_attentions else None, (height, width)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, in order."""
        return self.encoder["layer"]  # type: ignore[return-value]  # a ModuleDict holds any Module

    def all_states(self) -> range:
        """What to `keep` for every hidden state."""
        return range(len(self.blocks) + 1)


class Pooler(nn.Module):
    """One vector per image: the normalized mean of the patches, or the class token."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layernorm = norm if config.use_mean_pooling else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) → (B, D)."""
        if self.layernorm is None:
            return x[:, 0]
        return self.layernorm(x[:, 1:].mean(1))


class BeitModel(Trunk):
    """BEiT without a head: hidden states of the tokens and one vector per image.

    Args:
        config: Shape of the network.
        add_pooling_layer: Whether to compute `pooler_output`.

    Example:
        >>> import torch
        >>> from headstart import BeitConfig, BeitModel
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ... )
        >>> BeitModel(config)(torch.zeros(1, 3, 32, 48)).last_hidden_state.shape
        torch.Size([1, 7, 32])
    """

    def __init__(self, config: BeitConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layernorm = nn.Identity() if config.use_mean_pooling else norm
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = True,
    ) -> Any:
        """Hidden states of images.

        Args:
            pixel_values: (B, C, H, W), as `BeitImageProcessor` gives them; of any size.
            bool_masked_pos: (B, patches), True (or 1) where a patch is masked.
            head_mask: (A,) or (blocks, A), 0 silences a head.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            interpolate_pos_encoding: Accepted for callers that pass it; positions always fit the
                image.

        Returns:
            `last_hidden_state` (B, L, D), `pooler_output` (B, D), `hidden_states`, blocks + 1
            tensors (B, L, D), `attentions`, one tensor (B, A, L, L) per block, each row of which
            sums to 1.

        Raises:
            InputError: `pixel_values`, `bool_masked_pos` or `head_mask` of another shape or type,
                a mask without a mask token, or an image smaller than a patch.
        """
        weights, all_states = self.flags(output_attentions, output_hidden_states)
        keep = self.all_states() if all_states else (len(self.blocks),)
        states, attentions, _ = self.encode(
            pixel_values, bool_masked_pos, head_mask, keep=keep, with_attentions=weights
        )
        last = self.layernorm(states[len(self.blocks)])  # (B, L, D)
        pooled = None if self.pooler is None else self.pooler(last)  # (B, D)
        hidden = tuple(states.values()) if all_states else None
        out = BeitModelOutputWithPooling(last, pooled, hidden, attentions)
        return self.finish(out, return_dict)


class BeitForMaskedImageModeling(BeitPreTrainedModel):
    """BEiT that predicts the visual codes of masked patches (the pretraining of the paper).

    Args:
        config: Shape of the network; `use_mask_token=True` for masked images.

    Example:
        >>> import torch
        >>> from headstart import BeitConfig, BeitForMaskedImageModeling
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ...     vocab_size=64,
        ...     use_mask_token=True,
        ... )
        >>> model = BeitForMaskedImageModeling(config)
        >>> mask = torch.tensor([[True, False, True, False]])  # 2 × 2 patches of 16 pixels
        >>> codes = torch.tensor([[5, 0, 63, 0]])  # from DalleImageTokenizer
        >>> out = model(torch.zeros(1, 3, 32, 32), bool_masked_pos=mask, labels=codes)
        >>> out.logits.shape, out.loss.shape
        (torch.Size([1, 4, 64]), torch.Size([]))
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config, add_pooling_layer=False)
        if not config.norm_twice:
            self.beit.layernorm = nn.Identity()
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = True,
    ) -> Any:
        """Scores of the visual codes of every patch.

        Args:
            pixel_values: (B, C, H, W).
            bool_masked_pos: (B, patches), True (or 1) where a patch is masked.
            head_mask: (A,) or (blocks, A), 0 silences a head.
            labels: Codes of the masked patches in their order, (masked,), or of all patches, (B,
                patches) or (B, h, w): only those of masked patches count, and none that is -100.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            interpolate_pos_encoding: Accepted for callers that pass it; positions always fit the
                image.

        Returns:
            `loss` (with labels; the mean cross-entropy in nats, 0 where nothing is masked),
            `logits` (B, patches, V), `hidden_states`, `attentions`; see `BeitModel.forward`.

        Raises:
            InputError: Labels that are neither one per masked patch nor one per patch; else as
                `BeitModel.forward`.
        """
        flags = self.flags(output_attentions, output_hidden_states)
        out = self.beit(pixel_values, bool_masked_pos, head_mask, *flags, return_dict=True)
        logits = self.lm_head(self.layernorm(out.last_hidden_state[:, 1:]))  # (B, patches, V)
        loss = None if labels is None else masked_loss(logits, labels, bool_masked_pos)
        return self.finish(
            MaskedLMOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )


def masked_loss(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-entropy of codes; see `BeitForMaskedImageModeling.forward`.

    Raises:
        InputError: Labels that are neither one a masked patch nor one a patch.
    """
    labels, B, N = labels.to(logits.device), *logits.shape[:2]
    labels = labels.flatten(1) if labels.ndim == 3 else labels  # (B, h, w), as masks may be
    mask = None if mask is None else mask.flatten(1).to(logits.device).bool()  # (B, N)
    if labels.shape == (B, N):
        labels = labels if mask is None else labels.masked_fill(~mask, -100)
        return mean_cross_entropy(logits.flatten(0, 1), labels.flatten())
    chosen = logits.flatten(0, 1) if mask is None else logits[mask]  # (masked, V)
    if labels.numel() != chosen.shape[0]:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected ({chosen.shape[0]},), one a masked"
            f" patch, or {(B, N)}"
        )
    return mean_cross_entropy(chosen, labels.flatten())


class BeitForImageClassification(BeitPreTrainedModel):
    """BEiT with a linear classifier on the pooled vector.

    Args:
        config: Shape of the network; `num_labels` is the number of classes.

    Example:
        >>> import torch
        >>> from headstart import BeitConfig, BeitForImageClassification
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ...     num_labels=5,
        ... )
        >>> model = BeitForImageClassification(config).eval()
        >>> out = model(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 4]))
        >>> out.logits.shape, out.loss.shape
        (torch.Size([2, 5]), torch.Size([]))
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config)
        width, labels = config.hidden_size + config.pooled_width, config.num_labels
        self.classifier = nn.Linear(width, labels) if labels else nn.Identity()
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
        """Scores of the classes.

        Args:
            pixel_values: (B, C, H, W).
            head_mask: (A,) or (blocks, A), 0 silences a head.
            labels: (B,) integers, (B, V) zeros and ones, or (B,) numbers where `num_labels` is 1.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            interpolate_pos_encoding: Accepted for callers that pass it; positions always fit the
                image.

        Returns:
            `loss` (with labels), `logits` (B, V), `hidden_states`, `attentions`; see
            `BeitModel.forward`.

        Raises:
            InputError: Labels of another shape, type or range; else as `BeitModel.forward`.
        """
        weigh, hidden = self.flags(output_attentions, output_hidden_states)
        pooled_states = self.config.pooled_hidden_states

        def see(x: Tensor | None) -> tuple[Tensor, Any]:
            keep = hidden or bool(pooled_states)
            out = self.beit(x, None, head_mask, weigh, keep, return_dict=True)
            states = [out.hidden_states[i] for i in pooled_states]  # (B, L, D) each
            pools = [pool for state in states for pool in (state[:, 0], state[:, 1:].mean(1))]
            return torch.cat([*pools, out.pooler_output], 1), out

        pooled, out = self.read(see, pixel_values)
        logits = self.classifier(pooled)  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        states = out.hidden_states if hidden else None
        return self.finish(ImageClassifierOutput(loss, logits, states, out.attentions), return_dict)
