"""Gradients of spike times converge to the exact ones as dt goes to 0: docs/gradients.md."""

from __future__ import annotations

import convergence
import exact
import pytest
import torch
from convergence import COARSE, CONSTANTS, END, KINDS, NAMES, flat, from_flat, order
from torch.nn.functional import linear

from fused_lif import (
    LIFFeedForwardState,
    LIFParameters,
    LIParameters,
    LIState,
    li_feed_forward_integral,
    lif_feed_forward_integral,
    spike_times,
)
from fused_lif.backends import native

#: Networks side by side. Exact solutions of single neurons take the least time.
SIZE = {"one layer": 64, "two layers": 16, "recurrent": 16}
#: Steps per COARSE. The reference gets through fewer in a second.
STEPS = {"cpu": [8, 16, 32, 64, 128, 256, 512], "reference": [8, 16, 32, 64]}

needs_extension = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)
backends = pytest.mark.parametrize(
    "backend", [pytest.param("cpu", marks=needs_extension), "reference"]
)
resets = pytest.mark.parametrize("reset", ["hard", "soft"])
kinds = pytest.mark.parametrize("kind", KINDS)


def assert_first_order(steps, table):
    """The error falls as dt does, and is small: at most 1.2 times dt in ms."""
    for name in table[0]:
        errors = [row[name] for row in table]
        assert 0.8 < order(steps, errors) < 1.2, (name, errors)
        assert errors[-1] < 1.2 / steps[-1], (name, errors)


@resets
@kinds
def test_exact_gradients_are_finite_differences(kind, reset):
    case = convergence.random_case(kind, reset, SIZE[kind])
    N = KINDS[kind]  # the first network

    def part(name, t):
        return t[:N, :N] if name == "recurrent_weights" else t[:N]

    tensors = [part(name, t) for name, t in zip(NAMES, flat(case.network))]
    for k, name in enumerate(NAMES):
        direction = torch.linspace(-1, 2, tensors[k].numel(), dtype=torch.float64)
        direction = direction.reshape(tensors[k].shape) * tensors[k].abs().mean()
        values = []
        for step in (-1e-6, 1e-6):
            changed = [*tensors[:k], tensors[k] + step * direction, *tensors[k + 1 :]]
            values.append(
                convergence.exact_loss(changed, case.inputs, reset, case.loss_weights[:, :N])
            )
        derivative = (part(name, case.grads[name]) * direction).sum()
        actual = (values[1] - values[0]) / 2e-6
        torch.testing.assert_close(actual, derivative, rtol=1e-5, atol=1e-9, msg=name)


@backends
@resets
@kinds
def test_eventprop(kind, reset, backend):
    case = convergence.random_case(kind, reset, SIZE[kind])
    table = [convergence.errors(case, n, "eventprop", backend) for n in STEPS[backend]]
    unused = {"v_reset"} if reset == "soft" else set()
    if kind == "one layer":
        unused.add("recurrent_weights")
    assert set(table[0]) == set(NAMES) - unused
    assert_first_order(STEPS[backend], table)


@needs_extension
@resets
def test_eventprop_through_a_readout(reset):
    """LIF -> Linear -> LI: the loss is on the potential at the end, the gradient plain autograd."""
    case = convergence.random_case("two layers", reset, SIZE["two layers"])
    seen = case.loss_weights.any(0)
    constants, loss_weights = case.network.p, case.loss_weights[0, seen]
    constants = constants._replace(v_th=torch.where(seen, 1e9, constants.v_th))
    tensors = [t.clone().requires_grad_() for t in flat(case.network._replace(p=constants))]
    network = from_flat(tensors)
    end = exact.simulate(network, case.inputs, END, reset).v[seen]
    expected = torch.autograd.grad((loss_weights * end).sum(), tensors, materialize_grads=True)
    table = []
    for steps in STEPS["cpu"]:
        dt = COARSE / steps
        p, v, i, input_weights, weights = network
        hidden = LIFParameters(*(c[~seen] for c in p[:5]), method="eventprop")
        state = LIFFeedForwardState(v[~seen], i[~seen])
        x = linear(convergence.input_spikes(case.inputs, dt), input_weights[~seen])
        options = {"reset": reset, "backend": "cpu"}
        z, _ = lif_feed_forward_integral(x, state, hidden, dt, **options)
        readout = LIParameters(*(c[seen] for c in p[:3]))
        x, state = linear(z, weights[seen][:, ~seen]), LIState(v[seen], i[seen])
        end = li_feed_forward_integral(x, state, readout, dt, backend="cpu")[0][-1]
        loss = (loss_weights * end).sum()
        actual = torch.autograd.grad(loss, tensors, materialize_grads=True)
        table.append(convergence.relative_errors(case, actual, dict(zip(NAMES, expected))))
    assert set(table[0]) >= {*CONSTANTS, "v", "i"} - {"v_reset"}
    assert_first_order(STEPS["cpu"], table)


@needs_extension
@resets
def test_adjoint_of_one_layer(reset):
    """Long steps are left out: in them input spikes fall on steps of spikes."""
    case, steps = convergence.random_case("one layer", reset, SIZE["one layer"]), STEPS["cpu"][2:]
    assert_first_order(steps, [convergence.errors(case, n, "adjoint", "cpu") for n in steps])


@needs_extension
@pytest.mark.parametrize("kind", ["two layers", "recurrent"])
def test_adjoint_does_not_converge_through_spikes(kind):
    """Norse takes the gradient of a spike for that of its time."""
    case = convergence.random_case(kind, "hard", SIZE[kind])
    errors = convergence.errors(case, STEPS["cpu"][-1], "adjoint", "cpu")
    assert all(errors[name] > 0.05 for name in CONSTANTS)


@backends
@pytest.mark.parametrize(("method", "limit"), [("eventprop", 1.0), ("adjoint", -0.7)])
def test_input_in_the_step_of_the_spike(method, limit, backend):
    """A constant current without memory (tau_syn = dt): v = 1.7 (1 - exp(-t / tau_mem)).

    Norse's slope leaves out the input of the step, which here is all of the current: v_leak - v_th
    = -1 in place of 0.7.
    """
    current, tau_mem = 1.7, 0.01
    errors = []
    for steps in STEPS[backend]:
        dt = COARSE / steps
        v_th = torch.ones(1, dtype=torch.float64, requires_grad=True)
        p = LIFParameters(tau_syn_inv=1 / dt, tau_mem_inv=1 / tau_mem, v_th=v_th, method=method)
        x = torch.full((round(0.012 / dt), 1), current, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        z, _ = lif_feed_forward_integral(x, LIFFeedForwardState(zero, zero), p, dt, backend=backend)
        assert z.sum() == 1
        time = spike_times(z, dt).sum() if method == "eventprop" else -z.sum()
        (grad,) = torch.autograd.grad(time, v_th)
        errors.append(abs(grad.item() / (tau_mem / (current - 1)) - limit))
    assert 0.6 < order(STEPS[backend], errors) < 1.4
    assert errors[-1] < 1 / STEPS[backend][-1]
