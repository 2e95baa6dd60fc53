"""Encoders: functions that turn numbers into spikes.

The names are those of ``norse.torch.functional.encode``. :func:`population_encode` is the
exception: it returns real values, which another encoder, for instance :func:`poisson_encode`, turns
into spikes.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import torch

from fused_lif.functional._integrate import check_dt
from fused_lif.functional.lif import lif_current_encoder_integral
from fused_lif.types import LIFParameters

__all__ = [
    "constant_current_lif_encode",
    "euclidean_distance",
    "gaussian_rbf",
    "poisson_encode",
    "poisson_encode_step",
    "population_encode",
    "signed_poisson_encode",
    "signed_poisson_encode_step",
    "spike_latency_encode",
    "spike_latency_lif_encode",
]


def _check_positive_int(name: str, value: int) -> None:
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def _check_f_max(f_max: float) -> None:
    # The value of a tensor stays unread: on a GPU that would wait for the device.
    if not isinstance(f_max, torch.Tensor) and not 0 < f_max < math.inf:
        raise ValueError(f"f_max must be a positive and finite number, in Hz, got {f_max!r}")


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Returns the wider one of the dtype of ``tensor`` and torch's default dtype."""
    return torch.promote_types(tensor.dtype, torch.get_default_dtype())


def constant_current_lif_encode(
    input_current: torch.Tensor,
    seq_length: int,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Encodes each value by the spikes of a LIF neuron that receives it as a constant current.

    The neuron has no synapse, starts at :math:`v = 0` and follows

    .. math::
        v \leftarrow v + \frac{dt}{\tau_\text{mem}} (v_\text{leak} - v + x), \qquad
        z = \Theta(v - v_\text{th}), \qquad
        v \leftarrow (1 - z) \, v + z \, v_\text{reset}.

    It is computed in the dtype of the input, or in torch's default dtype for integers and half
    precision.

    Args:
        input_current: Input current :math:`x`, any shape ``[...]``, in the unit of ``p.v_th``.
        seq_length: Number of time steps ``T``.
        p: Constants of the neuron; ``tau_syn_inv`` has no effect.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes of shape ``[T, ...]`` in torch's default dtype.

    Raises:
        ValueError: If ``seq_length`` or ``dt`` is not positive.
        RuntimeError: If ``backend`` is given and cannot run this input.

    Example:
        >>> constant_current_lif_encode(torch.tensor([2, 4, 8, 16]), seq_length=2)
        tensor([[0., 0., 0., 1.],
                [0., 0., 1., 1.]])
    """
    _check_positive_int("seq_length", seq_length)
    current = input_current.to(_working_dtype(input_current))
    spikes, _ = lif_current_encoder_integral(
        current.expand(seq_length, *current.shape),
        torch.zeros_like(current),
        p,
        dt,
        backend=backend,
    )
    return spikes.to(torch.get_default_dtype())


def gaussian_rbf(tensor: torch.Tensor, sigma: float = 1) -> torch.Tensor:
    r"""Computes the Gaussian radial basis function :math:`\exp(-d / (2 \sigma^2))`.

    Args:
        tensor: Squared distances :math:`d`, any shape.
        sigma: Width :math:`\sigma` of the Gaussian, in the unit of the distance.

    Returns:
        Values in :math:`(0, 1]` for distances of at least 0, in the shape of ``tensor``.

    Example:
        >>> gaussian_rbf(torch.tensor([0.0, 2.0]))
        tensor([1.0000, 0.3679])
    """
    return torch.exp(tensor / (-2 * sigma**2))


def euclidean_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes the squared distance ``(x - y)**2`` of each pair of numbers.

    Args:
        x: Numbers, any shape.
        y: Numbers of a shape that broadcasts against ``x``.

    Returns:
        Squared distances, in the common shape of ``x`` and ``y``.
    """
    return torch.square(x - y)


def _population_centres(scale: torch.Tensor, out_features: int) -> torch.Tensor:
    """Spreads ``out_features`` values evenly from 0 to ``scale``, in a new last dimension.

    Each row is what ``torch.linspace`` returns, to the bit: its lower half counts steps upwards
    from 0, its upper half downwards from ``scale``, and each value is rounded once, which float64
    does for float32.
    """
    end = scale.detach().to(torch.get_default_dtype()).unsqueeze(-1)
    step = (end / max(out_features - 1, 1)).double()
    index = torch.arange(out_features, device=scale.device)
    upwards = step * index
    downwards = end.double() - step * (out_features - 1 - index)
    return torch.where(index < max(out_features // 2, 1), upwards, downwards).to(end.dtype)


def population_encode(
    input_values: torch.Tensor,
    out_features: int,
    scale: float | torch.Tensor | None = None,
    kernel: Callable[[torch.Tensor], torch.Tensor] = gaussian_rbf,
    distance_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = euclidean_distance,
) -> torch.Tensor:
    r"""Encodes each value by the activity of neurons that each prefer a value of their own.

    Neuron :math:`k` of :math:`K` prefers :math:`c_k = s \, k / (K - 1)` and answers a value
    :math:`x` with ``kernel(distance_function(x, c_k) * s)``, where :math:`s` is the scale.

    Args:
        input_values: Values to encode, any shape ``[...]``.
        out_features: Number of neurons :math:`K` per value.
        scale: Largest preferred value :math:`s`, one for all or of a shape that broadcasts to
            ``[...]``, for instance ``[B, 1]`` for one per sample of values ``[B, N]``. Where it is
            ``None`` or 0, the largest input value takes its place. No gradient passes through the
            preferred values.
        kernel: Turns distances into activity; called with a tensor ``[..., K]``.
        distance_function: Distance between values and preferred values; called with two tensors
            ``[..., K]``.

    Returns:
        Activity of shape ``[..., K]``; with the default functions it is 1 where a value is
        preferred and falls towards 0 away from there.

    Raises:
        ValueError: If ``out_features`` is not positive or ``scale`` does not broadcast to
            ``input_values``.

    Example:
        >>> population_encode(torch.tensor([0.0, 0.5, 1.0]), out_features=3)
        tensor([[1.0000, 0.8825, 0.6065],
                [0.8825, 1.0000, 0.8825],
                [0.6065, 0.8825, 1.0000]])
    """
    _check_positive_int("out_features", out_features)
    largest = input_values.max() if input_values.numel() else input_values.new_zeros(())
    largest = largest.to(_working_dtype(input_values))
    scale = torch.as_tensor(
        0 if scale is None else scale, dtype=largest.dtype, device=largest.device
    )
    scale = torch.where(scale == 0, largest, scale)
    try:
        scale = scale.expand(input_values.shape)
    except RuntimeError:
        raise ValueError(
            "scale must broadcast to the shape of input_values "
            f"{tuple(input_values.shape)}, got {tuple(scale.shape)}"
        ) from None
    x = input_values.unsqueeze(-1).expand(*input_values.shape, out_features)
    distance = distance_function(x, _population_centres(scale, out_features))
    return kernel(distance * scale.unsqueeze(-1))


def _draw_spikes(
    probability: torch.Tensor, steps: tuple[int, ...], generator: torch.Generator | None
) -> torch.Tensor:
    """Draws spikes of shape ``[*steps, *probability.shape]``, one random number for each."""
    shape = (*steps, *probability.shape)
    uniform = torch.rand(shape, device=probability.device, generator=generator)
    return (uniform.float() < probability).float()


def poisson_encode(
    input_values: torch.Tensor,
    seq_length: int,
    f_max: float = 100,
    dt: float = 0.001,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    r"""Encodes each value by random spikes whose rate is proportional to it.

    Each step has a spike with probability :math:`dt \, f_\text{max} \, x`, independent of the other
    steps: a Poisson process in steps of :math:`dt`, see
    https://www.cns.nyu.edu/~david/handouts/poisson.pdf.

    Args:
        input_values: Values :math:`x` in [0, 1], any shape ``[...]``.
        seq_length: Number of time steps ``T``.
        f_max: Spike rate of the value 1, in Hz.
        dt: Length of one step, in seconds.
        generator: Source of random numbers; ``None`` uses the default one of the device.

    Returns:
        Spikes of shape ``[T, ...]``, 0 or 1, in float32.

    Raises:
        ValueError: If ``seq_length``, ``f_max`` or ``dt`` is not positive.

    Example:
        >>> poisson_encode(torch.tensor([0.0, 1.0]), seq_length=3, f_max=1000)
        tensor([[0., 1.],
                [0., 1.],
                [0., 1.]])
    """
    _check_positive_int("seq_length", seq_length)
    _check_f_max(f_max)
    check_dt(dt)
    return _draw_spikes(dt * f_max * input_values, (seq_length,), generator)


def poisson_encode_step(
    input_values: torch.Tensor,
    f_max: float = 1000,
    dt: float = 0.001,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encodes each value by the random spike of one step.

    See :func:`poisson_encode`, which does it for a sequence.

    Args:
        input_values: Values in [0, 1], any shape.
        f_max: Spike rate of the value 1, in Hz.
        dt: Length of the step, in seconds.
        generator: Source of random numbers; ``None`` uses the default one of the device.

    Returns:
        Spikes in the shape of ``input_values``, 0 or 1, in float32.

    Raises:
        ValueError: If ``f_max`` or ``dt`` is not positive.

    Example:
        >>> poisson_encode_step(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    _check_f_max(f_max)
    check_dt(dt)
    return _draw_spikes(dt * f_max * input_values, (), generator)


def signed_poisson_encode(
    input_values: torch.Tensor,
    seq_length: int,
    f_max: float = 100,
    dt: float = 0.001,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encodes the magnitude of each value by random spikes and its sign by theirs.

    See :func:`poisson_encode`.

    Args:
        input_values: Values in [-1, 1], any shape ``[...]``.
        seq_length: Number of time steps ``T``.
        f_max: Spike rate of the values 1 and -1, in Hz.
        dt: Length of one step, in seconds.
        generator: Source of random numbers; ``None`` uses the default one of the device.

    Returns:
        Spikes of shape ``[T, ...]``, each -1, 0 or 1, in float32 (float64 for float64 values).

    Raises:
        ValueError: If ``seq_length``, ``f_max`` or ``dt`` is not positive.

    Example:
        >>> signed_poisson_encode(torch.tensor([-1.0, 1.0]), seq_length=2, f_max=1000)
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """
    return torch.sign(input_values) * poisson_encode(
        input_values.abs(), seq_length, f_max, dt, generator
    )


def signed_poisson_encode_step(
    input_values: torch.Tensor,
    f_max: float = 1000,
    dt: float = 0.001,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encodes each value by the random, signed spike of one step.

    See :func:`signed_poisson_encode`, which does it for a sequence.

    Args:
        input_values: Values in [-1, 1], any shape.
        f_max: Spike rate of the values 1 and -1, in Hz.
        dt: Length of the step, in seconds.
        generator: Source of random numbers; ``None`` uses the default one of the device.

    Returns:
        Spikes in the shape of ``input_values``, each -1, 0 or 1, in float32 (float64 for float64
        values).

    Raises:
        ValueError: If ``f_max`` or ``dt`` is not positive.

    Example:
        >>> signed_poisson_encode_step(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-1.,  0.,  1.])
    """
    return torch.sign(input_values) * poisson_encode_step(input_values.abs(), f_max, dt, generator)


def spike_latency_lif_encode(
    input_current: torch.Tensor,
    seq_length: int,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Encodes each value by the time of the first spike of a LIF neuron.

    The larger the value, the earlier it spikes. The neuron is that of
    :func:`constant_current_lif_encode`; after its first spike it stays silent.

    Args:
        input_current: Input current, any shape ``[...]``, in the unit of ``p.v_th``.
        seq_length: Number of time steps ``T``.
        p: Constants of the neuron; ``tau_syn_inv`` has no effect.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Returns:
        Spikes of shape ``[T, ...]``, at most one per value, in the dtype of ``input_current``
        (torch's default dtype for integers).

    Raises:
        ValueError: If ``seq_length`` or ``dt`` is not positive.
        RuntimeError: If ``backend`` is given and cannot run this input.

    Example:
        >>> spike_latency_lif_encode(torch.tensor([1.0, 6.0, 11.0]), seq_length=3)
        tensor([[0., 0., 1.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """
    _check_positive_int("seq_length", seq_length)
    current = input_current
    if not current.is_floating_point():
        current = current.to(torch.get_default_dtype())
    spikes, _ = lif_current_encoder_integral(
        current.expand(seq_length, *current.shape),
        torch.zeros_like(current),
        p,
        dt,
        backend=backend,
    )
    return spike_latency_encode(spikes)


def spike_latency_encode(input_spikes: torch.Tensor) -> torch.Tensor:
    """Keeps the first spike of each neuron and removes all others.

    With constant input, strong values spike early, so that what is left is their order; see R. Van
    Rullen and S. J. Thorpe, `Rate Coding Versus Temporal Order Coding
    <https://doi.org/10.1162/08997660152002852>`_ (2001). The gradient passes where the input
    passes. With signed spikes, a neuron falls silent once it has had one more positive than
    negative ones.

    Args:
        input_spikes: Spikes of shape ``[T, ...]``, time first.

    Returns:
        Spikes of the same shape and dtype, at most one per neuron.

    Raises:
        ValueError: If there is no time step.

    Example:
        >>> spike_latency_encode(torch.tensor([[0, 1, 1], [1, 1, 1]]))
        tensor([[0, 1, 1],
                [1, 0, 0]])
    """
    if input_spikes.dim() == 0 or input_spikes.shape[0] == 0:
        raise ValueError(
            f"input_spikes must have at least one time step, got shape {tuple(input_spikes.shape)}"
        )
    seq_length = input_spikes.shape[0]
    # Counting in integers is exact, and deterministic on every device.
    has_spiked = input_spikes.detach().sign().cumsum(0, dtype=torch.int32) > 0
    first = torch.where(has_spiked.any(0), has_spiked.byte().argmax(0), seq_length)
    time = torch.arange(seq_length, device=first.device).view(-1, *[1] * first.dim())
    return input_spikes.masked_fill(time > first, 0)
