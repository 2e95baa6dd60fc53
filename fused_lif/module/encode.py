"""Encoders as modules, under the names of ``norse.torch.module.encode``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fused_lif.functional import encode
from fused_lif.module._base import NeuronModule
from fused_lif.types import LIFParameters

__all__ = [
    "ConstantCurrentLIFEncoder",
    "PoissonEncoder",
    "PoissonEncoderStep",
    "PopulationEncoder",
    "SignedPoissonEncoder",
    "SignedPoissonEncoderStep",
    "SpikeLatencyEncoder",
    "SpikeLatencyLIFEncoder",
]


class _LIFEncoder(NeuronModule):
    """Settings of an encoder with one LIF neuron per value that runs for ``seq_length`` steps."""

    def __init__(
        self,
        seq_length: int,
        p: LIFParameters = LIFParameters(),
        dt: float = 0.001,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(p, dt, backend=backend)
        self.seq_length = seq_length

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"seq_length={self.seq_length}, {super().extra_repr()}"


class ConstantCurrentLIFEncoder(_LIFEncoder):
    """Encodes each value by the spikes of a LIF neuron that receives it as a constant current.

    The equations are in :func:`fused_lif.functional.encode.constant_current_lif_encode`.

    Args:
        seq_length: Number of time steps ``T``.
        p: Constants of the neuron; a ``torch.nn.Parameter`` among them becomes a parameter of the
            module.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: any shape ``[...]``.
        - Output: spikes ``[T, ...]``.

    Example:
        >>> ConstantCurrentLIFEncoder(seq_length=2)(torch.tensor([2, 4, 8, 16]))
        tensor([[0., 0., 0., 1.],
                [0., 0., 1., 1.]])
    """

    def forward(self, input_currents: torch.Tensor) -> torch.Tensor:
        """Returns the spikes ``[T, ...]`` that encode currents ``[...]``."""
        return encode.constant_current_lif_encode(
            input_currents, self.seq_length, self.p, self.dt, backend=self.backend
        )


class SpikeLatencyLIFEncoder(_LIFEncoder):
    """Encodes each value by the time of the first spike of a LIF neuron.

    The larger the value, the earlier it spikes. See
    :func:`fused_lif.functional.encode.spike_latency_lif_encode`.

    Args:
        seq_length: Number of time steps ``T``.
        p: Constants of the neuron; a ``torch.nn.Parameter`` among them becomes a parameter of the
            module.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Shape:
        - Input: any shape ``[...]``.
        - Output: spikes ``[T, ...]``, at most one per value.

    Example:
        >>> SpikeLatencyLIFEncoder(seq_length=2)(torch.tensor([1.0, 6.0, 11.0]))
        tensor([[0., 0., 1.],
                [0., 1., 0.]])
    """

    def forward(self, input_current: torch.Tensor) -> torch.Tensor:
        """Returns the spikes ``[T, ...]`` that encode currents ``[...]``."""
        return encode.spike_latency_lif_encode(
            input_current, self.seq_length, self.p, self.dt, backend=self.backend
        )


class SpikeLatencyEncoder(nn.Module):
    """Keeps the first spike of each neuron and removes all others.

    See :func:`fused_lif.functional.encode.spike_latency_encode`.

    Shape:
        - Input: spikes ``[T, ...]``, time first.
        - Output: spikes ``[T, ...]``, at most one per neuron.

    Example:
        >>> SpikeLatencyEncoder()(torch.tensor([[0, 1, 1], [1, 1, 1]]))
        tensor([[0, 1, 1],
                [1, 0, 0]])
    """

    def forward(self, input_spikes: torch.Tensor) -> torch.Tensor:
        """Returns the first spikes of ``input_spikes``, shape ``[T, ...]``."""
        return encode.spike_latency_encode(input_spikes)


class PopulationEncoder(nn.Module):
    """Encodes each value by the activity of neurons that each prefer a value of their own.

    The equations are in :func:`fused_lif.functional.encode.population_encode`. The output is not
    spikes.

    Args:
        out_features: Number of neurons ``K`` per value.
        scale: Largest preferred value, one for all or of a shape that broadcasts to the input;
            ``None`` stands for the largest value of each input. A tensor moves with the module; it
            is not part of ``state_dict()``, unless it is a ``torch.nn.Parameter``.
        kernel: Turns distances into activity.
        distance_function: Distance between values and preferred values.

    Shape:
        - Input: any shape ``[...]``.
        - Output: activity ``[..., K]``.

    Example:
        >>> PopulationEncoder(out_features=3)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([[1.0000, 0.8825, 0.6065],
                [0.8825, 1.0000, 0.8825],
                [0.6065, 0.8825, 1.0000]])
    """

    def __init__(
        self,
        out_features: int,
        scale: float | torch.Tensor | None = None,
        kernel: Callable[[torch.Tensor], torch.Tensor] = encode.gaussian_rbf,
        distance_function: Callable[
            [torch.Tensor, torch.Tensor], torch.Tensor
        ] = encode.euclidean_distance,
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.scale: float | torch.Tensor | None
        if isinstance(scale, torch.Tensor) and not isinstance(scale, nn.Parameter):
            self.register_buffer("scale", scale, persistent=False)
        else:
            self.scale = scale
        self.kernel = kernel
        self.distance_function = distance_function

    def forward(self, input_tensor: torch.Tensor) -> torch.Tensor:
        """Returns the activity ``[..., K]`` that encodes values ``[...]``."""
        return encode.population_encode(
            input_tensor, self.out_features, self.scale, self.kernel, self.distance_function
        )

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        functions = (
            f"{name}={getattr(function, '__name__', function)}"
            for name, function in (
                ("kernel", self.kernel),
                ("distance_function", self.distance_function),
            )
            if not isinstance(function, nn.Module)
        )
        return ", ".join((f"out_features={self.out_features}, scale={self.scale}", *functions))


class _PoissonSequenceEncoder(nn.Module):
    """Settings of an encoder that draws random spikes for ``seq_length`` steps."""

    def __init__(self, seq_length: int, f_max: float = 100, dt: float = 0.001) -> None:
        super().__init__()
        self.seq_length = seq_length
        self.f_max = f_max
        self.dt = dt

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"seq_length={self.seq_length}, f_max={self.f_max}, dt={self.dt}"


class _PoissonStepEncoder(nn.Module):
    """Settings of an encoder that draws random spikes for one step."""

    def __init__(self, f_max: float = 1000, dt: float = 0.001) -> None:
        super().__init__()
        self.f_max = f_max
        self.dt = dt

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"f_max={self.f_max}, dt={self.dt}"


class PoissonEncoder(_PoissonSequenceEncoder):
    """Encodes each value by random spikes whose rate is proportional to it.

    See :func:`fused_lif.functional.encode.poisson_encode`.

    Args:
        seq_length: Number of time steps ``T``.
        f_max: Spike rate of the value 1, in Hz.
        dt: Length of one step, in seconds.

    Shape:
        - Input: values in [0, 1], any shape ``[...]``.
        - Output: spikes ``[T, ...]``, 0 or 1.

    Example:
        >>> PoissonEncoder(seq_length=2, f_max=1000)(torch.tensor([0.0, 1.0]))
        tensor([[0., 1.],
                [0., 1.]])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the spikes ``[T, ...]`` that encode values ``[...]``."""
        return encode.poisson_encode(x, self.seq_length, self.f_max, self.dt)


class PoissonEncoderStep(_PoissonStepEncoder):
    """Encodes each value by the random spike of one step.

    See :func:`fused_lif.functional.encode.poisson_encode_step`.

    Args:
        f_max: Spike rate of the value 1, in Hz.
        dt: Length of the step, in seconds.

    Shape:
        - Input: values in [0, 1], any shape ``[...]``.
        - Output: spikes ``[...]``, 0 or 1.

    Example:
        >>> PoissonEncoderStep()(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the spikes of one step, in the shape of ``x``."""
        return encode.poisson_encode_step(x, self.f_max, self.dt)


class SignedPoissonEncoder(_PoissonSequenceEncoder):
    """Encodes the magnitude of each value by random spikes and its sign by theirs.

    See :func:`fused_lif.functional.encode.signed_poisson_encode`.

    Args:
        seq_length: Number of time steps ``T``.
        f_max: Spike rate of the values 1 and -1, in Hz.
        dt: Length of one step, in seconds.

    Shape:
        - Input: values in [-1, 1], any shape ``[...]``.
        - Output: spikes ``[T, ...]``, each -1, 0 or 1.

    Example:
        >>> SignedPoissonEncoder(seq_length=2, f_max=1000)(torch.tensor([-1.0, 1.0]))
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the spikes ``[T, ...]`` that encode values ``[...]``."""
        return encode.signed_poisson_encode(x, self.seq_length, self.f_max, self.dt)


class SignedPoissonEncoderStep(_PoissonStepEncoder):
    """Encodes each value by the random, signed spike of one step.

    See :func:`fused_lif.functional.encode.signed_poisson_encode_step`.

    Args:
        f_max: Spike rate of the values 1 and -1, in Hz.
        dt: Length of the step, in seconds.

    Shape:
        - Input: values in [-1, 1], any shape ``[...]``.
        - Output: spikes ``[...]``, each -1, 0 or 1.

    Example:
        >>> SignedPoissonEncoderStep()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-1.,  0.,  1.])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the spikes of one step, in the shape of ``x``."""
        return encode.signed_poisson_encode_step(x, self.f_max, self.dt)
