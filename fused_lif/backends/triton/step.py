"""One time step of a neuron, forward and backward. START HERE.

This is the only Triton copy of the equations. The functions work on tiles: tensors with one value
per neuron. They do the operations of ``csrc/lif_step.h`` in the same order, and are compiled
without fused multiply-adds: so all backends spike alike, bit for bit. ``constants`` is always the
tuple ``dt_tau_syn_inv, dt_tau_mem_inv, v_leak, v_th, v_reset``, the first two without unit.

``METHOD`` is the name of a surrogate or of an event-based method in ``fused_lif/surrogate.py``.
``SMOOTH`` is the name of the surrogate whose primitive takes the place of spikes, else ``None``.
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
def current_after(i_jump, constants):
    """The current after a step: i = i_jump - dt/tau_syn * i_jump."""
    return i_jump - constants[0] * i_jump


@triton.jit
def step_from_jump(
    i_jump,
    v,
    i,
    constants,
    alpha,  # for smooth spikes only
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """Advances ``v, i`` by one step: returns the output (the spike; v_decayed for LI), v and i.

    z = H(v_decayed - v_th)                              H(s) = 1 if s > 0 else 0
    v = z ? v_reset : v_decayed                          hard reset
    v = z ? v_decayed - v_th : v_decayed                 soft reset

    A smooth spike is z = S(v_decayed - v_th), and v = z * v_spiked + (1 - z) * v_decayed.
    """
    _, _, _, v_th, v_reset = constants
    _, v_decayed = decay(i_jump, v, constants)
    if NEURON != CURRENT_ENCODER:
        i = current_after(i_jump, constants)
    if NEURON == LI:
        return v_decayed, v_decayed, i
    else:
        v_spiked = v_decayed - v_th if SOFT_RESET else v_reset
        if SMOOTH is None:
            z = v_decayed > v_th
            v = tl.where(z, v_spiked, v_decayed)
        else:
            z = surrogate_primitive(v_decayed - v_th, alpha, SMOOTH)
            v = z * v_spiked + (1.0 - z) * v_decayed
        return z, v, i


@triton.jit
def _backward_from_potential(i_jump, drive, d, grad_i, sums, constants, NEURON: tl.constexpr):
    """The end of a reverse step: from d, the gradient of v_decayed, to what it returns.

    grad_x     = dt/tau_mem * d + (1 - dt/tau_syn) * grad_i
    grad_v     = (1 - dt/tau_mem) * d
    grad_i     = grad_x
    """
    dt_tau_syn_inv, dt_tau_mem_inv, _, _, _ = constants
    sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset = sums
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
    SMOOTH: tl.constexpr,
):
    """Reverse of ``step_from_jump``, given the current after the input and the potential before it.

    ``grad_v, grad_i`` are dL/d(v, i) after the step and returned for before it; ``grad_out`` is
    dL/dz (dL/dv_decayed for LI). ``sums`` are those of the gradients of the constants over time, in
    their order; the first two lack a factor dt, the gradients of dt/tau being summed. Returns
    dL/dx, which in a recurrent layer is that of the recurrent current too, first.

    grad_spike = grad_out + (v_spiked - v_decayed) * grad_v    second term if not detached
    d          = (z and hard ? 0 : grad_v) + H'(s) * grad_spike    gradient of v_decayed
    """
    _, _, _, v_th, v_reset = constants
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
        if SMOOTH is None:
            grad_spiked = tl.where(v_decayed > v_th, grad_v, 0.0)
            grad_kept = tl.where(v_decayed > v_th, 0.0, grad_v)
        else:
            grad_spiked = surrogate_primitive(v_decayed - v_th, alpha, SMOOTH) * grad_v
            grad_kept = grad_v - grad_spiked
        sum_v_th = sum_v_th - grad_s
        if SOFT_RESET:
            d = grad_v + grad_s
            sum_v_th = sum_v_th - grad_spiked
        else:
            d = grad_kept + grad_s
            sum_v_reset = sum_v_reset + grad_spiked
    sums = (sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset)
    return _backward_from_potential(i_jump, drive, d, grad_i, sums, constants, NEURON)


# ---- event-based methods ----


@triton.jit
def _inverse_slope(drive, drive_up, constants):
    """1 / (dt/tau_mem * drive); zero where that is at most 2^-60, or drive_up 2^-20 of the way."""
    _, dt_tau_mem_inv, v_leak, v_th, _ = constants
    slope = dt_tau_mem_inv * drive
    inverse = tl.where(tl.abs(slope) > 8.673617379884035e-19, 1.0 / slope, 0.0)
    return tl.where(drive_up > 9.5367431640625e-07 * tl.abs(v_th - v_leak), inverse, 0.0)


@triton.jit
def event_backward(
    i_jump,
    v,
    i,
    grad_out,
    grad_next,
    dt,
    grad_v,
    grad_i,
    sums,
    constants,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    METHOD: tl.constexpr,
):
    """``step_backward`` of the event-based methods, which have no surrogate.

    Takes besides the current before the input, which only adjoint reads, and dL/dz of the next step
    (of this one in the last step), which only eventprop reads. A change of v_decayed moves the time
    of the spike; v_spiked is the potential after it. ``lif_step.h`` has more.

    slope_after  = dt/tau_mem * ((v_leak - v_spiked) + current)
    grad_s       = z ? (grad_earlier + slope_after * grad_v) / (dt/tau_mem * drive) : 0
    """
    if METHOD == "adjoint":
        return _adjoint_backward(
            i_jump, v, i, grad_out * dt, grad_v, grad_i, sums, constants, NEURON, SOFT_RESET
        )
    else:
        return _eventprop_backward(
            i_jump, v, grad_out - grad_next, grad_v, grad_i, sums, constants, NEURON, SOFT_RESET
        )


@triton.jit
def _eventprop_backward(
    i_jump,
    v,
    grad_earlier,
    grad_v,
    grad_i,
    sums,
    constants,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
):
    """Compares gradients of neighbouring steps; d = z ? grad_s : grad_v."""
    _, dt_tau_mem_inv, v_leak, v_th, v_reset = constants
    sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset = sums
    drive, v_decayed = decay(i_jump, v, constants)
    z = v_decayed > v_th
    v_spiked = v_decayed - v_th if SOFT_RESET else v_reset
    slope_after = dt_tau_mem_inv * ((v_leak - v_spiked) + i_jump)
    grad_s = (grad_earlier + slope_after * grad_v) * _inverse_slope(drive, drive, constants)
    sum_v_th = sum_v_th - tl.where(z, grad_s, 0.0)
    if not SOFT_RESET:
        sum_v_reset = sum_v_reset + tl.where(z, grad_v, 0.0)
    d = tl.where(z, grad_s, grad_v)
    sums = (sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset)
    return _backward_from_potential(i_jump, drive, d, grad_i, sums, constants, NEURON)


@triton.jit
def _adjoint_backward(
    i_jump,
    v,
    i,
    grad_earlier,
    grad_v,
    grad_i,
    sums,
    constants,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
):
    """Norse's discretisation, with the current before the input.

    grad_x  = grad_i + dt/tau_syn * (grad_v - grad_i)
    grad_v  = z ? grad_s : grad_v - dt/tau_mem * grad_v
    grad_i  = grad_x
    """
    dt_tau_syn_inv, dt_tau_mem_inv, v_leak, v_th, v_reset = constants
    sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset = sums
    full_drive, v_decayed = decay(i_jump, v, constants)
    z = v_decayed > v_th
    v_spiked = v_decayed - v_th if SOFT_RESET else v_reset
    current = i_jump if NEURON == CURRENT_ENCODER else i
    drive = full_drive - (i_jump - current)
    slope_after = dt_tau_mem_inv * ((v_leak - v_spiked) + current)
    decayed = grad_v - dt_tau_mem_inv * grad_v
    grad_s = grad_earlier + slope_after * decayed
    grad_s = grad_s * _inverse_slope(drive, tl.abs(drive), constants)
    sum_v_th = sum_v_th - tl.where(z, grad_s, 0.0)
    if not SOFT_RESET:
        sum_v_reset = sum_v_reset + tl.where(z, grad_v, 0.0)
    d = tl.where(z, grad_s, decayed)
    grad_x = dt_tau_mem_inv * d
    sum_v_leak = sum_v_leak + grad_x
    sum_tau_mem = sum_tau_mem + d * full_drive
    if NEURON != CURRENT_ENCODER:
        grad_x = grad_i + dt_tau_syn_inv * (grad_v - grad_i)
        scale = tl.where(dt_tau_syn_inv != 0.0, dt_tau_mem_inv / dt_tau_syn_inv, 0.0)
        sum_tau_syn = sum_tau_syn - scale * grad_i * i_jump
    sums = (sum_tau_syn, sum_tau_mem, sum_v_leak, sum_v_th, sum_v_reset)
    return grad_x, d, grad_x, sums


# ---- surrogates ----


@triton.jit
def surrogate_grad(s, alpha, METHOD: tl.constexpr):
    """dH/ds. The formulas are in ``fused_lif/surrogate.py``."""
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


@triton.jit
def surrogate_primitive(s, alpha, METHOD: tl.constexpr):
    """Integral of the derivative from minus infinity, in float64.

    All derivatives are even, hence it is ``tail`` below zero and ``area - tail`` above.
    """
    abs_s = tl.abs(s)
    area = tl.full(s.shape, 1.0, s.dtype)
    if METHOD == "heaviside":  # H itself
        tail = tl.zeros_like(s)
    elif METHOD == "super":
        tail = 1.0 / (alpha * (alpha * abs_s + 1.0))
        area = 2.0 / alpha
    elif METHOD == "triangle":
        height = tl.where(abs_s < 1.0, 1.0 - abs_s, 0.0)
        tail = 0.5 * alpha * height * height
        area = alpha
    elif METHOD == "tanh":  # (1 + tanh(alpha s)) / alpha
        u = alpha * abs_s
        e = tl.exp(-(u + u))
        tail = 2.0 * e / (alpha * (1.0 + e))
        area = 2.0 / alpha
    elif METHOD == "circ":  # alpha (1 + s / sqrt(alpha^2 + s^2))
        r = abs_s / alpha
        tail = alpha * (1.0 - r / tl.sqrt(1.0 + r * r))
        area = 2.0 * alpha
    elif METHOD == "heavi_erfc":  # (1 + erf(alpha s)) / alpha
        tail = (1.0 - tl.erf(alpha * abs_s)) / alpha
        area = 2.0 / alpha
    elif METHOD == "sigmoid":
        e = tl.exp(-(alpha * abs_s))
        tail = e / (1.0 + e)
    elif METHOD == "atan":
        u = 1.5707963267948966 * alpha * abs_s
        tail = 0.5 - _atan(u) * 0.3183098861837907  # 1 / pi
    elif METHOD == "piecewise_linear":
        height = 0.5 - alpha * abs_s
        tail = tl.where(height < 0.0, 0.0, height)
    else:
        tl.static_assert(False, "write the primitive of surrogate '" + METHOD + "' in step.py")
        tail = s
    return tl.where(s > 0.0, area - tail, tail)


@triton.jit
def _atan(u):
    """atan(u) for u >= 0, which Triton has for CUDA only; off by 1e-15 of it at most."""
    x = tl.minimum(u, 1.0 / u)
    for _ in tl.static_range(2):  # atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))): x is below 0.2 then
        x = x / (1.0 + tl.sqrt(1.0 + x * x))
    square = x * x
    series = tl.zeros_like(x)
    for k in tl.static_range(12, -1, -1):
        series = 1.0 / (2 * k + 1) - square * series
    angle = 4.0 * x * series
    return tl.where(u > 1.0, 1.5707963267948966 - angle, angle)
