"""What all layers have in common: constants that are registered, a time step, a backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    is_parametrized,
    register_parametrization,
    type_before_parametrizations,
)

from fused_lif.backends import check_backend_name
from fused_lif.functional._integrate import check_dt, check_method, check_number


class NeuronConstants(nn.Module):
    """Holds the constants of a neuron as parameters and buffers.

    A :class:`torch.nn.Parameter` becomes a parameter of this module, and stays the same object: two
    layers that are given one ``LIFParameters`` share its parameters. Other tensors and numbers
    become buffers that are not part of the ``state_dict``, follow the module to its device, and
    keep their dtype: ``module.half()`` does not round a time constant that is not learned.

    A checkpoint without any constant loads also strictly, as Norse saves none; learnable constants
    then keep their values. One of constants that were not parametrized loads into parametrized
    ones: the value is natural. Unlike other modules, it can be pickled while it is parametrized.

    Args:
        p: A named tuple of constants, such as ``LIFParameters``.
    """

    v_leak: Tensor

    def __init__(self, p: Any) -> None:
        super().__init__()
        if not hasattr(p, "_asdict"):
            raise TypeError(f"p must be a LIFParameters or LIParameters, got {type(p).__name__}")
        self.kind = type(p)
        self.settings: dict[str, Any] = {}
        for name, value in p._asdict().items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                is_default = value is p._field_defaults.get(name)
                self.register_buffer(name, value.clone() if is_default else value, persistent=False)
            elif name == "method":
                check_method(value)
                self.settings[name] = value
            else:
                tensor = torch.tensor(
                    check_number(name, value), dtype=torch.get_default_dtype(), device="cpu"
                )
                self.register_buffer(name, tensor, persistent=False)

    def as_tuple(self) -> Any:
        """Returns the constants as the named tuple they were given as."""
        values = {**self.settings, **self._buffers, **self._parameters}
        fields = self.kind._fields
        if values.keys() == set(fields):
            return self.kind(**values)
        return self.kind(*[values[n] if n in values else getattr(self, n) for n in fields])

    def __setattr__(self, name: str, value: Any) -> None:
        if is_parametrized(self, name):
            # torch would take the shape of the value for that of the parameter.
            now = getattr(self, name).detach()
            value = torch.as_tensor(value, dtype=now.dtype, device=now.device).expand_as(now)
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # torch does not pickle parametrized modules: each has a class of its own.
        kind = type_before_parametrizations(self)
        return _parametrized_like, (kind, self.parametrized()), self.__dict__.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> NeuronConstants:
        new = _parametrized_like(type_before_parametrizations(self), self.parametrized())
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def parametrized(self) -> list[str]:
        """Returns the names of the constants that are parametrized."""
        return list(getattr(self, "parametrizations", ()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NeuronConstants:
        # A buffer is not in the state_dict: nothing could restore a value lost to `to_empty` or to
        # the meta device. So it is moved, never converted nor emptied.
        buffers = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in buffers.items():
            assert value is not None
            moved = self._buffers[name]
            assert moved is not None
            stays = moved.device == value.device or moved.is_meta
            self._buffers[name] = value if stays else value.to(moved.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Norse does not save neuron constants: a checkpoint without any is complete.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix, keep_vars=True))
        # Constants that were not parametrized when they were saved.
        for name in self.parametrized():
            if prefix + name in state_dict:
                key = f"{prefix}parametrizations.{name}."
                parametrizations: Any = getattr(self.parametrizations, name)
                state_dict.update(parametrizations.state_dict(prefix=key, keep_vars=True))
                value = state_dict.pop(prefix + name).detach().to(parametrizations.original)
                try:
                    for parametrization in reversed(parametrizations):
                        value = parametrization.right_inverse(value)
                    state_dict[key + "original"] = value
                except ValueError as error:
                    error_msgs.append(f"{prefix}{name}: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _parametrized_like(kind: type[NeuronConstants], names: Sequence[str]) -> NeuronConstants:
    """Makes an empty module with parametrisations of these names; contents must follow."""
    constants = kind.__new__(kind)
    nn.Module.__init__(constants)
    for name in names:
        constants.register_parameter(name, nn.Parameter(torch.empty(())))
        register_parametrization(constants, name, nn.Identity())
    return constants


class NeuronModule(nn.Module):
    """Base of all layers and cells.

    Args:
        p: Constants of the neuron.
        dt: Length of one step, in seconds.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Attributes:
        constants: The module that registers the constants.
    """

    def __init__(self, p: Any, dt: float = 0.001, *, backend: str | None = None) -> None:
        super().__init__()
        check_dt(dt)
        self.constants = NeuronConstants(p)
        self.dt = dt
        self.backend = check_backend_name(backend)

    @property
    def p(self) -> Any:
        """The constants, with the tensors that the layer uses; can be assigned."""
        constants: Any = self._modules["constants"]  # quicker than self.constants
        return constants.as_tuple()

    @p.setter
    def p(self, value: Any) -> None:
        if parametrized := self.constants.parametrized():
            raise ValueError(
                f"p must not be assigned while {', '.join(parametrized)} are parametrized; "
                f"assign constants.{parametrized[0]} instead"
            )
        self.constants = NeuronConstants(value)

    def extra_repr(self) -> str:
        """Shows the constants and the time step, as Norse does."""
        return f"p={self.p}, dt={self.dt}"

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"


def resting_state(v_leak: Tensor, step: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``v = v_leak`` and ``i = 0`` for neurons of shape ``step``, in the state's dtype.

    As in Norse, ``v`` is a leaf that requires a gradient and does not depend on ``v_leak``.
    """
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    if v_leak.dim():
        step = torch.broadcast_shapes(step, v_leak.shape)
    v = torch.empty(step, dtype=dtype, device=like.device).copy_(v_leak.detach())
    if not torch.compiler.is_compiling():
        with suppress(RuntimeError):  # inside torch.func transforms
            v.requires_grad_()
    return v, torch.zeros(step, dtype=dtype, device=like.device)
