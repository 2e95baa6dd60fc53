"""Kernels of a whole sequence. A program owns a tile of columns for all time steps.

Time runs in chunks that are unrolled: while one is computed the input of the next is on its way,
so that many loads are in flight. Where T is not a multiple of the chunk (EVEN is false), the steps
of the last one that do not exist are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fused_lif.backends.triton.memory import (
    columns,
    constant,
    load_constants,
    load_or_zero,
    load_steps,
    load_sums,
    place_in_row,
    store,
    store_sums,
    where_all,
)
from fused_lif.backends.triton.step import (
    CURRENT_ENCODER,
    LI,
    current_after,
    event_backward,
    jump,
    step_backward,
    step_from_jump,
)


@triton.jit(do_not_specialize=["T", "rows"])
def lif_forward_kernel(
    x_ptr,  # [T, M] as its layout says; see `place_in_row`
    r_ptr,  # [M] or None: recurrent current, for a single step of a recurrent layer
    v_ptr,  # [M], as i
    i_ptr,
    constants,  # six, with the size and stride of each: see `constant`; alpha only if SMOOTH
    sizes,
    strides,
    out_ptr,  # [T, M] or None
    v_end_ptr,  # [M] or None, as i_end
    i_end_ptr,
    i_jump_ptr,  # [M] or None: current after the input of a single step
    states_ptr,  # [2, rows, M]: after every INTERVAL-th step; None if INTERVAL is 0
    T,
    M,
    rows,
    layout,
    dt: tl.float64,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    SMOOTH: tl.constexpr,
    INTERVAL: tl.constexpr,
    CHUNK: tl.constexpr,  # steps; divides INTERVAL if that is greater than 1
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGE: tl.constexpr,
):
    """All steps of BLOCK columns."""
    m, inside = columns(M, BLOCK, LARGE)
    x_ptr += place_in_row(m, layout)
    stride_t = tl.cast(layout[0], tl.int64)
    x_ahead = load_steps(x_ptr, stride_t, 0, T, inside, CHUNK, False)
    v = tl.load(v_ptr + m, mask=inside)
    i = tl.zeros_like(v) if NEURON == CURRENT_ENCODER else tl.load(i_ptr + m, mask=inside)
    alpha = None
    if SMOOTH is not None:
        alpha = constant(constants[5], sizes[5], strides[5], m, inside, 1.0, v.dtype)
    constants = load_constants(constants, sizes, strides, m, inside, dt, v.dtype)
    if out_ptr is not None:
        out_ptr += m
    states_i_ptr = states_ptr
    if INTERVAL > 0:
        states_ptr += m
        states_i_ptr = states_ptr + tl.cast(rows, tl.int64) * M
    row = 0
    whole_chunks = T // CHUNK
    for is_last in tl.static_range(1 if EVEN else 2):
        for chunk in range(whole_chunks if is_last else 0, whole_chunks + is_last):
            t = chunk * CHUNK + tl.zeros([1], tl.int32)  # the interpreter cannot mask with scalars
            x = x_ahead
            x_ptr += CHUNK * stride_t
            x_ahead = load_steps(x_ptr, stride_t, t + CHUNK, T, inside, CHUNK, False)
            for k in tl.static_range(CHUNK):
                x_k = x[k].to(v.dtype)
                i_jump = jump(x_k, i, NEURON)
                if r_ptr is not None:
                    i_jump += tl.load(r_ptr + m, mask=inside)
                if i_jump_ptr is not None:
                    tl.store(i_jump_ptr + m, i_jump, mask=inside)
                out, v_next, i_next = step_from_jump(
                    i_jump, v, i, constants, alpha, NEURON, SOFT_RESET, SMOOTH
                )
                exists = inside
                if is_last:
                    exists = inside & (t + k < T)
                    v_next = tl.where(exists, v_next, v)
                    i_next = tl.where(exists, i_next, i)
                v = v_next
                i = i_next
                if out_ptr is not None:
                    store(out_ptr, out, exists)
                    out_ptr += M
                if INTERVAL == 1:
                    tl.store(states_ptr, v, mask=exists)
                    states_ptr += M
                    if NEURON != CURRENT_ENCODER:
                        tl.store(states_i_ptr, i, mask=exists)
                        states_i_ptr += M
            if INTERVAL > 1:
                if ((chunk + 1) * CHUNK % INTERVAL == 0) & (row < rows):
                    tl.store(states_ptr, v, mask=inside)
                    states_ptr += M
                    if NEURON != CURRENT_ENCODER:
                        tl.store(states_i_ptr, i, mask=inside)
                        states_i_ptr += M
                    row += 1
    if v_end_ptr is not None:
        tl.store(v_end_ptr + m, v, mask=inside)
    if NEURON != CURRENT_ENCODER:
        tl.store(i_end_ptr + m, i, mask=inside)


@triton.jit(do_not_specialize=["begin", "end", "rows"])
def lif_backward_kernel(
    grad_out_ptr,  # [T, M] as its layout says, or None
    grad_z_ptr,  # [M] or None: joins grad_out, for a single step of a recurrent layer
    grad_next_ptr,  # [M]: dL/dz of the step after the last, None if there is none; read for events
    grad_v_ptr,  # [M] or None, as grad_i
    grad_i_ptr,
    grad_states_v_ptr,  # [T, M] or None, as grad_states_i
    grad_states_i_ptr,
    x_ptr,  # [T, M] as its layout says; i_jump with FROM_JUMP
    states_ptr,  # [2, rows, M]
    v_ptr,  # [M], initial, as i
    i_ptr,
    i_jump_before_ptr,  # [M] or None: i_jump of the step before the first, instead of i
    constants,  # six, with the size and stride of each: see `constant`
    sizes,
    strides,
    grad_x_ptr,  # [T, M] or None
    grad_first_ptr,  # [M] or None: gets dL/dz of the first step, for events
    grad_v0_ptr,  # [M], as grad_i0
    grad_i0_ptr,
    sums_ptr,  # five of [M] or None: gradients of the constants, without the factor dt of dt/tau
    begin,  # of the time steps to take
    end,
    M,
    rows,
    layout,
    grad_out_layout,
    dt: tl.float64,
    NEURON: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    METHOD: tl.constexpr,
    SMOOTH: tl.constexpr,
    FROM_JUMP: tl.constexpr,
    ADD_TO_SUMS: tl.constexpr,
    INTERVAL: tl.constexpr,
    SEGMENT: tl.constexpr,  # steps; INTERVAL if that is greater than 1
    EVEN: tl.constexpr,  # whole segments; otherwise one that is not
    BLOCK: tl.constexpr,
    LARGE: tl.constexpr,
):
    """The steps of BLOCK columns in reverse, a segment recomputed at a time."""
    m, inside = columns(M, BLOCK, LARGE)
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    segments = (end - begin + (SEGMENT - 1)) // SEGMENT
    x_ptr += place_in_row(m, layout)
    stride_x = tl.cast(layout[0], tl.int64)
    last = begin + (segments - 1) * SEGMENT
    x_ahead = load_steps(x_ptr + last * stride_x, stride_x, last, end, inside, SEGMENT, EVEN)
    if grad_out_ptr is not None:
        grad_out_ptr += place_in_row(m, grad_out_layout)
    stride_grad_out = tl.cast(grad_out_layout[0], tl.int64)
    alpha = constant(constants[5], sizes[5], strides[5], m, inside, 1.0, dtype)
    constants = load_constants(constants, sizes, strides, m, inside, dt, dtype)
    grad_v = load_or_zero(grad_v_ptr, m, inside, dtype)
    grad_i = load_or_zero(grad_i_ptr, m, inside, dtype)
    sums = load_sums(sums_ptr, m, inside, dtype, not ADD_TO_SUMS)
    event: tl.constexpr = NEURON != LI and (METHOD == "adjoint" or METHOD == "eventprop")
    if event:
        dt_rounded = (dt + tl.zeros((), tl.float64)).to(dtype)
        if grad_next_ptr is None and grad_out_ptr is not None:
            grad_next = tl.load(grad_out_ptr + (end - 1) * stride_grad_out, mask=inside).to(dtype)
        else:
            grad_next = load_or_zero(grad_next_ptr, m, inside, dtype)

    for n in range(segments):
        start = last - n * SEGMENT
        t = start + tl.zeros([1], tl.int32)  # the interpreter cannot mask with scalars
        if start == 0:
            v = tl.load(v_ptr + m, mask=inside)
            i = load_or_zero(i_ptr, m, inside, dtype)
            if i_jump_before_ptr is not None:
                i = current_after(tl.load(i_jump_before_ptr + m, mask=inside), constants)
        else:
            state_ptr = states_ptr + (start // INTERVAL - 1) * tl.cast(M, tl.int64) + m
            v = tl.load(state_ptr, mask=inside)
            i = tl.zeros_like(v)
            if i_ptr is not None:
                i = tl.load(state_ptr + tl.cast(rows, tl.int64) * M, mask=inside)

        # Recompute the steps, while the gradients of their outputs are on the way.
        i_start = i
        jumps = ()
        potentials = ()
        if grad_out_ptr is not None:
            from_ptr = grad_out_ptr + start * stride_grad_out
            grads_out = load_steps(from_ptr, stride_grad_out, t, end, inside, SEGMENT, EVEN)
        for k in tl.static_range(SEGMENT):
            x_k = x_ahead[k].to(dtype)
            i_jump = x_k if FROM_JUMP else jump(x_k, i, NEURON)
            jumps = jumps + (i_jump,)
            potentials = potentials + (v,)
            if k + 1 < SEGMENT:
                _, v, i = step_from_jump(i_jump, v, i, constants, alpha, NEURON, SOFT_RESET, SMOOTH)

        # Reverse them, while the input of the segment before is on the way.
        from_ptr = x_ptr + (start - SEGMENT) * stride_x
        x_ahead = load_steps(from_ptr, stride_x, t, end, inside & (t > begin), SEGMENT, True)
        place = (start + (SEGMENT - 1)) * tl.cast(M, tl.int64) + m
        for k in tl.static_range(SEGMENT - 1, -1, -1):
            exists = inside if EVEN else inside & (t + k < end)
            grad_out = load_or_zero(grad_z_ptr, m, inside, dtype)
            if grad_out_ptr is not None:
                if grad_z_ptr is None:
                    grad_out = grads_out[k].to(dtype)
                else:
                    grad_out += grads_out[k].to(dtype)
            grad_v_next = grad_v
            grad_i_next = grad_i
            if grad_states_v_ptr is not None:
                grad_v_next += tl.load(grad_states_v_ptr + place, mask=exists)
                if NEURON != CURRENT_ENCODER:
                    grad_i_next += tl.load(grad_states_i_ptr + place, mask=exists)
            if event:
                i = i_start if k == 0 else current_after(jumps[k - 1], constants)
                grad_x, grad_v_next, grad_i_next, sums_next = event_backward(
                    jumps[k], potentials[k], i, grad_out, grad_next, dt_rounded, grad_v_next,
                    grad_i_next, sums, constants, NEURON, SOFT_RESET, METHOD,
                )  # fmt: skip
                grad_next = grad_out if EVEN else tl.where(exists, grad_out, grad_next)
            else:
                grad_x, grad_v_next, grad_i_next, sums_next = step_backward(
                    jumps[k], potentials[k], grad_out, grad_v_next, grad_i_next, sums,
                    constants, alpha, NEURON, SOFT_RESET, DETACH_RESET, METHOD, SMOOTH,
                )  # fmt: skip
            if grad_x_ptr is not None:
                store(grad_x_ptr + place, grad_x, exists)
            place -= M
            if EVEN:
                grad_v = grad_v_next
                grad_i = grad_i_next
                sums = sums_next
            else:
                grad_v = tl.where(exists, grad_v_next, grad_v)
                grad_i = tl.where(exists, grad_i_next, grad_i)
                sums = where_all(exists, sums_next, sums)

    if event and grad_first_ptr is not None:
        tl.store(grad_first_ptr + m, grad_next, mask=inside)
    tl.store(grad_v0_ptr + m, grad_v, mask=inside)
    if NEURON != CURRENT_ENCODER:
        tl.store(grad_i0_ptr + m, grad_i, mask=inside)
    store_sums(sums_ptr, sums, m, inside)
