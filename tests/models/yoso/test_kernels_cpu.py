"""The compiled CPU kernel.

Every instruction set of this machine against the definitions in PyTorch, at odd sizes.
"""

import ctypes
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch

from conftest import assert_close
from headstart.errors import InputError
from headstart.models.yoso import exact, sampled
from headstart.models.yoso.attention import sampled_attention
from headstart.models.yoso.hashing import hash_codes, random_projections
from headstart.models.yoso.kernels import cpu

SETS = list(cpu.INSTRUCTION_SETS)

# texts, heads, queries, keys, head size, value size, hash_code_len, num_hash
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, 1),
    (2, 3, 7, 11, 5, 3, 2, 5),
    (1, 2, 100, 37, 64, 64, 9, 7),
    # few buckets, more than one block of tokens, more tokens than buckets
    (1, 2, 700, 600, 20, 33, 3, 6),
    (2, 1, 50, 90, 130, 70, 16, 4),  # the longest codes, a transform of 256
    (1, 1, 300, 300, 32, 16, 8, 33),
    (1, 5, 33, 65, 17, 31, 5, 9),
    (1, 1, 9000, 8000, 8, 40, 2, 9),  # a long text, in blocks
    (1, 1, 8500, 9000, 16, 33, 13, 6),  # and with tables for four hashes at a time
]


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    """Runs a test under one instruction set; "torch" is not among them."""
    available = cpu.instruction_sets()
    assert available, "the compiled kernel was not built: run `pip install -e .` with a C compiler"
    if request.param not in available:
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(cpu, "instruction_sets", lambda: [request.param])
    # as many threads as requested, even for small problems
    monkeypatch.setattr(cpu, "_WORK_OF_A_THREAD", 1)
    return request.param


def in_torch(function, *args):
    """The same call by the definition in PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "usable", lambda *tensors: False)
        return function(*args)


def problem(texts, heads, queries, keys, size, value_size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(queries, size), (keys, size), (keys, value_size), (queries, value_size)]
    query, key, value, grad = (
        torch.randn(texts, heads, *shape, generator=generator).to(dtype) for shape in shapes
    )
    shared = min(queries, keys)
    key[:, :, :shared] += 2 * query[:, :, :shared]  # so that codes of 16 bits meet, too
    return query, key, value, grad


def clear_projections(tensors, rows, size, tau, num_hash, fast):
    """Projections under which no bit of these tensors is within rounding of zero, where two right
    answers exist.
    """
    for seed in range(1000):
        projections = random_projections(
            rows, size, hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, seed=seed
        )
        wide = [
            hash_codes(x.flatten(0, 1).double(), projections, hash_code_len=tau, num_hash=num_hash)
            for x in tensors
        ]
        turned = [
            hash_codes(x.flatten(0, 1), projections, hash_code_len=tau, num_hash=num_hash)
            for x in tensors
        ]
        if all(torch.equal(a, b) for a, b in zip(wide, turned, strict=True)):
            return projections
    raise AssertionError("no clear projections found")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_sampled(instruction_set, number, fast):
    shape, threads = SHAPES[number], 1 + 2 * (number % 2)
    texts, heads, _, _, size, _, tau, num_hash = shape
    query, key, value, grad = problem(*shape[:6])
    projections = clear_projections((query, key), texts * heads, size, tau, num_hash, fast)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = sampled.sampled_sum(query, key, value, projections, tau, num_hash, True)
        grads = sampled.sampled_sum_backward(grad, query, key, value, projections, tau, num_hash)
    finally:
        torch.set_num_threads(before)
    expected = in_torch(sampled.sampled_sum, query, key, value, projections, tau, num_hash, True)
    # A bit within rounding of zero may fall either way: a code of one token in one hash, in a few
    # thousand.
    differ = (
        ((out - expected).abs() > 1e-5 * max(1.0, expected.abs().max()))
        .flatten(0, -2)
        .any(-1)
        .float()
        .mean()
        .item()
    )
    assert differ <= 0.002, f"{differ:.2%} of the rows differ"
    if differ == 0:
        assert out.abs().sum() > 0
        expected = in_torch(
            sampled.sampled_sum_backward, grad, query, key, value, projections, tau, num_hash
        )
        for ours, plain in zip(grads, expected, strict=True):
            assert_close(ours, plain, 1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape", [SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[4], (1, 1, 500, 300, 24, 8, 17, 1)], ids=str
)
def test_exact(instruction_set, shape, threads):
    tau = shape[6]
    query, key, value, grad = problem(*shape[:6])
    query, key = (
        torch.nn.functional.normalize(query, dim=-1),
        torch.nn.functional.normalize(key, dim=-1),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = [
            exact.exact_sum(query, key, value, tau),
            *exact.exact_sum_backward(grad, query, key, value, tau),
        ]
    finally:
        torch.set_num_threads(before)
    wide = [x.double() for x in (query, key, value)]
    expected = [exact.exact_sum(*wide, tau), *exact.exact_sum_backward(grad.double(), *wide, tau)]
    for ours, plain in zip(results, expected, strict=True):
        assert_close(ours, plain, 1e-5)


@pytest.mark.parametrize("cosine", [-1.0, -0.999, -0.3, 0.0, 0.3, 0.7, 0.999, 1.0])
def test_weight_of_one_similarity(instruction_set, cosine):
    """The polynomial for arccos, relative to the weight itself."""
    query = torch.tensor([[[1.0, 0.0]]])
    key = torch.tensor([[[cosine, 0.0]]])
    ours = exact.exact_sum(query, key, torch.ones(1, 1, 1), 8).item()
    expected = exact.collision_probability(torch.tensor(cosine).double(), 8).item()
    assert ours == pytest.approx(expected, rel=5e-5, abs=1e-30)


def test_clustered_tokens_take_both_forms_of_a_bucket(instruction_set):
    """A bucket of most tokens goes through matrices, small ones go pair by pair.

    Both give the definition's gradients.
    """
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(1, 2, 400, 16, generator=generator)
    query[:, :, :300] = query[:, :, :1] + 0.01 * query[:, :, :300]
    _, _, value, grad = problem(1, 2, 400, 400, 16, 16)
    projections = random_projections(2, 16, hash_code_len=6, num_hash=5, seed=4)
    args = (grad, query, query.clone(), value, projections, 6, 5)
    for ours, plain in zip(
        sampled.sampled_sum_backward(*args),
        in_torch(sampled.sampled_sum_backward, *args),
        strict=True,
    ):
        assert_close(ours, plain, 1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_codes_are_the_definition(instruction_set, fast):
    """Read off the sums.

    With one unit vector a value, the sum of a query shows which keys it met.
    """
    size, tokens, tau, num_hash = 48, 200, 5, 1
    query, key, _, _ = problem(1, 1, tokens, tokens, size, 1)
    projections = clear_projections((query, key), 1, size, tau, num_hash, fast)
    q_codes, k_codes = (
        hash_codes(x[0].double(), projections, hash_code_len=tau, num_hash=num_hash)[0, :, 0]
        for x in (query, key)
    )
    met = sampled.sampled_sum(
        query[0], key[0], torch.eye(tokens)[None], projections, tau, num_hash, True
    )[0]
    assert torch.equal(met, (q_codes[:, None] == k_codes[None]).float())


def test_rows_of_length_one(instruction_set):
    """Without gradients the kernel scales the rows itself; queries that met nobody stay zero."""
    query, key, value, _ = problem(2, 2, 700, 40, 16, 37)
    key[1] = -100 * query[1].mean(1, keepdim=True)  # one bucket, which hardly any query shares
    args = (query, key, value, random_projections(4, 16, hash_code_len=9, num_hash=3, seed=1), 9, 3)
    got, sums = sampled.sampled_rows(*args), sampled.sampled_sum(*args, True)
    lengths = sums.norm(dim=-1, keepdim=True)
    assert (lengths == 0).any() and (lengths > 0).any()
    assert_close(got, torch.where(lengths > 0, sums / lengths.clamp(min=1e-30), 0.0))
    assert_close(got, in_torch(sampled.sampled_rows, *args), 1e-4)


def test_time_is_linear_however_tokens_cluster(instruction_set):
    """Eight times the tokens in four buckets: about eight times the time, forward and backward.

    Pair by pair it would be 64 times.
    """

    def seconds(tokens):
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(1, 1, 4, 32, generator=generator).repeat(1, 1, tokens // 4, 1)
        value = torch.randn(1, 1, tokens, 32, generator=generator)
        projections = random_projections(1, 32, hash_code_len=8, num_hash=4, seed=0)
        times = []
        for _ in range(3):
            start = time.process_time()
            sampled.sampled_sum(query, query, value, projections, 8, 4, True)
            sampled.sampled_sum_backward(value, query, query, value, projections, 8, 4)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(32_768) < 24 * seconds(4096)


def test_strided_inputs_are_read_in_place(instruction_set):
    """(texts, tokens, heads, size) turned around, as a model has them."""
    query, key, value, grad = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in problem(2, 3, 40, 40, 16, 16)
    )
    projections = random_projections(6, 16, hash_code_len=4, num_hash=8, seed=0)
    args = (query, key, value, projections, 4, 8)
    assert not query.is_contiguous() and cpu.as_rows(query).data_ptr() == query.data_ptr()
    assert_close(sampled.sampled_sum(*args, True), in_torch(sampled.sampled_sum, *args, True))
    for ours, plain in zip(
        sampled.sampled_sum_backward(grad, *args),
        in_torch(sampled.sampled_sum_backward, grad, *args),
        strict=True,
    ):
        assert_close(ours, plain)
    assert_close(
        exact.exact_sum(query, key, value, 4), in_torch(exact.exact_sum, query, key, value, 4), 1e-4
    )


def test_waves_of_heads(instruction_set, monkeypatch):
    """Little room for codes: heads are worked on in several waves."""
    query, key, value, grad = problem(2, 5, 30, 30, 8, 8)
    projections = random_projections(10, 8, hash_code_len=4, num_hash=6, seed=0)
    args = (grad, query, key, value, projections, 4, 6)
    at_once = sampled.sampled_sum_backward(*args)
    monkeypatch.setattr(cpu, "_CODES_LIMIT", 1)
    for ours, expected in zip(sampled.sampled_sum_backward(*args), at_once, strict=True):
        assert_close(ours, expected, 1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision(instruction_set, dtype, tolerance):
    query, key, value, grad = problem(1, 2, 40, 40, 16, 16, dtype=dtype)
    projections = random_projections(2, 16, hash_code_len=4, num_hash=8, seed=0)
    args = (query, key, value, projections, 4, 8)
    out = sampled.sampled_sum(*args, True)
    assert out.dtype == dtype
    assert_close(out, in_torch(sampled.sampled_sum, *args, True), tolerance)
    assert all(x.dtype == dtype for x in sampled.sampled_sum_backward(grad, *args))


def test_threads_are_pytorchs(monkeypatch):
    """As many as `torch.set_num_threads` says, and one where there is little to do."""
    requested, before = [], torch.get_num_threads()

    class Library:
        def yoso_exact_forward(self, problem, instruction_set):
            requested.append(problem._obj.threads)
            return 0

    monkeypatch.setattr(cpu, "library", Library)
    monkeypatch.setattr(cpu, "instruction_sets", lambda: ["generic"])
    try:
        for threads, tokens in ((1, 1000), (3, 1000), (7, 1000), (7, 5)):
            torch.set_num_threads(threads)
            cpu.exact_forward(*torch.zeros(3, 1, 2, tokens, 16), 8)
    finally:
        torch.set_num_threads(before)
    assert requested == [1, 3, 7, 1]


MEMORY = """
import resource, torch
from headstart.models.yoso.hashing import random_projections
from headstart.models.yoso.kernels import cpu
projections = random_projections(1, 32, hash_code_len=9, num_hash=8, seed=0)
def peak(tokens):
    x = torch.randn(1, 1, tokens, 32)
    cpu.sampled_forward(x, x, x, projections, 9, 8)
    cpu.sampled_backward(x, x, x, x, projections, 9, 8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(100)
print(peak(120_000) - before)
"""


def test_memory_is_linear_in_the_length():
    """Forward and backward of 120,000 tokens: a kB a token, inputs and outputs included.

    A byte for each pair would be 14 GB.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 120_000


def test_double_precision_keeps_to_the_definition():
    assert not cpu.usable(torch.zeros(1, 1, dtype=torch.float64))
    assert not cpu.usable(torch.zeros(0, 1))
    assert cpu.usable(torch.zeros(1, 1))


def test_callers_defaults_change_nothing():
    """The library writes float32 into what it is given, so its outputs may not follow PyTorch's
    default type or device.
    """
    query, key, value, grad = problem(1, 2, 10, 10, 8, 8)
    projections = random_projections(2, 8, hash_code_len=3, num_hash=4, seed=0)

    def results():
        forward, backward = (
            cpu.sampled_forward(query, key, value, projections, 3, 4),
            cpu.exact_backward(grad, query, key, value, 3),
        )
        return [
            forward,
            *backward,
            sampled_attention(query, key, value, hash_code_len=3, num_hash=4, seed=0),
        ]

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_structure_has_the_fields_of_the_header():
    """A field that only one side knows would shift all that follow."""
    assert cpu.library().yoso_problem_bytes() == ctypes.sizeof(cpu.Problem)


def test_one_warning_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    cpu.library.cache_clear()
    cpu.instruction_sets.cache_clear()
    query, key, value, _ = problem(1, 2, 10, 10, 8, 8)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = [
                sampled_attention(query, key, value, hash_code_len=3, num_hash=4, seed=0)
                for _ in range(2)
            ]
        assert [str(w.message)[:55] for w in caught] == [
            "YOSO's compiled CPU kernel cannot be loaded (" + str(tmp_path)[:10]
        ]
    finally:
        monkeypatch.undo()
        cpu.library.cache_clear()
        cpu.instruction_sets.cache_clear()
    assert_close(out[0], sampled_attention(query, key, value, hash_code_len=3, num_hash=4, seed=0))


def test_wrong_sizes_never_reach_the_library():
    query, key, value, _ = problem(1, 2, 10, 10, 8, 8)
    projections = random_projections(2, 8, hash_code_len=3, num_hash=4, seed=0)
    with pytest.raises(
        InputError, match=r"key has shape \(1, 2, 10, 7\), expected \(1, 2, 10, 8\)"
    ):
        cpu.sampled_forward(query, key[..., :7], value, projections, 3, 4)
    with pytest.raises(InputError, match=r"key has shape \(1, 2, 9, 8\)"):
        cpu.exact_forward(query, key[:, :, :9], value, 3)
    with pytest.raises(InputError, match="expected"):
        cpu.sampled_forward(query, key, value, projections[:1], 3, 4)
    with pytest.raises(InputError, match="hash_code_len=17"):
        cpu.sampled_forward(query, key, value, projections, 17, 4)


FORKED = """
import os, torch
from headstart.models.yoso.attention import exact_attention, sampled_attention
from headstart.models.yoso.kernels import cpu
torch.set_num_threads(2)
cpu._WORK_OF_A_THREAD = 1
x = torch.randn(1, 4, 300, 16)
(x @ x.mT).sum()  # wakes PyTorch's threads
def run():
    sampled = sampled_attention(x, x, x, hash_code_len=4, num_hash=8, seed=0)
    return sampled.sum() + exact_attention(x, x, x, hash_code_len=4).sum()
expected = run()
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    from headstart.models.yoso.hashing import random_projections
    projections = random_projections(4, 16, hash_code_len=4, num_hash=8, seed=0)
    out = cpu.sampled_forward(x, x, x, projections, 4, 8)
    os._exit(0 if out.isfinite().all() and out.abs().sum() > 0 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_process_does_not_wait_for_threads_that_are_gone():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "0"
