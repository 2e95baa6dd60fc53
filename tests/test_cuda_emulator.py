"""The emulator that runs CUDA kernels on the CPU: right kernels run, wrong ones are found out."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulator import build, emulator
from cuda_emulator.control import SCHEDULES, Control

from fused_lif import LIF, LIFParameters

NAN = float("nan")

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))


@functools.cache
def selftest() -> Control:
    control = Control(build.build(build.SELFTEST))
    control.library.selftest_run.restype = ctypes.c_char_p
    control.library.selftest_launch_as_is.restype = ctypes.c_char_p
    return control


def run(name, data, *, grid=(1, 1, 1), block=(32, 1, 1), shared=4096, cluster=1):
    """Runs a kernel of selftest.cu; raises what it throws. Returns `data`, which it changes."""
    message = selftest().library.selftest_run(
        name.encode(),
        ctypes.c_void_p(data.data_ptr()),
        data.numel(),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        ctypes.c_size_t(shared),
        cluster,
    )
    if message:
        raise RuntimeError(message.decode())
    return data


def line_of(text: str) -> int:
    """The only line of selftest.cu with this text."""
    lines = Path(build.EMULATOR, "selftest.cu").read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if text in line]
    return found


def results(name, data, **shape) -> list[torch.Tensor]:
    """What the kernel makes of the data under each schedule."""
    found = []
    for schedule in SCHEDULES:
        with selftest().schedule(schedule):
            found.append(run(name, data.clone(), **shape))
    return found


def assert_right(name, data, expected, **shape):
    for actual in results(name, data, **shape):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def is_found_out(name, data, expected, **shape) -> bool:
    """Whether a kernel raises or gives a wrong result under at least one schedule."""
    try:
        return not all(torch.equal(actual, expected) for actual in results(name, data, **shape))
    except RuntimeError:
        return True


# ---- right kernels ----


@pytest.mark.parametrize(
    ("grid", "block"),
    [((1, 1, 1), (1, 1, 1)), ((5, 3, 2), (33, 2, 3)), ((70, 1, 1), (1024, 1, 1))],
)
def test_every_thread_of_the_grid_runs_once_with_its_coordinates(grid, block):
    n = torch.Size(grid).numel() * torch.Size(block).numel()
    expected = torch.arange(1, n + 1, dtype=torch.float32)
    assert_right("coordinates", torch.zeros(n), expected, grid=grid, block=block)


def test_schedules_are_orders_of_the_threads():
    shape = dict(block=(64, 1, 1))
    forward, reverse, *random = [r[1:].tolist() for r in results("order", torch.zeros(65), **shape)]
    assert forward == list(range(64))
    assert reverse == forward[::-1]
    assert len({tuple(order) for order in (forward, reverse, *random)}) == 4
    assert all(sorted(order) == forward for order in random)
    again = results("order", torch.zeros(65), **shape)[2:]
    assert [r[1:].tolist() for r in again] == random


@pytest.mark.parametrize("threads", [1, 31, 64, 1024])
def test_barrier_of_a_block(threads):
    data = torch.randn(threads)
    assert_right("reverse", data, data.flip(0), block=(threads, 1, 1))


def test_threads_that_have_exited_are_not_waited_for():
    data = torch.arange(1.0, 65.0)
    expected = torch.tensor([1.0] * 63 + [64.0])
    assert_right("early_exit", data, expected, block=(64, 1, 1))


def test_warp_votes_and_shuffles():
    k = torch.arange(64)
    lane, warp = k % 32, k // 32 * 32
    ballot = [sum(1 << j for j in range(32) if (w + j) % 3 == 0) for w in (0, 32)]
    rows = [
        torch.tensor([b & 0xFFFF for b in ballot]).repeat_interleave(32),
        torch.tensor([b >> 16 for b in ballot]).repeat_interleave(32),
        (k >= 32).float(),
        (k < 32).float(),
        warp + 5,
        k // 8 * 8 + 3.5,
        torch.where(lane >= 3, k - 3, k),
        torch.where(k % 16 + 3 < 16, k + 3, k),
        k ^ 6,
        torch.where(lane < 8, warp + 7, 0),
        torch.where(lane < 8, 8 * warp + 28, 0),
    ]
    expected = torch.stack([row.float() for row in rows]).flatten()
    assert_right("warp", torch.zeros(expected.numel()), expected, block=(64, 1, 1))


def test_barriers_of_a_warp():
    data = torch.randn(32)
    assert_right("warp_relay", data, data.roll(-3))


def test_asynchronous_copies_arrive():
    data = torch.arange(1.0, 41.0)
    expected = torch.cat([data.sum()[None], data[1:]])
    assert_right("ring", data, expected, block=(1, 1, 1))


def test_asynchronous_copy_fills_with_zeros():
    data = torch.arange(1.0, 5.0)
    assert_right("zero_fill", data, torch.tensor([1.0, 2.0, 0.0, 0.0]), block=(1, 1, 1))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_cluster_reads_the_memory_of_all_its_blocks(size):
    data = torch.arange(3.0 * size * 40).view(3, size, 40)
    total = data.sum(1, keepdim=True)
    expected = (total + data + total[..., :1]).flatten()
    shape = dict(grid=(3 * size, 1, 1), block=(40, 1, 1), cluster=size)
    assert_right("cluster_sum", data.flatten(), expected, **shape)


def test_threads_of_a_cluster_may_leave_early():
    k = torch.arange(4 * 33) % 33
    expected = ((k != 3) & ((k < 5) | (k > 7))).float()
    shape = dict(grid=(4, 1, 1), block=(33, 1, 1), cluster=2)
    assert_right("cluster_early_exit", torch.zeros(4 * 33), expected, **shape)


# ---- wrong kernels ----


def test_shared_memory_starts_undefined():
    shape = dict(grid=(6, 1, 1))
    expected = torch.full((6 * 32,), NAN)
    assert_right("static_shared_starts_undefined", torch.zeros(6 * 32), expected, **shape)
    assert_right("read_beyond_shared", torch.zeros(1), torch.tensor([NAN]))


def test_a_missing_barrier_gives_a_wrong_result():
    data = torch.randn(64)
    assert is_found_out("reverse_without_barrier", data, data.flip(0), block=(64, 1, 1))


@pytest.mark.parametrize("name", ["impatient_ring", "short_ring"])
def test_reading_while_an_asynchronous_copy_is_in_flight_gives_nan(name):
    assert run(name, torch.ones(40), block=(1, 1, 1))[0].isnan()


def test_memory_of_a_block_that_has_exited_is_undefined():
    assert is_found_out("read_after_exit", torch.zeros(2), torch.ones(2), **CLUSTER)


def test_what_is_written_to_a_block_that_has_not_begun_is_lost():
    assert is_found_out("write_before_begin", torch.zeros(2), torch.ones(2), **CLUSTER)


def test_a_lane_that_takes_no_part_gives_no_value():
    expected = torch.full((32,), NAN)
    expected[7] = 7.0
    assert_right("exited_lane", torch.arange(32.0), expected)


TWO_WARPS = dict(block=(64, 1, 1))
CLUSTER = dict(grid=(2, 1, 1), cluster=2)
WRONG = {
    "different_barriers": (
        TWO_WARPS,
        r"threads of a block wait at different barriers: selftest.cu:(\d+) __syncthreads and "
        r"selftest.cu:(\d+) __syncthreads \(thread \(\d+, 0, 0\) of block \(0, 0, 0\)\)",
    ),
    "deadlock": (
        TWO_WARPS,
        r"deadlock: of block \(0, 0, 0\) threads 0 to 39 wait at selftest.cu:\d+ __syncthreads, "
        r"40 to 63 wait at selftest.cu:\d+ __syncwarp",
    ),
    "missing_lane": (
        {},
        r"deadlock: of block \(0, 0, 0\) threads 0 to 6 wait at selftest.cu:\d+ __shfl_sync, "
        r"7 to 7 wait at selftest.cu:\d+ __syncthreads, 8 to 31 wait at selftest.cu:\d+ __shfl",
    ),
    "lane_outside_mask": ({}, r"selftest.cu:\d+ __shfl_sync by a lane that its mask leaves out"),
    "different_masks": ({}, r"lanes of a warp give different masks to selftest.cu:\d+ __shfl_sync"),
    "copy_of_three_bytes": ({}, r"selftest.cu:\d+ __pipeline_memcpy_async of 3 bytes, not 4, 8 or"),
    "misaligned_copy": (
        {},
        r"selftest.cu:\d+ __pipeline_memcpy_async of addresses not aligned to 16 bytes",
    ),
    "copy_to_global": (
        {},
        r"selftest.cu:\d+ __pipeline_memcpy_async to an address that is not shared",
    ),
    "two_copies": (
        dict(block=(1, 1, 1)),
        r"selftest.cu:\d+ __pipeline_memcpy_async to where another copy is in flight",
    ),
    "misaligned_load": ({}, r"selftest.cu:\d+ __ldg of an address that is not aligned to 16 bytes"),
    "wait_without_arrival": (
        CLUSTER,
        r"selftest.cu:\d+ cluster.barrier_wait by a thread that has not arrived",
    ),
    "second_arrival": (
        CLUSTER,
        r"selftest.cu:\d+ cluster.barrier_arrive by a thread that has not waited since it arrived",
    ),
    "one_block_waits": (
        CLUSTER,
        r"deadlock: of block \(0, 0, 0\) threads 0 to 31 wait at selftest.cu:\d+ cluster.sync; "
        r"of block \(1, 0, 0\) threads 0 to 0 wait at selftest.cu:\d+ cluster.sync, "
        r"1 to 31 wait at selftest.cu:\d+ __syncthreads",
    ),
    "rank_outside_cluster": (
        CLUSTER,
        r"selftest.cu:\d+ map_shared_rank of block 2 in a cluster of 2",
    ),
    "map_global": (CLUSTER, r"selftest.cu:\d+ map_shared_rank of an address that is not shared"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wrong_kernel_ends_the_launch_with_a_message(name, schedule):
    shape, message = WRONG[name]
    with selftest().schedule(schedule), pytest.raises(RuntimeError) as error:
        run(name, torch.zeros(1024), **shape)
    assert re.match("CUDA emulator: " + message, str(error.value)), str(error.value)
    run("coordinates", torch.zeros(1024))  # and the next one starts afresh


def test_messages_name_the_line():
    with pytest.raises(RuntimeError) as error:
        run("misaligned_load", torch.zeros(8))
    assert f"selftest.cu:{line_of('__ldg(')} __ldg" in str(error.value)


# ---- launches ----


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (dict(block=1025), "invalid configuration argument: blocks of 1025 x 1 x 1 threads"),
        (dict(block=0), "invalid configuration argument: blocks of 0 x 1 x 1 threads"),
        (dict(grid=0), "invalid configuration argument: a grid of 0 x 1 x 1 blocks"),
        (
            dict(shared=(48 << 10) + 4),
            "invalid argument: 49156 bytes of dynamic shared memory, but 49152 are allowed",
        ),
        (
            dict(grid=8, cluster=3),
            "cluster misconfiguration: a grid of 8 blocks in clusters of 3",
        ),
        (dict(grid=16, cluster=16), "cluster misconfiguration: clusters of 16 blocks"),
    ],
)
def test_a_launch_that_cuda_refuses(shape, message):
    data = torch.zeros(64)
    shape = dict(grid=1, block=32, shared=0, cluster=1) | shape
    refused = selftest().library.selftest_launch_as_is(
        shape["grid"],
        shape["block"],
        ctypes.c_size_t(shape["shared"]),
        shape["cluster"],
        ctypes.c_void_p(data.data_ptr()),
    )
    words = "fused_lif: the CUDA kernel coordinates_kernel could not be launched: "
    assert refused.decode() == words + message
    assert data.eq(0).all()


def test_a_launch_beyond_the_device():
    data = torch.zeros(64)
    run("coordinates", data, shared=227 << 10)
    with pytest.raises(RuntimeError, match=r"232452 bytes of dynamic.* but the device has 232448"):
        run("coordinates", data, shared=(227 << 10) + 4)
    with selftest().device(capability=86, shared_memory=99 << 10):
        with pytest.raises(RuntimeError, match="but the device has 101376"):
            run("coordinates", data, shared=100 << 10)
        with pytest.raises(RuntimeError, match="clusters on a device of compute capability 86"):
            run("coordinates", data, **CLUSTER)
    run("coordinates", data, **CLUSTER)
    with pytest.raises(RuntimeError, match="a grid of 1 x 65536 x 1 blocks"):
        run("coordinates", data, grid=(1, 65536, 1))


# ---- leaving out barriers ----


def test_barriers_that_were_executed_are_listed():
    with selftest().sites() as sites:
        run("ring", torch.zeros(8), block=(1, 1, 1))
        run("cluster_sum", torch.zeros(64), **CLUSTER)
    barriers = ["cluster.sync", "cluster.barrier_wait", "cluster.sync", "__pipeline_wait_prior"]
    assert sorted(site.split()[1] for site in sites) == sorted(barriers)
    assert f"selftest.cu:{line_of('_wait_prior(kSlots - 1)')} __pipeline_wait_prior" in sites
    with selftest().sites() as sites:
        run("coordinates", torch.zeros(32))
    assert sites == []


MUTABLE = {
    "reverse": (torch.arange(64.0), dict(block=(64, 1, 1)), 1),
    "warp_relay": (torch.arange(32.0), {}, 2),
    "ring": (torch.arange(1.0, 41.0), dict(block=(1, 1, 1)), 1),
    "cluster_sum": (torch.arange(64.0), CLUSTER, 3),
}


@pytest.mark.parametrize("name", MUTABLE)
def test_leaving_out_any_barrier_is_found_out(name):
    data, shape, count = MUTABLE[name]
    with selftest().sites() as sites:
        expected = run(name, data.clone(), **shape)
    assert len(sites) == count
    for site in sites:
        with selftest().skipping(site):
            assert is_found_out(name, data, expected, **shape), site
    assert not is_found_out(name, data, expected, **shape)


def test_a_thread_that_skips_a_barrier_of_a_cluster_is_counted_all_the_same():
    with selftest().sites() as sites:
        run("cluster_sum", torch.zeros(64), **CLUSTER)
    for site in sites:
        with selftest().skipping(site):
            results("cluster_sum", torch.zeros(64), **CLUSTER)  # and no deadlock


# ---- sanitizers ----

SANITIZED_PROGRAM = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.selftest_run.restype = ctypes.c_char_p
one = (ctypes.c_uint * 3)(1, 1, 1)
for name, threads, shared, cluster in [case.split(":") for case in sys.argv[2:]]:
    blocks, block = (ctypes.c_uint * 3)(int(cluster), 1, 1), (ctypes.c_uint * 3)(int(threads), 1, 1)
    data = (ctypes.c_float * 1024)()
    arguments = ctypes.byref(data), 1024, blocks, block, ctypes.c_size_t(int(shared)), int(cluster)
    print(name, library.selftest_run(name.encode(), *arguments).decode(), flush=True)
"""


def run_sanitized(*cases: str) -> subprocess.CompletedProcess[str]:
    library = build.build(build.SELFTEST, sanitize=True)
    runtimes = [
        subprocess.run(
            [build.compiler(), f"-print-file-name={name}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip("the compiler has no sanitizers")
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
    }
    command = [sys.executable, "-c", SANITIZED_PROGRAM, str(library), *cases]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_the_address_sanitizer_accepts_right_kernels_and_the_end_of_wrong_ones():
    cases = ["reverse:1024:4096:1", "warp_relay:32:128:1", "deadlock:64:0:1", "reverse:64:256:1"]
    cases += ["cluster_sum:64:256:8", "one_block_waits:32:0:2", "cluster_sum:64:256:2"]
    cases += ["ring:1:16:1", "coordinates:1024:232448:1"]
    result = run_sanitized(*cases)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        case.split(":")[0] for case in cases
    ]


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("read_beyond_shared:33:128:1", "data[0] = shared_floats()[threadIdx.x]"),
        ("write_beyond_data:1:0:1", "data[n + threadIdx.x] = 0"),
        ("read_after_exit:1:4:2", "map_shared_rank(shared, 1 - cluster.block_rank());"),
    ],
)
def test_the_address_sanitizer_finds_accesses_beyond_the_end(case, line):
    result = run_sanitized(case)
    assert result.returncode != 0, result.stdout
    assert "AddressSanitizer" in result.stderr
    assert f"selftest.cu:{line_of(line)}" in result.stderr, result.stderr


# ---- fibers ----


@pytest.mark.parametrize(
    ("compiler", "machine"),
    [([build.compiler()], []), (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64-static"])],
    ids=["this machine", "aarch64"],
)
def test_fibers_keep_their_registers(compiler, machine, tmp_path):
    for program in (compiler[0], *machine):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    program = tmp_path / "fiber_test"
    sources = [build.EMULATOR / "fiber_test.cpp", build.EMULATOR / "runtime/fiber.cpp"]
    flags = ["-std=c++20", "-O2", f"-I{build.EMULATOR}"]
    subprocess.run([*compiler, *flags, *sources, "-o", program], check=True)
    subprocess.run([*machine, program], check=True)


# ---- the operators ----


@functools.cache
def operators() -> emulator.Emulator:
    if emulator.unavailable() is not None:
        pytest.skip(str(emulator.unavailable()))
    return emulator.load()


def test_operators_are_registered_beside_the_real_ones():
    operators()
    for name in emulator.OPERATORS:
        emulated = getattr(getattr(torch.ops, build.LIBRARY), name).default._schema
        real = getattr(torch.ops.fused_lif, name).default._schema
        assert str(emulated).split("::")[1] == str(real).split("::")[1]


def test_operators_run_in_place_of_the_backend():
    x = torch.randn(20, 3, 5) + 0.5
    p = LIFParameters(tau_mem_inv=torch.full((5,), 200.0, requires_grad=True))

    def gradients():
        inputs = x.clone().requires_grad_()
        out, _ = LIF(p, backend="cpu")(inputs)
        assert 0.01 < out.mean() < 0.5
        return out, *torch.autograd.grad((out * x).sum(), (inputs, p.tau_mem_inv))

    expected = gradients()
    with operators().sites() as sites, operators().as_backend():
        emulated = gradients()
    assert {site.split(".")[0] for site in sites} >= {"lif_forward", "lif_backward"}
    assert torch.equal(emulated[0], expected[0])
    torch.testing.assert_close(emulated[1:], expected[1:], rtol=1e-5, atol=1e-6)
    with operators().sites() as sites:
        gradients()
    assert sites == []
