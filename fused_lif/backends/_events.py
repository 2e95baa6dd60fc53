"""The event-based gradients in plain torch: the ``adjoint`` and ``eventprop`` of the reference.

They are derived in docs/gradients.md, after Wunderlich & Pehle 2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Options(NamedTuple):
    """What a sequence needs besides tensors."""

    dt: float
    soft_reset: bool
    is_adjoint: bool


class _Step(NamedTuple):
    x: Tensor  # input, before weights
    z_before: Tensor | None
    i: Tensor | None  # before the input
    i_jump: Tensor
    drive: Tensor
    z: Tensor
    v_spiked: Tensor
    v_after: Tensor
    i_after: Tensor | None


def _steps(
    x: Tensor,
    z: Tensor | None,
    v: Tensor,
    i: Tensor | None,
    input_weights: Tensor | None,
    recurrent_weights: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    v_leak: Tensor,
    v_th: Tensor,
    v_reset: Tensor,
    *,
    soft_reset: bool,
) -> list[_Step]:
    """Advances step by step; arguments as in :class:`EventSequence`."""
    steps = []
    for x_t in x.unbind(0):
        z_before, i_before, i_jump = z, i, x_t
        if input_weights is not None and recurrent_weights is not None:
            assert i is not None
            assert z is not None
            i_jump = (i + linear(x_t, input_weights)) + linear(z, recurrent_weights)
        elif i is not None:
            i_jump = i + x_t
        drive = (v_leak - v) + i_jump
        v_decayed = v + a * drive
        spikes = v_decayed > v_th
        z = spikes.to(v.dtype)
        v_spiked = v_decayed - v_th if soft_reset else v_reset.expand_as(v)
        v = torch.where(spikes, v_spiked, v_decayed)
        if b is not None:
            i = i_jump - b * i_jump
        steps.append(_Step(x_t, z_before, i_before, i_jump, drive, z, v_spiked, v, i))
    return steps


def _inverse_slope(drive: Tensor, drive_up: Tensor, a: Tensor, way: Tensor) -> Tensor:
    """Returns 1 / (a drive); zero where that is at most 2^-60, or drive_up 2^-20 of the way."""
    slope = a * drive
    passes = (drive_up > 2**-20 * way.abs()) & (slope.abs() > 2**-60)
    return torch.where(passes, 1 / torch.where(passes, slope, 1), 0)


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


class EventSequence(torch.autograd.Function):
    """Spikes and states of all steps; spikes whose times are differentiated.

    ``x`` is ``[T, *step]``, or ``[T, *batch, I]`` with weights; ``a`` and ``b`` are ``dt/tau``.
    Without a synapse ``i`` and ``b`` are ``None``, without recurrence ``z`` and the weights.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors_and_options: Any) -> tuple[Tensor, ...]:
        *tensors, options = tensors_and_options
        steps = _steps(*tensors, soft_reset=options.soft_reset)
        states = [torch.stack([s.v_after for s in steps])]
        if currents := [s.i_after for s in steps if s.i_after is not None]:
            states.append(torch.stack(currents))
        return torch.stack([s.z for s in steps]), torch.stack(states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        *_, input_weights, recurrent_weights, a, b, v_leak, v_th, v_reset = ctx.saved_tensors
        dt, soft_reset, is_adjoint = ctx.options
        steps = _steps(*ctx.saved_tensors, soft_reset=soft_reset)
        grad_v = torch.zeros_like(grad_out[0])
        grad_i, grad_z, grad_next = grad_v, grad_v, None
        sums = dict.fromkeys(("a", "b", "v_leak", "v_th", "v_reset"), grad_v)
        grad_in = grad_rec = torch.zeros_like(grad_out[:0].sum())
        grads_x = []
        for t, step in reversed(list(enumerate(steps))):
            z = step.z > 0
            grad_v = grad_v + grad_states[0, t]
            if step.i is not None:
                grad_i = grad_i + grad_states[1, t]
            grad_after = grad_i
            grad_z = grad_z + grad_out[t]
            if is_adjoint:
                current = step.i_jump if step.i is None else step.i
                drive = step.drive - (step.i_jump - current)
                inverse = _inverse_slope(drive, drive.abs(), a, v_th - v_leak)
                earlier, decayed = dt * grad_z, grad_v - a * grad_v
            else:
                current, drive = step.i_jump, step.drive
                inverse = _inverse_slope(drive, drive, a, v_th - v_leak)
                earlier = torch.zeros_like(grad_z) if grad_next is None else grad_z - grad_next
                decayed = grad_v
            slope_after = a * ((v_leak - step.v_spiked) + current)
            grad_s = torch.where(z, (earlier + slope_after * decayed) * inverse, 0)
            d = torch.where(z, grad_s, decayed)
            sums["v_th"] = sums["v_th"] - grad_s
            if not soft_reset:
                sums["v_reset"] = sums["v_reset"] + torch.where(z, grad_v, 0)
            sums["v_leak"] = sums["v_leak"] + a * d
            sums["a"] = sums["a"] + d * step.drive
            grad_next, grad_x = grad_z, a * d
            if b is not None:
                scale = torch.where(b != 0, a / b, 0) if is_adjoint else 1
                sums["b"] = sums["b"] - scale * grad_i * step.i_jump
                if is_adjoint:
                    grad_x = grad_i + b * (grad_v - grad_i)
                else:
                    grad_x = grad_x + (grad_i - b * grad_i)
            grad_v, grad_i = (d, grad_x) if is_adjoint else (d - a * d, grad_x)
            if input_weights is not None:
                # Norse pairs the gradient after the step with the input and the spikes of the step.
                sent = step.z if is_adjoint else step.z_before
                assert sent is not None
                received = _rows(grad_after if is_adjoint else grad_x).mT
                grad_in = grad_in + received @ _rows(step.x)
                grad_rec = grad_rec + received @ _rows(sent)
                grad_z = grad_x @ recurrent_weights
                grads_x.append(grad_x @ input_weights)
            else:
                grad_z = torch.zeros_like(grad_z)
                grads_x.append(grad_x)
        constants = (
            None if value is None else sums[name].sum_to_size(value.shape)
            for name, value in zip(sums, (a, b, v_leak, v_th, v_reset), strict=True)
        )
        return (
            torch.stack(grads_x[::-1]),
            None if input_weights is None else grad_z,
            grad_v,
            None if b is None else grad_i,
            None if input_weights is None else grad_in,
            None if input_weights is None else grad_rec,
            *constants,
            None,
        )
