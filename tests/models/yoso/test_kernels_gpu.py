"""The Triton kernels against the definitions in PyTorch: on a GPU where there is one, otherwise on
the CPU through Triton's interpreter; and whether they compile for GPUs that are not here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import assert_close
from headstart.models.yoso import exact, kernels, sampled
from headstart.models.yoso.attention import (
    exact_attention,
    exact_attention_plain,
    sampled_attention,
)
from headstart.models.yoso.hashing import hash_codes, random_projections
from headstart.models.yoso.kernels import cpu, gpu, gpu_exact
from headstart.models.yoso.rows import normalize_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="runs in a process of its own: Triton and TensorFlow abort in one",
)
runs_kernels = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="no GPU, and not under TRITON_INTERPRET=1"
)
# `make triton` installs Triton there, outside of what every process imports.
TRITON = Path(sys.prefix) / "triton"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests below run in this process")
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not TRITON.exists(),
    reason="Triton is not installed (make triton does, into .venv/triton)",
)
@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreter", "compiler"])
def test_in_a_process_of_its_own(interpreted):
    """The interpreter is chosen, by TRITON_INTERPRET=1, when Triton is first imported."""
    if not interpreted and importlib.util.find_spec("triton") is not None:
        pytest.skip("the compiler's tests run in this process")
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(TRITON)]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(interpreted))}
    command = [sys.executable, "-m", "pytest", __file__, "-W", "ignore", "-v"]
    command += ["-k", "not process_of_its_own"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed > 20, done.stdout


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Triton's interpreter holds bfloat16 as integers and multiplies those; here it widens them."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def create_dot(self, a, b, *rest):
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


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
SIGNATURES |= {  # the same with bfloat16 inputs
    f"{name} bf16": (types.replace("fp32", "bf16", count), SIGNATURES[name][1])
    for name, types, count in (
        ("codes_kernel", SIGNATURES["codes_kernel"][0], 1),
        ("bucket_sums_kernel", SIGNATURES["bucket_sums_kernel"][0], 2),
        ("gather_kernel", SIGNATURES["gather_kernel"][0], 1),
        ("through_buckets_kernel", SIGNATURES["through_buckets_kernel"][0], 3),
    )
}
EXACT = {"forward_kernel": 4, "query_gradient_kernel": 5, "key_gradient_kernel": 6}  # tensors
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
def test_compiles_for_nvidia_and_amd(name, backend, arch, warp, tmp_path):
    """No GPU is needed to see that every kernel becomes machine code, and how much shared memory it
    needs for the widest heads.
    """
    from headstart.models.yoso.kernels import gpu_kernels

    types, constants = SIGNATURES[name]
    kernel = getattr(gpu_kernels, name.split()[0])
    compiled = compile_kernel(kernel, types, constants, (backend, arch, warp), tmp_path)
    assert len(compiled.asm[BINARY[backend]]) > 1000
    assert compiled.metadata.shared <= SHARED_MEMORY[backend]


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("target", [("cuda", 90, 32), ("cuda", 80, 32), ("hip", "gfx942", 64)])
@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 64), (torch.float32, gpu.WIDEST)])
@pytest.mark.parametrize("name", EXACT)
def test_exact_attention_compiles_for_nvidia_and_amd(name, dtype, size, target, tmp_path):
    from headstart.models.yoso.kernels import gpu_exact_kernels

    block, other = gpu_exact.tiles(dtype, size)
    queries, keys = (other, block) if name == "key_gradient_kernel" else (block, other)
    constants = {"tau": 9, "BLOCK_QUERIES": queries, "BLOCK_KEYS": keys}
    constants |= {"BLOCK_SIZE": size, "BLOCK_VALUE": size}
    pointer = {torch.bfloat16: "*bf16 ", torch.float32: "*fp32 "}[dtype]
    kernel, types = getattr(gpu_exact_kernels, name), pointer * EXACT[name] + "i32 i32 i32 i32"
    launched = {"num_warps": gpu_exact.WARPS, "num_stages": gpu_exact.STAGES}
    compiled = compile_kernel(kernel, types, constants, target, tmp_path, launched)
    assert len(compiled.asm[BINARY[target[0]]]) > 1000
    assert compiled.metadata.shared <= SHARED_MEMORY[target[0]]
    if target[1] == 90 and dtype == torch.bfloat16:
        assert "wgmma" in compiled.asm["ptx"], "bfloat16 does not run on tensor cores"


def compile_kernel(kernel, types, constants, target, cache, options=None):
    import triton
    from triton.backends.compiler import GPUTarget

    names = [argument for argument in kernel.arg_names if argument not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # the default; unset, Triton 3.9 warns
        return triton.compile(source, target=GPUTarget(*target), options=options)


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
    side = gpu.one_side(query, projections, 1, 3, 5, tau)
    expected = hash_codes(query.double(), projections, hash_code_len=tau, num_hash=5)[
        :, :, 1:4
    ].transpose(1, 2)
    assert torch.equal(side.codes, expected.contiguous())
    assert torch.equal(side.order.long(), expected.sort(dim=-1, stable=True).indices)
    assert torch.equal(
        side.starts[:, :, -1], torch.full((2, 3), 75, dtype=torch.int32, device=DEVICE)
    )


def exact_problem(heads, queries, keys, size, value_size, dtype=torch.float32):
    """As `problem`, with rows of length one."""
    query, key, value, grad = problem(heads, queries, keys, size, value_size)
    query, key = normalize_rows(query), normalize_rows(key)
    return [x.to(dtype) for x in (grad, query, key, value)]


@needs_triton
@runs_kernels
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 1, 1), (2, 21, 13, 5, 3, 2), (1, 150, 90, 20, 17, 9), (1, 40, 70, 100, 128, 16)],
    ids=str,
)
def test_exact_forward_and_backward(shape, dtype, tolerance):
    """bfloat16 is held to the definition at the rounded inputs: what is left is the rounding of
    weights and results.
    """
    *sizes, tau = shape
    args = (*exact_problem(*sizes, dtype), tau)
    out = gpu_exact.exact_forward(*args[1:])
    assert out.dtype == dtype and out.abs().sum() > 0
    assert_close(out.double(), definition(exact.sum_in_blocks, *args[1:]), tolerance)
    for ours, plain in zip(
        gpu_exact.exact_backward(*args), definition(exact.gradients_in_blocks, *args), strict=True
    ):
        assert ours.dtype == dtype
        assert_close(ours.double(), plain, tolerance)


@needs_triton
@runs_kernels
def test_exact_attention_where_queries_equal_keys():
    """The weight is 1 up to tau / pi times the root of twice the rounding of the cosine."""
    query, _, value, grad = problem(1, 40, 40, 20, 17)
    query = normalize_rows(query)
    args = (grad, query, query.clone(), value, 9)
    pairs = [
        (gpu_exact.exact_forward(*args[1:]), definition(exact.sum_in_blocks, *args[1:])),
        *zip(
            gpu_exact.exact_backward(*args),
            definition(exact.gradients_in_blocks, *args),
            strict=True,
        ),
    ]
    for ours, expected in pairs:
        assert_close(ours.double(), expected, 3e-3)


@needs_triton
@runs_kernels
@pytest.mark.parametrize("tau, bound", [(1, 1.3e-7), (9, 6e-7), (16, 8e-7)])
def test_the_polynomial_of_the_weights(tau, bound):
    """Its largest measured error, over cosines from -1 to 1 that are closer together at the ends,
    where the arccosine is steep.
    """
    angle = torch.linspace(0, torch.pi, 40 * 128, dtype=torch.float64)
    cosine = angle.cos().float().view(40, 128)
    key = torch.stack([cosine, (1 - cosine**2).sqrt()], -1).to(DEVICE)  # (40, 128, 2)
    query = torch.tensor([1.0, 0.0], device=DEVICE).expand(40, 1, 2)
    value = torch.eye(128, device=DEVICE).expand(40, 128, 128)
    weights = gpu_exact.exact_forward(query, key, value, tau)[:, 0].cpu()
    expected = exact.collision_probability(cosine.double(), tau)
    assert (weights.double() - expected).abs().max() < bound


@pytest.fixture
def through_kernels(monkeypatch):
    """Takes all but float64 for tensors on a GPU; counts the calls."""
    calls = []

    def usable(*tensors):
        calls.append(len(tensors))
        return all(x.dtype != torch.float64 for x in tensors)

    monkeypatch.setattr(cpu, "usable", lambda *tensors: False)
    monkeypatch.setattr(gpu, "usable", usable)
    return calls


@needs_triton
@runs_kernels
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_exact_attention_with_masks(dtype, tolerance, through_kernels):
    """Lengths, normalization and the kernels together, forward and backward."""
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(2, 3, 70, 12, generator=generator).to(DEVICE, dtype) for _ in range(4)]
    mask = torch.ones(2, 70, device=DEVICE)
    mask[0, 50:], mask[1, 3] = 0, 0
    results = []
    for attend, tensors in (
        (exact_attention, given),
        (exact_attention_plain, [x.double() for x in given]),
    ):
        *inputs, grad = (x.clone().requires_grad_() for x in tensors)
        out = attend(*inputs, hash_code_len=9, mask=mask)
        results.append([out, *torch.autograd.grad(out, inputs, grad.detach())])
    assert through_kernels == [3, 4]
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.detach().double(), expected.detach(), tolerance)
    assert not results[0][0][0, :, 50:].any() and not results[0][1][1, :, 3].any()


@needs_triton
@runs_kernels
def test_higher_derivatives_and_transforms_of_exact_attention(through_kernels):
    """They run as the definition, which PyTorch differentiates."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, 9, 4, generator=generator).to(DEVICE) for _ in range(3))

    def total(attend, query):
        return attend(query, key, value, hash_code_len=4).pow(3).sum()

    def second(attend):
        x = query.clone().requires_grad_()
        (first,) = torch.autograd.grad(total(attend, x), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    assert_close(second(exact_attention), second(exact_attention_plain))
    assert through_kernels
    through_kernels.clear()
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        ours, expected = (
            transform(lambda x, attend=attend: total(attend, x))(query)
            for attend in (exact_attention, exact_attention_plain)
        )
        assert_close(ours, expected)
    assert not through_kernels


@needs_triton
@runs_kernels
def test_bfloat16_tables_add_little_to_the_error_of_sampling():
    """The error of rounding tables and results to bfloat16, beside that of sampling."""
    tau, num_hash = 3, 16
    query, key, value, grad = problem(1, 60, 60, 8, 8, near=1.0)
    args = [normalize_rows(query), normalize_rows(key), value]
    projections = random_projections(1, 8, hash_code_len=tau, num_hash=num_hash, seed=0)
    projections = projections.to(DEVICE)
    grad, *args = (x.bfloat16() for x in (grad, *args))
    ours = [
        gpu.sampled_forward(*args, projections, tau, num_hash),
        *gpu.sampled_backward(grad, *args, projections, tau, num_hash),
    ]
    assert all(x.dtype == torch.bfloat16 for x in ours)
    wide = [x.double() for x in (grad, *args)]
    sampled_exactly = [
        sampled.sampled_sum(*wide[1:], projections, tau, num_hash, True),
        *sampled.sampled_sum_backward(*wide, projections, tau, num_hash),
    ]
    expected = [exact.sum_in_blocks(*wide[1:], tau), *exact.gradients_in_blocks(*wide, tau)]
    for rounded, noisy, right in zip(ours, sampled_exactly, expected, strict=True):
        of_rounding, of_sampling = (
            (x.double() - y).norm() for x, y in ((rounded, noisy), (noisy, right))
        )
        assert of_rounding < of_sampling / 20


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
