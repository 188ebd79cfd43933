"""BEiT in PyTorch: a vision transformer with relative position bias and layer scale (Bao et al.
2022).

Shapes: B images, C channels, H W height and width, h w patches from top to bottom and from left to
    right, L = 1 + h * w tokens (the class
token first), D hidden size, A heads, K = D // A, V classes or visual codes.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint.names import NameTable
from headstart.errors import InputError
from headstart.models.beit.config import BeitConfig
from headstart.models.beit.positions import (
    relative_position_index,
    resize_positions,
    resize_table,
    table_matrices,
    table_rows,
)
from headstart.models.beit.weights import HUB, fit_positions
from headstart.nn.kept import state_of
from headstart.nn.linear import Linear
from headstart.nn.torch import (
    DropPath,
    PreTrainedModel,
    activation,
    check_pixels,
    classification_loss,
    drop_path_rates,
)
from headstart.outputs import BeitModelOutputWithPooling, ImageClassifierOutput, MaskedLMOutput

# a bias that is larger is computed anew each time; BEiT-large at 640 pixels has 1.6e8 bytes a block
KEPT_BYTES = 2**28


class Grid(NamedTuple):
    """Where the tokens of a batch are.

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
    """A learned bias of attention scores by relative position, one for each head.

    The expanded bias is kept while nothing can change it (see `state_of`).
    """

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(table_rows(*config.grid), config.num_attention_heads))
        self._kept: tuple[Any, Tensor] | None = None

    def expanded(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The bias of every pair of tokens, (1, A, L, L)."""
        # (rows, A)
        table = self.table if grid.fit is None else resize_table(torch, self.table, *grid.fit)
        return (
            table.t()
            .contiguous()
            .index_select(1, grid.rows.flatten())
            .view(1, -1, *grid.rows.shape)
            .to(dtype)
        )  # (1, A, L, L)

    def forward(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The bias (1, A, L, L) that is added to the scores, in the type of queries and keys."""
        state = state_of(self.table, self.training)
        if state is None:
            return self.expanded(grid, dtype)
        key = (state, grid.height, grid.width, dtype)
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            self._kept = kept = None  # the old one is given back first
            bias = self.expanded(grid, dtype)
            if bias.numel() * bias.element_size() > KEPT_BYTES:
                return bias
            self._kept = kept = (key, bias)
        return kept[1]

    def train(self, mode: bool = True) -> "RelativeBias":
        """Forgets the kept bias: training changes it."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class Attention(nn.Module):
    """Self-attention. Queries and values have a bias, keys have none, as in the authors' code."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = (
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        )
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.value_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.bias = RelativeBias(config) if config.use_relative_position_bias else None
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, L, D), each (B, A, L, K)."""
        B, L, D = x.shape
        A = self.num_heads
        # (3D,)
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = self.qkv(x, bias)  # (B, L, 3D)
        q, k, v = qkv.view(B, L, 3, A, D // A).permute(2, 0, 3, 1, 4).unbind()  # 3 × (B, A, L, K)
        return q, k, v

    def score_bias(
        self, grid: Grid | None, shared: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores, (1, A, L, L), or None."""
        own: Tensor | None = None if self.bias is None or grid is None else self.bias(grid, dtype)
        if shared is None or own is None:
            return own if shared is None else shared.to(dtype)
        return own + shared.to(dtype)

    def weights(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """The attention weights (B, A, L, L) of x (B, L, D), after the softmax, before dropout."""
        q, k, _ = self.heads(x)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, A, L, L)
        bias = self.score_bias(grid, shared, q.dtype)
        weights: Tensor = (scores if bias is None else scores + bias).softmax(-1)
        return weights if head_mask is None else weights * head_mask

    def forward(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), the same shape; head_mask (A, 1, 1)."""
        q, k, v = self.heads(x)  # 3 × (B, A, L, K)
        bias = self.score_bias(grid, shared, q.dtype)
        # (B, A, L, K)
        y = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        if head_mask is not None:
            y = y * head_mask
        return self.proj(y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.fc_1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc_2 = Linear(config.intermediate_size, config.hidden_size)
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D), the same shape."""
        return self.fc_2(self.act(self.fc_1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm block; the learned vectors `lambda_1` and `lambda_2` scale its two branches."""

    def __init__(self, config: BeitConfig, number: int, drop_path: float) -> None:
        super().__init__()
        D, self.scale = config.hidden_size, config.layer_scale_init_value  # 0: no layer scale
        self.norm_1 = nn.LayerNorm(D, config.layer_norm_eps)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(D, config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.lambda_1 = (
            nn.Parameter(torch.full((D,), float(self.scale))) if self.scale > 0 else None
        )
        self.lambda_2 = (
            nn.Parameter(torch.full((D,), float(self.scale))) if self.scale > 0 else None
        )
        self.dropout = config.hidden_dropout_prob
        self.drop_path = DropPath(drop_path)
        # The authors divide the last matrices of the two branches so that depth does not add up at
        # the start.
        self.attention.proj.shrink = self.mlp.fc_2.shrink = (2 * (number + 1)) ** -0.5  # type: ignore[assignment]

    def add(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """x plus the scaled branch, both (B, L, D)."""
        if self.training and (self.dropout or self.drop_path.rate):
            branch = F.dropout(branch, self.dropout)
            return x + self.drop_path(branch if scale is None else scale * branch)  # type: ignore[no-any-return]
        return x + branch if scale is None else torch.addcmul(x, scale, branch)

    def forward(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), the same shape."""
        x = self.add(x, self.attention(self.norm_1(x), grid, shared, head_mask), self.lambda_1)
        return self.add(x, self.mlp(self.norm_2(x)), self.lambda_2)


class Pooler(nn.Module):
    """One vector an image: the mean of the patches, normalised, or the class token."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.norm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            if config.use_mean_pooling
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) → (B, D)."""
        return x[:, 0] if self.norm is None else self.norm(x[:, 1:].mean(1))  # type: ignore[no-any-return]


class BeitPreTrainedModel(PreTrainedModel):
    """Base of the BEiT networks."""

    config_class = BeitConfig
    base_model_prefix = "beit"
    heads: ClassVar[tuple[str, ...]] = (
        "pooler", "beit.pooler", "norm", "beit.norm", "mask_token", "beit.mask_token", "classifier", "lm_head",
        "pyramid", "decoder", "auxiliary",
    )  # fmt: skip
    config: BeitConfig

    @classmethod
    def name_table(cls, config: BeitConfig) -> NameTable:
        """Published names."""
        return HUB

    def init_module(self, module: nn.Module) -> None:
        """Truncated normal matrices and tokens, norms 1 and 0, tables and biases 0, as the authors."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.trunc_normal_(module.weight, std=std)
            module.weight.mul_(getattr(module, "shrink", 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, RelativeBias):
            nn.init.zeros_(module.table)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.query_bias), nn.init.zeros_(module.value_bias)
        elif (
            isinstance(module, Block)
            and module.lambda_1 is not None
            and module.lambda_2 is not None
        ):
            (
                nn.init.constant_(module.lambda_1, module.scale),
                nn.init.constant_(module.lambda_2, module.scale),
            )
        elif isinstance(module, Encoder):
            for token in (module.cls_token, module.mask_token, module.positions):
                if token is not None:
                    nn.init.trunc_normal_(token, std=std)

    def flags(
        self, output_attentions: bool | None, output_hidden_states: bool | None
    ) -> tuple[bool, bool]:
        """Whether attention weights and hidden states are wanted."""
        return self.wants("output_attentions", output_attentions), self.wants(
            "output_hidden_states", output_hidden_states
        )

    def _assign(self, tensors: Mapping[str, Tensor], *args: Any) -> dict[str, list[Any]]:
        """Fits tables and positions of another resolution before they are assigned."""
        return super()._assign(fit_positions(tensors, self.config), *args)


class Encoder(BeitPreTrainedModel):
    """Embeddings and blocks: the part that every BEiT network has."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        D = config.hidden_size
        self.patches = nn.Conv2d(config.num_channels, D, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D)) if config.use_mask_token else None
        places = 1 + config.grid[0] * config.grid[1]
        self.positions = (
            nn.Parameter(torch.zeros(1, places, D))
            if config.use_absolute_position_embeddings
            else None
        )
        self.shared_bias = (
            RelativeBias(config) if config.use_shared_relative_position_bias else None
        )
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.blocks = nn.ModuleList(Block(config, i, rate) for i, rate in enumerate(rates))
        self._grid: tuple[Any, Grid] | None = None

    def grid(self, height: int, width: int, device: torch.device) -> Grid | None:
        """What relative bias needs to know of a grid of patches; None without it.

        The last one is kept.
        """
        if not (
            self.config.use_relative_position_bias or self.config.use_shared_relative_position_bias
        ):
            return None
        if torch.compiler.is_compiling():
            return self.make_grid(height, width, device)
        key = (height, width, device)
        kept = self._grid  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            with torch.inference_mode(False):  # what is kept must serve training too
                self._grid = kept = (key, self.make_grid(height, width, device))
        return kept[1]

    def make_grid(self, height: int, width: int, device: torch.device) -> Grid:
        """The same, made anew."""
        c, fit = self.config, None
        if c.bias_by_width or not self.is_own_grid(height, width):
            fit = table_matrices(torch, c.grid, (height, width), c.bias_resize, c.bias_by_width)
        return Grid(
            height, width, relative_position_index(torch, height, width, device=device).int(), fit
        )

    def is_own_grid(self, height: int, width: int) -> bool:
        """Whether positions are made for this grid. A symbolic size is not compared.

        The exported program would be bound to the answer.
        """
        return (
            isinstance(height, int)
            and isinstance(width, int)
            and (height, width) == self.config.grid
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grid": None}

    def embed(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None
    ) -> tuple[Tensor, int, int]:
        """Tokens (B, L, D) of images (B, C, H, W), and the height and width of the grid of patches."""
        patch = self.config.patch
        height, width = pixel_values.shape[2] // patch[0], pixel_values.shape[3] // patch[1]
        if height < 1 or width < 1:
            raise InputError(
                f"images of {tuple(pixel_values.shape[2:])} are smaller than one patch of {patch};"
                " give larger ones"
            )
        # (B, h * w, D)
        x = self.patches(pixel_values.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            x = torch.where(
                self.check_mask(bool_masked_pos, x).unsqueeze(-1), self.mask_token.to(x.dtype), x
            )  # type: ignore[union-attr]
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)  # (B, L, D)
        if self.positions is not None:
            own = self.is_own_grid(height, width)
            x = x + (
                self.positions
                if own
                else resize_positions(torch, self.positions, self.config.grid, (height, width))
            )
        return F.dropout(x, self.config.hidden_dropout_prob, self.training), height, width

    def check_mask(self, mask: Tensor, x: Tensor) -> Tensor:
        """Which patches of x (B, N, D) are masked, (B, N).

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
        return mask.flatten(1).to(x.device).bool()

    def encode(
        self,
        pixel_values: Tensor | None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        keep: Collection[int] = (-1,),
        with_attentions: bool = False,
    ) -> tuple[dict[int, Tensor], tuple[Tensor, ...], tuple[int, int]]:
        """Hidden states of images.

        Args:
            pixel_values: (B, C, H, W).
            bool_masked_pos: (B, h * w), True where a patch is replaced by the mask token.
            head_mask: (A,) or (blocks, A), 0 silences a head.
            keep: Which states to return: 0 is the embeddings, i the output of the i-th block.
                Blocks after the last one are not run.
            with_attentions: Also compute the attention weights.

        Returns:
            Number → (B, L, D); attention weights, (B, A, L, L) a block; height and width of the
            grid of patches.
        """
        x, height, width = self.embed(
            check_pixels(pixel_values, self.config.num_channels), bool_masked_pos
        )
        grid = self.grid(height, width, x.device)
        shared = (
            None if self.shared_bias is None or grid is None else self.shared_bias(grid, x.dtype)
        )
        masks = expand_head_mask(head_mask, self.config, x)
        states, attentions = {0: x} if 0 in keep else {}, []
        for i, block in enumerate(self.blocks[: max(keep)], 1):
            if with_attentions:
                attentions.append(
                    block.attention.weights(block.norm_1(x), grid, shared, masks[i - 1])
                )  # type: ignore[union-attr,operator]
            x = self.run_block(block, x, grid, shared, masks[i - 1])
            if i in keep:
                states[i] = x
        return states, tuple(attentions), (height, width)

    def all_states(self) -> range:
        """What to `keep` for every hidden state."""
        return range(len(self.blocks) + 1)


def expand_head_mask(mask: Tensor | None, config: BeitConfig, x: Tensor) -> list[Tensor | None]:
    """A mask (A, 1, 1) for each block, from (A,) or (blocks, A).

    Raises:
        InputError: Another shape.
    """
    depth, A = config.num_hidden_layers, config.num_attention_heads
    if mask is None:
        return [None] * depth
    if mask.shape not in ((A,), (depth, A)):
        raise InputError(
            f"head_mask has shape {tuple(mask.shape)}; expected ({A},) or ({depth}, {A}): one"
            " number a head"
        )
    return list(mask.to(x.device, x.dtype).expand(depth, A)[..., None, None].unbind())


class BeitModel(Encoder):
    """BEiT without a head.

    Example:
        >>> import torch
        >>> from headstart import BeitConfig, BeitModel
        >>> config = BeitConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
        >>> BeitModel(config)(torch.zeros(1, 3, 32, 48)).last_hidden_state.shape
        torch.Size([1, 7, 32])
    """

    def __init__(self, config: BeitConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.norm = (
            nn.Identity()
            if config.use_mean_pooling
            else nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        )
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
            `last_hidden_state` (B, L, D), `pooler_output` (B, D), `hidden_states`, `attentions`.
        """
        weights, all_states = self.flags(output_attentions, output_hidden_states)
        keep = self.all_states() if all_states else (len(self.blocks),)
        states, attentions, _ = self.encode(pixel_values, bool_masked_pos, head_mask, keep, weights)
        last = self.norm(states[len(self.blocks)])  # (B, L, D)
        pooled = None if self.pooler is None else self.pooler(last)  # (B, D)
        hidden = tuple(states.values()) if all_states else None
        return self.finish(
            BeitModelOutputWithPooling(last, pooled, hidden, attentions if weights else None),
            return_dict,
        )


class BeitForMaskedImageModeling(BeitPreTrainedModel):
    """BEiT that predicts the visual codes of masked patches."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config, add_pooling_layer=False)
        if not config.norm_twice:
            self.beit.norm = nn.Identity()
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
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
                patches): only those of masked patches count, and none that is -100.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            interpolate_pos_encoding: Accepted for callers that pass it; positions always fit the
                image.

        Returns:
            `loss` (with labels), `logits` (B, patches, V), `hidden_states`, `attentions`.
        """
        out = self.beit(
            pixel_values,
            bool_masked_pos,
            head_mask,
            *self.flags(output_attentions, output_hidden_states),
            return_dict=True,
        )
        logits = self.lm_head(self.norm(out.last_hidden_state[:, 1:]))  # (B, patches, V)
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
    mask = None if mask is None else mask.flatten(1).to(logits.device).bool()  # (B, N)
    if labels.shape == (B, N):
        labels = labels if mask is None else labels.masked_fill(~mask, -100)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    chosen = logits.flatten(0, 1) if mask is None else logits[mask]  # (masked, V)
    if labels.numel() != chosen.shape[0]:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected ({chosen.shape[0]},), one a masked"
            f" patch, or {(B, N)}"
        )
    return F.cross_entropy(chosen, labels.flatten())


class BeitForImageClassification(BeitPreTrainedModel):
    """BEiT with a linear classifier on the pooled vector."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config)
        self.classifier = (
            nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        )
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
            `loss` (with labels), `logits` (B, V), `hidden_states`, `attentions`.
        """
        out = self.beit(
            pixel_values,
            None,
            head_mask,
            *self.flags(output_attentions, output_hidden_states),
            return_dict=True,
        )
        logits = self.classifier(out.pooler_output)  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return self.finish(
            ImageClassifierOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )
