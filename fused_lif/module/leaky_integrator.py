"""Leaky integrators as :class:`torch.nn.Module`; names as in ``norse.torch.module``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fused_lif.functional.leaky_integrator import (
    li_feed_forward_integral,
    li_feed_forward_step,
    li_step,
)
from fused_lif.module._base import NeuronModule, resting_state
from fused_lif.module._learnable import Learnable, Neurons, make_learnable
from fused_lif.types import LIParameters, LIState

__all__ = ["LI", "LICell", "LILinearCell"]


class LICell(NeuronModule):
    """A layer of leaky integrators that advances by one step per call.

    The equations are in :mod:`fused_lif.functional.leaky_integrator`.

    Args:
        p: Constants of the integrator; a :class:`torch.nn.Parameter` among them becomes a parameter
            of this module.
        dt: Length of one step, in seconds.
        learnable: Names of constants that become parameters, as in :class:`LI`.
        neurons: Number or shape of their values, or ``None`` for one per layer.
        parametrization: How positive constants are learned.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[B, N]`` or any other.
        - Output: potentials of that shape, and a state with ``v`` and ``i`` of that shape.
    """

    def __init__(
        self,
        p: LIParameters = LIParameters(),
        dt: float = 0.001,
        *,
        learnable: Learnable = (),
        neurons: Neurons = None,
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        make_learnable(self, learnable, neurons, parametrization)

    def initial_state(self, input_tensor: Tensor) -> LIState:
        """Returns the state of integrators at rest: ``v = v_leak`` and ``i = 0``."""
        return LIState(*resting_state(self.constants.v_leak, input_tensor.shape, input_tensor))

    def forward(self, input_tensor: Tensor, state: LIState | None = None) -> tuple[Tensor, LIState]:
        """Advances by one step with ``input_tensor``, from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return li_feed_forward_step(input_tensor, state, self.p, self.dt, backend=self.backend)


class LI(NeuronModule):
    """A layer of leaky integrators that integrates a whole sequence.

    The equations are in :mod:`fused_lif.functional.leaky_integrator`.

    Args:
        p: Constants of the integrator; a :class:`torch.nn.Parameter` among them becomes a parameter
            of this module.
        dt: Length of one step, in seconds.
        record_states: Return the states after all steps, not only after the last.
        learnable: Names of constants that become parameters, as in :class:`fused_lif.LIF`;
            ``v_leak`` is drawn with a standard deviation of 0.1, as there is no threshold.
        neurons: Number or shape of their values, or ``None`` for one per layer.
        parametrization: How positive constants are learned.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[T, B, N]``, ``[T, N]`` or any other with time first.
        - Output: potentials of that shape, and a state with ``v`` and ``i`` of shape ``[B, N]``, or
          ``[T, B, N]`` with ``record_states``.

    Example:
        >>> import torch
        >>> voltages, state = LI()(torch.ones(10, 5, 2))
        >>> voltages.shape, state.v.shape
        (torch.Size([10, 5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        p: LIParameters = LIParameters(),
        dt: float = 0.001,
        *,
        record_states: bool = False,
        learnable: Learnable = (),
        neurons: Neurons = None,
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        self.record_states = record_states
        make_learnable(self, learnable, neurons, parametrization)

    def initial_state(self, input_tensor: Tensor) -> LIState:
        """Returns the state of integrators at rest: ``v = v_leak`` and ``i = 0``."""
        return LIState(*resting_state(self.constants.v_leak, input_tensor.shape[1:], input_tensor))

    def forward(self, input_tensor: Tensor, state: LIState | None = None) -> tuple[Tensor, LIState]:
        """Integrates ``input_tensor``, starting from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return li_feed_forward_integral(
            input_tensor,
            state,
            self.p,
            self.dt,
            record_states=self.record_states,
            backend=self.backend,
        )


class LILinearCell(NeuronModule):
    """A layer of leaky integrators with input weights, advancing by one step per call.

    Args:
        input_size: Number of inputs, ``I``.
        hidden_size: Number of integrators, ``N``.
        p: Constants of the integrator; a :class:`torch.nn.Parameter` among them becomes a parameter
            of this module.
        dt: Length of one step, in seconds.
        learnable: Names of constants that become parameters, as in :class:`LI`.
        neurons: Number of their values: ``"all"`` for one per neuron, or ``None`` for one per
            layer.
        parametrization: How positive constants are learned.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Attributes:
        input_weights: Weights, shape ``[N, I]``, drawn from a normal distribution of standard
            deviation ``1 / sqrt(I)``.

    Shape:
        - Input: ``[B, I]``.
        - Output: potentials of shape ``[B, N]``, and a state with ``v`` and ``i`` of that shape.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p: LIParameters = LIParameters(),
        dt: float = 0.001,
        *,
        learnable: Learnable = (),
        neurons: Neurons = "all",
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.input_weights = nn.Parameter(
            torch.randn(hidden_size, input_size) / math.sqrt(input_size)
        )
        make_learnable(self, learnable, neurons, parametrization, hidden_size)

    def extra_repr(self) -> str:
        """Shows sizes, constants and the time step."""
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, {super().extra_repr()}"
        )

    def initial_state(self, input_tensor: Tensor) -> LIState:
        """Returns the state of integrators at rest: ``v = v_leak`` and ``i = 0``."""
        step = torch.Size((*input_tensor.shape[:-1], self.hidden_size))
        return LIState(*resting_state(self.constants.v_leak, step, input_tensor))

    def forward(self, input_tensor: Tensor, state: LIState | None = None) -> tuple[Tensor, LIState]:
        """Advances by one step with ``input_tensor``, from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return li_step(
            input_tensor, state, self.input_weights, self.p, self.dt, backend=self.backend
        )
