"""The event-based methods: every backend against the reference, and what they promise.

tests/test_convergence.py shows that the gradients are right, tests/norse/test_adjoint.py that those
of ``adjoint`` are Norse's.
"""

from __future__ import annotations

import pytest
import torch
from helpers import (
    TOLERANCE,
    Case,
    all_backends,
    call,
    gradients,
    random_case,
    random_recurrent_case,
)
from test_lif_backward import check
from test_lif_forward import DTYPES

import fused_lif
from fused_lif import LIFFeedForwardState, LIFParameters
from fused_lif.backends import native
from fused_lif.surrogate import EVENT_METHODS

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)
each_method = pytest.mark.parametrize("method", EVENT_METHODS)


@each_method
@pytest.mark.parametrize("neuron", ["lif", "encoder"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (40, 3, 35), (33, 2, 300)], ids=str)
def test_equal_reference(shape, dtype, neuron, method, kernels):
    check(random_case(shape, dtype, neuron, method=method), kernels)


@each_method
@pytest.mark.parametrize("T", [2, 15, 16, 17, 31, 32, 33, 64, 65])
def test_segments_of_checkpoints(T, method, backend):
    """The gradient of the next step's spike comes from another segment."""
    check(random_case((T, 2, 5), torch.float64, method=method), backend)


@each_method
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("constant_shape", [(), (5,), (3, 1), (1,)], ids=str)
def test_constants_broadcast(constant_shape, reset, method, backend):
    options = {"constant_shape": constant_shape, "reset": reset, "method": method}
    check(random_case((40, 3, 5), torch.float64, **options), backend)


@each_method
def test_through_recorded_states(method, backend):
    check(random_case((70, 3, 35), torch.float64, method=method, record_states=True), backend)


@each_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 4), (9, 3, 4), (40, 3, 10, 35), (33, 9, 5, 130)], ids=str
)
def test_recurrent_equal_reference(shape, dtype, method, kernels, monkeypatch):
    """Sums over weights are rounded in another order than in the reference's product.

    A spike divides that by its slope: by 2.5e-6 were emulated gradients in float32 off.
    """
    monkeypatch.setitem(TOLERANCE, torch.float32, TOLERANCE[torch.float32]._replace(grad=2e-5))
    check(random_recurrent_case(shape, dtype, method=method), kernels)


@each_method
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("constant_shape", [(), (6,), (3, 1)], ids=str)
@pytest.mark.parametrize("record_states", [False, True])
def test_recurrent_options(constant_shape, reset, record_states, method, backend):
    options = {"constant_shape": constant_shape, "reset": reset, "method": method}
    case = random_recurrent_case(
        (34, 3, 5, 6), torch.float64, record_states=record_states, **options
    )
    check(case, backend)


@each_method
@pytest.mark.parametrize("random", [random_case, random_recurrent_case])
def test_detached_reset_makes_no_difference(random, method, backend):
    shape = (20, 3, 5) if random is random_case else (20, 3, 5, 6)
    with_reset, without = (
        gradients(random(shape, torch.float64, method=method, detach_reset=detach), backend)
        for detach in (False, True)
    )
    assert all(torch.equal(with_reset[name], without[name]) for name in with_reset)


def one_neuron(x, method, backend, v=0.0, **constants):
    """Spikes, and the gradient of the sum of their steps, counted from 1."""
    p = LIFParameters(
        **{
            k: torch.tensor([c], dtype=torch.float64).requires_grad_() for k, c in constants.items()
        },
        method=method,
    )
    x = torch.tensor(x, dtype=torch.float64).reshape(-1, 1)
    v = torch.tensor([v], dtype=torch.float64).requires_grad_()
    state = LIFFeedForwardState(v, torch.zeros(1, dtype=torch.float64))
    z, _ = call(fused_lif.lif_feed_forward_integral, x, state, p, backend=backend)
    steps = torch.arange(1, len(x) + 1, dtype=torch.float64)
    leaves = {"v": v, **{k: getattr(p, k) for k in constants}}
    grads = torch.autograd.grad((z[:, 0] * steps).sum(), list(leaves.values()))
    return z[:, 0].tolist(), dict(zip(leaves, (float(g) for g in grads)))


@all_backends
def test_eventprop_by_hand(backend):
    """A constant current of 2 and no memory of it: tau_syn_inv = 1/dt, a = 1/4.

    v = 0, 0.5, 0.875, 1.15625: a spike in the third step, in which the potential rises by 0.28125.
    If it starts higher by e it is higher by 0.75^3 e there: the spike comes 0.421875 e / 0.28125 =
    1.5 e steps earlier. With v_th higher by e, it comes e / 0.28125 steps later.
    """
    constants = {"tau_syn_inv": 1000.0, "tau_mem_inv": 250.0, "v_leak": 0.0, "v_th": 1.0}
    z, grads = one_neuron([2.0] * 4, "eventprop", backend, **constants)
    assert z == [0, 0, 1, 0]
    assert grads["v"] == pytest.approx(-1.5, rel=1e-12)
    assert grads["v_th"] == pytest.approx(1 / 0.28125, rel=1e-12)
    # v_leak adds 1/4 in each of three steps, which shrinks by 3/4 a step.
    assert grads["v_leak"] == pytest.approx(-(1 + 0.75 + 0.5625) / 4 / 0.28125, rel=1e-12)
    # Of dv/dt = (2 - v) tau_mem_inv dt with 2 - v = 2, 1.5, 1.125.
    steps = 2.0 * 0.5625 + 1.5 * 0.75 + 1.125
    assert grads["tau_mem_inv"] == pytest.approx(-0.001 * steps / 0.28125, rel=1e-12)


@all_backends
def test_last_step_has_no_time_to_compare_with(backend):
    constants = {"tau_syn_inv": 1000.0, "tau_mem_inv": 250.0, "v_th": 1.0}
    z, grads = one_neuron([2.0] * 3, "eventprop", backend, **constants)
    assert z == [0, 0, 1]
    assert grads == {"v": 0, "tau_syn_inv": 0, "tau_mem_inv": 0, "v_th": 0}


@each_method
@all_backends
def test_vanishing_slope_passes_no_gradient(method, backend):
    """The potential starts above the threshold, at the current: it does not move, and spikes."""
    constants = {"tau_syn_inv": 1000.0, "tau_mem_inv": 250.0, "v_leak": 2.0, "v_th": 1.0}
    z, grads = one_neuron([0.0] * 3, method, backend, v=2.0, **constants)
    assert z[0] == 1
    assert grads["v"] == 0
    assert all(abs(g) < 1e3 for g in grads.values())


@each_method
@all_backends
def test_slope_that_almost_vanishes(method, backend):
    """The limit is a millionth of the way from rest to the threshold."""
    constants = {"tau_syn_inv": 1000.0, "tau_mem_inv": 250.0, "v_leak": 2.0, "v_th": 1.0}
    for drive, passes in ((0.5e-6, False), (2e-6, True)):
        _, grads = one_neuron([0.0] * 3, method, backend, v=2.0 - drive, **constants)
        assert (grads["v"] != 0) == passes


@all_backends
def test_falling_potential_crosses_nothing(backend):
    """Its spike passes no gradient with eventprop; Norse's adjoint divides by its slope."""
    constants = {"tau_syn_inv": 1000.0, "tau_mem_inv": 250.0, "v_leak": 0.0, "v_th": 1.0}
    z, grads = one_neuron([0.0] * 3, "eventprop", backend, v=2.0, **constants)
    assert z[0] == 1
    assert grads["v"] == 0
    _, grads = one_neuron([0.0] * 3, "adjoint", backend, v=2.0, **constants)
    assert grads["v"] == pytest.approx(0.001 / (0.25 * -2.0))


@pytest.mark.parametrize("method", EVENT_METHODS)
@all_backends
def test_no_rate_no_gradient(method, backend):
    """Nothing divides by tau_mem_inv or tau_syn_inv of zero."""
    constants = {"tau_syn_inv": 0.0, "tau_mem_inv": 0.0, "v_th": 1.0}
    z, grads = one_neuron([1.0] * 3, method, backend, v=2.0, **constants)
    assert z[0] == 1
    assert all(abs(g) < 1e3 for g in grads.values())


def test_cells():
    x = torch.rand(2, 3)
    with pytest.raises(
        ValueError, match=r"p\.method 'eventprop' needs a sequence, not a single step"
    ):
        fused_lif.LIFCell(LIFParameters(method="eventprop"))(x)
    with pytest.raises(ValueError, match="needs a sequence"):
        fused_lif.LIFRecurrentCell(3, 4, LIFParameters(method="eventprop"))(x)
    spikes, _ = fused_lif.LIFCell(LIFParameters(method="adjoint"))(x)
    assert spikes.shape == x.shape


def test_adjoint_steps_are_the_sequence(backend, monkeypatch):
    case = random_case((12, 3, 5), torch.float64, method="adjoint")
    expected = gradients(case, backend)

    def run(_, name):
        p = LIFParameters(*case.constants, method="adjoint")
        state, spikes = LIFFeedForwardState(case.v, case.i), []
        for x in case.x:
            z, state = call(fused_lif.lif_feed_forward_step, x, state, p, backend=name)
            spikes.append(z)
        return torch.stack(spikes), state.v, state.i

    monkeypatch.setattr(Case, "run", run)
    actual = gradients(case, backend)
    for name, g in actual.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", EVENT_METHODS)
def test_compiled_layer(method):
    layer = fused_lif.LIFRecurrent(4, 5, LIFParameters(method=method))
    x = (torch.rand(20, 2, 4) < 0.5).float()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for f in (layer, compiled):
        f(x)[0].sum().backward()
    assert layer.input_weights.grad is not None


@each_method
def test_transforms_of_torch_func(method):
    """The reference can be transformed; a second derivative is refused."""
    p = LIFParameters(v_th=torch.tensor(0.3), method=method)
    weights, x = torch.randn(3, 2), 3 * torch.rand(9, 4, 2)
    rest = LIFFeedForwardState(torch.zeros(3), torch.zeros(3))

    def loss(weights, x):
        z, s = fused_lif.lif_feed_forward_integral(x @ weights.T, rest, p)
        return (z * torch.arange(9.0)[:, None]).sum() + s.v.sum()

    actual = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x)
    weights.requires_grad_()
    for k in range(4):
        (expected,) = torch.autograd.grad(loss(weights, x[:, k]), weights)
        torch.testing.assert_close(actual[k], expected)
    with fused_lif.backend("reference"):
        (first,) = torch.autograd.grad(loss(weights, x[:, 0]), weights, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@each_method
@all_backends
def test_finite_where_rest_is_the_threshold(method, backend):
    constants = {"tau_syn_inv": 100.0, "tau_mem_inv": 100.0, "v_leak": 0.0, "v_th": 0.0}
    z, grads = one_neuron([1e-30] * 3, method, backend, v_reset=-1.0, **constants)
    assert z[0] == 1
    assert all(abs(g) < 1e30 for g in grads.values())
