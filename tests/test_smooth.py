"""Gradients of surrogates by finite differences: smooth spikes, on every backend.

With smooth spikes the step function is the primitive of the surrogate derivative, so that the
backward computes the gradient of what the forward computes.
"""

from __future__ import annotations

import pytest
import torch
from helpers import (
    CONSTANTS,
    IS_SLOW,
    METHODS,
    all_backends,
    call,
    gradients,
    random_case,
    random_recurrent_case,
)
from torch.autograd.gradcheck import GradcheckError
from torch.testing import assert_close

import fused_lif
from fused_lif import LIFParameters
from fused_lif.backends import BACKENDS as BACKENDS_BY_NAME
from fused_lif.backends import native
from fused_lif.surrogate import SURROGATES
from fused_lif.testing import gradcheck, smooth_spikes

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)
each_reset = pytest.mark.parametrize("reset", ["hard", "soft"])
SURROGATE_METHODS = [m for m in METHODS if m != "box"]  # another name of the last
each_surrogate = pytest.mark.parametrize("method", SURROGATE_METHODS)
#: The primitive of heaviside is the step itself: test_heaviside.
each_smooth_surrogate = pytest.mark.parametrize(
    "method", [m for m in SURROGATE_METHODS if m != "heaviside"]
)


def check(case, backend):
    """Runs gradcheck with respect to all inputs together."""
    inputs = case.inputs()

    def run(*values):
        changed = dict(zip(inputs, values))
        constants = tuple(changed.get(n, c) for n, c in zip(CONSTANTS, case.constants))
        fields = {n: changed[n] for n in case._fields if n in changed}
        return case._replace(**fields, constants=constants).run(backend)

    with smooth_spikes():
        out = case.run(backend)[0]
        assert 0.1 < out.mean() < 0.9
        assert torch.autograd.gradcheck(
            run, tuple(inputs.values()), fast_mode=IS_SLOW.get(backend, False)
        )


#: Sharpness with which smooth spikes go from 0 to about 1.
ALPHA = {"triangle": 1.0, "circ": 0.5, "piecewise_linear": 0.7}


def case_of(shape, method, *, random=random_case, **options):
    options["alpha"] = ALPHA.get(method, 2.0)
    return random(shape, torch.float64, method=method, **options)


@each_reset
@each_smooth_surrogate
@all_backends
def test_gradcheck(method, reset, backend):
    check(case_of((4, 1, 3), method, reset=reset), backend)


@each_smooth_surrogate
@all_backends
def test_gradcheck_encoder(method, backend):
    check(case_of((4, 1, 3), method, neuron="encoder"), backend)


@each_reset
@each_smooth_surrogate
@all_backends
def test_gradcheck_recurrent(method, reset, backend):
    options = {"reset": reset, "detach_reset": False, "random": random_recurrent_case}
    check(case_of((3, 1, 2, 3), method, **options), backend)


@all_backends
def test_gradcheck_leaky_integrator(backend):
    """It has no spikes to smooth."""
    check(random_case((4, 1, 3), torch.float64, "li"), backend)


@pytest.mark.parametrize("constant_shape", [(), (3,), (2, 1)], ids=str)
@pytest.mark.parametrize("record_states", [False, True])
@all_backends
def test_gradcheck_constants(record_states, constant_shape, backend):
    """One value for all neurons, per neuron, per batch row; through all states or the last."""
    options = {"constant_shape": constant_shape, "record_states": record_states}
    check(case_of((3, 2, 3), "super", **options), backend)
    options |= {"detach_reset": False, "random": random_recurrent_case}
    check(case_of((3, 2, 2, 3), "super", **options), backend)


@each_surrogate
@each_reset
@pytest.mark.parametrize("detach_reset", [False, True])
@all_backends
def test_equal_reference(detach_reset, reset, method, backend):
    """Also where the gradient is none of a function: with a detached reset."""
    options = {"reset": reset, "detach_reset": detach_reset}
    for random, shape in ((random_case, (20, 2, 5)), (random_recurrent_case, (20, 2, 4, 5))):
        case = case_of(shape, method, random=random, **options)
        with smooth_spikes():
            for a, e in zip(case.run(backend), case.run("reference")):
                assert_close(a, e, rtol=1e-11, atol=1e-11)
            expected = gradients(case, "reference")
            for name, a in gradients(case, backend).items():
                scale = expected[name].abs().max().item()
                assert_close(a, expected[name], rtol=1e-9, atol=1e-11 * scale, msg=name)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0])
@each_surrogate
@all_backends
def test_primitive(method, alpha, backend):
    """A neuron that does not move shows it: v_decayed - v_th is its initial potential."""
    near = torch.linspace(-2, 2, 401, dtype=torch.float64)
    s = torch.cat([near, near * 1e-3, torch.tensor([1e4, -1e4, 1e30, -1e30])])
    p = LIFParameters(tau_mem_inv=0.0, tau_syn_inv=0.0, v_th=0.0, method=method, alpha=alpha)
    state = fused_lif.LIFFeedForwardState(s, torch.zeros_like(s))
    with smooth_spikes():
        z, _ = call(
            fused_lif.lif_feed_forward_integral, s.new_zeros(1, len(s)), state, p, backend=backend
        )
    expected = SURROGATES[method].primitive(s, alpha)
    assert_close(z[0], expected, rtol=1e-12, atol=1e-14 * expected.max().item())


@all_backends
def test_heaviside(backend):
    """Its derivative is that of the step but at the threshold: smooth spikes are spikes."""
    case = random_case((20, 2, 5), torch.float64, method="heaviside")
    expected = case.run(backend), gradients(case, backend)
    with smooth_spikes():
        actual = case.run(backend), gradients(case, backend)
    assert all(map(torch.equal, actual[0], expected[0]))
    assert all(torch.equal(actual[1][name], g) for name, g in expected[1].items())


def test_only_in_float64():
    with (
        smooth_spikes(),
        pytest.raises(TypeError, match=r"need a float64 input_tensor, got torch\.float32"),
    ):
        fused_lif.LIF()(torch.rand(3, 2))
    fused_lif.LIF()(torch.rand(3, 2))


def test_smooth_spikes_can_be_nested():
    x = torch.full((5, 2), 2.0, dtype=torch.float64)
    with smooth_spikes():
        with smooth_spikes():
            pass
        assert not torch.isin(fused_lif.LIF()(x)[0], torch.tensor([0.0, 1.0])).any()


class TestGradcheckOfLayers:
    @staticmethod
    def parameters(**changes):
        values = {
            name: torch.nn.Parameter(torch.full((3,), value))
            for name, value in zip(CONSTANTS, (200.0, 100.0, 0.1, 0.3, -0.1))
        }
        return LIFParameters(**{**values, **changes})

    @pytest.mark.parametrize("method", SURROGATE_METHODS)
    def test_layer(self, method, capsys):
        layer = fused_lif.LIF(self.parameters(method=method))
        before = {name: (t.clone(), t.dtype) for name, t in layer.constants.named_parameters()}
        assert gradcheck(layer, torch.rand(6, 2, 3) * 2)
        printed = capsys.readouterr().out
        assert "gradcheck of LIF in float64 with smooth spikes; " in printed
        for name in ("input_tensor", "state.v", "state.i", *(f"constants.{c}" for c in CONSTANTS)):
            assert f"  passed: {name} " in printed
        for name, t in layer.constants.named_parameters():
            assert torch.equal(t, before[name][0])
            assert t.dtype == before[name][1]
            assert t.grad is None

    def test_recurrent_layer(self, capsys):
        layer = fused_lif.LIFRecurrent(4, 3, self.parameters(), reset="soft")
        assert gradcheck(layer, (torch.rand(5, 2, 4) < 0.5).float())
        printed = capsys.readouterr().out
        assert "passed: recurrent_weights (3, 3)" in printed
        assert "equal to the reference with autapses=False, detach_reset=True" in printed

    def test_model(self, capsys):
        """Initial states follow v_leak without a gradient; they must not move meanwhile."""
        model = fused_lif.SequentialState(
            torch.nn.Linear(4, 3), fused_lif.LIF(self.parameters()), fused_lif.LI()
        )
        assert gradcheck(model, torch.rand(5, 2, 4), verbose=False)
        assert capsys.readouterr().out == ""

    def test_parametrized_constants(self, capsys):
        layer = fused_lif.LIF(learnable=("tau_mem_inv",), neurons=3)
        assert gradcheck(layer, torch.rand(5, 2, 3) * 5)
        assert "constants.parametrizations.tau_mem_inv.original (3,)" in capsys.readouterr().out

    def test_cell_and_backend(self):
        cell = fused_lif.LIFCell(self.parameters())
        assert gradcheck(cell, torch.rand(2, 3) * 9, backend="reference", verbose=False)

    @pytest.mark.parametrize("broken", ["grad", "primitive"])
    def test_wrong_gradient_is_found(self, broken, monkeypatch):
        right = SURROGATES["super"]
        wrong = right._replace(**{broken: lambda s, alpha: getattr(right, broken)(s, alpha) * 1.01})
        monkeypatch.setitem(SURROGATES, "super", wrong)
        with pytest.raises(GradcheckError, match="the gradient of input_tensor is wrong"):
            gradcheck(fused_lif.LIF(), torch.rand(5, 2, 3) * 5, backend="reference", verbose=False)

    def test_wrong_gradient_of_a_detached_reset_is_found(self, monkeypatch):
        """Finite differences do not see it, the reference does."""
        right = SURROGATES["super"]
        layer = fused_lif.LIF(detach_reset=True)
        wrong = right._replace(grad=lambda s, alpha: right.grad(s, alpha) * 1.01)
        monkeypatch.setitem(SURROGATES, "super", wrong)
        with pytest.raises(GradcheckError, match="differs from that of the reference"):
            gradcheck(layer, torch.rand(5, 2, 3) * 5, backend="cpu", verbose=False)

    def test_event_methods_have_none(self):
        layer = fused_lif.LIF(self.parameters(method="eventprop"))
        with pytest.raises(ValueError, match=r"p\.method 'eventprop' has none"):
            gradcheck(layer, torch.rand(5, 2, 3))

    def test_backend_of_the_layer(self, monkeypatch):
        """The backend that is asked for is checked; the reference is compared with another."""
        names = []
        for name, backend in BACKENDS_BY_NAME.items():
            run = backend.run
            monkeypatch.setitem(
                BACKENDS_BY_NAME,
                name,
                backend._replace(run=lambda q, name=name, run=run: names.append(name) or run(q)),
            )
        options = {"verbose": False, "fast_mode": True}
        x = torch.rand(4, 1, 2)
        assert gradcheck(fused_lif.LIF(backend="cpu"), x, backend="reference", **options)
        assert set(names) == {"reference"}
        names.clear()
        assert gradcheck(fused_lif.LIF(backend="cpu", detach_reset=True), x, **options)
        assert set(names) == {"cpu", "reference"}
        names.clear()
        with fused_lif.backend("reference"):
            assert gradcheck(fused_lif.LIF(), x, **options)
        assert set(names) == {"reference"}

    def test_any_call_and_output(self):
        class Model(torch.nn.Module):
            def __init__(self, p):
                super().__init__()
                self.first, self.second = fused_lif.LIF(p), fused_lif.LI()

            def forward(self, x):
                spikes, _ = self.first(input_tensor=x)
                return {"v": self.second(spikes, state=None)[0]}

        with torch.no_grad():
            assert gradcheck(Model(self.parameters()), torch.rand(5, 2, 3) * 3, verbose=False)

    def test_encoder(self):
        assert gradcheck(
            fused_lif.ConstantCurrentLIFEncoder(4), torch.rand(2, 3) * 20, verbose=False
        )

    def test_random_layers_are_refused(self):
        model = fused_lif.SequentialState(torch.nn.Dropout(0.5), fused_lif.LIF())
        with pytest.raises(ValueError, match="must give the same output for the same input"):
            gradcheck(model, torch.rand(5, 2, 3))
        assert gradcheck(model.eval(), torch.rand(5, 2, 3), verbose=False)

    def test_no_layer(self):
        with pytest.raises(TypeError, match="layer must be a module, got function"):
            gradcheck(lambda x: x, torch.rand(3))
        with pytest.raises(TypeError, match="input_tensor must be a tensor, got list"):
            gradcheck(fused_lif.LIF(), [1.0])
