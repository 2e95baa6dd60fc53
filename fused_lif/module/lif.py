"""LIF layers as :class:`torch.nn.Module`; names as in ``norse.torch.module.lif``."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from fused_lif.functional._integrate import check_reset, check_weights_type
from fused_lif.functional.lif import (
    lif_feed_forward_integral,
    lif_feed_forward_step,
    lif_step,
    lif_step_integral,
)
from fused_lif.module._base import NeuronModule, resting_state
from fused_lif.module._learnable import Learnable, Neurons, make_learnable
from fused_lif.types import LIFFeedForwardState, LIFParameters, LIFState

__all__ = ["LIF", "LIFCell", "LIFRecurrent", "LIFRecurrentCell"]


class LIFCell(NeuronModule):
    """A layer of LIF neurons that advances by one step per call, without recurrent connections.

    The equations are in :mod:`fused_lif.functional.lif`. For a whole sequence use :class:`LIF`.

    Args:
        p: Constants of the neuron; a :class:`torch.nn.Parameter` among them becomes a parameter of
            this module.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset.
        learnable: Names of constants that become parameters, as in :class:`LIF`.
        neurons: Number or shape of their values, or ``None`` for one per layer.
        parametrization: How positive constants are learned.
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
        learnable: Learnable = (),
        neurons: Neurons = None,
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        check_reset(reset)
        self.reset = reset
        self.detach_reset = detach_reset
        make_learnable(self, learnable, neurons, parametrization)

    def initial_state(self, input_tensor: Tensor) -> LIFFeedForwardState:
        """Returns the state of neurons at rest: ``v = v_leak`` and ``i = 0``."""
        return LIFFeedForwardState(
            *resting_state(self.constants.v_leak, input_tensor.shape, input_tensor)
        )

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
        learnable: Names of constants that become parameters, such as ``["tau_mem_inv", "v_th"]``;
            or a mapping from names to initialisers of :mod:`fused_lif.init`, or to ``None`` for
            the default one.
        neurons: How many learnable values: the number of neurons, their shape, such as ``(C, 1,
            1)`` for feature maps, or ``None`` for one per layer, whose default is the value in
            ``p``. The defaults of several differ from neuron to neuron, see below.
        parametrization: How positive constants are learned: ``"log"``, ``"softplus"``,
            ``"sigmoid"`` (of time constants; ``v_th`` then by ``"log"``) or ``None`` for as they
            are, see :func:`fused_lif.parametrize`. ``v_leak`` and ``v_reset`` may be negative and
            are learned as they are.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    By default ``learnable`` constants of several neurons are drawn around the value in ``p``: time
    constants, in seconds, from a gamma distribution of shape 3 with that mean, as in Perez-Nieves
    et al., Neural heterogeneity promotes robust learning, Nature Communications 12:5791 (2021);
    potentials from a normal distribution with a standard deviation of ``v_th / 10``. Whatever
    draws them, drawn values have ``dt * tau_inv`` below 1, and inverse time constants and
    thresholds are positive; other values are drawn again. Values taken from ``p`` and values after
    a step of the optimiser need not have ``dt * tau_inv`` below 1, except with ``"sigmoid"``.
    Random numbers are drawn in the order of ``p``, after the weights.

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

        Time constants that differ from neuron to neuron and stay positive, learned with a learning
        rate relative to their values:

        >>> layer = LIF(learnable=["tau_mem_inv"], neurons=2)
        >>> layer.p.tau_mem_inv.shape
        torch.Size([2])
    """

    def __init__(
        self,
        p: LIFParameters = LIFParameters(),
        dt: float = 0.001,
        *,
        reset: str = "hard",
        detach_reset: bool = False,
        record_states: bool = False,
        learnable: Learnable = (),
        neurons: Neurons = None,
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        check_reset(reset)
        self.reset = reset
        self.detach_reset = detach_reset
        self.record_states = record_states
        make_learnable(self, learnable, neurons, parametrization)

    def initial_state(self, input_tensor: Tensor) -> LIFFeedForwardState:
        """Returns the state of neurons at rest: ``v = v_leak`` and ``i = 0``."""
        return LIFFeedForwardState(
            *resting_state(self.constants.v_leak, input_tensor.shape[1:], input_tensor)
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


class _RecurrentModule(NeuronModule):
    """Weights and options of the layers with recurrent connections."""

    input_weights: Tensor
    recurrent_weights: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p: LIFParameters = LIFParameters(),
        input_weights: Tensor | None = None,
        recurrent_weights: Tensor | None = None,
        autapses: bool = False,
        dt: float = 0.001,
        *,
        reset: str = "hard",
        detach_reset: bool = True,
        exact: bool = False,
        learnable: Learnable = (),
        neurons: Neurons = "all",
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        check_reset(reset)
        self.input_size = _check_size("input_size", input_size)
        self.hidden_size = _check_size("hidden_size", hidden_size)
        self.autapses = autapses
        self.reset = reset
        self.detach_reset = detach_reset
        self.exact = exact
        # Drawn in Norse's order, and scaled with its arithmetic: the same seed, the same weights.
        scale = torch.sqrt(2.0 / torch.as_tensor(self.hidden_size))
        if input_weights is None:
            input_weights = nn.Parameter(torch.randn(self.hidden_size, self.input_size) * scale)
        if recurrent_weights is None:
            drawn = torch.randn(self.hidden_size, self.hidden_size) * scale
            recurrent_weights = nn.Parameter(drawn)
        self._register("input_weights", input_weights, self.input_size)
        self._register("recurrent_weights", recurrent_weights, self.hidden_size)
        make_learnable(self, learnable, neurons, parametrization, self.hidden_size)

    def _register(self, name: str, weights: Tensor, columns: int) -> None:
        check_weights_type(name, weights)
        if weights.shape != (self.hidden_size, columns):
            raise ValueError(
                f"{name} must have shape {(self.hidden_size, columns)}, got {tuple(weights.shape)}"
            )
        remove_autapses = name == "recurrent_weights" and not self.autapses
        if isinstance(weights, nn.Parameter):
            if remove_autapses:
                with torch.no_grad():
                    weights.fill_diagonal_(0.0)
            self.register_parameter(name, weights)
        else:
            if remove_autapses:
                weights = weights.masked_fill(
                    torch.eye(columns, dtype=torch.bool, device=weights.device), 0.0
                )
            self.register_buffer(name, weights)

    def _rest(self, batch: torch.Size, like: Tensor) -> LIFState:
        step = torch.Size((*batch, self.hidden_size))
        v, i = resting_state(self.constants.v_leak, step, like)
        return LIFState(torch.zeros(v.shape, dtype=like.dtype, device=like.device), v, i)

    def extra_repr(self) -> str:
        """Shows the sizes, the constants and the time step, as Norse does."""
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, p={self.p}, "
            f"autapses={self.autapses}, dt={self.dt}"
        )


def _check_size(name: str, size: int) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if isinstance(size, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
    return number


class LIFRecurrentCell(_RecurrentModule):
    """A layer of LIF neurons with recurrent connections that advances by one step per call.

    The equations are in :mod:`fused_lif.functional.lif`. For a whole sequence use
    :class:`LIFRecurrent`.

    Args:
        input_size: Number of input features.
        hidden_size: Number of neurons.
        p: Constants of the neuron; a :class:`torch.nn.Parameter` among them becomes a parameter of
            this module.
        input_weights: Shape ``[hidden_size, input_size]``: a :class:`torch.nn.Parameter`, which
            may be shared or frozen, or a tensor, which becomes a buffer. Drawn as Norse draws them
            if ``None``.
        recurrent_weights: Shape ``[hidden_size, hidden_size]``, likewise.
        autapses: Allow connections of a neuron to itself. Otherwise the diagonal of
            ``recurrent_weights`` is set to zero, in place if it is a parameter, and its gradient
            is zero.
        dt: Length of one step, in seconds.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset, as Norse does in recurrent layers.
        exact: Use the matrix products of eager torch, to reproduce an old run bit for bit; see
            :func:`fused_lif.lif_step_integral`.
        learnable: Names of constants that become parameters, as in :class:`LIF`.
        neurons: Number of their values: ``"all"`` for one per neuron, or ``None`` for one per
            layer.
        parametrization: How positive constants are learned.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[B, input_size]`` or any other with the features last.
        - Output: spikes ``[B, hidden_size]``, and a state with ``z``, ``v`` and ``i`` of that
          shape.

    Example:
        >>> import torch
        >>> cell, state = LIFRecurrentCell(2, 4), None
        >>> for x in torch.ones(10, 5, 2):
        ...     spikes, state = cell(x, state)
        >>> spikes.shape
        torch.Size([5, 4])
    """

    def initial_state(self, input_tensor: Tensor) -> LIFState:
        """Returns the state of neurons at rest: ``z = 0``, ``v = v_leak`` and ``i = 0``."""
        return self._rest(input_tensor.shape[:-1], input_tensor)

    def forward(
        self, input_tensor: Tensor, state: LIFState | None = None
    ) -> tuple[Tensor, LIFState]:
        """Advances by one step with ``input_tensor``, from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return lif_step(
            input_tensor,
            state,
            self.input_weights,
            self.recurrent_weights,
            self.p,
            self.dt,
            reset=self.reset,
            detach_reset=self.detach_reset,
            autapses=self.autapses,
            exact=self.exact,
            backend=self.backend,
        )


class LIFRecurrent(_RecurrentModule):
    """A layer of LIF neurons with recurrent connections that integrates a whole sequence.

    The equations are in :mod:`fused_lif.functional.lif`.

    Args:
        input_size: Number of input features.
        hidden_size: Number of neurons.
        p: Constants of the neuron, as in :class:`LIFRecurrentCell`.
        input_weights: Shape ``[hidden_size, input_size]``, as in :class:`LIFRecurrentCell`.
        recurrent_weights: Shape ``[hidden_size, hidden_size]``, likewise.
        autapses: Allow connections of a neuron to itself, as in :class:`LIFRecurrentCell`.
        dt: Length of one step, in seconds.
        record_states: Return the states after all steps, not only after the last.
        reset: ``"hard"`` resets to ``v_reset``, ``"soft"`` subtracts ``v_th``.
        detach_reset: Stop the gradient at the reset, as Norse does in recurrent layers.
        exact: Use the matrix products of eager torch, as in :class:`LIFRecurrentCell`.
        learnable: Names of constants that become parameters, as in :class:`LIF`.
        neurons: Number of their values: ``"all"`` for one per neuron, or ``None`` for one per
            layer.
        parametrization: How positive constants are learned.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: ``[T, B, input_size]``, ``[T, input_size]`` or any other with time first and the
          features last.
        - Output: spikes ``[T, B, hidden_size]``, and a state with ``z``, ``v`` and ``i`` of shape
          ``[B, hidden_size]``, or ``[T, B, hidden_size]`` with ``record_states``.

    Example:
        >>> import torch
        >>> layer = LIFRecurrent(2, 4)
        >>> spikes, state = layer(torch.ones(10, 5, 2))
        >>> spikes.shape, state.z.shape
        (torch.Size([10, 5, 4]), torch.Size([5, 4]))
        >>> sorted(layer.state_dict())
        ['input_weights', 'recurrent_weights']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p: LIFParameters = LIFParameters(),
        input_weights: Tensor | None = None,
        recurrent_weights: Tensor | None = None,
        autapses: bool = False,
        dt: float = 0.001,
        record_states: bool = False,
        *,
        reset: str = "hard",
        detach_reset: bool = True,
        exact: bool = False,
        learnable: Learnable = (),
        neurons: Neurons = "all",
        parametrization: str | None = "log",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            p,
            input_weights,
            recurrent_weights,
            autapses,
            dt,
            reset=reset,
            detach_reset=detach_reset,
            exact=exact,
            learnable=learnable,
            neurons=neurons,
            parametrization=parametrization,
            backend=backend,
        )
        self.record_states = record_states

    def initial_state(self, input_tensor: Tensor) -> LIFState:
        """Returns the state of neurons at rest: ``z = 0``, ``v = v_leak`` and ``i = 0``."""
        return self._rest(input_tensor.shape[1:-1], input_tensor)

    def forward(
        self, input_tensor: Tensor, state: LIFState | None = None
    ) -> tuple[Tensor, LIFState]:
        """Integrates ``input_tensor``, starting from ``state`` or from rest."""
        if state is None:
            state = self.initial_state(input_tensor)
        return lif_step_integral(
            input_tensor,
            state,
            self.input_weights,
            self.recurrent_weights,
            self.p,
            self.dt,
            reset=self.reset,
            detach_reset=self.detach_reset,
            autapses=self.autapses,
            record_states=self.record_states,
            exact=self.exact,
            backend=self.backend,
        )
