"""LIF layers as :class:`torch.nn.Module`; names as in ``norse.torch.module.lif``."""

from __future__ import annotations

from torch import Tensor

from fused_lif.functional._integrate import check_reset
from fused_lif.functional.lif import lif_feed_forward_integral, lif_feed_forward_step
from fused_lif.module._base import NeuronModule, resting_state
from fused_lif.types import LIFFeedForwardState, LIFParameters

__all__ = ["LIF", "LIFCell"]


class LIFCell(NeuronModule):
    """A layer of LIF neurons that advances by one step per call, without recurrent connections.

    The equations are in :mod:`fused_lif.functional.lif`. For a whole sequence use :class:`LIF`.

    Args:
        p: Constants of the neuron; a :class:`torch.nn.Parameter` among them becomes a parameter of
            this module.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[B, N]`` or any other.
        - Output: spikes of that shape, and a state with ``v`` and ``i`` of that shape.

    Example:
        >>> import torch
        >>> cell, state = LIFCell(), None
        >>> for x in torch.ones(10, 5, 2):
        ...     spikes, state = cell(x, state)
        >>> spikes.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        p: LIFParameters = LIFParameters(),
        dt: float = 0.001,
        *,
        reset: str = "hard",
        detach_reset: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        check_reset(reset)
        self.reset = reset
        self.detach_reset = detach_reset

    def initial_state(self, input_tensor: Tensor) -> LIFFeedForwardState:
        """Returns the state of neurons at rest: ``v = v_leak`` and ``i = 0``."""
        return LIFFeedForwardState(*resting_state(self.p.v_leak, input_tensor.shape, input_tensor))

    def forward(
        self, input_tensor: Tensor, state: LIFFeedForwardState | None = None
    ) -> tuple[Tensor, LIFFeedForwardState]:
        """Advances by one step with ``input_tensor``, from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return lif_feed_forward_step(
            input_tensor,
            state,
            self.p,
            self.dt,
            reset=self.reset,
            detach_reset=self.detach_reset,
            backend=self.backend,
        )


class LIF(NeuronModule):
    """A layer of LIF neurons that integrates a whole sequence, without recurrent connections.

    The equations are in :mod:`fused_lif.functional.lif`.

    Args:
        p: Constants of the neuron; a :class:`torch.nn.Parameter` among them becomes a parameter of
            this module.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        record_states: Return the states after all steps, not only after the last.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[T, B, N]``, ``[T, N]`` or any other with time first.
        - Output: spikes of that shape, and a state with ``v`` and ``i`` of shape ``[B, N]``, or
          ``[T, B, N]`` with ``record_states``.

    Example:
        >>> import torch
        >>> spikes, state = LIF()(torch.ones(10, 5, 2))
        >>> spikes.shape, state.v.shape
        (torch.Size([10, 5, 2]), torch.Size([5, 2]))

        One learnable time constant per neuron:

        >>> tau_mem_inv = torch.nn.Parameter(torch.full((2,), 100.0))
        >>> layer = LIF(LIFParameters(tau_mem_inv=tau_mem_inv))
        >>> [name for name, _ in layer.named_parameters()]
        ['constants.tau_mem_inv']
    """

    def __init__(
        self,
        p: LIFParameters = LIFParameters(),
        dt: float = 0.001,
        *,
        reset: str = "hard",
        detach_reset: bool = False,
        record_states: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        check_reset(reset)
        self.reset = reset
        self.detach_reset = detach_reset
        self.record_states = record_states

    def initial_state(self, input_tensor: Tensor) -> LIFFeedForwardState:
        """Returns the state of neurons at rest: ``v = v_leak`` and ``i = 0``."""
        return LIFFeedForwardState(
            *resting_state(self.p.v_leak, input_tensor.shape[1:], input_tensor)
        )

    def forward(
        self, input_tensor: Tensor, state: LIFFeedForwardState | None = None
    ) -> tuple[Tensor, LIFFeedForwardState]:
        """Integrates ``input_tensor``, starting from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return lif_feed_forward_integral(
            input_tensor,
            state,
            self.p,
            self.dt,
            reset=self.reset,
            detach_reset=self.detach_reset,
            record_states=self.record_states,
            backend=self.backend,
        )
