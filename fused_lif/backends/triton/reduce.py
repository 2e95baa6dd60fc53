"""From the gradients of the constants per column to those of the tensors that the user gave.

These are sums over the batch and every other dimension that was broadcast, in a fixed order,
without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fused_lif.backends.triton.memory import store


@triton.jit
def constant_grads_kernel(
    sums_ptr,  # as many as there are constants in the grid; each [outer, size, stride]
    grads_ptr,  # as many of [chunks, size]
    dt: tl.float64,
    size,
    stride,
    length,  # outer * stride: columns to add up for one element
    chunk,  # how many of them a program adds up
    IS_RATE: tl.constexpr,  # bits: gradients of dt/tau, to be times dt
    BLOCK: tl.constexpr,  # elements
    ROWS: tl.constexpr,  # columns at once
):
    """Element e of a constant has the columns m with m // stride % size == e."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for which in tl.static_range(len(sums_ptr)):
        if tl.program_id(2) == which:
            total = tl.zeros((ROWS, BLOCK), tl.float64)
            begin = tl.program_id(1).to(tl.int64) * chunk
            for first in range(0, chunk, ROWS):
                n = begin + first + tl.arange(0, ROWS)[:, None]
                m = (n // stride * size + e[None, :]) * stride + n % stride
                exists = (n < tl.minimum(begin + chunk, length)) & (e < size)[None, :]
                total += tl.load(sums_ptr[which] + m, mask=exists, other=0.0).to(tl.float64)
            total = tl.sum(total, 0)
            if IS_RATE >> which & 1:
                total *= dt
            to_ptr = grads_ptr[which] + tl.program_id(1).to(tl.int64) * size
            store(to_ptr + e, total, e < size)
