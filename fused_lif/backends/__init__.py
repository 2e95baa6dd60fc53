"""The backends, and the one place that decides which of them runs."""

from __future__ import annotations

import functools
import threading
import warnings
from types import TracebackType

import torch

from fused_lif.backends import native, reference, triton
from fused_lif.backends._autograd import reasons_against_kernels
from fused_lif.backends._base import Backend
from fused_lif.types import LIFProblem

__all__ = ["BACKENDS", "Backend", "backend", "check_backend_name", "select_backend"]

#: All backends, the preferred one first. The reference can run everything and comes last.
BACKENDS: dict[str, Backend] = {
    b.name: b for b in (native.CUDA, native.CPU, triton.TRITON, reference.REFERENCE)
}


class _Requested(threading.local):
    def __init__(self) -> None:
        self.names: list[str | None] = [None]  # of the blocks that this thread is in


_requested = _Requested()


class backend:  # a context manager, used like a function
    """Uses one backend for all layers within a ``with`` block of this thread.

    A ``backend=`` given to a function or layer takes precedence. Other threads, such as those of
    ``DataParallel``, are not affected.

    Args:
        name: ``"cuda"``, ``"cpu"``, ``"triton"``, ``"reference"``, or ``None`` for the automatic
            choice.

    Raises:
        ValueError: If there is no backend of that name.

    Example:
        >>> import torch, fused_lif
        >>> with fused_lif.backend("reference"):
        ...     spikes, state = fused_lif.LIF()(torch.ones(10, 5, 2))
    """

    def __init__(self, name: str | None) -> None:
        self.name = check_backend_name(name)

    def __enter__(self) -> None:
        _requested.names.append(self.name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _requested.names.pop()


def check_backend_name(name: str | None) -> str | None:
    """Returns ``name``; raises a ValueError if there is no such backend."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def select_backend(problem: LIFProblem, requested: str | None = None) -> Backend:
    """Returns the backend that runs ``problem``.

    A requested backend is used or refused, never replaced. Without a request, the first entry
    of :data:`BACKENDS` that can run the problem is used.

    Raises:
        ValueError: If there is no backend called ``requested``.
        RuntimeError: If the requested backend cannot run the problem; the message says why.
    """
    if requested is None:
        requested = _requested.names[-1]
    if requested is None:
        chosen = next(
            b
            for b in BACKENDS.values()
            # The interpreter is for those who ask for it.
            if not (b is triton.TRITON and triton.IS_INTERPRETED) and not b.reasons_against(problem)
        )
        if chosen is reference.REFERENCE and not torch.compiler.is_compiling():
            _warn_of_slow_reference(problem)
        return chosen
    check_backend_name(requested)
    chosen = BACKENDS[requested]
    if reasons := chosen.reasons_against(problem):
        raise RuntimeError(f"backend {requested!r} cannot run this input: {'; '.join(reasons)}")
    return chosen


def _warn_of_slow_reference(problem: LIFProblem) -> None:
    """Warns if it is the machine that keeps kernels from running: that can be mended."""
    for_device = {"cpu": [native.CPU], "cuda": [native.CUDA, triton.TRITON]}
    backends = for_device.get(problem.x.device.type, [])
    if backends and not reasons_against_kernels(problem):
        reasons = dict.fromkeys(r for b in backends for r in b.reasons_against(problem))
        _warn_once("; ".join(reasons))


@functools.cache
def _warn_once(reasons: str) -> None:
    warnings.warn(
        f"fused_lif runs on its slow reference backend: {reasons}; see `python -m fused_lif.info`",
        RuntimeWarning,
        stacklevel=6,
    )
