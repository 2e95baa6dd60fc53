"""Initialisers of neuron constants: what ``learnable`` draws from, see :class:`fused_lif.LIF`.

An initialiser is called as ``draw(size, generator=None)`` and returns a tensor of that size, in
torch's default dtype, on the device of the generator or torch's default device. Values are finite,
and positive unless ``positive=False`` allows others; a value that is not is drawn again. The same
seed of ``torch.manual_seed`` or of the generator gives the same values.

Units are those of the constant: 1/s for ``tau_syn_inv`` and ``tau_mem_inv``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

__all__ = ["Initializer", "constant", "gamma", "lognormal", "normal", "reciprocal", "uniform"]

_MAX_DRAWS = 1000


class Initializer(Protocol):
    """What draws the first values of a constant."""

    def __call__(self, size: Sequence[int], generator: Generator | None = None) -> Tensor:
        """Returns values of shape ``size``."""


def constant(value: float, *, positive: bool = True) -> Initializer:
    """Returns an initialiser that gives the same value to all neurons.

    Args:
        value: The value.
        positive: Whether it must be positive, as time constants and thresholds are.
    """
    _check("value", value, positive=positive)

    def draw(size: Sequence[int], generator: Generator | None = None) -> Tensor:
        return torch.full(_shape(size), float(value), device=_device(generator))

    return draw


def normal(mean: float, std: float, *, positive: bool = True) -> Initializer:
    """Returns an initialiser that draws from a normal distribution.

    Args:
        mean: Mean, positive if ``positive``.
        std: Standard deviation. Both are those of the whole normal distribution; what is left of it
            above zero has a larger mean and a smaller deviation, visibly so if ``std > mean / 3``.
        positive: Draw values that are not positive again.

    Example:
        >>> normal(0.0, 0.1, positive=False)((100,)).shape
        torch.Size([100])
    """
    _check("mean", mean, positive=positive)
    _check("std", std)
    return _repeated(
        lambda size, generator: (
            mean + std * torch.randn(size, generator=generator, device=_device(generator))
        ),
        positive,
    )


def lognormal(mean: float, std: float) -> Initializer:
    """Returns an initialiser that draws from a log-normal distribution.

    Args:
        mean: Mean of the values, not of their logarithm.
        std: Standard deviation of the values.
    """
    _check("mean", mean)
    _check("std", std)
    variance = math.log1p((std / mean) ** 2)  # of the logarithm
    mean_log = math.log(mean) - variance / 2
    return _repeated(
        lambda size, generator: (
            mean_log
            + math.sqrt(variance)
            * torch.randn(size, generator=generator, device=_device(generator))
        ).exp()
    )


def gamma(mean: float, shape: float) -> Initializer:
    """Returns an initialiser that draws from a gamma distribution.

    Args:
        mean: Mean of the values.
        shape: Shape; the standard deviation is ``mean / sqrt(shape)``.
    """
    _check("mean", mean)
    _check("shape", shape)
    return _repeated(
        lambda size, generator: (
            torch._standard_gamma(
                torch.full(size, float(shape), device=_device(generator)), generator=generator
            )
            * (mean / shape)
        )
    )


def uniform(low: float, high: float, *, positive: bool = True) -> Initializer:
    """Returns an initialiser that draws from a uniform distribution.

    Args:
        low: Smallest value.
        high: Largest value.
        positive: Whether ``low`` must not be negative; values of exactly zero are drawn again.
    """
    _check("low", low, positive=False)
    _check("high", high, positive=positive)
    if low > high or (positive and low < 0):
        rule = "not be negative nor above" if positive else "not be above"
        raise ValueError(f"low must {rule} high, got low={low!r} and high={high!r}")
    return _repeated(
        lambda size, generator: (
            low + (high - low) * torch.rand(size, generator=generator, device=_device(generator))
        ),
        positive,
    )


def reciprocal(initializer: Initializer) -> Initializer:
    """Returns an initialiser that draws ``1 / value``: inverse time constants from time constants.

    Args:
        initializer: Draws time constants, in seconds.

    Example:
        Time constants of 10 ms on average:

        >>> tau_mem_inv = reciprocal(gamma(10e-3, 3.0))((100,))
    """
    return _repeated(lambda size, generator: initializer(size, generator).reciprocal())


def redraw(draw: Callable[[], Tensor], is_valid: Callable[[Tensor], Tensor], rule: str) -> Tensor:
    """Draws, and draws values that are not valid again.

    Raises:
        ValueError: If there are always some that are not.
    """
    values = draw()
    if values.is_meta:
        return values
    for _ in range(_MAX_DRAWS):
        valid = is_valid(values)
        if valid.all():
            return values
        values = torch.where(valid, values, draw())
    raise ValueError(f"{rule}, got {values[~is_valid(values)][0].item():g} again and again")


def _repeated(
    draw: Callable[[tuple[int, ...], Generator | None], Tensor], positive: bool = True
) -> Initializer:
    """Makes an initialiser of what may also draw values that are not allowed."""

    def is_valid(values: Tensor) -> Tensor:
        return values.isfinite() & (values > 0) if positive else values.isfinite()

    rule = "draws must be finite" + " and positive" * positive

    def initializer(size: Sequence[int], generator: Generator | None = None) -> Tensor:
        shape = _shape(size)
        return redraw(lambda: draw(shape, generator), is_valid, rule)

    return initializer


def _shape(size: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(size, Sequence):
        raise TypeError(f"size must be a shape, such as (5,), got {size!r}")
    return tuple(size)


def _device(generator: Generator | None) -> torch.device | None:
    return None if generator is None else generator.device


def _check(name: str, value: float, *, positive: bool = True) -> None:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
