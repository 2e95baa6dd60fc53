"""CUDA kernels on the CPU: any order of threads, any device, and each wait taken out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from cuda_emulator import build, emulator
from cuda_emulator.control import SCHEDULES
from helpers import (
    assert_same_bits,
    gradients,
    random_case,
    random_recurrent_case,
    running,
)

pytestmark = pytest.mark.usefixtures("emulated")


def all_bits(seed=0):
    """Outputs and gradients of kernels of every kind, with all barriers that there are."""
    cases = [
        random_case((70, 3, 350), torch.float32, constant_shape=(), seed=seed),
        random_case((70, 3, 350), torch.bfloat16, seed=seed),
        random_case((35, 20, 30), torch.float64, "li", constant_shape=(20, 1), seed=seed),
        random_case((35, 9000), torch.float16, "encoder", constant_shape=(), seed=seed),
        random_recurrent_case((40, 3, 10, 35), torch.float64, constant_shape=(), seed=seed),
        random_recurrent_case((40, 5, 10, 200), constant_shape=(), seed=seed),
        random_recurrent_case((9, 5, 300, 70), torch.float16, seed=seed),
    ]
    results = []
    for case in cases:
        results += case.run("emulated")
        results += gradients(case, "emulated").values()
    return results


@pytest.mark.parametrize("schedule", [*SCHEDULES, "random:3"])
def test_every_schedule_has_the_same_bits(schedule, emulated):
    expected = all_bits()
    with emulated.schedule(schedule):
        for a, e in zip(all_bits(), expected):
            assert_same_bits(a, e)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_every_device_has_the_same_bits(multiprocessors, emulated):
    expected = all_bits()
    with emulated.device(multiprocessors=multiprocessors):
        for a, e in zip(all_bits(), expected):
            assert_same_bits(a, e)


def test_gradients_are_deterministic():
    for a, e in zip(all_bits(), all_bits()):
        assert_same_bits(a, e)


#: Kernels in which a wait may be left out here, and why.
HARMLESS = {
    # Shared memory that is not yet written is all ones here, which means that a weight is infinite.
    # That is right for any weights, but slow.
    "find_infinite_kernel",
}


def test_every_wait_is_needed():
    """Without any one of them, results are wrong or a kernel fails, in some order of threads.

    That can also be a crash: it is tried in another process, which goes on behind it. Sanitizers
    stop at what is done on purpose here: `make sanitize` leaves this test out.
    """
    sites, found_out = [], []
    while not sites or len(found_out) < len(sites):
        result = subprocess.run(
            [sys.executable, __file__, str(len(found_out))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = result.stdout.splitlines()
        assert lines, result.stderr
        sites = json.loads(lines[0])
        found_out += [line == "found out" for line in lines[1:]]
        if result.returncode != 0:
            assert result.returncode < 0, result.stderr  # a signal
            found_out.append(True)
    assert {site.split(":")[0] for site in sites} == {
        path.name
        for path in (build.ROOT / "csrc/cuda").glob("*.cu")
        if re.search(r"__syncthreads|barrier_wait|__pipeline_wait_prior", path.read_text())
    }
    survivors = [site for site, found in zip(sites, found_out) if not found]
    assert [site for site in survivors if _kernel_of(site) not in HARMLESS] == []


def _kernel_of(site):
    """Name of the kernel that has the place `file.cu:12 __syncthreads`."""
    file, line = site.split()[0].split(":")
    lines = (build.ROOT / "csrc/cuda" / file).read_text().splitlines()[: int(line)]
    return re.findall(r"(\w+_kernel)\(", "\n".join(lines))[-1]


def _is_found_out(emulated, site, expected):
    for schedule in SCHEDULES:
        with emulated.schedule(schedule), emulated.skipping(site):
            try:
                actual = all_bits()
            except RuntimeError:
                return True
        if not all(torch.equal(a, e) for a, e in zip(actual, expected)):
            return True
    return False


def _try_without_waits(first):
    torch.manual_seed(0)
    with running("emulated"):
        emulated = emulator.load()
        with emulated.sites() as sites:
            expected = all_bits()
        print(json.dumps(sites), flush=True)
        for site in sites[first:]:
            found = _is_found_out(emulated, site, expected)
            print("found out" if found else "survived", flush=True)


if __name__ == "__main__":
    _try_without_waits(int(sys.argv[1]))
