"""Where BEiT's tokens are: the index of relative positions, and the resizing of tables and
embeddings to another grid of patches.

Written once for NumPy and PyTorch: `xp` is the module, and sizes may be symbolic where PyTorch
exports a program of dynamic size. Resizing is linear and acts on each axis alone, so every method
is one matrix an axis.
"""

from typing import Any

# the constant of bicubic interpolation in PyTorch, which the authors use for positions
CUBIC = -0.75
# The authors search the ratio of the geometric grid by bisection between these bounds, until they
# are this close.
LOWEST_RATIO, HIGHEST_RATIO, RATIO_STEPS = 1.01, 1.5, 19


def relative_position_index(xp: Any, height: int, width: int, **where: Any) -> Any:
    """Row of the bias table for each (query, key) pair of tokens.

    The rows run over (dy, dx), then three more: class→patch, patch→class, class→class.

    Args:
        xp: `numpy` or `torch`.
        height: Patches from top to bottom.
        width: Patches from left to right.
        **where: `device` for torch.

    Returns:
        Integers of shape (L, L), with L = 1 + height * width.
    """
    token = xp.arange(height * width + 1, **where)  # (L,), the class token first
    y = (token - 1) // width  # (L,)
    x = token - 1 - y * width  # (L,); the exporter to ONNX knows no remainder by an open size
    dy = y[:, None] - y[None, :] + height - 1  # (L, L), from 0 to 2 * height - 2
    dx = x[:, None] - x[None, :] + width - 1  # (L, L), from 0 to 2 * width - 2
    rows = (2 * height - 1) * (2 * width - 1)
    query, key = (token == 0)[:, None], (token == 0)[None, :]  # (L, 1), (1, L)
    # 0 where both are patches, else 1, 2 or 3 for the three last rows.
    special = query * 1 + key * 2
    return xp.where(special == 0, dy * (2 * width - 1) + dx, rows - 1 + special)  # (L, L)


def table_rows(height: int, width: int) -> int:
    """Rows of the bias table of a grid."""
    return (2 * height - 1) * (2 * width - 1) + 3


def bilinear_matrix(xp: Any, old: int, new: int) -> Any:
    """(new, old): bilinear resizing, pixel centres aligned."""
    at = (_arange(xp, new) + 0.5) * old / new - 0.5  # (new,)
    at = xp.where(at < 0, 0 * at, at)
    at = xp.where(at > old - 1, 0 * at + (old - 1), at)
    near = 1 - abs(at[:, None] - _arange(xp, old)[None, :])  # (new, old)
    return xp.where(near < 0, 0 * near, near)


def bicubic_matrix(xp: Any, old: int, new: int) -> Any:
    """(new, old).

    Bicubic resizing as PyTorch's, without antialiasing (Keys 1981 with the constant -0.75).
    """
    at = (_arange(xp, new) + 0.5) * old / new - 0.5  # (new,)
    first = xp.floor(at)
    columns = _arange(xp, old)[None, :]
    matrix: Any = 0
    for tap in (-1, 0, 1, 2):
        d = abs(at - first - tap)  # (new,)
        inner = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
        outer = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
        position = first + tap
        position = xp.where(
            position < 0, 0 * position, position
        )  # outside the grid, the border repeats
        position = xp.where(position > old - 1, 0 * position + (old - 1), position)
        matrix = matrix + xp.where(d <= 1, inner, outer)[:, None] * (position[:, None] == columns)
    return matrix  # (new, old)


def geometric_matrix(xp: Any, old: int, new: int) -> Any:
    """(new, old): resizing of a bias table's axis as the authors do when they fine-tune at another
    resolution.

    The old offsets -n…n are laid on a grid whose steps grow geometrically, 1, q, q², …, with q such
    that the ends meet the new ends; a cubic spline (not-a-knot) through the values there is read at
    the new whole offsets. Near offsets so keep their values. An axis that keeps its size is left as
    it is.
    """
    count = old // 2
    offsets = _arange(xp, new) - new // 2  # (new,)
    end = abs(offsets[:1])  # (1,)
    low, high = 0 * end + LOWEST_RATIO, 0 * end + HIGHEST_RATIO
    for _ in range(RATIO_STEPS):
        middle = (low + high) / 2
        too_far = (1 - middle**count) / (1 - middle) > end
        low, high = xp.where(too_far, low, middle), xp.where(too_far, middle, high)
    ratio = (low + high) / 2 if count == 0 else middle
    whole = _arange(xp, old) - count  # (old,)
    steps = abs(whole)
    grown = (1 - ratio**steps) / (1 - ratio)
    points = xp.where(end == count, whole, xp.where(whole < 0, -grown, grown))  # (old,)
    degree = min(3, old - 1)
    basis = _splines(xp, points, points, degree)  # (old, old)
    return xp.linalg.solve(basis.T, _splines(xp, points, offsets, degree).T).T  # (new, old)


def _splines(xp: Any, points: Any, at: Any, degree: int) -> Any:
    """(len(at), len(points)): values of the B-splines whose knots are the points without the second
    and the last but one (de Boor 1978).

    Outside the points, the values at the nearest end.
    """
    count = len(points)
    if degree == 0:
        return 0 * at[:, None] + 1
    ends = degree + 1
    # (count + degree + 1,)
    knots = points[[0] * ends + list(range(2, count - 2)) + [count - 1] * ends]
    at = xp.where(at < points[0], 0 * at + points[0], at)
    at = xp.where(at > points[-1], 0 * at + points[-1], at)[:, None]
    within = (knots[:-1] <= at) & (at < knots[1:])
    # the last interval holds its right end too
    within = within | ((at == points[-1]) & (_arange(xp, count + degree) == count - 1))
    values = within * (0 * at + 1)
    for d in range(1, degree + 1):  # Cox–de Boor: each spline from two of the degree below
        length = knots[d:] - knots[:-d]
        # an empty interval has a spline that is 0 everywhere
        length = xp.where(length == 0, length + 1, length)
        rise = (at - knots[: -d - 1]) / length[:-1] * values[:, :-1]
        values = rise + (knots[d + 1 :] - at) / length[1:] * values[:, 1:]
    return values


def _arange(xp: Any, size: int) -> Any:
    return xp.arange(size, dtype=xp.float64)


MATRICES = {"bilinear": bilinear_matrix, "bicubic": bicubic_matrix, "geometric": geometric_matrix}


def as_type(matrix: Any, like: Any) -> Any:
    """A matrix in the type, and on the device, of another array of its kind."""
    return (
        matrix.to(like.device, like.dtype) if hasattr(matrix, "to") else matrix.astype(like.dtype)
    )


def resize_grid(xp: Any, grid: Any, rows: Any, columns: Any) -> Any:
    """Values (h, w, C) on another grid, (H, W, C), by the axes' matrices, (H, h) and (W, w)."""
    return xp.einsum(
        "xw,ywc->yxc", as_type(columns, grid), xp.einsum("yh,hwc->ywc", as_type(rows, grid), grid)
    )


def table_matrices(
    xp: Any, old: tuple[int, int], new: tuple[int, int], method: str, by_width: bool = False
) -> tuple[Any, Any]:
    """What `resize_table` multiplies by.

    Args:
        xp: `numpy` or `torch`.
        old: Height and width, in patches, of the grid that the table is made for.
        new: Height and width wanted.
        method: "geometric" (the authors) or "bilinear" (transformers).
        by_width: Read the rows of the table as (dx, dy) although they are (dy, dx): what
            transformers does with a grid that is not square.
    """
    height, width = reversed(old) if by_width else old
    make = MATRICES[method]
    return make(xp, 2 * height - 1, 2 * new[0] - 1), make(xp, 2 * width - 1, 2 * new[1] - 1)


def resize_table(xp: Any, table: Any, rows: Any, columns: Any) -> Any:
    """A bias table (rows, A) for another grid of patches, by `table_matrices`.

    The three last rows stay.
    """
    heads = table.shape[1]
    inner = resize_grid(
        xp, table[:-3].reshape(rows.shape[1], columns.shape[1], heads), rows, columns
    )
    return xp.concatenate([inner.reshape(rows.shape[0] * columns.shape[0], heads), table[-3:]])


def resize_positions(
    xp: Any, positions: Any, old: tuple[int, int], new: tuple[int, int], of_matrices: Any = None
) -> Any:
    """Position embeddings (1, 1 + patches, D) for another grid of patches, bicubic; the class
    token's stays.

    `of_matrices` is the module that makes the matrices, where `xp` has no float64.
    """
    size = positions.shape[2]
    rows, columns = (
        bicubic_matrix(of_matrices or xp, *sides) for sides in zip(old, new, strict=True)
    )
    inner = resize_grid(xp, positions[0, 1:].reshape(*old, size), rows, columns)
    return xp.concatenate([positions[:, :1], inner.reshape(1, new[0] * new[1], size)], 1)
