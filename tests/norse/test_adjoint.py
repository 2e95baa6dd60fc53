"""The method ``adjoint`` has the gradients of Norse's adjoint steps, and layers have them too."""

from __future__ import annotations

import pytest
import torch
from norse_common import norse
from torch.testing import assert_close

import fused_lif
from fused_lif.functional.adjoint.lif_adjoint import (
    lif_adjoint_step,
    lif_feed_forward_adjoint_step,
)

T, B, N, H = 40, 3, 7, 5  # N inputs
CONSTANTS = (190.0, 110.0, 0.1, 0.6, -0.2)


def leaf(*shape, scale=1.0, mean=0.0):
    return (mean + scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def parameters(library):
    return library.LIFParameters(*(torch.tensor(c, dtype=torch.float64) for c in CONSTANTS))


def gradients(outputs, leaves):
    """Of a loss that looks at the spikes of all steps and at the final state."""
    torch.manual_seed(1)
    weights = [torch.randn_like(o) for o in outputs]
    return torch.autograd.grad(outputs, leaves, weights)


def steps_of(step, xs, state, *arguments):
    spikes = []
    for x in xs.unbind(0):
        z, state = step(x, state, *arguments)
        spikes.append(z)
    return torch.stack(spikes), state.v, state.i


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_feed_forward(backend):
    x, v, i = leaf(T, B, H, mean=0.5), leaf(B, H, scale=0.2), leaf(B, H, scale=0.2)
    step = norse.functional.adjoint.lif_adjoint.lif_feed_forward_adjoint_step
    state = norse.LIFFeedForwardState(v, i)
    expected = steps_of(step, x, state, parameters(norse))
    assert 0.05 < expected[0].mean() < 0.5
    p = parameters(fused_lif)._replace(method="adjoint")
    layer = fused_lif.LIF(p, backend=backend)
    z, s = layer(x, fused_lif.LIFFeedForwardState(v, i))
    ours = steps_of(lif_feed_forward_adjoint_step, x, fused_lif.LIFFeedForwardState(v, i), p)
    expected_gradients = gradients(expected, (x, v, i))
    for actual in ((z, s.v, s.i), ours):
        assert all(map(torch.equal, actual, expected))
        for a, e in zip(gradients(actual, (x, v, i)), expected_gradients, strict=True):
            assert_close(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_recurrent(backend):
    """Weights too: of the input one step off, of the recurrence by the spikes of the step."""
    x = (torch.rand(T, B, N, dtype=torch.float64) < 0.3).double().requires_grad_()
    z, v, i = leaf(B, H), leaf(B, H, scale=0.2), leaf(B, H, scale=0.2)
    weights = leaf(H, N, scale=0.5), leaf(H, H, scale=0.3)
    leaves = (x, z, v, i, *weights)
    step = norse.functional.adjoint.lif_adjoint.lif_adjoint_step
    expected = steps_of(step, x, norse.LIFState(z, v, i), *weights, parameters(norse))
    assert 0.05 < expected[0].mean() < 0.5
    p = parameters(fused_lif)._replace(method="adjoint")
    state = fused_lif.LIFState(z, v, i)
    out, s = fused_lif.lif_step_integral(x, state, *weights, p, backend=backend)
    ours = steps_of(lif_adjoint_step, x, state, *weights, p)
    expected_gradients = gradients(expected, leaves)
    for actual in ((out, s.v, s.i), ours):
        assert torch.equal(actual[0], expected[0])
        for a, e in zip(gradients(actual, leaves), expected_gradients, strict=True):
            assert_close(a, e, rtol=1e-9, atol=1e-12)
