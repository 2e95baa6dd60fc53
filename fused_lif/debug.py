"""A debug check that points to the first time step at which a number is not finite."""

from __future__ import annotations

import threading
from types import TracebackType

import torch
from torch import Tensor

from fused_lif.backends._base import Backend
from fused_lif.types import LIFProblem

__all__ = ["check_finite"]


class _Enabled(threading.local):
    depth: int = 0


_enabled = _Enabled()


class check_finite:
    """Makes all layers within a ``with`` block raise where a NaN or an infinity appears.

    Every call is checked and run a second time where something is found: for debugging. NaN and
    infinity otherwise come out of a layer as NaN or infinity.

    Raises:
        FloatingPointError: At the first call whose input, initial state or states are not finite;
            the message names the tensor, the step and the place.

    Example:
        >>> import torch, fused_lif
        >>> x = torch.ones(10, 2, 3)
        >>> x[4, 1, 2] = float("nan")
        >>> with fused_lif.check_finite():
        ...     fused_lif.LIF()(x)
        Traceback (most recent call last):
        FloatingPointError: input_tensor must be finite, got nan at step 4, index (1, 2)
    """

    def __enter__(self) -> None:
        _enabled.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _enabled.depth -= 1


def is_enabled() -> bool:
    """Tells whether calls of this thread are to be checked."""
    return _enabled.depth > 0


def _check(names: str | tuple[str, str], tensor: Tensor, has_time: bool) -> None:
    """Raises for the first bad number of ``[T, *step]`` or ``step``.

    With two names the tensor is ``[T, 2, *step]``.
    """
    bad = ~tensor.detach().isfinite()
    if not bad.any():
        return
    index = tuple(bad.nonzero()[0].tolist())  # in the order of the first dimension, time
    value = tensor[index].item()
    where = ""
    if has_time:
        where, index = f"step {index[0]}, ", index[1:]
    if not isinstance(names, str):
        names, index = names[index[0]], index[1:]
    raise FloatingPointError(f"{names} must be finite, got {value} at {where}index {index}")


def raise_if_not_finite(problem: LIFProblem, backend: Backend) -> None:
    """Raises a FloatingPointError if the problem or its states have numbers that are not finite."""
    _check("input_tensor", problem.x, problem.x.dim() > problem.v.dim())
    _check("state.v", problem.v, False)
    if problem.i is not None:
        _check("state.i", problem.i, False)
    if problem.recurrence is not None:
        _check("state.z", problem.recurrence.z, False)
        _check("input_weights", problem.recurrence.input_weights, False)
        _check("recurrent_weights", problem.recurrence.recurrent_weights, False)
    with torch.no_grad():
        states = backend.run(problem._replace(record_states=True)).states
    assert states is not None
    names = ("the potential v after a step", "the current i after a step")
    _check(names, states.transpose(0, 1), True)
