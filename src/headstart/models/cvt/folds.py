"""CvT with everything that does not depend on the image computed beforehand.

Shapes: B images, L tokens, D hidden size, A heads, K = D // A.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.models.cvt.torch import (
    Block,
    CvtForImageClassification,
    DepthwiseConvolution,
    to_map,
)
from headstart.nn.folding import recast, with_norm


class ClassTokenBlock(Block):
    """The last block where only the class token is read.

    Its query, its branch and its MLP alone.
    """

    def forward(
        self, x: Tensor, height: int, width: int, weigh: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, L, D) → (B, L, D), of which the first token is right and the others are those
        before the block.
        """
        attention = self.attention
        B, _, D = x.shape
        y = self.layernorm_before(x)
        # (B, 1, D), (B, D, H, W)
        cls, grid = y[:, :1], to_map(y[:, 1:].contiguous(), height, width)
        q = attention.heads(attention.attention["projection_query"](cls))  # (B, A, 1, K)
        k, v = (attention.project(name, grid, cls) for name in ("key", "value"))  # (B, A, L', K)
        branch = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)  # (B, A, 1, K)
        y = attention.output["dense"](branch.transpose(1, 2).reshape(B, 1, D))  # (B, 1, D)
        first = x[:, :1] + y
        first = first + self.mlp(self.layernorm_after(first))
        return torch.cat([first, x[:, 1:]], 1), None


def fold(model: nn.Module, size: tuple[int, int] | None, *, lean: bool, portable: bool) -> None:
    """Folds batch norms into the depthwise convolutions before them.

    See `headstart.engine.folds.fold`.
    """
    for module in model.modules():
        if isinstance(module, DepthwiseConvolution):
            module.convolution = with_norm(module.convolution, module.normalization)
            module.normalization = nn.Identity()
    pooled = model.config.pooled_hidden_states  # type: ignore[union-attr]
    if lean and isinstance(model, CvtForImageClassification) and not pooled:
        *_, last = model.cvt.encoder["stages"].children()
        if last.cls_token is not None:
            recast(last.layers[-1], ClassTokenBlock)  # type: ignore[index,arg-type]
