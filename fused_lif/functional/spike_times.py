r"""Spike times that a loss can differentiate, for layers with ``method="eventprop"``.

Such a layer takes the difference in time of the gradients of its output for the gradient of a spike
time, :math:`dt\,\partial L / \partial t_s = \mathrm{gz}_{t+1} - \mathrm{gz}_t` for a spike in step
:math:`t`. So the gradient that goes back from :func:`spike_times` is, in every step, ``dt`` times
the sum of the gradients of the earlier spike times. What it means is in ``docs/gradients.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_lif.functional._integrate import check_dt

__all__ = ["spike_times"]


def _steps(spikes: Tensor) -> Tensor:
    """Returns 0, 1, ..., T - 1 along the first dimension of ``spikes``."""
    T, *step = spikes.shape
    return torch.arange(T, dtype=torch.int32, device=spikes.device).reshape(T, *(1 for _ in step))


class _SpikeTimes(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(spikes: Tensor, dt: float, count: int) -> tuple[Tensor, Tensor]:
        T = spikes.shape[0]
        # The step after each spike; that after the last step if there is no spike.
        after = torch.where(spikes > 0, _steps(spikes) + 1, T)
        if count == 1:  # several times faster than what follows
            after = after.amin(0, keepdim=True)
        else:
            after = after.topk(count, dim=0, largest=False, sorted=True).values
        return after.to(torch.promote_types(spikes.dtype, torch.float32)) * dt, after

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        spikes, ctx.dt, ctx.count = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(spikes, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        spikes, after = ctx.saved_tensors
        T, *step = spikes.shape
        jump = ctx.dt * grad
        if ctx.count == 1:
            grad_spikes = torch.where(_steps(spikes) >= after, jump, 0)
        else:
            # Row T is left out: missing spikes and spikes in the last step have no gradient.
            jumps = grad.new_zeros(T + 1, *step).scatter_add(0, after.long(), jump)
            grad_spikes = jumps[:T].cumsum(0)
        return grad_spikes.to(spikes.dtype), None, None


def spike_times(spikes: Tensor, dt: float = 0.001, count: int = 1) -> Tensor:
    r"""Returns the times of the first spikes of each neuron.

    A spike in step :math:`t = 0, 1, \dots` has the time :math:`(t + 1)\,dt`, the end of the step. A
    missing spike has the time :math:`T\,dt`, the end of the sequence: a loss that wants a neuron to
    be early, such as a cross entropy of the negative times, stays finite and prefers those that
    fire. Missing spikes have no gradient; nor have spikes in the last step, as the layer sees no
    step after it. If they matter, run the layer for one step more.

    The gradient is right for spikes of a layer with ``method="eventprop"``, directly from the layer
    or through operations that keep each spike in its place, like indexing. With surrogate
    derivatives it has no meaning. Through spikes of float16 or bfloat16 it is rounded to that type;
    with ``count > 1``, to the precision of its sum over the spikes of a neuron.

    Args:
        spikes: Spikes of all steps, shape ``[T, *step]``, such as ``[T, B, N]``.
        dt: Length of one step, in seconds.
        count: How many spikes of each neuron, at most T.

    Returns:
        Times in seconds, in ascending order, shape ``[count, *step]``; float64 for float64 spikes,
        else float32.

    Raises:
        TypeError: If the spikes are not floating-point.
        ValueError: If there is no time dimension, ``dt`` is not positive, or ``count`` is no
            integer between 1 and T.

    Example:
        >>> spikes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> spike_times(spikes, count=2)
        tensor([[0.0020, 0.0040],
                [0.0040, 0.0050]])
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        what = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, got {what}")
    if spikes.dim() == 0:
        raise ValueError(
            "spikes must have time as first dimension, got a tensor without dimensions"
        )
    check_dt(dt)
    if not isinstance(count, int) or not 1 <= count <= spikes.shape[0]:
        raise ValueError(
            f"count must be an integer between 1 and the {spikes.shape[0]} steps, got {count!r}"
        )
    times: Tensor = _SpikeTimes.apply(spikes, dt, count)[0]
    return times
