"""YOSO's attention on a CPU, compiled: loads `_yoso.so` (built from yoso.c beside this file) and
calls it through ctypes.

The library takes float32 and checks nothing, so everything is checked here. Half precision is
widened first; float64 and other devices keep to the definitions in PyTorch, and so does everything
where the library was not built.
"""

import ctypes
import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from headstart.errors import InputError
from headstart.models.yoso.hashing import check_hash, check_projections

# The library's numbers of the instruction sets, best first.
INSTRUCTION_SETS = {"avx512": 2, "avx2": 1, "generic": 0}

# Bytes of hash codes that may be alive at once; more heads are hashed together when their texts are
# short.
_CODES_LIMIT = 16 * 2**20

# Multiplications, about, for which it pays to wake another thread.
_WORK_OF_A_THREAD = 2**20

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("text_stride", "head_stride", "token_stride")),
    ]


class Problem(ctypes.Structure):
    """`Problem` of yoso.h, field by field."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("texts", "heads", "queries", "keys", "size", "value_size")
        ),
        *(
            (name, _Tensor)
            for name in ("query", "key", "value", "grad", "out", "g_query", "g_key", "g_value")
        ),
        ("hash_code_len", ctypes.c_int64),
        ("num_hash", ctypes.c_int64),
        ("dense", ctypes.c_void_p),
        ("signs", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("transforms", "transform_size", "threads", "scratch_limit", "normalize")
        ),
        ("parallel", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None, with a warning, where it was not built."""
    path = Path(__file__).with_name("_yoso.so")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(
            f"YOSO's compiled CPU kernel cannot be loaded ({error}); attention runs in plain"
            " PyTorch, several times slower. Installing headstart builds it where there is a C"
            " compiler (gcc or clang).",
            stacklevel=2,
        )
        return None
    loaded.yoso_problem_bytes.restype = ctypes.c_int64
    if loaded.yoso_problem_bytes() != ctypes.sizeof(Problem):
        warnings.warn(
            f"{path.name} was built from other sources; reinstall headstart. Attention runs in"
            " plain PyTorch.",
            stacklevel=2,
        )
        return None
    return loaded


@functools.cache
def instruction_sets() -> list[str]:
    """The instruction sets that this machine can run, best first.

    Empty where the library was not built.
    """
    loaded = library()
    return [
        name
        for name, number in INSTRUCTION_SETS.items()
        if loaded is not None and loaded.yoso_has_instruction_set(number)
    ]


@functools.cache
def _openmp() -> int | None:
    """Address of the OpenMP runtime that PyTorch computes with, to share its threads.

    None where it has another kind.
    """
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (
        AttributeError,
        OSError,
        TypeError,
    ):  # not GNU's interface, or no such thing as the process's own symbols
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def usable(*tensors: Tensor) -> bool:
    """Whether the library takes these tensors."""
    fits = all(x.device.type == "cpu" and x.dtype in _DTYPES and x.numel() for x in tensors)
    return fits and bool(instruction_sets())


def as_rows(x: Tensor) -> Tensor:
    """As (texts, heads, tokens, size) in float32 with a contiguous last dimension.

    Copied only where that is needed.
    """
    x = x.detach()
    if x.dim() != 4:
        x = x.reshape(1, -1, *x.shape[-2:])
    x = x.float()
    return x if x.stride(3) == 1 else x.contiguous()


def _fill(field: _Tensor, x: Tensor) -> None:
    field.data = x.data_ptr()
    field.text_stride, field.head_stride, field.token_stride, _ = x.stride()


def _run(
    name: str,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    hash_code_len: int,
    num_hash: int,
    projections: Tensor | None,
    normalize: bool = False,
) -> list[Tensor]:
    """Calls one entry point of the library and returns its outputs as (texts, heads, tokens, size)
    in float32.
    """
    rows = {field: as_rows(x) for field, x in inputs.items()}
    texts, heads, queries, size = rows["query"].shape
    keys, value_size = rows["value"].shape[2:]
    shapes = {
        "query": (texts, heads, queries, size),
        "key": (texts, heads, keys, size),
        "value": (texts, heads, keys, value_size),
        "grad": (texts, heads, queries, value_size),
    }
    for field, x in rows.items():
        if x.shape != shapes[field]:
            raise InputError(
                f"{field} has shape {tuple(x.shape)}, expected {shapes[field]} to fit the query and"
                " the value"
            )
    if max(queries, keys) >= 2**31:
        raise InputError(f"{max(queries, keys)} tokens; the kernel counts them in 32 bits")
    problem = Problem(
        texts=texts, heads=heads, queries=queries, keys=keys, size=size, value_size=value_size
    )
    results = []
    for field, like in (
        zip(outputs, ("query", "key", "value"), strict=False)
        if len(outputs) > 1
        else [(outputs[0], "grad")]
    ):
        # whatever the caller's defaults are
        results.append(torch.empty(shapes[like], dtype=torch.float32, device="cpu"))
        _fill(getattr(problem, field), results[-1])
    for field, x in rows.items():
        _fill(getattr(problem, field), x)
    problem.hash_code_len, problem.num_hash, problem.normalize = hash_code_len, num_hash, normalize
    if projections is not None:
        projections = _checked(projections, texts * heads, size, hash_code_len, num_hash)
        if projections.is_floating_point():
            problem.dense = projections.data_ptr()
        else:
            problem.signs = projections.data_ptr()
            problem.transforms, problem.transform_size = projections.shape[2:]
    work = (
        texts * heads * (queries + keys) * max(num_hash, min(queries, keys)) * (size + value_size)
    )
    problem.threads = min(torch.get_num_threads(), 1 + work // _WORK_OF_A_THREAD)
    problem.scratch_limit, problem.parallel = _CODES_LIMIT, _openmp()
    loaded = library()
    assert loaded is not None
    if getattr(loaded, name)(ctypes.byref(problem), INSTRUCTION_SETS[instruction_sets()[0]]):
        raise MemoryError(f"{name}: no memory for a text of {max(queries, keys)} tokens")
    return results


def _checked(
    projections: Tensor, rows: int, size: int, hash_code_len: int, num_hash: int
) -> Tensor:
    """Projections as the library reads them."""
    check_hash(hash_code_len, num_hash)
    check_projections(projections, rows, size, hash_code_len, num_hash)
    dtype = torch.float32 if projections.is_floating_point() else torch.int8
    return projections.detach().to("cpu", dtype).contiguous()


def sampled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
    normalize: bool = False,
) -> Tensor:
    """`sampled_sum` of sampled.py, or, with `normalize`, `sampled_rows`."""
    inputs = {"query": query, "key": key, "value": value}
    out = _run(
        "yoso_sampled_forward", inputs, ("out",), hash_code_len, num_hash, projections, normalize
    )[0]
    return out.view(*query.shape[:-1], value.shape[-1]).to(value.dtype)


def exact_forward(query: Tensor, key: Tensor, value: Tensor, hash_code_len: int) -> Tensor:
    """`exact_sum` of exact.py."""
    out = _run(
        "yoso_exact_forward",
        {"query": query, "key": key, "value": value},
        ("out",),
        hash_code_len,
        0,
        None,
    )[0]
    return out.view(*query.shape[:-1], value.shape[-1]).to(value.dtype)


_GRADS = ("g_query", "g_key", "g_value")


def sampled_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: Tensor,
    hash_code_len: int,
    num_hash: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sampled_sum_backward` of sampled.py."""
    inputs = {"query": query, "key": key, "value": value, "grad": grad}
    g_query, g_key, g_value = _run(
        "yoso_sampled_backward", inputs, _GRADS, hash_code_len, num_hash, projections
    )
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )


def exact_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, hash_code_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`exact_sum_backward` of exact.py."""
    inputs = {"query": query, "key": key, "value": value, "grad": grad}
    g_query, g_key, g_value = _run("yoso_exact_backward", inputs, _GRADS, hash_code_len, 0, None)
    return (
        g_query.view(query.shape).to(query.dtype),
        g_key.view(key.shape).to(key.dtype),
        g_value.view(value.shape).to(value.dtype),
    )
