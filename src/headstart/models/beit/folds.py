"""BEiT with everything that does not depend on the image computed beforehand.

Shapes: B images, h w patches from top to bottom and from left to right, L = 1 + h * w tokens, D
hidden size, A heads, K = D // A, C channels of the decoder.
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
    Grid,
    RelativeBias,
    Trunk,
)
from headstart.nn.folding import convolution, parameter, recast, with_norm
from headstart.nn.linear import Linear

# a block's bias that is larger is gathered at each call: BEiT-base at 640 pixels has 1.2e8 bytes a
# block
EXPANDED_BYTES = 2**25


class FoldedAttention(Attention):
    """Attention with one matrix for queries, keys and values, and layer scale in the last."""

    qkv: nn.Linear

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, L, D), each (B, A, L, K)."""
        q, k, v = self.qkv(x).chunk(3, -1)  # 3 × (B, L, D)
        return self.split(q), self.split(k), self.split(v)


class FixedBias(RelativeBias):
    """Bias computed for one grid of patches; other grids are computed as usual."""

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


class _Fixed(Trunk):
    """Holds the positions of the tokens of one grid of patches."""

    size: tuple[int, int]
    rows: Tensor

    def make_grid(self, height: int, width: int, device: torch.device) -> Grid:
        """Where the tokens of a grid are."""
        if (height, width) == self.size:
            return Grid(height, width, self.rows, None)
        return super().make_grid(height, width, device)


class Spelt:
    """`torch`, with equations solved in operators that every engine supports."""

    class linalg:  # noqa: N801 - the name that torch gives it
        """The part of `torch.linalg` that is needed."""

        @staticmethod
        def solve(a: Tensor, b: Tensor) -> Tensor:
            """x (N, M) with a @ x = b, of a (N, N) and b (N, M), by elimination.

            Rows are not exchanged (no pivoting), which the matrix of a spline at its own points
            does not need: it is totally positive (de Boor 1978).
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


class _Portable(Trunk):
    """Fits bias tables to any grid of patches in operators that every engine supports."""

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
    """`BeitModel` for one grid of patches; others are computed as usual."""


class FixedBackbone(_Fixed, BeitBackbone):
    """`BeitBackbone` for one grid of patches; others are computed as usual."""


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
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D) → (B, 1, D) the class token, or (B, 2, D) the mean of the patches twice."""
        if need_weights:
            return super().forward(x, grid, shared, head_mask, need_weights)
        attention = cast(FoldedAttention, self.attention)
        D = x.shape[2]
        rows = slice(1, None) if self.mean else slice(0, 1)  # whose results are wanted
        y = self.layernorm_before(x)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q = attention.split(F.linear(y[:, rows], weight[:D], bias[:D]))  # (B, A, rows, K)
        k, v = F.linear(y, weight[D:], bias[D:]).chunk(2, -1)
        score_bias = attention.score_bias(grid, shared, q.dtype)
        score_bias = None if score_bias is None else score_bias[:, :, rows]
        # (B, A, rows, K)
        y = F.scaled_dot_product_attention(q, attention.split(k), attention.split(v), score_bias)
        if head_mask is not None:
            y = y * head_mask
        y = attention.output["dense"](y.transpose(1, 2).flatten(2))  # (B, rows, D)
        x = self.add(x[:, rows], y, self.lambda_1)
        inside = self.act(self.intermediate["dense"](self.layernorm_after(x)))  # (B, rows, 4D)
        if self.mean:
            # (B, 1, D), (B, 1, 4D)
            x, inside = x.mean(1, keepdim=True), inside.mean(1, keepdim=True)
        x = self.add(x, self.output["dense"](inside), self.lambda_2)  # (B, 1, D)
        return torch.cat([x, x], 1) if self.mean else x, None


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Folds biases, layer scales, tables and batch norms. See `headstart.engine.folds.fold`."""
    for module in list(model.modules()):
        if type(module) is Block:
            fold_block(module)
    trunk = next(module for module in model.modules() if isinstance(module, Trunk))
    patch = trunk.config.patch
    if size is not None:
        fix_positions(trunk, (size[0] // patch[0], size[1] // patch[1]))
    elif portable:
        recast(trunk, PortableBackbone if isinstance(trunk, BeitBackbone) else PortableModel)
    for module in model.modules():
        if isinstance(module, Pyramid):
            fold_pyramid(module)
    if isinstance(model, BeitForSemanticSegmentation):
        fold_decoder(model)
        if lean:
            model.auxiliary_head = None
            trunk.encoder["layer"] = trunk.blocks[: max(model.blocks) + 1]
    elif (
        lean
        and isinstance(model, BeitForImageClassification)
        and len(trunk.blocks)
        and not model.config.pooled_hidden_states
    ):
        recast(trunk.blocks[-1], LastBlock, mean=bool(model.config.use_mean_pooling))


def scaled(linear: nn.Linear, scale: Tensor | None) -> nn.Linear:
    """A linear map whose output is scaled, (D_out,)."""
    if scale is not None:
        linear.weight, linear.bias = (
            parameter(linear.weight * scale[:, None]),
            parameter(linear.bias * scale),
        )
    return linear


def fold_block(block: Block) -> None:
    """Makes queries, keys and values one product, and scales the last matrices of the branches."""
    attention, parts = block.attention, block.attention.attention
    query, key, value = (cast(nn.Linear, parts[name]) for name in ("query", "key", "value"))
    weight = torch.cat([query.weight, key.weight, value.weight])  # (3D, D)
    bias = torch.cat([query.bias, torch.zeros_like(query.bias), value.bias])  # (3D,)
    with torch.device("meta"):
        qkv = Linear(weight.shape[1], weight.shape[0])
    qkv.weight, qkv.bias = parameter(weight), parameter(bias)
    recast(attention, FoldedAttention).qkv = qkv.train(attention.training)
    for name in ("query", "key", "value"):
        del parts[name]
    scaled(cast(nn.Linear, attention.output["dense"]), block.lambda_1)
    scaled(cast(nn.Linear, block.output["dense"]), block.lambda_2)
    block.lambda_1 = block.lambda_2 = None


def fix_positions(trunk: Trunk, size: tuple[int, int]) -> None:
    """Computes the bias of every pair of tokens of one grid of patches."""
    device = trunk.embeddings.cls_token.device
    grid = trunk.grid(*size, device)
    if grid is None:
        return
    recast(trunk, FixedBackbone if isinstance(trunk, BeitBackbone) else FixedModel, size=size)
    rows = relative_position_index(torch, *size, device=device).int()
    expanded = False
    for bias in [module for module in trunk.modules() if type(module) is RelativeBias]:
        table: Tensor = bias.relative_position_bias_table
        if grid.fit is not None:
            table = resize_table(torch, table, *grid.fit)
        table = table.detach().t().contiguous()  # (A, rows)
        expanded = table.shape[0] * rows.numel() * table.element_size() <= EXPANDED_BYTES
        # (1, A, L, L)
        fixed = table.index_select(1, rows.flatten()).view(1, -1, *rows.shape) if expanded else None
        recast(bias, FixedBias, size=size, fixed=fixed, fixed_table=table)
    trunk.register_buffer("rows", rows[:0] if expanded else rows, persistent=False)


def fold_pyramid(network: Pyramid) -> None:
    """Folds the batch norm of the largest level."""
    level = getattr(network, "fpn1", None)  # a backbone may have no pyramid
    if isinstance(level, nn.Sequential) and len(level) == 4:
        level[0] = with_norm(cast(nn.ConvTranspose2d, level[0]), level[1])
        level[1] = nn.Identity()


def fold_decoder(model: BeitForSemanticSegmentation) -> None:
    """Folds batch norms, and the lateral convolutions into the transposed ones before them."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.conv, module.bn = with_norm(module.conv, module.bn), nn.Identity()
    laterals = model.decode_head.lateral_convs
    for i, level in enumerate((model.fpn1, model.fpn2)):
        if not isinstance(level, nn.Sequential):
            continue
        up, lateral = cast(nn.ConvTranspose2d, level[-1]), cast(ConvNorm, laterals[i]).conv
        matrix = lateral.weight[:, :, 0, 0].double()  # (C, D)
        weight = torch.einsum("idyx,cd->icyx", up.weight.double(), matrix)
        bias = matrix @ cast(Tensor, up.bias).double() + cast(Tensor, lateral.bias).double()
        level[-1], laterals[i] = convolution(up, weight, bias), nn.ReLU()
