"""The CPU kernel under AddressSanitizer, ThreadSanitizer, valgrind and an emulated ARM processor, through a C program without Python.

Each way skips with a reason where its tool is missing: gcc, clang, valgrind, aarch64-linux-gnu-gcc with qemu-aarch64.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import assert_close
from headstart.models.yoso import exact, sampled
from headstart.models.yoso.hashing import draw_projections
from headstart.models.yoso.kernels import cpu

KERNELS = Path(cpu.__file__).parent
SOURCES = [str(Path(__file__).with_name("kernel_harness.c")), str(KERNELS / "yoso.c")]
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-unknown-pragmas", "-pthread", f"-I{KERNELS}"]
ENTRIES = ["sampled_forward", "sampled_backward", "exact_forward", "exact_backward"]

# name: compiler and its flags, command before the program
WAYS = {
    "gcc-asan": (["gcc", "-O1", "-g", "-fsanitize=address"], []),
    "gcc-tsan": (["gcc", "-O1", "-g", "-fsanitize=thread"], []),
    "clang": (["clang", "-O1"], []),
    "valgrind": (["gcc", "-O1", "-g"], ["valgrind", "-q", "--leak-check=full", "--error-exitcode=9"]),
    "aarch64": (["aarch64-linux-gnu-gcc", "-O1", "-static"], ["qemu-aarch64"]),
}

# texts, heads, queries, keys, head size, value size, hash_code_len, num_hash: odd sizes, and both kinds of buckets
SHAPES = [(1, 2, 45, 61, 7, 5, 2, 3), (2, 1, 9, 70, 20, 33, 9, 6)]


@pytest.fixture(scope="module", params=WAYS)
def way(request, tmp_path_factory):
    """The command that runs the program, built this way."""
    compiler, runner = WAYS[request.param]
    for tool in (compiler[0], *runner[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = tmp_path_factory.mktemp(request.param) / "harness"
    built = subprocess.run([*compiler, *FLAGS, *SOURCES, "-o", str(program), "-lm"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return request.param, [*runner, str(program)]


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_memory(way, shape, entry):
    name, command = way
    texts, heads, queries, keys, size, value_size, tau, num_hash = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, size), (keys, size), (keys, value_size), (queries, value_size)]
    query, key, value, grad = (torch.randn(texts, heads, *s, generator=generator) for s in shapes)
    query, key = torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(key, dim=-1)
    emulated = name in ("aarch64", "valgrind")
    # one thread for aarch64: qemu's own threads crashed once in some thousand runs; ThreadSanitizer watches the kernel's
    for fast, numbers, threads in ((True, ["0"], 1 if name == "aarch64" else 3), (False, ["0"] if emulated else ["0", "1"], 1)):
        if "exact" in entry and not fast:
            continue
        projections = draw_projections(texts * heads, size, hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, seed=2)
        transforms = list(projections.shape[2:]) if fast else [0, 0]
        header = np.array([*shape, *transforms, int(fast)], dtype=np.int64).tobytes()
        data = header + b"".join(x.numpy().tobytes() for x in (query, key, value, grad, projections))
        for number in numbers:
            if number == "1" and "avx2" not in cpu.instruction_sets():
                continue
            done = subprocess.run([*command, entry, number, str(threads)], input=data, capture_output=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr.decode()[-3000:]
            got = torch.from_numpy(np.frombuffer(done.stdout, dtype=np.float32).copy())
            expected = torch.cat([x.flatten() for x in in_torch(entry, (grad, query, key, value), projections, tau, num_hash)])
            assert_close(got, expected, 1e-5)


def in_torch(entry, tensors, projections, tau, num_hash):
    """The definition's results, in double precision, for which there is no kernel."""
    grad, query, key, value = (x.double() for x in tensors)
    if entry == "sampled_forward":
        return [sampled.sampled_sum(query, key, value, projections, tau, num_hash, True)]
    if entry == "sampled_backward":
        return sampled.sampled_sum_backward(grad, query, key, value, projections, tau, num_hash)
    if entry == "exact_forward":
        return [exact.exact_sum(query, key, value, tau)]
    return exact.exact_sum_backward(grad, query, key, value, tau)
