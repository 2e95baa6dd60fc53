"""The check of what Triton makes of the kernels. No GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_binary
import pytest
import triton_binary
from triton_binary import Kernel

TESTS = Path(__file__).parent
FORWARD = "lif_forward_kernel<float32, 1 step, 512, 4 warps, [B, N]>"


def test_good_kernels_have_no_problems():
    kernels = [
        Kernel("a_forward_kernel<float32, 1 step>", "9.0", 40),
        Kernel("a_backward_kernel<float32, circ, 1 step>", "9.0", 40, fma=2, flushes=3),
        Kernel("a_backward_kernel<float32, adjoint, 1 step>", "9.0", 40, fma=2),
        Kernel("a_forward_kernel<float64, smooth tanh, 1 step>", "9.0", 40, 0, 8, 3, fma=2),
    ]
    registers = {"a_forward_kernel": 40, "a_backward_kernel": 40}
    assert triton_binary.problems(kernels, registers, registers) == []


def test_problems():
    kernels = [
        Kernel("a_forward_kernel<float32, 1 step>", "9.0", 40, fma=2),
        Kernel("a_forward_kernel<float64, 1 step>", "9.0", 50, flushes=3),
        Kernel("a_backward_kernel<float32, super, 1 step>", "9.0", 42, stack=8, spills=3),
        Kernel("a_backward_kernel<float32, triangle, 1 step>", "9.0", 42, fma=1, flushes=1),
        Kernel("a_backward_kernel<float32, super, 2 steps>", "9.0", error="no memory"),
        Kernel("a_sums_kernel<float32>", "9.0", 10, fma=1),
        Kernel("a_forward_kernel<float32, 1 step>", "10.0", 10),
    ]
    registers = {
        "a_forward_kernel": 40,
        "a_forward_kernel<float64": 49,
        "a_backward_kernel": 42,
        "a_sums_kernel": 9,
    }
    expected = {"a_forward_kernel", "a_backward_kernel", "a_sums_kernel"}
    found = triton_binary.problems(kernels[:-1], {*expected, "b_kernel"}, registers)
    assert sorted(found) == [
        "a_backward_kernel<float32, super, 1 step> for 9.0 has 8 bytes of local memory, "
        "which 3 instructions use",
        "a_backward_kernel<float32, super, 2 steps> for 9.0 cannot be compiled: no memory",
        "a_backward_kernel<float32, triangle, 1 step> for 9.0 flushes denormals 1 times",
        "a_backward_kernel<float32, triangle, 1 step> for 9.0 fuses multiply and add 1 times",
        "a_forward_kernel<float32, 1 step> for 9.0 fuses multiply and add 2 times",
        "a_forward_kernel<float64, 1 step> for 9.0 flushes denormals 3 times",
        "a_forward_kernel<float64, 1 step> for 9.0 takes 50 registers, more than 49",
        "a_sums_kernel<float32> for 9.0 fuses multiply and add 1 times",
        "a_sums_kernel<float32> for 9.0 takes 10 registers, more than 9",
        "no case compiled b_kernel for 9.0",
    ]
    found = triton_binary.problems(kernels, expected, registers)
    assert "no case compiled a_backward_kernel for 10.0" in found
    assert "no case compiled a_sums_kernel for 10.0" in found


def test_kernel_without_limit():
    kernels = [Kernel("a_forward_kernel<float32>", "9.0", 40)]
    assert triton_binary.problems(kernels, {"a_forward_kernel"}, {}) == [
        "a_forward_kernel has no entry in REGISTERS; it takes 40"
    ]


COMPILED = """
import json, sys
import triton_binary
with triton_binary.environment():
    compiler = triton_binary.Compiler()
    case = triton_binary.Case("[B, N]", (132, 4096), T=None, backward=False)
    found = [triton_binary.kernel_names()]
    for options in ({}, {"enable_fp_fusion": True}, {"maxnreg": 24}, {"INTERVAL": None}):
        kernels = compiler.compile(case, "9.0", **options).values()
        found.append(triton_binary.problems(kernels, [], {"lif_forward_kernel": 80}))
        found[-1] += [kernel.name for kernel in kernels]
    json.dump([sorted(of) for of in found], sys.stdout)
"""


def test_provoked_problems_are_reported():
    pytest.importorskip("triton")
    if cuda_binary.find_tool("cuobjdump") is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    # A process of its own: here kernels may be interpreted.
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    output = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    names, good, fused, spilling, impossible = json.loads(output)
    assert set(names) == {name.split("<")[0] for name in triton_binary.REGISTERS}
    assert good == [FORWARD]
    assert fused[0] == FORWARD
    assert fused[1].startswith(f"{FORWARD} for 9.0 fuses multiply and add ")
    assert spilling[0] == FORWARD
    assert spilling[1].startswith(f"{FORWARD} for 9.0 has ")
    assert "bytes of local memory" in spilling[1]
    assert impossible[0] == FORWARD
    assert impossible[1].startswith(f"{FORWARD} for 9.0 cannot be compiled: ")
