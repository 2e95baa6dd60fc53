r"""Leaky integrate-and-fire (LIF) neurons, without parameters of their own.

Names and signatures are those of ``norse.torch.functional.lif``. One step of length :math:`dt` is,
with :math:`H(s) = 1` for :math:`s > 0` and 0 otherwise,

.. math::
    i' &= i_t + x_t \\
    v' &= v_t + dt\,\tau_\text{mem}^{-1} (v_\text{leak} - v_t + i') \\
    z_t &= H(v' - v_\text{th}) \\
    v_{t+1} &= (1 - z_t)\, v' + z_t\, v_\text{reset} \\
    i_{t+1} &= i' - dt\,\tau_\text{syn}^{-1}\, i'

that is the explicit Euler step of :math:`\dot v = \tau_\text{mem}^{-1}(v_\text{leak} - v + i)`,
:math:`\dot i = -\tau_\text{syn}^{-1} i` after the jump of the current by the input. With
``reset="soft"`` a spike subtracts the threshold instead: :math:`v_{t+1} = v' - z_t\, v_\text{th}`.

A layer with recurrent connections, :func:`lif_step` and :func:`lif_step_integral`, takes input
spikes :math:`x_t` and its own spikes of the step before through weights:

.. math::
    i' = (i_t + W_{in}\, x_t) + W_{rec}\, z_{t-1}

The gradient of :math:`H` is the surrogate ``p.method`` (:mod:`fused_lif.surrogate`). It also flows
through the reset, unless ``detach_reset=True``, the default of recurrent layers. The methods
``"eventprop"`` and ``"adjoint"`` differentiate the times of the spikes instead, always through the
reset; see docs/gradients.md. ``"eventprop"`` needs a sequence, not single steps. All functions are
differentiable with respect to the input, the weights, the initial state and the five constants.
Nothing is saved per step but the input, and in a recurrent layer the current :math:`i'` and, as
bits, the spikes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fused_lif.functional._integrate import integrate
from fused_lif.types import LIFFeedForwardState, LIFParameters, LIFState, Neuron, Recurrence

__all__ = [
    "LIFFeedForwardState",
    "LIFParameters",
    "LIFState",
    "default_bio_initial_state",
    "default_bio_parameters",
    "lif_current_encoder",
    "lif_current_encoder_integral",
    "lif_feed_forward_integral",
    "lif_feed_forward_step",
    "lif_step",
    "lif_step_integral",
]

#: Constants of the size of a biological neuron, in mV and 1/ms, as in Norse.
default_bio_parameters = LIFParameters(
    tau_syn_inv=torch.tensor(1 / 0.5, device="cpu"),
    tau_mem_inv=torch.tensor(1 / 20.0, device="cpu"),
    v_leak=torch.tensor(-65.0, device="cpu"),
    v_th=torch.tensor(-50.0, device="cpu"),
    v_reset=torch.tensor(-65.0, device="cpu"),
)

#: State of a neuron at rest for :data:`default_bio_parameters`.
default_bio_initial_state = LIFState(
    z=torch.tensor(0.0, device="cpu"),
    v=torch.tensor(-65.0, device="cpu"),
    i=torch.tensor(0.0, device="cpu"),
)


def lif_step(
    input_spikes: Tensor,
    state: LIFState,
    input_weights: Tensor,
    recurrent_weights: Tensor,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    reset: str = "hard",
    detach_reset: bool = True,
    autapses: bool = True,
    exact: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, LIFState]:
    """Runs a layer of LIF neurons with recurrent connections for one step.

    Args:
        input_spikes: Input :math:`x`, shape ``[B, I]``, ``[I]`` or any other with ``I`` last.
        state: State before the step; ``z``, ``v`` and ``i`` of shape ``[B, H]``, or what broadcasts
            to it.
        input_weights: :math:`W_{in}`, shape ``[H, I]``.
        recurrent_weights: :math:`W_{rec}`, shape ``[H, H]``, from column to row.
        p: Constants of the neuron.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        autapses: Give the diagonal of ``recurrent_weights`` its gradient; with ``False``, zero.
        exact: See :func:`lif_step_integral`.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes :math:`z` of shape ``[B, H]`` and the state after the step.

    Raises:
        TypeError: If the input or the weights are not floating-point tensors.
        ValueError: If shapes, devices or values do not fit.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    z, v, i, _ = integrate(
        Neuron.LIF,
        input_spikes,
        state.v,
        state.i,
        p,
        dt,
        single_step=True,
        reset=reset,
        detach_reset=detach_reset,
        recurrence=Recurrence(state.z, input_weights, recurrent_weights, autapses, exact),
        backend=backend,
    )
    assert i is not None
    return z, LIFState(z, v, i)


def lif_step_integral(
    input_tensor: Tensor,
    state: LIFState,
    input_weights: Tensor,
    recurrent_weights: Tensor,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    reset: str = "hard",
    detach_reset: bool = True,
    autapses: bool = True,
    record_states: bool = False,
    exact: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, LIFState]:
    """Runs a layer of LIF neurons with recurrent connections over a sequence.

    Returns the spikes of all steps, as Norse's documentation says; Norse 1.1.0 itself returns those
    of the last step only.

    Sums over weights are taken in ascending order of the sender, and where few senders fire only
    over those. The result for a batch row depends neither on the other rows nor on threads, for an
    input of spikes nor on the instruction set; it differs from that of eager torch by the rounding
    of these sums.

    Args:
        input_tensor: Input :math:`x`, shape ``[T, B, I]``, ``[T, I]`` or any other with time first
            and ``I`` last; spikes, or any other numbers.
        state: State before the first step; ``z``, ``v`` and ``i`` of shape ``[B, H]``, or what
            broadcasts to it.
        input_weights: :math:`W_{in}`, shape ``[H, I]``.
        recurrent_weights: :math:`W_{rec}`, shape ``[H, H]``, from column to row.
        p: Constants of the neuron.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        autapses: Give the diagonal of ``recurrent_weights`` its gradient; with ``False``, zero.
        record_states: Return the states after all steps, not only after the last.
        exact: Compute the same matrix products step by step as eager torch, in float32 and float64:
            slower, but gives the bits of an old run of Norse.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes :math:`z` of shape ``[T, B, H]`` and the state after the last step, or with
        ``record_states`` after every step: ``z``, ``v`` and ``i`` of shape ``[T, B, H]``.

    Raises:
        TypeError: If the input or the weights are not floating-point tensors.
        ValueError: If shapes, devices or values do not fit, or there is no time step.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    z, v, i, states = integrate(
        Neuron.LIF,
        input_tensor,
        state.v,
        state.i,
        p,
        dt,
        reset=reset,
        detach_reset=detach_reset,
        record_states=record_states,
        recurrence=Recurrence(state.z, input_weights, recurrent_weights, autapses, exact),
        backend=backend,
    )
    if states is not None:
        return z, LIFState(z, *states.unbind(0))
    assert i is not None
    return z, LIFState(z[-1].clone(), v, i)  # a view would keep all steps alive


def lif_feed_forward_step(
    input_spikes: Tensor,
    state: LIFFeedForwardState,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    reset: str = "hard",
    detach_reset: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, LIFFeedForwardState]:
    """Runs a layer of LIF neurons for one step.

    Args:
        input_spikes: Input current :math:`x`, shape ``[B, N]`` or any other.
        state: State before the step; ``v`` and ``i`` of that shape, or what broadcasts to it.
        p: Constants of the neuron.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes :math:`z` of shape ``[B, N]`` and the state after the step.

    Raises:
        TypeError: If the input is not floating-point.
        ValueError: If shapes, devices or values do not fit.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    z, v, i, _ = integrate(
        Neuron.LIF,
        input_spikes,
        state.v,
        state.i,
        p,
        dt,
        single_step=True,
        reset=reset,
        detach_reset=detach_reset,
        backend=backend,
    )
    assert i is not None
    return z, LIFFeedForwardState(v, i)


def lif_feed_forward_integral(
    input_tensor: Tensor,
    state: LIFFeedForwardState,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    reset: str = "hard",
    detach_reset: bool = False,
    record_states: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, LIFFeedForwardState]:
    """Runs a layer of LIF neurons over a sequence.

    Args:
        input_tensor: Input current :math:`x`, shape ``[T, B, N]``, ``[T, N]``, ``[T, B, C, H, W]``
            or any other with time first.
        state: State before the first step; ``v`` and ``i`` of shape ``[B, N]``, or what broadcasts
            to it.
        p: Constants of the neuron.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        record_states: Return the states after all steps, not only after the last.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes :math:`z` of shape ``[T, B, N]`` and the state after the last step, or with
        ``record_states`` after every step: ``v`` and ``i`` of shape ``[T, B, N]``.

    Raises:
        TypeError: If the input is not floating-point.
        ValueError: If shapes, devices or values do not fit, or there is no time step.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    z, v, i, states = integrate(
        Neuron.LIF,
        input_tensor,
        state.v,
        state.i,
        p,
        dt,
        reset=reset,
        detach_reset=detach_reset,
        record_states=record_states,
        backend=backend,
    )
    if states is not None:
        return z, LIFFeedForwardState(*states.unbind(0))
    assert i is not None
    return z, LIFFeedForwardState(v, i)


def lif_current_encoder(
    input_current: Tensor,
    voltage: Tensor,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Runs LIF neurons without a synapse for one step: the input is the current itself.

    .. math::
        v' &= v_t + dt\,\tau_\text{mem}^{-1} (v_\text{leak} - v_t + x_t) \\
        z_t &= H(v' - v_\text{th}) \\
        v_{t+1} &= (1 - z_t)\, v' + z_t\, v_\text{reset}

    Args:
        input_current: Current :math:`x`, shape ``[B, N]`` or any other.
        voltage: Membrane potential before the step, of that shape.
        p: Constants of the neuron; ``tau_syn_inv`` is not used.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes and the membrane potential after the step, both of the shape of the input.
    """
    z, v, _, _ = integrate(
        Neuron.CURRENT_ENCODER,
        input_current,
        voltage,
        None,
        p,
        dt,
        single_step=True,
        backend=backend,
    )
    return z, v


def lif_current_encoder_integral(
    input_tensor: Tensor,
    voltage: Tensor,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs LIF neurons without a synapse over a sequence, see :func:`lif_current_encoder`.

    Args:
        input_tensor: Current, shape ``[T, B, N]``; a constant one may be expanded over time, which
            takes no memory.
        voltage: Membrane potential before the first step, shape ``[B, N]``.
        p: Constants of the neuron; ``tau_syn_inv`` is not used.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes of shape ``[T, B, N]`` and the membrane potential after the last step.
    """
    z, v, _, _ = integrate(
        Neuron.CURRENT_ENCODER, input_tensor, voltage, None, p, dt, backend=backend
    )
    return z, v
