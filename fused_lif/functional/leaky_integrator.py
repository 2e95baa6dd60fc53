r"""Leaky integrators (LI): neurons that never spike, without parameters of their own.

Names and signatures are those of ``norse.torch.functional.leaky_integrator``. One step is

.. math::
    i' &= i_t + x_t \\
    v_{t+1} &= v_t + dt\,\tau_\text{mem}^{-1} (v_\text{leak} - v_t + i') \\
    i_{t+1} &= i' - dt\,\tau_\text{syn}^{-1}\, i'

and the output of a step is the potential :math:`v_{t+1}`. All functions are differentiable with
respect to the input, the initial state and the constants.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from fused_lif.functional._integrate import integrate
from fused_lif.types import LIParameters, LIState, Neuron

__all__ = [
    "LIParameters",
    "LIState",
    "li_feed_forward_integral",
    "li_feed_forward_step",
    "li_step",
]


def li_step(
    input_spikes: Tensor,
    state: LIState,
    input_weights: Tensor,
    p: LIParameters = LIParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, LIState]:
    """Runs a layer of leaky integrators with weights for one step.

    Args:
        input_spikes: Input spikes, shape ``[B, I]``.
        state: State before the step; ``v`` and ``i`` of shape ``[B, N]``.
        input_weights: Weights, shape ``[N, I]``; the current is ``input_spikes @ input_weights.T``.
        p: Constants of the integrator.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Potentials of shape ``[B, N]`` and the state after the step.
    """
    return li_feed_forward_step(linear(input_spikes, input_weights), state, p, dt, backend=backend)


def li_feed_forward_step(
    input_tensor: Tensor,
    state: LIState,
    p: LIParameters = LIParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, LIState]:
    """Runs a layer of leaky integrators for one step.

    Args:
        input_tensor: Input current, shape ``[B, N]`` or any other.
        state: State before the step; ``v`` and ``i`` of that shape, or what broadcasts to it.
        p: Constants of the integrator.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Potentials of the shape of the input and the state after the step.

    Raises:
        TypeError: If the input is not floating-point.
        ValueError: If shapes, devices or values do not fit.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    out, v, i, _ = integrate(
        Neuron.LI, input_tensor, state.v, state.i, p, dt, single_step=True, backend=backend
    )
    assert i is not None
    return out, LIState(v, i)


def li_feed_forward_integral(
    input_tensor: Tensor,
    state: LIState,
    p: LIParameters = LIParameters(),
    dt: float = 0.001,
    *,
    record_states: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, LIState]:
    """Runs a layer of leaky integrators over a sequence.

    Args:
        input_tensor: Input current, shape ``[T, B, N]`` or any other with time first.
        state: State before the first step; ``v`` and ``i`` of shape ``[B, N]``, or what broadcasts
            to it.
        p: Constants of the integrator.
        dt: Length of one step, in seconds.
        record_states: Return the states after all steps, not only after the last.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Potentials of shape ``[T, B, N]`` and the state after the last step, or with
        ``record_states`` after every step: ``v`` and ``i`` of shape ``[T, B, N]``.

    Raises:
        TypeError: If the input is not floating-point.
        ValueError: If shapes, devices or values do not fit, or there is no time step.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    out, v, i, states = integrate(
        Neuron.LI,
        input_tensor,
        state.v,
        state.i,
        p,
        dt,
        record_states=record_states,
        backend=backend,
    )
    if states is not None:
        return out, LIState(*states.unbind(0))
    assert i is not None
    return out, LIState(v, i)
