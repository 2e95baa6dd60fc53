"""Launches of the kernels: plans, grids and options."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fused_lif.backends.triton import plan
from fused_lif.backends.triton.arguments import (
    MAX_INTERVAL,
    Constants,
    Layout,
    divide_up,
    power_of_2,
)
from fused_lif.backends.triton.reduce import constant_grads_kernel
from fused_lif.backends.triton.sequence import lif_backward_kernel, lif_forward_kernel
from fused_lif.surrogate import EVENT_METHODS

_MAX_CHUNKS = 65535  # blocks in the second dimension of a grid


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        import numpy as np  # the interpreter's; it would warn of infinities

        return np.errstate(all="ignore")
    if device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, **arguments: Any
) -> None:
    """Launches a kernel on the current stream of a device.

    Without fused multiply-adds: a different rounding would be a different spike.
    """
    with _on(device):
        kernel[grid](**arguments, num_warps=warps, enable_fp_fusion=False)


def device_of(t: Tensor) -> plan.Device:
    """What the plans depend on."""
    return plan.device_of(None if t.device.type == "cpu" else t.device.index)


@dataclass
class Forward:
    """Arguments of ``lif_forward_kernel``."""

    x: Tensor
    layout: Layout
    v: Tensor
    i: Tensor | None
    constants: Constants
    T: int
    dt: float
    neuron: int
    soft_reset: bool
    smooth: str | None = None
    out: Tensor | None = None
    v_end: Tensor | None = None
    i_end: Tensor | None = None
    r: Tensor | None = None
    i_jump: Tensor | None = None
    states: Tensor | None = None
    rows: int = 0
    interval: int = 0

    def launch(self) -> None:
        """Launches the kernel."""
        M = self.v.numel()
        p = plan.sequence_plan(device_of(self.x), "lif_forward", M, self.x.element_size())
        chunk = min(p.chunk, power_of_2(self.T))
        if self.interval > 1:  # the largest power of two that divides both
            chunk = min(chunk, self.interval & -self.interval)
        launch(
            lif_forward_kernel,
            (divide_up(M, p.block),),
            self.x.device,
            p.warps,
            x_ptr=self.x,
            r_ptr=self.r,
            v_ptr=self.v,
            i_ptr=self.i,
            **self.constants.arguments(),
            out_ptr=self.out,
            v_end_ptr=self.v_end,
            i_end_ptr=self.i_end,
            i_jump_ptr=self.i_jump,
            states_ptr=self.states,
            T=self.T,
            M=M,
            rows=self.rows,
            layout=self.layout,
            dt=self.dt,
            NEURON=int(self.neuron),
            SOFT_RESET=self.soft_reset,
            SMOOTH=self.smooth,
            INTERVAL=self.interval,
            CHUNK=chunk,
            EVEN=self.T % chunk == 0,
            BLOCK=p.block,
            LARGE=M + p.block >= 2**31,
        )


@dataclass
class Backward:
    """Arguments of ``lif_backward_kernel``."""

    grad_out: Tensor | None
    grad_out_layout: Layout
    grad_v: Tensor | None
    grad_i: Tensor | None
    grad_states_v: Tensor | None
    grad_states_i: Tensor | None
    x: Tensor
    layout: Layout
    states: Tensor
    v: Tensor
    i: Tensor | None
    constants: Constants
    grad_x: Tensor | None
    grad_v0: Tensor
    grad_i0: Tensor | None
    sums: ConstantSums
    T: int
    rows: int
    dt: float
    neuron: int
    soft_reset: bool
    detach_reset: bool
    method: str
    interval: int
    smooth: str | None = None
    grad_z: Tensor | None = None
    grad_next: Tensor | None = None
    grad_first: Tensor | None = None
    i_jump_before: Tensor | None = None
    from_jump: bool = False
    add_to_sums: bool = False

    def launch(self) -> None:
        """Launches the kernel, twice if there is an incomplete segment.

        One kernel for both kinds of segments would be twice as long.
        """
        segment = min(segment_of(self.interval), power_of_2(self.T))
        whole = self.T // segment * segment
        if not 0 < whole < self.T:
            self._launch(segment, 0, self.T)
            return
        grad_first = self.v.new_empty(self.v.shape) if self.method in EVENT_METHODS else None
        replace(self, grad_first=grad_first)._launch(segment, whole, self.T)
        rest = replace(self, grad_v=self.grad_v0, grad_i=self.grad_i0, add_to_sums=True)
        replace(rest, grad_next=grad_first)._launch(segment, 0, whole)

    def _launch(self, segment: int, begin: int, end: int) -> None:
        M = self.v.numel()
        size = self.x.element_size()
        if self.method in EVENT_METHODS:  # with the tiles of half types they would spill
            size = max(4, size)
        p = plan.sequence_plan(device_of(self.x), "lif_backward", M, size)
        launch(
            lif_backward_kernel,
            (divide_up(M, p.block),),
            self.x.device,
            p.warps,
            grad_out_ptr=self.grad_out,
            grad_z_ptr=self.grad_z,
            grad_next_ptr=self.grad_next,
            grad_v_ptr=self.grad_v,
            grad_i_ptr=self.grad_i,
            grad_states_v_ptr=self.grad_states_v,
            grad_states_i_ptr=self.grad_states_i,
            x_ptr=self.x,
            states_ptr=self.states,
            v_ptr=self.v,
            i_ptr=self.i,
            i_jump_before_ptr=self.i_jump_before,
            **self.constants.arguments(),
            grad_x_ptr=self.grad_x,
            grad_first_ptr=self.grad_first,
            grad_v0_ptr=self.grad_v0,
            grad_i0_ptr=self.grad_i0,
            sums_ptr=self.sums.tensors,
            begin=begin,
            end=end,
            M=M,
            rows=self.rows,
            layout=self.layout,
            grad_out_layout=self.grad_out_layout,
            dt=self.dt,
            NEURON=int(self.neuron),
            SOFT_RESET=self.soft_reset,
            DETACH_RESET=self.detach_reset,
            METHOD=self.method,
            SMOOTH=self.smooth,
            FROM_JUMP=self.from_jump,
            ADD_TO_SUMS=self.add_to_sums,
            INTERVAL=self.interval,
            SEGMENT=segment,
            EVEN=(end - begin) % segment == 0,
            BLOCK=p.block,
            LARGE=M + p.block >= 2**31,
        )


def segment_of(interval: int) -> int:
    """Steps that a backward recomputes at once, where states are kept after every so many."""
    return interval if interval > 1 else MAX_INTERVAL


class ConstantSums:
    """Gradients of the constants: per column, from where they are added up to the shape of each.

    ``needs`` has bits in the order of a backward's results. What a program adds up depends on the
    sizes alone: so does every bit of the result.
    """

    def __init__(self, given: tuple[Tensor | None, ...], needs: int, like: Tensor) -> None:
        self.given = given[:5]
        self.like = like
        self.needed = [c is not None and needs >> (3 + k) & 1 == 1 for k, c in enumerate(given[:5])]
        columns = iter(like.new_empty((sum(self.needed), *like.shape)))
        self.tensors = tuple(next(columns) if n else None for n in self.needed)

    def finish(self, constants: Constants, dt: float) -> list[Tensor]:
        """Returns the gradients; empty ones of what is not needed."""
        grads = [
            torch.empty_like(c, memory_format=torch.contiguous_format)
            if c is not None and needed
            else self.like.new_empty(0)
            for c, needed in zip(self.given, self.needed, strict=True)
        ]
        if self.like.numel() == 0:
            return [g.zero_() for g in grads]
        layouts: dict[tuple[int, int], list[int]] = {}
        for k, needed in enumerate(self.needed):
            if needed:
                layouts.setdefault((constants.sizes[k], constants.strides[k]), []).append(k)
        for (size, stride), of in layouts.items():
            # A constant that was repeated for the kernels has a sum for each repetition.
            sums = [grads[k] if grads[k].numel() == size else self.like.new_empty(size) for k in of]
            is_rate = sum(1 << n for n, k in enumerate(of) if k < 2)
            _add_up(tuple(self.tensors[k] for k in of), tuple(sums), dt, is_rate, size, stride)
            for k, s in zip(of, sums, strict=True):
                repeated = constants.tensors[k]
                if s is not grads[k] and repeated is not None:
                    grads[k].copy_(s.view(repeated.shape).sum_to_size(grads[k].shape))
        return grads


def _add_up(
    sums: tuple[Tensor | None, ...],  # each [outer, size, stride]
    to: tuple[Tensor, ...],
    dt: float,
    is_rate: int,  # bits: gradients of dt/tau, from where those of 1/tau follow
    size: int,
    stride: int,
) -> None:
    assert sums[0] is not None
    length = sums[0].numel() // size
    block = min(32, power_of_2(size)) if stride == 1 else 1
    rows = 1024 // block
    chunk = rows * max(4, divide_up(length, rows * _MAX_CHUNKS))
    chunks = divide_up(length, chunk)
    through = to
    if chunks > 1:
        through = tuple(to[0].new_empty((len(to), chunks, size), dtype=torch.float64))
    launch(
        constant_grads_kernel,
        (divide_up(size, block), chunks, len(to)),
        to[0].device,
        4,
        sums_ptr=sums,
        grads_ptr=through,
        dt=dt,
        size=size,
        stride=stride,
        length=length,
        chunk=chunk,
        IS_RATE=is_rate if chunks == 1 else 0,
        BLOCK=block,
        ROWS=rows,
    )
    if chunks > 1:
        _add_up(through, to, dt, is_rate, size, 1)
