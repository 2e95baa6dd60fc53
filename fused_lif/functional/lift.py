"""Turns functions of a time step into functions of a sequence: ``norse.torch.functional.lift``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["lift"]


class _Lifted:
    """The callable that :func:`lift` returns; an object of a class, so that it can be pickled."""

    def __init__(self, activation: Callable[..., tuple[torch.Tensor, Any]], p: Any) -> None:
        self.activation = activation
        self.p = p

    def __call__(self, input_tensor: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        if len(input_tensor) == 0:
            raise ValueError(
                "input_tensor must have at least one time step, "
                f"got shape {tuple(input_tensor.shape)}"
            )
        state = kwargs.pop("state", None)
        if self.p is not None:
            kwargs.setdefault("p", self.p)
        outputs = []
        for x in input_tensor:
            state_if_any = {} if state is None else {"state": state}
            output, state = self.activation(x, **state_if_any, **kwargs)
            outputs.append(output)
        return torch.stack(outputs), state


def lift(
    activation: Callable[..., tuple[torch.Tensor, Any]], p: Any = None
) -> Callable[..., tuple[torch.Tensor, Any]]:
    """Turns a function of one time step into a function of a sequence, called once per step.

    Args:
        activation: Function of the input of one step, called as ``activation(x, state=state, p=p,
            ...)``, that returns ``(output, state)``. What is ``None`` or not given, ``state`` or
            ``p``, is left out of the call.
        p: Parameters for ``activation``, unless the call of the lifted function gives others.

    Returns:
        Function of the input ``[T, ...]`` and keyword arguments, ``state`` and others for
        ``activation``, that returns the stacked outputs ``[T, ...]`` and the last state. It raises
        a ``ValueError`` if ``T`` is 0.

    Example:
        >>> def add(x, state=0):
        ...     return x + state, x + state
        >>> lift(add)(torch.tensor([1, 2, 3]))
        (tensor([1, 3, 6]), tensor(6))
    """
    return _Lifted(activation, p)
