"""Rows of length one."""

import torch
from torch import Tensor

# Rows shorter than this are taken for zero; the gradient of their direction would be noise times
# 1e12. The CPU kernel has it too.
_SHORTEST_ROW = 1e-12


def normalize_rows(x: Tensor) -> Tensor:
    """The last dimension scaled to length one; rows of zeros stay zeros and get no gradient."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * row_scale(wide)).to(x.dtype)


def row_scale(x: Tensor) -> Tensor:
    """One over the length of every row (…, 1), or zero."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    nonzero = length > _SHORTEST_ROW
    return torch.where(nonzero, length, 1.0).reciprocal().where(nonzero, 0.0)
