"""Derivatives of the surrogates in Triton are those of the table; a missing one says so."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from helpers import METHODS, gradients, random_case
from test_surrogate import ALPHAS, assert_close
from triton_cases import TRITON_DEVICE

from fused_lif.backends.triton.step import surrogate_grad, surrogate_primitive
from fused_lif.surrogate import SURROGATES


@triton.jit
def surrogate_grad_kernel(
    s_ptr, alpha_ptr, grad_ptr, count, METHOD: tl.constexpr, BLOCK: tl.constexpr
):
    m = tl.arange(0, BLOCK)
    s = tl.load(s_ptr + m, mask=m < count)
    tl.store(grad_ptr + m, surrogate_grad(s, tl.load(alpha_ptr), METHOD), mask=m < count)


@triton.jit
def surrogate_primitive_kernel(
    s_ptr, alpha_ptr, z_ptr, count, METHOD: tl.constexpr, BLOCK: tl.constexpr
):
    m = tl.arange(0, BLOCK)
    s = tl.load(s_ptr + m, mask=m < count)
    tl.store(z_ptr + m, surrogate_primitive(s, tl.load(alpha_ptr), METHOD), mask=m < count)


def grad_of(s, alpha, method, kernel=surrogate_grad_kernel):
    block = 1 << (s.numel() - 1).bit_length()
    s, alpha = (t.to(TRITON_DEVICE) for t in (s, torch.tensor(alpha, dtype=s.dtype)))
    grad = torch.empty_like(s)
    options = {"METHOD": method, "BLOCK": block, "enable_fp_fusion": False}
    with np.errstate(all="ignore"):
        kernel[1,](s, alpha, grad, s.numel(), **options)
    return grad.cpu()


def primitive_of(s, alpha, method):
    return grad_of(s, alpha, method, surrogate_primitive_kernel)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "box"])
def test_derivative_matches_table(method, alpha, dtype, plans):
    near = torch.linspace(-2, 2, 401, dtype=torch.float64)
    far = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 1e4, -1e4, 1e15, -1e15])
    s = torch.cat([near, near * 1e-3, far]).to(dtype)
    actual, expected = grad_of(s, alpha, method), SURROGATES[method].grad(s.double(), alpha)
    assert_close(actual, expected, alpha)
    assert actual.any() == (method != "heaviside")
    assert torch.equal(actual, grad_of(-s, alpha, method))  # all are even


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "box"])
def test_primitive_matches_table(method, alpha, plans):
    near = torch.linspace(-2, 2, 401, dtype=torch.float64)
    far = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 1e4, -1e4, 1e15, -1e15], dtype=torch.float64)
    s = torch.cat([near, near * 1e-3, near * 30, far])
    z, expected = primitive_of(s, alpha, method), SURROGATES[method].primitive(s, alpha)
    torch.testing.assert_close(z, expected, rtol=1e-13, atol=1e-14 * z.max().item())
    ascending = s.sort().indices
    assert (z[ascending].diff() >= -1e-15 * z.max()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_no_nan_for_finite_numbers(alpha, dtype, plans):
    """Squares overflow on the way; the derivative is zero then."""
    largest = torch.finfo(dtype).max
    s = torch.tensor([1e30, -1e30, largest, -largest], dtype=dtype)
    for method in METHODS:
        if method != "box":
            actual = grad_of(s, alpha, method)
            assert (actual >= 0).all(), method
            assert (actual <= 1e-20).all(), method


def test_each_method_reaches_its_branch(plans):
    """By its id, as ``box`` does that of ``piecewise_linear``; the others differ."""
    grads = {}
    for method in METHODS:
        case = random_case((3, 17), torch.float64, alpha=1.0, method=method)
        grads[method] = gradients(case, "triton")["x"]
        assert plans.launches[-1].kernel == "constant_grads_kernel"
        names = {k.arguments["METHOD"] for k in plans.launches if "METHOD" in k.arguments}
        assert names == {"piecewise_linear" if method == "box" else method}
        plans.launches.clear()
    assert torch.equal(grads.pop("box"), grads["piecewise_linear"])
    for a in grads:
        assert not any(torch.equal(grads[a], grads[b]) for b in grads if b != a)


# ---- a surrogate without a branch ----


def test_missing_branch(plans):
    with pytest.raises(Exception, match="write the primitive of surrogate 'nonsense'"):
        primitive_of(torch.zeros(4), 1.0, "nonsense")
    message = "write the derivative of surrogate 'nonsense' in step.py"
    with pytest.raises(Exception, match=message):
        grad_of(torch.zeros(4), 1.0, "nonsense")
    plans.arguments(METHOD="nonsense")
    with pytest.raises(Exception, match=message):
        gradients(random_case((2, 3)), "triton")


def test_missing_branch_does_not_compile(tmp_path):
    """As on a GPU, but for none: Triton compiles for the architecture that its driver names."""
    code = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from fused_lif.backends.triton.sequence import lif_backward_kernel

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0
    def get_active_torch_device(self):
        return torch.device("cpu")

driver.set_active(Driver())
t = torch.zeros(64)
layout = (64, None, None)

try:
    lif_backward_kernel.warmup(
        t, None, None, t, t, None, None, t, t, t, t, None, (t,) * 6, (1,) * 6, (1,) * 6,
        t, None, t, t, (t,) * 5, 0, 4, 64, 0, layout, layout, 0.001,
        NEURON=0, SOFT_RESET=False, DETACH_RESET=False, METHOD="nonsense", SMOOTH=None,
        FROM_JUMP=False, ADD_TO_SUMS=False, INTERVAL=4, SEGMENT=4, EVEN=True,
        BLOCK=32, LARGE=False, num_warps=1, enable_fp_fusion=False, grid=(1,),
    )
except CompilationError as error:
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "write the derivative of surrogate 'nonsense' in step.py" in result.stdout
