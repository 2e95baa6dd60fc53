r"""Surrogate derivatives of the spike function: the one table of names, ids and formulas.

A spike is :math:`z = H(s)` with :math:`s = v - v_\text{th}`. The derivative of :math:`H` is zero
or infinite; for the backward pass each surrogate puts a bounded function of :math:`s` in its place;
:math:`\alpha` says how sharp it is. The first six are Norse's, with Norse's scale factors; the last
three are those of SpikingJelly's ``surrogate.Sigmoid``, ``ATan`` and ``Rect``.

==================== ==============================================
name                 derivative
==================== ==============================================
``heaviside``        0
``super``            1 / (alpha abs(s) + 1)^2
``triangle``         alpha relu(1 - abs(s))
``tanh``             1 - tanh(alpha s)^2
``circ``             alpha^3 / (alpha^2 + s^2)^1.5
``heavi_erfc``       2 / sqrt(pi) exp(-(alpha s)^2)
``sigmoid``          alpha sigmoid(alpha s) (1 - sigmoid(alpha s))
``atan``             alpha / 2 / (1 + (pi / 2 alpha s)^2)
``piecewise_linear`` alpha if alpha abs(s) < 1/2 else 0
==================== ==============================================

Sources: ``super`` is SuperSpike (Zenke & Ganguli 2018, section 3.3.2), ``triangle`` that of Esser
et al. 2016 and Bellec et al. 2020, ``atan`` that of Fang et al. 2021.
``box`` is another name of ``piecewise_linear``: the function is a ramp, its derivative a box.

Two more methods have no surrogate: they differentiate the times of the spikes (docs/gradients.md).
``adjoint`` is Norse's discretisation of EventProp (Wunderlich & Pehle 2021), ``eventprop`` a
consistent one, for losses on spike times, readouts and final states, not on recorded states.

To verify gradients, :func:`fused_lif.testing.smooth_spikes` replaces :math:`H` by the primitive of
the derivative, its integral from minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """A surrogate derivative.

    Attributes:
        id: Value of ``enum class Surrogate`` in ``csrc/surrogate.h``.
        grad: dH/ds as a function of ``s = v - v_th`` and the sharpness ``alpha``.
        primitive: Integral of ``grad`` from minus infinity to ``s``.
    """

    id: int
    grad: Callable[[Tensor, Tensor | float], Tensor]
    primitive: Callable[[Tensor, Tensor | float], Tensor]


def _sech2(u: Tensor) -> Tensor:
    """1 - tanh(u)^2, without cancellation: 4 e / (1 + e)^2 with e = exp(-2 |u|)."""
    e = torch.exp(-2 * u.abs())
    return 4 * e / (1 + e) ** 2


def _circ(s: Tensor, alpha: Tensor | float) -> Tensor:
    d = 1 + (s / alpha) ** 2  # alpha^3 / (alpha^2 + s^2)^1.5, without overflow of the cubes
    return 1 / (d * d.sqrt())


def _ramp(s: Tensor) -> Tensor:
    """Integral of relu(1 - |s|)."""
    tail = torch.relu(1 - s.abs()) ** 2 / 2
    return torch.where(s > 0, 1 - tail, tail)


#: All surrogate derivatives by the name that users pass as ``LIFParameters.method``.
SURROGATES: dict[str, Surrogate] = {
    "heaviside": Surrogate(
        0, lambda s, alpha: torch.zeros_like(s), lambda s, alpha: (s > 0).to(s.dtype)
    ),
    "super": Surrogate(
        1,
        lambda s, alpha: 1 / (alpha * s.abs() + 1) ** 2,
        lambda s, alpha: 1 / alpha + s / (1 + alpha * s.abs()),
    ),
    "triangle": Surrogate(
        2, lambda s, alpha: alpha * torch.relu(1 - s.abs()), lambda s, alpha: alpha * _ramp(s)
    ),
    "tanh": Surrogate(
        3,
        lambda s, alpha: _sech2(alpha * s),
        lambda s, alpha: (1 + torch.tanh(alpha * s)) / alpha,
    ),
    "circ": Surrogate(
        4, _circ, lambda s, alpha: alpha * (1 + s / alpha / torch.sqrt(1 + (s / alpha) ** 2))
    ),
    "heavi_erfc": Surrogate(
        5,
        lambda s, alpha: 2 / math.sqrt(math.pi) * torch.exp(-((alpha * s) ** 2)),
        lambda s, alpha: (1 + torch.erf(alpha * s)) / alpha,
    ),
    "sigmoid": Surrogate(
        6,
        lambda s, alpha: alpha / 4 * _sech2(alpha * s / 2),
        lambda s, alpha: torch.sigmoid(alpha * s),
    ),
    "atan": Surrogate(
        7,
        lambda s, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * s) ** 2),
        lambda s, alpha: 0.5 + torch.atan(math.pi / 2 * alpha * s) / math.pi,
    ),
    "piecewise_linear": Surrogate(
        8,
        lambda s, alpha: torch.where(alpha * s.abs() < 0.5, alpha, torch.zeros_like(s)),
        lambda s, alpha: torch.clamp(alpha * s + 0.5, 0, 1),
    ),
}
SURROGATES["box"] = SURROGATES["piecewise_linear"]

#: The event-based methods and their ids in ``csrc/surrogate.h``.
EVENT_METHODS = {"adjoint": 9, "eventprop": 10}

METHODS = (*SURROGATES, *EVENT_METHODS)


def method_id(method: str) -> int:
    """Returns the id by which the operators know a method."""
    return SURROGATES[method].id if method in SURROGATES else EVENT_METHODS[method]
