"""Turns constants of a layer into parameters: the keyword ``learnable``."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from fused_lif import init
from fused_lif.module._base import NeuronModule
from fused_lif.parametrizations import (
    POSITIVE,
    check_parametrization,
    describe_range,
    make_parametrization,
)

Learnable = str | Sequence[str] | Mapping[str, init.Initializer | None]
Neurons = int | Sequence[int] | str | None


def make_learnable(
    layer: NeuronModule,
    learnable: Learnable,
    neurons: Neurons,
    parametrization: str | None,
    hidden_size: int | None = None,
) -> None:
    """Replaces constants of a layer by parameters; arguments as in :class:`fused_lif.LIF`.

    It is the last that a constructor does: weights are drawn first.

    Args:
        layer: The layer, whose constants have the values of ``p``.
        learnable: Names of constants, or a mapping from names to initialisers.
        neurons: Number or shape of the neurons, ``"all"`` or ``None``.
        parametrization: Name of the parametrisation of positive constants.
        hidden_size: What ``"all"`` means.
    """
    if isinstance(learnable, Mapping):
        initializers = dict(learnable)
    elif isinstance(learnable, Iterable):
        names = (learnable,) if isinstance(learnable, str) else learnable
        initializers = dict.fromkeys(names)
    else:
        raise TypeError(
            f"learnable must be names of constants, or a mapping from names to initialisers, "
            f"got {learnable!r}"
        )
    if parametrization is not None:
        check_parametrization(parametrization)
    shape = _shape(neurons, hidden_size)
    if not initializers:
        if neurons not in (None, "all"):
            raise ValueError(f"neurons must be None without learnable, got {neurons!r}")
        return
    p, constants = layer.p, layer.constants
    fields = [name for name in p._fields if name not in ("method", "alpha")]
    for name in initializers:
        if name not in fields:
            raise ValueError(f"learnable must be among {', '.join(fields)}, got {name!r}")
        if name in constants._parameters:
            raise ValueError(f"p.{name} must not be a parameter if {name} is learnable, got one")
        if not (initializers[name] is None or callable(initializers[name])):
            raise TypeError(
                f"learnable[{name!r}] must be an initialiser of fused_lif.init, "
                f"got {initializers[name]!r}"
            )
    for name in fields:  # random numbers are drawn in this order
        if name not in initializers:
            continue
        values = _initial_values(name, p, initializers[name], shape, layer.dt)
        delattr(constants, name)
        constants.register_parameter(name, nn.Parameter(values))
        if parametrization is not None and name in POSITIVE:
            is_threshold = parametrization == "sigmoid" and name == "v_th"
            kind = "log" if is_threshold else parametrization
            new = make_parametrization(kind, name, values, layer.dt)
            register_parametrization(constants, name, new)


def _initial_values(
    name: str,
    p: Any,
    initializer: init.Initializer | None,
    shape: tuple[int, ...] | None,
    dt: float,
) -> Tensor:
    value: Tensor = getattr(p, name).detach()
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if initializer is None and shape is None:
        return value.clone()
    size = shape or ()

    def draw() -> Tensor:
        if initializer is None:
            return _heterogeneous(name, p, value, size)
        drawn = initializer(size)
        if drawn.shape != size:
            raise ValueError(
                f"the initialiser of {name} must return shape {size}, got {tuple(drawn.shape)}"
            )
        return drawn

    lower = 0.0 if name in POSITIVE else -math.inf
    upper = 1.0 / dt if name.startswith("tau") else math.inf
    values = init.redraw(
        draw,
        lambda drawn: (drawn > lower) & (drawn < upper),
        f"initial values of {name} must be {describe_range(lower, upper)}",
    )
    return values if values.is_meta else values.to(value)


def _heterogeneous(name: str, p: Any, value: Tensor, size: Sequence[int]) -> Tensor:
    """Draws one value per neuron around that of ``p``."""
    value = _expand(name, value, size)
    if name.startswith("tau"):
        factors = init.reciprocal(init.gamma(1.0, 3.0))(size)
        return value.to(factors.device) * factors
    if name == "v_th":
        factors = init.normal(1.0, 0.1)(size)
        return value.to(factors.device) * factors
    shifts = init.normal(0.0, 0.1, positive=False)(size)
    v_th = _expand("v_th", getattr(p, "v_th", value.new_ones(())).detach(), size)
    return value.to(shifts.device) + v_th.to(shifts.device) * shifts


def _expand(name: str, value: Tensor, size: Sequence[int]) -> Tensor:
    try:
        return value.expand(size)
    except RuntimeError:
        raise ValueError(
            f"p.{name} must broadcast to the shape {tuple(size)} of neurons, "
            f"got {tuple(value.shape)}"
        ) from None


def _shape(neurons: Neurons, hidden_size: int | None) -> tuple[int, ...] | None:
    if neurons is None:
        return None
    if neurons == "all" and hidden_size is not None:
        return (hidden_size,)
    sizes: Any = neurons if isinstance(neurons, Sequence) else (neurons,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:  # a string, or no integers
        shape = (0,)
    if any(size < 1 for size in shape) or any(isinstance(size, bool) for size in sizes):
        kinds = "'all', " * (hidden_size is not None)
        raise ValueError(
            f"neurons must be {kinds}None, a positive integer or a shape, got {neurons!r}"
        )
    return shape
