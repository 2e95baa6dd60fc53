"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fused_lif.types import LIFProblem, LIFResult


class Backend(NamedTuple):
    """One implementation of the neuron.

    Attributes:
        name: Name that users pass as ``backend=``.
        unavailable: Returns why the backend cannot run anything here; empty if it can.
        reasons_against: Returns why the backend cannot run a problem; empty if it can.
        run: Integrates a problem, with gradients.
    """

    name: str
    unavailable: Callable[[], list[str]]
    reasons_against: Callable[[LIFProblem], list[str]]
    run: Callable[[LIFProblem], LIFResult]
