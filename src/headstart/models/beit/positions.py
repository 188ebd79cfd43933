"""Where BEiT's tokens are: the index of relative positions, and the resizing of tables and embeddings to another grid of patches.

Written once for NumPy and PyTorch: `xp` is the module, and sizes may be symbolic where PyTorch exports a program of dynamic size.
Resizing is linear and acts on each axis alone, so every method is one matrix an axis.
"""

from typing import Any

CUBIC = -0.75  # the constant of bicubic interpolation in PyTorch, which the authors use for positions
# The authors search the ratio of the geometric grid by bisection between these bounds, until they are this close.
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
    y, x = (token - 1) // width, (token - 1) % width  # 2 × (L,)
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
    """(new, old): bicubic resizing as PyTorch's, without antialiasing (Keys 1981 with the constant -0.75)."""
    at = (_arange(xp, new) + 0.5) * old / new - 0.5  # (new,)
    first = xp.floor(at)
    columns = _arange(xp, old)[None, :]
    matrix: Any = 0
    for tap in (-1, 0, 1, 2):
        d = abs(at - first - tap)  # (new,)
        inner = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
        outer = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
        place = first + tap
        place = xp.where(place < 0, 0 * place, place)  # outside the grid, the border repeats
        place = xp.where(place > old - 1, 0 * place + (old - 1), place)
        matrix = matrix + xp.where(d <= 1, inner, outer)[:, None] * (place[:, None] == columns)
    return matrix  # (new, old)


def geometric_matrix(xp: Any, old: int, new: int) -> Any:
    """(new, old): resizing of a bias table's axis as the authors do when they fine-tune at another resolution.

    The old offsets -n…n are laid on a grid whose steps grow geometrically, 1, q, q², …, with q such that the ends meet the new ends;
    a cubic spline (not-a-knot) through the values there is read at the new whole offsets. Near offsets so keep their values.
    An axis that keeps its size is left as it is.
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
    """(len(at), len(points)): values of the B-splines whose knots are the points without the second and the last but one (de Boor 1978).

    Outside the points, the values at the nearest end.
    """
    at = xp.where(at < points[0], 0 * at + points[0], at)
    at = xp.where(at > points[-1], 0 * at + points[-1], at)
    knots = [points[0]] * (degree + 1) + [points[i] for i in range(2, len(points) - 2)] + [points[-1]] * (degree + 1)
    if degree == 0:
        return xp.stack([0 * at + 1], -1)
    last = len(points) - 1  # the last interval with a length; it holds its right end too
    values = [
        xp.where((knots[i] <= at) & ((at <= knots[i + 1]) if i == last else (at < knots[i + 1])), 0 * at + 1, 0 * at)
        if degree <= i <= last
        else 0 * at
        for i in range(len(knots) - 1)
    ]
    for d in range(1, degree + 1):
        values = [_raised(xp, values, knots, at, i, d) for i in range(len(values) - 1)]
    return xp.stack(values, -1)


def _raised(xp: Any, values: list[Any], knots: list[Any], at: Any, i: int, degree: int) -> Any:
    """The i-th B-spline of a degree, from those of the degree below (Cox–de Boor)."""
    left, right = knots[i + degree] - knots[i], knots[i + degree + 1] - knots[i + 1]
    # An empty interval has a spline that is 0 everywhere; the 1 only keeps the division finite.
    rise = (at - knots[i]) / xp.where(left == 0, left + 1, left)
    fall = (knots[i + degree + 1] - at) / xp.where(right == 0, right + 1, right)
    return rise * values[i] + fall * values[i + 1]


def _arange(xp: Any, size: int) -> Any:
    return xp.arange(size, dtype=xp.float64)


MATRICES = {"bilinear": bilinear_matrix, "bicubic": bicubic_matrix, "geometric": geometric_matrix}


def resize_grid(xp: Any, grid: Any, height: int, width: int, method: str) -> Any:
    """Values (h, w, C) on another grid, (height, width, C)."""
    for axis, size in ((0, height), (1, width)):
        matrix = MATRICES[method](xp, grid.shape[axis], size)
        matrix = matrix.to(grid.device, grid.dtype) if hasattr(grid, "device") and hasattr(matrix, "to") else matrix.astype(grid.dtype)
        grid = xp.einsum("yh,hwc->ywc" if axis == 0 else "xw,hwc->hxc", matrix, grid)
    return grid


def resize_table(xp: Any, table: Any, old: tuple[int, int], new: tuple[int, int], method: str, by_width: bool = False) -> Any:
    """A bias table (rows, A) for another grid of patches; the three last rows stay.

    Args:
        xp: `numpy` or `torch`.
        table: (table_rows(*old), A).
        old: Height and width of its grid, in patches.
        new: Height and width wanted.
        method: "geometric" (the authors) or "bilinear" (transformers).
        by_width: Read the rows as (dx, dy) although they are (dy, dx): what transformers does with a grid that is not square.
    """
    h, w = (2 * old[1] - 1, 2 * old[0] - 1) if by_width else (2 * old[0] - 1, 2 * old[1] - 1)
    height, width = 2 * new[0] - 1, 2 * new[1] - 1
    inner = resize_grid(xp, table[:-3].reshape(h, w, table.shape[1]), height, width, method)
    return xp.concatenate([inner.reshape(height * width, table.shape[1]), table[-3:]])


def resize_positions(xp: Any, positions: Any, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """Position embeddings (1, 1 + patches, D) for another grid of patches, bicubic; the class token's stays."""
    size = positions.shape[2]
    inner = resize_grid(xp, positions[0, 1:].reshape(*old, size), *new, "bicubic")
    return xp.concatenate([positions[:, :1], inner.reshape(1, new[0] * new[1], size)], 1)
