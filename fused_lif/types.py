"""Plain data that travels between the layers of the package."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


def _default(value: float) -> Tensor:
    # On the CPU even inside `with torch.device("meta")`: a default must have a value.
    return torch.tensor(value, dtype=torch.float32, device="cpu")


class LIFParameters(NamedTuple):
    """Constants of a LIF neuron; names, order and defaults are those of ``norse.torch``.

    Each of the first five is a number or a tensor that broadcasts against one time step: a scalar,
    ``[N]`` for one value per neuron, ``[C, 1, 1]`` for feature maps. Each may require a gradient.

    Attributes:
        tau_syn_inv: Inverse synaptic time constant, 1/s.
        tau_mem_inv: Inverse membrane time constant, 1/s.
        v_leak: Potential that the membrane decays to, in units of the threshold.
        v_th: Firing threshold.
        v_reset: Potential after a spike.
        method: Name of the surrogate derivative, or ``"adjoint"`` or ``"eventprop"``, which
            differentiate the times of the spikes; see :mod:`fused_lif.surrogate`.
        alpha: Sharpness of the surrogate derivative; a number or a tensor, without gradient.
    """

    tau_syn_inv: Tensor | float = _default(1.0 / 5e-3)
    tau_mem_inv: Tensor | float = _default(1.0 / 1e-2)
    v_leak: Tensor | float = _default(0.0)
    v_th: Tensor | float = _default(1.0)
    v_reset: Tensor | float = _default(0.0)
    method: str = "super"
    alpha: Tensor | float = _default(100.0)


class LIFState(NamedTuple):
    """State of a LIF layer with recurrent connections.

    Attributes:
        z: Spikes of the last step, shape ``[B, N]``.
        v: Membrane potential, shape ``[B, N]``.
        i: Synaptic current, shape ``[B, N]``.
    """

    z: Tensor
    v: Tensor
    i: Tensor


class LIFFeedForwardState(NamedTuple):
    """State of a LIF layer without recurrent connections.

    Attributes:
        v: Membrane potential, shape ``[B, N]``.
        i: Synaptic current, shape ``[B, N]``.
    """

    v: Tensor
    i: Tensor


class LIParameters(NamedTuple):
    """Constants of a leaky integrator, as in :class:`LIFParameters`.

    Attributes:
        tau_syn_inv: Inverse synaptic time constant, 1/s.
        tau_mem_inv: Inverse membrane time constant, 1/s.
        v_leak: Potential that the membrane decays to.
    """

    tau_syn_inv: Tensor | float = _default(1.0 / 5e-3)
    tau_mem_inv: Tensor | float = _default(1.0 / 1e-2)
    v_leak: Tensor | float = _default(0.0)


class LIState(NamedTuple):
    """State of a leaky integrator.

    Attributes:
        v: Membrane potential, shape ``[B, N]``.
        i: Synaptic current, shape ``[B, N]``.
    """

    v: Tensor
    i: Tensor


class Neuron(IntEnum):
    """What a backend integrates; values of ``enum class Neuron`` in ``csrc/lif_step.h``."""

    LIF = 0
    LI = 1  # no threshold; the output is the potential
    CURRENT_ENCODER = 2  # no synapse; the input is the current


class Recurrence(NamedTuple):
    """What a layer with recurrent connections has besides its neurons.

    Attributes:
        z: Spikes before the first step, shape ``[*batch, H]``, in the dtype of ``v``.
        input_weights: Shape ``[H, I]``.
        recurrent_weights: Shape ``[H, H]``.
        autapses: Give the diagonal of ``recurrent_weights`` its gradient, instead of zero.
        exact: Compute the matrix products as eager torch does, step by step.
    """

    z: Tensor
    input_weights: Tensor
    recurrent_weights: Tensor
    autapses: bool
    exact: bool


class LIFProblem(NamedTuple):
    """Checked arguments of one call, as backends receive them.

    ``step`` is the shape of one time step, such as ``(B, N)``. All tensors are on one device;
    ``v`` and ``i`` are float64 if ``x`` is, else float32; constants and weights are floating-point.

    Attributes:
        x: Input current, shape ``[T, *step]``, or ``[*step]`` for a single step. With a
            ``recurrence`` the input that its weights turn into a current: ``[T, *batch, I]``, where
            ``step`` is ``(*batch, H)``.
        v: Initial membrane potential, shape ``step``.
        i: Initial synaptic current, shape ``step``; ``None`` for the current encoder.
        tau_syn_inv: Broadcasts to ``step``, as the following; ``None`` for the current encoder.
        tau_mem_inv: See :class:`LIFParameters`.
        v_leak: See :class:`LIFParameters`.
        v_th: See :class:`LIFParameters`; ``None`` for LI, as the following.
        v_reset: See :class:`LIFParameters`.
        alpha: Sharpness of the surrogate.
        dt: Length of one step, in seconds.
        neuron: What is integrated.
        method: Name of the surrogate derivative or of the event-based method.
        soft_reset: Subtract the threshold instead of resetting to ``v_reset``.
        detach_reset: Stop the gradient at the reset.
        record_states: Also return the states after all steps.
        smooth: Replace spikes by the primitive of the surrogate, in float64.
        recurrence: Weights and initial spikes of a recurrent layer; ``None`` without.
    """

    x: Tensor
    v: Tensor
    i: Tensor | None
    tau_syn_inv: Tensor | None
    tau_mem_inv: Tensor
    v_leak: Tensor
    v_th: Tensor | None
    v_reset: Tensor | None
    alpha: Tensor | None
    dt: float
    neuron: Neuron
    method: str
    soft_reset: bool
    detach_reset: bool
    record_states: bool
    smooth: bool
    recurrence: Recurrence | None


class LIFResult(NamedTuple):
    """What a backend returns.

    Attributes:
        out: Spikes, or potentials of an LI; shape ``[T, *step]`` or ``[*step]``, dtype of ``x``.
        v: Membrane potential after the last step.
        i: Synaptic current after the last step; ``None`` for the current encoder.
        states: Potential and current after every step, shape ``[2, T, *step]`` (``[1, T, *step]``
            for the current encoder); ``None`` if not recorded.
    """

    out: Tensor
    v: Tensor
    i: Tensor | None
    states: Tensor | None
