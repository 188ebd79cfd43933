"""The Triton kernels against the definitions in PyTorch: on a GPU where there is one, otherwise on
the CPU through Triton's interpreter.

The interpreter is chosen when Triton is first imported, so those tests run in a process of their
own.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import assert_close
from headstart.models.yoso import kernels, sampled
from headstart.models.yoso.attention import sampled_attention
from headstart.models.yoso.hashing import hash_codes, random_projections
from headstart.models.yoso.kernels import gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (pip install triton, where TensorFlow is not)",
)
runs_kernels = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="no GPU, and not under TRITON_INTERPRET=1"
)


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests below run in this process")
def test_through_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "-W", "ignore"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


SIGNATURES = {  # kernel: types of its tensors and numbers in order, and its constants
    "codes_kernel": (
        "*fp32 *fp32 *i32 i32 i32 i32 i32 i32",
        {"tau": 9, "BLOCK_TOKENS": 64, "BLOCK_SIZE": gpu.WIDEST, "BLOCK_HASHES": 16},
    ),
    "count_kernel": (
        "*i32 *i32 i32 i32 i32",
        {"BLOCK_TOKENS": 512, "BLOCK_BUCKETS": 128, "STEP": 64},
    ),
    "order_kernel": ("*i32 *i32 *i32 i32 i32 i32", {"BLOCK_TOKENS": 512, "STEP": 32}),
    "bucket_sums_kernel": (
        "*fp32 *i32 *i32 *fp32 i32 i32 i32 i32",
        {"BLOCK_ROWS": 16, "BLOCK_SIZE": gpu.WIDEST},
    ),
    "gather_kernel": (
        "*fp32 *i32 *fp32 i32 i32 i32 i32 fp32",
        {"BLOCK_TOKENS": 32, "BLOCK_SIZE": gpu.WIDEST},
    ),
    "through_buckets_kernel": (
        "*fp32 *fp32 *fp32 *fp32 *i32 *i32 *i32 *i32 i32 i32 i32 i32 i32 i32 i32 fp32",
        {"BLOCK_ROWS": 16, "BLOCK_DOT": gpu.WIDEST, "BLOCK_OUT": gpu.WIDEST},
    ),
}
BINARY = {"cuda": "cubin", "hip": "hsaco"}
# of one program, on the smallest GPUs since sm_80 and gfx90a
SHARED_MEMORY = {"cuda": 99 * 1024, "hip": 64 * 1024}


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    "backend, arch, warp", [("cuda", 90, 32), ("cuda", 80, 32), ("hip", "gfx942", 64)]
)
@pytest.mark.parametrize("name", SIGNATURES)
def test_compiles_for_nvidia_and_amd(name, backend, arch, warp, tmp_path, monkeypatch):
    """No GPU is needed to see that every kernel becomes machine code, and how much shared memory it
    needs for the widest heads.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    from headstart.models.yoso.kernels import gpu_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # what it is by default; unset, Triton 3.9 warns
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    kernel, (types, constants) = getattr(gpu_kernels, name), SIGNATURES[name]
    names = [argument for argument in kernel.arg_names if argument not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget(backend, arch, warp))
    assert len(compiled.asm[BINARY[backend]]) > 1000
    assert compiled.metadata.shared <= SHARED_MEMORY[backend]


@pytest.mark.parametrize("tokens, tau", [(5, 16), (32 * 65_536, 1)])
def test_grids_are_ones_that_cuda_launches(tokens, tau, monkeypatch):
    """Only the first axis of a grid may be longer than 65,535."""
    grids = []

    class Recorder:
        def __getattr__(self, name):
            return self

        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(kernels, "gpu_kernels", Recorder(), raising=False)
    x = torch.zeros(1, tokens, 1)
    gpu.sampled_backward(x, x, x, x, torch.ones(1, 3, 1, 32, dtype=torch.int8), tau, 1)
    assert len(grids) == 10 and all(axis < 2**16 for grid in grids for axis in grid[1:])


def test_what_goes_to_the_kernels(monkeypatch):
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    # tensors without memory, so that no GPU is needed
    with FakeTensorMode(allow_non_fake_inputs=True):
        widths = {
            size: gpu.usable(torch.empty(2, 7, size, device="cuda"))
            for size in (0, 1, gpu.WIDEST, gpu.WIDEST + 1)
        }
        assert widths == {0: False, 1: True, gpu.WIDEST: True, gpu.WIDEST + 1: False}
        assert not gpu.usable(torch.empty(2, 7, 8, device="cuda", dtype=torch.float64))
    assert not gpu.usable(torch.empty(2, 7, 8))


def problem(heads, queries, keys, size, value_size, near=2.0):
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, size), (keys, size), (keys, value_size), (queries, value_size)]
    query, key, value, grad = (
        torch.randn(heads, *shape, generator=generator).to(DEVICE) for shape in shapes
    )
    shared = min(queries, keys)
    key[:, :shared] += near * query[:, :shared]
    return query, key, value, grad


def definition(function, *args):
    """The same in float64, for which there is no kernel."""
    return function(
        *(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args)
    )


@needs_triton
@runs_kernels
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 21, 13, 5, 3, 2, 3),
        (1, 70, 90, 20, 17, 4, 5),
        (1, 600, 530, 8, 8, 3, 2),
    ],
    ids=str,
)
def test_forward_and_backward(shape, fast):
    heads, queries, keys, size, value_size, tau, num_hash = shape
    query, key, value, grad = problem(heads, queries, keys, size, value_size)
    projections = random_projections(
        heads, size, hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, seed=1, device=DEVICE
    )
    args = (query, key, value, projections, tau, num_hash)
    out = gpu.sampled_forward(*args)
    assert out.abs().sum() > 0
    assert_close(out, definition(sampled.sampled_sum, *args, True))
    for ours, plain in zip(
        gpu.sampled_backward(grad, *args),
        definition(sampled.sampled_sum_backward, grad, *args),
        strict=True,
    ):
        assert_close(ours, plain)


@needs_triton
@runs_kernels
def test_clustered_tokens_take_both_forms_of_a_bucket():
    query, _, value, grad = problem(1, 120, 120, 6, 6)
    query[:, :100] = query[:, :1] + 0.01 * query[:, :100]
    projections = random_projections(1, 6, hash_code_len=3, num_hash=2, seed=0, device=DEVICE)
    args = (grad, query, query.clone(), value, projections, 3, 2)
    for ours, plain in zip(
        gpu.sampled_backward(*args), definition(sampled.sampled_sum_backward, *args), strict=True
    ):
        assert_close(ours, plain)


@needs_triton
@runs_kernels
def test_groups_of_heads_and_hashes(monkeypatch):
    """Little memory: one head and one hash at a time."""
    query, key, value, grad = problem(2, 20, 30, 6, 5)
    projections = random_projections(2, 6, hash_code_len=3, num_hash=3, seed=0, device=DEVICE)
    args = (query, key, value, projections, 3, 3)
    at_once = [gpu.sampled_forward(*args), *gpu.sampled_backward(grad, *args)]
    monkeypatch.setattr(gpu, "_GROUP_BYTES", 1)
    for ours, expected in zip(
        [gpu.sampled_forward(*args), *gpu.sampled_backward(grad, *args)], at_once, strict=True
    ):
        assert_close(ours, expected, 1e-6)


@needs_triton
@runs_kernels
@pytest.mark.parametrize("tau", [3, 8])
def test_codes_and_order(tau):
    query, _, _, _ = problem(2, 75, 75, 20, 1)
    projections = random_projections(
        2, 20, hash_code_len=tau, num_hash=5, use_fast_hash=False, seed=0, device=DEVICE
    )
    side = gpu._side(query, projections, 1, 3, 5, tau)
    expected = hash_codes(query.double(), projections, hash_code_len=tau, num_hash=5)[
        :, :, 1:4
    ].transpose(1, 2)
    assert torch.equal(side.codes, expected.contiguous())
    assert torch.equal(side.order.long(), expected.sort(dim=-1, stable=True).indices)
    assert torch.equal(
        side.starts[:, :, -1], torch.full((2, 3), 75, dtype=torch.int32, device=DEVICE)
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_agrees_with_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, 3000, 64, generator=generator).to(dtype) for _ in range(3)
    )
    options = {"hash_code_len": 9, "num_hash": 32, "seed": 0}
    with torch.no_grad():
        ours = sampled_attention(query.cuda(), key.cuda(), value.cuda(), **options).float().cpu()
        expected = sampled_attention(query, key, value, **options).float()
    agree = (
        ((ours - expected).abs().amax(-1) < (1e-3 if dtype == torch.float32 else 3e-2))
        .float()
        .mean()
    )
    assert agree > 0.98  # a bit within rounding of zero may fall either way
