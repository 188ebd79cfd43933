"""The CPU kernel under AddressSanitizer, ThreadSanitizer, valgrind and on emulated processors,
through a C program without Python.

Each way skips with a reason where its tool is missing: gcc, clang, valgrind, cross compilers and
qemu's user mode. Emulated are NEON (aarch64), a processor without vectors (riscv64: the same four
lanes in scalar instructions), and x86 with and without AVX2. qemu has no AVX-512:
test_kernels_cpu.py runs that on machines that have it.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import assert_close
from headstart.models.yoso import exact, sampled
from headstart.models.yoso.hashing import random_projections
from headstart.models.yoso.kernels import cpu

KERNELS = Path(cpu.__file__).parent
SOURCES = [str(Path(__file__).with_name("kernel_harness.c")), str(KERNELS / "yoso.c")]
FLAGS = [
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-pthread",
    f"-I{KERNELS}",
]
FLAGS += ["-DYOSO_SMALL_BLOCKS"]  # so that small shapes are long texts, too
ENTRIES = ["sampled_forward", "sampled_backward", "exact_forward", "exact_backward"]

# name: compiler and its flags, command before the program
WAYS = {
    "gcc-asan": (["gcc", "-O1", "-g", "-fsanitize=address"], []),
    "gcc-tsan": (["gcc", "-O1", "-g", "-fsanitize=thread"], []),
    "clang": (["clang", "-O1"], []),
    "valgrind": (
        ["gcc", "-O1", "-g"],
        ["valgrind", "-q", "--leak-check=full", "--error-exitcode=9"],
    ),
    "aarch64": (["aarch64-linux-gnu-gcc", "-O1", "-static"], ["qemu-aarch64"]),
    "riscv64": (["riscv64-linux-gnu-gcc", "-O1", "-static"], ["qemu-riscv64"]),
    "x86-avx2": (["gcc", "-O1", "-static"], ["qemu-x86_64", "-cpu", "max"]),
    "x86-old": (["gcc", "-O1", "-static"], ["qemu-x86_64", "-cpu", "Nehalem"]),
}
# Numbers of the instruction sets that run there; elsewhere the generic one and, with dense hashes,
# AVX2.
EMULATED = {
    "aarch64": ["0"],
    "riscv64": ["0"],
    "x86-avx2": ["1"],
    "x86-old": ["0"],
    "valgrind": ["0"],
}

# texts, heads, queries, keys, head size, value size, hash_code_len, num_hash: odd sizes, both kinds
# of buckets, a long text and a short one
SHAPES = [(1, 2, 45, 61, 7, 5, 2, 3), (2, 1, 9, 70, 20, 33, 9, 6)]


@pytest.fixture(scope="module", params=WAYS)
def way(request, tmp_path_factory):
    """The command that runs the program, built this way."""
    compiler, runner = WAYS[request.param]
    if request.param.startswith("x86") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this machine's compiler makes no x86 programs")
    for tool in (compiler[0], *runner[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = tmp_path_factory.mktemp(request.param) / "harness"
    built = subprocess.run(
        [*compiler, *FLAGS, *SOURCES, "-o", str(program), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return request.param, [*runner, str(program)]


def answer_of(command, data):
    """What a program writes that gets `data`, as float32; its report where it fails."""
    done = subprocess.run(command, input=data, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return torch.from_numpy(np.frombuffer(done.stdout, dtype=np.float32).copy())


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_memory(way, shape, entry):
    name, command = way
    texts, heads, queries, keys, size, value_size, tau, num_hash = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, size), (keys, size), (keys, value_size), (queries, value_size)]
    query, key, value, grad = (torch.randn(texts, heads, *s, generator=generator) for s in shapes)
    query, key = (
        torch.nn.functional.normalize(query, dim=-1),
        torch.nn.functional.normalize(key, dim=-1),
    )
    # One thread for qemu: exact_forward crashed there once on three, and never again; why is not
    # known. ThreadSanitizer sees no race.
    several = 1 if command[0].startswith("qemu") else 3
    for fast, numbers, threads in (
        (True, EMULATED.get(name, ["0"]), several),
        (False, EMULATED.get(name, ["0", "1"]), 1),
    ):
        if "exact" in entry and not fast:
            continue
        projections = random_projections(
            texts * heads, size, hash_code_len=tau, num_hash=num_hash, use_fast_hash=fast, seed=2
        )
        transforms = list(projections.shape[2:]) if fast else [0, 0]
        header = np.array([*shape, *transforms, int(fast)], dtype=np.int64).tobytes()
        data = header + b"".join(
            x.numpy().tobytes() for x in (query, key, value, grad, projections)
        )
        for number in numbers:
            if number == "1" and name not in EMULATED and "avx2" not in cpu.instruction_sets():
                continue
            got = answer_of([*command, entry, number, str(threads)], data)
            expected = torch.cat(
                [
                    x.flatten()
                    for x in in_torch(entry, (grad, query, key, value), projections, tau, num_hash)
                ]
            )
            assert_close(got, expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["x86-avx2", "x86-old"], indirect=True)
def test_processors_refuse_instructions_that_they_lack(way):
    """The program ends with 4 where the library says no, and with 3 where it goes on and finds no
    input.
    """
    name, command = way
    calls = ([*command, "exact_forward", str(number), "1"] for number in (0, 1, 2))
    codes = [
        subprocess.run(call, input=b"", capture_output=True, check=False).returncode
        for call in calls
    ]
    assert codes == ([3, 3, 4] if name == "x86-avx2" else [3, 4, 4])


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
