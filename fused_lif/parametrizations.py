r"""Parametrisations of learnable constants, on :mod:`torch.nn.utils.parametrize`.

The optimiser sees a parameter :math:`w` without unit and without bounds; the layer sees the
natural value, a positive time constant in 1/s or a threshold. A step of 0.01 in :math:`w`, about
that of Adam with such a learning rate, changes the value by at most 1 %, in whatever unit.

The value that is read back is the value given up to the rounding of these functions, some 1e-6.
"""

from __future__ import annotations

import copy
import gc
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from fused_lif.functional._integrate import check_dt
from fused_lif.module._base import NeuronConstants, NeuronModule

__all__ = ["Log", "SigmoidDecay", "Softplus", "parametrize"]

_Module = TypeVar("_Module", bound=nn.Module)

POSITIVE = ("tau_syn_inv", "tau_mem_inv", "v_th")


def describe_range(lower: float, upper: float) -> str:
    """Says in a message where a value must be."""
    above, below = f"above {lower:g}", f"below {upper:g}"
    if upper == math.inf:
        return "finite" if lower == -math.inf else above
    return f"{above} and {below}"


class _Bounded(nn.Module):
    """Bounds in natural units; ``0 <= lower < upper <= limit``."""

    def __init__(self, lower: float | None, upper: float | None, limit: float = math.inf) -> None:
        super().__init__()
        self.lower = 0.0 if lower is None else _as_float("lower", lower)
        self.upper = limit if upper is None else _as_float("upper", upper)
        if not 0 <= self.lower < self.upper <= limit:
            raise ValueError(
                f"lower and upper must satisfy 0 <= lower < upper <= {limit:g}, "
                f"got lower={lower} and upper={upper}"
            )

    def check(self, name: str, value: Tensor) -> None:
        """Raises if a value is not between the bounds."""
        if value.is_meta:
            return
        valid = (value > self.lower) & (value < self.upper)  # false for NaN
        if not valid.all():
            raise ValueError(
                f"{name} must be {describe_range(self.lower, self.upper)}, "
                f"got {value[~valid][0].item():g}"
            )

    def extra_repr(self) -> str:
        """Shows the bounds."""
        return f"lower={self.lower:g}, upper={self.upper:g}"


class Log(_Bounded):
    r"""The logarithm of a constant: :math:`\mathrm{lower} + e^w`.

    With an upper bound it is :math:`\mathrm{lower} + (\mathrm{upper} - \mathrm{lower})\,\sigma(k
    w)`, where :math:`k` is such that a step of 0.01 in :math:`w` changes the value by 1 % at the
    geometric mean of the bounds, and by less near a bound.

    Args:
        lower: Lower bound in natural units, 0 if ``None``.
        upper: Upper bound.
    """

    def __init__(self, lower: float | None = None, upper: float | None = None) -> None:
        super().__init__(lower, upper)

    def forward(self, w: Tensor) -> Tensor:
        """Returns the natural value."""
        return self.lower + w.exp() if self.upper == math.inf else _squash(w, self)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Returns the parameter of a natural value."""
        self.check("value", value)
        return (value - self.lower).log() if self.upper == math.inf else _unsquash(value, self)


class SigmoidDecay(_Bounded):
    r"""The decay per step of an inverse time constant: :math:`1 - dt \, \tau^{-1} = \sigma(w)`.

    So :math:`\tau^{-1} = \sigma(-w) / dt` is between 0 and :math:`1 / dt`, where Euler's explicit
    step neither explodes nor oscillates; rounded to float32 it is :math:`1 / dt` from :math:`w =
    -17` on. A step of 0.01 in :math:`w` changes it by :math:`\sigma(w)` %, which is nearly 1 % for
    time constants much longer than a step.

    With bounds it is :math:`\mathrm{lower} + (\mathrm{upper} - \mathrm{lower})\,\sigma(-k w)`, with
    the :math:`k` of :class:`Log`.

    Args:
        dt: Length of one step, in seconds.
        lower: Lower bound in 1/s, 0 if ``None``.
        upper: Upper bound in 1/s, at most ``1 / dt``.
    """

    def __init__(self, dt: float, lower: float | None = None, upper: float | None = None) -> None:
        check_dt(dt)
        super().__init__(lower, upper, limit=1.0 / dt)

    def forward(self, w: Tensor) -> Tensor:
        """Returns the natural value."""
        return _squash(-w, self)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Returns the parameter of a natural value."""
        self.check("value", value)
        return -_unsquash(value, self)


class Softplus(_Bounded):
    r"""Softplus with a scale: :math:`\mathrm{lower} + s \log(1 + e^w)`.

    Values far below the scale :math:`s` change by factors, values far above it by differences: a
    step of 0.01 in :math:`w` changes the value by at most 1 % of :math:`s`, and a value :math:`s`
    by 0.63 %. Without a scale, a value of 100 would need steps of 1 to change by 1 %.

    With an upper bound it is :math:`\mathrm{lower} + s\,[\log(1 + e^{k w}) - \log(1 + e^{k w -
    a})]` with :math:`a = (\mathrm{upper} - \mathrm{lower}) / s` and :math:`k = 1 / \tanh(a / 4)`,
    which keeps the steepest slope at :math:`s`.

    Args:
        scale: The scale :math:`s` in natural units, about the size of the values; part of the
            ``state_dict``. :func:`parametrize` takes the mean of the values it finds.
        lower: Lower bound in natural units, 0 if ``None``.
        upper: Upper bound.
    """

    scale: Tensor

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        lower: float | None = None,
        upper: float | None = None,
    ) -> None:
        super().__init__(lower, upper)
        if not isinstance(scale, Tensor):
            if not 0 < _as_float("scale", scale) < math.inf:
                raise ValueError(f"scale must be positive and finite, got {scale!r}")
            scale = torch.tensor(float(scale))
        self.register_buffer("scale", scale)

    def forward(self, w: Tensor) -> Tensor:
        """Returns the natural value."""
        if self.upper == math.inf:
            return self.lower + self.scale * softplus(w)
        a = (self.upper - self.lower) / self.scale
        w = w / torch.tanh(a / 4)
        return self.lower + self.scale * (softplus(w) - softplus(w - a))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Returns the parameter of a natural value."""
        self.check("value", value)
        y = (value - self.lower) / self.scale
        w = y + (-torch.expm1(-y)).log()  # log(e^y - 1)
        if self.upper == math.inf:
            return w
        a = (self.upper - self.lower) / self.scale
        return (w - (-torch.expm1(y - a)).log()) * torch.tanh(a / 4)


def parametrize(
    layer: _Module,
    name: str | Sequence[str],
    parametrization: str | nn.Module = "log",
    *,
    lower: float | None = None,
    upper: float | None = None,
) -> _Module:
    """Parametrises learnable constants of a layer, or of all layers of a model, in place.

    ``layer.p.tau_mem_inv`` still reads as the natural value, and ``layer.constants.tau_mem_inv =
    value`` assigns one. The parameter keeps its identity: an optimiser that knows it sees the raw
    value from then on. Parametrise before it has stepped: its moments would be those of the old
    scale. Layers that share a parameter keep sharing it; they must all be in the model that is
    given. A layer computes the values anew whenever it is called; a loop over the steps of a cell
    can keep them with ``torch.nn.utils.parametrize.cached()``.

    Args:
        layer: A layer, which must have the constants as parameters; or a model, where all layers
            that have them as parameters are meant, and there must be one.
        name: Name of a constant, or several: ``tau_syn_inv``, ``tau_mem_inv``, ``v_th``. Potentials
            that may be negative need none of these parametrisations.
        parametrization: ``"log"`` (:class:`Log`), ``"softplus"`` (:class:`Softplus`) or, for
            inverse time constants, ``"sigmoid"`` (:class:`SigmoidDecay` with the layer's ``dt``);
            or a module with ``forward`` and ``right_inverse``, of which each constant gets a copy.
        lower: Lower bound in natural units: 1/s for inverse time constants.
        upper: Upper bound, likewise.

    Returns:
        ``layer``.

    Raises:
        TypeError: If ``layer`` is no module, or ``name`` no name.
        ValueError: If a constant is not learnable, parametrised already, or not between the bounds.

    Example:
        >>> import torch, fused_lif
        >>> layer = fused_lif.LIF(learnable=["tau_mem_inv"], neurons=3, parametrization=None)
        >>> layer = parametrize(layer, "tau_mem_inv", "log", lower=10.0, upper=1000.0)
        >>> [name for name, _ in layer.named_parameters()]
        ['constants.parametrizations.tau_mem_inv.original']
        >>> layer.constants.tau_mem_inv = 100.0
        >>> layer.p.tau_mem_inv.round().tolist()
        [100.0, 100.0, 100.0]
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a layer or a model, got {type(layer).__name__}")
    if not isinstance(name, Iterable):
        raise TypeError(f"name must be the name of a constant, or several, got {name!r}")
    names = (name,) if isinstance(name, str) else tuple(dict.fromkeys(name))
    registered = _registered_parameters()
    plan = []  # nothing changes before everything is checked
    for each in names:
        if each not in POSITIVE:
            raise ValueError(
                f"name must be one of {', '.join(POSITIVE)}, which are positive, got {each!r}"
            )
        found = _find(layer, each)
        made: dict[int, list[tuple[NeuronModule, nn.Module]]] = {}
        for owner in found:
            parameter = getattr(owner.constants, each)
            new = make_parametrization(parametrization, each, parameter, owner.dt, lower, upper)
            made.setdefault(id(parameter), []).append((owner, new))
        for key, users in made.items():
            constants = [owner.constants for owner, _ in users]
            _check_sharing(layer, each, constants, registered.get(key, []))
            plan.append((each, users))
    for each, users in plan:
        parameter = getattr(users[0][0].constants, each)
        natural = parameter.detach().clone()
        for owner, new in users:
            with torch.no_grad():
                parameter.set_(natural.clone())  # registering turns it into the raw value
            register_parametrization(owner.constants, each, new)
    return layer


def check_parametrization(parametrization: str | nn.Module) -> None:
    """Raises if there is no parametrisation of that name."""
    if not isinstance(parametrization, nn.Module) and parametrization not in _MAKE:
        raise ValueError(
            f"parametrization must be one of {', '.join(_MAKE)} or a module, "
            f"got {parametrization!r}"
        )


def make_parametrization(
    parametrization: str | nn.Module,
    name: str,
    value: Tensor,
    dt: float,
    lower: float | None = None,
    upper: float | None = None,
) -> nn.Module:
    """Makes the parametrisation of one constant, and raises if the value does not suit it."""
    check_parametrization(parametrization)
    made: nn.Module
    if isinstance(parametrization, nn.Module):
        if lower is not None or upper is not None:
            raise ValueError(
                f"lower and upper must be None, as parametrization has its own, "
                f"got lower={lower} and upper={upper}"
            )
        made = copy.deepcopy(parametrization)
    elif parametrization == "sigmoid" and not name.startswith("tau"):
        raise ValueError(
            f"parametrization 'sigmoid' must be that of an inverse time constant, got {name!r}"
        )
    else:
        made = _MAKE[parametrization](value.detach(), dt, lower, upper)
    if isinstance(made, _Bounded):
        made.check(name, value.detach())
    return made


_MAKE: dict[str, Callable[[Tensor, float, float | None, float | None], nn.Module]] = {
    "log": lambda value, dt, lower, upper: Log(lower, upper),
    "softplus": lambda value, dt, lower, upper: Softplus(value.mean(), lower, upper),
    "sigmoid": lambda value, dt, lower, upper: SigmoidDecay(dt, lower, upper),
}


def _find(layer: nn.Module, name: str) -> list[NeuronModule]:
    """Returns the layers whose constant is to be parametrised."""
    layers = {path: m for path, m in layer.named_modules() if isinstance(m, NeuronModule)}
    found = []
    for path, module in layers.items():
        where = f"{name} of {type(module).__name__}" + f" {path!r}" * bool(path)
        if is_parametrized(module.constants, name):
            raise ValueError(f"{where} must not be parametrized, but it is already")
        if name in module.constants._parameters:
            found.append(module)
        elif module is layer:
            kind = "a fixed value" if name in module.constants._buffers else "none"
            raise ValueError(
                f"{where} must be a parameter to be parametrized, got {kind}; "
                f"learnable=({name!r},) or a torch.nn.Parameter in p makes it one"
            )
    if not found:
        raise ValueError(
            f"layer must be or contain a layer with a learnable {name}, "
            f"got {type(layer).__name__} with none"
        )
    return found


def _registered_parameters() -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns, by the id of a parameter, all modules that registered it, and as what."""
    registered: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in gc.get_objects():
        if issubclass(type(module), nn.Module):
            for name, parameter in module.__dict__.get("_parameters", {}).items():
                registered.setdefault(id(parameter), []).append((module, name))
    return registered


def _check_sharing(
    layer: nn.Module,
    name: str,
    constants: list[NeuronConstants],
    registered: list[tuple[nn.Module, str]],
) -> None:
    """Raises if a module that is not parametrised would suddenly read the raw value."""
    for module, key in registered:
        if key != name or module not in constants:
            kind = "a layer" if isinstance(module, NeuronConstants) else type(module).__name__
            raise ValueError(
                f"{name} must be a parameter of layers in {type(layer).__name__} only, but it is "
                f"also {key} of {kind}; parametrize a model that contains all layers that share "
                "it, and register it nowhere else"
            )


def _squash(w: Tensor, bounds: _Bounded) -> Tensor:
    return bounds.lower + (bounds.upper - bounds.lower) * torch.sigmoid(_steepness(bounds) * w)


def _unsquash(value: Tensor, bounds: _Bounded) -> Tensor:
    odds = (value - bounds.lower).log() - (bounds.upper - value).log()
    return odds / _steepness(bounds)


def _steepness(bounds: _Bounded) -> float:
    """Returns the ``k`` for which ``d log(value) / dw`` is 1 where it is largest."""
    low, high = math.sqrt(bounds.lower), math.sqrt(bounds.upper)
    return (high + low) / (high - low)


def _as_float(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)
