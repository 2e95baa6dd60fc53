"""Kernels of recurrent layers, for all time steps at once.

A program takes one batch row or a few: rows do not depend on each other. Larger layers take a
matrix product and a kernel of ``sequence.py`` per step instead, see ``operators.py``.

Forward adds the weights of the spikes one sender after the other, in ascending order, as every
backend does that skips what did not spike: they agree bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fused_lif.backends.triton.memory import (
    constant,
    load_constants,
    load_or_zero,
    load_sums,
    store,
    store_sums,
)
from fused_lif.backends.triton.step import (
    LIF,
    current_after,
    event_backward,
    jump,
    step_backward,
    step_from_jump,
)


@triton.jit
def lif_input_sums_kernel(
    input_ptr,  # [rows, features]
    weights_ptr,  # [features, H]: transposed
    x_ptr,  # [rows, H]: W_in input, each sum in ascending order of the input
    rows,
    features,
    H,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """W_in input of all steps, as the CPU computes it."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    h = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.zeros((ROWS, BLOCK), dtype)
    input_ptr += row * features
    weights_ptr += h
    zero = tl.zeros((1, 1), tl.int32)
    for first in range(0, features, UNROLL):
        inputs = ()
        weights = ()
        for k in tl.static_range(UNROLL):
            exists = first + k + zero < features
            inputs = inputs + (tl.load(input_ptr + k, mask=exists & (row < rows), other=0.0),)
            weights = weights + (tl.load(weights_ptr, mask=exists & (h < H), other=0.0),)
            weights_ptr += H
        input_ptr += UNROLL
        for k in tl.static_range(UNROLL):
            x += inputs[k].to(dtype) * weights[k]
    tl.store(x_ptr + row * H + h, x, mask=(row < rows) & (h < H))


@triton.jit
def _recurrent_current(z, listed, list_ptr, weights_ptr, H, n, inside, UNROLL: tl.constexpr):
    """W_rec z of one row: the listed senders are written down, then added in ascending order."""
    place = tl.cumsum(listed.to(tl.int32), 0) - 1
    values_ptr, senders_ptr = list_ptr
    tl.store(senders_ptr + place, n, mask=listed)
    tl.store(values_ptr + place, z, mask=listed)
    count = tl.sum(listed.to(tl.int32), 0)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it
    r = tl.zeros_like(z)
    for first in range(0, count, UNROLL):
        values = ()
        weights = ()
        for k in tl.static_range(UNROLL):
            exists = first + k < count
            sender = tl.load(senders_ptr + first + k, mask=exists, other=0)
            values = values + (tl.load(values_ptr + first + k, mask=exists, other=0.0),)
            exists = inside & (first + k + tl.zeros([1], tl.int32) < count)
            weights = weights + (tl.load(weights_ptr + sender * H + n, mask=exists, other=0.0),)
        for k in tl.static_range(UNROLL):
            r += values[k] * weights[k]
    return r


@triton.jit(do_not_specialize=["T", "B", "rows"])
def lif_recurrent_forward_kernel(
    x_ptr,  # [T, B, H]: W_in input
    weights_ptr,  # [H, H]: W_rec transposed, a row for each sender
    infinite_ptr,  # [1]: whether any weight is, and zero times it must not be left out
    z_ptr,  # [B, H], as v and i
    v_ptr,
    i_ptr,
    constants,  # five, with the size and stride of each: see `constant`
    sizes,
    strides,
    out_ptr,  # [T, B, H]
    v_end_ptr,  # [B, H], as i_end
    i_end_ptr,
    i_jump_ptr,  # [T, B, H] or None; may be x
    states_ptr,  # [1, rows, B, H], potentials; of all steps [2, T, B, H] if INTERVAL is 1
    values_ptr,  # [B, 2, BLOCK], for lists of senders that spiked
    senders_ptr,
    T,
    B,
    H,
    rows,
    dt: tl.float64,
    SOFT_RESET: tl.constexpr,
    INTERVAL: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,  # at least H
):
    """The steps of one batch row."""
    n = tl.arange(0, BLOCK)
    inside = n < H
    b = tl.program_id(0).to(tl.int64)
    m = b * H + n
    M = B * tl.cast(H, tl.int64)
    z = tl.load(z_ptr + m, mask=inside, other=0.0)
    v = tl.load(v_ptr + m, mask=inside)
    i = tl.load(i_ptr + m, mask=inside)
    constants = load_constants(constants, sizes, strides, m, inside, dt, v.dtype)
    is_infinite = tl.load(infinite_ptr + tl.zeros([1], tl.int32)) != 0
    values_ptr += b * 2 * BLOCK
    senders_ptr += b * 2 * BLOCK
    states_i_ptr = states_ptr + rows * M
    row = 0
    x = tl.load(x_ptr + m, mask=inside)
    for t in range(T):
        x_ptr += M
        has_next = t + tl.full([1], 1, tl.int32) < T
        x_next = tl.load(x_ptr + m, mask=inside & has_next)  # while this step is computed
        list_ptr = (values_ptr + t % 2 * BLOCK, senders_ptr + t % 2 * BLOCK)
        listed = inside & ((z != 0.0) | is_infinite)
        r = _recurrent_current(z, listed, list_ptr, weights_ptr, H, n, inside, UNROLL)
        i_jump = jump(x, i, LIF) + r
        if i_jump_ptr is not None:
            tl.store(i_jump_ptr + m, i_jump, mask=inside)
            i_jump_ptr += M
        out, v, i = step_from_jump(i_jump, v, i, constants, None, LIF, SOFT_RESET, None)
        z = tl.where(out, 1.0, 0.0).to(z.dtype)
        store(out_ptr + m, out, inside)
        out_ptr += M
        if INTERVAL > 0:
            if ((t + 1) % INTERVAL == 0) & (row < rows):
                tl.store(states_ptr + m, v, mask=inside)
                states_ptr += M
                if INTERVAL == 1:
                    tl.store(states_i_ptr + m, i, mask=inside)
                    states_i_ptr += M
                row += 1
        x = x_next
    tl.store(v_end_ptr + m, v, mask=inside)
    tl.store(i_end_ptr + m, i, mask=inside)


@triton.jit
def _product(
    grad_x_ptr, weights, weights_ptr, b, n, B, H, KEPT: tl.constexpr, UNROLL: tl.constexpr
):
    """grad_x W_rec of the rows b: the gradient of the spikes that a step received."""
    total = tl.zeros((b.shape[0], n.shape[1]), weights_ptr.dtype.element_ty)
    for first in range(0, H, UNROLL):
        k = first + tl.arange(0, UNROLL)[None, :, None]
        exists = (b[:, :, None] < B) & (k < H)
        grad_x = tl.load(grad_x_ptr + b[:, :, None] * H + k, mask=exists, other=0.0)
        if KEPT:
            total += tl.sum(grad_x * weights, 1)
        else:
            exists = (k < H) & (n[:, None, :] < H)
            loaded = tl.load(weights_ptr + k * H + n[:, None, :], mask=exists, other=0.0)
            total += tl.sum(grad_x * loaded, 1)
    return total


@triton.jit(do_not_specialize=["T", "B"])
def lif_recurrent_backward_kernel(
    grad_out_ptr,  # [T, B, H] or None
    grad_v_ptr,  # [B, H] or None, as grad_i
    grad_i_ptr,
    grad_states_v_ptr,  # [T, B, H] or None, as grad_states_i
    grad_states_i_ptr,
    i_jump_ptr,  # [T, B, H]
    states_ptr,  # [rows, B, H], potentials
    v_ptr,  # [B, H], initial, as i; this one is read by adjoint
    i_ptr,
    weights_ptr,  # [H, H], a row for each receiver
    constants,  # six, with the size and stride of each: see `constant`
    sizes,
    strides,
    potentials_ptr,  # [SEGMENT, B, H], for the potentials of a segment of steps
    grad_x_ptr,  # [T, B, H]
    grad_z0_ptr,  # [B, H], as grad_v0 and grad_i0
    grad_v0_ptr,
    grad_i0_ptr,
    sums_ptr,  # five of [B, H] or None: gradients of the constants, without the factor dt of dt/tau
    T,
    B,
    H,
    dt: tl.float64,
    SOFT_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    METHOD: tl.constexpr,
    INTERVAL: tl.constexpr,
    SEGMENT: tl.constexpr,  # INTERVAL if that is greater than 1
    ROWS: tl.constexpr,  # of the batch
    BLOCK: tl.constexpr,  # at least H
    UNROLL: tl.constexpr,  # receivers
    KEPT: tl.constexpr,  # the weights stay in registers; UNROLL is at least H
):
    """The steps of ROWS batch rows in reverse; their potentials are recomputed from i_jump."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    b = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    n = tl.arange(0, BLOCK)[None, :]
    m = b * H + n
    inside = (b < B) & (n < H)
    M = B * tl.cast(H, tl.int64)
    alpha = constant(constants[5], sizes[5], strides[5], m, inside, 1.0, dtype)
    constants = load_constants(constants, sizes, strides, m, inside, dt, dtype)
    grad_v = load_or_zero(grad_v_ptr, m, inside, dtype)
    grad_i = load_or_zero(grad_i_ptr, m, inside, dtype)
    sums = load_sums(sums_ptr, m, inside, dtype, True)
    weights = None
    if KEPT:
        receiver = tl.arange(0, UNROLL)[None, :, None]
        exists = (receiver < H) & (n[:, None, :] < H)
        weights = tl.load(weights_ptr + receiver * H + n[:, None, :], mask=exists, other=0.0)

    grad_z = tl.zeros_like(grad_v)
    event: tl.constexpr = METHOD == "adjoint" or METHOD == "eventprop"
    if event:
        dt_rounded = (dt + tl.zeros((), tl.float64)).to(dtype)
        grad_next = grad_z  # dL/dz of the step after; in the last step its own
        if grad_out_ptr is not None:
            grad_next = tl.load(grad_out_ptr + (T - 1) * M + m, mask=inside).to(dtype)
    segments = (T + (SEGMENT - 1)) // SEGMENT
    for s in range(segments):
        start = (segments - 1 - s) * SEGMENT
        steps = tl.minimum(T - start, SEGMENT)
        if start == 0:
            v = tl.load(v_ptr + m, mask=inside)
        else:
            v = tl.load(states_ptr + (start // INTERVAL - 1) * M + m, mask=inside)
        for k in range(steps):
            tl.store(potentials_ptr + k * M + m, v, mask=inside)
            i_jump = tl.load(i_jump_ptr + (start + k) * M + m, mask=inside)
            _, v, _ = step_from_jump(i_jump, v, v, constants, None, LIF, SOFT_RESET, None)
        tl.debug_barrier()  # the potentials are read by other threads than those that wrote them
        for r in range(steps):
            k = steps - 1 - r
            place = (start + k) * M + m
            i_jump = tl.load(i_jump_ptr + place, mask=inside)
            potential = tl.load(potentials_ptr + k * M + m, mask=inside)
            grad_out = grad_z
            if grad_out_ptr is not None:
                grad_out += tl.load(grad_out_ptr + place, mask=inside).to(dtype)
            if grad_states_v_ptr is not None:
                grad_v += tl.load(grad_states_v_ptr + place, mask=inside)
                grad_i += tl.load(grad_states_i_ptr + place, mask=inside)
            if event:
                i = potential  # which no other method reads
                if METHOD == "adjoint":
                    if start + k == 0:
                        i = tl.load(i_ptr + m, mask=inside)
                    else:
                        i = current_after(tl.load(i_jump_ptr + place - M, mask=inside), constants)
                grad_x, grad_v, grad_i, sums = event_backward(
                    i_jump, potential, i, grad_out, grad_next, dt_rounded, grad_v, grad_i, sums,
                    constants, LIF, SOFT_RESET, METHOD,
                )  # fmt: skip
                grad_next = grad_out
            else:
                grad_x, grad_v, grad_i, sums = step_backward(
                    i_jump, potential, grad_out, grad_v, grad_i, sums, constants, alpha,
                    LIF, SOFT_RESET, DETACH_RESET, METHOD, None,
                )  # fmt: skip
            tl.store(grad_x_ptr + place, grad_x, mask=inside)
            tl.debug_barrier()  # other threads read the gradients than those that wrote them
            grad_z = _product(
                grad_x_ptr + (start + k) * M, weights, weights_ptr, b, n, B, H, KEPT, UNROLL
            )
    tl.store(grad_z0_ptr + m, grad_z, mask=inside)
    tl.store(grad_v0_ptr + m, grad_v, mask=inside)
    tl.store(grad_i0_ptr + m, grad_i, mask=inside)
    store_sums(sums_ptr, sums, m, inside)
