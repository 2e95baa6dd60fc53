"""One time step of a neuron, forward and backward. START HERE.

This is the only Triton copy of the equations. The functions work on tiles: tensors with one value
per neuron. They do the operations of ``csrc/lif_step.h`` in the same order, and are compiled
without fused multiply-adds: so all backends spike alike, bit for bit. ``constants`` is always the
tuple ``dt_tau_syn_inv, dt_tau_mem_inv, v_leak, v_th, v_reset``, the first two without unit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fused_lif.types import Neuron

LIF = tl.constexpr(int(Neuron.LIF))
LI = tl.constexpr(int(Neuron.LI))
CURRENT_ENCODER = tl.constexpr(int(Neuron.CURRENT_ENCODER))


@triton.jit
def jump(x, i, NEURON: tl.constexpr):
    """i_jump = i + x; without a synapse it is x."""
    return x if NEURON == CURRENT_ENCODER else i + x


@triton.jit
def decay(i_jump, v, constants):
    """What pulls the potential, and the potential before the reset.

    drive     = (v_leak - v) + i_jump
    v_decayed = v + dt/tau_mem * drive
    """
    _, dt_tau_mem_inv, v_leak, _, _ = constants
    drive = (v_leak - v) + i_jump
    return drive, v + dt_tau_mem_inv * drive


@triton.jit
def step_from_jump(i_jump, v, i, constants, NEURON: tl.constexpr, SOFT_RESET: tl.constexpr):
    """Advances ``v, i`` by one step: returns the output (the spike; v_decayed for LI), v and i.

    i = i_jump - dt/tau_syn * i_jump
    z = H(v_decayed - v_th)                              H(s) = 1 if s > 0 else 0
    v = z ? v_reset : v_decayed                          hard reset
    v = z ? v_decayed - v_th : v_decayed                 soft reset
    """
    dt_tau_syn_inv, _, _, v_th, v_reset = constants
    _, v_decayed = decay(i_jump, v, constants)
    if NEURON != CURRENT_ENCODER:
        i = i_jump - dt_tau_syn_inv * i_jump
    if NEURON == LI:
        return v_decayed, v_decayed, i
    else:
        z = v_decayed > v_th
        v_spiked = v_decayed - v_th if SOFT_RESET else v_reset
        return z, tl.where(z, v_spiked, v_decayed), i


@triton.jit
def step_backward(
    i_jump,
    v,
    grad_out,
    grad_v,
    grad_i,
    sums,
    constants,
    alpha,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    METHOD: tl.constexpr,
):
    """Reverse of ``step_from_jump``, given the current after the input and the potential before it.

    ``grad_v, grad_i`` are dL/d(v, i) after the step and returned for before it; ``grad_out`` is
    dL/dz (dL/dv_decayed for LI). ``sums`` are those of the gradients of the constants over time, in
    their order; the first two lack a factor dt, the gradients of dt/tau being summed. Returns
    dL/dx, which in a recurrent layer is that of the recurrent current too, first.

    grad_spike = grad_out + (v_spiked - v_decayed) * grad_v    second term if not detached
    d          = (z and hard ? 0 : grad_v) + H'(s) * grad_spike    gradient of v_decayed
    grad_x     = dt/tau_mem * d + (1 - dt/tau_syn) * grad_i
    grad_v     = (1 - dt/tau_mem) * d
    grad_i     = grad_x
    """
    dt_tau_syn_inv, dt_tau_mem_inv, _, v_th, v_reset = constants
    sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset = sums
    drive, v_decayed = decay(i_jump, v, constants)
    if NEURON == LI:
        d = grad_v + grad_out
    else:
        grad_spike = grad_out
        if not DETACH_RESET:
            v_spiked = v_decayed - v_th if SOFT_RESET else v_reset
            grad_spike = grad_spike + grad_v * (v_spiked - v_decayed)
        grad_s = surrogate_grad(v_decayed - v_th, alpha, METHOD) * grad_spike
        grad_reset = tl.where(v_decayed > v_th, grad_v, 0.0)
        if SOFT_RESET:
            d = grad_v + grad_s
            sum_v_th = sum_v_th - grad_s - grad_reset
        else:
            d = tl.where(v_decayed > v_th, 0.0, grad_v) + grad_s
            sum_v_th = sum_v_th - grad_s
            sum_v_reset = sum_v_reset + grad_reset
    grad_drive = dt_tau_mem_inv * d
    grad_x = grad_drive
    sum_v_leak = sum_v_leak + grad_drive
    sum_tau_mem = sum_tau_mem + d * drive
    if NEURON != CURRENT_ENCODER:
        grad_x = grad_x + (grad_i - dt_tau_syn_inv * grad_i)
        sum_tau_syn = sum_tau_syn - grad_i * i_jump
    sums = (sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset)
    return grad_x, d - grad_drive, grad_x, sums


@triton.jit
def surrogate_grad(s, alpha, METHOD: tl.constexpr):
    """dH/ds. METHOD is a name in ``fused_lif/surrogate.py``, which has the formulas."""
    abs_s = tl.abs(s)
    if METHOD == "heaviside":
        return tl.zeros_like(s)
    elif METHOD == "super":
        d = alpha * abs_s + 1.0
        return 1.0 / (d * d)
    elif METHOD == "triangle":
        height = 1.0 - abs_s
        return tl.where(height < 0.0, 0.0, alpha * height)
    elif METHOD == "tanh":  # 1 - tanh(u)^2 = 4 e / (1 + e)^2, e = exp(-2|u|)
        u = alpha * abs_s
        e = tl.exp(-(u + u))
        return 4.0 * e / ((1.0 + e) * (1.0 + e))
    elif METHOD == "circ":  # alpha^3 / (alpha^2 + s^2)^1.5
        r = s / alpha
        d = 1.0 + r * r
        return 1.0 / (d * tl.sqrt(d))
    elif METHOD == "heavi_erfc":
        u = alpha * s
        return 1.1283791670955126 * tl.exp(-(u * u))  # 2 / sqrt(pi)
    elif METHOD == "sigmoid":  # derivative of 1 / (1 + exp(-alpha s))
        e = tl.exp(-(alpha * abs_s))
        return alpha * e / ((1.0 + e) * (1.0 + e))
    elif METHOD == "atan":  # of atan(pi/2 alpha s) / pi
        u = 1.5707963267948966 * alpha * s
        return 0.5 * alpha / (1.0 + u * u)
    elif METHOD == "piecewise_linear":  # box of height alpha and area 1
        return tl.where(alpha * abs_s < 0.5, alpha, 0.0)
    else:
        tl.static_assert(False, "write the derivative of surrogate '" + METHOD + "' in step.py")
        return s
