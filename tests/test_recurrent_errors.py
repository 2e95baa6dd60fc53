"""Bad input of recurrent layers raises one sentence with the argument, the rule and the value."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fused_lif
from fused_lif import (
    LIFFeedForwardState,
    LIFParameters,
    LIFRecurrent,
    LIFRecurrentCell,
    LIFState,
    lif_step,
    lif_step_integral,
)
from fused_lif.backends import native

X = torch.rand(6, 2, 4)
W_IN, W_REC = torch.rand(3, 4), torch.rand(3, 3)


def state(z=(2, 3), v=(2, 3), i=(2, 3), **kwargs):
    return LIFState(*(torch.zeros(shape, **kwargs) for shape in (z, v, i)))


def run(x=X, s=None, w_in=W_IN, w_rec=W_REC, p=LIFParameters(), **options):
    return lif_step_integral(x, state() if s is None else s, w_in, w_rec, p, **options)


DTYPES = "float32, float64, bfloat16, float16"
METHODS = (
    "heaviside, super, triangle, tanh, circ, heavi_erfc, sigmoid, atan, piecewise_linear, box, "
    "adjoint, eventprop"
)

CASES = {
    "input weights of a strange type": (
        lambda: run(w_in=[[1.0]]),
        TypeError,
        "input_weights must be a tensor, got list",
    ),
    "recurrent weights of a strange type": (
        lambda: run(w_rec=None),
        TypeError,
        "recurrent_weights must be a tensor, got NoneType",
    ),
    "integer input weights": (
        lambda: run(w_in=W_IN.long()),
        TypeError,
        f"input_weights must be one of {DTYPES}, got torch.int64",
    ),
    "complex recurrent weights": (
        lambda: run(w_rec=W_REC * 1j),
        TypeError,
        f"recurrent_weights must be one of {DTYPES}, got torch.complex64",
    ),
    "input weights on another device": (
        lambda: run(w_in=W_IN.to("meta")),
        ValueError,
        "input_weights must be on the device of input_tensor (cpu), got meta",
    ),
    "recurrent weights on another device": (
        lambda: run(w_rec=W_REC.to("meta")),
        ValueError,
        "recurrent_weights must be on the device of input_tensor (cpu), got meta",
    ),
    "input weights of another input": (
        lambda: run(w_in=torch.rand(3, 5)),
        ValueError,
        "input_weights must have shape (hidden_size, 4) to match input_tensor (6, 2, 4), "
        "got (3, 5)",
    ),
    "transposed input weights": (
        lambda: run(w_in=W_IN.t()),
        ValueError,
        "input_weights must have shape (hidden_size, 4) to match input_tensor (6, 2, 4), "
        "got (4, 3)",
    ),
    "rank of the input weights": (
        lambda: run(w_in=W_IN[0]),
        ValueError,
        "input_weights must have shape (hidden_size, 4) to match input_tensor (6, 2, 4), got (4,)",
    ),
    "rank of the recurrent weights": (
        lambda: run(w_rec=W_REC[0]),
        ValueError,
        "recurrent_weights must have shape (3, 3) to match input_weights (3, 4), got (3,)",
    ),
    "recurrent weights that are not square": (
        lambda: run(w_rec=torch.rand(3, 4)),
        ValueError,
        "recurrent_weights must have shape (3, 3) to match input_weights (3, 4), got (3, 4)",
    ),
    "no features": (
        lambda: run(x=torch.rand(6)),
        ValueError,
        "input_tensor must have input features as its last dimension, got shape (6,)",
    ),
    "no features of a step": (
        lambda: lif_step(torch.tensor(1.0), state(), W_IN, W_REC),
        ValueError,
        "input_tensor must have input features as its last dimension, got shape ()",
    ),
    "no time": (
        lambda: run(x=X[:0]),
        ValueError,
        "input_tensor must have at least one time step, got shape (0, 2, 4)",
    ),
    "rank 0": (
        lambda: run(x=torch.tensor(1.0)),
        ValueError,
        "input_tensor must have time as its first dimension, got shape ()",
    ),
    "integer input": (
        lambda: run(x=X.long()),
        TypeError,
        f"input_tensor must be one of {DTYPES}, got torch.int64",
    ),
    "sparse input": (
        lambda: run(x=X.to_sparse()),
        TypeError,
        "input_tensor must be dense, got the layout torch.sparse_coo",
    ),
    "no tensor": (
        lambda: run(x=[1.0]),
        TypeError,
        "input_tensor must be a tensor, got list",
    ),
    **{
        f"shape of state.{name}": (
            lambda name=name: run(s=state(**{name: (2, 4)})),
            ValueError,
            f"state.{name} must have shape (2, 3) to match input_tensor (6, 2, 4), got (2, 4)",
        )
        for name in "zvi"
    },
    "batch of the state": (
        lambda: run(s=state(z=(5, 3))),
        ValueError,
        "state.z must have shape (2, 3) to match input_tensor (6, 2, 4), got (5, 3)",
    ),
    "state of a strange type": (
        lambda: run(s=LIFState("spikes", 0, 0)),
        TypeError,
        "state.z must be a number or a tensor, got str",
    ),
    "complex state": (
        lambda: run(s=state()._replace(z=torch.zeros(2, 3) * 1j)),
        TypeError,
        "state.z must be real, got torch.complex64",
    ),
    "state on another device": (
        lambda: run(s=state(device="meta")),
        ValueError,
        "state.z must be on the device of input_tensor (cpu), got meta",
    ),
    "constant of another size": (
        lambda: run(p=LIFParameters(v_th=torch.ones(5))),
        ValueError,
        "v_th must broadcast against one time step of shape (2, 3), got shape (5,)",
    ),
    "constant of the size of the input": (
        lambda: run(p=LIFParameters(tau_mem_inv=torch.ones(4))),
        ValueError,
        "tau_mem_inv must broadcast against one time step of shape (2, 3), got shape (4,)",
    ),
    "constant larger than one neuron": (
        lambda: run(
            x=X,
            s=state(*[(2, 1)] * 3),
            w_in=W_IN[:1],
            w_rec=W_REC[:1, :1],
            p=LIFParameters(v_th=torch.ones(7)),
        ),
        ValueError,
        "v_th must broadcast against one time step of shape (2, 1), got shape (7,)",
    ),
    "method": (
        lambda: run(p=LIFParameters(method="surrogate")),
        ValueError,
        f"p.method must be one of {METHODS}, got 'surrogate'",
    ),
    "method of a layer": (
        lambda: LIFRecurrent(4, 3, LIFParameters(method="surrogate")),
        ValueError,
        f"p.method must be one of {METHODS}, got 'surrogate'",
    ),
    "reset": (
        lambda: run(reset="none"),
        ValueError,
        "reset must be one of hard, soft, got 'none'",
    ),
    "reset of a layer": (
        lambda: LIFRecurrentCell(4, 3, reset="none"),
        ValueError,
        "reset must be one of hard, soft, got 'none'",
    ),
    "dt": (
        lambda: LIFRecurrent(4, 3, dt=0),
        ValueError,
        "dt must be a positive and finite number, in seconds, got 0",
    ),
    "dt of a function": (
        lambda: run(dt=-1.0),
        ValueError,
        "dt must be a positive and finite number, in seconds, got -1.0",
    ),
    "backend": (
        lambda: run(backend="gpu"),
        ValueError,
        "backend must be one of cuda, cpu, triton, reference, got 'gpu'",
    ),
    "backend of a layer": (
        lambda: LIFRecurrent(4, 3, backend="gpu"),
        ValueError,
        "backend must be one of cuda, cpu, triton, reference, got 'gpu'",
    ),
    "input of another size": (
        lambda: LIFRecurrent(5, 3)(X),
        ValueError,
        "input_weights must have shape (hidden_size, 4) to match input_tensor (6, 2, 4), "
        "got (3, 5)",
    ),
    "input of a cell of another size": (
        lambda: LIFRecurrentCell(5, 3)(X[0]),
        ValueError,
        "input_weights must have shape (hidden_size, 4) to match input_tensor (2, 4), got (3, 5)",
    ),
    "state of a layer": (
        lambda: LIFRecurrent(4, 3)(X, state(v=(2, 4))),
        ValueError,
        "state.v must have shape (2, 3) to match input_tensor (6, 2, 4), got (2, 4)",
    ),
    "weights of a layer": (
        lambda: LIFRecurrent(4, 3, input_weights=torch.ones(4, 3)),
        ValueError,
        "input_weights must have shape (3, 4), got (4, 3)",
    ),
    "recurrent weights of a layer": (
        lambda: LIFRecurrentCell(4, 3, recurrent_weights=nn.Parameter(torch.ones(4, 4))),
        ValueError,
        "recurrent_weights must have shape (3, 3), got (4, 4)",
    ),
    "weights of a layer of a strange type": (
        lambda: LIFRecurrent(4, 3, input_weights=[[1.0]]),
        TypeError,
        "input_weights must be a tensor, got list",
    ),
    "p of a layer": (
        lambda: LIFRecurrent(4, 3, 0.5),
        TypeError,
        "p must be a LIFParameters or LIParameters, got float",
    ),
}
for bad in (0, -1, 1.5, True):
    for name in ("input_size", "hidden_size"):
        CASES[f"{name} {bad}"] = (
            lambda name=name, bad=bad: LIFRecurrent(
                **{"input_size": 4, "hidden_size": 3, name: bad}
            ),
            ValueError,
            f"{name} must be a positive integer, got {bad!r}",
        )


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("bad", ["4", None, float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("name", ["input_size", "hidden_size"])
def test_sizes_that_are_no_numbers(name, bad):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be a positive integer, got"):
        LIFRecurrentCell(**{"input_size": 4, "hidden_size": 3, name: bad})


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["w_in", "w_rec"])
def test_sparse_weights(name, backend):
    weights = (W_IN if name == "w_in" else W_REC).to_sparse()
    full_name = "input_weights" if name == "w_in" else "recurrent_weights"
    message = f"^{full_name} must be dense, got the layout torch.sparse_coo$"
    with pytest.raises(TypeError, match=message):
        run(backend=backend, **{name: weights})


def test_state_of_a_layer_without_recurrence():
    with pytest.raises((AttributeError, TypeError), match="z"):
        LIFRecurrent(4, 3)(X, LIFFeedForwardState(torch.zeros(2, 3), torch.zeros(2, 3)))


@pytest.mark.skipif(native.IMPORT_ERROR is not None, reason="the C++ extension is not built")
def test_exact_needs_one_dtype():
    """The reference, whose matrix products these are, runs other combinations."""
    layer = LIFRecurrent(4, 3, exact=True, backend="cpu")
    layer(X)
    with pytest.raises(RuntimeError, match="exact=True needs input and weights in float32"):
        layer(X.bfloat16())
    with pytest.raises(RuntimeError, match="exact=True needs input and weights in float32"):
        layer(X.double())
    layer.backend = None
    assert layer(X.bfloat16())[0].dtype == torch.bfloat16


def test_backend_that_cannot_run_gives_reasons():
    layer = LIFRecurrent(4, 3, backend="cpu").to("meta")
    with pytest.raises(
        RuntimeError, match=r"^backend 'cpu' cannot run this input: the input is on"
    ):
        layer(X.to("meta"))


def test_numbers_and_small_tensors_are_broadcast():
    expected, s = run(s=state())
    for start in (LIFState(0, 0.0, torch.tensor(0)), LIFState(*(torch.zeros(3),) * 3)):
        spikes, end = run(s=start)
        assert torch.equal(spikes, expected)
        assert torch.equal(end.v, s.v)
    assert fused_lif.lif_step(X[0], LIFState(0, 0, 0), W_IN, W_REC)[0].shape == (2, 3)
