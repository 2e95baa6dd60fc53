"""Single steps with Norse's adjoint gradients.

Names are those of ``norse.torch.functional.adjoint.lif_adjoint``. The same as the functions of
:mod:`fused_lif.functional.lif` with ``p.method = "adjoint"``, which runs whole sequences and layers
too. The equations are in docs/gradients.md.
"""

from __future__ import annotations

from torch import Tensor

from fused_lif.functional.lif import lif_feed_forward_step, lif_step
from fused_lif.types import LIFFeedForwardState, LIFParameters, LIFState

__all__ = ["lif_adjoint_step", "lif_feed_forward_adjoint_step"]


def lif_adjoint_step(
    input: Tensor,
    s: LIFState,
    input_weights: Tensor,
    recurrent_weights: Tensor,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, LIFState]:
    """Runs :func:`fused_lif.lif_step` with the method ``"adjoint"``."""
    p = p._replace(method="adjoint")
    return lif_step(input, s, input_weights, recurrent_weights, p, dt, backend=backend)


def lif_feed_forward_adjoint_step(
    input: Tensor,
    s: LIFFeedForwardState,
    p: LIFParameters = LIFParameters(),
    dt: float = 0.001,
    *,
    backend: str | None = None,
) -> tuple[Tensor, LIFFeedForwardState]:
    """Runs :func:`fused_lif.lif_feed_forward_step` with the method ``"adjoint"``."""
    return lif_feed_forward_step(input, s, p._replace(method="adjoint"), dt, backend=backend)
