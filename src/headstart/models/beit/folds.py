"""BEiT with everything that does not depend on the image worked out beforehand.

Shapes: B images, h w patches from top to bottom and from left to right, L = 1 + h * w tokens, D
    hidden size, A heads, K = D // A,
C channels of the decoder.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.models.beit.positions import relative_position_index, resize_table, table_matrices
from headstart.models.beit.segmentation import (
    BeitBackbone,
    BeitForSemanticSegmentation,
    ConvNorm,
    Pyramid,
)
from headstart.models.beit.torch import (
    Attention,
    BeitForImageClassification,
    BeitModel,
    Block,
    Encoder,
    Grid,
    RelativeBias,
)
from headstart.nn.folding import convolution, parameter, recast, scale_and_shift, with_norm

# a block's bias that is larger is gathered at each call: BEiT-base at 640 pixels has 1.2e8 bytes a
# block
EXPANDED_BYTES = 2**25


class FoldedAttention(Attention):
    """Attention with one bias vector for queries, keys and values, and the layer scale in its last
    matrix.
    """

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, L, D), each (B, A, L, K)."""
        B, L, D = x.shape
        q, k, v = (
            self.qkv(x)
            .view(B, L, 3, self.num_heads, D // self.num_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind()
        )
        return q, k, v


class FixedBias(RelativeBias):
    """Bias worked out for one grid of patches; other grids go the usual way."""

    size: tuple[int, int]
    fixed: Tensor | None
    fixed_table: Tensor

    def forward(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The bias (1, A, L, L)."""
        if (grid.height, grid.width) != self.size:
            return super().forward(grid, dtype)
        if self.fixed is not None:
            return self.fixed.to(dtype)
        flat = self.fixed_table.to(dtype).index_select(1, grid.rows.flatten())  # (A, L * L)
        return flat.view(1, -1, *grid.rows.shape)  # (1, A, L, L)


class _Fixed(Encoder):
    """Knows the places of the tokens of one grid of patches."""

    size: tuple[int, int]
    rows: Tensor

    def make_grid(self, height: int, width: int, device: torch.device) -> Grid:
        """Where the tokens of a grid are."""
        if (height, width) == self.size:
            return Grid(height, width, self.rows, None)
        return super().make_grid(height, width, device)


class Spelt:
    """`torch`, with equations solved in operators that every engine knows."""

    class linalg:  # noqa: N801 - the name that torch gives it
        """The part of `torch.linalg` that is needed."""

        @staticmethod
        def solve(a: Tensor, b: Tensor) -> Tensor:
            """x (N, M) with a @ x = b, of a (N, N) and b (N, M), by elimination.

            No rows change places, which the matrix of a spline at its own points does not need: it
            is totally positive (de Boor 1978).
            """
            N = a.shape[0]
            # (N, N + M), (N, N)
            both, one = torch.cat([a, b], 1), torch.eye(N, dtype=a.dtype, device=a.device)
            for i in range(N):
                row = both[i : i + 1] / both[i : i + 1, i : i + 1]  # (1, N + M)
                both = both - (both[:, i : i + 1] - one[:, i : i + 1]) * row
            return both[:, N:]

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Portable(Encoder):
    """Fits bias tables to any grid of patches in operators that every engine knows."""

    def make_grid(self, height: int, width: int, device: torch.device) -> Grid:
        """Where the tokens of a grid are."""
        c = self.config
        fit = table_matrices(Spelt(), c.grid, (height, width), c.bias_resize, c.bias_by_width)
        return Grid(
            height, width, relative_position_index(torch, height, width, device=device).int(), fit
        )


class PortableModel(_Portable, BeitModel):
    """`BeitModel` for grids of any size."""


class PortableBackbone(_Portable, BeitBackbone):
    """`BeitBackbone` for grids of any size."""


class FixedModel(_Fixed, BeitModel):
    """`BeitModel` for one grid of patches; others go the usual way."""


class FixedBackbone(_Fixed, BeitBackbone):
    """`BeitBackbone` for one grid of patches; others go the usual way."""


class LastBlock(Block):
    """The last block where only its class token, or only the mean of its patches, is read.

    The mean goes before the last matrix, which is linear: the product of one row stands for that of
    all.
    """

    mean: bool

    def forward(
        self,
        x: Tensor,
        grid: Grid | None,
        shared: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D) → (B, 1, D) the class token, or (B, 2, D) the mean of the patches twice."""
        attention, D = self.attention, x.shape[2]
        rows = slice(1, None) if self.mean else slice(0, 1)  # whose results are wanted
        y = self.norm_1(x)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q = self.split(F.linear(y[:, rows], weight[:D], bias[:D]))  # (B, A, rows, K)
        k, v = F.linear(y, weight[D:], bias[D:]).chunk(2, -1)
        score_bias = attention.score_bias(grid, shared, q.dtype)
        score_bias = None if score_bias is None else score_bias[:, :, rows]
        # (B, A, rows, K)
        branch = F.scaled_dot_product_attention(q, self.split(k), self.split(v), score_bias)
        if head_mask is not None:
            branch = branch * head_mask
        # (B, rows, D)
        x = self.add(x[:, rows], attention.proj(branch.transpose(1, 2).flatten(2)), self.lambda_1)
        inside = self.mlp.act(self.mlp.fc_1(self.norm_2(x)))  # (B, rows, 4D)
        if self.mean:
            # (B, 1, D), (B, 1, 4D)
            x, inside = x.mean(1, keepdim=True), inside.mean(1, keepdim=True)
        x = self.add(x, self.mlp.fc_2(inside), self.lambda_2)  # (B, 1, D)
        return torch.cat([x, x], 1) if self.mean else x

    def split(self, x: Tensor) -> Tensor:
        """x (B, L, D) → (B, A, L, K)."""
        return x.reshape(x.shape[0], x.shape[1], self.attention.num_heads, -1).transpose(1, 2)


class Shift(nn.Module):
    """Adds a number to each channel."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = parameter(shift.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), the same shape."""
        return x + self.shift


class FoldedConvNorm(ConvNorm):
    """Convolution and ReLU; the batch norm is in the filters and in a shift."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H, W)."""
        conv, shift = self.conv, cast(Tensor, self.norm.shift)
        return F.relu(F.conv2d(x, conv.weight, shift.flatten(), padding=conv.padding))  # type: ignore[arg-type]


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Folds biases, layer scales, tables and batch norms. See `headstart.engine.folds.fold`."""
    for module in list(model.modules()):
        if type(module) is Block:
            fold_block(module)
    encoder = next(module for module in model.modules() if isinstance(module, Encoder))
    if size is not None:
        fix_places(
            encoder, (size[0] // encoder.config.patch[0], size[1] // encoder.config.patch[1])
        )
    elif portable:
        recast(encoder, PortableBackbone if isinstance(encoder, BeitBackbone) else PortableModel)
    for module in model.modules():
        if isinstance(module, Pyramid):
            fold_pyramid(module)
    if isinstance(model, BeitForSemanticSegmentation):
        fold_decoder(model)
        if lean:
            model.auxiliary = None
            model.beit.blocks = model.beit.blocks[: max(model.blocks) + 1]
    elif lean and isinstance(model, BeitForImageClassification) and len(encoder.blocks):
        recast(encoder.blocks[-1], LastBlock, mean=bool(model.config.use_mean_pooling))


def scaled(linear: nn.Linear, scale: Tensor | None) -> nn.Linear:
    """A linear map whose output is scaled, (D_out,)."""
    if scale is not None:
        linear.weight, linear.bias = (
            parameter(linear.weight * scale[:, None]),
            parameter(linear.bias * scale),
        )
    return linear


def fold_block(block: Block) -> None:
    """Puts the layer scales into the last matrices of the branches, and the biases of queries, keys
    and values into one.
    """
    attention = block.attention
    bias = torch.cat(
        [attention.query_bias, torch.zeros_like(attention.query_bias), attention.value_bias]
    )  # (3D,)
    recast(attention, FoldedAttention).qkv.bias = parameter(bias)
    scaled(attention.proj, block.lambda_1), scaled(block.mlp.fc_2, block.lambda_2)
    block.lambda_1 = block.lambda_2 = None


def fix_places(encoder: Encoder, size: tuple[int, int]) -> None:
    """Works out the bias of every pair of tokens of one grid of patches."""
    device = encoder.cls_token.device
    grid = encoder.grid(*size, device)
    if grid is None:
        return
    recast(encoder, FixedBackbone if isinstance(encoder, BeitBackbone) else FixedModel, size=size)
    rows = relative_position_index(torch, *size, device=device).int()
    expanded = False
    for bias in [module for module in encoder.modules() if type(module) is RelativeBias]:
        table = (
            (bias.table if grid.fit is None else resize_table(torch, bias.table, *grid.fit))
            .detach()
            .t()
            .contiguous()
        )  # (A, rows)
        expanded = table.shape[0] * rows.numel() * table.element_size() <= EXPANDED_BYTES
        # (1, A, L, L)
        fixed = table.index_select(1, rows.flatten()).view(1, -1, *rows.shape) if expanded else None
        recast(bias, FixedBias, size=size, fixed=fixed, fixed_table=table)
    encoder.register_buffer("rows", rows[:0] if expanded else rows, persistent=False)


def fold_pyramid(pyramid: Pyramid) -> None:
    """Folds the batch norm of the largest level."""
    level = cast(nn.Sequential, pyramid.level_1)
    if len(level) == 4:
        level[0], level[1] = with_norm(cast(nn.ConvTranspose2d, level[0]), level[1]), nn.Identity()


def fold_decoder(model: BeitForSemanticSegmentation) -> None:
    """Folds batch norms, and the lateral convolutions into the transposed ones before them."""
    levels = [cast(nn.Sequential, getattr(model.pyramid, f"level_{i}")) for i in (1, 2)]
    for module in model.modules():
        if type(module) is ConvNorm:
            scale, shift = scale_and_shift(module.norm)
            module.conv.weight = parameter(
                (module.conv.weight.double() * scale[:, None, None, None]).to(
                    module.conv.weight.dtype
                )
            )
            recast(module, FoldedConvNorm, norm=Shift(shift.to(module.conv.weight.dtype)))
    for i, level in enumerate(levels):
        if not isinstance(level, nn.Sequential):
            continue
        up, lateral = (
            cast(nn.ConvTranspose2d, level[-1]),
            cast(FoldedConvNorm, model.decoder.laterals[i]),
        )
        matrix = lateral.conv.weight[:, :, 0, 0].double()  # (C, D)
        weight = torch.einsum("idyx,cd->icyx", up.weight.double(), matrix)
        bias = (
            matrix @ cast(Tensor, up.bias).double()
            + cast(Tensor, lateral.norm.shift).double().flatten()
        )
        level[-1], model.decoder.laterals[i] = convolution(up, weight, bias), nn.ReLU()
