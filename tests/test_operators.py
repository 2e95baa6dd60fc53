"""torch's own checks of the operators: schemas, fake functions, tracing."""

from __future__ import annotations

import pytest
import torch

from fused_lif import LIFParameters
from fused_lif.backends import native
from fused_lif.types import Neuron

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


def arguments(neuron, shape, interval, dtype=torch.float32):
    """Arguments of lif_forward for a sequence, or for a single step if the shape has two sizes."""
    p = LIFParameters(tau_mem_inv=torch.full((shape[-1],), 120.0))
    x = torch.rand(shape, dtype=dtype)
    v, i = torch.zeros(shape[-2:]), torch.zeros(shape[-2:])
    synapse, threshold = neuron != Neuron.CURRENT_ENCODER, neuron != Neuron.LI
    return (
        x,
        v,
        i if synapse else None,
        p.tau_syn_inv if synapse else None,
        p.tau_mem_inv,
        p.v_leak,
        p.v_th if threshold else None,
        p.v_reset if threshold else None,
        0.001,
        int(neuron),
        False,
        interval,
    )


@pytest.mark.parametrize("interval", [0, 1, 32])
@pytest.mark.parametrize("shape", [(40, 3, 4), (3, 4)], ids=["sequence", "single step"])
@pytest.mark.parametrize("neuron", Neuron)
def test_forward(neuron, shape, interval):
    torch.library.opcheck(
        torch.ops.fused_lif.lif_forward.default, arguments(neuron, shape, interval)
    )


@pytest.mark.parametrize("needs", [255, 1, 0b00011000])
@pytest.mark.parametrize("interval", [1, 32])
@pytest.mark.parametrize("shape", [(40, 3, 4), (3, 4)], ids=["sequence", "single step"])
@pytest.mark.parametrize("neuron", Neuron)
def test_backward(neuron, shape, interval, needs):
    forward = arguments(neuron, shape, interval)
    x, *tensors = forward[:8]
    _, v, _, states = torch.ops.fused_lif.lif_forward(*forward)
    alpha = None if neuron == Neuron.LI else torch.tensor(100.0)
    torch.library.opcheck(
        torch.ops.fused_lif.lif_backward.default,
        (
            torch.randn(shape),
            torch.randn_like(v),
            None,
            torch.randn_like(states) if interval == 1 else None,
            x,
            states,
            *tensors,
            alpha,
            *forward[8:],
            1,
            False,
            needs,
        ),
    )


def test_half_types_and_surrogate_grad():
    for dtype in (torch.bfloat16, torch.float16):
        torch.library.opcheck(
            torch.ops.fused_lif.lif_forward.default, arguments(Neuron.LIF, (40, 3, 4), 32, dtype)
        )
    torch.library.opcheck(torch.ops.fused_lif.surrogate_grad.default, (torch.rand(5), 1, 100.0))
