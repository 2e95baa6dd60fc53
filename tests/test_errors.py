"""Bad input raises one sentence with the argument, the rule and the value."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import torch

import fused_lif
from fused_lif import LIF, LIFCell, LIFFeedForwardState, LIFParameters, LIParameters
from fused_lif.backends import native

X = torch.rand(4, 2, 3)


def state(*shape, **kwargs):
    return LIFFeedForwardState(torch.zeros(*shape, **kwargs), torch.zeros(*shape, **kwargs))


CASES = {
    "state shape": (
        lambda: LIF()(X, state(2, 4)),
        ValueError,
        "state.v must have shape (2, 3) to match input_tensor (4, 2, 3), got (2, 4)",
    ),
    "constant shape": (
        lambda: LIF(LIFParameters(v_th=torch.ones(5)))(X),
        ValueError,
        "v_th must broadcast against one time step of shape (2, 3), got shape (5,)",
    ),
    "integer input": (
        lambda: LIF()(X.long()),
        TypeError,
        "input_tensor must be one of float32, float64, bfloat16, float16, got torch.int64",
    ),
    "sparse input": (
        lambda: LIF()(X.to_sparse()),
        TypeError,
        "input_tensor must be dense, got the layout torch.sparse_coo",
    ),
    "no tensor": (
        lambda: fused_lif.lif_feed_forward_step([1.0], state(1)),
        TypeError,
        "input_tensor must be a tensor, got list",
    ),
    "no time": (
        lambda: LIF()(X[:0]),
        ValueError,
        "input_tensor must have at least one time step, got shape (0, 2, 3)",
    ),
    "rank 0": (
        lambda: fused_lif.lif_feed_forward_integral(torch.tensor(1.0), state(1)),
        ValueError,
        "input_tensor must have time as its first dimension, got shape ()",
    ),
    "negative time constant": (
        lambda: LIF(LIFParameters(tau_mem_inv=-100.0)),
        ValueError,
        "tau_mem_inv must be finite and not negative, in 1/s, got -100.0",
    ),
    "infinite time constant": (
        lambda: fused_lif.li_feed_forward_step(X, state(2, 3), LIParameters(math.inf)),
        ValueError,
        "tau_syn_inv must be finite and not negative, in 1/s, got inf",
    ),
    "NaN threshold": (
        lambda: LIF(LIFParameters(v_th=math.nan)),
        ValueError,
        "v_th must be finite, got nan",
    ),
    "constant of a strange type": (
        lambda: LIF(LIFParameters(v_th=[1.0])),
        TypeError,
        "v_th must be a number or a tensor, got list",
    ),
    "dt": (
        lambda: LIF(dt=-0.001),
        ValueError,
        "dt must be a positive and finite number, in seconds, got -0.001",
    ),
    "dt of a function": (
        lambda: fused_lif.lif_feed_forward_integral(X, state(2, 3), dt=math.nan),
        ValueError,
        "dt must be a positive and finite number, in seconds, got nan",
    ),
    "method": (
        lambda: fused_lif.lif_feed_forward_integral(
            X, state(2, 3), LIFParameters(method="superspike")
        ),
        ValueError,
        "p.method must be one of heaviside, super, triangle, tanh, circ, heavi_erfc, sigmoid, "
        "atan, piecewise_linear, box, adjoint, eventprop, got 'superspike'",
    ),
    "float8": (
        lambda: LIF()(X.to(torch.float8_e5m2)),
        TypeError,
        "input_tensor must be one of float32, float64, bfloat16, float16, got torch.float8_e5m2",
    ),
    "complex constant": (
        lambda: fused_lif.lif_feed_forward_step(X, state(4, 2, 3), LIFParameters(v_th=X * 1j)),
        TypeError,
        "v_th must be one of float32, float64, bfloat16, float16, got torch.complex64",
    ),
    "no constants": (
        lambda: LIF(None),
        TypeError,
        "p must be a LIFParameters or LIParameters, got NoneType",
    ),
    "dt of another type": (
        lambda: LIF(dt="a"),
        ValueError,
        "dt must be a positive and finite number, in seconds, got 'a'",
    ),
    "method of a layer": (
        lambda: LIF(LIFParameters(method="surrogate")),
        ValueError,
        "p.method must be one of heaviside, super, triangle, tanh, circ, heavi_erfc, sigmoid, "
        "atan, piecewise_linear, box, adjoint, eventprop, got 'surrogate'",
    ),
    "reset": (
        lambda: LIFCell(reset="none"),
        ValueError,
        "reset must be one of hard, soft, got 'none'",
    ),
    "state on another device": (
        lambda: LIF()(X, state(2, 3, device="meta")),
        ValueError,
        "state.v must be on the device of input_tensor (cpu), got meta",
    ),
    "constant on another device": (
        lambda: fused_lif.lif_feed_forward_integral(
            X, state(2, 3), LIFParameters(v_th=torch.ones(3, device="meta"))
        ),
        ValueError,
        "v_th must be on the device of input_tensor (cpu), got meta",
    ),
    "unknown backend": (
        lambda: LIF(backend="gpu"),
        ValueError,
        "backend must be one of cuda, cpu, triton, reference, got 'gpu'",
    ),
    "unknown backend of a function": (
        lambda: fused_lif.lif_feed_forward_integral(X, state(2, 3), backend="gpu"),
        ValueError,
        "backend must be one of cuda, cpu, triton, reference, got 'gpu'",
    ),
    "unknown backend of a block": (
        lambda: fused_lif.backend("gpu"),
        ValueError,
        "backend must be one of cuda, cpu, triton, reference, got 'gpu'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_backend_that_cannot_run_gives_reasons():
    x = torch.rand(4, 2, 3, device="meta")
    message = "backend 'cpu' cannot run this input: the input is on meta"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        LIFCell(backend="cpu")(x)


def test_backend_block_and_argument():
    calls = []
    reference = fused_lif.backends.BACKENDS["reference"]

    def spy(problem):
        calls.append("reference")
        return reference.run(problem)

    fused_lif.backends.BACKENDS["reference"] = reference._replace(run=spy)
    try:
        with fused_lif.backend("reference"):
            LIF()(X)
            with fused_lif.backend(None):
                LIF(backend="reference")(X)
            assert calls == ["reference", "reference"]
        LIF()(X)
        expected = 2 if native.IMPORT_ERROR is None else 3
        assert len(calls) == expected
    finally:
        fused_lif.backends.BACKENDS["reference"] = reference


@pytest.mark.skipif(native.IMPORT_ERROR is not None, reason="the C++ extension is not built")
class TestOperators:
    """A direct call of an operator is checked again, in C++."""

    @staticmethod
    def call(
        x=X, v=None, i=None, v_th=None, alpha=None, neuron=0, interval=0, method=1, smooth=False
    ):
        c = torch.tensor(1.0)
        v = torch.zeros(2, 3) if v is None else v
        i = torch.zeros(2, 3) if i is None else i
        v_th = c if v_th is None else v_th
        return torch.ops.fused_lif.lif_forward(
            x, v, i, c, c, c, v_th, c, alpha, 0.001, neuron, False, interval, method, smooth
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"v": torch.zeros(2, 4)}, r"v must have shape \[2, 3\] .* got \[2, 4\]"),
            ({"i": torch.zeros(3)}, r"i must have shape \[2, 3\]"),
            ({"i": torch.zeros(2, 3).double()}, "i must have the dtype"),
            ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16"),
            ({"x": X[:0]}, "at least one time step"),
            ({"x": X[0, 0]}, r"x must have shape \[T, \*step\]"),
            ({"v_th": torch.ones(7)}, r"v_th must broadcast to one time step of shape \[2, 3\]"),
            ({"v_th": torch.ones(3).long()}, "v_th must be floating-point"),
            ({"neuron": 3}, "unknown neuron 3"),
            ({"interval": -1}, "state_interval must be between 0 and 32, got -1"),
            ({"method": 11}, "unknown method 11; known ones are 0 to 10"),
            ({"smooth": True, "alpha": torch.tensor(1.0)}, "smooth spikes need float64"),
            ({"smooth": True, "method": 10}, "an event-based method has no smooth spikes"),
            ({"alpha": torch.tensor(1.0)}, "alpha must be given for smooth spikes only"),
        ],
        ids=lambda a: a if isinstance(a, str) else next(iter(a)),
    )
    def test_message(self, arguments, message):
        with pytest.raises(RuntimeError, match=message):
            self.call(**arguments)

    def test_unknown_surrogate(self):
        with pytest.raises(RuntimeError, match="unknown surrogate id 99; known ids are 0 to 8"):
            torch.ops.fused_lif.surrogate_grad(torch.ones(3), 99, 1.0)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (None, "state.i must be finite, got inf at index (0, 2)"),
        (3, "input_tensor must be finite, got nan at step 3, index (1, 2)"),
        (2, "the current i after a step must be finite, got nan at step 2, index (1, 2)"),
    ],
)
def test_check_finite_points_to_the_first_step(step, message):
    x, i = torch.zeros(6, 2, 3), torch.zeros(2, 3)
    if step is None:
        i[0, 2] = math.inf
    elif step == 3:
        x[3, 1, 2] = x[4, 0, 0] = math.nan
    else:
        x[:, 1, 2] = 1.5e38  # the current overflows at the third step
    layer = LIF(LIFParameters(v_th=1e30))
    layer(x, LIFFeedForwardState(torch.zeros(2, 3), i))
    with fused_lif.check_finite(), pytest.raises(FloatingPointError, match=re.escape(message)):
        layer(x, LIFFeedForwardState(torch.zeros(2, 3), i))
    with fused_lif.check_finite():
        layer(torch.rand(6, 2, 3))
        LIFCell()(torch.rand(2, 3))


def test_without_the_extension():
    """The package imports, warns once, runs on the reference and says why."""
    code = """
import sys, warnings
sys.modules["fused_lif._C"] = None  # makes the import fail
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fused_lif, torch
    spikes, _ = fused_lif.LIF()(torch.ones(10, 5, 2))
    fused_lif.LIF()(torch.ones(10, 5, 2))
assert spikes.shape == (10, 5, 2)
assert [w.category for w in caught if "fused_lif" in str(w.message)] == [RuntimeWarning], caught
try:
    fused_lif.LIF(backend="cpu")(torch.ones(10, 5, 2))
except RuntimeError as error:
    print(error)
import fused_lif.info
print(fused_lif.info.info())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "backend 'cpu' cannot run this input: the C++ extension could not be" in result.stdout
    assert "cpu: cannot run: the C++ extension could not be loaded" in result.stdout


def test_info_names_versions_and_backends():
    result = subprocess.run(
        [sys.executable, "-m", "fused_lif.info"], capture_output=True, text=True, check=True
    )
    assert f"fused_lif {fused_lif.__version__}, torch {torch.__version__}" in result.stdout
    assert "reference: ready" in result.stdout
