"""The loops on other machines, and the rule that keeps AVX-512 code off those that lack it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "csrc/cpu"
FLAGS = ["-std=c++20", "-ffp-contract=off", "-Wno-psabi", "-Wall", "-Werror"]

#: Compiler, and what runs its programs.
MACHINES = {
    "this machine": (["c++"], []),
    "clang": (["clang++-16"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64-static"]),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_portable_loops_equal_scalar_steps(machine, tmp_path):
    compiler, emulator = MACHINES[machine]
    for program in (*compiler[:1], *emulator):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    program = tmp_path / "loops_equal_steps"
    sources = [ROOT / "tests/cpp/loops_equal_steps.cpp", KERNELS / "kernels_baseline.cpp"]
    subprocess.run([*compiler, *FLAGS, "-O1", *sources, "-o", program], check=True)
    result = subprocess.run([*emulator, program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("kernels_avx2.cpp", "-mavx2"),
        ("kernels_avx512.cpp", "-mavx512f -mavx512bw -mavx512dq -mavx512vl"),
    ],
)
def test_nothing_compiled_for_one_instruction_set_can_serve_another(source, flags, tmp_path):
    """An object file defines its table of functions and no weak symbol that others could share."""
    if platform.machine() != "x86_64" or not (shutil.which("c++") and shutil.which("nm")):
        pytest.skip("needs a compiler and nm on x86-64")
    target = tmp_path / "kernels.o"
    command = ["c++", *FLAGS, "-O0", *flags.split(), "-c", KERNELS / source, "-o", target]
    subprocess.run(command, check=True)
    symbols = subprocess.run(["nm", "-C", target], capture_output=True, text=True, check=True)
    shared = re.findall(r"^\w+ ([A-Z]) (.*)$", symbols.stdout, re.MULTILINE)
    names = [name for kind, name in shared if "__gxx_personality" not in name]
    assert len(names) == 1, names
    assert re.fullmatch(r"fused_lif::cpu::kAvx\w+Kernels", names[0])
