"""How kernels read sequences and constants, and write what they computed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns(M, BLOCK: tl.constexpr, LARGE: tl.constexpr):
    """The columns of this program, and which of them exist. LARGE: they need 64 bits."""
    first = tl.program_id(0).to(tl.int64 if LARGE else tl.int32) * BLOCK
    m = first + tl.arange(0, BLOCK)
    return m, m < M


@triton.jit
def place_in_row(m, layout):
    """Where column m lies in a sequence of layout ``stride_t, row, stride_row``, see ``Layout``."""
    _, row, stride_row = layout
    return m if row is None else m // row * tl.cast(stride_row, tl.int64) + m % row


@triton.jit
def constant(pointer, size, stride, m, inside, factor, dtype: tl.constexpr):
    """The values of a constant in columns m, times a factor: elements m // stride % size.

    The factor is dt for dt/tau, which is formed in the dtype of tau (float32 for half types) as
    eager torch does, and 1 otherwise. Zero without a pointer: of what a neuron does not have.
    """
    if pointer is None:
        return tl.zeros(m.shape, dtype)
    else:
        element = pointer.dtype.element_ty
        of: tl.constexpr = tl.float64 if element == tl.float64 else tl.float32
        value = tl.load(pointer + m // stride % size, mask=inside).to(of)
        # Added to zero because the interpreter passes numbers as they are.
        return (value * (factor + tl.zeros((), tl.float64)).to(of)).to(dtype)


@triton.jit
def load_constants(constants, sizes, strides, m, inside, dt, dtype: tl.constexpr):
    """The tuple ``dt_tau_syn_inv, dt_tau_mem_inv, v_leak, v_th, v_reset`` in columns m."""
    return (
        constant(constants[0], sizes[0], strides[0], m, inside, dt, dtype),
        constant(constants[1], sizes[1], strides[1], m, inside, dt, dtype),
        constant(constants[2], sizes[2], strides[2], m, inside, 1.0, dtype),
        constant(constants[3], sizes[3], strides[3], m, inside, 1.0, dtype),
        constant(constants[4], sizes[4], strides[4], m, inside, 1.0, dtype),
    )


@triton.jit
def load_or_zero(pointer, m, inside, dtype: tl.constexpr):
    """Values in columns m, zero without a pointer."""
    if pointer is None:
        return tl.zeros(m.shape, dtype)
    else:
        return tl.load(pointer + m, mask=inside).to(dtype)


@triton.jit
def store(pointer, value, mask):
    """Stores a truth value as 0 or 1, and numbers rounded to the type of the pointer."""
    element = pointer.dtype.element_ty
    if value.dtype == tl.int1:
        value = tl.where(value, 1.0, 0.0)
    if value.dtype == tl.float64 and element.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    tl.store(pointer, value.to(element), mask=mask)


@triton.jit
def load_steps(x_ptr, stride_t, t, T, inside, STEPS: tl.constexpr, ALL_EXIST: tl.constexpr):
    """STEPS steps of a sequence as a tuple, those before T only; x_ptr and t are of the first."""
    steps = ()
    for k in tl.static_range(STEPS):
        exists = inside if ALL_EXIST else inside & (t + tl.full([1], k, tl.int32) < T)
        steps = steps + (tl.load(x_ptr, mask=exists),)
        x_ptr += stride_t
    return steps


@triton.jit
def load_sums(pointers, m, inside, dtype: tl.constexpr, START_AT_ZERO: tl.constexpr):
    """Sums of the gradients of the five constants."""
    zero = tl.zeros(m.shape, dtype)
    return (
        zero if START_AT_ZERO else load_or_zero(pointers[0], m, inside, dtype),
        zero if START_AT_ZERO else load_or_zero(pointers[1], m, inside, dtype),
        zero if START_AT_ZERO else load_or_zero(pointers[2], m, inside, dtype),
        zero if START_AT_ZERO else load_or_zero(pointers[3], m, inside, dtype),
        zero if START_AT_ZERO else load_or_zero(pointers[4], m, inside, dtype),
    )


@triton.jit
def where_all(condition, a, b):
    """``tl.where`` of the sums of the five constants."""
    return (
        tl.where(condition, a[0], b[0]),
        tl.where(condition, a[1], b[1]),
        tl.where(condition, a[2], b[2]),
        tl.where(condition, a[3], b[3]),
        tl.where(condition, a[4], b[4]),
    )


@triton.jit
def store_sums(pointers, sums, m, inside):
    """Stores the sums of those constants that have a pointer."""
    for k in tl.static_range(5):
        if pointers[k] is not None:
            tl.store(pointers[k] + m, sums[k], mask=inside)
